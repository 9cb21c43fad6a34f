"""Errors between two learned embeddings, one of each network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage import losses
from tutelage.objectives.contrast import embedding_width
from tutelage.objectives.term import BindContext, present
from tutelage.types import Batch, Outputs, Progress, Requirements, Term


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Correlation congruence as benchmarks run it (`losses.correlation`): both networks' embeddings are mapped.

    Attributes:
        dimension: of the embeddings, at least 1.
        student_tap: a feature ``(batch, width)``.
        teacher_tap: a feature ``(batch, width)``.
    """

    dimension: int
    student_tap: str = "card:embedding"
    teacher_tap: str = "card:embedding"

    def __post_init__(self) -> None:
        if isinstance(self.dimension, bool) or not isinstance(self.dimension, int) or self.dimension < 1:
            raise ValueError(
                f"dimension: expected a whole number >= 1, got {self.dimension!r}; for example dimension=128"
            )

    @property
    def needs(self) -> Requirements:
        """What it reads."""
        return Requirements(True, "none", True, (self.student_tap,), (self.teacher_tap,), least=2)

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the maps.

        Raises:
            ValueError: the context lacks shapes, or a feature is not ``(batch, width)``.
        """
        return _BoundCorrelation(self, context)


class _BoundCorrelation(nn.Module):
    """A bound `Correlation`."""

    def __init__(self, description: Correlation, context: BindContext) -> None:
        super().__init__()
        self.needs = description.needs
        self._taps = description.student_tap, description.teacher_tap
        self.embed_student = nn.Linear(embedding_width(context, "student", self._taps[0]), description.dimension)
        self.embed_teacher = nn.Linear(embedding_width(context, "teacher", self._taps[1]), description.dimension)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        ours = self.embed_student(student.taps[self._taps[0]])
        theirs = self.embed_teacher(present(teacher).taps[self._taps[1]])
        # The loss reads the difference alone. Passed so, the teacher's map learns too: a loss detaches its teacher.
        return losses.correlation(ours - theirs, torch.zeros_like(theirs))
