"""Recorded outputs: the teacher's logits for every sample of every epoch, and features if requested.

``outputs.json`` describes a folder's teacher, views and form. ``epoch-0003/000016384.logits.safetensors`` holds the
logits of epoch 3, samples 16384 and up (both counted from 0), and a file beside it holds each feature. Logits are
float16 less their row's float32 mean: probabilities would lose their tails (6e-8 is 0 in float16, yet counts at a small
gamma). If there are too many, the file holds the form of `top_k.TopK`, or one of `forms` if that is asked for. A file
carries its place (what it is of, epoch, first sample, and a digest of the key in ``outputs.json``) and a digest of its
tensors and place, is written atomically, and is checked once when it is opened; its tensors are mapped, not copied.

Samples with positions have a row for each that is counted, one sample's after another's, and ``offsets`` to them. No
view varies them, so the one epoch that is recorded is read in all.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tutelage import records
from tutelage.teacher_cache.forms import BucketForm, Form, SampledForm, from_json
from tutelage.teacher_cache.top_k import TeacherCacheError
from tutelage.types import Batch, Outputs, View

ROWS = 16384  # samples per chunk, at which interrupted recording resumes
DIGEST = "blake2b"
LOGITS = "logits"
OF_IMAGES = 2
"""Schema of outputs with one row per sample."""
OF_POSITIONS = 3
"""Schema of outputs with as many rows per sample as positions that count. Those above say so with ``ragged``."""
PLACE = ("what", "epoch", "start", "of")
"""Keys of a file's metadata that say its place; ``of`` is the digest of the key."""


class _TopForm(TypedDict):
    top: int
    classes: int
    gammas: list[float]
    max_error: float


class _BucketForm(TypedDict):
    name: Literal["bucket"]
    top: int
    classes: int


class _SampledForm(TypedDict):
    name: Literal["sampled"]
    draws: int
    proposal: float
    classes: int
    seed: int


class _Described(TypedDict):
    """Types of the keys of ``outputs.json`` that are read again."""

    samples: int
    rows: int
    key: dict[str, Any]
    form: NotRequired[_TopForm | _BucketForm | _SampledForm | None]
    ragged: NotRequired[bool]
    errors: NotRequired[list[dict[str, float]]]
    speed: NotRequired[dict[str, Any] | None]


def size_of(
    *, samples: int, classes: int, shapes: Mapping[str, tuple[int, ...]], epochs: int, form: Form | None = None
) -> int:
    """Return the size of the outputs in bytes: 2 per logit and per feature entry, 4 per sample; or the form's."""
    features = sum(torch.Size(shape).numel() for shape in shapes.values())
    return epochs * samples * ((2 * classes + 4 if form is None else form.bytes) + 2 * features)


