"""Terms that make the teacher's maps of the student's by learned modules: knowledge review, masked generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage import checks, losses
from tutelage.objectives.term import BindContext, present, shape_of
from tutelage.types import Batch, Outputs, Progress, Requirements, Term

WIDEST = 512
"""At most as many channels are handed on from level to level."""
MASKS = ("channel", "position")


@dataclass(frozen=True, kw_only=True)
class Review:
    """The student's levels, each fused with the deeper ones, against the teacher's (`losses.review`), summed.

    Maps may have any sizes, and those of the networks may differ: they are found when the term is called. Features
    ``(batch, width)`` are maps of one pixel.

    Attributes:
        student_taps: levels, from the shallowest to the deepest.
        teacher_taps: as many, in the same order.
    """

    student_taps: tuple[str, ...]
    teacher_taps: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.student_taps) != len(self.teacher_taps):
            raise ValueError(
                f"teacher_taps: expected {len(self.student_taps)}, as many as student_taps, got "
                f"{len(self.teacher_taps)}; type one place of the teacher for each of the student"
            )

    @property
    def needs(self) -> Requirements:
        """What it reads. Its batch norm couples a batch no more than that of a network does."""
        return Requirements(True, "none", False, self.student_taps, self.teacher_taps, least=2)

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the modules.

        Raises:
            ValueError: the context lacks shapes, or a feature is neither ``(batch, width)`` nor a map.
        """
        return _BoundReview(self, context)


