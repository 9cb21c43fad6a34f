"""Recorded outputs: for every sample of every epoch the teacher's logits, and features where asked for.

A cache is a folder: ``outputs.json`` says whose outputs they are and of what views. The outputs in epoch 3
of samples 16384 and up to ``rows`` more lies in ``epoch-0003/000016384.logits.safetensors``, epochs and samples counted
from 0, and each feature in a file of its own beside it. Logits are float16 less their row's mean, which stands with
them in float32: probabilities would lose their tails (6e-8 is 0 in float16, yet counts at a small gamma). Where all of
them are too many, the file holds the largest of each sample and the others' power sums (`top_k.TopK`), and
``outputs.json`` says so. A file carries a digest of its tensors, is written whole or not at all, and is checked once
when it is opened; what is read of it then is mapped from the file, not copied.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tutelage import records
from tutelage.teacher_cache.top_k import MEASURES, TeacherCacheError, TopK
from tutelage.types import Batch, Outputs

ROWS = 16384
"""Samples per chunk: interrupted recording resumes at the chunk that it was at."""
SCHEMA = 1
DIGEST = "blake2b"
LOGITS = "logits"


def size_of(
    *, samples: int, classes: int, shapes: Mapping[str, tuple[int, ...]], epochs: int, form: TopK | None = None
) -> int:
    """Return how many bytes the outputs take: 2 per logit and entry of a feature, and 4 per sample; or `TopK.bytes`."""
    features = sum(torch.Size(shape).numel() for shape in shapes.values())
    return epochs * samples * ((2 * classes + 4 if form is None else form.bytes) + 2 * features)


class TeacherCache:
    """Recorded outputs in a folder.

    Args:
        folder: of the cache.
        key: what the outputs depend on: teacher, data, views, precision, taps; as JSON holds it.
        samples: training samples.
        rows: samples per chunk; of a cache that is there already, its own.
        form: of the logits: none for all of them; of a cache that is there already, its own.

    Attributes:
        begun: it is there already.
        speed: how the teacher is computed that is recorded, as JSON holds it; none until it is chosen.

    Raises:
        TeacherCacheError: the folder holds outputs of another key; every difference is named.
    """

    def __init__(
        self, folder: Path, key: Mapping[str, Any], *, samples: int, rows: int = ROWS, form: TopK | None = None
    ) -> None:
        self.folder, self.key, self.samples, self.rows, self.form = folder, dict(key), samples, rows, form
        path = folder / records.OUTPUTS
        self.speed: Mapping[str, Any] | None = None
        self.begun = path.exists()
        if self.begun:
            stored = records.read_json(path)
            self._check_same(stored)
            self.speed = stored.get("speed")
            self.rows = stored["rows"]
            self.form = TopK.from_json(stored["form"]) if stored.get("form") else None

    def _check_same(self, stored: Mapping[str, Any]) -> None:
        then, now = _flat(stored["key"]), _flat(self.key)
        differs = [
            f"{name} (expected {now.get(name, 'none')}, got {then.get(name, 'none')})"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]
        if stored.get("schema") != SCHEMA:
            differs.append(f"schema (expected {SCHEMA}, got {stored.get('schema')})")
        if stored.get("samples") != self.samples:
            differs.append(f"samples (expected {self.samples}, got {stored.get('samples')})")
        if differs:
            raise TeacherCacheError(
                f"outputs: expected those of this run in {self.folder.name}, got others that differ in "
                f"{'; '.join(differs)}; type outputs=... for another folder and record them with `tutelage record`"
            )

    def begin(self) -> None:
        """Write down whose outputs these are to be, and in which form."""
        self._describe()
        self.begun = True

    def _describe(self, **more: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        value = {"schema": SCHEMA, "samples": self.samples, "rows": self.rows, "digest": DIGEST, "key": self.key}
        value["form"], value["speed"] = self.form.to_json() if self.form else None, self.speed
        records.write_json(self.folder / records.OUTPUTS, value | more)

    def conclude(self, epochs: int) -> dict[float, dict[str, float]]:
        """Write down what the top-k form cost over all chunks of so many epochs; nothing where there is none.

        Returns:
            By exponent: mean and maximum of the total variation of p_gamma and of U_gamma's relative error.
        """
        if self.form is None:
            return {}
        starts = [(epoch, start) for epoch in range(epochs) for start in range(0, self.samples, self.rows)]
        each = torch.stack([self._error(epoch, start) for epoch, start in starts]).double()
        share = torch.tensor([min(self.rows, self.samples - start) for _, start in starts], dtype=torch.float64)
        mean, largest = (each * (share / share.sum())[:, None, None]).sum(0), each.amax(0)
        errors = {
            gamma: {
                name: float(f"{(mean if name.startswith('mean') else largest)[row, column].item():.3g}")
                for column, name in enumerate(MEASURES)
            }
            for row, gamma in enumerate(self.form.gammas)
        }
        self._describe(errors=[{"gamma": gamma, **measured} for gamma, measured in errors.items()])
        return errors

    def missing(self, epoch: int, taps: Sequence[str] = ()) -> Iterator[range]:
        """Yield the chunks of an epoch of which the logits or a feature are not there."""
        for start in range(0, self.samples, self.rows):
            if not all(self._path(epoch, start, what).exists() for what in (LOGITS, *taps)):
                yield range(start, min(start + self.rows, self.samples))

    def require(self, epoch: int, taps: Sequence[str] = (), *, gammas: Collection[float] = ()) -> None:
        """Refuse an epoch that is not there as a whole, or is too far off in its top-k form.

        Args:
            epoch: whose views, from 0.
            taps: features that will be read.
            gammas: exponents that the logits will be read at.

        Raises:
            TeacherCacheError: naming what is missing, or how far off it is.
        """
        for what in (LOGITS, *taps):
            for start in range(0, self.samples, self.rows):
                if not self._path(epoch, start, what).exists():
                    raise self._missing(epoch, start, what)
                if what == LOGITS and self.form is not None:
                    self.form.check(self._error(epoch, start), gammas)

    def _error(self, epoch: int, start: int) -> Tensor:
        path = self._path(epoch, start, LOGITS)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return file.get_tensor("error")
        except safetensors.SafetensorError as error:
            raise self._torn(path) from error

    def write(
        self, epoch: int, chunk: range, logits: Tensor, taps: Mapping[str, Tensor], *, gammas: Collection[float] = ()
    ) -> None:
        """Write one chunk; before the first, whose outputs these are.

        Args:
            epoch: whose views they are of, from 0.
            chunk: the samples.
            logits: ``(samples, classes)``.
            taps: features by tap, ``(samples, ...)``.
            gammas: exponents that the logits will be read at.

        Raises:
            TeacherCacheError: a value is too large for float16, or the top-k form is too far off; NaN is kept: it
                marks a sample that was not read.
        """
        packed = self._packed(logits.float(), gammas)
        if not self.begun:
            self.begin()
        self._write(epoch, chunk.start, LOGITS, packed)
        for name, value in taps.items():
            self._write(epoch, chunk.start, name, {"values": _half(f"tap {name}", value.float())})

    def _packed(self, logits: Tensor, gammas: Collection[float]) -> dict[str, Tensor]:
        mean = logits.mean(-1, keepdim=True)
        centred = _half(LOGITS, logits - mean)
        if self.form is None:
            return {"values": centred, "mean": mean.cpu()}
        packed = self.form.pack(logits)
        self.form.check(packed["error"], gammas)
        return packed

    def _write(self, epoch: int, start: int, what: str, tensors: dict[str, Tensor]) -> None:
        path = self._path(epoch, start, what)
        path.parent.mkdir(exist_ok=True)
        records.write_bytes(path, safetensors.torch.save(tensors, {"what": what, DIGEST: _digest(tensors)}))

    def read(self, epoch: int, what: str) -> list[dict[str, Tensor]]:
        """Map the teacher's outputs of an epoch, chunk by chunk of ``rows`` samples, and check it.

        Args:
            epoch: whose views, from 0.
            what: ``logits``, or a tap.

        Returns:
            Tensors that lie in the files: ``values``, and of logits ``mean``, or what `TopK.pack` returns.

        Raises:
            TeacherCacheError: some of it is not there, or is not what was written.
        """
        return [self._read(epoch, start, what) for start in range(0, self.samples, self.rows)]

    def _read(self, epoch: int, start: int, what: str) -> dict[str, Tensor]:
        path = self._path(epoch, start, what)
        if not path.exists():
            raise self._missing(epoch, start, what)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
                written = file.metadata() or {}
        except safetensors.SafetensorError as error:
            raise self._torn(path) from error
        if written.get("what") != what or written.get(DIGEST) != _digest(tensors):
            raise self._torn(path)
        return tensors

    def _missing(self, epoch: int, start: int, what: str) -> TeacherCacheError:
        return TeacherCacheError(
            f"outputs: expected the {what} of epoch {epoch + 1}, samples from {start}, in {self.folder.name}, got "
            "none; record them with `tutelage record` and the run's recipe"
        )

    def _torn(self, path: Path) -> TeacherCacheError:
        return TeacherCacheError(
            f"outputs: expected the chunk that was written, got another content in {path.parent.name}/{path.name}; "
            "remove that file and record it again with `tutelage record`"
        )

    def _path(self, epoch: int, start: int, what: str) -> Path:
        name = LOGITS
        if what != LOGITS:
            # Readable, and different for every tap.
            digest = hashlib.blake2b(what.encode(), digest_size=4).hexdigest()
            name = f"tap.{re.sub(r'[^A-Za-z0-9.-]+', '-', what)}-{digest}"
        return self.folder / f"epoch-{epoch:04d}" / f"{start:09d}.{name}.safetensors"


class CachedTeacher:
    """A teacher whose outputs are read from a cache: `types.Teacher`. `open` says of which epoch's views.

    On the CPU a batch's rows are read from the mapped files. Elsewhere an epoch's outputs are moved to the device as a
    whole, so that a step waits for nothing.

    Args:
        cache: of its outputs.
        taps: features that its answers carry.
        gamma: the exponent that its logits are read at; of a top-k form alone. Where no term reads the logits it is 1,
            at which the left-over mass is exact.
        device: where its answers go.

    Raises:
        TeacherCacheError: the tail was not summed at the exponent.
    """

    def __init__(
        self,
        cache: TeacherCache,
        taps: tuple[str, ...] = (),
        *,
        gamma: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._cache, self._taps, self._gamma, self._device = cache, taps, gamma, torch.device(device)
        self._chunks: dict[str, list[dict[str, Tensor]]] = {}
        if cache.form is not None:
            cache.form.at(gamma)

    def open(self, epoch: int) -> None:
        """Answer for the views of this epoch, from 0, from now on.

        Raises:
            TeacherCacheError: they were not recorded, or what lies there is damaged.
        """
        self._chunks = {}  # before the next epoch's is there, so that the two never lie in memory together
        outputs = {what: self._cache.read(epoch, what) for what in (LOGITS, *self._taps)}
        for chunks in outputs.values():
            for chunk in chunks:
                chunk.pop("error", None)
        if self._device.type != "cpu":
            outputs = {
                what: [{n: torch.cat([c[n].to(self._device) for c in chunks]) for n in chunks[0]}]
                for what, chunks in outputs.items()
            }
        self._chunks = outputs

    def __call__(self, batch: Batch) -> Outputs:
        """Return what was recorded of the batch's views.

        Raises:
            TeacherCacheError: no epoch was opened.
        """
        if not self._chunks:
            raise TeacherCacheError(
                "outputs: expected an epoch whose views are answered for, got none; call open(epoch) first"
            )
        index = batch.index.to(self._device)
        chunks = len(self._chunks[LOGITS])
        order, parts = (None, [(0, index)]) if chunks == 1 else _parts(index, self._cache.rows)
        outputs = {what: _rows(tensors, order, parts) for what, tensors in self._chunks.items()}
        logits = outputs.pop(LOGITS)
        taps = {name: tensors["values"].float() for name, tensors in outputs.items()}
        if self._cache.form is not None:
            return Outputs(self._cache.form.unpack(logits, self._gamma), taps)
        return Outputs(logits["values"].float() + logits["mean"], taps)


def _parts(index: Tensor, rows: int) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """Return each sample's position among the samples in the order of their chunks, and of each chunk its rows."""
    chunk = index.div(rows, rounding_mode="floor")
    by_chunk = chunk.argsort()
    touched, counts = chunk[by_chunk].unique_consecutive(return_counts=True)
    within = (index % rows)[by_chunk].split(counts.tolist())
    order = torch.empty_like(by_chunk)
    order[by_chunk] = torch.arange(len(index))
    return order, list(zip(touched.tolist(), within, strict=True))


def _rows(
    chunks: Sequence[Mapping[str, Tensor]], order: Tensor | None, parts: Sequence[tuple[int, Tensor]]
) -> dict[str, Tensor]:
    """Copy a batch's rows out of the chunks."""
    if order is None:
        return {name: tensor[parts[0][1]] for name, tensor in chunks[0].items()}
    return {name: torch.cat([chunks[k][name][rows] for k, rows in parts])[order] for name in chunks[0]}


def _half(what: str, values: Tensor) -> Tensor:
    half = values.half().cpu().contiguous()
    if bool((torch.isinf(half) & torch.isfinite(values.cpu())).any()) or bool(torch.isinf(values).any()):
        raise TeacherCacheError(
            f"outputs: expected {what} below 65504 in size, as float16 holds, got {float(values.abs().max()):.3g}; "
            "distil from the live teacher: type outputs=null"
        )
    return half


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else str(key)).items()
    }
