"""Factor transfer: a teacher's map paraphrased into fewer channels, and a student's translated into as many."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage import checks, losses
from tutelage.objectives.stages import map_shapes
from tutelage.objectives.term import BindContext, present
from tutelage.types import Batch, Outputs, Progress, Requirements, Term

SLOPE = 0.1
"""Of the leaky ReLUs."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The distance between a student's and a teacher's factors, and how well the teacher's tells what it was made of.

    ``losses.factor_transfer(T(s), E(t)) + reconstruction * losses.hint(D(E(t)), t)``. The paraphraser ``E`` and ``D``
    learns from the second part alone, and the student and the translator ``T`` from the first alone.

    Attributes:
        student_tap: a map.
        teacher_tap: a map.
        rate: channels of the factors, as a share of the teacher's; above 0.
        p: power of the channels' mean.
        norm: of the difference.
        reconstruction: share of the paraphraser's own error, above 0.
    """

    student_tap: str
    teacher_tap: str
    rate: float = 0.5
    p: float = 2
    norm: float = 1
    reconstruction: float = 0.005

    def __post_init__(self) -> None:
        checks.positive(self.rate, "rate", example=0.5)
        checks.positive(self.reconstruction, "reconstruction", example=0.005)
        ones = torch.ones(1, 1, 1, 1)
        losses.factor_transfer(ones, ones, p=self.p, norm=self.norm)

    @property
    def needs(self) -> Requirements:
        """What it reads."""
        return Requirements(True, "none", False, (self.student_tap,), (self.teacher_tap,))

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the paraphraser and the translator.

        Raises:
            ValueError: the context lacks shapes, a feature is no map, or ``rate`` leaves no channel.
        """
        return _BoundFactors(self, context)


class _BoundFactors(nn.Module):
    def __init__(self, description: Factors, context: BindContext) -> None:
        super().__init__()
        self.needs = description.needs
        self._description = description
        (ours, *_), (theirs, *_) = map_shapes(context, description.student_tap, description.teacher_tap)
        width = int(theirs * description.rate)
        if width < 1:
            raise ValueError(
                f"rate: expected a number that leaves at least one of the {theirs} channels of the teacher's tap "
                f"{description.teacher_tap}, got {description.rate}; type for example rate=0.5"
            )
        self.encoder = _layers(nn.Conv2d, (theirs, theirs, width, width))
        self.decoder = _layers(nn.ConvTranspose2d, (width, width, theirs, theirs))
        self.translator = _layers(nn.Conv2d, (ours, ours, width, width))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        asked = self._description
        ours, theirs = student.taps[asked.student_tap], present(teacher).taps[asked.teacher_tap]
        factor = self.encoder(theirs)
        transfer = losses.factor_transfer(self.translator(ours), factor, p=asked.p, norm=asked.norm)
        return transfer + asked.reconstruction * losses.hint(self.decoder(factor), theirs)


def _layers(layer: Callable[..., nn.Module], widths: tuple[int, ...]) -> nn.Sequential:
    """Make 3x3 convolutions that keep the size, each with a batch norm and a leaky ReLU behind it.

    Without the batch norms a paraphraser that learns at a student's rate, 0.05, runs away within some forty steps.
    """
    made: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        made += [
            layer(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(SLOPE),
        ]
    return nn.Sequential(*made)
