"""Presets of methods that read more of the teacher than its features."""

from __future__ import annotations

from tutelage import losses
from tutelage.objectives.guided import OFD, SRRL, NormDirection
from tutelage.objectives.objective import Objective, WeightedTerm
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import Apply
from tutelage.settings.objective import Names
from tutelage.settings.weights import Weight

BEFORE = ("card:before.-3", "card:before.-2", "card:before.-1")
AS_TAPS = ("auto",)


@preset("Yang et al. 2021, ICLR")
def srrl(
    *,
    weight: Weight = 1.0,
    regression: float = 1.0,
    student_tap: str = "card:stage.-1",
    teacher_tap: str = "card:embedding",
) -> Objective:
    """``weight * (mean((s - t)**2) + regression * mean((h(s) - h(t))**2))``: h is the teacher's head, frozen.

    Features are pooled; the student's map goes through a 1x1 convolution, a batch norm and a ReLU first, always. It
    carries no cross-entropy: ``cross_entropy() + srrl()``. Published settings: 1 and 1, on ImageNet too.

    Args:
        weight: of the sum.
        regression: of the second term within it.
        student_tap: a map.
        teacher_tap: what the teacher's head reads, or a map whose mean that is.
    """
    return objective_of(
        WeightedTerm("srrl", weight, SRRL(regression=regression, student_tap=student_tap, teacher_tap=teacher_tap))
    )


@preset("Heo et al. 2019, arXiv:1904.01866")
def ofd(
    *, weight: Weight = 1e-3, student_taps: Names = BEFORE, teacher_taps: Names = BEFORE, norms: Names = AS_TAPS
) -> Objective:
    """``weight * sum_l 2**(l - L + 1) * sum(d(s_l, max(t_l, m_l)))``: maps before their activation, above a margin m.

    ``d(s, u)`` is ``(s - u)**2`` where the teacher is above 0 or ``s > u``, else 0; a sum over channels and places. It
    carries no cross-entropy; the taps count from 0 to L - 1. Published settings: 1e-3 on CIFAR-100; on ImageNet 1e-4 or
    1e-5 by architecture.

    Args:
        weight: of the sum over taps.
        student_taps: maps before their activation; published are all stages behind the stem, which a card of more than
            three stages names beside these.
        teacher_taps: as many of the teacher.
        norms: the teacher's batch norms whose weights give the margins, one a tap; ``auto`` finds them by the
            teacher's taps.
    """
    found = () if norms == AS_TAPS else norms
    term = OFD(student_taps=student_taps, teacher_taps=teacher_taps, norms=found)
    return objective_of(WeightedTerm("ofd", weight, term))


@preset("Wang et al. 2023, arXiv:2305.17007")
def kd_plus_plus(
    *,
    temperature: float = 4.0,
    weight: Weight = 1.0,
    norm_direction: Weight = 2.0,
    supervised: Weight = 1.0,
    student_tap: str = "card:embedding",
    teacher_tap: str = "card:embedding",
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * KL(p_T || q_T) + norm_direction * (1 - <s, c/|c|> / max(|s|, |t|))``.

    c is the teacher's mean embedding of the sample's class, over the training samples. A linear map takes the student's
    embedding to the teacher's width where the widths differ.

    Published settings: CIFAR-100 by pair, weight 1 to 4 and norm_direction 0.5 to 2, here those of ResNet56 to
    ResNet20; ImageNet 2.5 and 1, or 4 and 1. The authors' code raises the weight over 20 epochs, for which type
    ``weight={schedule: warm_up, value: 1.0, epochs: 20}``; there the first epoch has 0.

    Args:
        temperature: T > 0, on both sides.
        weight: of the KL, whose ``T**2`` is unconditional.
        norm_direction: of the term on the embedding's norm and direction.
        supervised: of the cross-entropy.
        student_tap: a feature ``(batch, width)``.
        teacher_tap: a feature ``(batch, width)``.
    """
    match = Apply(losses.kd, {"temperature": temperature}, target_gamma=1 / temperature if temperature else None)
    direction = NormDirection(student_tap=student_tap, teacher_tap=teacher_tap)
    parts = (WeightedTerm("kd", weight, match), WeightedTerm("norm_direction", norm_direction, direction))
    return objective_of(supervised_part(supervised), *parts)
