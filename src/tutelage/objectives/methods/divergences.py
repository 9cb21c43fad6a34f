"""Methods on logits that match a teacher by other divergences than the forward one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tutelage import checks, losses
from tutelage.objectives.methods.logits import Divergence, Matching, fixed, head_cost, on_logits
from tutelage.objectives.methods.targeted import DKD_WEIGHT
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import Apply, BindContext, WeightedTerm, present
from tutelage.settings.objective import Exponent
from tutelage.settings.weights import Cosine, Weight
from tutelage.types import Batch, Outputs, Progress, Requirements, Term

WKD_GAMMA = Cosine(600.0, 0.0, begin=0.625)
"""Weight of the transport over the WKD authors' run on CIFAR-100: it falls from the 150th of 240 epochs on."""


@preset("Wang et al. 2025, arXiv:2505.04560")
def abkd(
    *,
    temperature: float = 4.0,
    ab_alpha: float = 0.8,
    ab_beta: float = 0.3,
    weight: Weight = 32.0,
    supervised: Weight = 1.0,
    logits: str = "raw",
) -> Objective:
    """``supervised * CE(y, q) + weight * D(p_T, q_T)`` with the alpha-beta divergence: there is no ``T**2``.

    Published settings: CIFAR-100 T=4, exponents that add up to 1.1, such as 0.8 and 0.3, and a weight of 32 or 64. On
    standardised logits (ABLS) T=2, 0.9 and 0.3, a weight of 9 and 0.1 of the cross-entropy; that code multiplies by
    ``T**2``, so here ``weight=36``. Language models, token by token: T=1, exponents 0.5 and 0.5, or 0.2 and 0.7. The
    labels of the cross-entropy may be soft.

    Args:
        temperature: T > 0, on both sides.
        ab_alpha: exponent of the teacher, any finite number; see `losses.divergence`.
        ab_beta: exponent of the student, any finite number. 1 and 0 are ``KL(p || q)``, 0 and 1 ``KL(q || p)``.
        weight: weight of the divergence; `kd`'s is smaller by ``T**2``.
        supervised: weight of the cross-entropy, always on raw logits.
        logits: form of the logits: ``raw``, or ``standardised`` over the classes.

    Differs from: the authors' code at exponents of 0 other than (1, 0), (0, 1) and (0, 0), where its factor is the
        reciprocal of the exponent that is left and the limit's is that squared; and the shipped script for GPT-2, whose
        loop computes the reverse KL whatever its arguments.
    """
    match = _tempered("alpha_beta", temperature, alpha=ab_alpha, beta=ab_beta)
    return objective_of(supervised_part(supervised), WeightedTerm("abkd", weight, on_logits(logits, match, weight)))


@preset("Wang et al. 2025, arXiv:2505.04560")
def abttm(
    *,
    gamma: Exponent = 0.1,
    ab_alpha: float = 0.8,
    ab_beta: float = 0.3,
    weight: Weight = 76.0,
    supervised: Weight = 1.0,
) -> Objective:
    """``supervised * CE(y, q) + weight * D(p_gamma, q)``: `ttm` with the alpha-beta divergence.

    Published settings: CIFAR-100 gamma 0.1, exponents that add up to 1.1 and a weight of 76. It works token by token;
    the labels of the cross-entropy may be soft.

    Args:
        gamma: exponent of the transformed teacher, a number > 0 and no schedule; ``ttm_l`` in the authors' code.
        ab_alpha: exponent of ``p_gamma`` in the divergence, any finite number; see `losses.divergence`.
        ab_beta: exponent of the student in the divergence, any finite number. At 1 and 0 it is `ttm`.
        weight: weight of the divergence.
        supervised: weight of the cross-entropy.

    Differs from: the authors' code as published, which ends in an error: no option defines the exponent that it reads.
    """
    number = fixed(gamma, "a number", "for example gamma=0.1")
    match = Matching(gamma=number, divergence="alpha_beta", ab_alpha=ab_alpha, ab_beta=ab_beta)
    return objective_of(supervised_part(supervised), WeightedTerm("abttm", weight, match.simplest()))


