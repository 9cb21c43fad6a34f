"""Matching a teacher of which the largest logits are known, and the level of all others, without its whole rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage import checks
from tutelage.types import Sparse


def sparse_matching(
    student_logits: Tensor, teacher: Sparse, *, gamma: float, student_gamma: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute ``KL(p_gamma || q)`` and the power sum ``U_gamma(p)`` of a teacher with equal logits behind its largest.

    With ``k`` kept classes and ``m = classes - k`` others, each of probability ``t`` in ``p_gamma``,
    ``KL = sum_top p (log p - z + lse) + m t log t - t (sum z - sum_top z - m lse)``, where ``lse`` is that of the whole
    row ``z``, ``student_gamma`` times the student's logits. The others count as one class of mass ``m t`` against the
    mean of their logits, so nothing but the student has an axis of all classes.

    Args:
        student_logits: ``(..., classes)``, finite.
        teacher: the teacher's logits ``(..., top)``.
        gamma: exponent of the teacher, finite and above 0.
        student_gamma: exponent of the student, finite and above 0.

    Returns:
        Divergence and power sum, each ``(...)``; the teacher gets no gradient.

    Raises: TypeError or ValueError if a dtype, a shape or a number is not as above.
    """
    z, others = checks.classwise(student_logits, "student_logits"), teacher.classes - teacher.values.shape[-1]
    checks.sparse_for(z, teacher)
    v = checks.classwise(teacher.values, "teacher_logits.values").detach()
    if student_gamma != 1:
        z = student_gamma * z
    rows = z.gather(-1, teacher.index)
    count = v.new_zeros(v.shape[-1] + (others > 0))  # logarithms of how many classes each stands for
    if others:
        count[-1] = math.log(others)
        v = torch.cat([v, teacher.level.detach().to(v.dtype)[..., None]], -1)
        rows = torch.cat([rows, ((z.sum(-1) - rows.sum(-1)) / others)[..., None]], -1)
    log_q = rows - z.logsumexp(-1, keepdim=True)
    log_mass = torch.log_softmax(gamma * v + count, -1)
    log_p, mass = log_mass - count, log_mass.exp()
    values = (mass * (log_p - log_q).masked_fill(mass == 0, 0.0)).sum(-1)
    # As in `wttm`: at the likeliest class both logarithms are small, so nothing cancels.
    log_top = (torch.log_softmax(v + count, -1) - count).amax(-1)
    return values, (gamma * log_top - log_p.amax(-1)).exp()
