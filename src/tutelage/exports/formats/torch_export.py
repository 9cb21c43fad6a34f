"""A graph of `torch.export`, in one file: it runs without this package, and its metadata are files inside it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tutelage.errors import InvalidValueError, reason_of
from tutelage.exports import int8
from tutelage.exports.source import Source
from tutelage.models.sources.export import METADATA


def write(source: Source, to: Path) -> None:
    """Write a file of `torch.export.save`; its extra files are ``metadata.json`` and the tokenizer's.

    Its one input is that of the network, with any number of samples, and of tokens. With ``source.int8`` the weights of
    linear layers and embeddings are 8-bit integers; see `int8.of_weights`.

    Raises:
        ValueError: `torch.export` cannot trace the network.
    """
    inside = {METADATA: json.dumps(source.metadata, ensure_ascii=False), **source.files}
    if source.int8:
        with quiet():
            source = int8.of_weights(source)
    program = traced(source)
    if source.int8:  # Operations of torchao become PyTorch's own.
        program = _without_paths(program.run_decompositions(torch.export.default_decompositions()))
    torch.export.save(program, to, extra_files=inside)


def reopen(to: Path) -> Callable[[Tensor], Tensor]:
    """Return the module of a file that was just written."""
    return torch.export.load(to).module()


def traced(source: Source, *, samples: int = 2, largest: int | None = None, of: Any = None) -> ExportedProgram:
    """Return what a file computes as a graph of `torch.export`, for any number of samples, and of tokens.

    Args:
        source: what the file is of.
        samples: size of the batch that it is traced with, at least 2: sizes of 1 would be taken for fixed ones.
        largest: samples of the largest batch; ``None`` for any.
        of: module that computes it; ``None`` for the source's own.

    Raises:
        ValueError: `torch.export` cannot trace it.
    """
    example = source.inputs[torch.arange(samples) % len(source.inputs)]
    axes: dict[int, Any] = {0: torch.export.Dim("batch", max=largest)}
    if (tokens := source.classifier.card.max_tokens) is not None and tokens > 1:
        axes[1] = torch.export.Dim("tokens", max=tokens)
        example = example.repeat(1, 2)[:, : max(2, example.shape[1])]
    module = source.graph if of is None else of
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(module, (example.contiguous(),), dynamic_shapes=(axes,))
    except Exception as error:  # of the tracer, of kinds that are its own
        name = source.classifier.card.name
        if "Constraints violated" in str(error):
            expected = "a network that torch.export can trace for any number of samples"
            instead = "in its forward write x.shape[0], not len(x), or type --to safetensors"
            raise InvalidValueError("to", expected, f"{name}, which fixes it", instead) from error
        instead = "type --to safetensors, or change the network's forward"
        got = f"{name} ({reason_of(error)[:300]})"
        raise InvalidValueError("to", "a network that torch.export can trace", got, instead) from error
    return _without_paths(program)


def _without_paths(program: ExportedProgram) -> ExportedProgram:
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # It names folders of this machine, and is larger than a small network.
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch's exporters from telling of their own steps, by logs, warnings and printed lines."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        nowhere = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
