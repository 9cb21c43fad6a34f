"""Methods that match features stage by stage: maps or tokens of vision transformers. None includes a cross-entropy."""

from __future__ import annotations

import functools
import math
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
from tutelage.objectives.term import STAGES, Apply, BindContext, BoundFeatures, FeatureTerm, WeightedTerm, paired
from tutelage.settings.objective import Names
from tutelage.settings.weights import Weight
from tutelage.types import Batch, Progress

MIMICKED, GENERATED = ("card:stage.0", "card:stage.1"), "card:stage.-1"
"""Taps of ViTKD."""


class _BoundVID(BoundFeatures):
    spec: VID

    def build(self, context: BindContext) -> None:
        (((student, *_), (teacher, *_)),) = self.spec.shapes(context, "map")
        first, second, third = (nn.Conv2d(width, teacher, 1, bias=False) for width in (student, teacher, teacher))
        self.regressor = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        # The inverse of softplus.
        above = self.spec.variance - self.spec.epsilon
        self.log_scale = nn.Parameter(torch.full((teacher,), above + math.log(-math.expm1(-above))))

    @property
    def variance(self) -> Tensor:
        """The variance of each of the teacher's channels."""
        return F.softplus(self.log_scale) + self.spec.epsilon

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        student_map, teacher_map = losses.same_size(student[0], teacher[0])
        return losses.vid(self.regressor(student_map), teacher_map, variance=self.variance)


@dataclass(frozen=True, kw_only=True)
class VID(FeatureTerm):
    """How well the student's map explains the teacher's (`losses.vid`): a learned mean, a learned variance per channel.

    The mean comes from three 1x1 convolutions without biases, with ReLUs between; the variance of a channel is
    ``softplus(log_scale) + epsilon``. The larger map is averaged down first.
    """

    module: ClassVar = _BoundVID
    one_pair: ClassVar = True
    variance: float = 5.0  # initial variance, above ``epsilon``
    epsilon: float = 1e-5  # least variance, above 0

    def _check(self) -> None:
        checks.positive(self.epsilon, "epsilon", example=1e-5)
        checks.positive(self.variance, "variance", example=5.0)
        if self.variance <= self.epsilon:
            raise InvalidValueError(
                "variance", f"a number above epsilon, {self.epsilon}", self.variance, "for example variance=5.0"
            )


@dataclass(frozen=True, kw_only=True)
class _TokenTerm(FeatureTerm):
    """Features ``(batch, tokens, width)`` of both networks, without the leading tokens."""

    prefix: int  # number of leading tokens that are not part of the image, such as the class token; ignored

    def _check(self) -> None:
        checks.whole_number(self.prefix, "prefix", example=1, minimum=0)

    def sizes(self, context: BindContext) -> list[tuple[int, int, int]]:
        """Return the number of tokens after the prefix, the student's width and the teacher's width for each tap."""
        sizes = []
        for tap, (student, teacher) in zip(self.student_taps, self.shapes(context), strict=True):
            if len(student) != 2 or len(teacher) != 2 or student[0] != teacher[0] or student[0] <= self.prefix:
                raise InvalidValueError(
                    f"tap {tap}",
                    f"features (batch, tokens, width) with as many tokens in both networks, more than {self.prefix}",
                    f"{student} and {teacher} without the batch",
                    "use two transformers with one patch size",
                )
            sizes.append((student[0] - self.prefix, student[1], teacher[1]))
        return sizes


def _align(student: int, teacher: int) -> nn.Module:
    return nn.Linear(student, teacher) if student != teacher else nn.Identity()


class _BoundMimic(BoundFeatures):
    spec: ViTKDMimic

    def build(self, context: BindContext) -> None:
        self.maps = nn.ModuleList(_align(student, teacher) for _, student, teacher in self.spec.sizes(context))

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        prefix = self.spec.prefix
        blocks = [
            losses.vitkd_mimic(align(student_tokens[:, prefix:]), teacher_tokens[:, prefix:])
            for align, student_tokens, teacher_tokens in zip(self.maps, student, teacher, strict=True)
        ]
        return torch.stack(blocks).sum(0)


@dataclass(frozen=True, kw_only=True)
class ViTKDMimic(_TokenTerm):
    """The student's tokens against the teacher's, block by block (`losses.vitkd_mimic`), summed over blocks.

    Each block has its own linear map onto the teacher's width, or none if the widths agree.
    """

    module: ClassVar = _BoundMimic


