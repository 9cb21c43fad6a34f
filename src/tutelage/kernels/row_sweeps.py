"""Cross-entropy and the divergences with forms, over whole rows, in operations that a compiler makes two sweeps of.

``z`` is the student's row with exponent ``a``, ``v`` the teacher's with exponent ``g``, ``mz`` and ``mv`` are their
maxima, ``q = softmax(a z)`` and ``p = softmax(g v)``.

* Forward: ``log sum exp`` of ``z - mz``, ``a (z - mz)`` and ``g (v - mv)``, the divergence's weight ``w``, and its
  value ``w sum f`` with ``H = sum h``, where ``h = q df/dq``.
* Backward: ``dz = a w (h - q H)`` of the divergence, and ``softmax(z) - onehot(y)`` of the cross-entropy.

By kind, with ``m = s p + (1 - s) q`` for a mixture ``s``:

* ``forward``: ``f = p log(p / q)``, ``h = -p``.
* ``reverse``: ``f = q log(q / p)``; ``h = f`` in place of ``f + q``, as ``q`` less ``q`` times its sum is 0.
* ``jensen_shannon``: ``h = (1 - s) q log(q / m)``, ``f = s p log(p / m) + h``.
* ``skew``: ``f = p log(p / m)``, ``h = -(1 - s) q p / m``.
* ``total_variation``: ``f = |p - q| / 2``, ``h = q sign(q - p) / 2``.

Logits may have any floating dtype; all else is float32, or float64 if one of the two is. A class without probability
counts nothing, whatever its logits; a row without any other is NaN. Nothing here is differentiated by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.kernels.divergence import Divergence
from tutelage.types import UNLABELLED

STATISTICS = 7
"""Numbers of a row that `backward` needs: ``mz``, the logarithms of the sums for 1 and ``a``, ``mv``, the logarithm of
the sum for ``g``, ``w`` and ``H``."""


def dtype_of(student_logits: Tensor, teacher_logits: Tensor) -> torch.dtype:
    """Return the dtype of computations: float64 if one of the two is, else float32."""
    return torch.float64 if torch.float64 in (student_logits.dtype, teacher_logits.dtype) else torch.float32


def forward(divergence: Divergence, z: Tensor, v: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's cross-entropy and divergence, ``(rows,)``, and ``(rows, 7)`` statistics for `backward`.

    Logits are ``(rows, classes)``; labels ``(rows,)`` class indices, -100 for none.
    """
    dtype = dtype_of(z, v)
    z, v = z.to(dtype), v.to(dtype)
    max_z, max_v = z.amax(-1), v.amax(-1)
    b, c = z - max_z[:, None], v - max_v[:, None]
    log_1 = log_z = b.exp().sum(-1).log()
    if divergence.student_gamma != 1:
        b = divergence.student_gamma * b
        log_z = b.exp().sum(-1).log()
    log_power = c.exp().sum(-1).log() if divergence.power_sum else None
    c = divergence.teacher_gamma * c
    log_v = c.exp().sum(-1).log()
    weight = torch.full_like(log_v, divergence.factor)
    if log_power is not None:
        weight = weight * (log_v - divergence.teacher_gamma * log_power).exp()
    # Of these two the logarithms of the sums can be left out of the sum over classes, and added exactly.
    if divergence.kind == "forward":
        w = c.exp()
        value = _product(w, c - b).sum(-1) / w.sum(-1) + (log_z - log_v)
        of_q = torch.full_like(value, -1.0)
    elif divergence.kind == "reverse":
        s = b.exp()
        value = of_q = _product(s, b - c).sum(-1) / s.sum(-1) + (log_v - log_z)
    else:
        f, h = _terms(divergence, c - log_v[:, None], b - log_z[:, None])
        value, of_q = f.sum(-1), h.sum(-1)
    labelled = labels != UNLABELLED
    at_label = z.gather(-1, torch.where(labelled, labels, 0)[:, None])[:, 0]
    ce = torch.where(labelled, log_1 - (at_label - max_z), 0.0)
    return ce, weight * value, torch.stack([max_z, log_1, log_z, max_v, log_v, weight, of_q], -1)


def backward(
    divergence: Divergence,
    z: Tensor,
    v: Tensor,
    labels: Tensor,
    statistics: Tensor,
    ce_gradient: Tensor | None,
    value_gradient: Tensor | None,
) -> Tensor:
    """Return the logits' gradient, in the student's dtype.

    The gradients of the cross-entropies and the values are ``(rows,)``; ``None`` for 0.
    """
    dtype = statistics.dtype
    max_z, log_1, log_z, max_v, log_v, weight, of_q = statistics.split(1, -1)
    b = z.to(dtype) - max_z
    gradient = None
    if value_gradient is not None:
        log_q = divergence.student_gamma * b - log_z
        log_p = divergence.teacher_gamma * (v.to(dtype) - max_v) - log_v
        h = -log_p.exp() if divergence.kind == "forward" else _terms(divergence, log_p, log_q)[1]
        by = value_gradient.to(dtype)[:, None] * (divergence.student_gamma * weight)
        gradient = by * (h - _product(log_q.exp(), of_q))
    if ce_gradient is not None:
        by = torch.where(labels == UNLABELLED, 0.0, ce_gradient.to(dtype))[:, None]
        at_label = torch.arange(z.shape[-1], device=z.device) == labels[:, None]
        of_ce = by * (b - log_1).exp() - torch.where(at_label, by, 0.0)
        gradient = of_ce if gradient is None else gradient + of_ce
    return torch.zeros_like(z) if gradient is None else gradient.to(z.dtype)


def _terms(divergence: Divergence, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Return a kind's ``f`` and ``h``, as the module has them."""
    mixture, p, q = divergence.mixture, log_p.exp(), log_q.exp()
    if divergence.kind == "reverse":
        f = _product(q, log_q - log_p)
        return f, f
    if divergence.kind == "total_variation":
        return 0.5 * (p - q).abs(), 0.5 * q * (q - p).sign()
    # Near 0 where the two are close; where both are absent NaN, which nothing counts.
    lead = torch.maximum(log_p, log_q)
    share = mixture + (1 - 2 * mixture) * (log_p < log_q).to(log_p.dtype)  # of the likelier
    log_m = lead + (share + (1 - share) * (-(log_p - log_q).abs()).exp()).log()
    if divergence.kind == "skew":
        return _product(p, log_p - log_m), -_product(q, (1 - mixture) * (log_p - log_m).exp())
    h = (1 - mixture) * _product(q, log_q - log_m)
    return mixture * _product(p, log_p - log_m) + h, h


def _product(weight: Tensor, value: Tensor) -> Tensor:
    """Return 0 if the weight is 0, whatever the value; compared with 0, so that NaN stays NaN."""
    return torch.where(weight == 0, 0.0, weight * value)
