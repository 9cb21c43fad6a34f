"""Curriculum temperature: a learned temperature that works against the student, more and more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage import checks, losses
from tutelage.objectives.term import BindContext, present
from tutelage.settings.weights import Schedule, weight_at
from tutelage.types import Batch, Outputs, Progress, Requirements, Term


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """A description of `losses.ctkd` at ``T = lowest + span * sigmoid(theta)`` with a learned ``theta``.

    ``theta`` gets its gradient multiplied by ``reversal``: below 0 it climbs where the student descends.

    Attributes:
        reversal: a number of either sign, or a schedule of them.
        lowest: below every temperature, above 0.
        span: of the temperatures, above 0.
        theta: where it starts.
    """

    reversal: float | Schedule
    lowest: float = 1.0
    span: float = 20.0
    theta: float = 1.0

    def __post_init__(self) -> None:
        checks.positive(self.lowest, "lowest", example=1.0)
        checks.positive(self.span, "span", example=20.0)

    @property
    def needs(self) -> Requirements:
        """The teacher."""
        return Requirements(True, "none")

    @property
    def target_gamma(self) -> None:
        """None: the temperature changes."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the term, its ``theta`` at the start."""
        return BoundCurriculum(self)


class BoundCurriculum(nn.Module):
    """A bound `Curriculum`.

    Attributes:
        theta: ``()``, the parameter that the temperature is made of; in checkpoints, and in the optimizer, whose weight
            decay it has as every parameter has.
    """

    def __init__(self, description: Curriculum) -> None:
        super().__init__()
        self.needs = description.needs
        self._description = description
        self.theta = nn.Parameter(torch.tensor(float(description.theta)))

    def temperature(self, theta: Tensor) -> Tensor:
        """Return ``T`` of a ``theta``, ``()``."""
        return self._description.lowest + self._description.span * theta.sigmoid()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        """Return the loss of each sample, ``(batch,)``."""
        theta = losses.scaled_gradient(self.theta, factor=weight_at(self._description.reversal, progress))
        return losses.ctkd(student.logits, present(teacher).logits, temperature=self.temperature(theta))
