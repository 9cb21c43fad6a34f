"""Terms on tokens of vision transformers: blocks that are mimicked, and one that is made again from a part of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tutelage import losses
from tutelage.objectives.term import BindContext, present, shape_of
from tutelage.types import Batch, Outputs, Progress, Requirements, Term


@dataclass(frozen=True, kw_only=True)
class Mimic:
    """The student's tokens against the teacher's, block by block (`losses.vitkd_mimic`), summed over blocks.

    Each block has a linear map of its own onto the teacher's width, none where the widths agree.

    Attributes:
        taps: features ``(batch, tokens, width)`` of both networks.
        prefix: tokens in front that are no place of the image, such as the class token; they are left out.
    """

    taps: tuple[str, ...]
    prefix: int

    def __post_init__(self) -> None:
        _check_prefix(self.prefix)

    @property
    def needs(self) -> Requirements:
        """What it reads."""
        return Requirements(True, "none", False, self.taps, self.taps)

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the maps."""
        return _BoundMimic(self, context)


class _BoundMimic(nn.Module):
    def __init__(self, description: Mimic, context: BindContext) -> None:
        super().__init__()
        self.needs = description.needs
        self._taps, self._prefix = description.taps, description.prefix
        self.maps = nn.ModuleList(_Tokens.of(context, tap, description.prefix).aligned() for tap in description.taps)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        blocks = [
            losses.vitkd_mimic(
                align(student.taps[tap][:, self._prefix :]), present(teacher).taps[tap][:, self._prefix :]
            )
            for tap, align in zip(self._taps, self.maps, strict=True)
        ]
        return torch.stack(blocks).sum(0)


@dataclass(frozen=True, kw_only=True)
class Generate:
    """The teacher's tokens, made by two convolutions from a part of the student's (`losses.vitkd_generation`).

    The hidden tokens are drawn anew for each sample and step from torch's generator of the features' device.

    Attributes:
        tap: a feature ``(batch, tokens, width)`` of both networks.
        masked: share of the tokens that is hidden, above 0 and below 1.
        prefix: tokens in front that are left out; those behind them fill a square.
    """

    tap: str
    masked: float
    prefix: int

    def __post_init__(self) -> None:
        _check_prefix(self.prefix)
        losses.hide(torch.zeros(1, 1), masked=self.masked)

    @property
    def needs(self) -> Requirements:
        """What it reads."""
        return Requirements(True, "none", False, (self.tap,), (self.tap,))

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the map and the convolutions."""
        return _BoundGenerate(self, context)


class _BoundGenerate(nn.Module):
    def __init__(self, description: Generate, context: BindContext) -> None:
        super().__init__()
        self.needs = description.needs
        self._tap, self._masked, self._prefix = description.tap, description.masked, description.prefix
        tokens = _Tokens.of(context, description.tap, description.prefix)
        self._side = math.isqrt(tokens.count)
        if self._side**2 != tokens.count:
            raise ValueError(
                f"prefix: expected a number that leaves a square of the {tokens.count + self._prefix} tokens of tap "
                f"{self._tap}, got {self._prefix}; type how many class tokens and registers the networks have"
            )
        self.align = tokens.aligned()
        self.mask_token = nn.Parameter(torch.zeros(tokens.teacher))
        self.generation = nn.Sequential(
            nn.Conv2d(tokens.teacher, tokens.teacher, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(tokens.teacher, tokens.teacher, 3, padding=1),
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        tokens = self.align(student.taps[self._tap][:, self._prefix :])
        hidden = losses.hide(torch.rand(tokens.shape[:2], device=tokens.device), masked=self._masked)
        shown = torch.where(hidden[..., None], self.mask_token, tokens)
        grid = self.generation(shown.transpose(1, 2).unflatten(2, (self._side, self._side)))
        made = cast(Tensor, grid).flatten(2).transpose(1, 2)
        theirs = present(teacher).taps[self._tap][:, self._prefix :]
        return losses.vitkd_generation(made, theirs, hidden, masked=self._masked)


@dataclass(frozen=True)
class _Tokens:
    """How many tokens a tap has behind its prefix, and their widths."""

    count: int
    student: int
    teacher: int

    @classmethod
    def of(cls, context: BindContext, tap: str, prefix: int) -> _Tokens:
        student, teacher = shape_of(context, "student", tap), shape_of(context, "teacher", tap)
        if len(student) != 2 or len(teacher) != 2 or student[0] != teacher[0] or student[0] <= prefix:
            raise ValueError(
                f"tap {tap}: expected features (batch, tokens, width) with as many tokens in both networks, more than "
                f"{prefix}, got {student} and {teacher} without the batch; use two transformers with one patch size"
            )
        return cls(student[0] - prefix, student[1], teacher[1])

    def aligned(self) -> nn.Module:
        return nn.Linear(self.student, self.teacher) if self.student != self.teacher else nn.Identity()


def _check_prefix(prefix: int) -> None:
    if isinstance(prefix, bool) or not isinstance(prefix, int) or prefix < 0:
        raise ValueError(f"prefix: expected a whole number >= 0, got {prefix!r}; for example prefix=1")
