"""Losses on logits: one value per sample, in nats, not reduced over the batch.

Classes are the last axis; the axes before it, ``(batch,)`` or ``(batch, tokens)``, are the result's shape.
``q = softmax(z)`` is the student, ``p = softmax(v)`` the teacher, ``p_gamma = softmax(gamma * v)`` its power transform.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks, targets
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.losses.sparse import kl, sparse_matching
from tutelage.types import UNLABELLED, Sparse


def cross_entropy(
    student_logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Compute the student's cross-entropy with the labels.

    ``CE(y, q) = -sum_i w[i] * y'[i] * log q[i]`` with ``y' = (1 - label_smoothing) * y + label_smoothing / classes``;
    ``y`` is the one-hot row of a class index, or the soft label itself, and ``w`` the classes' weights, by default 1.

    Args:
        student_logits: ``(..., classes)``.
        labels: ``(...)`` int64 class indices, or -100, unlabelled: value and gradient exactly 0; or soft labels
            ``(..., classes)``, each row non-negative with sum 1, or all 0.
        label_smoothing: share of the label spread evenly over all classes, in [0, 1).
        class_weights: ``(classes,)`` floating, each at least 0 (not checked): one whose weight is 0 counts for nothing.

    Returns:
        ``(...)`` nats; infinite if the student gives probability 0, a logit of ``-inf``, to a class with a share.

    Raises:
        TypeError: if the logits or the weights are not a floating tensor, or the labels neither int64 nor floating.
        ValueError: if shapes do not fit, ``label_smoothing`` is outside [0, 1), an index is neither a class nor -100,
            or a soft label is no distribution, as multi-hot ones are not. Labels are checked on the CPU outside
            ``torch.compile``; on CUDA the kernel asserts for an index, and a `Distiller` checks its first batch.

    Source: label smoothing: Szegedy et al., "Rethinking the Inception Architecture", arXiv 1512.00567.
    Differs from: `torch.nn.functional.cross_entropy`, which has classes on axis 1 and by default takes the mean. A mean
        over labelled samples is the sum of these values over the number of labels that are not -100; with weights torch
        divides the same values by the sum of the labels' weights, unless labels are soft.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> cross_entropy(logits, torch.tensor([0, -100]))
        tensor([0.2395, 0.0000])
    """
    student_logits = checks.classwise(student_logits, "student_logits")
    is_index = checks.labels_for(student_logits, labels)
    checks.fraction(label_smoothing, "label_smoothing", example=0.1)
    log_q = torch.log_softmax(student_logits, dim=-1)
    if class_weights is not None:
        class_weights = checks.per_class(log_q, class_weights).to(log_q.dtype)
        log_q = (class_weights * log_q).masked_fill(class_weights == 0, 0.0)
    if not is_index:
        smoothed = labels.detach().to(log_q.dtype) * (1 - label_smoothing) + label_smoothing / labels.shape[-1]
        return (smoothed * -log_q).masked_fill(smoothed == 0, 0.0).sum(dim=-1)
    rows = log_q.reshape(-1, log_q.shape[-1])
    values = F.nll_loss(rows, labels.reshape(-1), ignore_index=UNLABELLED, reduction="none").reshape(labels.shape)
    if label_smoothing == 0:
        return values
    uniform = -log_q.mean(dim=-1).masked_fill(labels == UNLABELLED, 0.0)
    return (1 - label_smoothing) * values + label_smoothing * uniform


def confidence_penalty(student_logits: Tensor) -> Tensor:
    """Compute a penalty on confident students: minus the Shannon entropy.

    ``-H(q) = sum_i q[i] * log q[i]``. The gradient with respect to the logits is ``q * (log q + H(q))``.

    Args:
        student_logits: ``(..., classes)``.

    Returns:
        ``(...)`` nats; between ``-log(classes)`` (uniform) and 0 (one-hot).

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions", arXiv
        1701.06548.

    Example:
        >>> confidence_penalty(torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
        tensor([-0.6931, -0.0012])
    """
    student_logits = checks.classwise(student_logits, "student_logits")
    return -targets.shannon_entropy(torch.log_softmax(student_logits, dim=-1))