class TeacherCache:
    """Recorded outputs in a folder.

    Args:
        folder: folder of the cache.
        key: facts that the outputs depend on (teacher, data, views, precision, taps), as a JSON value.
        samples: number of training samples.
        rows: number of samples per chunk; an existing cache keeps its own.
        form: form of the logits; ``None`` stores all of them; an existing cache keeps its own.
        ragged: whether a sample has as many rows as positions that count.
        varies: whether outputs differ from epoch to epoch, as those of augmented images do; if not, one epoch's are
            stored and read in all, and the key names no data seed.

    Attributes:
        of_labels: whether each of a sample's ``classes`` is a label with the classes no and yes, of which the logit of
            yes less that of no is stored.
        begun: whether the cache exists.
        errors: what was measured of the form, by exponent, once all is recorded.
        speed: plan by which the recorded teacher is computed, as a JSON value; ``None`` until it is chosen.

    Raises:
        TeacherCacheError: if the folder holds outputs for another key, every difference is named; or outputs without
            ``outputs.json``.
        DamagedError: if that is damaged.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        *,
        samples: int,
        rows: int = ROWS,
        form: Form | None = None,
        ragged: bool = False,
        varies: bool = True,
    ) -> None:
        self.ragged, self.varies = ragged, varies and not ragged
        self.of_labels = key.get("task") == "labels"
        self.folder, self.key, self.samples, self.rows, self.form = folder, dict(key), samples, rows, form
        path = folder / records.OUTPUTS
        self.speed: Mapping[str, Any] | None = None
        self.errors: list[dict[str, float]] = []
        self.schema = OF_POSITIONS if ragged else OF_IMAGES
        self.begun = path.exists()
        if self.begun:
            instead = f"restore it, or remove the folder {folder} and record again with `tutelage record`"
            stored = records.read_json(path, _Described, reads=records.OUTPUTS_SCHEMA, instead=instead)
            if stored["rows"] < 1:
                raise records.DamagedError(path, "rows: 1 or more", stored["rows"], instead)
            self._check_same(stored)
            self.schema, self.speed, self.rows = stored.get("schema", 1), stored.get("speed"), stored["rows"]
            self.ragged = stored.get("ragged", self.schema == OF_POSITIONS)
            self.form, self.errors = self._stored_form(stored, instead), stored.get("errors", [])
            if self.schema == 1:
                warnings.warn(
                    f"{path}: recorded by an earlier version, whose files do not say their epoch and samples: a file "
                    "under another's name is not noticed; record again in another folder to have that checked",
                    stacklevel=2,
                )
        elif any(folder.glob("epoch-*/*.safetensors")):
            expected = f"{path}, which says whose outputs lie beside it"
            instead = f"restore it, or remove the folder {folder} and record again with `tutelage record`"
            raise TeacherCacheError("outputs", expected, "none", instead)

    def _stored_form(self, stored: Mapping[str, Any], instead: str) -> Form | None:
        try:
            return from_json(stored["form"]) if stored.get("form") else None
        except (KeyError, TypeError) as error:
            path = self.folder / records.OUTPUTS
            raise records.DamagedError(path, "form: one that was written", stored["form"], instead) from error

    def epochs(self, epochs: int) -> int:
        """Return how many epochs are stored for so many of a fit."""
        return epochs if self.varies else min(epochs, 1)

    @property
    def _of(self) -> str:
        """The digest of everything that must agree between ``outputs.json`` and the files."""
        form = self.form.to_json() if self.form else None
        value = {"key": self.key, "samples": self.samples, "rows": self.rows, "form": form}
        return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()

    def _check_same(self, stored: Mapping[str, Any]) -> None:
        then, now = (
            {**dict(records.flat(key)), "samples": samples}
            for key, samples in ((stored["key"], stored["samples"]), (self.key, self.samples))
        )
        differs = [
            f"{name} (expected {now.get(name, 'none')}, got {then.get(name, 'none')})"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]
        if differs:
            expected = f"those of this run in {self.folder / records.OUTPUTS}"
            instead = "type outputs=... for another folder and record them with `tutelage record`"
            raise TeacherCacheError("outputs", expected, f"others that differ in {'; '.join(differs)}", instead)

    def begin(self, **more: Any) -> None:
        """Write ``outputs.json``: the key, the form, and further entries."""
        named: dict[str, Any] = {}
        if isinstance(self.form, BucketForm | SampledForm):  # which earlier versions do not read
            self.schema, named = records.OUTPUTS_SCHEMA, {"ragged": self.ragged}
        value = {"schema": self.schema, "samples": self.samples, "rows": self.rows, "digest": DIGEST, "key": self.key}
        value["form"], value["speed"] = self.form.to_json() if self.form else None, self.speed
        records.write_json(self.folder / records.OUTPUTS, value | named | more)
        self.begun = True

    def conclude(self, epochs: int) -> dict[float, dict[str, float]]:
        """Record the form's errors over all chunks of this many epochs; return its `measures` by exponent."""
        if self.form is None:
            return {}
        measures = self.form.measures
        chunks = [(epoch, chunk) for epoch in range(epochs) for chunk in self.ranges()]
        paths = [self._existing(epoch, chunk.start, LOGITS) for epoch, chunk in chunks]
        each = torch.stack([_error_of(path) for path in paths]).double()
        share = torch.tensor([len(chunk) for _, chunk in chunks], dtype=torch.float64)
        mean, largest = (each * (share / share.sum())[:, None, None]).sum(0), each.amax(0)
        whole = torch.where(torch.tensor([name.startswith("mean") for name in measures]), mean, largest).tolist()
        errors = {
            gamma: {name: float(f"{value:.3g}") for name, value in zip(measures, row, strict=True)}
            for gamma, row in zip(self.form.gammas, whole, strict=True)
        }
        if isinstance(self.form, SampledForm):
            (measured,) = errors.values()
            rows = self.epochs(epochs) * self.samples if not self.ragged else self._rows_in(paths)
            spread = max(0.0, measured.pop("mean_square") - measured["mean_bias"] ** 2)
            measured["standard_error"] = float(f"{(spread / max(1, rows)) ** 0.5:.3g}")
        self.errors = [{"gamma": gamma, **measured} for gamma, measured in errors.items()]
        self.begin(errors=self.errors)
        return errors

    def _rows_in(self, paths: Sequence[Path]) -> int:
        """Return how many positions the files of logits have."""
        rows = 0
        for path in paths:
            with _opened(path) as file:
                rows += file.get_slice("entropy").get_shape()[0]
        return rows

    def ranges(self) -> Iterator[range]:
        """Yield the samples of each chunk."""
        for start in range(0, self.samples, self.rows):
            yield range(start, min(start + self.rows, self.samples))

    def missing(self, epoch: int, taps: Sequence[str] = ()) -> Iterator[range]:
        """Yield the chunks of an epoch whose logits or features are missing, damaged or in another's place."""
        for chunk in self.ranges():
            if not all(self._is_there(epoch, chunk.start, what) for what in (LOGITS, *taps)):
                yield chunk

    def _is_there(self, epoch: int, start: int, what: str) -> bool:
        try:
            _read(self._existing(epoch, start, what))
        except TeacherCacheError:
            path = self._path(epoch, start, what)
            if path.exists():
                warnings.warn(f"{path}: expected the chunk that was written, got another; recorded again", stacklevel=2)
            return False
        return True

    def require(self, epoch: int, taps: Sequence[str] = (), *, gammas: Collection[float] = ()) -> None:
        """Refuse an epoch, from 0, that lacks chunks of logits or taps, or is too inaccurate at these exponents.

        Raises:
            TeacherCacheError: if so; it names what is missing, or the error.
        """
        for what in (LOGITS, *taps):
            for chunk in self.ranges():
                path = self._existing(epoch, chunk.start, what)
                if what == LOGITS and self.form is not None:
                    self.form.check(_error_of(path), gammas)

    def write(
        self,
        epoch: int,
        chunk: range,
        logits: Tensor,
        taps: Mapping[str, Tensor],
        *,
        gammas: Collection[float] = (),
        counts: Tensor | None = None,
    ) -> None:
        """Write one chunk, and ``outputs.json`` before the first.

        Args:
            epoch: epoch of the views, from 0.
            chunk: samples of the chunk.
            logits: logits, ``(samples, classes)``, or of each counted position in turn, ``(rows, classes)``.
            taps: features by tap, ``(samples, ...)``; none of samples with positions.
            gammas: exponents at which the logits will be read.
            counts: number of each sample's counted positions, ``(samples,)`` int64, where it has positions.

        Raises:
            TeacherCacheError: if a value is too large for float16, or the top-k form is too inaccurate; NaN is kept:
                it marks a sample that was not read.
        """
        logits = logits.float()
        absent = logits == -torch.inf  # of probability 0, which takes no part in the mean
        present, values = logits.shape[-1] - absent.sum(-1, keepdim=True), logits.masked_fill(absent, 0.0)
        mean = values.mean(-1, keepdim=True) * (logits.shape[-1] / present.clamp(min=1))
        # In either form, values beyond float16's range are refused.
        centred = _half(LOGITS, (values - mean).masked_fill(absent, 0.0)).masked_fill(absent.cpu(), -torch.inf)
        if self.form is None:
            packed = {"values": centred, "mean": mean.cpu()}
        else:
            if isinstance(self.form, SampledForm):
                packed = self.form.pack(logits, self.form.bits(epoch if self.varies else 0, chunk, counts))
            else:
                packed = self.form.pack(logits)
            self.form.check(packed["error"], gammas)
        if counts is not None:
            packed["offsets"] = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).cpu()
        if not self.begun:
            self.begin()
        features = ((name, {"values": _half(f"tap {name}", value.float())}) for name, value in taps.items())
        for what, tensors in chain([(LOGITS, packed)], features):
            place = self._place(epoch, chunk.start, what)
            content = safetensors.torch.save(tensors, {**place, DIGEST: _digest(tensors, place)})
            records.write_bytes(self._path(epoch, chunk.start, what), _with_sorted_metadata(content))

    def read(self, epoch: int, what: str) -> list[dict[str, Tensor]]:
        """Map and check the teacher's outputs of an epoch, in chunks of ``rows`` samples.

        Args:
            epoch: epoch of the views, from 0.
            what: name of the outputs: ``logits``, or a tap.

        Returns:
            Tensors that lie in the files: ``values``, and for logits ``mean``, or the result of the form's ``pack``.

        Raises:
            TeacherCacheError: if any of it is missing or damaged.
        """
        chunks = []
        for samples in self.ranges():
            chunks.append(_read(self._existing(epoch, samples.start, what)))
        return chunks

    def _place(self, epoch: int, start: int, what: str) -> dict[str, str]:
        """Return what a file's metadata says of its place."""
        epoch = epoch if self.varies else 0
        return dict(zip(PLACE, (what, str(epoch), str(start), self._of), strict=True))

    def _existing(self, epoch: int, start: int, what: str) -> Path:
        """Return the path of a file that is there and whole, by its length, and says that it belongs there."""
        path = self._path(epoch, start, what)
        if not path.exists():
            expected = f"the {what} of epoch {epoch + 1}, samples from {start}, in {self.folder.name}"
            instead = "record them with `tutelage record` and the run's recipe"
            raise TeacherCacheError("outputs", expected, f"no {path}", instead)
        with _opened(path) as file:
            written = file.metadata() or {}
        place = self._place(epoch, start, what)
        if self.schema == 1 and "of" not in written:
            place = {"what": what}
        if differs := [name for name, value in place.items() if written.get(name) != value]:
            got = f"{path}, {_PLACES[differs[0]]} {written.get(differs[0], 'unknown')}"
            instead = "move that file to its place or remove it, and record again with `tutelage record`"
            raise TeacherCacheError("outputs", f"{_PLACES[differs[0]]} {place[differs[0]]}", got, instead)
        return path

    def _path(self, epoch: int, start: int, what: str) -> Path:
        name, epoch = LOGITS, epoch if self.varies else 0
        if what != LOGITS:
            # Readable, and unique to the tap.
            digest = hashlib.blake2b(what.encode(), digest_size=4).hexdigest()
            name = f"tap.{re.sub(r'[^A-Za-z0-9.-]+', '-', what)}-{digest}"
        return self.folder / f"epoch-{epoch:04d}" / f"{start:09d}.{name}.safetensors"


