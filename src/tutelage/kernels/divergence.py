"""The losses that have forms here: points of one family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

from torch import Tensor

from tutelage import checks, losses
from tutelage.errors import InvalidTypeError
from tutelage.losses.divergences import PARAMETERS, parameters_of

KINDS = ("forward", "reverse", "jensen_shannon", "skew", "total_variation")
"""Kinds of `losses.divergence` that have forms; the kernels' constants are in this order."""
LogitLoss = Callable[[Tensor, Tensor], Tensor]
"""Loss of the student's and the teacher's logits, ``(..., classes)``, with one value per sample, ``(...)``."""


class Divergence(NamedTuple):
    """``factor * w(p) * D(softmax(teacher_gamma * v), softmax(student_gamma * z))``, as computed by kernels.

    Attributes:
        kind: kind of divergence, one of `KINDS`.
        mixture: the teacher's share of a kind's mixture; 0 if it has none.
        student_gamma: exponent of the student's distribution.
        teacher_gamma: exponent of the teacher's.
        factor: factor on all values.
        power_sum: whether ``w`` is the teacher's power sum, else 1.
    """

    kind: str = "forward"
    mixture: float = 0.0
    student_gamma: float = 1.0
    teacher_gamma: float = 1.0
    factor: float = 1.0
    power_sum: bool = False


SCHEMA = "str kind, float mixture, float student_gamma, float teacher_gamma, float factor, bool power_sum"
"""A `Divergence` in the schema of an operation, which takes it field by field."""


def _kd(*, temperature: float, power_sum: bool = False) -> Divergence:
    checks.positive(temperature, "temperature", example=4.0)
    gamma = 1 / temperature
    factor = float(temperature * temperature)
    return Divergence(student_gamma=gamma, teacher_gamma=gamma, factor=factor, power_sum=power_sum)


def _ttm(*, gamma: float, power_sum: bool = False) -> Divergence:
    checks.positive(gamma, "gamma", example=0.1)
    return Divergence(teacher_gamma=float(gamma), power_sum=power_sum)


def _divergence(*, kind: str, temperature: float = 1.0, **parameters: Any) -> Divergence | None:
    checks.positive(temperature, "temperature", example=4.0)
    values = parameters_of(kind, **parameters)
    if kind not in KINDS or temperature != 1:
        return None
    (mixture,) = values.values() or (0.0,)
    return Divergence(kind, float(mixture))


FUSED: Mapping[Callable[..., Tensor], tuple[Callable[..., Divergence | None], tuple[str, ...]]] = {
    losses.kd: (_kd, ("temperature",)),
    losses.weighted_kd: (partial(_kd, power_sum=True), ("temperature",)),
    losses.ttm: (_ttm, ("gamma",)),
    losses.wttm: (partial(_ttm, power_sum=True), ("gamma",)),
    losses.divergence: (_divergence, ("kind", "temperature", *{name for own in PARAMETERS.values() for name in own})),
}
"""Losses in the family, and their hyperparameters, of which each needs the first."""


def divergence_of(loss: LogitLoss) -> Divergence | None:
    """Return a loss's point in the family; ``None`` if it is not in it.

    Raises:
        TypeError, ValueError: if it is not a function, or its hyperparameters are unbound, not its own or out of range.
    """
    function, arguments = (loss.func, loss.keywords) if isinstance(loss, partial) and not loss.args else (loss, {})
    if not callable(function):
        instead = "for example functools.partial(tutelage.losses.wttm, gamma=0.9)"
        raise InvalidTypeError("loss", "a function of student's and teacher's logits", type(function).__name__, instead)
    if not isinstance(function, FunctionType) or function not in FUSED:  # A callable object need not be hashable.
        return None
    describe, names = FUSED[function]
    if names[0] not in arguments or not arguments.keys() <= set(names):
        name = f"losses.{function.__name__}"
        expected = f"{name} with {' '.join(names)} bound"
        instead = f"type functools.partial({name}, {names[0]}=...)"
        raise InvalidTypeError("loss", expected, " ".join(arguments) or "none of them", instead)
    return describe(**arguments)