def kl_divergence(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """Compute the Kullback-Leibler divergence of the student from the teacher.

    ``KL(p || q) = sum_i p[i] * (log p[i] - log q[i])``. A class with ``p = 0`` (``-inf``) contributes 0 to value and
    gradient, even if ``q = 0`` there; a class with ``q = 0`` and ``p > 0`` makes it infinite.

    Args:
        student_log_probs: ``(..., classes)``, ``log q``, normalised (not checked).
        teacher_log_probs: the same shape, ``log p``.

    Returns:
        ``(...)`` nats; 0 if the two are equal, otherwise above 0, up to rounding.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Kullback and Leibler, "On Information and Sufficiency", 1951.
    Differs from: `torch.nn.functional.kl_div`, which by default takes the teacher's probabilities and averages over
        classes too; and code that calls the cross-entropy ``-sum p * log q``, whose gradient is equal, a KL divergence.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.5, 0.25, 0.25]])
        >>> kl_divergence(q.log(), p.log())
        tensor([0.3466])
    """
    return kl(*checks.logit_pair(student_log_probs, teacher_log_probs, "log_probs"))


def kd(student_logits: Tensor, teacher_logits: Tensor | Sparse, *, temperature: float) -> Tensor:
    """Compute the matching term of classic knowledge distillation.

    ``T**2 * KL(softmax(v / T) || softmax(z / T))``. The gradient with respect to the logits is ``T * (q_T - p_T)``. The
    cross-entropy with the labels is not included.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0; or its largest, `types.Sparse`, of which
            no whole row is made.
        temperature: ``T``, finite and above 0; it divides both networks' logits.

    Returns:
        ``(...)`` nats times ``T**2``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
    Differs from: torchdistill's ``KDLoss``, which drops ``T**2`` if its ``alpha`` is 0; cls_KD's, which is a
        cross-entropy; and code that calls ``kl_div`` with ``reduction="mean"``, smaller by the number of classes.

    Example:
        >>> kd(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), temperature=2.0)
        tensor([1.8485])
    """
    checks.positive(temperature, "temperature", example=4.0)
    if isinstance(teacher_logits, Sparse):
        return (
            temperature
            * temperature
            * sparse_matching(student_logits, teacher_logits, gamma=1 / temperature, student_gamma=1 / temperature)[0]
        )
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    log_q = torch.log_softmax(student_logits / temperature, dim=-1)
    log_p = torch.log_softmax(teacher_logits / temperature, dim=-1)
    return temperature * temperature * kl(log_q, log_p)


def ttm(student_logits: Tensor, teacher_logits: Tensor | Sparse, *, gamma: float) -> Tensor:
    """Compute transformed teacher matching: the unchanged student against the power-transformed teacher.

    ``KL(p_gamma || q)`` with ``p_gamma = softmax(gamma * v)``, ``q = softmax(z)``: no temperature on the student, no
    ``T**2``. The gradient with respect to the logits is ``q - p_gamma``. With ``T = 1 / gamma`` it is classic
    distillation plus a Rényi entropy:
    ``KL(p_gamma || q) = T * KL(p_gamma || q_gamma) - (T - 1) * H_gamma(q) + (T - 1) * H(p_gamma)``.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0; or its largest, `types.Sparse`, of which
            no whole row is made.
        gamma: exponent, finite and above 0; below 1 it flattens the teacher, at 1 this is `kd` at temperature 1.

    Returns:
        ``(...)`` nats.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148, Section 3.
    Differs from: the authors' code in precision only: it computes ``softmax(v) ** gamma``, which underflows (wrong by
        10 % or more in float16 from a logit scale of 5, by 0.4 % in float32 at a scale of 30 with 1000 classes).

    Example:
        >>> ttm(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), gamma=0.5)
        tensor([1.0068])
    """
    checks.positive(gamma, "gamma", example=0.1)
    if isinstance(teacher_logits, Sparse):
        return sparse_matching(student_logits, teacher_logits, gamma=gamma)[0]
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    log_p_gamma = torch.log_softmax(gamma * teacher_logits, dim=-1)
    return kl(torch.log_softmax(student_logits, dim=-1), log_p_gamma)


def wttm(student_logits: Tensor, teacher_logits: Tensor | Sparse, *, gamma: float) -> Tensor:
    """Compute weighted transformed teacher matching: `ttm`, each sample weighted by its teacher's power sum.

    ``U_gamma(p) * KL(p_gamma || q)`` with ``U_gamma(p) = sum_j p[j]**gamma``, so a sample on which the teacher is
    unsure counts more. The gradient with respect to the logits is ``U * (q - p_gamma)``. The weight lies between 1 and
    ``classes ** (1 - gamma)``, so a loss weight does not carry over to another ``gamma`` or number of classes.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0; or its largest, `types.Sparse`, of which
            no whole row is made.
        gamma: exponent, finite and above 0; at 1 this is `ttm` and `kd` at temperature 1.

    Returns:
        ``(...)`` nats times the power sum.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148, Section 4.
    Differs from: the authors' code in precision only, as `ttm` does.

    Example:
        >>> wttm(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), gamma=0.5)
        tensor([1.2925])
    """
    checks.positive(gamma, "gamma", example=0.1)
    if isinstance(teacher_logits, Sparse):
        divergence, weight = sparse_matching(student_logits, teacher_logits, gamma=gamma)
        return weight * divergence
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    log_p_gamma = torch.log_softmax(gamma * teacher_logits, dim=-1)
    weight = _power_sum(teacher_logits, log_p_gamma, gamma)
    return weight * kl(torch.log_softmax(student_logits, dim=-1), log_p_gamma)


def weighted_kd(student_logits: Tensor, teacher_logits: Tensor | Sparse, *, temperature: float) -> Tensor:
    """Compute the matching term of knowledge distillation, each sample weighted as in `wttm`.

    ``U_gamma(p) * T**2 * KL(softmax(v / T) || softmax(z / T))`` with ``gamma = 1 / T``: `kd` times the teacher's power
    sum. The gradient with respect to the logits is ``T * U * (q_T - p_T)``. `wttm` differs from it in the student's
    temperature alone: ``wttm = weighted_kd / T - (T - 1) * U * H_gamma(q) + (T - 1) * U * H(p_gamma)``.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0; or its largest, `types.Sparse`, of which
            no whole row is made.
        temperature: ``T``, finite and above 0; it divides both networks' logits.

    Returns:
        ``(...)`` nats times ``T**2`` and the power sum.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: the control of Zheng and Yang, arXiv 2402.11148, Section 4, whose weight it has; not in the paper.

    Example:
        >>> weighted_kd(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), temperature=2.0)
        tensor([2.3730])
    """
    checks.positive(temperature, "temperature", example=4.0)
    gamma, factor = 1 / temperature, temperature * temperature
    if isinstance(teacher_logits, Sparse):
        divergence, weight = sparse_matching(student_logits, teacher_logits, gamma=gamma, student_gamma=gamma)
        return factor * weight * divergence
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    log_p_gamma = torch.log_softmax(teacher_logits / temperature, dim=-1)
    weight = _power_sum(teacher_logits, log_p_gamma, gamma)
    return factor * weight * kl(torch.log_softmax(student_logits / temperature, dim=-1), log_p_gamma)


def renyi_penalty(student_logits: Tensor, *, order: float) -> Tensor:
    """Compute minus the student's Rényi entropy: what transformed teacher matching adds to classic distillation.

    ``-H_a(q) = -log(sum_i q[i]**a) / (1 - a)``. The gradient with respect to the logits is ``a / (1 - a) * (q - q_a)``
    with the power transform ``q_a``, and at ``a = 1`` that of `confidence_penalty`.

    Args:
        student_logits: ``(..., classes)``.
        order: ``a``, above 0; 1 is `confidence_penalty`, infinity is ``max_i log q[i]``.

    Returns:
        ``(...)`` nats; between ``-log(classes)`` (uniform) and 0 (one-hot).

    Raises: TypeError or ValueError if a dtype, shape or number is not as above; order 0 has no gradient.
    Source: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148, Section 3:
        TTM is classic distillation with this term at ``order = 1 / T``, weighted by ``beta * (T - 1)``.

    Example:
        >>> renyi_penalty(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), order=0.5)
        tensor([-0.6931, -0.0220])
    """
    student_logits = checks.classwise(student_logits, "student_logits")
    checks.order(order)
    if order == 0:
        raise InvalidValueError("order", "a number above 0", "0, which has no gradient", "for example order=0.25")
    return -targets.renyi_entropy(torch.log_softmax(student_logits, dim=-1), order=order)


def standardise(logits: Tensor) -> Tensor:
    """Standardise logits over the classes, so that a loss sees their shape and not their scale.

    ``(z - mean(z)) / (std(z) + 1e-7)`` with the unbiased deviation, which divides by ``classes - 1``. It goes in front
    of any loss of logits, on both networks: ``kd(standardise(z), standardise(v), temperature=2.0)``. The gradient goes
    through mean and deviation. Two classes become ``+-0.7071``, whatever they were.

    Args:
        logits: ``(..., classes)``; at least two classes. ``-inf`` means probability 0 and stays: mean and deviation are
            those of the other classes, as if there were no such class.

    Returns:
        Same shape, no unit; 0 where a row is constant. There the gradient is finite but large, up to ``1e7`` times
        the incoming one: a student whose logits start out all equal needs another initialisation.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427.
    Differs from: the paper, whose formula has no ``1e-7``; the authors' code does.

    Example:
        >>> standardise(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.0000,  0.0000,  1.0000]])
    """
    logits = checks.classwise(logits, "logits")
    if logits.shape[-1] < 2:
        raise InvalidValueError(
            "logits", "at least 2 classes", f"{logits.shape[-1]}, which has no deviation", "leave it as it is"
        )
    classes, absent = logits.shape[-1], logits == -math.inf
    present = (classes - absent.sum(dim=-1, keepdim=True)).to(logits.dtype)
    # Absent classes are 0 in the sum and the mean in the deviation, where they add nothing but count: the factors put
    # that right, and are exactly 1 where all classes are present.
    values = logits.masked_fill(absent, 0.0)
    mean = values.mean(dim=-1, keepdim=True) * (classes / present)
    centred = values - mean
    deviation = torch.where(absent, mean.detach(), values).std(dim=-1, keepdim=True)
    deviation = deviation * ((classes - 1) / (present - 1).clamp(min=1)).sqrt()
    return (centred / (deviation + 1e-7)).masked_fill(absent, -math.inf)


def ctkd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: Tensor) -> Tensor:
    """Compute `kd` at a temperature that is a tensor, differentiably, as a learned temperature needs.

    ``T**2 * KL(softmax(v / T) || softmax(z / T))``. The gradient with respect to ``T`` goes through ``T**2`` and
    through both softmaxes.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0.
        temperature: ``T``, ``()`` or one entry, above 0 (not checked).

    Returns:
        ``(...)`` nats times ``T**2``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Li et al., "Curriculum Temperature for Knowledge Distillation", arXiv 2211.16231.

    Example:
        >>> ctkd(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), temperature=torch.tensor(2.0))
        tensor([1.8485])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    if not isinstance(temperature, Tensor) or not temperature.is_floating_point():
        kind = checks.kind_of(temperature)
        raise InvalidTypeError("temperature", "a floating tensor", kind, "type tutelage.losses.kd(...) for a number")
    if temperature.numel() != 1:
        raise InvalidValueError("temperature", "one entry", tuple(temperature.shape), "for example temperature.mean()")
    t = temperature.reshape(()).to(torch.promote_types(temperature.dtype, torch.float32))
    log_q, log_p = (torch.log_softmax(_divided(logits, t), dim=-1) for logits in (student_logits, teacher_logits))
    return t * t * kl(log_q, log_p)


def _divided(logits: Tensor, temperature: Tensor) -> Tensor:
    """Return logits divided by a temperature, whose gradient would be ``0 * inf`` at a class of probability 0."""
    absent = logits == -math.inf
    return (logits.masked_fill(absent, 0.0) / temperature).masked_fill(absent, -math.inf)


def tekap(
    student_logits: Tensor, teacher_logits: Tensor, *, noise: Tensor, temperature: float, share: float, perturbed: float
) -> Tensor:
    """Compute `kd` of a teacher and of perspectives of it, its logits mixed with noise.

    ``KD(v) + perturbed * sum_i KD((1 - share) * v + share * noise[i])`` with
    ``KD(u) = T**2 * KL(softmax(u / T) || softmax(z / T))``. The sum is not divided by the number of perspectives. Where
    the networks agree it is above 0, as the perspectives differ from both.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0, in every perspective.
        noise: ``(perspectives, ..., classes)``, in the published setting standard normal, drawn anew at each step; no
            gradient reaches it.
        temperature: ``T``, finite and above 0; it divides all logits.
        share: noise's share of a perspective's logits, in [0, 1).
        perturbed: weight of the perspectives, finite and at least 0.

    Returns:
        ``(...)`` nats times ``T**2``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Hossain et al., "Single teacher, multiple perspectives: teacher knowledge augmentation for enhanced
        knowledge distillation", ICLR 2025: its part on logits.
    Differs from: the authors' code in that the noise is given, and that its numbers are arguments.

    Example:
        >>> student, teacher, noise = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]), torch.tensor([[[0.0, 1.0]]])
        >>> tekap(student, teacher, noise=noise, temperature=2.0, share=0.1, perturbed=0.8)
        tensor([0.7086])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    checks.positive(temperature, "temperature", example=4.0)
    checks.fraction(share, "share", example=0.1)
    checks.weight(perturbed, "perturbed", example=0.8)
    noise = checks.classwise(noise, "noise").detach().to(teacher_logits.dtype)
    if noise.shape[1:] != teacher_logits.shape:
        sizes = ", ".join(map(str, teacher_logits.shape))
        expected, instead = f"shape (perspectives, {sizes})", f"type torch.randn(3, {sizes})"
        raise InvalidValueError("noise", expected, tuple(noise.shape), instead)
    perspectives = torch.cat([teacher_logits[None], (1 - share) * teacher_logits + share * noise])
    log_q = torch.log_softmax(student_logits / temperature, dim=-1)
    values = kl(log_q, torch.log_softmax(perspectives / temperature, dim=-1))
    return temperature * temperature * (values[0] + perturbed * values[1:].sum(dim=0))


