"""A step's samples of all processes, in the order of their ranks, for batch-coupled terms that gather.

Shares may be unequal: they are padded to the longest, sent, and cut. Without a process group, or with one process,
everything is returned unchanged.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, distributed

from tutelage.types import Batch, Outputs


def processes() -> int:
    """Return the number of processes; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def shares(rows: Tensor) -> list[int]:
    """Return the number of rows of each process, given this one's, ``(batch, ...)``. The host waits for the sizes."""
    if processes() == 1:
        return [len(rows)]
    sizes = [torch.empty(1, dtype=torch.int64, device=rows.device) for _ in range(processes())]
    distributed.all_gather(sizes, torch.full_like(sizes[0], len(rows)))
    return [int(size) for size in sizes]


@torch.no_grad()
def constant(rows: Tensor, lengths: list[int]) -> Tensor:
    """Return all processes' rows, without gradient, given this process's rows and the result of `shares`."""
    if len(lengths) == 1:
        return rows.detach()
    padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered_rows = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(gathered_rows, padded)
    return torch.cat([share[:length] for share, length in zip(gathered_rows, lengths, strict=True)])


def differentiable(rows: Tensor, lengths: list[int]) -> Tensor:
    """Return all processes' rows; the gradient of this process's rows is the sum of their gradients in all processes.

    If each process computes the same value from them, that is the number of processes times its gradient. So once DDP
    has averaged the parameters' gradients over the processes, they are those of the value itself.
    """
    return rows if len(lengths) == 1 else _Gather.apply(rows, lengths)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: list[int]) -> Tensor:
        ctx.lengths = lengths
        return constant(rows, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # A copy: the incoming tensor belongs to autograd.
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient.split(ctx.lengths)[distributed.get_rank()], None


def gathered(
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    *,
    student_taps: Collection[str],
    teacher_taps: Collection[str],
) -> tuple[Outputs, Outputs | None, Batch]:
    """Return both networks' outputs for all processes' samples, and the samples without their inputs.

    Features at other taps are left out. Gradients of the student's outputs flow back to the process they came from.
    """
    lengths = shares(batch.index)
    if len(lengths) == 1:
        return student, teacher, batch
    all_student = Outputs(
        differentiable(student.logits, lengths),
        {tap: differentiable(student.taps[tap], lengths) for tap in student_taps},
    )
    all_teacher = teacher and Outputs(
        constant(teacher.logits, lengths), {tap: constant(teacher.taps[tap], lengths) for tap in teacher_taps}
    )
    # Images are most of a batch's bytes, and no term reads them: an empty tensor takes their place.
    empty = student.logits.detach().new_empty((sum(lengths), 0))
    return all_student, all_teacher, Batch(constant(batch.index, lengths), empty, constant(batch.labels, lengths))
