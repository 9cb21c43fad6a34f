"""Formats by name, and what is wrong with an export before anything is loaded. No torch."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from tutelage import launcher, records
from tutelage.errors import InvalidValueError, StorageError, nearest, require_extra
from tutelage.models import names as model_names

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.exports.source import Source


class Writer(Protocol):
    """What each module in ``formats/`` has.

    ``write(source, to)`` writes a file or a folder at a path that is not there, and raises a `TutelageError` where the
    format cannot hold the student. ``reopen(to)`` returns what runs the file as its users do, on the CPU: from
    `Source.inputs` to `Source.logits`; gradients are off when it is called. Where a format `is_weights`, it has a
    second argument: the network to load them into, or ``None``.
    """

    write: Callable[[Source, Path], None]
    reopen: Callable[..., Callable[[Tensor], Tensor]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format.

    Attributes:
        summary: what it is for.
        suffix: how its files' names end; empty for a folder.
        libraries: libraries that write it and run it.
        extra: extra of this package that installs them.
        int8: whether it can compute in 8-bit integers.
        is_weights: whether it has weights and no graph, so that a module of the user's own is handed in to load them.
    """

    summary: str
    suffix: str
    libraries: tuple[str, ...] = ()
    extra: str = ""
    int8: bool = False
    is_weights: bool = False


FORMATS = {
    "onnx": Format(
        summary="ONNX, for onnxruntime and others",
        suffix=".onnx",
        libraries=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        int8=True,
    ),
    "torch-export": Format(summary="a graph of torch.export, without this package", suffix=".pt2", int8=True),
    "safetensors": Format(
        summary="the weights with all that rebuilds the network", suffix=".safetensors", is_weights=True
    ),
    "timm": Format(summary="a folder that timm, and the Hub, read", suffix="", libraries=("timm",), extra="timm"),
    "transformers": Format(
        summary="a folder that transformers, and the Hub, read", suffix="", libraries=("transformers",), extra="text"
    ),
    "executorch": Format(
        summary="a program of ExecuTorch, for phones and small devices",
        suffix=".pte",
        libraries=("executorch",),
        extra="executorch",
        int8=True,
    ),
}
"""Formats by name; each one's module in ``formats/`` has its name, with underscores."""


def writer_of(name: str) -> Writer:
    """Return the module of a format."""
    return cast(Writer, importlib.import_module(f"{__package__}.formats.{name.replace('-', '_')}"))


def format_of(name: str, *, int8: bool = False) -> Format:
    """Return a known format whose libraries are installed.

    Raises:
        ValueError: it is none, or has no 8-bit integers.
        ImportError: a library is missing.
    """
    if name not in FORMATS:
        raise InvalidValueError("to", f"one of {', '.join(FORMATS)}", repr(name), nearest(name, FORMATS))
    known = FORMATS[name]
    if int8 and not known.int8:
        able = [other for other, each in FORMATS.items() if each.int8]
        raise InvalidValueError("int8", f"a format with 8-bit integers: {', '.join(able)}", name, "leave int8 out")
    for library in known.libraries:
        require_extra("to", f"{library} for {name}", known.extra, library)
    return known


def destination(
    model: str, to: str, output: Path | None, *, int8: bool = False, best: bool = False, force: bool = False
) -> Path:
    """Return where an export goes, after `format_of`.

    Without ``output`` that is ``exports/`` in a run's folder, and the working folder for another model; in a folder
    that is there a file gets the run's name.

    Args:
        model: a run's folder, or a model's name.
        to: name of the format.
        output: path that was typed.
        int8: whether it computes in 8-bit integers, which its name then says.
        best: whether it has the run's best weights, which its name then says.
        force: whether what is there may be replaced.

    Raises:
        ValueError: something is there, or the name has another ending.
        OSError: nothing can be written there.
    """
    known = FORMATS[to]
    of_folder = Path(model).is_dir()
    label = Path(model).resolve().name if of_folder else re.sub(r"[^A-Za-z0-9._]+", "-", Path(model).name)
    parts = [label, "best" * best, "int8" * int8, to * (not known.suffix)]
    name = "-".join(filter(None, parts)) + known.suffix
    if output is None:
        path = (Path(model) / "exports" if of_folder else Path()) / name
    else:
        path = output / name if known.suffix and output.is_dir() else output
    if known.suffix and path.suffix != known.suffix:
        instead = f"type --output {path.with_suffix(known.suffix)}"
        raise InvalidValueError("output", f"a name that ends in {known.suffix} for {to}", str(path), instead)
    if path.exists() and not force:
        instead = "type --force (force=True in Python) to replace it, or --output for another name"
        raise InvalidValueError("output", "a path where nothing is", str(path), instead)
    if path.exists() and path.is_dir() == bool(known.suffix):
        kind = "a folder" if path.is_dir() else "a file"
        raise InvalidValueError("output", f"nothing, or an earlier {to} export", f"{kind} at {path}", "move it away")
    there = next(filter(Path.exists, path.absolute().parents))
    if not there.is_dir():
        raise InvalidValueError("output", "a path in a folder", f"{there}, which is a file", "name another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError("output", "a folder that can be written to", there, "type --output for another")
    return path


def check_model(model: str, *, data: bool) -> None:
    """Refuse a model of which there is nothing to export; ``data`` says whether data were named.

    Raises:
        ValueError: it is a graph already, or it is no run's and there are no data to verify the file on.
    """
    if launcher.world_size() > 1:
        got = f"{launcher.world_size()} processes"
        raise InvalidValueError("export", "a single process", got, "type it without the launcher, or unset WORLD_SIZE")
    if model_names.is_exported(model):
        expected, got = "a network of modules", f"{model}, which is a graph in a file"
        raise InvalidValueError("model", expected, got, "name the run, or the network, that the file is of")
    folder = Path(model)
    is_run = (folder / records.MANIFEST).exists() or (folder / records.RECIPE).exists()
    if not is_run and not data:
        model_names.check(model, trust_code=True)  # Nothing is run here.
        expected = f"data whose test set the file of {model} is verified on"
        raise InvalidValueError("data.source", expected, "none", "type data.source=imagefolder:photos, or another")
