"""ONNX, in one file: normalisation is in the graph, class names and tokenizer in ``metadata_props``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import InvalidValueError, reason_of
from tutelage.exports.formats import int8_onnx
from tutelage.exports.formats.torch_export import quiet, traced
from tutelage.exports.source import Source
from tutelage.models.sources.onnx import METADATA

OPSET = 18
"""Version of the operators: onnxruntime reads it since 1.14, of February 2023."""
LARGEST = 2**31 - 2**20
"""Bytes of weights that one file holds: protobuf has no larger messages."""


def write(source: Source, to: Path) -> None:
    """Write an ONNX file.

    Its input is ``images``, float32 ``(batch, channels, height, width)`` in [0, 1], or ``input_ids``, int64
    ``(batch, tokens)`` with -1 behind a text, from which the graph makes the attention mask; its output is ``logits``.

    Raises:
        ValueError: the network is too large for one file, or has an operation that ONNX lacks.
    """
    size = sum(tensor.nbytes for tensor in source.classifier.network.state_dict().values())
    if size > LARGEST:
        got = f"{size / 2**30:.1f} GiB of {source.classifier.card.name}"
        instead = "type --to torch-export or --to safetensors"
        raise InvalidValueError("to", "weights below 2 GiB, which one ONNX file holds", got, instead)
    graph = traced(source)
    try:
        with quiet():
            program: Any = torch.onnx.export(
                graph,
                input_names=[source.input_name],
                output_names=["logits"],
                dynamic_shapes=({0: "batch", 1: "tokens"} if source.of_text else {0: "batch"},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        got = f"{source.classifier.card.name} ({reason_of(cause)[:300]})"
        instead = "type --to torch-export or --to safetensors, or change the network's forward"
        raise InvalidValueError("to", "a network of operations that ONNX has", got, instead) from error
    program.model.metadata_props.update({METADATA: json.dumps(source.metadata, ensure_ascii=False), **source.files})
    if not source.int8:
        program.save(to, external_data=False)
        return
    whole = to.with_name("float32.onnx")
    program.save(whole, external_data=False)
    int8_onnx.quantize(whole, to, source)
    whole.unlink()


def reopen(to: Path) -> Callable[[Tensor], Tensor]:
    """Return onnxruntime's call of a file, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(to), options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    return lambda inputs: torch.from_numpy(session.run(None, {taken.name: inputs.numpy()})[0])
