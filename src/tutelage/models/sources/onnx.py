"""The source ``onnx:model.onnx``: a network in an ONNX file, which onnxruntime computes on the CPU.

No code of the file is run: it has operators of ONNX alone, and no library of others is loaded for it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import InvalidValueError, missing_extra, one_line
from tutelage.models import names
from tutelage.models.exported import Graph, Port, digest_of, plan_exported
from tutelage.models.spec import ModelRequest, ModelSpec

PREFIX = names.ONNX
METADATA = "tutelage"
"""Key of what `tutelage export` writes among a file's metadata."""
LISTED = [("onnx:PATH.onnx", "a network in an ONNX file, as a teacher; pip install 'tutelage[onnx]'")]
_DTYPES = {
    "tensor(float16)": torch.float16,
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(bfloat16)": torch.bfloat16,
    **{f"tensor({name})": getattr(torch, name) for name in ("uint8", "int8", "int16", "int32", "int64", "bool")},
}
_ADVICE = "export it with an open batch: torch.onnx.export(..., dynamic_shapes=({0: 'batch'},))"


def plan(path: str, request: ModelRequest) -> ModelSpec:
    """Read a network's input and outputs from an ONNX file.

    Raises:
        ImportError: if onnx or onnxruntime is not installed.
        ValueError: if onnxruntime cannot read the file, or it is no network of images.
        FileNotFoundError: if there is no such file.
    """
    name = f"{PREFIX}:{path}"
    file = names.exported_file(name)
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise missing_extra("model", "onnx and onnxruntime for an onnx: name", "onnx", error) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin between two batches would take the cores from the student's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what is wrong is in the error
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class of their own
        got = f"{path} of {file.stat().st_size} bytes ({_reason(error)})"
        expected = f"an ONNX file that onnxruntime {onnxruntime.__version__} reads"
        instead = "fetch it again with the files beside it, export it with a lower opset, or update onnxruntime"
        raise InvalidValueError("model", expected, got, instead) from error
    inputs, outputs = ([_port(each) for each in side] for side in (session.get_inputs(), session.get_outputs()))
    batch = inputs[0].shape[0] if inputs and inputs[0].shape else None
    model = onnx.load(str(file), load_external_data=False)
    files = [file, *(file.parent / PurePath(other) for other in sorted(_locations(model)))]
    graph = Graph(
        file=file,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        call=_Session(session),
        least=batch or 1,
        most=batch,
        sha256=_digest(files),
        file_bytes=sum(each.stat().st_size for each in files),
        initialisers=sum(math.prod(each.dims) for each in model.graph.initializer),
        batch_advice=_ADVICE,
        metadata=session.get_modelmeta().custom_metadata_map.get(METADATA),
    )
    return plan_exported(name, graph, request)


class _Session:
    """Calls a session with a tensor. A session never changes, so a copy of a network shares it."""

    def __init__(self, session: Any) -> None:
        self.session = session
        (self.input, *_) = [each.name for each in session.get_inputs()] or [""]
        self.outputs = [each.name for each in session.get_outputs()]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Session:
        return self

    def __call__(self, inputs: Tensor, output: int) -> object:
        (answer,) = self.session.run([self.outputs[output]], {self.input: inputs.cpu().numpy()})
        return torch.from_numpy(answer)


def _port(argument: Any) -> Port:
    shape = tuple(axis if isinstance(axis, int) else None for axis in argument.shape)
    return Port(argument.name, shape, _DTYPES.get(argument.type))


def _reason(error: Exception) -> str:
    """Return what onnxruntime says, without the file, and the place in its own code, in front."""
    return re.sub(
        r"^\[ONNXRuntimeError\] : \d+ : |Load model from .* failed:|/\S+:\d+ .*\) (?=[A-Z])", "", one_line(error)
    )


def _digest(files: Sequence[Path]) -> bytes:
    """Return the SHA-256 of an ONNX file; of the digests of all its files if there are others."""
    digests = [digest_of(file) for file in files]
    return hashlib.sha256(b"".join(digests)).digest() if len(files) > 1 else digests[0]


def _locations(model: Any) -> set[str]:
    """Return the paths of the files that hold tensors of a model."""
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    return {ExternalDataInfo(tensor).location for tensor in _tensors(model) if uses_external_data(tensor)}


def _tensors(message: Any) -> Iterator[Any]:
    """Yield the tensors of a message, also those of functions, of sparse tensors and of graphs inside graphs."""
    from onnx import TensorProto

    for _, value in message.ListFields():
        for inner in value if isinstance(value, Sequence) else (value,):
            if isinstance(inner, TensorProto):
                yield inner
            elif hasattr(inner, "ListFields"):
                yield from _tensors(inner)