class CachedTeacher:
    """A teacher whose outputs are read from a cache by the view of a batch: a `types.Teacher`.

    One epoch is open at a time. On the CPU, a batch's rows are read from its mapped files; elsewhere the whole epoch is
    moved to the device, always into the same memory, so that a step that reads it can be captured.

    Args:
        cache: cache of its outputs.
        taps: features to return.
        gamma: exponent at which logits in top-k form are read; at 1 the left-over mass is exact.
        device: device of the returned tensors.
        sparse: whether logits in top-k form are returned as they are stored, as ``sparse`` of `types.Outputs`. A bucket
            and sampled classes are in any case.

    Raises:
        TeacherCacheError: if the tail was not summed at the exponent.
    """

    def __init__(
        self,
        cache: TeacherCache,
        taps: tuple[str, ...] = (),
        *,
        gamma: float = 1.0,
        device: torch.device | str = "cpu",
        sparse: bool = False,
    ) -> None:
        self._sparse = sparse or isinstance(cache.form, BucketForm | SampledForm)
        self._cache, self._taps, self._gamma, self._device = cache, taps, gamma, torch.device(device)
        self._chunks: dict[str, list[dict[str, Tensor]]] = {}
        self._on_device: dict[str, dict[str, Tensor]] = {}
        self._view: View | None = None
        if cache.form is not None:
            cache.form.at(gamma)

    def open(self, view: View | None) -> None:
        """Read the outputs for an epoch's views, unless they are open.

        Raises:
            TeacherCacheError: as when called.
        """
        if view is not None and not self._cache.varies:
            view = view._replace(epoch=0)
        if view is not None and view == self._view:
            return
        seed = self._cache.key.get("data_seed")
        if view is None or seed not in (None, view.seed):
            raise TeacherCacheError(
                "outputs",
                f"a batch of the views of data seed {seed}, which were recorded",
                "one that does not say its view" if view is None else f"data seed {view.seed}",
                "take the batches of a training loader with that seed, or type outputs=null",
            )
        self._view, self._chunks = None, {}  # so that no two epochs are in memory together
        outputs = {what: self._cache.read(view.epoch, what) for what in (LOGITS, *self._taps)}
        for chunk in outputs[LOGITS]:
            chunk.pop("error", None)
        if self._device.type != "cpu":
            for what, chunks in outputs.items():
                self._move(chunks, self._on_device.setdefault(what, {}))
            outputs = {what: [tensors] for what, tensors in self._on_device.items()}
        self._view, self._chunks = view, outputs

    def _move(self, chunks: Sequence[Mapping[str, Tensor]], joined: dict[str, Tensor]) -> None:
        """Copy an epoch's chunks into one tensor per name on the device."""
        for name, first in chunks[0].items():
            if name == "offsets":
                joined[name] = _joined([chunk[name] for chunk in chunks]).to(self._device)
                continue
            if name not in joined:
                rows = sum(len(chunk[name]) for chunk in chunks)
                joined[name] = first.new_empty((rows, *first.shape[1:]), device=self._device)
            start = 0
            for chunk in chunks:
                joined[name][start : start + len(chunk[name])] = chunk[name]
                start += len(chunk[name])

    def __call__(self, batch: Batch) -> Outputs:
        """Return the recorded outputs of the batch's views.

        Logits are ``(batch, classes)``, of labels ``(batch, labels, 2)``, or ``(batch, *positions, classes)``: those of
        a position that is not counted are some other's.

        Raises:
            TeacherCacheError: if the batch does not say which view it is, or has another data seed, or that epoch's
                outputs are missing or damaged.
        """
        self.open(batch.view)
        index = batch.index.to(self._device)
        order, parts = None, [(0, index)]
        if len(self._chunks[LOGITS]) > 1:
            order, parts = _parts(index, self._cache.rows)
        if self._cache.ragged:
            parts = self._of_positions(batch, order, parts)
        outputs = {what: _rows(tensors, order, parts) for what, tensors in self._chunks.items()}
        logits = outputs.pop(LOGITS)
        taps = {name: tensors["values"].float() for name, tensors in outputs.items()}
        if self._cache.form is not None:
            if self._sparse:
                kept = self._cache.form.as_sparse(logits, self._gamma)
                return Outputs(kept.values[..., :0], taps, sparse=kept)
            return Outputs(self._cache.form.unpack(logits, self._gamma), taps)
        values = logits["values"].float() + logits["mean"]
        return Outputs(torch.stack((torch.zeros_like(values), values), -1) if self._cache.of_labels else values, taps)

    def _of_positions(
        self, batch: Batch, order: Tensor | None, parts: Sequence[tuple[int, Tensor]]
    ) -> list[tuple[int, Tensor]]:
        """Return the rows of a batch's positions, ``(samples, *positions)`` of each chunk.

        Raises:
            TeacherCacheError: on the CPU, if a sample has another number of counted positions than were recorded.
        """
        counted = batch.counted if batch.counted is not None else torch.ones_like(batch.labels, dtype=torch.bool)
        counted = counted.to(self._device)
        ranks = counted.flatten(1).cumsum(1)  # as no host waits for a device, positions are not picked out
        if order is not None:
            ranks = ranks[order.argsort()]
        rows = []
        for (k, samples), rank in zip(parts, ranks.split([len(each) for _, each in parts]), strict=True):
            chunk = self._chunks[LOGITS][k]
            row = rows_of_positions(chunk["offsets"], samples, rank, last=_height(chunk) - 1)
            rows.append((k, row.unflatten(1, counted.shape[1:])))
        return rows


