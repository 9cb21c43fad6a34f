"""A step's samples of all processes, in the order of their ranks: what a batch-coupled term reads where it gathers.

Shares may be unequal: they are padded to the longest, sent, and cut. Without a process group, or with one process,
everything is returned as it is.
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
    """Return how many rows each process has. The host waits for them.

    Args:
        rows: this process's, ``(batch, ...)``.
    """
    if processes() == 1:
        return [len(rows)]
    sizes = [torch.empty(1, dtype=torch.int64, device=rows.device) for _ in range(processes())]
    distributed.all_gather(sizes, torch.full_like(sizes[0], len(rows)))
    return [int(size) for size in sizes]


@torch.no_grad()
def constant(rows: Tensor, lengths: list[int]) -> Tensor:
    """Return all processes' rows, without gradient.

    Args:
        rows: this process's, ``(batch, ...)``.
        lengths: what `shares` says.
    """
    if len(lengths) == 1:
        return rows.detach()
    padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
    padded[: len(rows)] = rows
    everyone = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(everyone, padded)
    return torch.cat([one[:length] for one, length in zip(everyone, lengths, strict=True)])


def differentiable(rows: Tensor, lengths: list[int]) -> Tensor:
    """Return all processes' rows; the gradient of this process's is the sum of what all processes ask of them.

    Where each process computes one and the same value of them, that is the number of processes times its gradient. So
    once DDP has averaged the parameters' gradients over the processes, they are those of the value itself.

    Args:
        rows: this process's, ``(batch, ...)``.
        lengths: what `shares` says.
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
    """Return what the networks say about all processes' samples, and the samples without their inputs.

    Args:
        student: its outputs; gradients flow back to each process's own.
        teacher: its outputs, or none.
        batch: this process's share.
        student_taps: features that are sent; others are left out.
        teacher_taps: likewise.
    """
    lengths = shares(batch.index)
    if len(lengths) == 1:
        return student, teacher, batch
    ours = Outputs(
        differentiable(student.logits, lengths),
        {tap: differentiable(student.taps[tap], lengths) for tap in student_taps},
    )
    theirs = teacher and Outputs(
        constant(teacher.logits, lengths), {tap: constant(teacher.taps[tap], lengths) for tap in teacher_taps}
    )
    # Images are the bulk of a batch and no term reads them: in their place is a tensor that has nothing to read.
    empty = batch.inputs.new_empty((sum(lengths), 0))
    return ours, theirs, Batch(constant(batch.index, lengths), empty, constant(batch.labels, lengths))
