"""Losses on relations within a batch: one value ``()``, which depends on how a batch is split."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks
from tutelage.losses.pairwise import gram


def itrd_correlation(student_features: Tensor, teacher_features: Tensor, *, alpha: float) -> Tensor:
    """Compute the correlation term of information-theoretic distillation: batch-coupled.

    ``log2(sum_d |c[d] - 1|**(2 * alpha))`` with ``c[d] = (1 / batch) * sum_n s[n, d] * t[n, d]``, where ``s`` and ``t``
    are the features, each column standardised over the batch by its unbiased standard deviation. So ``c`` is at most
    ``(batch - 1) / batch``, and the smallest value is ``log2(width) - 2 * alpha * log2(batch)``, not minus infinity. A
    column that is constant over the batch has ``c[d] = 0`` and no gradient.

    Args:
        student_features: ``(batch, width)``, mapped to the teacher's width by a learned linear map.
        teacher_features: the same shape.
        alpha: half the exponent, above 0; the published values are 1.01 and 1.5.

    Returns:
        ``()`` bits; of either sign.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there are fewer than 2 samples.
    Source: Miles, Lopez Rodriguez and Mikolajczyk, "Information Theoretic Representation Distillation", arXiv
        2112.00459.
    Differs from: the authors' code if a column is constant, as for a channel that never fires: NaN there.

    Example:
        >>> itrd_correlation(torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [0.0]]), alpha=1.0)
        tensor(-2.)
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.EMBEDDINGS, min_batch=2)
    checks.positive(alpha, "alpha", example=1.01)
    correlation = (_standardised(student) * _standardised(teacher)).mean(0)
    return (correlation - 1).abs().pow(2 * alpha).sum().log2()


def itrd_mutual(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the mutual information term of information-theoretic distillation: batch-coupled.

    ``||G_s / tr(G_s)||_F**2 - ||G_st / tr(G_st)||_F**2``, with ``G`` the Gram matrix ``(batch, batch)`` of the features
    scaled to length 1 and ``G_st = G_s * G_t`` entry by entry.

    Args:
        student_features: ``(batch, width)``; public code maps it if the widths differ.
        teacher_features: ``(batch, width)``.

    Returns:
        ``()``, no unit; in [0, 1].

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Miles, Lopez Rodriguez and Mikolajczyk, "Information Theoretic Representation Distillation", arXiv
        2112.00459: matrix-based Rényi entropies of order 2, without the logarithms.

    Example:
        >>> itrd_mutual(torch.ones(2, 1), torch.eye(2))
        tensor(0.5000)
    """
    features = checks.feature_pair(student_features, teacher_features, checks.EMBEDDINGS, same="batch")
    student, teacher = (gram(F.normalize(f, dim=1)) for f in features)
    return _purity(student) - _purity(student * teacher)


def log_sum(student_features: Tensor, teacher_features: Tensor, *, exponent: float) -> Tensor:
    """Compute the logarithm of the summed differences of batch-normalised features: batch-coupled.

    ``log(sum_{n, d} |s[n, d] - t[n, d]|**exponent)``, where ``s`` and ``t`` are the features, each column standardised
    over the batch as a batch norm in training mode does (biased variance, 1e-5 added). The sum is over the whole batch
    and the width, so the value grows with both; its only lower bound is that of the dtype.

    Args:
        student_features: ``(batch, width)``, mapped to the teacher's width by a learned linear map.
        teacher_features: the same shape.
        exponent: power of the differences, above 0; the published value is 4. The larger it is, the more the largest
            differences count.

    Returns:
        ``()`` nats; of either sign.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there are fewer than 2 samples.
    Source: Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", arXiv
        2303.11098.
    Differs from: torchdistill's ``SRDLoss``: no normalisation, twice the value, and an added KL without ``T**2``.

    Example:
        >>> log_sum(torch.tensor([[1.0], [-1.0]]), torch.tensor([[-1.0], [1.0]]), exponent=4.0)
        tensor(3.4657)
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.EMBEDDINGS, min_batch=2)
    return log_power(_normalised(student) - _normalised(teacher), exponent=exponent)


def log_power(differences: Tensor, *, exponent: float) -> Tensor:
    """Compute ``log(sum |x|**exponent)`` over all entries: `log_sum` without the normalisation of features.

    Args:
        differences: tensor of any shape.
        exponent: power of the entries, above 0.

    Returns:
        ``()``. If every entry is 0 it is the value for the smallest number, without a gradient.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: as `log_sum`.

    Example:
        >>> log_power(torch.tensor([1.0, -1.0]), exponent=4.0)
        tensor(0.6931)
    """
    checks.positive(exponent, "exponent", example=4.0)
    tiny = torch.finfo(differences.dtype).tiny
    # Divided by the largest entry, so that no power overflows.
    largest = differences.detach().abs().amax().clamp(min=tiny)
    return (differences / largest).abs().pow(exponent).sum().clamp(min=tiny).log() + exponent * largest.log()


def _normalised(features: Tensor) -> Tensor:
    centred = features - features.mean(0)
    return centred / (centred.square().mean(0) + 1e-5).sqrt()


def _standardised(features: Tensor) -> Tensor:
    centred = features - features.mean(0)
    variance = centred.square().sum(0) / (len(features) - 1)
    varies = variance > 0
    # The square root of 0 has no gradient: keep it out of the graph, not only out of the value.
    return torch.where(varies, centred / torch.where(varies, variance, 1.0).sqrt(), 0.0)


def _purity(matrix: Tensor) -> Tensor:
    # Not `torch.trace`, whose gradient makes the host read a value.
    return (matrix / matrix.diagonal().sum()).square().sum()
