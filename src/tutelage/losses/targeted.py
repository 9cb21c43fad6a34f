"""Losses on logits that single out the labelled class: one value per sample, in nats, not reduced over the batch.

Shapes, precision and notation are those of `tutelage.losses.logits`. ``y`` is the labelled class; the *others* are the
remaining ``classes - 1``, and ``a[i]`` and ``b[i]`` are the student's and the teacher's softmax over them alone. An
unlabelled sample (-100) has value 0 and gradient 0.

Everything is in log space and uses the margin ``m = z[y] - logsumexp(z[others])``, which gives
``log q[y] = -softplus(-m)`` and ``log(1 - q[y]) = -softplus(m)``: no probability is rounded to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks
from tutelage.losses.divergences import KINDS
from tutelage.losses.logits import cross_entropy, kl_divergence, kl_within, labelled_class
from tutelage.losses.transport import transport
from tutelage.types import UNLABELLED


def dkd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Compute decoupled knowledge distillation: the label's probability and the others', weighted separately.

    ``alpha * T**2 * KL((p[y], 1 - p[y]) || (q[y], 1 - q[y])) + beta * T**2 * KL(b || a)``, all at temperature ``T``.
    With ``alpha = 1`` and ``beta = 1 - p[y]`` it would be `kd`. With two classes, the second divergence is 0.

    Args:
        student_logits: ``(..., classes)``, ``z``; at least two classes.
        teacher_logits: the same shape, ``v``.
        labels: ``(...)`` int64 class indices, or -100, unlabelled: value and gradient exactly 0.
        alpha: weight of the label's divergence, finite and at least 0.
        beta: weight of the others' divergence, finite and at least 0.
        temperature: ``T``, finite and above 0; it divides both networks' logits.

    Returns:
        ``(...)`` nats times ``T**2``; 0 if the two networks agree.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or labels are soft.
    Source: Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679.
    Differs from: the authors' code in precision only. It takes logarithms of probabilities and subtracts 1000 from the
        label's logit, which gives infinities and NaN once a network is sure (a gap of about 90 ``T`` in float32). Their
        trainer multiplies the term by ``min(epoch / 20, 1)``, here a schedule of the weight (`objectives.dkd`).

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0]])
        >>> dkd(student, teacher, torch.tensor([0]), alpha=1.0, beta=8.0, temperature=1.0)
        tensor([0.9069])
    """
    weights = {"alpha": alpha, "beta": beta, "temperature": temperature}
    return _decoupled(student_logits, teacher_logits, labels, **weights, divergence=kl_divergence)


def abdkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    beta: float,
    ab_alpha: float,
    ab_beta: float,
    temperature: float,
) -> Tensor:
    """Compute `dkd` with the alpha-beta divergence of the others in place of their KL divergence.

    ``alpha * T**2 * KL((p[y], 1 - p[y]) || (q[y], 1 - q[y])) + beta * T**2 * D(b, a)``, all at temperature ``T``, with
    the divergence ``alpha_beta`` of `divergence`. At exponents 1 and 0 it is `dkd`. With two classes, ``D`` is 0.

    Args:
        student_logits: ``(..., classes)``, ``z``; at least two classes.
        teacher_logits: the same shape, ``v``.
        labels: ``(...)`` int64 class indices, or -100, unlabelled: value and gradient exactly 0.
        alpha: weight of the label's divergence, finite and at least 0.
        beta: weight of the others' divergence, finite and at least 0.
        ab_alpha: exponent of the teacher in ``D``, any finite number.
        ab_beta: exponent of the student in ``D``, any finite number.
        temperature: ``T``, finite and above 0; it divides both networks' logits.

    Returns:
        ``(...)`` nats times ``T**2``; 0 if the two networks agree.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or labels are soft.
    Source: Wang et al., "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
        alpha-beta-Divergence", arXiv 2505.04560.
    Differs from: the authors' code where an exponent or their sum is 0, which has no value there but at (1, 0), and in
        precision: its powers and logarithms of probabilities have no finite gradient once a network is sure.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0]])
        >>> numbers = {"alpha": 1.0, "beta": 8.0, "ab_alpha": 0.5, "ab_beta": 0.6, "temperature": 1.0}
        >>> abdkd(student, teacher, torch.tensor([0]), **numbers)
        tensor([0.8900])
    """
    checks.finite(ab_alpha, "ab_alpha", example=0.5)
    checks.finite(ab_beta, "ab_beta", example=0.6)
    weights = {"alpha": alpha, "beta": beta, "temperature": temperature}
    divergence = partial(KINDS["alpha_beta"], alpha=ab_alpha, beta=ab_beta)
    return _decoupled(student_logits, teacher_logits, labels, **weights, divergence=divergence)


