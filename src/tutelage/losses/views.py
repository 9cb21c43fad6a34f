"""Losses of two views of each sample, and of a teacher's hard label, which a student of several heads may learn.

Precision and notation are those of `tutelage.losses.logits`. Rows of two views are neighbours: a sample's weak view,
then its strong one, as batches of data with ``data.strong`` have them.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from tutelage import checks
from tutelage.errors import InvalidValueError
from tutelage.losses.logits import kd

MASKED_BY = ("target", "pair")


def crld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    within: float,
    across: float,
    tau_w: float,
    tau_s: float,
    masked_by: Literal["target", "pair"] = "target",
) -> Tensor:
    """Compute the consistency of a student's two views with a teacher's, within each view and across them.

    ``sum_a m_a * (within * KD(z_a, v_a) + across * KD(z_b, v_a))`` over the views ``a`` that the teacher reads, weak
    and strong, with ``b`` the other one and ``KD = T**2 * KL(p_T || q_T)``. ``m_a`` is 1 where the teacher's largest
    probability in ``a``, at temperature 1, is at least ``tau_w`` (weak) or ``tau_s`` (strong), else 0.

    Args:
        student_logits: ``(2 * samples, classes)``: each sample's weak view, then its strong one.
        teacher_logits: the same shape.
        temperature: ``T``, finite and above 0.
        within: weight where both networks read one view, finite and at least 0.
        across: weight where they read different ones, likewise.
        tau_w: smallest confidence of the teacher in a weak view, in [0, 1].
        tau_s: that in a strong view.
        masked_by: whose confidence decides: ``"target"``, that in the view whose answer is learned; ``"pair"``, that in
            the weak view for both terms within a view, in the strong view for both across.

    Returns:
        ``(samples,)`` nats times ``T**2``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Zhang et al., "Cross-View Consistency Regularisation for Knowledge Distillation", arXiv 2412.16493.
    Differs from: the published code, which masks as ``"pair"``: an unsure answer to the strong view is learned where
        the weak one is sure. Selecting what the teacher says reliably, as the abstract has it, is ``"target"``; but the
        published thresholds were chosen with the other. The code adds the cross-entropies of both views.

    Example:
        >>> student, teacher = torch.zeros(2, 2), torch.tensor([[4.0, 0.0], [1.0, 0.0]])
        >>> crld(student, teacher, temperature=1.0, within=2.0, across=0.5, tau_w=0.9, tau_s=0.9)
        tensor([1.5076])
    """
    student_logits, teacher_logits = map(_pairs, checks.logit_pair(student_logits, teacher_logits))
    checks.known(masked_by, "masked_by", MASKED_BY, example="target")
    for name, value in (("within", within), ("across", across)):
        checks.weight(value, name, example=1.0)
    for name, value in (("tau_w", tau_w), ("tau_s", tau_s)):
        checks.share(value, name, example=0.9)
    confidence = teacher_logits.softmax(-1).amax(-1)
    unsure = torch.stack((confidence[:, 0] < tau_w, confidence[:, 1] < tau_s), dim=1)  # a teacher of NaN is neither
    masks = (unsure, unsure) if masked_by == "target" else (unsure[:, :1], unsure[:, 1:])
    values = student_logits.new_zeros(len(student_logits))
    for weight, logits, mask in zip((within, across), (student_logits, student_logits.flip(1)), masks, strict=True):
        if weight:
            values = values + weight * kd(logits, teacher_logits, temperature=temperature).masked_fill(mask, 0.0).sum(1)
    return values


def hard_label(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute the cross-entropy with the class that a teacher finds likeliest: ``-log q[argmax_k v_k]``.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``; of equal largest ones the first counts.

    Returns:
        ``(...)`` nats.

    Raises: TypeError or ValueError if a dtype or shape is not as above.
    Source: Touvron et al., "Training data-efficient image transformers & distillation through attention", arXiv
        2012.12877, section 4.

    Example:
        >>> hard_label(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.2, 0.7, 0.1]]))
        tensor([0.5514])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    top = teacher_logits.max(-1, keepdim=True)
    values = -student_logits.log_softmax(-1).gather(-1, top.indices)
    return values.masked_fill(top.values.isnan(), math.nan).squeeze(-1)  # a teacher of NaN is to be noticed


def weak_views(logits: Tensor) -> Tensor:
    """Return the weak views' rows, ``(samples, classes)``, of the rows of both, ``(2 * samples, classes)``.

    Raises: ValueError if the rows are no pairs.

    Example:
        >>> weak_views(torch.arange(4.0).reshape(4, 1).expand(4, 2))[:, 0]
        tensor([0., 2.])
    """
    return _pairs(logits)[:, 0]


def _pairs(logits: Tensor) -> Tensor:
    """Return ``(samples, 2, classes)``."""
    if logits.ndim != 2 or len(logits) % 2:
        expected = "(2 * samples, classes), each sample's weak view and then its strong one"
        stacked = "torch.stack((weak, strong), 1).flatten(0, 1)"
        instead = "type data.strong={randaugment: {}} in a recipe, or stack both views: " + stacked
        raise InvalidValueError("logits", expected, tuple(logits.shape), instead)
    return logits.unflatten(0, (-1, 2))
