"""Cross-entropy and weighted transformed teacher matching on a CPU: two sweeps over the logits, forward and backward.

Logits are read from memory once in each direction, in blocks of rows that stay in the processor's cache; five numbers
per row are kept, and the gradient is the only thing as large as the logits.

``z`` is the student's row, ``v`` the teacher's, ``mz`` and ``mv`` are shifts: 0 if the sums below neither overflow
nor vanish without a shift, which saves the sweep for the maximum, else the row's maximum.

* Forward: ``S = sum exp(z - mz)``, ``P = sum exp(v - mv)``, ``w = exp(gamma * (v - mv))``, ``W = sum w`` and
  ``D = sum w * (gamma * (v - mv) - (z - mz))``. Then ``CE = log S - (z[y] - mz)``, ``log U = log W - gamma * log P``
  and ``KL(p_gamma || q) = D / W + log S - log W``, which is 0 to the last bit but one if the two are equal.
* Backward: ``dz = (g_ce + g_w * U) * q - g_w * U * p_gamma``, less ``g_ce`` at the label.
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
from tutelage.types import UNLABELLED

BLOCK = 1 << 16
"""Number of logits in a block, per thread: with the teacher's and two scratch buffers 1 MB in float32, half of a core's
L2 cache. A row of a large vocabulary is longer and forms its own block."""
LOW, HIGH = 1e-13, 1e13
"""Bounds within which sums of exponentials need no shift: nothing that matters has vanished, and their logarithms are
exact to 1e-6 in float32."""


def no_second_derivative() -> RunError:
    """Return what is raised where a gradient is differentiated again."""
    instead = "type tutelage.losses.cross_entropy and the loss itself instead"
    return RunError("tutelage.kernels", "a first derivative", "a second, which these functions do not have", instead)


Rows = tuple[Tensor, ...]
"""Sums by row, unbound, as unpacking a tensor costs more."""


def dtype_of(student_logits: Tensor, teacher_logits: Tensor) -> torch.dtype:
    """Return the dtype of computations: float64 if one of the two is, else float32."""
    return torch.float64 if torch.float64 in (student_logits.dtype, teacher_logits.dtype) else torch.float32


def forward(z: Tensor, v: Tensor, labels: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sweep once over the student's and the teacher's logits, ``(rows, classes)``; labels ``(rows,)``, -100 for none.

    Returns:
        ``(rows,)`` cross-entropies, ``(rows,)`` matching terms, and ``(5, rows)`` statistics for `backward`: the
        student's shift and log-sum, the teacher's shift and log-sum at ``gamma``, and the power sum.
    """
    dtype = dtype_of(z, v)
    shifts = z.new_zeros(2, len(z), dtype=dtype)
    sums = z.new_empty(4, len(z), dtype=dtype)
    size = _block(z)
    parts = _parts(size, z, v, sums.T, shifts.T)
    buffers = _buffers(4, z, dtype)
    open_blocks = list(range(len(parts)))
    sweeps: tuple[Callable[..., None], ...] = (_sums, _shifted_sums, _masked_sums)
    for sweep in sweeps:
        for i in open_blocks:
            z_block, v_block, block_sums, shift = parts[i]
            a, b, wide_z, wide_v = _cut(buffers, len(z_block))
            sweep(_ready(z_block, wide_z), _ready(v_block, wide_v), gamma, a, b, block_sums.unbind(1), shift.T)
            # The others will need what the first block needs: a vocabulary padded with -inf has it in every row.
            if i == open_blocks[0] and len(parts) > 1 and sweep is not _masked_sums and _unsound(block_sums.T, sweep):
                break
        else:
            open_blocks = sorted({row // size for row in _unsound(sums, sweep)} & set(open_blocks))
        if not open_blocks:
            break
    shift_z, shift_v = shifts
    log_s, log_p, log_w = sums[:3].log()
    power_sum = (log_w - gamma * log_p).exp()
    divergence = sums[3] / sums[2] + (log_s - log_w)
    unlabelled = labels == UNLABELLED
    at_label = z.gather(-1, labels.masked_fill(unlabelled, 0)[:, None])[:, 0].to(dtype)
    ce = (log_s - (at_label - shift_z)).masked_fill(unlabelled, 0.0)
    return ce, power_sum * divergence, torch.stack([shift_z, log_s, shift_v, log_w, power_sum])


def backward(
    z: Tensor,
    v: Tensor,
    labels: Tensor,
    statistics: Tensor,
    ce_gradient: Tensor | None,
    wttm_gradient: Tensor | None,
    gamma: float,
    out: Tensor | None = None,
) -> Tensor:
    """Sweep over the logits again and return their gradient, ``(rows, classes)`` in the student's dtype.

    ``statistics`` is the last result of `forward`; the gradients of the cross-entropies and the matching terms are
    ``(rows,)``, ``None`` for 0. The result is written to ``out``, which may be ``z`` itself; ``None`` for a new tensor.
    """
    shift_z, log_s, shift_v, log_w, power_sum = statistics
    dtype = statistics.dtype
    out = torch.empty_like(z, memory_format=torch.contiguous_format) if out is None else out
    of_q = torch.zeros_like(log_s)
    of_p = at_label = None
    if ce_gradient is not None:
        unlabelled = labels == UNLABELLED
        of_ce = ce_gradient.to(dtype).masked_fill(unlabelled, 0.0)
        of_q = of_q + of_ce
        at_label = -of_ce[:, None]
        labels = labels.masked_fill(unlabelled, 0)[:, None]
    if wttm_gradient is not None:
        of_p = wttm_gradient.to(dtype) * power_sum
        of_q = of_q + of_p
    # A factor on an exponential goes into the exponent, which costs nothing; its sign cannot.
    shift_q, sign_q = of_q.abs().log() - log_s, _signs(of_q)
    shift_p, sign_p = (of_p.abs().log() - log_w, _signs(of_p)) if of_p is not None else (None, None)
    size, shifted = _block(z), bool(statistics[0:3:2].any())
    direct = out.dtype == dtype and out.is_contiguous()
    columns = [x[:, None] if x is not None else None for x in (shift_z, shift_q, sign_q, shift_v, shift_p, sign_p)]
    buffers = _buffers(3, z, dtype)
    for z_block, v_block, gradient_out, mz, cq, sq, mv, cp, sp, minus, label in _parts(
        size, z, v, out, *columns, at_label, labels
    ):
        scratch = _cut(buffers, len(z_block))
        gradient = gradient_out if direct else scratch[0]
        student = _ready(z_block, scratch[0])
        if shifted:
            torch.sub(student, mz, out=gradient).add_(cq)
        else:
            torch.add(student, cq, out=gradient)
        gradient.exp_()
        if sq is not None:
            gradient.mul_(sq)
        if cp is not None:
            teacher, p = _ready(v_block, scratch[1]), scratch[2]
            if shifted:
                torch.sub(teacher, mv, out=p).mul_(gamma).add_(cp)
            else:
                torch.add(cp, teacher, alpha=gamma, out=p)
            p.exp_()
            if sp is not None:
                p.mul_(sp)
            gradient.sub_(p)
        if minus is not None:
            gradient.scatter_add_(-1, label, minus)
        if not direct:
            gradient_out.copy_(gradient)
    return out


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
    low, high = (x.item() for x in torch.aminmax(sums[:3]))
    if (sweep is not _sums or (low > LOW and high < HIGH)) and math.isfinite(sums[3].sum().item()):
        return []
    sound = sums[3].isfinite()
    if sweep is _sums:
        lows, highs = torch.aminmax(sums[:3], dim=0)
        sound &= (lows > LOW) & (highs < HIGH)
    return (~sound).nonzero()[:, 0].tolist()


def _signs(factors: Tensor) -> Tensor | None:
    return factors.sign() if (factors < 0).any() else None


def _sums(z: Tensor, v: Tensor, gamma: float, a: Tensor, b: Tensor, sums: Rows, shift: Tensor) -> None:
    """Find the four sums, ``(4, rows)``, without a shift; ``a`` and ``b`` are scratch of the block's shape."""
    s, p, w, d = sums
    torch.sum(torch.exp(z, out=a), -1, out=s)
    torch.sum(torch.exp(v, out=a), -1, out=p)
    torch.mul(v, gamma, out=a)
    torch.sub(a, z, out=b)
    torch.sum(a.exp_(), -1, out=w)
    torch.sum(b.mul_(a), -1, out=d)


def _shifted_sums(
    z: Tensor, v: Tensor, gamma: float, a: Tensor, b: Tensor, sums: Rows, shift: Tensor, *, masked: bool = False
) -> None:
    """Find the sums shifted by the rows' maxima, and the maxima."""
    s, p, w, d = sums
    torch.amax(z, -1, out=shift[0])
    torch.amax(v, -1, out=shift[1])
    max_z, max_v = shift[:, :, None]
    torch.sub(z, max_z, out=b)
    torch.sum(torch.exp(b, out=a), -1, out=s)
    torch.sum(torch.sub(v, max_v, out=a).exp_(), -1, out=p)
    torch.sub(v, max_v, out=a).mul_(gamma)
    torch.sub(a, b, out=b)
    torch.sum(a.exp_(), -1, out=w)
    b.mul_(a)
    if masked:
        # Compared with 0, not "above 0": a NaN teacher must stay NaN and be noticed.
        b.masked_fill_(a == 0, 0.0)
    torch.sum(b, -1, out=d)


_masked_sums = functools.partial(_shifted_sums, masked=True)
"""Shifted sums in which a class without probability counts nothing, whatever its logits: -inf times 0 is NaN."""


_forward = torch.library.custom_op(
    "tutelage::cross_entropy_and_wttm",
    forward,
    mutates_args=(),
    schema="(Tensor z, Tensor v, Tensor labels, float gamma) -> (Tensor, Tensor, Tensor)",
)
_backward = torch.library.custom_op(
    "tutelage::cross_entropy_and_wttm_backward",
    backward,
    mutates_args=(),
    schema="(Tensor z, Tensor v, Tensor labels, Tensor statistics, Tensor? ce_gradient, Tensor? wttm_gradient, "
    "float gamma) -> Tensor",
)


@_forward.register_fake
def _(z: Tensor, v: Tensor, labels: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    row = z.new_empty(z.shape[0], dtype=dtype_of(z, v))
    return row, torch.empty_like(row), row.new_empty(5, z.shape[0])


@_backward.register_fake
def _(z: Tensor, v: Tensor, labels: Tensor, statistics: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def cross_entropy_and_wttm(z: Tensor, v: Tensor, labels: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return each row's cross-entropy and WTTM, once differentiable in ``z``; as for `forward`."""
    return _Joint.apply(z, v, labels, gamma)


class _Joint(torch.autograd.Function):
    """The two values with a hand-written gradient: opaque operations in a compiled graph, else plain calls."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, v: Tensor, labels: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        run = _forward if torch.compiler.is_compiling() else forward
        ce, wttm, statistics = run(z, v, labels, gamma)
        ctx.save_for_backward(z, v, labels, statistics)
        ctx.gamma = gamma
        ctx.set_materialize_grads(False)
        return ce, wttm

    @staticmethod
    def backward(
        ctx: Any, ce_gradient: Tensor | None, wttm_gradient: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        z, v, labels, statistics = ctx.saved_tensors
        run = _backward if torch.compiler.is_compiling() else backward
        with torch.no_grad():
            gradient = run(z.detach(), v, labels, statistics, ce_gradient, wttm_gradient, ctx.gamma)
        return once(gradient, z), None, None, None


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
