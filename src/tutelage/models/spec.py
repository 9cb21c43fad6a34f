"""What a source returns for a name before any weight is made: the card, and how to build the network."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from tutelage.models.card import Card


class ModelRequest(NamedTuple):
    """What the caller asks of a model besides its name."""

    classes: int | None = None  # none for the model's own
    channels: int = 3  # input channels
    image_size: tuple[int, int] | None = None  # ``(height, width)`` in pixels; none for the model's own
    # whether a file of the user's own may be run: any, or those of these names
    trust_code: bool | frozenset[str] = False
    tagged: bool = True  # whether the name's tag may fetch weights; without, it fixes the card alone


class ModelSpec(NamedTuple):
    """How to make the model that a name stands for."""

    card: Card  # with the number of classes that the name's own weights have, or that were asked for
    build: Callable[[int], nn.Module]  # makes the network with random weights for a number of classes
    # makes the network with the weights that the name's tag fixes; none without a tag
    fetch: Callable[[], nn.Module] | None = None


def unknown(name: str, known: Iterable[str], *, else_type: str = "tutelage list models") -> ValueError:
    """Make the error for a name that no source knows, with the nearest names it might have been.

    Args:
        name: what was typed.
        known: names as they would be typed.
        else_type: what shows them all.
    """
    full = {name.casefold(): name for name in known}
    shown = {folded.partition(":")[2]: name for folded, name in full.items()} | full
    near = dict.fromkeys(shown[match] for match in difflib.get_close_matches(name.casefold(), shown, n=4, cutoff=0.6))
    hint = f"did you mean {' or '.join(list(near)[:3])}? " if near else ""
    return ValueError(f"model: expected a known name, got {name!r}; {hint}`{else_type}` lists the names")


def resized(statistics: Sequence[float], channels: int) -> tuple[float, ...]:
    """Fit channel statistics to another number of channels: each gets the mean of the given ones.

    >>> resized((0.25, 0.5, 0.75), 1)
    (0.5,)
    """
    if len(statistics) == channels:
        return tuple(float(value) for value in statistics)
    return (math.fsum(statistics) / len(statistics),) * channels


@contextmanager
def fetching(name: str, *, where: str, arch: str) -> Iterator[None]:
    """Turn an error of fetching a name's weights into a ConnectionError that says what to type instead."""
    try:
        yield
    except OSError as error:
        raise ConnectionError(
            f"model: expected to fetch the weights of {name} from its {where}, got {type(error).__name__}; "
            f"connect, or give a local copy with weights=path; {arch} has random weights"
        ) from error