def _height(chunk: Mapping[str, Tensor]) -> int:
    """Return the number of a chunk's rows."""
    return next(len(tensor) for name, tensor in chunk.items() if name != "offsets")


def rows_of_positions(offsets: Tensor, samples: Tensor, rank: Tensor, *, last: int) -> Tensor:
    """Return the row of each position among those that hold the counted positions of one sample after another.

    Args:
        offsets: first row of each sample, and the number of rows, ``(all samples + 1,)``.
        samples: samples to read, ``(samples,)``.
        rank: number of counted positions up to each, ``(samples, positions)``.
        last: number of the last row.

    Returns:
        ``(samples, positions)``; for a position that is not counted the row of another.

    Raises:
        TeacherCacheError: on the CPU, if a sample has another number of counted positions than it has rows.
    """
    starts, ends = offsets[samples], offsets[samples + 1]
    if rank.device.type == "cpu" and not torch.equal(ends - starts, rank[:, -1]):
        expected = f"samples of {(ends - starts).tolist()} counted positions, as the teacher answered"
        instead = "record them again with `tutelage record`, in another folder"
        raise TeacherCacheError("outputs", expected, rank[:, -1].tolist(), instead)
    return (starts[:, None] + (rank - 1).clamp(min=0)).clamp(max=last)


