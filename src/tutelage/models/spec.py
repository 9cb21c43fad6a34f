"""What a source returns for a name before any weight is made: the card, and how to build the network."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from tutelage.errors import InvalidValueError
from tutelage.models.card import Card


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """What the caller requests of a model besides its name."""

    classes: int | None = None  # number of classes; None for the model's own
    channels: int = 3  # number of input channels
    image_size: tuple[int, int] | None = None  # ``(height, width)`` in pixels; None for the model's own
    # whether a user's file may be run: any, or only those of these names
    trust_code: bool | frozenset[str] = False
    tagged: bool = True  # whether the name's tag may fetch weights; if not, it determines the card alone


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """How to make the model that a name stands for."""

    card: Card  # card with the number of classes of the name's own weights, or of the request
    build: Callable[..., nn.Module]  # function that makes the network with random weights; called with ``classes=``
    # function that makes it with the weights of the name's tag, raises OSError without connection; None without tag
    fetch: Callable[[], nn.Module] | None = None


def unknown(name: str, known: Iterable[str], *, else_type: str = "tutelage list models") -> InvalidValueError:
    """Make the error for a name that no source knows, with the nearest known names and the command that lists them."""
    full = {name.casefold(): name for name in known}
    candidates = {folded.partition(":")[2]: name for folded, name in full.items()} | full
    near = dict.fromkeys(candidates[m] for m in difflib.get_close_matches(name.casefold(), candidates, n=4, cutoff=0.6))
    hint = f"did you mean {' or '.join(list(near)[:3])}? " if near else ""
    return InvalidValueError("model", "a known name", repr(name), f"{hint}`{else_type}` lists the names")


def resized(statistics: Sequence[float], channels: int) -> tuple[float, ...]:
    """Fit channel statistics to another number of channels: each gets the mean of ``statistics``.

    >>> resized((0.25, 0.5, 0.75), 1)
    (0.5,)
    """
    if len(statistics) == channels:
        return tuple(float(value) for value in statistics)
    return (math.fsum(statistics) / len(statistics),) * channels