def _decoupled(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
    divergence: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return `dkd` with any divergence of the others, given their log-probabilities."""
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    checks.weight(alpha, "alpha", example=1.0)
    checks.weight(beta, "beta", example=8.0)
    checks.positive(temperature, "temperature", example=4.0)
    target = labelled_class(student_logits, labels)
    sure, others = _split(student_logits / temperature, target)
    teacher_sure, teacher_others = _split(teacher_logits / temperature, target)
    of_label, of_others = kl_divergence(_binary(sure), _binary(teacher_sure)), divergence(others, teacher_others)
    values = temperature * temperature * (alpha * of_label + beta * of_others)
    return values.masked_fill(labels == UNLABELLED, 0.0)


def wkd_l(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    cost: Tensor,
    temperature: float,
    sinkhorn_lambda: float = 0.05,
    sinkhorn_iter: int = 10,
    guard: float = 0.0,
) -> Tensor:
    """Compute the transport of Wasserstein distillation on logits: what it costs to move ``a`` to ``b``.

    `transport` between the others' softmaxes at temperature ``T``. The method has the label's term as well,
    ``-p[y] * log q[y]`` at temperature 1, which is `nkd` with ``gamma = 0``. With two classes, the transport is 0, and
    so it is where a network gives none of the others probability.

    Args:
        student_logits: ``(..., classes)``, ``z``; at least two classes.
        teacher_logits: the same shape, ``v``.
        labels: ``(...)`` int64 class indices, or -100, unlabelled: value and gradient exactly 0.
        cost: ``(classes, classes)``, at least 0 (not checked), such as `class_cost` of the teacher's last layer.
        temperature: ``T``, finite and above 0; it divides both networks' logits.
        sinkhorn_lambda: weight of the plan's entropy, above 0.
        sinkhorn_iter: number of iterations; the published 10 do not converge at ``T = 8``: see `transport`.
        guard: what is added to denominators, at least 0; the published code's is 1e-8.

    Returns:
        ``(...)`` in the unit of the cost, without ``T**2``; at least 0, and above it even if the two networks agree.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or labels are soft.
    Source: Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", arXiv
        2412.08139.
    Differs from: the authors' code, which adds 1e-8 to each cost and each denominator: see `transport`.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0]])
        >>> cost = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.5, 0.0]])
        >>> wkd_l(student, teacher, torch.tensor([0]), cost=cost, temperature=1.0)
        tensor([0.0621])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    checks.positive(temperature, "temperature", example=8.0)
    target = labelled_class(student_logits, labels)
    _, others = _split(student_logits / temperature, target)
    _, teacher_others = _split(teacher_logits / temperature, target)
    nothing = ((others == -torch.inf).all(dim=-1) | (teacher_others == -torch.inf).all(dim=-1)).unsqueeze(-1)
    values = transport(
        others.masked_fill(nothing, 0.0),
        teacher_others.masked_fill(nothing, 0.0),
        cost=cost,
        sinkhorn_lambda=sinkhorn_lambda,
        sinkhorn_iter=sinkhorn_iter,
        guard=guard,
    )
    return values.masked_fill(nothing.squeeze(-1) | (labels == UNLABELLED), 0.0)


