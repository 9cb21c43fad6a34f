"""Recorded outputs as Parquet, in the layout in which the Hugging Face Hub finds the splits of a data set."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage import records
from tutelage.errors import InvalidValueError, missing_extra
from tutelage.teacher_cache.cache import LOGITS, TeacherCache


def export(folder: Path, out: Path) -> Iterator[Path]:
    """Write recorded logits as Parquet, one file per chunk, and yield each file's path.

    ``data/train-00000-of-00012.parquet`` has a row per sample, and columns ``sample``, its index, and ``logits``; or in
    the top-k form ``logprobs``, ``classes`` and ``tail``, the logarithms of the other classes' power sums at the
    exponents of ``outputs.json``, which is copied beside. In a bucket ``rest`` is the logarithm of what is left over; of
    draws there are ``classes``, ``log_weights`` unless all are equal, and ``negative_entropy``. Where samples have positions, each of these is a list with an
    entry for every counted position. Several epochs are splits ``epoch0000`` and so on. Features are left out.

    Raises:
        TeacherCacheError: a chunk is missing or damaged.
        InvalidValueError: ``out`` is there and not empty.
        StorageError: the system refuses.
        ImportError: ``pyarrow`` is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra("cache export", "pyarrow", "hf", error) from error
    if out.exists() and any(out.iterdir()):
        raise InvalidValueError("cache export", "a new or an empty folder", out, "type another one")
    stored: dict[str, Any] = records.read_json(folder / records.OUTPUTS, reads=records.OUTPUTS_SCHEMA)
    cache = TeacherCache(folder, stored["key"], samples=stored["samples"])
    epochs = sorted(int(path.name.removeprefix("epoch-")) for path in folder.glob("epoch-????"))
    for epoch in epochs:
        split = "train" if len(epochs) == 1 else f"epoch{epoch:04d}"
        chunks = list(zip(cache.ranges(), cache.read(epoch, LOGITS), strict=True))
        for i, (samples, tensors) in enumerate(chunks):
            columns = {name: _lists(tensor, tensors.get("offsets")) for name, tensor in _columns(tensors).items()}
            table = pa.table({"sample": pa.array(samples), **columns})
            buffer = io.BytesIO()
            parquet.write_table(table, buffer)
            path = out / "data" / f"{split}-{i:05d}-of-{len(chunks):05d}.parquet"
            records.write_bytes(path, buffer.getvalue())
            yield path
    records.write_json(out / records.OUTPUTS, stored)


def _columns(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if "index" not in tensors:
        return {"logits": tensors["values"].float() + tensors["mean"]}
    classes = {"classes": tensors["index"].to(torch.int32)}
    if "entropy" in tensors:
        weights = {"log_weights": tensors["weights"]} if "weights" in tensors else {}
        return {**classes, **weights, "negative_entropy": tensors["entropy"][:, None]}
    logprobs = {"logprobs": tensors["values"].float() + tensors["top"], **classes}
    return {**logprobs, **({"rest": tensors["rest"][:, None]} if "rest" in tensors else {"tail": tensors["tail"]})}


def _lists(rows: Tensor, offsets: Tensor | None) -> Any:
    """Return a list per row, or per sample a list of those of its positions."""
    import pyarrow as pa

    ends = torch.arange(len(rows) + 1, dtype=torch.int32) * rows.shape[1]
    lists = pa.ListArray.from_arrays(ends.numpy(), rows.flatten().numpy())
    return lists if offsets is None else pa.ListArray.from_arrays(offsets.int().numpy(), lists)