def scaled_gradient(values: Tensor, *, factor: float | Tensor) -> Tensor:
    """Return the values unchanged and multiply their gradient: a gradient reversal if the factor is negative.

    ``x`` forwards, ``factor * dx`` backwards.

    Args:
        values: any shape and floating dtype.
        factor: factor on the gradient: any finite number, or one in a ``()`` tensor; 0 stops the gradient.

    Returns:
        The same values.

    Raises: TypeError if ``values`` is not a floating tensor.
    Source: Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", arXiv 1409.7495.
    Differs from: layers of that name that supply the minus sign themselves; here it is in the factor.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = scaled_gradient(x, factor=-0.5)
        >>> y.backward()
        >>> y.item(), x.grad.item()
        (3.0, -0.5)
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = checks.kind_of(values)
        raise InvalidTypeError("values", "a floating tensor", kind, "type torch.as_tensor(values).float()")
    # The difference is exactly 0 and carries the gradient.
    return values.detach() + factor * (values - values.detach())


def teacher_free_kd(student_logits: Tensor, labels: Tensor, *, correct: float, temperature: float) -> Tensor:
    """Compute the regularisation by a virtual teacher (Tf-KD_reg) that is nearly sure of the label, then flattened.

    ``KL(softmax(u / T) || q)`` with the virtual teacher's *probabilities* ``u``: ``correct`` at the label, and
    ``(1 - correct) / (classes - 1)`` elsewhere. The student has no temperature, and there is no ``T**2``. As ``u`` lies
    in [0, 1], the target is nearly uniform for every ``T >= 1``: the term smooths labels.

    Args:
        student_logits: ``(..., classes)``; at least two classes.
        labels: ``(...)`` int64 class indices, or -100, unlabelled: value and gradient exactly 0.
        correct: virtual teacher's probability of the label, above 0 and below 1.
        temperature: ``T``, finite and above 0.

    Returns:
        ``(...)`` nats; infinite if the student gives probability 0, a logit of ``-inf``, to a class.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or labels are soft.
    Source: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", arXiv 1909.11723.
    Differs from: the authors' code by a factor: it averages over the classes too, and multiplies by a number, 100 for
        100 classes. The softmax of probabilities is theirs, and published results were made with it. The paper's text,
        a teacher ``u**(1/T)``, is ``kd`` with ``u.log()`` for the teacher's logits.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> teacher_free_kd(logits, torch.tensor([0, -100]), correct=0.9, temperature=1.0)
        tensor([0.1279, 0.0000])
    """
    student_logits = checks.classwise(student_logits, "student_logits")
    checks.fraction(correct, "correct", example=0.99)
    checks.positive(correct, "correct", example=0.99)
    checks.positive(temperature, "temperature", example=20.0)
    target = labelled_class(student_logits, labels)
    wrong = torch.full_like(student_logits, (1 - correct) / (student_logits.shape[-1] - 1))
    virtual = wrong.scatter(-1, target, correct)
    log_p = torch.log_softmax(virtual / temperature, dim=-1)
    values = kl(torch.log_softmax(student_logits, dim=-1), log_p)
    return values.masked_fill(labels == UNLABELLED, 0.0)


def labelled_class(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Return each sample's labelled class, ``(..., 1)``, class 0 if unlabelled; refuse soft labels."""
    if not checks.labels_for(student_logits, labels):
        got = f"soft labels, {labels.dtype}, of which none is the labelled class"
        instead = "type labels.argmax(-1), or leave out Mixup, CutMix and label smoothing of the data"
        raise InvalidValueError("labels", "int64 class indices", got, instead)
    if student_logits.shape[-1] < 2:
        raise InvalidValueError("student_logits", "at least 2 classes", student_logits.shape[-1], "add the other class")
    return labels.clamp(min=0).unsqueeze(-1)


def kl_within(student_logits: Tensor, teacher_logits: Tensor, inside: Tensor) -> Tensor:
    """Return the divergence of the softmaxes over some classes, ``inside``, alone.

    It is 0 where there are none of them or the teacher gives none of them probability, and infinite where the student
    alone gives none; neither has a gradient.
    """
    rows, lost = [], []
    for logits in (student_logits, teacher_logits):
        here = inside & (logits != -math.inf)
        none = here.any(dim=-1, keepdim=True).logical_not()
        rows.append(torch.log_softmax(logits.masked_fill(~(here | none), -math.inf).masked_fill(none, 0.0), dim=-1))
        lost.append(none.squeeze(-1))
    return kl(*rows).masked_fill(lost[0], math.inf).masked_fill(lost[1], 0.0)


def _power_sum(teacher_logits: Tensor, log_p_gamma: Tensor, gamma: float) -> Tensor:
    # log U = gamma * log p[i] - log p_gamma[i] for every class i. At the likeliest one both logarithms are small, so
    # nothing cancels, and two maxima cost less than a logsumexp.
    log_p_max = torch.log_softmax(teacher_logits, dim=-1).amax(dim=-1)
    return (gamma * log_p_max - log_p_gamma.amax(dim=-1)).exp()
