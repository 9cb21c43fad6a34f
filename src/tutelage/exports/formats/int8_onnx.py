"""8-bit integers in an ONNX file, by onnxruntime: which kind, and by which samples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tutelage.exports.int8 import AT_ONCE
from tutelage.exports.source import Source


def quantize(float32: Path, to: Path, source: Source) -> None:
    """Write an ONNX file again with weights, and what they are multiplied with, in 8-bit integers.

    The ranges of a network's activations are measured on training samples. Where it has attention, a softmax inside,
    they are those of each batch instead: activations of single channels are much larger than all others there.

    Args:
        float32: file to read.
        to: file to write.
        source: what it is of.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            assert source.calibration is not None
            self.batches = iter(source.calibration.split(AT_ONCE))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {source.input_name: batch.numpy()}

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        prepared = to.with_name("prepared.onnx")
        quant_pre_process(str(float32), str(prepared), skip_symbolic_shape=True)
        attends = any(node.op_type == "Softmax" for node in onnx.load(str(prepared)).graph.node)
        if attends or source.of_text:
            quantize_dynamic(str(prepared), str(to), weight_type=QuantType.QInt8, per_channel=True)
        else:
            quantize_static(
                str(prepared),
                str(to),
                Samples(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
    finally:
        root.setLevel(level)
    prepared.unlink()
