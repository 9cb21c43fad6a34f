"""The named methods that match features: maps of one stage or of several. None carries a cross-entropy."""

from __future__ import annotations

import functools

from tutelage import losses
from tutelage.objectives.factors import Factors
from tutelage.objectives.objective import Objective, WeightedTerm
from tutelage.objectives.registry import objective_of, preset
from tutelage.objectives.stages import Stages, paired
from tutelage.objectives.term import Apply
from tutelage.objectives.variational import Variational
from tutelage.settings.objective import Names
from tutelage.settings.weights import Weight, scaled

STAGES = ("card:stage.-3", "card:stage.-2", "card:stage.-1")
WITH_STEM = ("card:stage.-4", *STAGES)
BEFORE = ("card:before.-3", "card:before.-2", "card:before.-1")


@preset("Romero et al. 2015, arXiv:1412.6550")
def fitnet(
    *,
    weight: Weight = 100.0,
    projection: str = "regressor",
    student_tap: str = "card:stage.2",
    teacher_tap: str = "card:stage.2",
) -> Objective:
    """``weight * mean((r(f_s) - f_t)**2)``: one stage of the student is mapped onto the teacher's.

    Published settings: CIFAR-100 100, beside cross-entropy, in one stage: the hint is the second stage of blocks, which
    is ``card:stage.2`` as the stem is ``card:stage.0``.

    Args:
        weight: of the mean over all entries of the map.
        projection: kind of the map: ``regressor`` (convolution, batch norm, ReLU), ``conv`` or ``connector``; or
            ``linear`` for embeddings. A regressor gives nothing below 0: name features after a ReLU with it.
        student_tap: a map.
        teacher_tap: a map.

    Differs from: the paper, which trains the student up to the hint first and then learns from logits: two stages of a
    recipe, ``stages: [{objective: fitnet, epochs: 10}, {objective: kd}]``.
    """
    hint = Apply(losses.hint, student_tap=student_tap, teacher_tap=teacher_tap, projection=projection)
    return objective_of(WeightedTerm("fitnet", weight, hint))


@preset("Zagoruyko and Komodakis 2017, arXiv:1612.03928")
def attention_transfer(
    *,
    weight: Weight = 1000.0,
    p: float = 2,
    distance: str = "mean_square",
    student_taps: Names = STAGES,
    teacher_taps: Names = STAGES,
) -> Objective:
    """``weight * sum_l mean((Q_s - Q_t)**2)`` with Q the maps ``mean_c f**p``, scaled to length 1.

    Published settings: CIFAR-100 1000, p 2; each stage is a term of its own. The larger map is averaged down.

    Args:
        weight: of each stage.
        p: a whole number >= 1.
        distance: ``mean_square``, or ``norm``, the paper's; its beta is twice the weight.
        student_taps: of maps, one a stage.
        teacher_taps: as many.

    Differs from: the paper, which has norms that are not squared. The published stages are all behind the stem.
    """
    pairs, how = paired(student_taps, teacher_taps), {"p": p, "distance": distance}
    terms = [Apply(losses.attention_transfer, how, student_tap=ours, teacher_tap=theirs) for ours, theirs in pairs]
    return objective_of(*(WeightedTerm("attention_transfer", weight, term) for term in terms))


@preset("Ahn et al. 2019, arXiv:1904.05835")
def vid(
    *,
    weight: Weight = 1.0,
    variance: float = 5.0,
    epsilon: float = 1e-5,
    student_taps: Names = STAGES,
    teacher_taps: Names = STAGES,
) -> Objective:
    """``weight * sum_l mean(0.5 * ((r(f_s) - f_t)**2 / v + log(v)))``, the variances v of channels learned.

    Published settings: CIFAR-100 1; each stage is a term of its own, with a regressor of three 1x1 convolutions.
    Published are all stages behind the stem, which are four of VGG, MobileNetV2 and ResNet50.

    Args:
        weight: of each stage.
        variance: at the start, > epsilon.
        epsilon: the least variance, > 0.
        student_taps: of maps, one a stage.
        teacher_taps: as many.

    Differs from: one public copy, which never trains the variance.
    """
    pairs = paired(student_taps, teacher_taps)
    how = {"variance": variance, "epsilon": epsilon}
    terms = [Variational(student_tap=ours, teacher_tap=theirs, **how) for ours, theirs in pairs]
    return objective_of(*(WeightedTerm("vid", weight, term) for term in terms))


