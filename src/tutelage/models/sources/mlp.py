"""The source ``mlp:64`` or ``mlp:256x256``: fully connected networks for tiny images."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn

from tutelage.errors import InvalidValueError
from tutelage.models import names
from tutelage.models.card import Card
from tutelage.models.spec import ModelRequest, ModelSpec

PREFIX = "mlp"
LISTED = [("mlp:WIDTHxWIDTH", f"fully connected with ReLU, for tiny images; such as {names.MLP}")]


class MLP(nn.Module):
    """Flatten ``inputs`` values per sample, then linear layers of widths ``hidden`` with ReLU, and a linear head."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], *, classes: int) -> None:
        super().__init__()
        widths = (inputs, *hidden)
        self.flatten = nn.Flatten(1)
        self.hidden = nn.Sequential(
            *(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in zip(widths, hidden, strict=False))
        )
        self.head = nn.Linear(hidden[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, ...)`` to logits ``(batch, classes)``."""
        return self.head(self.hidden(self.flatten(x)))


def plan(widths: str, request: ModelRequest) -> ModelSpec:
    """Read the hidden layers' widths, joined by ``x``; the statistics are 0.5 for every channel.

    Raises:
        ValueError: if the widths cannot be read, or the classes or the image size are not given.
    """
    name = f"{PREFIX}:{widths}"
    hidden = names.hidden_widths(widths)
    if request.classes is None:
        raise InvalidValueError(
            "classes",
            f"a number for {name}, which has none of its own",
            "none",
            f"type tutelage.models.create({name!r}, classes=10)",
        )
    if request.image_size is None:
        expected = f"(height, width) for {name}, whose first layer depends on it"
        raise InvalidValueError("image_size", expected, "none", "type image_size=(8, 8)")
    inputs = request.channels * math.prod(request.image_size)
    card = Card(
        name=name,
        classes=request.classes,
        channels=request.channels,
        image_size=request.image_size,
        mean=(0.5,) * request.channels,
        std=(0.5,) * request.channels,
        stages=tuple(f"hidden.{i}" for i in range(len(hidden))),
        stage_inputs=tuple(f"hidden.{i}.0" for i in range(len(hidden))),
        embedding=f"hidden.{len(hidden) - 1}",
        head="head",
    )
    return ModelSpec(card=card, build=partial(MLP, inputs, hidden))