def _parts(index: Tensor, rows: int) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """Return each sample's rank in the order of chunks, and the rows to read from each chunk."""
    chunk = index.div(rows, rounding_mode="floor")
    by_chunk = chunk.argsort()
    touched, counts = chunk[by_chunk].unique_consecutive(return_counts=True)
    within = (index % rows)[by_chunk].split(counts.tolist())
    order = torch.empty_like(by_chunk)
    order[by_chunk] = torch.arange(len(index))
    return order, list(zip(touched.tolist(), within, strict=True))


def _joined(offsets: Sequence[Tensor]) -> Tensor:
    """Return the offsets of chunks as one."""
    ends = torch.stack([each[-1] for each in offsets]).cumsum(0)
    starts = [0, *ends[:-1].tolist()]
    return torch.cat([*(each[:-1] + start for each, start in zip(offsets, starts, strict=True)), ends[-1:]])


def _rows(
    chunks: Sequence[Mapping[str, Tensor]], order: Tensor | None, parts: Sequence[tuple[int, Tensor]]
) -> dict[str, Tensor]:
    """Copy a batch's rows out of the chunks."""
    if order is None:
        return {name: tensor[parts[0][1]] for name, tensor in chunks[0].items() if name != "offsets"}
    names = [name for name in chunks[0] if name != "offsets"]
    with torch.autocast(order.device.type, enabled=False):  # a CPU's in bfloat16 refuses to join what is in float16
        return {name: torch.cat([chunks[k][name][rows] for k, rows in parts])[order] for name in names}


