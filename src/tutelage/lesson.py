"""One step's forward pass as a module: a student, the bound objective, and a frozen teacher to call beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from tutelage.contracts import Batch, Loss, Outputs, Progress, Totals
from tutelage.objectives import Context, Objective


class Taught(NamedTuple):
    """What a lesson returns: the loss, and the student's outputs that it was computed from."""

    loss: Loss
    outputs: Outputs


class Lesson(nn.Module):
    """A student and an objective bound to it: one trainable module for one optimizer, one DDP, one compile.

    Args:
        student: any module that turns ``batch.inputs`` into logits ``(batch, classes)``.
        objective: what it learns from; bound here, so that nothing is shared between two lessons.
        context: what the objective may know of the run.

    Example:
        >>> import torch, tutelage
        >>> from tutelage import Batch, objectives
        >>> student, teacher = torch.nn.Linear(4, 3), tutelage.FrozenTeacher(torch.nn.Linear(4, 3))
        >>> lesson = Lesson(student, objectives.wttm(gamma=0.5, beta=1.0))
        >>> batch = Batch(torch.arange(2), torch.rand(2, 4), torch.tensor([0, 2]))
        >>> loss, outputs = lesson(batch, teacher(batch))
        >>> loss.total.backward()
        >>> sorted(loss.parts)
        ['ce', 'wttm']
    """

    def __init__(self, student: nn.Module, objective: Objective, context: Context = Context()) -> None:  # noqa: B008
        super().__init__()
        self.student = student
        self.objective = objective.bind(context)

    def forward(
        self,
        batch: Batch,
        teacher: Outputs | None = None,
        progress: Progress = Progress(),  # noqa: B008
        totals: Totals | None = None,
    ) -> Taught:
        """Run the student on a batch and hold it against the teacher's outputs and the labels."""
        outputs = Outputs(self.student(batch.inputs))
        return Taught(self.objective(outputs, teacher, batch, progress, totals), outputs)


class FrozenTeacher(nn.Module):
    """A network that answers and never changes: no gradient, in evaluation mode whatever ``train()`` is called with.

    Args:
        network: any module that turns ``batch.inputs`` into logits. Its parameters are frozen in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in evaluation mode: a teacher whose dropout or batch norm moves is another teacher every step."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Outputs:
        """Return what the network says about a batch."""
        return Outputs(self.network(batch.inputs))
