"""Losses on relations between the channels or the positions of one sample's maps: one value per sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks
from tutelage.errors import InvalidValueError
from tutelage.losses.features import same_size
from tutelage.losses.pairwise import gram, unit_rows


def nst(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute neuron selectivity transfer: squared maximum mean discrepancy with the kernel ``<a, b>**2``.

    ``mean_{c, d} <t[c], t[d]>**2 + mean_{c, d} <s[c], s[d]>**2 - 2 * mean_{c, d} <s[c], t[d]>**2``, where ``s[c]`` and
    ``t[d]`` are channels as vectors over positions, scaled to length 1; a larger map is averaged down first
    (`same_size`). Memory grows with ``batch * min(positions, channels)**2``: the smaller of two Gram matrices.

    Args:
        student_features: ``(batch, channels, height, width)``.
        teacher_features: same layout, with any number of channels and any size.

    Returns:
        ``(batch,)``, no unit; at least 0, up to rounding.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219.
        The published weight of 50 is for this form, a mean over pairs of channels; the paper halves it.

    Example:
        >>> student = torch.tensor([[[[1.0, 0.0]]]])
        >>> nst(student, 3 * student), nst(student, torch.tensor([[[[0.0, 1.0]]]]))
        (tensor([0.]), tensor([2.]))
    """
    student, teacher = (F.normalize(f.flatten(2), dim=2) for f in same_size(student_features, teacher_features))
    if student.shape[2] <= max(student.shape[1], teacher.shape[1]):
        # sum_{c, d} <a[c], b[d]>**2 = <A'A, B'B>, so all three terms are one squared norm.
        return (gram(student.mT) / student.shape[1] - gram(teacher.mT) / teacher.shape[1]).square().sum((1, 2))
    within = gram(student).square().mean((1, 2)) + gram(teacher).square().mean((1, 2))
    return within - 2 * (student @ teacher.mT).square().mean((1, 2))


def inter_channel(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute inter-channel correlation distillation.

    ``(1 / channels) * sum_{c, d} (G_s[c, d] - G_t[c, d])**2``, where ``G`` is the Gram matrix ``(channels, channels)``
    of a sample's channels over its positions, each row scaled to length 1. A row of zeros stays zero and gets no
    gradient.

    Args:
        student_features: ``(batch, channels, height, width)``, mapped to the teacher's channels.
        teacher_features: ``(batch, channels, height, width)``. Height and width may differ.

    Returns:
        ``(batch,)``, no unit.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", arXiv
        2202.03680. The authors' results on CIFAR-100 were obtained with this form and a weight of 2.5.
    Differs from: the authors' ImageNet code and torchdistill, where the mean over the batch is divided by the batch
        size once more; the paper writes ``1 / channels**2`` and no scaling of rows.

    Example:
        >>> inter_channel(torch.eye(2).reshape(1, 2, 1, 2), torch.ones(1, 2, 1, 2))
        tensor([0.5858])
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.MAPS, same="batch")
    if student.shape[1] != teacher.shape[1]:
        expected = f"the teacher's {teacher.shape[1]} channels"
        instead = "map the student's features first, for example by Apply(projection=...)"
        raise InvalidValueError("student_features", expected, student.shape[1], instead)
    student_gram, teacher_gram = (unit_rows(gram(f.flatten(2))) for f in (student, teacher))
    return (student_gram - teacher_gram).square().sum((1, 2)) / student_gram.shape[1]


def affinity(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compare each channel's affinities between positions, ignoring the channel's sign and scale.

    ``sum_c ||s[c] s[c]' - t[c] t[c]'||_F / positions``, where ``s[c]`` and ``t[c]`` are channels as vectors over
    positions, scaled to length 1; it is computed as ``|s[c] - t[c]| * |s[c] + t[c]| / sqrt(2)``, without matrices over
    positions. A channel that is 0 everywhere in just one network counts 1 / positions, with no gradient.

    Args:
        student_features: ``(batch, channels, height, width)``, mapped to the teacher's shape.
        teacher_features: the same shape.

    Returns:
        ``(batch,)``, no unit.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: He et al., "Knowledge Adaptation for Efficient Semantic Segmentation", arXiv 1903.04688, as in torchdistill.
    Differs from: the paper, whose affinity is between positions, by the cosine over all channels at once; and from
        torchdistill if a channel is 0 everywhere, which gives NaN there.

    Example:
        >>> affinity(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]]))
        tensor([0.7071])
    """
    features = checks.feature_pair(student_features, teacher_features, checks.MAPS)
    student, teacher = (F.normalize(f.flatten(2), dim=2) for f in features)
    distances = torch.linalg.vector_norm(student - teacher, dim=2) * torch.linalg.vector_norm(student + teacher, dim=2)
    one_alone_is_zero = student.detach().any(2) != teacher.any(2)
    return torch.where(one_alone_is_zero, 1.0, distances / math.sqrt(2)).sum(1) / student.shape[2]
