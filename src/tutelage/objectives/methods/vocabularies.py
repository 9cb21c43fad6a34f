"""Methods for language models of unlike vocabularies: `data.teacher_tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from tutelage import losses
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import Apply, BindContext, WeightedTerm, present
from tutelage.settings.weights import Weight
from tutelage.types import Batch, Outputs, Progress, Requirements, Term
from tutelage.views import counted_of


@preset("Boizard et al. 2024, arXiv:2402.12030")
def uld(*, temperature: float = 1.0, weight: Weight = 1.5, supervised: Weight = 1.0) -> Objective:
    """``supervised * CE(y, q) + weight * sum_i |sort(q)[i] - sort(p)[i]|``, of a teacher of any vocabulary.

    Positions stand side by side from the first of the answer on; the mean over them is taken sample by sample.

    Args:
        temperature: T > 0, on both sides, without ``T**2``.
        weight: weight of `losses.uld`; 1.5 in the paper.
        supervised: weight of the cross-entropy.
    """
    return objective_of(
        supervised_part(supervised), WeightedTerm("uld", weight, Apply(losses.uld, {"temperature": temperature}))
    )


@preset("Patiño et al. 2025, and TRL's trainer of that name")
def gold(*, beta: float = 0.5, temperature: float = 1.0, weight: Weight = 1.0, supervised: Weight = 0.0) -> Objective:
    """``supervised * CE(y, q) + weight * (r * D(p[m] || q[m]) + (1 - r) * uld(q[u], p[u]))``.

    ``m`` are the tokens that both vocabularies have, by their bytes, and those that end a text; ``u`` are the others,
    and ``r`` is the share of the teacher's tokens that are in ``m``. Published with ``on_policy``, which takes one
    vocabulary here, and T = 0.9 for what the student writes.

    Args:
        beta: teacher's share of the generalised Jensen-Shannon divergence D, in [0, 1]: ``KL(p || q)`` at 0, ``KL(q ||
            p)`` at 1.
        temperature: T > 0, on both sides, without ``T**2``.
        weight: weight of `losses.gold`.
        supervised: weight of the cross-entropy.
    """
    return objective_of(supervised_part(supervised), WeightedTerm("gold", weight, Gold(beta, temperature)))


@dataclass(frozen=True)
class Gold:
    """`losses.gold`, bound to the tokens that both networks of a run have; the fields are the preset's arguments."""

    beta: float
    temperature: float

    target_gamma: ClassVar[None] = None  # what it matches is not one distribution

    @property
    def needs(self) -> Requirements:
        """The requirements of the loss, and the pairs of tokens."""
        return replace(Apply(losses.gold).needs, same_tokens=True)

    def bind(self, context: BindContext) -> Term:
        """Build the term for one run."""
        return _Gold(self, context)


class _Gold(nn.Module):
    user_code: ClassVar[None] = None  # it has no function of the user's

    def __init__(self, spec: Gold, context: BindContext) -> None:
        super().__init__()
        self.needs, self._spec = spec.needs, spec
        self.same_tokens: Tensor | None
        self.register_buffer("same_tokens", context.same_tokens, persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        return losses.gold(
            student.logits,
            present(teacher).logits,
            batch.counted,
            counted_of(batch, "teacher"),
            same_tokens=self.same_tokens,
            beta=self._spec.beta,
            temperature=self._spec.temperature,
        )
