"""A program of ExecuTorch, which runs on phones and small devices, by XNNPACK on their CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import InvalidValueError, TutelageError, missing_extra, reason_of
from tutelage.exports import int8
from tutelage.exports.formats.torch_export import quiet, traced
from tutelage.exports.source import Source

MOST = 32
"""Samples of the largest batch: a program reserves memory for its inputs and outputs when it is loaded."""
_TRACED = 17  # PyTorch's convolutions choose by whether a batch has 16 samples, and the graph keeps what was chosen.


def write(source: Source, to: Path) -> None:
    """Write a program with two methods.

    ``forward`` takes what the student does, batches of 1 to `MOST` samples and texts of up to its longest, and returns
    logits. ``metadata`` takes nothing and returns JSON as text: the class names, how an input is made, the tokenizer's
    files under ``files``. With ``source.int8`` it computes in 8-bit integers; see `int8.for_xnnpack`.

    Args:
        source: student.
        to: file to write, which does not exist.

    Raises:
        ImportError: if executorch is not installed.
        ValueError: if it does not load beside the installed torch, or torch cannot trace the network, or ExecuTorch has
            not all of its operations.
    """
    exir, partitioner = _library()
    program = traced(source, samples=_TRACED, largest=MOST)
    metadata = json.dumps({**source.metadata, "files": dict(source.files)}, ensure_ascii=False)
    try:
        with quiet():
            if source.int8:
                module = int8.for_xnnpack(source, program)
                program = traced(source, samples=_TRACED, largest=MOST, of=module)
            lowered = exir.to_edge_transform_and_lower(
                program, partitioner=[partitioner()], constant_methods={"metadata": metadata}
            ).to_executorch()
    except TutelageError:
        raise
    except Exception as error:  # of its passes, of kinds that are their own
        got = f"{source.classifier.card.name} ({reason_of(error)[:300]})"
        instead = "type --to onnx or --to torch-export"
        raise InvalidValueError("to", "a network of operations that ExecuTorch has", got, instead) from error
    with to.open("wb") as file:
        lowered.write_to_file(file)


def reopen(to: Path) -> Callable[[Tensor], Tensor]:
    """Return ExecuTorch's call of a program, in batches that it takes."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(to).load_method("forward")
    assert method is not None

    def run(inputs: Tensor) -> Tensor:
        # Answers are in memory that the next call writes to.
        return torch.cat([method.execute([part.contiguous()])[0].clone() for part in inputs.split(MOST)])

    return run


def _library() -> tuple[Any, Any]:
    """Return the package that lowers graphs, and what hands parts of them to XNNPACK."""
    try:
        with quiet():
            from executorch import exir
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.runtime import Runtime

            Runtime.get()
    except ModuleNotFoundError as error:
        raise missing_extra("to", "executorch", "executorch", error) from error
    except Exception as error:  # of a library that was built for another version
        expected = f"an executorch that loads beside torch {torch.__version__}"
        got = f"executorch {version('executorch')}, which does not ({reason_of(error)[:300]})"
        instead = "install the version of torch that it was built for, or type --to onnx"
        raise InvalidValueError("to", expected, got, instead) from error
    return exir, XnnpackPartitioner
