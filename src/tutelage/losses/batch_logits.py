"""Losses on logits that couple the samples of a batch: one value ``()``, which depends on how a batch is split.

Precision and notation are those of `tutelage.losses.logits`. If logits have more than two axes, all axes before the
classes form one batch of rows: the pixels of a segmentation, the tokens of texts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks
from tutelage.errors import InvalidValueError

_SMALL = 1e-8


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float,
    gamma: float,
    temperature: float,
    guard: str = "added",
) -> Tensor:
    """Compute relational matching by correlation: within a sample over the classes, within a class over the batch.

    ``T**2 * (beta * (1 - mean_n rho(q_n, p_n)) + gamma * (1 - mean_k rho(q_k, p_k)))`` with ``q = softmax(z / T)``,
    rows ``n``, columns ``k`` and Pearson's ``rho(a, b) = <a', b'> / (|a'| * |b'| + 1e-8)`` of ``a' = a - mean(a)``.
    With one sample the columns are constant: the second bracket is 1, without a gradient. The ``1e-8`` matters where
    rows are nearly uniform: identical inputs do not give exactly 0. A class of probability 0 in both networks still
    counts among the classes: its column is constant too.

    Args:
        student_logits: ``(..., classes)``, ``z``; all axes before the classes are the batch.
        teacher_logits: the same shape, ``v``.
        beta: weight of the relation between classes, finite and at least 0.
        gamma: weight of the relation within a class, finite and at least 0.
        temperature: ``T``, finite and above 0; it divides both networks' logits.
        guard: use of ``1e-8``: ``"added"`` to the product of lengths, or ``"clamped"``, as the least length.

    Returns:
        ``()``, a pure number times ``T**2``; between 0 and ``2 * T**2 * (beta + gamma)``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there are no samples.
    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536.
    Differs from: the paper, whose formula has no ``T**2``; the authors' code has, and published results were made with
        it. torchdistill's ``DISTLoss`` corresponds to the guard ``"clamped"``.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 2.0]]), torch.eye(3)[:2]
        >>> dist(student, teacher, beta=1.0, gamma=1.0, temperature=1.0)
        tensor(0.9794)
    """
    q, p = _rows(student_logits, teacher_logits, temperature)
    checks.weight(beta, "beta", example=1.0)
    checks.weight(gamma, "gamma", example=1.0)
    if guard not in ("added", "clamped"):
        raise InvalidValueError("guard", "one of added, clamped", repr(guard), "for example guard='added'")
    between = 1 - _correlation(q, p, guard).mean()
    within = 1 - _correlation(q.T, p.T, guard).mean()
    return temperature * temperature * (beta * between + gamma * within)


def mlkd_batch(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Compute how far the samples' similarities differ: the batch's part of multi-level distillation.

    ``||P P' - Q Q'||_F**2 / N`` with the rows ``q_T`` of ``N`` samples in ``Q`` and ``p_T`` in ``P``: a sum over the
    ``N**2`` pairs, divided by ``N`` once. There is no ``T**2``.

    Args:
        student_logits: ``(..., classes)``; all axes before the classes are the batch.
        teacher_logits: the same shape.
        temperature: ``T``, finite and above 0; it divides both networks' logits.

    Returns:
        ``()``, a pure number of at least 0; 0 if the two agree.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there are no samples.
    Source: Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023.
    Differs from: the authors' trainer, which is meant to leave out confident samples but multiplies an already reduced
        value by a mask, and so by the share of the samples kept.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2)
        >>> mlkd_batch(student, teacher, temperature=1.0)
        tensor(0.1682)
    """
    q, p = _rows(student_logits, teacher_logits, temperature)
    return (p @ p.T - q @ q.T).square().sum() / len(q)


def mlkd_class(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Compute how far the classes' similarities differ: the classes' part of multi-level distillation.

    ``||P' P - Q' Q||_F**2 / K`` with the rows ``q_T`` of the batch in ``Q`` and ``p_T`` in ``P``: a sum over the
    ``K**2`` pairs of classes, divided by ``K`` once. It grows with the square of the batch size. There is no ``T**2``.
    ``K`` counts classes of probability 0 too.

    Args:
        student_logits: ``(..., classes)``; all axes before the classes are the batch.
        teacher_logits: the same shape.
        temperature: ``T``, finite and above 0; it divides both networks' logits.

    Returns:
        ``()``, a pure number of at least 0; 0 if the two agree.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there are no samples.
    Source: Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023.
    Differs from: the authors' trainer as `mlkd_batch` does.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2)
        >>> mlkd_class(student, teacher, temperature=1.0)
        tensor(0.1682)
    """
    q, p = _rows(student_logits, teacher_logits, temperature)
    return (p.T @ p - q.T @ q).square().sum() / q.shape[-1]


def _rows(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return both networks' probabilities at a temperature, ``(rows, classes)``."""
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    checks.positive(temperature, "temperature", example=4.0)
    if not student_logits.numel():
        raise InvalidValueError(
            "student_logits", "at least one sample", f"shape {tuple(student_logits.shape)}", "leave empty batches out"
        )
    classes = student_logits.shape[-1]
    q, p = (torch.softmax(logits / temperature, dim=-1) for logits in (student_logits, teacher_logits))
    return q.reshape(-1, classes), p.reshape(-1, classes)


def _correlation(a: Tensor, b: Tensor, guard: str) -> Tensor:
    a, b = (x - x.mean(dim=-1, keepdim=True) for x in (a, b))
    if guard == "clamped":
        return F.cosine_similarity(a, b, dim=-1, eps=_SMALL)
    return (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1) + _SMALL)
