"""The sweeps of `triton_kernels` as PyTorch operations: launched, differentiable, and known to the compiler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from tutelage.kernels import triton_kernels
from tutelage.kernels.cpu_sweeps import no_second_derivative
from tutelage.kernels.divergence import SCHEMA, Divergence

BLOCK = 2048
"""Largest number of classes in a block."""
LOG2_E = 1 / math.log(2)


class Sweeps:
    """The sweeps over the logits of some rows, possibly in parts of the classes.

    Args:
        divergence: divergence to compute along with the cross-entropy.
        labels: labels, ``(rows,)`` int64, -100 if unlabelled.
        classes: number of classes in a whole row.
        statistics: statistics of earlier sweeps; ``None`` to take them.

    Attributes:
        statistics: statistics for `backward`, ``(rows, 8)`` float32.
        ce: cross-entropies, ``(rows,)`` float32.
        values: values of the divergence, ``(rows,)`` float32.
    """

    def __init__(self, divergence: Divergence, labels: Tensor, classes: int, statistics: Tensor | None = None) -> None:
        self._divergence, self._labels, self._classes = divergence, labels.contiguous(), classes
        self._mixes = divergence.kind not in ("forward", "reverse")
        if statistics is None:
            rows, empty = len(labels), partial(torch.empty, dtype=torch.float32, device=labels.device)
            statistics, self.ce, self.values = empty(rows, triton_kernels.COLUMNS), empty(rows), empty(rows)
        self.statistics = statistics

    @property
    def forward(self) -> list[Callable[[Tensor, Sequence[Tensor], slice], None]]:
        """Return the forward sweeps in turn, each to run over all parts of the classes in order."""
        sweep = partial(self.sweep, first=True, second=False)
        return [sweep, partial(self.sweep, first=False, second=True)] if self._mixes else [sweep]

    def whole(self, z: Tensor, teacher: Sequence[Tensor]) -> None:
        """Take all forward sweeps over whole rows at once."""
        self.sweep(z, teacher, slice(0, self._classes), first=True, second=self._mixes)

    def sweep(self, z: Tensor, teacher: Sequence[Tensor], part: slice, *, first: bool, second: bool) -> None:
        """Sweep over a part of the classes, ``(rows, classes of the part)``.

        ``teacher`` is its logits or, for whole rows only, values, index and level of `types.Sparse`.
        """
        d = self._divergence
        self._launch(
            triton_kernels.forward,
            z,
            teacher,
            part,
            outputs=(self.ce, self.values),
            numbers=(d.student_gamma * LOG2_E, d.teacher_gamma * LOG2_E, d.factor, d.mixture),
            POWER_SUM=d.power_sum,
            FIRST_SWEEP=first,
            SECOND_SWEEP=second,
            BEGINS=part.start == 0,
            ENDS=part.stop == self._classes,
        )

    def backward(
        self,
        z: Tensor,
        teacher: Sequence[Tensor],
        part: slice,
        of_ce: Tensor | None,
        of_values: Tensor | None,
        out: Tensor,
    ) -> Tensor:
        """Write the gradient of a part's logits to ``out``, which may be ``z`` if the teacher's logits are dense.

        ``of_ce`` and ``of_values`` are the gradients of the values, ``(rows,)``; ``None`` for 0.
        """
        d = self._divergence
        of_ce, of_values = (by.contiguous() if by is not None else None for by in (of_ce, of_values))
        self._launch(
            triton_kernels.backward,
            z,
            teacher,
            part,
            outputs=(of_ce, of_values, out),
            strides=(out.stride(0),),
            numbers=(d.student_gamma * LOG2_E, d.teacher_gamma * LOG2_E, d.mixture),
            HAS_CE=of_ce is not None,
            HAS_VALUES=of_values is not None,
        )
        return out

    def _launch(
        self,
        kernel: Any,
        z: Tensor,
        teacher: Sequence[Tensor],
        part: slice,
        *,
        outputs: tuple[Tensor | None, ...],
        strides: tuple[int, ...] = (),
        numbers: tuple[float, ...],
        **constants: bool,
    ) -> None:
        rows, classes = z.shape
        if not rows:
            return
        z = _rows(z)
        v, index, level = (_rows(teacher[0]), *teacher[1:]) if len(teacher) == 3 else (_rows(teacher[0]), None, None)
        top = v.shape[1] if index is not None else 0
        block = min(BLOCK, triton.next_power_of_2(classes))
        with _on(z.device):
            kernel[(rows,)](
                z,
                v,
                index.contiguous() if index is not None else None,
                level.contiguous() if level is not None else None,
                self._labels,
                self.statistics,
                *outputs,
                z.stride(0),
                v.stride(0),
                *strides,
                classes,
                part.start,
                self._classes,
                top,
                *numbers,
                KIND=triton_kernels.KINDS[self._divergence.kind],
                SCALED=self._divergence.student_gamma != 1,
                SPARSE=index is not None,
                BLOCK=block,
                BLOCKS=triton.cdiv(classes, block),
                TOP=triton.next_power_of_2(max(top, 1)),
                num_warps=max(1, min(8, block // 256)),
                **constants,
            )


def _rows(logits: Tensor) -> Tensor:
    """Return logits whose rows are contiguous."""
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device current: kernels launch on the current device, whatever their tensors' device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def cross_entropy_and(
    divergence: Divergence, z: Tensor, teacher: Sequence[Tensor], labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each row's cross-entropy and divergence, ``(rows,)`` float32, once differentiable in ``z``.

    Logits are ``(rows, classes)``; ``teacher`` is as for `Sweeps.sweep`.
    """
    ce, values, _ = _forward(z, list(teacher), labels, *divergence)
    return ce, values


