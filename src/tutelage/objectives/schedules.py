"""Named schedules: weights that are functions of progress."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from tutelage.contracts import Progress


@dataclass(frozen=True)
class Linear:
    """A straight line from ``start`` to ``end``, constant before ``begin`` and after ``until``.

    Attributes:
        start: value at and before ``begin``.
        end: value at and after ``until``.
        begin: fraction of the run, in [0, 1).
        until: fraction of the run, in (begin, 1].
    """

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.until <= 1:
            raise ValueError(
                f"schedule: expected 0 <= begin < until <= 1, got begin={self.begin} and until={self.until}; "
                "both are fractions of the run"
            )

    def __call__(self, progress: Progress) -> float:
        """Return the value at this progress."""
        return self.start + (self.end - self.start) * self._position(progress)

    def _position(self, progress: Progress) -> float:
        return min(1.0, max(0.0, (progress.fraction - self.begin) / (self.until - self.begin)))


@dataclass(frozen=True)
class Cosine(Linear):
    """Half a cosine from ``start`` to ``end``; the attributes are those of `Linear`."""

    def __call__(self, progress: Progress) -> float:
        """Return the value at this progress."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._position(progress))) / 2


@dataclass(frozen=True)
class WarmUp:
    """``min(epoch / epochs, 1) * value`` with ``epoch`` counted from 1, as the published DKD trainer does it.

    Attributes:
        value: the value after the warm-up.
        epochs: its length in epochs, >= 1.
    """

    value: float
    epochs: int

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"schedule: expected epochs >= 1, got {self.epochs}; for no warm-up, type the number alone")

    def __call__(self, progress: Progress) -> float:
        """Return the value at this progress."""
        return self.value * min((progress.epoch + 1) / self.epochs, 1.0)


Schedule = Linear | Cosine | WarmUp
Weight = float | Schedule
"""Any weight is a number or a schedule."""

SCHEDULES: dict[str, type[Linear] | type[WarmUp]] = {"linear": Linear, "cosine": Cosine, "warm_up": WarmUp}


def weight_at(weight: Weight, progress: Progress) -> float:
    """Return a weight's value at this progress."""
    return weight(progress) if isinstance(weight, Linear | WarmUp) else weight


def weight_to_recipe(weight: Weight) -> float | dict[str, Any]:
    """Return a weight as a recipe holds it: a number, or ``{schedule: linear, start: ..., ...}``."""
    if not isinstance(weight, Linear | WarmUp):
        return weight
    name = next(name for name, kind in SCHEDULES.items() if kind is type(weight))
    return {"schedule": name, **asdict(weight)}


def weight_from_recipe(value: Any, *, argument: str) -> Weight:
    """Read a weight from a recipe.

    Raises:
        ValueError: it is neither a number nor a known schedule with its own arguments.
    """
    if isinstance(value, Linear | WarmUp):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if not isinstance(value, Mapping) or value.get("schedule") not in SCHEDULES:
        raise ValueError(
            f"{argument}: expected a number or {{schedule: {' | '.join(SCHEDULES)}, ...}}, got {value!r}; "
            f"for example {argument}=0.9"
        )
    kind = SCHEDULES[value["schedule"]]
    known = {field.name for field in fields(kind)}
    given = {key: number for key, number in value.items() if key != "schedule"}
    try:
        return kind(**given)
    except TypeError:
        raise ValueError(
            f"{argument}: schedule {value['schedule']!r} takes {', '.join(sorted(known))}, got {', '.join(sorted(given))}"
        ) from None
