"""Methods that use more of the teacher than its features: its head, its batch norms, its class means.

The teacher's values are in non-persistent buffers, read again whenever a term is bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage import losses
from tutelage.errors import InvalidValueError
from tutelage.objectives import projectors
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import (
    BEFORE,
    EMBEDDING,
    Apply,
    BindContext,
    BoundFeatures,
    FeatureTerm,
    WeightedTerm,
    missing,
    shape_of,
)
from tutelage.settings.objective import Names
from tutelage.settings.weights import Weight
from tutelage.types import Batch, Progress, Projection, Requirements

AS_TAPS = ("auto",)


def _connector(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, nn.BatchNorm2d(outputs)


class _BoundSRRL(BoundFeatures):
    spec: SRRL
    weight: Tensor
    bias: Tensor | None

    def build(self, context: BindContext) -> None:
        if context.teacher_head is None:
            raise missing("teacher_head, the weights of the teacher's last layer")
        weight, bias = context.teacher_head
        (student_tap,), (teacher_tap,) = self.spec.student_taps, self.spec.teacher_taps
        channels, *size = shape_of(context, "teacher", teacher_tap)
        if len(size) not in (0, 2) or channels != weight.shape[1]:
            expected = f"the {weight.shape[1]} channels that the teacher's head reads"
            instead = "type teacher_tap=card:embedding"
            raise InvalidValueError(f"tap {teacher_tap}", expected, f"{(channels, *size)} without the batch", instead)
        self.connector = nn.Sequential(
            *_connector(shape_of(context, "student", student_tap, "map")[0], channels), nn.ReLU()
        )
        self.register_buffer("weight", weight.detach().clone(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        mapped = self.connector(student[0])
        regression = losses.srrl_regression(mapped, teacher[0], weight=self.weight, bias=self.bias)
        return losses.srrl_statistics(mapped, teacher[0]) + self.spec.regression * regression


@dataclass(frozen=True, kw_only=True)
class SRRL(FeatureTerm):
    """Pooled features against the teacher's, before and after its head.

    ``losses.srrl_statistics + regression * losses.srrl_regression``. The student's map goes through a 1x1 convolution
    without a bias, a batch norm and a ReLU onto the teacher's channels, then the pooling. The teacher's tap is its
    head's input, ``(batch, width)``, or a map with that mean.
    """

    module: ClassVar = _BoundSRRL
    one_pair: ClassVar = True
    base_needs: ClassVar = Requirements(teacher=True, labels="none", teacher_head=True)
    regression: float  # weight of the second term within the sum, finite and at least 0

    def _check(self) -> None:
        if not 0 <= self.regression < math.inf:
            raise InvalidValueError("regression", "a finite number >= 0", self.regression, "type regression=1.0")


class _BoundOFD(BoundFeatures):
    def build(self, context: BindContext) -> None:
        self.connectors = nn.ModuleList()
        pairs = zip(self.spec.student_taps, self.spec.teacher_taps, self.needs.teacher_norms, strict=True)
        for level, (tap, teacher_tap, norm) in enumerate(pairs):
            if norm not in context.teacher_norms:
                raise missing(f"teacher_norms, the teacher's batch norm at {norm}")
            channels, *size = shape_of(context, "teacher", teacher_tap, "map")
            margins = losses.ofd_margins(*context.teacher_norms[norm])
            if len(margins) != channels:
                expected = f"a batch norm of the {channels} channels of the teacher's tap {teacher_tap}"
                raise InvalidValueError("norms", expected, f"one of {len(margins)} at {norm}", "name another")
            student_channels, *student_size = shape_of(context, "student", tap, "map")
            if any(side > limit for side, limit in zip(student_size, size, strict=True)):
                expected = f"a map of the student no larger than {tuple(size)}, as the teacher's tap {teacher_tap}"
                instead = "name a later tap of the student or an earlier one of the teacher"
                raise InvalidValueError(f"tap {tap}", expected, tuple(student_size), instead)
            self.connectors.append(nn.Sequential(*_connector(student_channels, channels)))
            self.register_buffer(f"margins_{level}", margins, persistent=False)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        levels = []
        for level, (connector, features, target) in enumerate(zip(self.connectors, student, teacher, strict=True)):
            mapped = connector(features)
            if target.shape != mapped.shape:
                target = F.adaptive_avg_pool2d(target, (mapped.shape[-2], mapped.shape[-1]))
            margins = cast(Tensor, getattr(self, f"margins_{level}"))
            levels.append(losses.ofd(mapped, target, margins=margins) / 2 ** (len(student) - level - 1))
        return torch.stack(levels).sum(0)


@dataclass(frozen=True, kw_only=True)
class OFD(FeatureTerm):
    """Maps before their activation against the teacher's, above a margin per channel (`losses.ofd`), summed over taps.

    The last tap counts in full, each earlier one half as much as the next. A 1x1 convolution without a bias and a
    batch norm map each of the student's maps onto the teacher's channels; a larger map of the teacher is averaged down
    to the student's size.
    """

    module: ClassVar = _BoundOFD
    # the teacher's batch norms that the margins come from, one per tap; None to find them by ``teacher_taps``
    norms: tuple[str, ...] = ()

    def _check(self) -> None:
        if len(self.norms) not in (0, len(self.student_taps)):
            expected = f"{len(self.student_taps)} names, as many as student_taps"
            instead = "name one of the teacher for each of the student"
            raise InvalidValueError("norms", expected, len(self.norms), instead)

    @property
    def needs(self) -> Requirements:
        """The requirements of the term."""
        return replace(super().needs, teacher_norms=self.norms or self.teacher_taps)


class _BoundNormDirection(BoundFeatures):
    class_means: Tensor

    def build(self, context: BindContext) -> None:
        self.student_features = (projectors.name(self.needs.projections[0]),)
        (tap,) = self.spec.teacher_taps
        if tap not in context.class_means:
            raise missing(f"class_means, the teacher's class means of tap {tap}", ", class_means={name: means}")
        self.register_buffer("class_means", context.class_means[tap].detach().clone(), persistent=False)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        return losses.norm_direction(student[0], teacher[0], batch.labels, class_means=self.class_means)


@dataclass(frozen=True, kw_only=True)
class NormDirection(FeatureTerm):
    """An embedding's norm and direction against the teacher's class means (`losses.norm_direction`).

    Features are ``(batch, width)``; a linear map takes the student's to the teacher's width if they differ.
    """

    module: ClassVar = _BoundNormDirection
    one_pair: ClassVar = True

    @property
    def needs(self) -> Requirements:
        """The requirements of the term."""
        projection = Projection(self.student_taps[0], self.teacher_taps[0], "linear", always=False)
        return replace(super().needs, labels="index", projections=(projection,), class_means=self.teacher_taps)


@preset("Yang et al. 2021, ICLR")
def srrl(
    *, weight: Weight = 1.0, regression: float = 1.0, student_tap: str = "card:stage.-1", teacher_tap: str = EMBEDDING
) -> Objective:
    """``weight * (mean((s - t)**2) + regression * mean((h(s) - h(t))**2))``: h is the teacher's head, frozen.

    Features are pooled; the student's map always goes through a 1x1 convolution, a batch norm and a ReLU first. It
    includes no cross-entropy: ``cross_entropy() + srrl()``. Published settings: 1 and 1, on ImageNet too.

    Args:
        weight: weight of the sum.
        regression: weight of the second term within it.
        student_tap: tap of a map.
        teacher_tap: tap of the input of the teacher's head, or of a map with that mean.
    """
    term = SRRL(student_taps=(student_tap,), teacher_taps=(teacher_tap,), regression=regression)
    return objective_of(WeightedTerm("srrl", weight, term))


@preset("Heo et al. 2019, arXiv:1904.01866")
def ofd(
    *, weight: Weight = 1e-3, student_taps: Names = BEFORE, teacher_taps: Names = BEFORE, norms: Names = AS_TAPS
) -> Objective:
    """``weight * sum_l 2**(l - L + 1) * sum(d(s_l, max(t_l, m_l)))``: maps before their activation, above a margin m.

    ``d(s, u)`` is ``(s - u)**2`` where the teacher is above 0 or ``s > u``, else 0; summed over channels and pixels.
    The taps count from 0 to L - 1. It includes no cross-entropy. Published settings: 1e-3 on CIFAR-100; on ImageNet
    1e-4 or 1e-5, depending on the architecture.

    Args:
        weight: weight of the sum over taps.
        student_taps: taps of maps before their activation; the published ones are all stages after the stem, of which a
            card with more than three stages names more than these.
        teacher_taps: as many taps of the teacher.
        norms: teacher's batch norms whose weights give the margins, one per tap; ``auto`` finds them by the teacher's
            taps.
    """
    names = () if norms == AS_TAPS else tuple(norms)
    term = OFD(student_taps=tuple(student_taps), teacher_taps=tuple(teacher_taps), norms=names)
    return objective_of(WeightedTerm("ofd", weight, term))


@preset("Wang et al. 2023, arXiv:2305.17007")
def kd_plus_plus(
    *,
    temperature: float = 4.0,
    weight: Weight = 1.0,
    norm_direction: Weight = 2.0,
    supervised: Weight = 1.0,
    student_tap: str = EMBEDDING,
    teacher_tap: str = EMBEDDING,
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * KL(p_T || q_T) + norm_direction * (1 - <s, c/|c|> / max(|s|, |t|))``.

    c is the teacher's mean embedding of the sample's class, over the training samples. A linear map takes the student's
    embedding to the teacher's width if they differ.

    Published settings: CIFAR-100 by pair, weight 1 to 4 and norm_direction 0.5 to 2, here those for ResNet56 to
    ResNet20; ImageNet 2.5 and 1, or 4 and 1. The authors' code raises the weight over 20 epochs: type
    ``weight={schedule: warm_up, value: 1.0, epochs: 20}``, although there the first epoch has 0.

    Args:
        temperature: T > 0, on both sides.
        weight: weight of the KL, whose ``T**2`` is unconditional.
        norm_direction: weight of the term on the embedding's norm and direction.
        supervised: weight of the cross-entropy.
        student_tap: tap of a feature ``(batch, width)``.
        teacher_tap: tap of a feature ``(batch, width)``.
    """
    match = Apply(losses.kd, {"temperature": temperature}, target_gamma=1 / temperature if temperature else None)
    direction = NormDirection(student_taps=(student_tap,), teacher_taps=(teacher_tap,))
    parts = (WeightedTerm("kd", weight, match), WeightedTerm("norm_direction", norm_direction, direction))
    return objective_of(supervised_part(supervised), *parts)
