"""What a source returns for a name before any weight is made: the card, and how to build the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.models.card import Card
from tutelage.models.hf_calls import HubCall
from tutelage.text import TextInput
from tutelage.types import Task


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """What the caller requests of a model besides its name."""

    classes: int | None = None  # number of classes; None for the model's own
    channels: int = 3  # number of input channels
    image_size: tuple[int, int] | None = None  # ``(height, width)`` in pixels; None for the model's own
    task: Task = "classes"  # what it answers for a sample
    text: TextInput | None = None  # what it reads if it reads text; None for images
    config: Mapping[str, Any] | None = None  # configuration of a network without weights, where its source takes one
    saved: Path | None = None  # folder of a saved student, whose files describe the network instead of the name
    like: Mapping[str, Any] | None = None  # content of such a folder's configuration, for a network made like another
    # whether a user's file may be run: any, or only those of these names
    trust_code: bool | frozenset[str] = False
    mean: tuple[float, ...] | None = None  # statistics of a network whose name has none
    output: int | str | None = None  # output that has the logits, of a file with several
    tagged: bool = True  # whether the name's tag may fetch weights; if not, it determines the card alone
    # fields in whose place the value that the weights were trained with is taken
    as_trained: frozenset[str] = frozenset()

    def as_weights(self, **trained: Any) -> ModelRequest:
        """Return the request with what the name's weights were trained with, where that is to be taken."""
        return replace(self, **{k: v for k, v in trained.items() if k in self.as_trained and v is not None})


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """How to make the model that a name stands for."""

    card: Card  # card with the number of classes of the name's own weights, or of the request
    build: Callable[..., nn.Module]  # function that makes the network with random weights; called with ``classes=``
    # function that makes it with the weights of the name's tag, raises OSError without connection; None without tag
    fetch: Callable[[], nn.Module] | None = None
    call: HubCall | None = None  # how the network is called if not with its inputs alone


def resized(statistics: Sequence[float], channels: int) -> tuple[float, ...]:
    """Fit channel statistics to another number of channels: each gets the mean of ``statistics``.

    >>> resized((0.25, 0.5, 0.75), 1)
    (0.5,)
    """
    if len(statistics) == channels:
        return tuple(float(value) for value in statistics)
    return (math.fsum(statistics) / len(statistics),) * channels
