"""What every trainer of another library refuses, in the same words."""

from __future__ import annotations

from collections.abc import Mapping

from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.objectives import Objective


def require_objective(objective: object) -> None:
    """Refuse what is no objective."""
    if not isinstance(objective, Objective):
        instead = "for example objective=tutelage.objectives.ttm(gamma=0.5, beta=2.0)"
        raise InvalidTypeError("objective", "a tutelage objective", type(objective).__name__, instead)


def require_teacher(objective: Objective, teacher: object) -> None:
    """Refuse an objective that needs a teacher without one."""
    if objective.needs.teacher and teacher is None:
        raise InvalidValueError("teacher", f"one for objective {objective.name}", "none", "pass the network itself")


def unfit(objective: Objective, what: str, *, expected: str) -> InvalidValueError:
    """Return the error for an objective with something that the trainer does not give it."""
    instead = "type tutelage.distill(...), or write a loop of your own around tutelage.Distiller"
    return InvalidValueError("objective", expected, f"{objective.name}, with {what}", instead)


def refuse_reading(objective: Objective, reads: Mapping[str, object], *, expected: str) -> None:
    """Refuse an objective that reads something of these, or views: what it is, and whether it is read."""
    for what, read in {**reads, "views of a sample to compare": objective.needs.views > 1}.items():
        if read:
            raise unfit(objective, what, expected=expected)


def micro_batches(option: str, number: object, typed: str) -> InvalidValueError:
    """Return the error for micro-batches of an objective that couples a batch's samples.

    Args:
        option: the trainer's option.
        number: its value.
        typed: what to type in its place.
    """
    instead = f"its value would change with the micro-batches: type {typed}"
    return InvalidValueError(option, "1 for an objective that couples a batch's samples", number, instead)
