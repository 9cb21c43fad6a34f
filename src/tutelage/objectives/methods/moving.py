"""Targets that move from the student to the teacher over a run, and divergences from mixtures of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, distributed, nn

from tutelage import checks, losses, targets
from tutelage.errors import InvalidValueError
from tutelage.objectives import gathering
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import Apply, BindContext, TermSpec, WeightedTerm, present
from tutelage.settings.weights import Linear, Weight, weight_at
from tutelage.types import Batch, Outputs, Progress, Requirements, Term


@dataclass(frozen=True, kw_only=True)
class TAID:
    """`losses.taid` at a ``t`` that follows progress and, if ``alpha`` is above 0, the loss (`losses.taid_step`)."""

    needs: ClassVar = Requirements(teacher=True, labels="none")
    target_gamma: ClassVar[None] = None  # the target is partly the student's
    t_start: float  # teacher's share at first, in [0, 1]
    t_end: float  # and at last, in [t_start, 1]
    alpha: float  # largest advance of t in a step, in [0, 1]; 0 leaves the straight line
    beta: float  # share of the momentum that is kept, in [0, 1)

    def __post_init__(self) -> None:
        checks.share(self.t_start, "t_start", example=0.4)
        checks.share(self.t_end, "t_end", example=1.0)
        checks.share(self.alpha, "alpha", example=5e-4)
        checks.fraction(self.beta, "beta", example=0.99)
        if self.t_end < self.t_start:
            instead = f"for example t_end={max(self.t_start, 1.0)}"
            raise InvalidValueError("t_end", f"a number from t_start on, {self.t_start}", self.t_end, instead)

    def bind(self, context: BindContext) -> Term:
        """Build the term at the start of its way."""
        return _BoundTAID(self) if self.alpha else _Scheduled(self)


class _Scheduled(nn.Module):
    """A bound `TAID` whose t is a function of progress alone."""

    def __init__(self, spec: TAID) -> None:
        super().__init__()
        self.needs, self._t = spec.needs, Linear(spec.t_start, spec.t_end)
        self.scheduled = (self._t,)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        return losses.taid(student.logits, present(teacher).logits, t=weight_at(self._t, progress))


class _BoundTAID(nn.Module):
    """A bound `TAID` whose buffers, ``()`` each, change once a step: at `commit`.

    The loss that they follow is the mean over the whole step: all its micro-batches, and all processes. In a loop
    that does not commit, a call with another number of the step commits the one before, as applied.
    """

    t: Tensor
    momentum: Tensor
    previous: Tensor

    def __init__(self, spec: TAID) -> None:
        super().__init__()
        self.needs, self._spec = spec.needs, spec
        for name, value in (("t", spec.t_start), ("momentum", 0.0), ("previous", torch.inf)):
            self.register_buffer(name, torch.tensor(value))
        self._sums: Tensor | None = None  # of the step so far: the loss, and how many positions it is of
        self._at: Progress = Progress()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        if self.training and isinstance(progress.step, int) and progress.step != self._at.step:
            self._commit_pending()
        target = losses.taid_target(student.logits, present(teacher).logits, t=self.t)
        values = losses.kl_divergence(torch.log_softmax(student.logits, dim=-1), target)
        if self.training:
            entropy = targets.shannon_entropy(target)
            counted = torch.ones_like(values) if batch.counted is None else batch.counted.to(values.dtype)
            loss = torch.where(counted > 0, values.detach() + entropy, 0.0)
            sums = torch.stack([loss.sum(), counted.sum()])
            self._sums, self._at = sums if self._sums is None else self._sums + sums, progress
        return values

    @torch.no_grad()
    def commit(self, applied: Tensor) -> None:
        """Move on by the step's loss, if it was applied and is finite."""
        if (sums := self._sums) is None:
            return
        self._sums = None
        if gathering.processes() > 1:
            distributed.all_reduce(sums)
        loss, spec = (sums[0] / sums[1]).to(self.t.dtype), self._spec
        linear = spec.t_start + (spec.t_end - spec.t_start) * self._at.fraction
        state = (self.t, self.momentum, self.previous)
        t, momentum = losses.taid_step(*state, loss, linear=linear, end=spec.t_end, alpha=spec.alpha, beta=spec.beta)
        takes = applied & loss.isfinite()
        for buffer, new in zip(state, (t, momentum, loss), strict=True):
            buffer.copy_(torch.where(takes, new, buffer))

    def _commit_pending(self) -> None:
        self.commit(torch.ones((), dtype=torch.bool, device=self.t.device))

    def _load_from_state_dict(self, *arguments: object) -> None:
        self._sums = None
        super()._load_from_state_dict(*arguments)