@torch.library.custom_op(
    "tutelage::cross_entropy_and",
    mutates_args=(),
    schema=f"(Tensor z, Tensor[] teacher, Tensor labels, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def _forward(z: Tensor, teacher: Sequence[Tensor], labels: Tensor, *divergence: Any) -> tuple[Tensor, Tensor, Tensor]:
    sweeps = Sweeps(Divergence(*divergence), labels, z.shape[1])
    sweeps.whole(z, teacher)
    return sweeps.ce, sweeps.values, sweeps.statistics


@torch.library.custom_op(
    "tutelage::cross_entropy_and_backward",
    mutates_args=(),
    schema="(Tensor z, Tensor[] teacher, Tensor labels, Tensor statistics, Tensor? of_ce, Tensor? of_values, "
    f"{SCHEMA}) -> Tensor",
)
def _backward(
    z: Tensor,
    teacher: Sequence[Tensor],
    labels: Tensor,
    statistics: Tensor,
    of_ce: Tensor | None,
    of_values: Tensor | None,
    *divergence: Any,
) -> Tensor:
    sweeps = Sweeps(Divergence(*divergence), labels, z.shape[1], statistics)
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    return sweeps.backward(z, teacher, slice(0, z.shape[1]), of_ce, of_values, out)


@_forward.register_fake
def _(z: Tensor, teacher: Sequence[Tensor], labels: Tensor, *divergence: Any) -> tuple[Tensor, Tensor, Tensor]:
    row = z.new_empty(len(z), dtype=torch.float32)
    return row, torch.empty_like(row), row.new_empty(len(z), triton_kernels.COLUMNS)


@_backward.register_fake
def _(z: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, teacher, labels, *ctx.divergence = inputs
    ctx.save_for_backward(z, labels, output[2], *teacher)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx: Any, of_ce: Tensor | None, of_values: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    z, labels, statistics, *teacher = ctx.saved_tensors
    dz = _backward(z, teacher, labels, statistics, of_ce, of_values, *ctx.divergence)
    return dz, [None] * len(teacher), None, *[None] * len(ctx.divergence)


def _refuse(ctx: Any, *_: Tensor) -> None:
    raise no_second_derivative()


_forward.register_autograd(_differentiate, setup_context=_keep)
_backward.register_autograd(_refuse)
