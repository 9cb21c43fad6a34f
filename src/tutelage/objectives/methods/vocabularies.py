"""Methods for language models of unlike vocabularies: `data.teacher_tokenizer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage import checks, losses
from tutelage.errors import InvalidValueError
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import BindContext, WeightedTerm, present
from tutelage.settings.weights import Weight
from tutelage.types import Batch, Outputs, Progress, Requirements, Term
from tutelage.views import positions_of


@preset("Boizard et al. 2024, arXiv:2402.12030")
def uld(
    *, positions: str = "order", temperature: float = 1.0, weight: Weight = 1.5, supervised: Weight = 1.0
) -> Objective:
    """``supervised * CE(y, q) + weight * sum_i |sort(q)[i] - sort(p)[i]|``, of a teacher of any vocabulary.

    Args:
        positions: which stand side by side: as in the paper the k-th of both answers (``order``), or those at which
            both networks have read the same text (``text``).
        temperature: T > 0, on both sides, without ``T**2``.
        weight: weight of `losses.uld`, which is the mean over the positions of each sample; 1.5 in the paper.
        supervised: weight of the cross-entropy.
    """
    match = SideBySide(losses.uld, positions, {"temperature": temperature})
    return objective_of(supervised_part(supervised), WeightedTerm("uld", weight, match))


@preset("Patiño et al. 2025, and TRL's trainer of that name")
def gold(
    *,
    positions: str = "text",
    beta: float = 0.5,
    temperature: float = 1.0,
    weight: Weight = 1.0,
    supervised: Weight = 1.0,
) -> Objective:
    """``supervised * CE(y, q) + weight * (r * D(p[m] || q[m]) + (1 - r) * uld(q[u], p[u]))``.

    ``m`` are the tokens that both vocabularies have, by their bytes, and those that end a text; ``u`` are the others,
    and ``r`` is the share of the teacher's tokens that are in ``m``. Published with ``on_policy``, which takes one
    vocabulary here, and T = 0.9 for what the student writes.

    Args:
        positions: which stand side by side: those at which both networks have read the same text (``text``), or the
            k-th of both answers (``order``).
        beta: teacher's share of the generalised Jensen-Shannon divergence D, in [0, 1]: ``KL(p || q)`` at 0, ``KL(q ||
            p)`` at 1.
        temperature: T > 0, on both sides, without ``T**2``.
        weight: weight of `losses.gold`, which is the mean over the positions of each sample.
        supervised: weight of the cross-entropy.

    Differs from: TRL, which joins positions until both networks have read the same text, and multiplies the
        probabilities of the tokens between; here those inside a token of the teacher are learned from the labels alone,
        so that the cross-entropy has a weight, which TRL's default leaves out.
    """
    match = SideBySide(losses.gold, positions, {"beta": beta, "temperature": temperature}, same_tokens=True)
    return objective_of(supervised_part(supervised), WeightedTerm("gold", weight, match))


POSITIONS = {"order": "counted", "text": "aligned"}
"""What a batch calls the positions that stand side by side."""


@dataclass(frozen=True)
class SideBySide:
    """A loss of networks whose vocabularies and positions may differ, such as `losses.uld`.

    Attributes:
        loss: function of both networks' logits and of which of their positions are compared.
        positions: which those are, one of `POSITIONS`.
        arguments: keyword arguments of the loss.
        same_tokens: whether it reads which tokens are the same.
    """

    loss: Callable[..., Tensor]
    positions: str
    arguments: Mapping[str, Any]
    same_tokens: bool = False

    target_gamma: ClassVar[None] = None  # what it matches is not one distribution

    def __post_init__(self) -> None:
        checks.known(self.positions, "positions", POSITIONS, example='"text"')
        # Only the loss checks its hyperparameters, and otherwise not until training.
        logits, counted = torch.zeros(2, 1, 2, 3), torch.ones(2, 1, 2, dtype=torch.bool)
        more = {"same_tokens": torch.zeros(1, 2, dtype=torch.int64)} if self.same_tokens else {}
        self.loss(*logits, *counted, **self.arguments, **more)

    @property
    def needs(self) -> Requirements:
        """The requirements of the loss."""
        return Requirements(teacher=True, labels="none", other_vocabulary=True, same_tokens=self.same_tokens)

    def bind(self, context: BindContext) -> Term:
        """Build the term for one run."""
        return _SideBySide(self, context.same_tokens)


class _SideBySide(nn.Module):
    def __init__(self, spec: SideBySide, same_tokens: Tensor | None) -> None:
        super().__init__()
        self.needs, self._spec = spec.needs, spec
        self.same_tokens: Tensor | None
        self.register_buffer("same_tokens", same_tokens, persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        which = POSITIONS[self._spec.positions]
        if which == "aligned":
            _require_aligned(batch)
        masks = (positions_of(batch, name, which) for name in ("student", "teacher"))
        more = {"same_tokens": self.same_tokens} if self._spec.same_tokens else {}
        return self._spec.loss(student.logits, present(teacher).logits, *masks, **self._spec.arguments, **more)


def _require_aligned(batch: Batch) -> None:
    """Refuse a teacher's own positions of which nothing says where both networks have read the same text."""
    inputs = batch.inputs if isinstance(batch.inputs, Mapping) else {}
    if "teacher_counted" in inputs and not {"student_aligned", "teacher_aligned"} <= inputs.keys():
        expected = "student_aligned and teacher_aligned beside teacher_counted: where both have read the same text"
        instead = "give them, or type positions='order' in the objective"
        raise InvalidValueError("batch.inputs", expected, ", ".join(inputs), instead)
