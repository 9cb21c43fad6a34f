"""Methods that generate the teacher's maps from the student's by learned modules. None includes a cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage import checks, losses
from tutelage.errors import InvalidValueError
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset
from tutelage.objectives.term import BEFORE, EMBEDDING, BindContext, BoundFeatures, FeatureTerm, WeightedTerm
from tutelage.settings.objective import Names
from tutelage.settings.weights import Weight
from tutelage.types import Batch, Progress, Requirements

LEVELS = (*BEFORE, EMBEDDING)
WIDEST = 512
"""Largest number of channels passed from level to level."""
MASKS = ("channel", "position")


class Fusion(nn.Module):
    """Generates a map for each level, from the deepest to the shallowest, out of that level and those already fused.

    A level's map is brought to ``mid = min(512, channels of the student's deepest level)`` channels, mixed with the
    deeper levels' by two learned weights per pixel, brought to the teacher's size, and finally to its channels. The map
    that is passed on already has the teacher's size.

    Args:
        student: channels of the student's levels, from the shallowest to the deepest.
        teacher: channels of the teacher's levels, likewise.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        mid, deepest = min(WIDEST, student[-1]), len(student) - 1
        self.levels = nn.ModuleList(
            _Level(student_channels, mid, teacher_channels, mixes=level < deepest)
            for level, (student_channels, teacher_channels) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return a map of the teacher's shape for each level.

        Args:
            features: student's maps, from the shallowest to the deepest.
            sizes: sizes ``(height, width)`` of the teacher's maps.

        Raises:
            ValueError: if a single sample has a level of one pixel in training, where batch norm has no variance.
        """
        if self.training and min(maps.shape[0] * maps.shape[2] * maps.shape[3] for maps in features) < 2:
            expected = "at least 2 samples in training where a level has one pixel, for batch norm's variance"
            instead = "type another batch_size, or leave card:embedding out of the taps"
            raise InvalidValueError("student_features", expected, "1", instead)
        fused: list[Tensor] = []
        deeper: Tensor | None = None
        for level, feature, size in zip(reversed(self.levels), reversed(features), reversed(sizes), strict=True):
            result, deeper = level(feature, deeper, size)
            fused.insert(0, result)
        return fused


class _Level(nn.Module):
    def __init__(self, student: int, mid: int, teacher: int, *, mixes: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(student, mid, 1, bias=False), nn.BatchNorm2d(mid))
        self.leave = nn.Sequential(nn.Conv2d(mid, teacher, 3, padding=1, bias=False), nn.BatchNorm2d(teacher))
        self.mix = nn.Conv2d(2 * mid, 2, 1) if mixes else None
        for convolution in (self.enter[0], self.leave[0]):
            # The bound sqrt(3 / fan_in) gives a variance of 1 / fan_in.
            nn.init.kaiming_uniform_(cast(Tensor, convolution.weight), a=1)

    def forward(self, feature: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        level = self.enter(feature)
        if self.mix is not None:
            deeper = F.interpolate(cast(Tensor, deeper), level.shape[2:], mode="nearest")
            shares = self.mix(torch.cat([level, deeper], dim=1)).sigmoid()
            level = level * shares[:, :1] + deeper * shares[:, 1:]
        if level.shape[2:] != size:
            level = F.interpolate(level, size, mode="nearest")
        return self.leave(level), level


class _BoundReviewKD(BoundFeatures):
    def build(self, context: BindContext) -> None:
        student, teacher = zip(*self.spec.shapes(context, "map or embedding"), strict=True)
        self.fusion = Fusion([shape[0] for shape in student], [shape[0] for shape in teacher])

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        targets = [_as_map(features) for features in teacher]
        fused = self.fusion([_as_map(features) for features in student], [tuple(t.shape[2:]) for t in targets])
        return torch.stack([losses.review(*level) for level in zip(fused, targets, strict=True)]).sum(0)


@dataclass(frozen=True, kw_only=True)
class ReviewKD(FeatureTerm):
    """The student's levels, each fused with the deeper ones, against the teacher's (`losses.review`), summed.

    Taps are levels, from the shallowest to the deepest. Maps may have any sizes, and the networks' may differ:
    sizes are read when the term is called. Features ``(batch, width)`` are maps of one pixel.
    """

    module: ClassVar = _BoundReviewKD
    # Its batch norm couples a batch no more than a network's does.
    base_needs: ClassVar = Requirements(teacher=True, labels="none", min_batch=2)


class Generation(nn.Module):
    """Generates the teacher's map from a masked one of the student's: convolution, ReLU, convolution.

    If the channels differ, a 1x1 convolution first maps the student's to the teacher's; its output is masked.

    Args:
        student: channels of the student's map.
        teacher: channels of the teacher's.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.align = nn.Conv2d(student, teacher, 1) if student != teacher else nn.Identity()
        self.generation = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        """Return ``(batch, teacher, height, width)``.

        Args:
            features: student's map, ``(batch, student, height, width)``.
            hidden: mask, bool, broadcast to the returned shape: true where the map is set to 0.
        """
        return cast(Tensor, self.generation(self.align(features).masked_fill(hidden, 0.0)))


class _BoundMGD(BoundFeatures):
    spec: MGD

    def build(self, context: BindContext) -> None:
        (shapes,) = self.spec.shapes(context, "map or embedding")
        (student, *student_size), (teacher, *teacher_size) = ((*shape, 1, 1)[:3] for shape in shapes)
        if student_size != teacher_size:
            raise InvalidValueError(
                f"tap {self.spec.student_taps[0]}",
                f"a map of the height and width of the teacher's {self.spec.teacher_taps[0]}, {tuple(teacher_size)}",
                tuple(student_size),
                "name taps where the two agree",
            )
        self.remake = Generation(student, teacher)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        target = _as_map(teacher[0])
        samples, channels, height, width = target.shape
        shape = (samples, channels, 1, 1) if self.spec.mask == "channel" else (samples, 1, height, width)
        hidden = torch.rand(shape, device=student[0].device) < self.spec.masked
        return losses.mgd(self.remake(_as_map(student[0]), hidden), target)


@dataclass(frozen=True, kw_only=True)
class MGD(FeatureTerm):
    """The teacher's map, generated by two convolutions from the partly masked map of the student (`losses.mgd`).

    The maps have equal height and width. The mask is drawn for each sample and step from torch's generator on the
    features' device.
    """

    module: ClassVar = _BoundMGD
    one_pair: ClassVar = True
    masked: float  # probability that a channel, or a position, of a sample is set to 0, in [0, 1)
    mask: str = "channel"  # unit of masking: ``channel`` or ``position``

    def _check(self) -> None:
        checks.fraction(self.masked, "masked", example=0.15)
        if self.mask not in MASKS:
            raise InvalidValueError("mask", " or ".join(MASKS), repr(self.mask), "for example mask=channel")


def _as_map(features: Tensor) -> Tensor:
    """Return features ``(batch, width)`` as maps of one pixel, and maps unchanged."""
    return features[:, :, None, None] if features.ndim == 2 else features


@preset("Chen et al. 2021, arXiv:2104.09044")
def reviewkd(*, weight: Weight = 1.0, student_taps: Names = LEVELS, teacher_taps: Names = LEVELS) -> Objective:
    """``weight * sum_l hcl(F_l(f_s[l], ..., f_s[L]), f_t[l])``: each level, fused with the deeper ones.

    The fusing modules follow from the features' shapes and are trained. It includes no cross-entropy; published
    results add it with a weight of 1.

    Published weights on CIFAR-100: 0.6 for resnet56/resnet20; 1 for resnet110/resnet32; 5 for resnet32x4 with
    resnet8x4 and ShuffleNetV1, for WRN-40-2 with WRN-16-2, WRN-40-1 and ShuffleNetV1; 8 for resnet32x4 with
    ShuffleNetV2. On ImageNet: 1 for ResNet34/ResNet18, 8 for ResNet50/MobileNetV1. On CIFAR-100 they were warmed up
    over 20 epochs: ``weight=WarmUp(5.0, epochs=20)``.

    Args:
        weight: weight of the sum over levels.
        student_taps: taps of levels, from the shallowest to the deepest: maps, or a pooled embedding as one pixel.
        teacher_taps: as many taps. Sizes and channels may differ.

    Maps are taken before their activation, as in published results; those of a ShuffleNet student were taken after
    it: ``student_taps=("card:stage.-3", "card:stage.-2", "card:stage.-1", "card:embedding")``.

    Differs from: public code, where the shapes are written by hand for each pair, and where the warm-up counts epochs
    from 0, so that the first has a weight of 0; `WarmUp` counts from 1.
    """
    return objective_of(
        WeightedTerm("reviewkd", weight, ReviewKD(student_taps=tuple(student_taps), teacher_taps=tuple(teacher_taps)))
    )


@preset("Yang et al. 2022, arXiv:2205.01529")
def mgd(
    *,
    weight: Weight = 7e-5,
    masked: float = 0.15,
    mask: str = "channel",
    student_tap: str = "card:stage.-1",
    teacher_tap: str = "card:stage.-1",
) -> Objective:
    """``weight * sum((G(M * A(f_s)) - f_t)**2)``: the teacher's last map, generated from part of the student's.

    The defaults are the paper's and its code's for classification on ImageNet, for both ResNet34/ResNet18 and
    ResNet50/MobileNetV1; none were published for CIFAR-100. It includes no cross-entropy; published results add it with
    a weight of 1.

    Args:
        weight: weight of a sum over channels and pixels, the paper's alpha: a larger map needs a smaller one.
        masked: probability (the paper's lambda) that a channel, or a position, of a sample is set to 0, in [0, 1).
        mask: unit of masking: ``channel``, as in the published code for classification; or ``position``, the pixels,
            as in the paper and its code for detection and segmentation.
        student_tap: tap of a map.
        teacher_tap: tap of a map of the same height and width.
    """
    term = MGD(student_taps=(student_tap,), teacher_taps=(teacher_tap,), masked=masked, mask=mask)
    return objective_of(WeightedTerm("mgd", weight, term))
