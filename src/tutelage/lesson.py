"""One step's forward pass as a module: a student, the bound objective, and a frozen teacher to call beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

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
        """Run the student on a batch and hold it against the teacher's outputs and the labels.

        Args:
            batch: the samples.
            teacher: what a teacher says about them; may be none where the objective needs none.
            progress: where in the run this is, for scheduled weights.
            totals: what means divide by; by default the counts of this batch.

        Raises:
            TypeError: the student does not return logits, or the teacher's are not wrapped in `Outputs`.
            ValueError: the objective needs a teacher and got none.
        """
        if teacher is not None and not isinstance(teacher, Outputs):
            raise TypeError(
                f"teacher: expected Outputs, got {type(teacher).__name__}; type Outputs(logits), or ask a FrozenTeacher"
            )
        outputs = Outputs(_logits(self.student(batch.inputs), "student"))
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
        return Outputs(_logits(self.network(batch.inputs), "teacher"))


def _logits(answer: object, who: str) -> Tensor:
    if not isinstance(answer, Tensor):
        raise TypeError(
            f"{who}: expected a module that returns logits (batch, classes), got one that returns "
            f"{type(answer).__name__}; wrap it in a module that takes the logits out"
        )
    return answer