@preset("Shing et al. 2025, arXiv:2501.16937")
def taid(
    *,
    t_start: float = 0.4,
    t_end: float = 1.0,
    alpha: float = 5e-4,
    beta: float = 0.99,
    weight: Weight = 1.0,
    supervised: Weight = 0.0,
) -> Objective:
    """``supervised * CE(y, q) + weight * KL(r || q)`` with a target ``r = softmax((1 - t) z + t v)`` that moves.

    ``t`` goes from ``t_start`` to ``t_end`` over the run, at least as a straight line, and ahead of it while the loss
    falls (`losses.taid_step`). It is counted in optimizer steps, by the loss of the whole step: of all micro-batches
    and processes. The published setting, for language models, is the defaults; for images none is known to us: add
    ``supervised=1``.

    Args:
        t_start: teacher's share of the target's logits at first, in [0, 1].
        t_end: that at last, in [t_start, 1].
        alpha: largest advance of t in a step; 0 leaves a straight line, without any state.
        beta: share of the momentum of the loss's relative change that is kept at a step, in [0, 1).
        weight: weight of the KL.
        supervised: weight of the cross-entropy.

    Differs from: the authors' code, whose t follows the loss of a micro-batch in each process alone.
    """
    match = TAID(t_start=t_start, t_end=t_end, alpha=alpha, beta=beta)
    return objective_of(supervised_part(supervised), WeightedTerm("taid", weight, match))


@preset("Ko et al. 2025, arXiv:2503.07067")
def distillm2(
    *,
    share: float = 0.1,
    anchor: float = 0.0,
    skew: Weight = 1.0,
    reverse: Weight = 1.0,
    supervised: Weight = 0.0,
) -> Objective:
    """``supervised * CE(y, q) + skew * KL(p || a p + (1 - a) q) + reverse * KL(q || a q + (1 - a) p)``.

    No gradient flows through the mixture of the second. DistiLLM-2 has the first on the teacher's responses and the
    second on the student's, of the same prompts: this contrast needs two texts for a prompt, which no data here have.
    Both terms read whatever text a batch has: the data's, which the teacher may have written, or for a share of the
    samples the student's, with ``on_policy``. So the paper's figures are not to be expected of it.

    DistiLLM (Ko et al. 2024, arXiv:2402.03898) is ``matching`` with ``divergence=skew`` or ``skew_reverse`` and
    ``gamma=1``: its 0.1, the teacher's share in the one and the student's in the other, is the default of both.

    Args:
        share: a, each network's share of the mixture that it is compared with, above 0 and below 1.
        anchor: by how much more probable the labels are to the teacher than to the student at the start of training,
            the mean over texts of the gap of `losses.adaptive_share`; each text's a then follows its gap. At 0, as in
            the released code, a is ``share``.
        skew: weight of the first. The paper moves it to the second within half of the run:
            ``{schedule: linear, start: 1, end: 0.5, until: 0.5}``; the released code leaves it at 1.
        reverse: weight of the second; in the paper ``{schedule: linear, start: 1, end: 1.5, until: 0.5}``.
        supervised: weight of the cross-entropy.

    Differs from: the authors' code in what is above, in that the mean is over all positions, not over each text's
        first, and in that no gradient flows through a.
    """
    terms = (_skewed("teacher", share, anchor), _skewed("student", share, -anchor))
    parts = zip(("skew", "skew_reverse"), (skew, reverse), terms, strict=True)
    return objective_of(supervised_part(supervised), *(WeightedTerm(*part) for part in parts))


def _skewed(of: str, share: float, anchor: float) -> TermSpec:
    """Return one of DistiLLM-2's terms, which reads labels only if its share follows them."""
    if anchor:
        return Apply(losses.distillm2, {"share": share, "anchor": anchor, "of": of})
    return Apply(losses.skewed_kl, {"share": share, "of": of})