_PLACES = {"what": "those of", "epoch": "those of epoch", "start": "those from sample", "of": "those of the key"}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of tensors; a damaged one is refused."""
    if not path.is_file():  # A pipe would be waited for.
        raise _torn(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise _torn(path) from error


def _error_of(path: Path) -> Tensor:
    """Return the errors of a chunk's form."""
    with _opened(path) as file:
        error: Tensor = file.get_tensor("error")
    return error


def _read(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a file whose digest holds."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = file.metadata() or {}
    if written.get(DIGEST) != _digest(tensors, {name: written[name] for name in PLACE if name in written}):
        raise _torn(path)
    return tensors


def _with_sorted_metadata(content: bytes) -> bytes:
    """Return a file of tensors with its metadata in order: the library writes it in another with every call."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that tensors are aligned
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[8 + size :]])


def _torn(path: Path) -> TeacherCacheError:
    expected = "the chunk that was written"
    instead = "remove that file and record it again with `tutelage record`"
    return TeacherCacheError("outputs", expected, f"another content in {path}", instead)


def _half(what: str, values: Tensor) -> Tensor:
    half = values.half().cpu().contiguous()
    if bool(half.isinf().any()):
        expected = f"{what} below 65504 in size, as float16 holds"
        instead = "distil from the live teacher: type outputs=null"
        raise TeacherCacheError("outputs", expected, f"{float(values.abs().max()):.3g}", instead)
    return half


def _digest(tensors: Mapping[str, Tensor], place: Mapping[str, str]) -> str:
    """Return the digest of a file's tensors and place; without an epoch, that of the first version: tensors alone."""
    digest = hashlib.blake2b(digest_size=16)
    if "epoch" in place:
        digest.update(json.dumps(place, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
