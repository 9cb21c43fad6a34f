"""Weights of terms as plain data: numbers, schedules of progress, and ``auto``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from tutelage.errors import InvalidValueError, nearest
from tutelage.settings.numbers import FLOAT32, LARGEST, InSchema, fits_float32
from tutelage.types import Progress

if TYPE_CHECKING:
    from torch import Tensor


def is_number(value: Any) -> bool:
    """Whether a value is a number that float32 holds, as the losses compute with it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and fits_float32(value)


@dataclass(frozen=True)
class Schedule:
    """A weight that is a function of progress."""

    scaled_fields: ClassVar[tuple[str, ...]]  # fields that are scaled along with the weight

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not is_number(value):
                expected = f"{name} to be a number {FLOAT32}"
                raise InvalidValueError("schedule", expected, repr(value), f"for example {name}: 1")

    def __call__(self, progress: Progress) -> float:
        """Return the value at this progress."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{{{', '.join(f'{key}: {value}' for key, value in self.to_recipe().items())}}}"

    def to_recipe(self) -> dict[str, Any]:
        """Return the schedule as held by a recipe."""
        return {"schedule": next(name for name, kind in SCHEDULES.items() if kind is type(self)), **asdict(self)}


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from ``start`` to ``end``, constant before ``begin`` and after ``until``.

    Attributes:
        start: value at and before ``begin``.
        end: value at and after ``until``.
        begin: fraction of the run, in [0, 1).
        until: fraction of the run, in (begin, 1].
    """

    scaled_fields = ("start", "end")

    start: float
    end: float
    begin: Annotated[float, InSchema(minimum=0, exclusiveMaximum=1)] = 0.0
    until: Annotated[float, InSchema(exclusiveMinimum=0, maximum=1)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.begin < self.until <= 1:
            expected = "0 <= begin < until <= 1"
            instead = "both are fractions of the run: begin=0.0 and until=1.0, for example"
            raise InvalidValueError("schedule", expected, f"begin={self.begin} and until={self.until}", instead)

    def __call__(self, progress: Progress) -> float:
        """Return the value at this progress."""
        return self.start + (self.end - self.start) * self._position(progress)

    def _position(self, progress: Progress) -> float:
        return min(1.0, max(0.0, (float(progress.fraction) - self.begin) / (self.until - self.begin)))


@dataclass(frozen=True)
class Cosine(Linear):
    """Half a cosine from ``start`` to ``end``; the attributes are those of `Linear`."""

    def __call__(self, progress: Progress) -> float:
        """Return the value at this progress."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._position(progress))) / 2


@dataclass(frozen=True)
class WarmUp(Schedule):
    """``min(epoch / epochs, 1) * value`` with ``epoch`` counted from 1, as the published DKD trainer does it.

    Attributes:
        value: value after the warm-up.
        epochs: length of the warm-up in epochs, >= 1.
    """

    scaled_fields = ("value",)

    value: float
    epochs: Annotated[int, InSchema(minimum=1, maximum=LARGEST)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1 or self.epochs != int(self.epochs):
            raise InvalidValueError("schedule", "epochs, a whole number >= 1", self.epochs, "for example epochs: 20")

    def __call__(self, progress: Progress) -> float:
        """Return the value at this progress."""
        return self.value * self._position(progress)

    def _position(self, progress: Progress) -> float:
        return min((int(progress.epoch) + 1) / self.epochs, 1.0)


@dataclass(frozen=True)
class CosineWarmUp(WarmUp):
    """Half a cosine from 0 to ``value``, by epochs counted from 1; the attributes are those of `WarmUp`.

    ``value * (1 - cos(pi * min(epoch / epochs, 1))) / 2``, as the published CTKD trainer does it.
    """

    def __call__(self, progress: Progress) -> float:
        """Return the value at this progress."""
        return self.value * (1 - math.cos(math.pi * self._position(progress))) / 2


WeightValue = float | Schedule
"""Weight that has been read."""
Weight = WeightValue | Mapping[str, Any]
"""Weight: a number >= 0 or a schedule of such numbers, which may be written as in a recipe."""
SignedWeight = Annotated[Weight, "of either sign"]
"""Weight that may be below 0."""


@dataclass(frozen=True)
class Automatic:
    """A number that is computed when an objective is bound, from teacher logits on some training samples; ``auto``.

    Attributes:
        factor: factor on that number.
        argument: name of the argument that it stands for.
        unit: what the argument is in automatic betas; that of KD is gamma, so that it is at TTM's factor. ``None`` is
            the gamma that is found.
    """

    factor: float = 1.0
    argument: str = "beta"
    unit: float | None = 1.0

    def __str__(self) -> str:
        return "auto" if self.factor == 1 else f"{self.factor:g} * auto"


AUTO = Automatic()
"""What a recipe writes as ``auto``."""
AutomaticWeight = Annotated[Weight | Automatic | Literal["auto"], "or auto"]
"""Weight that may be found automatically."""
AutomaticNumber = Annotated[float | Automatic | Literal["auto"], "or auto"]
"""Number that may be found automatically."""

ScheduledNumber = Annotated[Weight, "a number above 0"]
"""Number above 0, such as a temperature, or a schedule of such numbers."""
AutomaticScheduledNumber = Annotated[Weight | Automatic | Literal["auto"], "a number above 0, or auto"]
"""The same, where it may be found automatically."""

SCHEDULES = {"linear": Linear, "cosine": Cosine, "warm_up": WarmUp, "cosine_warm_up": CosineWarmUp}


def weight_at(weight: WeightValue, progress: Progress) -> float | Tensor:
    """Return a weight's value at this progress; a schedule's comes from ``progress`` if there, else it is computed."""
    if not isinstance(weight, Schedule):
        return weight
    return progress.scheduled[weight] if weight in progress.scheduled else weight(progress)


def value_of(weight: AutomaticWeight) -> WeightValue | Automatic:
    """Return a weight as a value: one that is written as in a recipe is read."""
    if isinstance(weight, Mapping | str):
        return weight_from_recipe(weight, argument="weight", signed=True, automatic=True)
    return weight


def scaled(weight: AutomaticWeight, scale: float) -> WeightValue | Automatic:
    """Return a weight times a factor, throughout the run."""
    weight = value_of(weight)
    if isinstance(weight, Automatic):
        return replace(weight, factor=weight.factor * scale)
    if isinstance(weight, Schedule):
        return replace(weight, **{name: getattr(weight, name) * scale for name in weight.scaled_fields})
    return weight * scale


def weight_to_recipe(weight: WeightValue | Automatic) -> float | str | dict[str, Any]:
    """Return a weight as held by a recipe: a number, ``auto``, or ``{schedule: linear, start: ..., ...}``."""
    if isinstance(weight, Automatic):
        return str(weight)
    return weight.to_recipe() if isinstance(weight, Schedule) else weight


def weight_from_recipe(
    value: Any, *, argument: str, signed: bool = False, automatic: bool = False
) -> WeightValue | Automatic:
    """Read a weight (a number or a schedule) from a recipe. Only a signed one may be < 0, an automatic one ``auto``.

    Raises:
        ValueError: if it is neither a number nor a known schedule with its own arguments, or it is below 0.
    """
    if automatic and (auto := automatic_from_recipe(value, argument=argument)):
        return auto
    weight = _read_weight(value, argument=argument, beside=", auto" if automatic else "")
    if signed:
        return weight
    if isinstance(weight, Schedule):
        for name in weight.scaled_fields:
            if (number := getattr(weight, name)) < 0:
                raise InvalidValueError(f"{argument}: schedule", f"{name} >= 0", number, f"for example {name}: 1")
    elif weight < 0:
        raise InvalidValueError(argument, "a weight >= 0", weight, f"for example {argument}=0.9")
    return weight


def scheduled_from_recipe(value: Any, *, argument: str) -> Schedule | None:
    """Read a schedule of numbers above 0 from a recipe; return ``None`` if it is something else.

    Raises:
        ValueError: if it is a schedule with wrong arguments, or one of its numbers is not above 0.
    """
    if not (isinstance(value, Schedule) or (isinstance(value, Mapping) and "schedule" in value)):
        return None
    schedule = _read_weight(value, argument=argument, beside="")
    assert isinstance(schedule, Schedule)
    for name in schedule.scaled_fields:
        if not (number := getattr(schedule, name)) > 0:
            raise InvalidValueError(f"{argument}: schedule", f"{name} > 0", number, f"for example {name}: 1")
    return schedule


def automatic_from_recipe(value: Any, *, argument: str) -> Automatic | None:
    """Read ``auto`` from a recipe; return ``None`` if it is something else.

    Raises:
        ValueError: if it is a multiple of the automatic value, which a recipe writes as the objective's scale.
    """
    if isinstance(value, Automatic) and value.factor != 1:
        raise InvalidValueError(argument, "auto", value, f"type {value.factor:g} * the whole objective instead")
    return AUTO if value == "auto" or isinstance(value, Automatic) else None


def _read_weight(value: Any, *, argument: str, beside: str) -> WeightValue:
    if type(value) in SCHEDULES.values():
        return value
    if is_number(value):
        return float(value)
    if not isinstance(value, Mapping) or str(value.get("schedule")) not in SCHEDULES:
        number = f"a number {FLOAT32}," if isinstance(value, int | float) else "a number"
        expected = f"{number}{beside} or {{schedule: {' | '.join(SCHEDULES)}, ...}}"
        raise InvalidValueError(argument, expected, repr(value), f"for example {argument}=0.9")
    kind = SCHEDULES[value["schedule"]]
    required = {field.name: field.default is MISSING for field in fields(kind)}
    arguments = {key: number for key, number in value.items() if key != "schedule"}
    schedule = f"schedule {value['schedule']} with"
    if unknown := [str(key) for key in arguments if key not in required]:
        known = f"{schedule} {', '.join(required)}"
        raise InvalidValueError(argument, known, repr(unknown[0]), nearest(unknown[0], required))
    if missing := [key for key, needed in required.items() if needed and key not in arguments]:
        needed = f"{schedule} {' and '.join(missing)}"
        raise InvalidValueError(argument, needed, "none", f"for example {missing[0]}: 1")
    try:
        return kind(**arguments)
    except InvalidValueError as error:
        raise error.within(argument) from None