@preset("Kim et al. 2018, arXiv:1802.04977")
def factor_transfer(
    *,
    weight: Weight = 200.0,
    rate: float = 0.5,
    p: float = 2,
    norm: float = 1,
    reconstruction: float = 0.005,
    student_tap: str = "card:stage.-1",
    teacher_tap: str = "card:stage.-1",
) -> Objective:
    """``weight * (mean(abs(Q_s - Q_t)**norm) + reconstruction * mean((D(E(f_t)) - f_t)**2))``, on factors of maps.

    Q are the maps ``mean_c f**p`` of the factors ``T(f_s)`` and ``E(f_t)``, scaled to length 1. Published settings:
    CIFAR-100 200, rate 0.5, p 2, norm 1.

    Args:
        weight: of the whole.
        rate: channels of the factors, as a share of the teacher's, > 0.
        p: a whole number >= 1.
        norm: >= 1.
        reconstruction: of the paraphraser's own error, > 0. It alone teaches the paraphraser, and nothing else; as
            published it has the weight 1, which is 0.005 times 200.
        student_tap: a map.
        teacher_tap: a map.

    Differs from: the paper, which compares whole factors, their channels too (`losses.factor_difference`); and from it
    and the published runs in that the paraphraser learns beside the student, not for 30 epochs before it, and has batch
    norms, without which it diverges at a student's learning rate.
    """
    how = {"rate": rate, "p": p, "norm": norm, "reconstruction": reconstruction}
    return objective_of(
        WeightedTerm("factor_transfer", weight, Factors(student_tap=student_tap, teacher_tap=teacher_tap, **how))
    )


@preset("Heo et al. 2019, arXiv:1811.03233")
def activation_boundary(
    *, weight: Weight = 1.0, margin: float = 1.0, student_taps: Names = BEFORE, teacher_taps: Names = BEFORE
) -> Objective:
    """``weight * 3 / 1000 * sum_l 2**(l - L + 1) * sum(hinge**2)``, with the stages ``l`` from 0 to ``L - 1``.

    The hinge is ``max(0, margin - c(f_s))`` where the teacher's neuron is on, ``max(0, margin + c(f_s))`` where it is
    off. Published settings: 30 epochs of this alone, then cross-entropy alone: two stages of a recipe. Each stage is a
    term of its own; ``c`` is a convolution with batch norm where the shapes differ (the ``connector``).

    Args:
        weight: of the whole.
        margin: > 0.
        student_taps: of maps before their activation, one a stage.
        teacher_taps: as many.
    """
    hinge = functools.partial(
        Apply, losses.activation_boundary, {"margin": margin}, projection="connector", project_always=False
    )
    parts = [
        WeightedTerm(
            "activation_boundary", scaled(weight, 3 / 1000 * 2.0**place), hinge(student_tap=ours, teacher_tap=theirs)
        )
        for place, (ours, theirs) in enumerate(paired(student_taps, teacher_taps), 1 - len(student_taps))
    ]
    return objective_of(*parts)


@preset("Yim et al. 2017, CVPR")
def fsp(
    *,
    weight: Weight = 1.0,
    pool: str = "average",
    distance: str = "mean_square",
    student_taps: Names = WITH_STEM,
    teacher_taps: Names = WITH_STEM,
) -> Objective:
    """``weight * sum_l mean((M_s - M_t)**2)`` with ``M[c, d] = (1 / places) * sum_x a[c, x] * b[d, x]``.

    Each stage a with the next one, b, the stem being the first. Published settings: 30 epochs of this alone, then
    cross-entropy alone: two stages of a recipe. It has no learned map: widths must agree.

    Args:
        weight: of the whole.
        pool: how the larger map is made smaller: ``average``, or the paper's ``maximum``.
        distance: ``mean_square``; or ``norm``, summed over columns.
        student_taps: of maps, at least 2.
        teacher_taps: as many, each as wide as the student's.
    """
    how = {"pool": pool, "distance": distance}
    flow = Stages(loss=losses.fsp, arguments=how, student_taps=student_taps, teacher_taps=teacher_taps)
    return objective_of(WeightedTerm("fsp", weight, flow))


@preset("Lee et al. 2018, ECCV")
def kd_svd(
    *, weight: Weight = 1.0, k: float = 1, student_taps: Names = STAGES, teacher_taps: Names = STAGES
) -> Objective:
    """``weight * sum_l sum((g_s - g_t)**2)`` with ``g = exp(-(a - b)**2 / 8)`` of leading singular vectors a and b.

    Each stage with the next one. Published settings: CIFAR-100 1, k 1. It has no learned map: widths must agree.

    Args:
        weight: of the whole.
        k: how many singular vectors, >= 1.
        student_taps: of maps, at least 2.
        teacher_taps: as many, each as wide as the student's.

    Differs from: public code, which leaves the vectors' signs as they come; here they are fixed.
    """
    vectors = Stages(loss=losses.kd_svd, arguments={"k": k}, student_taps=student_taps, teacher_taps=teacher_taps)
    return objective_of(WeightedTerm("kd_svd", weight, vectors))
