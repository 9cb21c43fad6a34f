"""Losses on maps that a learned module makes from the student's: one value per sample."""

from __future__ import annotations

from torch import Tensor

from tutelage import checks
from tutelage.losses.pooling import averaging


def review(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the hierarchical context loss of ReviewKD: mean squared distances of two maps and their poolings.

    ``(m(s, t) + sum_k 2**-k * m(P_k(s), P_k(t))) / (1 + sum_k 2**-k)``, where ``m(a, b)`` is the mean of ``(a - b)**2``
    over channels and pixels (``1 / (C * h * w)``) and ``P_1, P_2, ...`` average a map over a grid of 4x4, 2x2 and 1x1
    fields. A grid takes part if its side is below the map's shorter one, and ``k`` counts those that do: a map of
    4x4 has 2x2 as ``P_1`` and 1x1 as ``P_2``, a map of 1x1 has none.

    Args:
        student_features: ``(batch, channels, height, width)``, of the teacher's shape.
        teacher_features: the same shape.

    Returns:
        ``(batch,)``, squares of the features' unit.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Chen et al., "Distilling Knowledge via Knowledge Review", arXiv 2104.09044.
    Differs from: public code, which adds up the levels, takes the mean over the batch and compares the grid with the
        height alone. Fields are those of adaptive average pooling and may overlap.

    Example:
        >>> import torch
        >>> review(torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
        tensor([1.])
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.MAPS)
    difference = student - teacher
    total, weight, weights = difference.square().mean((1, 2, 3)), 1.0, 1.0
    height, width = difference.shape[2:]
    for grid in (4, 2, 1):
        if grid < min(height, width):
            weight /= 2
            weights += weight
            # Pooling is linear, so the difference is pooled once.
            pooled = averaging(grid, height, difference) @ difference @ averaging(grid, width, difference).T
            total = total + weight * pooled.square().mean((1, 2, 3))
    return total / weights


def mgd(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the squared error of masked generative distillation, summed over channels and pixels.

    ``sum_{c, h, w} (s[c, h, w] - t[c, h, w])**2``: a sum over all positions, masked or not; the published weight is
    7e-5.

    Args:
        student_features: ``(batch, channels, height, width)``: generated from a masked map.
        teacher_features: the same shape.

    Returns:
        ``(batch,)``, squares of the features' unit.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Yang et al., "Masked Generative Distillation", arXiv 2205.01529.

    Example:
        >>> import torch
        >>> mgd(torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))
        tensor([18.])
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.MAPS)
    return (student - teacher).square().sum((1, 2, 3))
