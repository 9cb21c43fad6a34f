"""Recorded outputs: for every sample of every epoch the teacher's logits, and features where asked for.

A store is a folder: ``outputs.json`` says whose outputs they are and of what views. What the teacher said in epoch 3
of samples 16384 and up to ``rows`` more lies in ``epoch-0003/000016384.logits.safetensors``, epochs and samples counted
from 0, and each feature in a file of its own beside it. Logits are float16 less their row's mean, which stands with
them in float32: probabilities would lose their tails (6e-8 is 0 in float16, yet counts at a small gamma). A file
carries a digest of its tensors, is written whole or not at all, and is checked when it is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tutelage import records
from tutelage.contracts import Batch, Outputs

ROWS = 16384
"""Samples a chunk: interrupted recording goes on at the chunk that it was at."""
SCHEMA = 1
DIGEST = "blake2b"
LOGITS = "logits"


class StoreError(ValueError):
    """Recorded outputs are not those of this teacher, these data or these views; or they are not there, or torn."""


def size_of(*, samples: int, classes: int, shapes: Mapping[str, tuple[int, ...]], epochs: int) -> int:
    """Return how many bytes the outputs take: 2 a logit and a feature's entry, and 4 a sample."""
    features = sum(torch.Size(shape).numel() for shape in shapes.values())
    return epochs * samples * (2 * classes + 2 * features + 4)


class Store:
    """Recorded outputs in a folder.

    Args:
        folder: of the store.
        key: what the outputs depend on: teacher, data, views, precision, taps; as JSON holds it.
        samples: training samples.
        rows: samples a chunk; of a store that is there already, its own.

    Raises:
        StoreError: the folder holds outputs of another key; every difference is named.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, samples: int, rows: int = ROWS) -> None:
        self.folder, self.key, self.samples, self.rows = folder, dict(key), samples, rows
        path = folder / records.OUTPUTS
        if path.exists():
            found = records.read_json(path)
            self._same(found)
            self.rows = found["rows"]

    def _same(self, found: Mapping[str, Any]) -> None:
        then, now = _flat(found["key"]), _flat(self.key)
        differs = [
            f"{name} (expected {now.get(name, 'none')}, got {then.get(name, 'none')})"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]
        if found.get("schema") != SCHEMA:
            differs.append(f"schema (expected {SCHEMA}, got {found.get('schema')})")
        if found.get("samples") != self.samples:
            differs.append(f"samples (expected {self.samples}, got {found.get('samples')})")
        if differs:
            raise StoreError(
                f"outputs: expected those of this run in {self.folder.name}, got others that differ in "
                f"{'; '.join(differs)}; type outputs=... for another folder and record them with `tutelage record`"
            )

    def begin(self) -> None:
        """Write down whose outputs these are to be."""
        self.folder.mkdir(parents=True, exist_ok=True)
        value = {"schema": SCHEMA, "samples": self.samples, "rows": self.rows, "digest": DIGEST, "key": self.key}
        records.write_json(self.folder / records.OUTPUTS, value)

    def missing(self, epoch: int, taps: Sequence[str] = ()) -> Iterator[range]:
        """Yield the chunks of an epoch of which the logits or a feature are not there."""
        for start in range(0, self.samples, self.rows):
            if not all(self._path(epoch, start, what).exists() for what in (LOGITS, *taps)):
                yield range(start, min(start + self.rows, self.samples))

    def require(self, epoch: int, taps: Sequence[str] = ()) -> None:
        """Refuse an epoch that is not there as a whole.

        Raises:
            StoreError: naming what is missing.
        """
        for what in (LOGITS, *taps):
            for start in range(0, self.samples, self.rows):
                if not self._path(epoch, start, what).exists():
                    raise self._missing(epoch, start, what)

    def write(self, epoch: int, chunk: range, logits: Tensor, taps: Mapping[str, Tensor]) -> None:
        """Write one chunk.

        Args:
            epoch: whose views they are of, from 0.
            chunk: the samples.
            logits: ``(samples, classes)``.
            taps: features by tap, ``(samples, ...)``.

        Raises:
            StoreError: a value is too large for float16; NaN is kept, as it is the mark of a sample that was not read.
        """
        values = logits.float()
        mean = values.mean(-1, keepdim=True)
        self._write(epoch, chunk.start, LOGITS, {"values": _half(LOGITS, values - mean), "mean": mean.cpu()})
        for name, value in taps.items():
            self._write(epoch, chunk.start, name, {"values": _half(f"tap {name}", value.float())})

    def _write(self, epoch: int, start: int, what: str, tensors: dict[str, Tensor]) -> None:
        path = self._path(epoch, start, what)
        path.parent.mkdir(exist_ok=True)
        records.write_bytes(path, safetensors.torch.save(tensors, {"what": what, DIGEST: _digest(tensors)}))

    def read(self, epoch: int, what: str) -> dict[str, Tensor]:
        """Read what the teacher said in an epoch: ``values`` of all samples, and of logits ``mean``.

        Args:
            epoch: whose views, from 0.
            what: ``logits``, or a tap.

        Raises:
            StoreError: some of it is not there, or is not what was written.
        """
        chunks = [self._read(epoch, start, what) for start in range(0, self.samples, self.rows)]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

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

    def _missing(self, epoch: int, start: int, what: str) -> StoreError:
        return StoreError(
            f"outputs: expected the {what} of epoch {epoch + 1}, samples from {start}, in {self.folder.name}, got "
            "none; record them with `tutelage record` and the run's recipe"
        )

    def _torn(self, path: Path) -> StoreError:
        return StoreError(
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


class Recorded:
    """A teacher that answers from a store: `contracts.Teacher`. It must be told which epoch's views it is asked about.

    Args:
        store: of its outputs.
        taps: features that its answers carry.
        device: where its answers go; an epoch's outputs are moved there as a whole, so that a step waits for nothing.
    """

    def __init__(self, store: Store, taps: tuple[str, ...] = (), *, device: torch.device | str = "cpu") -> None:
        self._store, self._taps, self._device = store, taps, torch.device(device)
        self._said: dict[str, dict[str, Tensor]] = {}

    def open(self, epoch: int) -> None:
        """Answer for the views of this epoch, from 0, from now on.

        Raises:
            StoreError: they were not recorded, or what lies there is damaged.
        """
        self._said = {
            what: {name: tensor.to(self._device) for name, tensor in self._store.read(epoch, what).items()}
            for what in (LOGITS, *self._taps)
        }

    def __call__(self, batch: Batch) -> Outputs:
        """Return what was recorded of the batch's views.

        Raises:
            StoreError: no epoch was opened.
        """
        if not self._said:
            raise StoreError(
                "outputs: expected an epoch whose views are answered for, got none; call open(epoch) first"
            )
        index = batch.index.to(self._device)
        said = {what: tensors["values"][index].float() for what, tensors in self._said.items()}
        return Outputs(said.pop(LOGITS) + self._said[LOGITS]["mean"][index], said)


def _half(what: str, values: Tensor) -> Tensor:
    half = values.half().cpu().contiguous()
    if bool((torch.isinf(half) & torch.isfinite(values.cpu())).any()) or bool(torch.isinf(values).any()):
        raise StoreError(
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
