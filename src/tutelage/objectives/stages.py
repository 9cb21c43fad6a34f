"""A term on several stages at once: what a loss reads as lists of maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.objectives.term import BindContext, present, shape_of
from tutelage.types import Batch, Outputs, Progress, Requirements, Term

LARGEST = 256
"""Channels and places of the maps that a loss is tried on, at most."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """A pure loss of two lists of maps, one of each network, such as `losses.fsp` and `losses.kd_svd`.

    Attributes:
        loss: takes the student's maps and the teacher's.
        arguments: its keyword arguments.
        student_taps: of maps, at least two, in the order of the stages.
        teacher_taps: as many.
    """

    loss: Callable[..., Tensor]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    student_taps: tuple[str, ...]
    teacher_taps: tuple[str, ...]

    def __post_init__(self) -> None:
        pairs = paired(self.student_taps, self.teacher_taps)
        if len(pairs) < 2:
            raise ValueError(
                f"student_taps: expected at least 2 stages, which are compared with the next, got {len(pairs)}; "
                "for example student_taps=[card:stage.-2, card:stage.-1]"
            )
        # The loss alone knows what its hyperparameters may be. A count of anything is bounded by the maps' sizes.
        counts = [value for value in self.arguments.values() if isinstance(value, int)]
        side = min(max(4, *counts), LARGEST) if counts else 4
        ones = [torch.ones(1, side, side, 1)] * 2
        self.loss(ones, ones, **self.arguments)

    @property
    def needs(self) -> Requirements:
        """What it reads."""
        return Requirements(True, "none", False, self.student_taps, self.teacher_taps)

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the term.

        Raises:
            ValueError: the context lacks shapes, a feature is no map, or two of a stage differ in their channels.
        """
        shapes = []
        for student, teacher in paired(self.student_taps, self.teacher_taps):
            ours, theirs = map_shapes(context, student, teacher)
            shapes.append((ours, theirs))
            if ours[0] != theirs[0]:
                raise ValueError(
                    f"tap {student}: expected as many channels as the teacher's tap {teacher}, {theirs[0]}, got "
                    f"{ours[0]}; this method has no learned map: name stages of equal width, or take another objective"
                )
        # What these maps are too small for is known before training.
        self.loss(*([torch.zeros(1, *shape) for shape in each] for each in zip(*shapes, strict=True)), **self.arguments)
        return _BoundStages(self)


class _BoundStages(nn.Module):
    """A bound `Stages`: no parameters, no state."""

    def __init__(self, description: Stages) -> None:
        super().__init__()
        self.needs = description.needs
        self._description = description

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        asked, theirs = self._description, present(teacher).taps
        return asked.loss(
            [student.taps[tap] for tap in asked.student_taps],
            [theirs[tap] for tap in asked.teacher_taps],
            **asked.arguments,
        )


def paired(student_taps: tuple[str, ...], teacher_taps: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the taps of each stage.

    Raises:
        ValueError: there are more of the one network than of the other.
    """
    if len(student_taps) != len(teacher_taps):
        raise ValueError(
            f"teacher_taps: expected {len(student_taps)} taps, as many as student_taps, got {len(teacher_taps)}; "
            "name one of each network a stage"
        )
    return list(zip(student_taps, teacher_taps, strict=True))


def map_shapes(context: BindContext, student: str, teacher: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes ``(channels, height, width)`` of a student's map and a teacher's.

    Raises:
        ValueError: the context lacks one, or one is no map.
    """
    ours, theirs = shape_of(context, "student", student), shape_of(context, "teacher", teacher)
    for who, tap, shape in (("student", student, ours), ("teacher", teacher, theirs)):
        if len(shape) != 3:
            raise ValueError(
                f"tap {tap}: expected maps (batch, channels, height, width) of the {who}, got {shape} without the "
                "batch; name a stage of a convolutional network, such as card:stage.-1"
            )
    return ours, theirs
