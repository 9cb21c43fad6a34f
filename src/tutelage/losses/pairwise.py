"""Losses on relations between the samples of a batch: distances, angles, similarities, correlations.

Each returns one value ``()``, which depends on how a batch is split. The widths of student and teacher may differ
unless stated otherwise. Distances and directions are of differences, so a common offset costs no digits.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tutelage import checks
from tutelage.errors import InvalidValueError

_NEAREST = 1e-6
"""Least distance between different samples; no gradient below it."""
_PKT_EPS = 1e-7
_ENTRIES = 2**25
"""Largest number of angle entries held at once."""


def rkd_distance(student_features: Tensor, teacher_features: Tensor, *, squared: bool = False) -> Tensor:
    """Compute the distance-wise term of relational distillation: batch-coupled.

    ``(1 / batch**2) * sum_{i, j} h(D_s[i, j] - D_t[i, j])``, where ``D`` are the Euclidean distances between samples
    divided by their mean over all pairs ``i != j``, and ``h(x) = x**2 / 2`` up to ``|x| = 1``, ``|x| - 1/2`` beyond.
    The diagonal is 0 and counts in ``batch**2``. Distances are at least 1e-6, with no gradient below that. The
    student's mean is differentiated too, so the gradient keeps the scale of the features. Memory grows with
    ``batch**2``.

    Args:
        student_features: ``(batch, width)``, such as the pooled embedding.
        teacher_features: ``(batch, width)``. The widths may differ.
        squared: whether squared distances, of at least 1e-12, take the place of the distances.

    Returns:
        ``()``, no unit; 0 for two samples, and for sets equal up to scale and shift.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there are fewer than 2 samples.
    Source: Park et al., "Relational Knowledge Distillation", arXiv 1904.05068. Published results use the distances.
    Differs from: public code in the last digits: there the distances come from a Gram matrix, which in float32 with a
        common offset of 100 standard deviations is off by 2e-3; and for one sample, where it gives NaN.

    Example:
        >>> rkd_distance(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [3.0]]))
        tensor(0.0556)
    """
    student, teacher = _embeddings(student_features, teacher_features, min_batch=2)
    return F.smooth_l1_loss(_distances(student, squared), _distances(teacher, squared))


def rkd_angle(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the angle-wise term of relational distillation: batch-coupled.

    ``(1 / batch**3) * sum_{i, j, k} h(A_s[i, j, k] - A_t[i, j, k])``, where ``A[i, j, k]`` is the cosine at sample
    ``i`` between the directions to ``j`` and ``k``, and ``h(x) = x**2 / 2`` up to ``|x| = 1``, ``|x| - 1/2`` beyond.
    Triples with ``j = i`` or ``k = i`` have a cosine of 0 and count in ``batch**3``.

    Time grows with ``batch**3 * width``, memory only up to a limit: where ``batch**2 * max(batch, width)`` is above
    2**25, as with more than 256 samples of width 512, the vertices ``i`` are processed in pieces of that many numbers
    (a few tensors of 128 MiB in float32), and the pieces are computed again for the gradient.

    If two of the student's samples are equal and the teacher's are not, a direction is 0 and its gradient is of the
    order of 1e12, as in the public code: an unlucky step for a network that maps many samples to one point.

    Args:
        student_features: ``(batch, width)``, such as the pooled embedding.
        teacher_features: ``(batch, width)``. The widths may differ.

    Returns:
        ``()``, no unit; 0 for two samples, and for sets equal up to scale, shift and rotation.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there are fewer than 2 samples.
    Source: Park et al., "Relational Knowledge Distillation", arXiv 1904.05068.
    Differs from: public code for one sample, whose value is 0 there beside a distance-wise term that is NaN.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> line = torch.tensor([[0.0], [1.0], [2.0]])
        >>> rkd_angle(square, square).item(), round(rkd_angle(square, line).item(), 4)
        (0.0, 0.1296)
    """
    student, teacher = _embeddings(student_features, teacher_features, min_batch=2)
    batch = len(student)
    step = max(1, _ENTRIES // (batch * max(batch, student.shape[1], teacher.shape[1])))
    if step >= batch:
        return _angle_loss(student, teacher, 0, batch) / batch**3
    # No random numbers are involved, and reading the generator's state would make the host wait for the device.
    recomputed = partial(checkpoint, _angle_loss, use_reentrant=False, preserve_rng_state=False)
    pieces = [recomputed(student, teacher, start, start + step) for start in range(0, batch, step)]
    return torch.stack(pieces).sum() / batch**3


def pkt(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute probabilistic knowledge transfer: batch-coupled.

    ``(1 / batch**2) * sum_{i, j} p[i, j] * log((p[i, j] + 1e-7) / (q[i, j] + 1e-7))``, where ``p`` (teacher) and ``q``
    (student) are rows ``(c[i, j] + 1) / 2`` divided by their sum, diagonal included, and ``c`` is the cosine between
    samples, with 1e-7 added to each length. It is a mean over ``batch**2``, not over rows: that is why the published
    weight is 30000, for batches of 64.

    Args:
        student_features: ``(batch, width)``, such as the pooled embedding.
        teacher_features: ``(batch, width)``. The widths may differ.

    Returns:
        ``()`` nats divided by ``batch``; 0 for one sample.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", arXiv 1803.10837.
    Differs from: public code if a sample is 0 everywhere, whose gradient is NaN there and 0 here; and in precision: if
        embeddings point nearly the same way, as before training, public code loses digits.

    Example:
        >>> pkt(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item()  # log(3 / 2) / 2
        0.20273...
    """
    student, teacher = (_neighbours(f) for f in _embeddings(student_features, teacher_features))
    # Embeddings of a network point nearly the same way, so all p and q are nearly 1 / batch, and a sum of
    # p * log(p / q) of both signs keeps few digits. Rows of q - p sum to 0: added to it, they leave no term below 0.
    q, p = student + _PKT_EPS, teacher + _PKT_EPS
    change = (student - teacher) / p
    log_ratio = torch.where(change > -0.5, change.clamp(min=-0.5).log1p(), q.log() - p.log())
    return (p * (change - log_ratio) + _PKT_EPS * log_ratio).mean()


def similarity(student_features: Tensor, teacher_features: Tensor, *, row_norm: int = 2) -> Tensor:
    """Compute similarity-preserving distillation: batch-coupled.

    ``(1 / batch**2) * ||G_s - G_t||_F**2``, where ``G`` is the Gram matrix ``(batch, batch)`` of the flattened
    features, each row scaled to length 1. A row of zeros stays zero and gets no gradient.

    Args:
        student_features: ``(batch, ...)``, such as the last stage.
        teacher_features: ``(batch, ...)``. All but the batch may differ.
        row_norm: order of the rows' norm: 2 for the Euclidean length, 1 for the sum of absolute values.

    Returns:
        ``()``, no unit.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682.
    Differs from: torchdistill's ``row_norm=1``, by a factor of about 3; the published weight, 3000, is for 2.

    Example:
        >>> similarity(torch.eye(2), torch.ones(2, 1))
        tensor(0.2929)
    """
    axes = ("batch", "feature", "...")
    features = checks.feature_pair(student_features, teacher_features, axes, same="batch")
    if row_norm not in (1, 2):
        raise InvalidValueError("row_norm", "1 or 2", repr(row_norm), "type row_norm=2 for the published form")
    student, teacher = (unit_rows(gram(f.flatten(1)), order=row_norm) for f in features)
    return (student - teacher).square().mean()


def correlation(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute correlation congruence as benchmarks run it: batch-coupled, and dependent on the order of the samples.

    ``(1 / (batch - 1)) * sum_{n < batch - 1} sum_d |e[n, d]| * |e[n + 1, d]|`` with ``e = student - teacher``: products
    of neighbours' errors, not the paper's kernel matrices (`correlation_kernel`).

    Args:
        student_features: ``(batch, width)``; public code first maps both to width 128 by learned linear maps.
        teacher_features: the same shape.

    Returns:
        ``()``, the square of the features' unit.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there are fewer than 2 samples.
    Source: Peng et al., "Correlation Congruence for Knowledge Distillation", arXiv 1904.01802, in the form of the
        benchmark of Tian et al., arXiv 1910.10699, whose published results use it.

    Example:
        >>> correlation(torch.tensor([[1.0], [-2.0], [3.0]]), torch.zeros(3, 1))
        tensor(4.)
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.EMBEDDINGS, min_batch=2)
    errors = (student - teacher).abs()
    return (errors[:-1] * errors[1:]).sum(1).mean()


def correlation_kernel(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    kernel: str = "gaussian",
    gamma: float = 0.4,
    order: int = 2,
    normalise: bool = True,
    squared: bool = True,
) -> Tensor:
    """Compute correlation congruence as the paper defines it: batch-coupled.

    ``(1 / batch**2) * ||K_s - K_t||_F**2``, where ``K[i, j] = exp(-2 * gamma) * sum_{p <= order} (2 * gamma)**p / p! *
    <f[i], f[j]>**p``: on features of length 1 the Taylor expansion of ``exp(-gamma * |f[i] - f[j]|**2)``.

    Args:
        student_features: ``(batch, width)``.
        teacher_features: ``(batch, width)``. The widths may differ.
        kernel: name of the kernel: ``gaussian``; or ``bilinear``, ``<f[i], f[j]>``, without ``gamma`` and ``order``.
        gamma: factor of the squared distance, above 0.
        order: order of the expansion, a whole number of at least 1.
        normalise: whether features are first scaled to length 1. If not, the expansion is no longer a Gaussian.
        squared: whether the norm is squared; if not, ``(1 / batch**2) * ||K_s - K_t||_F``.

    Returns:
        ``()``, no unit if normalised.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Peng et al., "Correlation Congruence for Knowledge Distillation", arXiv 1904.01802.
    Differs from: torchdistill: ``normalise=False, squared=False``; and Tian et al., who use the name for `correlation`.

    Example:
        >>> correlation_kernel(torch.eye(2), torch.ones(2, 2), kernel="bilinear")
        tensor(0.5000)
    """
    features = _embeddings(student_features, teacher_features)
    if kernel not in ("gaussian", "bilinear"):
        raise InvalidValueError("kernel", "one of gaussian, bilinear", repr(kernel), "type kernel='gaussian'")
    checks.positive(gamma, "gamma", example=0.4)
    checks.whole_number(order, "order", example=2)
    student, teacher = (gram(F.normalize(f, dim=1) if normalise else f) for f in features)
    if kernel == "gaussian":
        student, teacher = _expansion(student, gamma, order), _expansion(teacher, gamma, order)
    difference = student - teacher
    norm = difference.square().sum() if squared else torch.linalg.vector_norm(difference)
    return norm / len(difference) ** 2


def gram(rows: Tensor) -> Tensor:
    """Return the inner products of all pairs of rows."""
    return rows @ rows.mT


def _embeddings(student: Tensor, teacher: Tensor, *, min_batch: int = 1) -> tuple[Tensor, Tensor]:
    return checks.feature_pair(student, teacher, checks.EMBEDDINGS, same="batch", min_batch=min_batch)


def _distances(features: Tensor, squared: bool) -> Tensor:
    # Not by matrix multiplication, which loses digits to a common offset.
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=_NEAREST)
    distances = distances.square() if squared else distances
    batch = len(features)
    distances = distances.masked_fill(torch.eye(batch, dtype=torch.bool, device=features.device), 0.0)
    return distances / (distances.sum() / (batch * (batch - 1)))


def _angle_loss(student_features: Tensor, teacher_features: Tensor, start: int, end: int) -> Tensor:
    """Return the sum over all triples whose vertex is one of the samples from ``start`` to ``end``."""
    student, teacher = _cosines(student_features, start, end), _cosines(teacher_features, start, end)
    return F.smooth_l1_loss(student, teacher, reduction="sum")


def _cosines(features: Tensor, start: int, end: int) -> Tensor:
    directions = F.normalize(features - features[start:end, None], dim=2)
    return directions @ directions.mT


def _neighbours(features: Tensor) -> Tensor:
    unit = features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + _PKT_EPS)
    similarities = (gram(unit) + 1) / 2
    return similarities / similarities.sum(1, keepdim=True)


def unit_rows(matrices: Tensor, *, order: int = 2) -> Tensor:
    """Scale each row to length 1 in a norm; a row of length 0 stays 0 and gets no gradient."""
    length = torch.linalg.vector_norm(matrices, ord=order, dim=-1, keepdim=True)
    nonzero = length > 0
    return torch.where(nonzero, matrices / torch.where(nonzero, length, 1.0), 0.0)


def _expansion(products: Tensor, gamma: float, order: int) -> Tensor:
    # By Horner's rule: a power of 0 has no gradient of its own.
    series = torch.ones_like(products)
    for p in range(order, 0, -1):
        series = 1 + 2 * gamma / p * products * series
    return math.exp(-2 * gamma) * series
