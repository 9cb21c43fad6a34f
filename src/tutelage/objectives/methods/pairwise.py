"""Methods that match relations between a batch's samples. None includes a cross-entropy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tutelage import checks, losses
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset
from tutelage.objectives.term import EMBEDDING, Apply, BindContext, BoundFeatures, FeatureTerm, WeightedTerm
from tutelage.settings.weights import Weight
from tutelage.types import Batch, Progress, Requirements


class _BoundCorrelation(BoundFeatures):
    spec: Correlation

    def build(self, context: BindContext) -> None:
        (((student,), (teacher,)),) = self.spec.shapes(context, "embedding")
        self.embed_student = nn.Linear(student, self.spec.dimension)
        self.embed_teacher = nn.Linear(teacher, self.spec.dimension)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        student_embeddings, teacher_embeddings = self.embed_student(student[0]), self.embed_teacher(teacher[0])
        # The loss reads only the difference. Passed this way, the teacher's map learns too: a loss detaches its
        # teacher.
        return losses.correlation(student_embeddings - teacher_embeddings, torch.zeros_like(teacher_embeddings))


@dataclass(frozen=True, kw_only=True)
class Correlation(FeatureTerm):
    """Correlation congruence as benchmarks run it (`losses.correlation`): both networks' embeddings are mapped."""

    module: ClassVar = _BoundCorrelation
    one_pair: ClassVar = True
    base_needs: ClassVar = Requirements(teacher=True, labels="none", coupled=True, min_batch=2)
    dimension: int  # dimension of the embeddings, at least 1
    student_taps: tuple[str, ...] = (EMBEDDING,)
    teacher_taps: tuple[str, ...] = (EMBEDDING,)

    def _check(self) -> None:
        checks.whole_number(self.dimension, "dimension", example=128)


@preset("Park et al. 2019, arXiv:1904.05068")
def rkd(
    *, distance: Weight = 25.0, angle: Weight = 50.0, student_tap: str = EMBEDDING, teacher_tap: str = EMBEDDING
) -> Objective:
    """``distance * mean(h(D_s - D_t)) + angle * mean(h(A_s - A_t))``: distances and angles within a batch, h Huber's.

    It includes no cross-entropy. Published settings: CIFAR-100 25 and 50, with cross-entropy, on the pooled embedding.

    Args:
        distance: weight of `losses.rkd_distance`.
        angle: weight of `losses.rkd_angle`, whose time grows with the third power of the batch.
        student_tap: tap of a feature ``(batch, width)``.
        teacher_tap: tap of a feature ``(batch, width)``.
    """
    on = functools.partial(Apply, student_tap=student_tap, teacher_tap=teacher_tap, coupled=True, min_batch=2)
    return objective_of(
        WeightedTerm("rkd_distance", distance, on(losses.rkd_distance)),
        WeightedTerm("rkd_angle", angle, on(losses.rkd_angle)),
    )


@preset("Passalis and Tefas 2018, arXiv:1803.10837")
def pkt(*, weight: Weight = 30000.0, student_tap: str = EMBEDDING, teacher_tap: str = EMBEDDING) -> Objective:
    """``weight * mean(p * log(p / q))``, p and q the similarities of a batch's samples, in rows that sum to 1.

    It includes no cross-entropy. The mean is over ``batch**2`` pairs: the published 30000 is for batches of 64, and
    the mean KL divergence of the rows is multiplied by ``weight / batch``.

    Args:
        weight: weight of `losses.pkt`.
        student_tap: tap of a feature ``(batch, width)``.
        teacher_tap: tap of a feature ``(batch, width)``.
    """
    term = Apply(losses.pkt, student_tap=student_tap, teacher_tap=teacher_tap, coupled=True)
    return objective_of(WeightedTerm("pkt", weight, term))


@preset("Tung and Mori 2019, arXiv:1907.09682")
def similarity(
    *, weight: Weight = 3000.0, student_tap: str = "card:stage.-1", teacher_tap: str = "card:stage.-1"
) -> Objective:
    """``weight / batch**2 * ||G_s - G_t||_F**2``, G the Gram matrix of a batch's features, its rows of length 1.

    It includes no cross-entropy. Published settings: CIFAR-100 3000, on the last stage.

    Args:
        weight: weight of `losses.similarity`.
        student_tap: tap of a feature of any shape.
        teacher_tap: tap of a feature of any shape.
    """
    term = Apply(losses.similarity, student_tap=student_tap, teacher_tap=teacher_tap, coupled=True)
    return objective_of(WeightedTerm("similarity", weight, term))


@preset("Peng et al. 2019, arXiv:1904.01802")
def correlation(
    *, weight: Weight = 0.02, dimension: int = 128, student_tap: str = EMBEDDING, teacher_tap: str = EMBEDDING
) -> Objective:
    """``weight / (batch - 1) * sum(|e[n]| * |e[n + 1]|)``, e the difference of the two networks' learned embeddings.

    It includes no cross-entropy. This is the form that benchmarks publish under the name: with a learned linear map on
    each network, even the teacher's, so that two maps to 0 would minimise it, and dependent on the order of the batch.
    The paper's form is `losses.correlation_kernel`.

    Args:
        weight: weight of `losses.correlation`.
        dimension: dimension of the embeddings.
        student_tap: tap of a feature ``(batch, width)``.
        teacher_tap: tap of a feature ``(batch, width)``.
    """
    term = Correlation(student_taps=(student_tap,), teacher_taps=(teacher_tap,), dimension=dimension)
    return objective_of(WeightedTerm("correlation", weight, term))