@preset("Wang et al. 2025, arXiv:2505.04560")
def abdkd(
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    ab_alpha: float = 0.8,
    ab_beta: float = 0.3,
    temperature: float = 4.0,
    weight: Weight = DKD_WEIGHT,
    supervised: Weight = 1.0,
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * (alpha * KL_label + beta * D_others)``: `dkd` with another divergence.

    Published settings: CIFAR-100 those of `dkd`, beta 6 or 8; the exponents are left open, and here those of `abkd`. It
    reads class indices, token by token as well, and no soft labels.

    Args:
        alpha: weight of the label's divergence, which stays the KL, >= 0.
        beta: weight of the others' divergence, >= 0.
        ab_alpha: exponent of the teacher in it, any finite number; see `losses.divergence`.
        ab_beta: exponent of the student in it, any finite number. At 1 and 0 it is `dkd`.
        temperature: T > 0, on both sides.
        weight: weight of both divergences; by default it grows to 1 over 20 epochs, as that of `dkd`.
        supervised: weight of the cross-entropy.
    """
    numbers = {"alpha": alpha, "beta": beta, "ab_alpha": ab_alpha, "ab_beta": ab_beta, "temperature": temperature}
    return objective_of(supervised_part(supervised), WeightedTerm("abdkd", weight, Apply(losses.abdkd, numbers)))


@preset("Wu et al. 2024, arXiv:2404.02657")
def akl(*, mu: float = 0.5, temperature: float = 1.0, weight: Weight = 1.0, supervised: Weight = 1.0) -> Objective:
    """``supervised * CE(y, q) + weight * (w * KL(p_T || q_T) + (1 - w) * KL(q_T || p_T))``: there is no ``T**2``.

    ``w`` is the part of the distance between the distributions that is in the teacher's head; it has no gradient. Made
    for language models, token by token, with mu 0.5 and T=1; the published code leaves the weights open. It takes
    images as well, and the labels of the cross-entropy may be soft.

    Args:
        mu: mass of the head, in [0, 1); see `losses.divergence`.
        temperature: T > 0, on both sides.
        weight: weight of both divergences.
        supervised: weight of the cross-entropy.

    Differs from: the authors' code where the networks agree, which is NaN there and here 0; and a public copy, which
        counts the token that crosses mu to the head and sums over tokens.
    """
    match = _tempered("adaptive", temperature, mu=mu)
    return objective_of(supervised_part(supervised), WeightedTerm("akl", weight, match))


@preset("Jung et al. 2025, arXiv:2505.16297")
def todi(*, temperature: float = 2.0, weight: Weight = 0.5, supervised: Weight = 0.5) -> Objective:
    """``supervised * CE(y, q) + weight * sum_i (w[i] * KL_i(p_T || q_T) + (1 - w[i]) * KL_i(q_T || p_T))``.

    ``w = p_T / (p_T + q_T)``, without a gradient, weighs each class, a token of the vocabulary; there is no ``T**2``.
    Made for language models, token by token. Published settings: T=2, 0.5 and 0.5. It takes images as well, and the
    labels of the cross-entropy may be soft.

    Args:
        temperature: T > 0, on both sides.
        weight: weight of the divergence.
        supervised: weight of the cross-entropy.

    Differs from: the authors' code in the mean over tokens, where theirs sums and divides later.
    """
    match = _tempered("class_wise", temperature)
    return objective_of(supervised_part(supervised), WeightedTerm("todi", weight, match))


def _tempered(kind: str, temperature: float, **numbers: float) -> Divergence:
    """Return a `losses.divergence` at a temperature of both networks."""
    arguments = {"kind": kind, "temperature": temperature, **numbers}
    return Divergence(losses.divergence, arguments, 1 / temperature if temperature else None)


@dataclass(frozen=True, kw_only=True)
class WKDL:
    """`losses.wkd_l` with a cost from the teacher's last layer."""

    needs: ClassVar = Requirements(teacher=True, labels="index", teacher_head=True)
    target_gamma: ClassVar[None] = None  # the labelled class is left out
    temperature: float  # T of both networks, above 0
    sinkhorn_lambda: float  # weight of the plan's entropy, above 0
    sinkhorn_iter: int  # number of iterations
    sharpen: float  # factor of the distance between classes, above 0

    def __post_init__(self) -> None:
        checks.positive(self.temperature, "temperature", example=8.0)
        checks.positive(self.sinkhorn_lambda, "sinkhorn_lambda", example=0.05)
        checks.whole_number(self.sinkhorn_iter, "sinkhorn_iter", example=10)
        checks.positive(self.sharpen, "sharpen", example=1.0)

    def bind(self, context: BindContext) -> Term:
        """Build the term with the cost between classes."""
        return _BoundWKDL(self, context)


class _BoundWKDL(nn.Module):
    """A bound `WKDL`: no parameters; the cost is in a buffer that is made again whenever it is bound."""

    cost: Tensor

    def __init__(self, spec: WKDL, context: BindContext) -> None:
        super().__init__()
        self.needs = spec.needs
        self.register_buffer("cost", head_cost(context, spec.sharpen), persistent=False)
        names = ("temperature", "sinkhorn_lambda", "sinkhorn_iter")
        self._arguments = {name: getattr(spec, name) for name in names}

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        teacher_logits = present(teacher).logits
        return losses.wkd_l(student.logits, teacher_logits, batch.labels, cost=self.cost, **self._arguments)


@preset("Lv et al. 2024, arXiv:2412.08139")
def wkd_l(
    *,
    gamma: Weight = WKD_GAMMA,
    temperature: float = 8.0,
    sinkhorn_lambda: float = 0.05,
    sinkhorn_iter: int = 10,
    sharpen: float = 1.0,
    label: Weight = 1.0,
    supervised: Weight = 1.0,
) -> Objective:
    """``supervised * CE(y, q) + label * -p[y] * log q[y] + gamma * sum_ij F[i, j] * C[i, j]``: there is no ``T**2``.

    ``F`` is the plan that moves the student's softmax at T over the classes without the labelled one to the teacher's.
    Published settings: CIFAR-100 T=8, gamma 600, which half a cosine lowers from the 150th of 240 epochs on; ImageNet
    T=2, gamma 30. It reads class indices, token by token as well, and no soft labels.

    Args:
        gamma: weight of the transport.
        temperature: T > 0 of the transport, on both sides.
        sinkhorn_lambda: weight of the plan's entropy, > 0.
        sinkhorn_iter: number of Sinkhorn's iterations. At T=8 the published 10 are not converged: see
            `losses.transport`.
        sharpen: factor of the distance between classes, > 0: the cost is ``1 - exp(-sharpen * (1 - cos))`` of the rows
            of the teacher's last layer, which has at most 10,000 classes.
        label: weight of the label's term, at temperature 1.
        supervised: weight of the cross-entropy.

    Differs from: the authors' configurations, which read a cost by CKA between classes from a file; theirs from the
        last layer is an option. Their code adds 1e-8 to costs and denominators.
    """
    plan = WKDL(temperature=temperature, sinkhorn_lambda=sinkhorn_lambda, sinkhorn_iter=sinkhorn_iter, sharpen=sharpen)
    of_label = Apply(losses.nkd, {"gamma": 0.0, "temperature": 1.0}, soft_labels=True)
    terms = WeightedTerm("wkd_l_label", label, of_label), WeightedTerm("wkd_l", gamma, plan)
    return objective_of(supervised_part(supervised), *terms)
