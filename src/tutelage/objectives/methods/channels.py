"""Methods that match relations between a sample's channels. None includes a cross-entropy."""

from __future__ import annotations

from tutelage import losses
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset
from tutelage.objectives.term import STAGES, Apply, WeightedTerm, paired
from tutelage.settings.objective import Names
from tutelage.settings.weights import Weight


@preset("Huang and Wang 2017, arXiv:1707.01219")
def nst(*, weight: Weight = 50.0, student_taps: Names = STAGES, teacher_taps: Names = STAGES) -> Objective:
    """``weight * sum_taps(mean(k(t, t)) + mean(k(s, s)) - 2 * mean(k(s, t)))``, k the squared cosine of two channels.

    It includes no cross-entropy. Published settings: CIFAR-100 50, on all stages after the stem, which for ResNets and
    WRNs are three.

    Args:
        weight: weight of `losses.nst` on each pair of taps.
        student_taps: taps of maps; they may differ from the teacher's in size and in channels.
        teacher_taps: as many taps of maps.
    """
    terms = [Apply(losses.nst, student_tap=s, teacher_tap=t) for s, t in paired(student_taps, teacher_taps)]
    return objective_of(*(WeightedTerm("nst", weight, term) for term in terms))


@preset("Liu et al. 2021, arXiv:2202.03680")
def ickd(*, weight: Weight = 2.5, student_tap: str = "card:stage.-1", teacher_tap: str = "card:stage.-1") -> Objective:
    """``weight / channels * ||G_s - G_t||_F**2``, G the Gram matrix of a sample's channels, its rows of length 1.

    A learned 1x1 convolution with a batch norm maps the student's channels to the teacher's. It includes no
    cross-entropy. Published settings: CIFAR-100 2.5, on the last stage.

    Args:
        weight: weight of `losses.inter_channel`.
        student_tap: tap of maps.
        teacher_tap: tap of maps; they may differ in size.
    """
    term = Apply(losses.inter_channel, student_tap=student_tap, teacher_tap=teacher_tap, projection="conv1x1_bn")
    return objective_of(WeightedTerm("ickd", weight, term))
