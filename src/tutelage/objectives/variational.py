"""Variational information distillation: a learned Gaussian around what a student's map says of a teacher's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage import checks, losses
from tutelage.objectives.stages import map_shapes
from tutelage.objectives.term import BindContext, present
from tutelage.types import Batch, Outputs, Progress, Requirements, Term


@dataclass(frozen=True, kw_only=True)
class Variational:
    """How well the student's map explains the teacher's (`losses.vid`): a learned mean, a learned variance a channel.

    The mean is made by three 1x1 convolutions without biases, with ReLUs between; the variance of a channel is
    ``softplus(log_scale) + epsilon``. The larger map is averaged down first.

    Attributes:
        student_tap: a map.
        teacher_tap: a map.
        variance: at the start, above ``epsilon``.
        epsilon: the least variance, above 0.
    """

    student_tap: str
    teacher_tap: str
    variance: float = 5.0
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        checks.positive(self.epsilon, "epsilon", example=1e-5)
        checks.positive(self.variance, "variance", example=5.0)
        if self.variance <= self.epsilon:
            raise ValueError(
                f"variance: expected a number above epsilon, {self.epsilon}, got {self.variance}; "
                "type for example variance=5.0"
            )

    @property
    def needs(self) -> Requirements:
        """What it reads."""
        return Requirements(True, "none", False, (self.student_tap,), (self.teacher_tap,))

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the regressor.

        Raises:
            ValueError: the context lacks shapes, or a feature is no map.
        """
        return _BoundVariational(self, context)


class _BoundVariational(nn.Module):
    def __init__(self, description: Variational, context: BindContext) -> None:
        super().__init__()
        self.needs = description.needs
        self._student_tap, self._teacher_tap = description.student_tap, description.teacher_tap
        self._epsilon = description.epsilon
        ours, theirs = map_shapes(context, description.student_tap, description.teacher_tap)
        self.regressor = nn.Sequential(
            nn.Conv2d(ours[0], theirs[0], 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(theirs[0], theirs[0], 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(theirs[0], theirs[0], 1, bias=False),
        )
        # The inverse of softplus.
        above = description.variance - description.epsilon
        self.log_scale = nn.Parameter(torch.full((theirs[0],), above + math.log(-math.expm1(-above))))

    @property
    def variance(self) -> Tensor:
        """Return the variance of each of the teacher's channels."""
        return F.softplus(self.log_scale) + self._epsilon

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        ours, theirs = losses.same_size(student.taps[self._student_tap], present(teacher).taps[self._teacher_tap])
        return losses.vid(self.regressor(ours), theirs, variance=self.variance)
