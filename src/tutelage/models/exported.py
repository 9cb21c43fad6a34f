"""Networks that a file holds as a graph: what goes in and comes out, and batches of any size for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from tutelage import records
from tutelage.errors import InvalidValueError, RunError
from tutelage.models.card import Card
from tutelage.models.spec import ModelRequest, ModelSpec

COLOURS = (1, 3)
"""Numbers of channels that pictures have: the last axis is the channels' where it alone has one of them."""


class Port(NamedTuple):
    """An input or an output of a graph."""

    name: str
    shape: tuple[int | None, ...]  # None for an axis that the file leaves open
    dtype: torch.dtype | None  # None for one that is no tensor of numbers


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What a file says of the network in it, and how it is called."""

    file: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    call: Callable[[Tensor, int], object]  # what it makes of an input as the file has it, of the output of this number
    least: int = 1  # samples of the smallest batch that it takes
    most: int | None = None  # of the largest; None for any
    sha256: bytes  # of the file, and of those that belong to it
    file_bytes: int  # of all of these
    initialisers: int = 0  # number of values in the file that are no parameters of a module
    batch_advice: str  # how a file for batches of any size is made
    metadata: str | None = None  # what `tutelage export` wrote into it, a JSON object


class Exported(nn.Module):
    """A network that a file holds as a graph: it answers in the one mode that it was exported in, and does not learn.

    A batch is cut into the sizes that the file takes; a smaller one is filled with its last sample, whose answers are
    dropped. The network computes in the dtype of its input in the file, whatever the precision of a run is: values in
    [0, 1] become 0 to 255, rounded, where the file takes ``uint8``.

    Its state tells two files, and two outputs of one, apart.

    Args:
        graph: graph of the file.
        output: number of the output that has the logits.
        classes: number of classes.
    """

    sha256: Tensor
    output: Tensor

    def __init__(self, graph: Graph, *, output: int, classes: int) -> None:
        super().__init__()
        self.graph, self._number, self._classes = graph, output, classes
        self.call = graph.call  # registered where it is a module
        self.register_buffer("sha256", torch.tensor(list(graph.sha256), dtype=torch.uint8))
        self.register_buffer("output", torch.tensor(list(graph.outputs[output].name.encode()), dtype=torch.uint8))
        self.requires_grad_(False)
        for module in self.modules():
            module.training = False

    def train(self, mode: bool = True) -> Exported:
        """Stay in the mode of the file, which is the only one that it has."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Exported:
        def moved(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            return (made if made.dtype == tensor.dtype else tensor.to(made.device)).contiguous()

        super()._apply(moved, recurse)
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits.

        Args:
            inputs: ``(batch, channels, height, width)``, floating point.

        Returns:
            ``(batch, classes)``, on the device and in the dtype of the inputs, but at least float32.

        Raises:
            RunError: if the file gives something else than a row of logits per sample.
        """
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        if not len(inputs):
            return inputs.new_empty(0, self._classes, dtype=dtype)
        with torch.autocast(inputs.device.type, enabled=False):
            logits = torch.cat([self._part(part) for part in inputs.detach().split(self.graph.most or len(inputs))])
        return logits.to(inputs.device, dtype)

    def _part(self, inputs: Tensor) -> Tensor:
        """Return the logits of as many samples as the file takes, or fewer."""
        missing = max(0, self.graph.least - len(inputs))
        filled = torch.cat([inputs, inputs[-1:].expand(missing, *inputs.shape[1:])]) if missing else inputs
        logits = self.call(as_taken(filled, self.graph.inputs[0].dtype), self._number)
        wanted = (len(filled), self._classes)
        if not isinstance(logits, Tensor) or logits.shape != wanted:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            name = f"{self.graph.file.name}, output {self.graph.outputs[self._number].name!r}"
            raise RunError(name, f"logits of shape {wanted}", got, self.graph.batch_advice)
        return logits[: len(inputs)]


def as_taken(inputs: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return inputs in a file's dtype: of whole numbers 0 to 255."""
    if dtype == torch.uint8:
        inputs = (inputs.float() * 255).round().clamp(0, 255)
    return inputs.to(dtype).contiguous()


def digest_of(path: Path) -> bytes:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def plan_exported(name: str, graph: Graph, request: ModelRequest) -> ModelSpec:
    """Describe the network in a file as its input and output do; what the file leaves open is as requested.

    Raises:
        ValueError: if it does not take images as one input, or return logits, or what is requested contradicts it.
    """
    if not request.tagged:
        raise InvalidValueError("weights", f"none beside {name}, which has its own", "some", "leave weights out")
    if request.task == "pixels":
        expected = "a network that gives each pixel a class, of hf:, torchvision:, file: or a run's folder, with masks"
        instead = "read the file in a function of your own, file:path.py:function"
        raise InvalidValueError("model", expected, name, instead)
    port = _input(name, graph.inputs)
    if port.dtype == torch.uint8 and request.mean is not None:
        expected = f"null for {name}, which takes whole numbers from 0 to 255 and normalises them itself"
        raise InvalidValueError("mean", expected, list(request.mean), "leave mean and std out")
    number = _output(name, graph.outputs, request.output)
    channels = port.shape[1] or request.channels
    fixed = port.shape[2:]
    request = request.as_weights(image_size=fixed if None not in fixed else None)
    asked: Sequence[int | None] = request.image_size or fixed
    if any(own not in (None, axis) for own, axis in zip(fixed, asked, strict=True)):
        expected = f"{_shown(fixed)}, as {name} takes no other size"
        instead = "leave the size out, or export the network with open height and width"
        raise InvalidValueError("image_size", expected, _shown(asked), instead)
    size = None if None in asked else (int(asked[0] or 0), int(asked[1] or 0))
    classes = _classes(name, graph, number, channels, size)
    return ModelSpec(
        card=Card(
            name=name,
            classes=classes,
            channels=channels,
            image_size=size,
            weights=graph.file.name,
            source=f"{graph.file.name}, sha256 {graph.sha256.hex()[:16]}",
            **_told(graph.metadata, classes),
        ),
        build=lambda *, classes: Exported(graph, output=number, classes=classes),
    )


class _Preprocessing(TypedDict, total=False):
    margin: float
    interpolation: Literal["bilinear", "bicubic"]
    divisor: float


class _Metadata(TypedDict, total=False):
    """What is read of a file's metadata."""

    class_names: list[str]
    preprocessing: _Preprocessing


def _told(metadata: str | None, classes: int) -> dict[str, Any]:
    """Return what a file's metadata say of its classes and its images; nothing where they are not as written."""
    try:
        told = records.parse_json((metadata or "{}").encode(), _Metadata)
    except ValueError:
        return {}
    fields = {
        key: value for key, value in told.get("preprocessing", {}).items() if key in _Preprocessing.__annotations__
    }
    if len(names := told.get("class_names", [])) == classes:
        fields["class_names"] = tuple(names)
    return fields


def _input(name: str, inputs: Sequence[Port]) -> Port:
    """Return the one input of a graph; refuse what is not fed with images."""
    if len(inputs) != 1:
        got = f"{len(inputs)} inputs: {', '.join(port.name for port in inputs)}" if inputs else "none"
        instead = "export the network with its other inputs fixed"
        raise InvalidValueError("model", f"one input of {name}, images", got, instead)
    (port,) = inputs
    what = f"images (batch, channels, height, width) as the input {port.name!r} of {name}"
    shape = _shown(port.shape)
    if len(port.shape) != 4:
        raise InvalidValueError("model", what, shape, "export the network with such an input")
    if port.shape[1] not in (None, *COLOURS) and port.shape[3] in COLOURS:
        instead = "export it with channels first (tf2onnx: --inputs-as-nchw), or with a transposition before it"
        raise InvalidValueError("model", what, f"{shape}, whose channels are last", instead)
    if port.dtype not in (torch.float16, torch.float32, torch.float64, torch.uint8):
        instead = "export the network with an input of float32"
        raise InvalidValueError("model", f"numbers of float16, float32, float64 or uint8, {what}", _kind(port), instead)
    return port


def _output(name: str, outputs: Sequence[Port], typed: int | str | None) -> int:
    """Return the number of the output that has the logits."""
    names = [port.name for port in outputs]
    known = ", ".join(f"{number} {each!r}" for number, each in enumerate(names))
    if typed is None and len(outputs) != 1:
        instead = "type output=... with its name or number" if names else "export the network with its logits"
        raise InvalidValueError("output", f"the one of {name} that has the logits", f"{len(outputs)}: {known}", instead)
    number = 0 if typed is None else names.index(str(typed)) if str(typed) in names else typed
    if isinstance(number, str) or number >= len(outputs):
        raise InvalidValueError("output", f"one of {name}: {known}", repr(typed), "type its name or its number")
    port = outputs[number]
    if port.dtype not in (torch.float16, torch.float32, torch.float64):
        instead = "type output=... for the logits, or export the network without argmax or labels at its end"
        raise InvalidValueError(
            "output", f"logits, floating point, of {name}", f"{port.name!r}, {_kind(port)}", instead
        )
    return number


def _classes(name: str, graph: Graph, number: int, channels: int, size: tuple[int, int] | None) -> int:
    """Return the number of classes, which is tried where the file leaves it open."""
    port = graph.outputs[number]
    shape = port.shape
    if (not shape or shape[-1] is None) and size is not None:
        inputs = torch.zeros(graph.least, channels, *size)
        answer = graph.call(as_taken(inputs, graph.inputs[0].dtype), number)
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else ()
    if len(shape) == 2 and shape[1]:
        return shape[1]
    instead = "type output=... for another one, or export the network so that it ends in a row of logits per image"
    if len(shape) == 2:
        instead = f"give the size of its images: tutelage.models.create({name!r}, image_size=(224, 224))"
    raise InvalidValueError("output", f"(batch, classes) of {name}", f"{port.name!r}, {_shown(shape)}", instead)


def _shown(shape: Sequence[int | None]) -> str:
    return f"({', '.join('open' if axis is None else str(axis) for axis in shape)})"


def _kind(port: Port) -> str:
    return "no tensor of numbers" if port.dtype is None else str(port.dtype).removeprefix("torch.")
