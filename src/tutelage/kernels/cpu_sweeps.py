"""Cross-entropy and the divergences with forms on a CPU: two sweeps over the logits, forward and backward.

Logits are read from memory once in each direction, in blocks of rows that stay in the processor's cache; seven numbers
per row are kept, and the gradient is the only thing as large as the logits.

What follows is for `forward` divergences, such as TTM; blocks of the other kinds are computed by `row_sweeps`. ``z`` is
the student's row with exponent ``a``, ``v`` the teacher's with exponent ``g``, ``mz`` and ``mv`` are shifts: 0 if the
sums below neither overflow nor vanish without a shift, which saves the sweep for the maximum, else the row's maximum.

* Forward: ``S = sum exp(z - mz)``, ``A = sum exp(a (z - mz))``, ``P = sum exp(v - mv)``, ``w = exp(g (v - mv))``,
  ``W = sum w`` and ``D = sum w * (g (v - mv) - a (z - mz))``. Then ``CE = log S - (z[y] - mz)``,
  ``log U = log W - g log P`` and ``KL(p || q) = D / W + log A - log W``, which is 0 to the last bit but one if the two
  are equal.
* Backward: ``dz = g_ce * softmax(z) + a g_w * (q - p)``, less ``g_ce`` at the label, with ``g_w`` times the weight.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import RunError
from tutelage.kernels import compiled_sweeps, row_sweeps
from tutelage.kernels.divergence import SCHEMA, Divergence
from tutelage.kernels.row_sweeps import STATISTICS, dtype_of
from tutelage.types import UNLABELLED

BLOCK = 1 << 16
"""Number of logits in a block, per thread: with the teacher's and two scratch buffers 1 MB in float32, of the order of
a core's L2 cache. A row of a large vocabulary is longer and forms its own block."""
LOW, HIGH = 1e-13, 1e13
"""Bounds within which sums of exponentials need no shift: nothing that matters has vanished, and their logarithms are
exact to 1e-6 in float32."""


def no_second_derivative() -> RunError:
    """Return what is raised where a gradient is differentiated again."""
    instead = "type tutelage.losses.cross_entropy and the loss itself instead"
    return RunError("tutelage.kernels", "a first derivative", "a second, which these functions do not have", instead)


Rows = tuple[Tensor, ...]
"""Sums by row, unbound, as unpacking a tensor costs more."""