class _BoundReview(nn.Module):
    def __init__(self, description: Review, context: BindContext) -> None:
        super().__init__()
        self.needs = description.needs
        self._student, self._teacher = description.student_taps, description.teacher_taps
        self.fusion = Fusion(
            [_map(context, "student", tap)[0] for tap in self._student],
            [_map(context, "teacher", tap)[0] for tap in self._teacher],
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        ours = [_pixels(student.taps[tap]) for tap in self._student]
        theirs = [_pixels(present(teacher).taps[tap]) for tap in self._teacher]
        made = self.fusion(ours, [(each.shape[2], each.shape[3]) for each in theirs])
        return torch.stack([losses.review(*level) for level in zip(made, theirs, strict=True)]).sum(0)


class Fusion(nn.Module):
    """Makes a map for each level, from the deepest to the shallowest, of that level and what was fused before.

    A level's map is brought to ``mid = min(512, channels of the student's deepest level)`` channels, mixed with the
    deeper levels' by two learned weights a pixel, brought to the teacher's size, and from there to its channels. What
    is handed on is of the teacher's size already.

    Args:
        student: channels of the student's levels, from the shallowest to the deepest.
        teacher: the same of the teacher's.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        mid, deepest = min(WIDEST, student[-1]), len(student) - 1
        self.levels = nn.ModuleList(
            _Level(ours, mid, theirs, mixes=level < deepest)
            for level, (ours, theirs) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return a map of the teacher's shape for each level.

        Args:
            features: the student's maps, from the shallowest to the deepest.
            sizes: ``(height, width)`` of the teacher's.

        Raises:
            ValueError: a single sample has a level of one pixel in training: batch norm has no variance there.
        """
        if self.training and min(each.shape[0] * each.shape[2] * each.shape[3] for each in features) < 2:
            raise ValueError(
                "student_features: expected at least 2 samples in training where a level has one pixel, for batch "
                "norm's variance, got 1; type another batch_size, or leave card:embedding out of the taps"
            )
        made: list[Tensor] = []
        deeper: Tensor | None = None
        for level, feature, size in zip(reversed(self.levels), reversed(features), reversed(sizes), strict=True):
            result, deeper = level(feature, deeper, size)
            made.insert(0, result)
        return made


class _Level(nn.Module):
    def __init__(self, student: int, mid: int, teacher: int, *, mixes: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(student, mid, 1, bias=False), nn.BatchNorm2d(mid))
        self.leave = nn.Sequential(nn.Conv2d(mid, teacher, 3, padding=1, bias=False), nn.BatchNorm2d(teacher))
        self.mix = nn.Conv2d(2 * mid, 2, 1) if mixes else None
        for convolution in (self.enter[0], self.leave[0]):
            # The bound sqrt(3 / fan_in): a variance of 1 / fan_in.
            nn.init.kaiming_uniform_(cast(Tensor, convolution.weight), a=1)

    def forward(self, feature: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        ours = self.enter(feature)
        if self.mix is not None:
            theirs = F.interpolate(cast(Tensor, deeper), ours.shape[2:], mode="nearest")
            shares = self.mix(torch.cat([ours, theirs], dim=1)).sigmoid()
            ours = ours * shares[:, :1] + theirs * shares[:, 1:]
        if ours.shape[2:] != size:
            ours = F.interpolate(ours, size, mode="nearest")
        return self.leave(ours), ours


@dataclass(frozen=True, kw_only=True)
class Masked:
    """The teacher's map, made by two convolutions of the student's after a part of it was masked (`losses.mgd`).

    The mask is drawn anew for each sample and step from torch's generator of the features' device.

    Attributes:
        student_tap: a map.
        teacher_tap: a map of the same height and width.
        masked: probability that a channel, or a position, of a sample is set to 0, in [0, 1).
        mask: ``channel`` or ``position``: what is masked at once.
    """

    student_tap: str
    teacher_tap: str
    masked: float
    mask: str = "channel"

    def __post_init__(self) -> None:
        checks.fraction(self.masked, "masked", example=0.15)
        if self.mask not in MASKS:
            raise ValueError(f"mask: expected {' or '.join(MASKS)}, got {self.mask!r}; type for example mask=channel")

    @property
    def needs(self) -> Requirements:
        """What it reads."""
        return Requirements(True, "none", False, (self.student_tap,), (self.teacher_tap,))

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the convolutions.

        Raises:
            ValueError: the context lacks shapes, or the features are no maps of one height and width.
        """
        return _BoundMasked(self, context)


class _BoundMasked(nn.Module):
    def __init__(self, description: Masked, context: BindContext) -> None:
        super().__init__()
        self.needs = description.needs
        self._description = description
        ours = _map(context, "student", description.student_tap)
        theirs = _map(context, "teacher", description.teacher_tap)
        if ours[1:] != theirs[1:]:
            raise ValueError(
                f"tap {description.student_tap}: expected a map of the height and width of the teacher's "
                f"{description.teacher_tap}, {theirs[1:]}, got {ours[1:]}; name taps where the two agree"
            )
        self.remake = Remake(ours[0], theirs[0])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        asked = self._description
        ours, theirs = (
            _pixels(student.taps[asked.student_tap]),
            _pixels(present(teacher).taps[asked.teacher_tap]),
        )
        count, channels, height, width = theirs.shape
        shape = (count, channels, 1, 1) if asked.mask == "channel" else (count, 1, height, width)
        hidden = torch.rand(shape, device=ours.device) < asked.masked
        return losses.mgd(self.remake(ours, hidden), theirs)


class Remake(nn.Module):
    """Makes the teacher's map of a masked one of the student's: convolution, ReLU, convolution.

    A 1x1 convolution brings the student's to the teacher's channels first, where they differ; its output is masked.

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
            features: ``(batch, student, height, width)``.
            hidden: bool, a shape that goes with the returned one: true where the map is set to 0.
        """
        return cast(Tensor, self.generation(self.align(features).masked_fill(hidden, 0.0)))


def _map(context: BindContext, who: Literal["student", "teacher"], tap: str) -> tuple[int, int, int]:
    """Return channels, height and width of a tap."""
    shape = shape_of(context, who, tap)
    if len(shape) not in (1, 3):
        raise ValueError(
            f"tap {tap}: expected features (batch, channels, height, width) or (batch, width) of the {who}, got "
            f"{shape} without the batch; name a stage of a convolutional network, such as card:stage.-1"
        )
    channels, height, width = shape if len(shape) == 3 else (*shape, 1, 1)
    return channels, height, width


def _pixels(features: Tensor) -> Tensor:
    """Return features ``(batch, width)`` as maps of one pixel, and maps as they are."""
    return features[:, :, None, None] if features.ndim == 2 else features