def nkd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, gamma: float, temperature: float) -> Tensor:
    """Compute normalised knowledge distillation: the teacher's probability of the label, and those of the others.

    ``-p[y] * log q[y] - gamma * T**2 * sum_i b_T[i] * log a_T[i]``: the first term has no temperature, and in the
    second the others' softmaxes are at temperature ``T``. Both are cross-entropies: not 0 if the networks agree. The
    labels' cross-entropy is added, not replaced. With two classes, the second term is 0.

    Args:
        student_logits: ``(..., classes)``, ``z``; at least two classes.
        teacher_logits: the same shape, ``v``.
        labels: ``(...)`` int64 class indices, or -100, unlabelled: value and gradient exactly 0; or soft labels
            ``(..., classes)``, whose likeliest class is ``y`` (the first if there are several).
        gamma: weight of the second term, finite and at least 0.
        temperature: ``T`` of the second term, finite and above 0.

    Returns:
        ``(...)`` nats, the second term times ``T**2``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
        Loss and Customized Soft Labels", arXiv 2303.13005.
    Differs from: the authors' code in precision only. It too reduces soft labels to their likeliest class; its results
        under Mixup and CutMix were obtained that way.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0]])
        >>> nkd(student, teacher, torch.tensor([0]), gamma=1.5, temperature=1.0)
        tensor([0.7484])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    checks.weight(gamma, "gamma", example=1.5)
    checks.positive(temperature, "temperature", example=1.0)
    if isinstance(labels, Tensor) and labels.is_floating_point():
        checks.labels_for(student_logits, labels)
        labels = labels.argmax(dim=-1)
    target = labelled_class(student_logits, labels)
    sure, _ = _split(student_logits, target)
    teacher_sure, _ = _split(teacher_logits, target)
    _, others = _split(student_logits / temperature, target)
    _, teacher_others = _split(teacher_logits / temperature, target)
    p = teacher_sure.sigmoid()
    values = (-p * F.logsigmoid(sure)).masked_fill(p == 0, 0.0)
    if gamma:  # 0 times an infinite cross-entropy would be NaN.
        values = values + gamma * temperature * temperature * _crossed(others, teacher_others)
    return values.masked_fill(labels == UNLABELLED, 0.0)


def rld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
    alpha_temperature: float,
) -> Tensor:
    """Compute refined logit distillation: how sure the teacher is, and the classes that it puts below the label.

    ``alpha * A**2 * KL((max p, 1 - max p) || (q[y], 1 - q[y])) + beta * T**2 * KL(b || a)``, the first divergence at
    temperature ``A``, the second at ``T``. The student is to be as sure of the label as the teacher is of its own
    likeliest class, right or wrong. ``a`` and ``b`` are the softmaxes over the classes with ``v[i] < v[y]`` alone, so
    that those which the teacher takes for likelier than the label teach nothing. With none below, the second is 0.

    Args:
        student_logits: ``(..., classes)``, ``z``; at least two classes.
        teacher_logits: the same shape, ``v``.
        labels: ``(...)`` int64 class indices, or -100, unlabelled: value and gradient exactly 0.
        alpha: weight of the first divergence, finite and at least 0.
        beta: weight of the second, finite and at least 0.
        temperature: ``T``, finite and above 0, of both networks' logits.
        alpha_temperature: ``A``, likewise.

    Returns:
        ``(...)`` nats times ``A**2`` and ``T**2``; 0 if the two networks agree and the label is their likeliest class.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or labels are soft.
    Source: Sun et al., "Knowledge Distillation with Refined Logits", arXiv 2408.07703.
    Differs from: the authors' code in precision only. It takes logarithms of probabilities, which gives infinities and
        NaN once a network is sure.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0]])
        >>> rld(student, teacher, torch.tensor([0]), alpha=1.0, beta=8.0, temperature=1.0, alpha_temperature=1.0)
        tensor([0.9957])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    checks.weight(alpha, "alpha", example=1.0)
    checks.weight(beta, "beta", example=8.0)
    checks.positive(temperature, "temperature", example=4.0)
    checks.positive(alpha_temperature, "alpha_temperature", example=1.0)
    target = labelled_class(student_logits, labels)
    sure, _ = _split(student_logits / alpha_temperature, target)
    teacher_sure, _ = _split(teacher_logits / alpha_temperature, teacher_logits.argmax(dim=-1, keepdim=True))
    below = teacher_logits < teacher_logits.gather(-1, target)
    of_label = alpha_temperature * alpha_temperature * kl_divergence(_binary(sure), _binary(teacher_sure))
    of_below = temperature * temperature * kl_within(student_logits / temperature, teacher_logits / temperature, below)
    return (alpha * of_label + beta * of_below).masked_fill(labels == UNLABELLED, 0.0)


def wsld(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Compute weighted soft labels: a sample counts more if the student does worse on it than the teacher.

    ``T**2 * w * -sum_i p_T[i] * log q_T[i]`` with ``w = 1 - exp(-CE(y, q) / (CE(y, p) + 1e-7))``, in [0, 1), at
    temperature 1 and without a gradient. It is a cross-entropy, not a divergence: not 0 if the networks agree.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``.
        labels: ``(...)`` int64 class indices, or -100, unlabelled: value and gradient exactly 0; or soft labels
            ``(..., classes)``, which both cross-entropies of the weight then use.
        temperature: ``T``, finite and above 0; it divides both networks' logits, but not those of the weight.

    Returns:
        ``(...)`` nats times ``T**2`` and the weight.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
        arXiv 2102.00650.
    Differs from: the authors' code only in the labels that it takes. A Kullback-Leibler divergence in place of the
        cross-entropy, as the paper writes, has the same gradient, as the weight has none.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0]])
        >>> wsld(student, teacher, torch.tensor([0]), temperature=1.0)
        tensor([0.3150])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    checks.positive(temperature, "temperature", example=4.0)
    ratio = cross_entropy(student_logits.detach(), labels) / (cross_entropy(teacher_logits, labels) + 1e-7)
    log_q = torch.log_softmax(student_logits / temperature, dim=-1)
    log_p = torch.log_softmax(teacher_logits / temperature, dim=-1)
    # An unlabelled sample's cross-entropies are 0, and so are the ratio and the weight.
    return temperature * temperature * -torch.expm1(-ratio) * _crossed(log_q, log_p)


def _split(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margin of the target and the log-probabilities of the others, ``-inf`` at the target.

    Where all others have a logit of ``-inf``, each stays so, without a gradient, and the margin is infinite.
    """
    others = logits.scatter(-1, target, -torch.inf)
    none = (others == -torch.inf).all(dim=-1, keepdim=True)
    others = others.masked_fill(none, 0.0)
    margin = logits.gather(-1, target).squeeze(-1) - others.logsumexp(dim=-1)
    log_others = torch.log_softmax(others, dim=-1).masked_fill(none, -torch.inf)
    return margin.masked_fill(none.squeeze(-1), torch.inf), log_others


def _binary(margin: Tensor) -> Tensor:
    return torch.stack([F.logsigmoid(margin), F.logsigmoid(-margin)], dim=-1)


def _crossed(log_q: Tensor, log_p: Tensor) -> Tensor:
    p = log_p.exp()
    return -(p * log_q).masked_fill(p == 0, 0.0).sum(dim=-1)