class _BoundGeneration(BoundFeatures):
    spec: ViTKDGeneration

    def build(self, context: BindContext) -> None:
        ((tokens, student, teacher),) = self.spec.sizes(context)
        prefix, self._side = self.spec.prefix, math.isqrt(tokens)
        if self._side**2 != tokens:
            raise InvalidValueError(
                "prefix",
                f"a number that leaves a square of the {tokens + prefix} tokens of tap {self.spec.student_taps[0]}",
                prefix,
                "type how many class tokens and registers the networks have",
            )
        self.align = _align(student, teacher)
        self.mask_token = nn.Parameter(torch.zeros(teacher))
        self.generation = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        prefix, masked = self.spec.prefix, self.spec.masked
        tokens = self.align(student[0][:, prefix:])
        hidden = losses.hide(torch.rand(tokens.shape[:2], device=tokens.device), masked=masked)
        tokens = torch.where(hidden[..., None], self.mask_token, tokens)
        grid = self.generation(tokens.transpose(1, 2).unflatten(2, (self._side, self._side)))
        generated = cast(Tensor, grid).flatten(2).transpose(1, 2)
        return losses.vitkd_generation(generated, teacher[0][:, prefix:], hidden, masked=masked)


@dataclass(frozen=True, kw_only=True)
class ViTKDGeneration(_TokenTerm):
    """The teacher's tokens, generated by two convolutions from some of the student's (`losses.vitkd_generation`).

    The hidden tokens are drawn for each sample and step from torch's generator on the features' device. The tokens
    after the prefix fill a square.
    """

    module: ClassVar = _BoundGeneration
    one_pair: ClassVar = True
    masked: float  # share of tokens that are hidden, above 0 and below 1

    def _check(self) -> None:
        super()._check()
        losses.hide(torch.zeros(1, 1), masked=self.masked)


@preset("Romero et al. 2015, arXiv:1412.6550")
def fitnet(
    *,
    weight: Weight = 100.0,
    projection: str = "regressor",
    student_tap: str = "card:stage.2",
    teacher_tap: str = "card:stage.2",
) -> Objective:
    """``weight * mean((r(f_s) - f_t)**2)``: one stage of the student is mapped onto the teacher's.

    It includes no cross-entropy. Published settings: CIFAR-100 100, with cross-entropy, in one stage: the hint is the
    second stage of blocks, which is ``card:stage.2`` as the stem is ``card:stage.0``.

    Args:
        weight: weight of the mean over all entries of the map.
        projection: kind of map: ``regressor`` (convolution, batch norm, ReLU), ``conv`` or ``connector``; or
            ``linear`` for embeddings. A regressor outputs nothing below 0: use it with features after a ReLU.
        student_tap: tap of a map.
        teacher_tap: tap of a map.

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

    It includes no cross-entropy. Published settings: CIFAR-100 1000, p 2; each stage is its own term. The larger map
    is averaged down.

    Args:
        weight: weight of each stage.
        p: power of the features, a whole number >= 1.
        distance: kind of distance: ``mean_square``, or the paper's ``norm``, whose beta is twice the weight.
        student_taps: taps of maps, one per stage.
        teacher_taps: as many taps.

    Differs from: the paper, whose norms are not squared. The published stages are all those after the stem.
    """
    attention = functools.partial(Apply, losses.attention_transfer, {"p": p, "distance": distance})
    pairs = paired(student_taps, teacher_taps)
    terms = [attention(student_tap=student, teacher_tap=teacher) for student, teacher in pairs]
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

    It includes no cross-entropy. Published settings: CIFAR-100 1; each stage is its own term, with a regressor of three
    1x1 convolutions. The published stages are all those after the stem: four for VGG, MobileNetV2 and ResNet50.

    Args:
        weight: weight of each stage.
        variance: initial variance, > epsilon.
        epsilon: least variance, > 0.
        student_taps: taps of maps, one per stage.
        teacher_taps: as many taps.

    Differs from: one public copy, which never trains the variance.
    """
    terms = [
        VID(student_taps=(student,), teacher_taps=(teacher,), variance=variance, epsilon=epsilon)
        for student, teacher in paired(student_taps, teacher_taps)
    ]
    return objective_of(*(WeightedTerm("vid", weight, term) for term in terms))


@preset("Yang et al. 2022, arXiv:2209.02432")
def vitkd(*, alpha: Weight = 3e-5, beta: Weight = 3e-6, masked: float = 0.5, prefix: int = 1) -> Objective:
    """``alpha * sum((A(s) - t)**2) + beta / masked * sum_hidden((G(s) - t)**2)``, on tokens of vision transformers.

    The first two blocks are mimicked, and the last is generated from the tokens that are not hidden. Blocks are the
    stages of the models' cards. It includes no cross-entropy.

    Args:
        alpha: weight of the mimicking term, a sum over tokens and width.
        beta: weight of the generation term, a sum over hidden tokens and width.
        masked: share of tokens that are hidden, > 0 and < 1.
        prefix: number of leading tokens that are not part of the image: the class token.
    """
    mimic = ViTKDMimic(student_taps=MIMICKED, teacher_taps=MIMICKED, prefix=prefix)
    generate = ViTKDGeneration(student_taps=(GENERATED,), teacher_taps=(GENERATED,), masked=masked, prefix=prefix)
    return objective_of(WeightedTerm("vitkd_mimic", alpha, mimic), WeightedTerm("vitkd_generation", beta, generate))
