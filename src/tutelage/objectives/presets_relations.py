"""The named methods that match relations: between a batch's samples, or between a sample's channels."""

from __future__ import annotations

import functools

from tutelage import losses
from tutelage.objectives.embedded import Correlation
from tutelage.objectives.objective import Objective, WeightedTerm
from tutelage.objectives.registry import objective_of, preset
from tutelage.objectives.term import Apply
from tutelage.settings.objective import Names
from tutelage.settings.weights import Weight


@preset("Park et al. 2019, arXiv:1904.05068")
def rkd(
    *,
    distance: Weight = 25.0,
    angle: Weight = 50.0,
    student_tap: str = "card:embedding",
    teacher_tap: str = "card:embedding",
) -> Objective:
    """``distance * mean(h(D_s - D_t)) + angle * mean(h(A_s - A_t))``: distances and angles within a batch, h Huber's.

    It carries no cross-entropy. Published settings: CIFAR-100 25 and 50, beside cross-entropy, on the pooled embedding.

    Args:
        distance: of `losses.rkd_distance`.
        angle: of `losses.rkd_angle`, whose time grows with the third power of the batch.
        student_tap: a feature ``(batch, width)``.
        teacher_tap: a feature ``(batch, width)``.
    """
    on = functools.partial(Apply, student_tap=student_tap, teacher_tap=teacher_tap, coupled=True, least=2)
    return objective_of(
        WeightedTerm("rkd_distance", distance, on(losses.rkd_distance)),
        WeightedTerm("rkd_angle", angle, on(losses.rkd_angle)),
    )


@preset("Passalis and Tefas 2018, arXiv:1803.10837")
def pkt(
    *, weight: Weight = 30000.0, student_tap: str = "card:embedding", teacher_tap: str = "card:embedding"
) -> Objective:
    """``weight * mean(p * log(p / q))``, p and q the likeness of a batch's samples, in rows that sum to 1.

    It carries no cross-entropy. The mean is over ``batch**2`` pairs: the published 30000 is for batches of 64, and
    ``weight / batch`` is what multiplies the mean KL divergence of the rows.

    Args:
        weight: of `losses.pkt`.
        student_tap: a feature ``(batch, width)``.
        teacher_tap: a feature ``(batch, width)``.
    """
    term = Apply(losses.pkt, student_tap=student_tap, teacher_tap=teacher_tap, coupled=True)
    return objective_of(WeightedTerm("pkt", weight, term))


@preset("Tung and Mori 2019, arXiv:1907.09682")
def similarity(
    *, weight: Weight = 3000.0, student_tap: str = "card:stage.-1", teacher_tap: str = "card:stage.-1"
) -> Objective:
    """``weight / batch**2 * ||G_s - G_t||_F**2``, G the Gram matrix of a batch's features, its rows of length 1.

    It carries no cross-entropy. Published settings: CIFAR-100 3000, on the last stage.

    Args:
        weight: of `losses.similarity`.
        student_tap: a feature of any shape.
        teacher_tap: a feature of any shape.
    """
    term = Apply(losses.similarity, student_tap=student_tap, teacher_tap=teacher_tap, coupled=True)
    return objective_of(WeightedTerm("similarity", weight, term))


@preset("Peng et al. 2019, arXiv:1904.01802")
def correlation(
    *,
    weight: Weight = 0.02,
    dimension: int = 128,
    student_tap: str = "card:embedding",
    teacher_tap: str = "card:embedding",
) -> Objective:
    """``weight / (batch - 1) * sum(|e[n]| * |e[n + 1]|)``, e the difference of the two networks' learned embeddings.

    It carries no cross-entropy. This is the form that benchmarks publish under the name: one learned linear map on each
    network, the teacher's too, so that two maps to 0 would be its least value, and a dependence on the order of the
    batch. The paper's form is `losses.correlation_kernel`.

    Args:
        weight: of `losses.correlation`.
        dimension: of the embeddings.
        student_tap: a feature ``(batch, width)``.
        teacher_tap: a feature ``(batch, width)``.
    """
    term = Correlation(dimension=dimension, student_tap=student_tap, teacher_tap=teacher_tap)
    return objective_of(WeightedTerm("correlation", weight, term))


@preset("Huang and Wang 2017, arXiv:1707.01219")
def nst(
    *,
    weight: Weight = 50.0,
    student_taps: Names = ("card:stage.-3", "card:stage.-2", "card:stage.-1"),
    teacher_taps: Names = ("card:stage.-3", "card:stage.-2", "card:stage.-1"),
) -> Objective:
    """``weight * sum_taps(mean(k(t, t)) + mean(k(s, s)) - 2 * mean(k(s, t)))``, k the squared cosine of two channels.

    It carries no cross-entropy. Published settings: CIFAR-100 50, on all stages behind
    the stem, which are three of the ResNets and WRNs.

    Args:
        weight: of `losses.nst` on each pair of taps.
        student_taps: maps; they may differ from the teacher's in size and in channels.
        teacher_taps: as many maps.
    """
    pairs = _pairs(student_taps, teacher_taps)
    return objective_of(
        *(WeightedTerm("nst", weight, Apply(losses.nst, student_tap=s, teacher_tap=t)) for s, t in pairs)
    )


@preset("Liu et al. 2021, arXiv:2202.03680")
def ickd(*, weight: Weight = 2.5, student_tap: str = "card:stage.-1", teacher_tap: str = "card:stage.-1") -> Objective:
    """``weight / channels * ||G_s - G_t||_F**2``, G the Gram matrix of a sample's channels, its rows of length 1.

    A learned 1 x 1 convolution with a batch norm takes the student's channels to the teacher's. It carries no
    cross-entropy. Published settings: CIFAR-100 2.5, on the last stage.

    Args:
        weight: of `losses.inter_channel`.
        student_tap: maps.
        teacher_tap: maps; they may differ in size.
    """
    term = Apply(losses.inter_channel, student_tap=student_tap, teacher_tap=teacher_tap, projection="conv1x1_bn")
    return objective_of(WeightedTerm("ickd", weight, term))


def _pairs(student_taps: Names, teacher_taps: Names) -> list[tuple[str, str]]:
    if len(student_taps) != len(teacher_taps):
        raise ValueError(
            f"teacher_taps: expected {len(student_taps)}, as many as student_taps, got {len(teacher_taps)}; "
            "name a teacher's tap for each of the student's"
        )
    return list(zip(student_taps, teacher_taps, strict=True))


@preset("Miles and Mikolajczyk 2024, arXiv:2303.11098")
def srd(
    *,
    weight: Weight = 2.0,
    exponent: float = 4.0,
    student_tap: str = "card:embedding",
    teacher_tap: str = "card:embedding",
) -> Objective:
    """``weight * log(sum_{n,d} |s[n,d] - t[n,d]|**exponent)``: batch-normalised embeddings after a learned linear map.

    It couples the samples of a batch and carries no cross-entropy. The map is always there, also where widths agree.

    Args:
        weight: of `losses.log_sum`; 2 is that of a public code, beside cross-entropy and a KL divergence.
        exponent: > 0; published is 4.
        student_tap: a feature ``(batch, width)``.
        teacher_tap: a feature ``(batch, width)``.
    """
    term = Apply(
        losses.log_sum,
        {"exponent": exponent},
        coupled=True,
        least=2,
        student_tap=student_tap,
        teacher_tap=teacher_tap,
        projection="linear",
    )
    return objective_of(WeightedTerm("srd", weight, term))