def forward(divergence: Divergence, z: Tensor, v: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sweep once over the student's and the teacher's logits, ``(rows, classes)``; labels ``(rows,)``, -100 for none.

    Returns:
        ``(rows,)`` cross-entropies, ``(rows,)`` values of the divergence, and ``(rows, 7)`` statistics for `backward`,
        those of `row_sweeps`, but for the shifts.
    """
    dtype = dtype_of(z, v)
    size = _block(z)
    if divergence.kind != "forward":
        blocks = [row_sweeps.forward(divergence, *block) for block in _parts(size, z, v, labels)]
        ce, values, statistics = (torch.cat(results) for results in zip(*blocks, strict=True))
        return ce, values, statistics
    a, g = divergence.student_gamma, divergence.teacher_gamma
    shifts = z.new_zeros(2, len(z), dtype=dtype)
    sums = z.new_ones(5, len(z), dtype=dtype)  # What is not needed stays 1.
    parts = _parts(size, z, v, sums.T, shifts.T)
    buffers = _buffers(4, z, dtype)
    open_blocks = list(range(len(parts)))
    sweeps: tuple[Callable[..., None], ...] = (_sums, _shifted_sums, _masked_sums)
    for sweep in sweeps:
        for i in open_blocks:
            z_block, v_block, block_sums, shift = parts[i]
            first, second, wide_z, wide_v = _cut(buffers, len(z_block))
            student, teacher = _ready(z_block, wide_z), _ready(v_block, wide_v)
            sweep(divergence, student, teacher, first, second, block_sums.unbind(1), shift.T)
            # The others will need what the first block needs: a vocabulary padded with -inf has it in every row.
            if i == open_blocks[0] and len(parts) > 1 and sweep is not _masked_sums and _unsound(block_sums.T, sweep):
                break
        else:
            open_blocks = sorted({row // size for row in _unsound(sums, sweep)} & set(open_blocks))
        if not open_blocks:
            break
    shift_z, shift_v = shifts
    log_s, log_a, log_p, log_w = sums[:4].log()
    log_a = log_s if a == 1 else log_a
    weight = torch.full_like(log_w, divergence.factor)
    if divergence.power_sum:
        weight *= (log_w - g * log_p).exp_()
    values = weight * (sums[4] / sums[3] + (log_a - log_w))
    unlabelled = labels == UNLABELLED
    at_label = z.gather(-1, labels.masked_fill(unlabelled, 0)[:, None])[:, 0].to(dtype)
    ce = (log_s - (at_label - shift_z)).masked_fill(unlabelled, 0.0)
    return ce, values, torch.stack([shift_z, log_s, log_a, shift_v, log_w, weight, -torch.ones_like(weight)], -1)


def backward(
    divergence: Divergence,
    z: Tensor,
    v: Tensor,
    labels: Tensor,
    statistics: Tensor,
    ce_gradient: Tensor | None,
    value_gradient: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """Sweep over the logits again and return their gradient, ``(rows, classes)`` in the student's dtype.

    ``statistics`` is the last result of `forward`; the gradients of the cross-entropies and the divergences are
    ``(rows,)``, ``None`` for 0. The result is written to ``out``, which may be ``z`` itself; ``None`` for a new tensor.
    """
    out = torch.empty_like(z, memory_format=torch.contiguous_format) if out is None else out
    size = _block(z)
    if divergence.kind != "forward":
        for *block, gradient_out in _parts(size, z, v, labels, statistics, ce_gradient, value_gradient, out):
            gradient_out.copy_(row_sweeps.backward(divergence, *block))
        return out
    a, g = divergence.student_gamma, divergence.teacher_gamma
    shift_z, log_s, log_a, shift_v, log_w, weight, _ = statistics.unbind(-1)
    dtype = statistics.dtype
    of_z, of_p = torch.zeros_like(log_s), None
    at_label = None
    if ce_gradient is not None:
        unlabelled = labels == UNLABELLED
        of_z = ce_gradient.to(dtype).masked_fill(unlabelled, 0.0)
        at_label = -of_z[:, None]
        labels = labels.masked_fill(unlabelled, 0)[:, None]
    if value_gradient is not None:
        of_p = value_gradient.to(dtype) * (a * weight)
        of_z = of_z + of_p if a == 1 else of_z
    of_a = None if a == 1 else of_p
    factors = [_factor(of_z, log_s), _factor(of_a, log_a), _factor(of_p, log_w)]
    columns = [x[:, None] if x is not None else None for pair in factors for x in pair]
    shifted = bool(shift_z.any() | shift_v.any())
    shifts = [shift_z[:, None], shift_v[:, None]] if shifted else [None, None]
    direct = out.dtype == dtype and out.is_contiguous()
    buffers = _buffers(4, z, dtype)
    for z_block, v_block, gradient_out, mz, mv, cz, sz, ca, sa, cp, sp, minus, label in _parts(
        size, z, v, out, *shifts, *columns, at_label, labels
    ):
        scratch = _cut(buffers, len(z_block))
        student, gradient = _ready(z_block, scratch[0]), gradient_out if direct else scratch[0]
        rest = None  # made first, as the gradient may take the student's place
        if cp is not None:
            rest = _exponentials(_ready(v_block, scratch[1]), g, mv, cp, sp, out=scratch[2])
        if ca is not None and rest is not None:
            rest -= _exponentials(student, a, mz, ca, sa, out=scratch[3])
        _exponentials(student, 1.0, mz, cz, sz, out=gradient)
        if rest is not None:
            gradient -= rest
        if minus is not None:
            gradient.scatter_add_(-1, label, minus)
        if not direct:
            gradient_out.copy_(gradient)
    return out


def _factor(by: Tensor | None, log_sum: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return what is added to exponents for a factor on exponentials over their sum, and its signs if any is negative.

    A factor on an exponential goes into the exponent, which costs nothing; its sign cannot.
    """
    if by is None:
        return None, None
    return by.abs().log() - log_sum, by.sign() if (by < 0).any() else None


def _exponentials(
    x: Tensor, gamma: float, shift: Tensor | None, added: Tensor, signs: Tensor | None, *, out: Tensor
) -> Tensor:
    """Write ``signs * exp(gamma * (x - shift) + added)``, the last three one per row; ``out`` may be ``x``."""
    if shift is None:
        torch.add(added, x, alpha=gamma, out=out)
    elif gamma == 1:
        torch.sub(x, shift, out=out).add_(added)
    else:
        torch.sub(x, shift, out=out).mul_(gamma).add_(added)
    out.exp_()
    return out if signs is None else out.mul_(signs)


def _block(logits: Tensor) -> int:
    """Return the number of rows in a block."""
    rows, classes = logits.shape
    return max(1, min(rows, BLOCK * torch.get_num_threads() // classes))


def _parts(size: int, *tensors: Tensor | None) -> list[tuple[Any, ...]]:
    """Cut tensors into blocks of this many rows, in step; ``None`` stays ``None``."""
    if all(x is None or len(x) <= size for x in tensors):
        return [tensors]
    return list(zip(*(x.split(size) if x is not None else itertools.repeat(None) for x in tensors), strict=False))


def _buffers(count: int, logits: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    # Pages that are never written, such as those for copies that are not needed, take no memory.
    return logits.new_empty(count, _block(logits), logits.shape[-1], dtype=dtype).unbind()


def _cut(buffers: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    return buffers if len(buffers[0]) == rows else tuple(buffer[:rows] for buffer in buffers)


def _ready(block: Tensor, buffer: Tensor) -> Tensor:
    """Return the block contiguous and wide, as the sweeps need it; copied into the buffer if it is not."""
    return block if block.dtype == buffer.dtype and block.is_contiguous() else buffer.copy_(block)


def _unsound(sums: Tensor, sweep: Callable[..., None]) -> list[int]:
    """Return the rows whose sums the next sweep must find."""
    if sweep is _masked_sums or not sums.numel():
        return []
    # All rows at once first, as nearly always none is unsound: NaN compares as false, and so does a sum with one.
    low, high = (x.item() for x in torch.aminmax(sums[:4]))
    if (sweep is not _sums or (low > LOW and high < HIGH)) and math.isfinite(sums[4].sum().item()):
        return []
    sound = sums[4].isfinite()
    if sweep is _sums:
        lows, highs = torch.aminmax(sums[:4], dim=0)
        sound &= (lows > LOW) & (highs < HIGH)
    return (~sound).nonzero()[:, 0].tolist()


def _sums(
    divergence: Divergence, z: Tensor, v: Tensor, first: Tensor, second: Tensor, sums: Rows, shift: Tensor
) -> None:
    """Find S, A, P, W and D, each ``(rows,)``, without a shift; two tensors are scratch of the block's shape."""
    s, a, p, w, d = sums
    torch.sum(torch.exp(z, out=first), -1, out=s)
    if divergence.student_gamma != 1:
        torch.sum(torch.mul(z, divergence.student_gamma, out=first).exp_(), -1, out=a)
    if divergence.power_sum:
        torch.sum(torch.exp(v, out=first), -1, out=p)
    torch.mul(v, divergence.teacher_gamma, out=first)
    torch.sub(first, z, alpha=divergence.student_gamma, out=second)
    torch.sum(first.exp_(), -1, out=w)
    torch.sum(second.mul_(first), -1, out=d)


def _shifted_sums(
    divergence: Divergence,
    z: Tensor,
    v: Tensor,
    first: Tensor,
    second: Tensor,
    sums: Rows,
    shift: Tensor,
    *,
    masked: bool = False,
) -> None:
    """Find the sums shifted by the rows' maxima, and the maxima."""
    s, a, p, w, d = sums
    torch.amax(z, -1, out=shift[0])
    torch.amax(v, -1, out=shift[1])
    max_z, max_v = shift[:, :, None]
    torch.sub(z, max_z, out=second)
    torch.sum(torch.exp(second, out=first), -1, out=s)
    if divergence.student_gamma != 1:
        second.mul_(divergence.student_gamma)
        torch.sum(torch.exp(second, out=first), -1, out=a)
    if divergence.power_sum:
        torch.sum(torch.sub(v, max_v, out=first).exp_(), -1, out=p)
    torch.sub(v, max_v, out=first).mul_(divergence.teacher_gamma)
    torch.sub(first, second, out=second)
    torch.sum(first.exp_(), -1, out=w)
    second.mul_(first)
    if masked:
        # Compared with 0, not "above 0": a NaN teacher must stay NaN and be noticed.
        second.masked_fill_(first == 0, 0.0)
    torch.sum(second, -1, out=d)


_masked_sums = functools.partial(_shifted_sums, masked=True)
"""Shifted sums in which a class without probability counts nothing, whatever its logits: -inf times 0 is NaN."""


@torch.library.custom_op(
    "tutelage::swept_on_cpu",
    mutates_args=(),
    schema=f"(Tensor z, Tensor v, Tensor labels, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def _forward(z: Tensor, v: Tensor, labels: Tensor, *divergence: Any) -> tuple[Tensor, Tensor, Tensor]:
    return forward(Divergence(*divergence), z, v, labels)


@torch.library.custom_op(
    "tutelage::swept_on_cpu_backward",
    mutates_args=(),
    schema="(Tensor z, Tensor v, Tensor labels, Tensor statistics, Tensor? ce_gradient, Tensor? value_gradient, "
    f"{SCHEMA}) -> Tensor",
)
def _backward(
    z: Tensor,
    v: Tensor,
    labels: Tensor,
    statistics: Tensor,
    ce_gradient: Tensor | None,
    value_gradient: Tensor | None,
    *divergence: Any,
) -> Tensor:
    return backward(Divergence(*divergence), z, v, labels, statistics, ce_gradient, value_gradient)


@_forward.register_fake
def _(z: Tensor, v: Tensor, labels: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    row = z.new_empty(z.shape[0], dtype=dtype_of(z, v))
    return row, torch.empty_like(row), row.new_empty(z.shape[0], STATISTICS)


@_backward.register_fake
def _(z: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def cross_entropy_and(
    divergence: Divergence, z: Tensor, v: Tensor, labels: Tensor, *, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Return each row's cross-entropy and divergence, once differentiable in ``z``; as for `forward`.

    With ``compiled`` they are computed by `compiled_sweeps`, unless this is called inside ``torch.compile``.
    """
    return _Joint.apply(z, v, labels, divergence, compiled)


class _Joint(torch.autograd.Function):
    """The two values with a hand-written gradient: opaque operations in a compiled graph, else plain calls."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, v: Tensor, labels: Tensor, divergence: Divergence, compiled: bool
    ) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            ce, values, statistics = _forward(z, v, labels, *divergence)
        else:
            given = divergence, z.detach(), v, labels
            results = compiled_sweeps.forward(*given) if compiled else None
            compiled = results is not None  # Where that failed, it is not tried backward.
            ce, values, statistics = results or forward(*given)
        ctx.save_for_backward(z, v, labels, statistics)
        ctx.divergence, ctx.compiled = divergence, compiled and not torch.compiler.is_compiling()
        ctx.set_materialize_grads(False)
        return ce, values

    @staticmethod
    def backward(
        ctx: Any, ce_gradient: Tensor | None, value_gradient: Tensor | None
    ) -> tuple[Tensor | None, None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        z, v, labels, statistics = ctx.saved_tensors
        with torch.no_grad():
            given = z.detach(), v, labels, statistics, ce_gradient, value_gradient
            gradient = compiled_sweeps.backward(ctx.divergence, *given) if ctx.compiled else None
            if gradient is None and torch.compiler.is_compiling():
                gradient = _backward(*given, *ctx.divergence)
            elif gradient is None:
                gradient = backward(ctx.divergence, *given)
        return once(gradient, z), None, None, None, None


def once(gradient: Tensor, source: Tensor) -> Tensor:
    """Return a gradient whose own derivative raises, if one may be requested (``create_graph=True``).

    `torch.autograd.function.once_differentiable` does so only if the incoming gradient has a graph; else it returns a
    constant, and a penalty on the gradient would be lost silently.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return gradient
    return _Once.apply(gradient, source)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, source: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise no_second_derivative()
