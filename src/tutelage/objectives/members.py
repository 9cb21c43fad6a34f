"""Terms that are computed for each of several teachers, and averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tutelage.errors import InvalidValueError
from tutelage.objectives.term import BindContext, PresetCall, TermSpec, WeightedTerm, present
from tutelage.settings.weights import Schedule
from tutelage.types import Batch, Outputs, Progress, Requirements, StatefulTerm, Term


@dataclass(frozen=True)
class EachMember:
    """``sum_k w_k * term(z, v_k)``, for the logits ``v_k`` of each member of an ensemble.

    Attributes:
        term: term of logits.
        weights: weight of each member, by the tap of its logits.
    """

    term: TermSpec
    weights: tuple[tuple[str, float], ...]

    @property
    def needs(self) -> Requirements:
        """The requirements of the term, and the members' logits, whole."""
        taps = tuple(tap for tap, _ in self.weights)
        return replace(self.term.needs, teacher_taps=taps, members=taps, sparse=False)

    @property
    def target_gamma(self) -> float | None:
        """The exponent at which the term transforms each member."""
        return self.term.target_gamma

    def bind(self, context: BindContext) -> Term:
        """Build the term for one run."""
        return _BoundEach(self, context)


class _BoundEach(nn.Module):
    """A bound `EachMember`; ``single`` is its term for one teacher."""

    def __init__(self, spec: EachMember, context: BindContext) -> None:
        super().__init__()
        self.needs, self._weights = spec.needs, spec.weights
        self.single: Term = spec.term.bind(context)
        if isinstance(self.single, StatefulTerm):
            expected = "a term without buffers, as each is computed for several teachers"
            got, instead = type(self.single).__name__, "type teacher.combine=probabilities, or name one teacher"
            raise InvalidValueError("objective", expected, got, instead)
        self.resolved: dict[str, float] = getattr(self.single, "resolved", {})
        self.target_gamma: float | None = getattr(self.single, "target_gamma", spec.target_gamma)
        self.scheduled: tuple[Schedule, ...] = getattr(self.single, "scheduled", ())

    @property
    def user_code(self) -> str | None:
        """The loss's name where it is the user's own function; see `errors.explained`."""
        return getattr(self.single, "user_code", "")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        taps = present(teacher).taps
        values = [weight * self.single(student, Outputs(taps[tap]), batch, progress) for tap, weight in self._weights]
        return torch.stack(values).sum(0)


def of_each(call: PresetCall, weights: Mapping[str, float]) -> PresetCall:
    """Return a preset call whose terms that read the teacher do so for each member.

    Raises:
        ValueError: if one reads more of a teacher than its logits.
    """
    return replace(call, parts=tuple(_part(call, part, weights) for part in call.parts))


def _part(call: PresetCall, part: WeightedTerm, weights: Mapping[str, float]) -> WeightedTerm:
    needs = part.term.needs
    if not needs.teacher:
        return part
    insides = {
        "features": needs.teacher_taps or needs.projections or needs.class_means,
        "last layer": needs.teacher_head,
        "batch norms": needs.teacher_norms,
        "statistics on training samples": needs.teacher_statistics,
    }
    if read := [what for what, is_read in insides.items() if is_read]:
        expected = "terms that read a teacher's logits alone, as each is computed for several teachers"
        got = f"{part.name}, which reads a teacher's {' and '.join(read)}"
        numbers = "numbers in place of auto and normalise=none in place of training, or " * needs.teacher_statistics
        instead = f"type {numbers}teacher.combine=probabilities, or name one teacher"
        raise InvalidValueError(f"objective {call.preset or 'custom'}", expected, got, instead)
    return replace(part, term=EachMember(part.term, tuple(weights.items())))
