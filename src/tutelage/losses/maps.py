"""Losses on maps of one or several stages: one value per sample."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.losses.features import Distance, attention, bounded, same_size
from tutelage.losses.pooling import averaged, common_size


def factor_transfer(student_features: Tensor, teacher_features: Tensor, *, p: float = 2, norm: float = 1) -> Tensor:
    """Compute the distance between the attention maps of two factors.

    ``(1 / positions) * sum_x |Q_s[x] - Q_t[x]|**norm`` with ``Q = A / ||A||_2`` and
    ``A[x] = (1 / C) * sum_c f[c, x]**p``. A larger map is averaged down first (`same_size`).

    Args:
        student_features: ``(batch, channels, height, width)``: the output of the student's translator.
        teacher_features: same layout, with any number of channels and any size: the output of the teacher's
            paraphraser.
        p: power of the features, a whole number of at least 1.
        norm: power of the differences, at least 1.

    Returns:
        ``(batch,)``, no unit.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", arXiv 1802.04977.
    Differs from: the paper, which compares whole factors (`factor_difference`). Results on CIFAR-100 were published
        with this form, which sees no channels: it is attention transfer (`attention_transfer`) on factors.

    Example:
        >>> student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
        >>> factor_transfer(student, teacher)
        tensor([1.])
    """
    student, teacher = (attention(maps, p=p) for maps in same_size(student_features, teacher_features))
    _at_least_one(norm, "norm")
    difference = (student - teacher).abs()
    return (difference if norm == 1 else difference.pow(norm)).mean(1)


def factor_difference(
    student_features: Tensor, teacher_features: Tensor, *, p: float = 1, length_by: float = 2
) -> Tensor:
    """Compute the distance between two whole factors, each scaled to length 1.

    ``(1 / D) * sum_d |S[d] - T[d]|`` over all ``D`` entries at ``p=1``, ``||S - T||_2`` at ``p=2``, with
    ``S = s / ||s||`` and ``T = t / ||t||``, norms of order ``length_by`` over all entries of a sample.

    Args:
        student_features: ``(batch, ...)``.
        teacher_features: the same shape.
        p: order of the distance: 1, a mean, or 2, a norm that is neither squared nor divided by ``D``.
        length_by: order of the norm that the features are divided by, at least 1.

    Returns:
        ``(batch,)``, no unit.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", arXiv 1802.04977.
        Knowledge translation and adaptation (He et al., arXiv 1903.04688) has the same form on other features.
    Differs from: the paper at ``p=1``, which uses the sum.

    Example:
        >>> factor_difference(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
        tensor([1.])
    """
    features = checks.feature_pair(student_features, teacher_features, checks.ANY)
    _at_least_one(length_by, "length_by")
    if p not in (1, 2):
        raise InvalidValueError("p", "1 or 2", repr(p), "type p=1")
    student, teacher = (F.normalize(bounded(f).flatten(1), p=length_by, dim=1) for f in features)
    return (student - teacher).abs().mean(1) if p == 1 else torch.linalg.vector_norm(student - teacher, dim=-1)


def activation_boundary(student_features: Tensor, teacher_features: Tensor, *, margin: float = 1.0) -> Tensor:
    """Compute how far a student's neurons are from being on where the teacher's are on, and off where they are off.

    ``sum_d max(0, m - s[d])**2`` over the entries where ``t[d] > 0``, plus ``max(0, s[d] + m)**2`` where it is not: a
    sum over all channels and positions, so it grows with the map.

    Args:
        student_features: ``(batch, ...)``, before the activation.
        teacher_features: the same shape, before the activation.
        margin: ``m``, finite and above 0.

    Returns:
        ``(batch,)``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", arXiv
        1811.03233.
    Differs from: the published objective, which weights stage ``l`` of ``L`` by ``2**(l - L + 1)`` and all by
        ``3 / 1000``; here the preset ``activation_boundary`` does that.

    Example:
        >>> activation_boundary(torch.tensor([[0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, -1.0]]))
        tensor([10.])
    """
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.ANY)
    checks.positive(margin, "margin", example=1.0)
    beyond = torch.where(teacher > 0, margin - student, student + margin)
    return beyond.clamp(min=0).square().flatten(1).sum(1)


def fsp(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    pool: Literal["average", "maximum"] = "average",
    distance: Distance = "mean_square",
) -> Tensor:
    """Compare the flow from each stage to the next: the inner products of their channels.

    ``sum_l (1 / (C * D)) * sum_{c, d} (M_s[c, d] - M_t[c, d])**2`` over consecutive stages ``a`` and ``b``, with
    ``M[c, d] = (1 / positions) * sum_x a[c, x] * b[d, x]``. The larger of the two is first pooled to the smaller one's
    size. With ``distance="norm"`` each pair adds ``sum_d ||M_s[:, d] - M_t[:, d]||_2``.

    Args:
        student_features: at least two maps ``(batch, channels, height, width)``, in order.
        teacher_features: as many, each with the student's number of channels; sizes may differ.
        pool: kind of pooling of the larger map: ``average`` or ``maximum``.
        distance: kind of distance: ``mean_square``; or ``norm``, of the columns, neither squared nor divided by their
            number.

    Returns:
        ``(batch,)``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017.
    Differs from: the paper, which pools by the maximum and sums squares. Results on CIFAR-100 were published with means
        and averages; one library uses the norms of columns and the maximum.

    Example:
        >>> maps = [torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2)]
        >>> fsp([3 * maps[0], maps[1]], maps)
        tensor([4.])
    """
    stages = _stages(student_features, teacher_features)
    for name, value, known in (("pool", pool, ("average", "maximum")), ("distance", distance, ("mean_square", "norm"))):
        if value not in known:
            raise InvalidValueError(name, " or ".join(known), repr(value), f'type {name}="{known[0]}"')
    flows = [
        _flow(student, further_student, pool) - _flow(teacher, further_teacher, pool)
        for (student, teacher), (further_student, further_teacher) in itertools.pairwise(stages)
    ]
    if distance == "mean_square":
        return torch.stack([flow.square().mean((1, 2)) for flow in flows]).sum(0)
    return torch.stack([torch.linalg.vector_norm(flow.mT, dim=-1).sum(1) for flow in flows]).sum(0)


def kd_svd(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    k: int = 1,
    first_signs: Sequence[Tensor] | None = None,
) -> Tensor:
    """Compare how leading singular vectors change from each stage to the next.

    ``sum_l sum_{c, c', j} (exp(-(a[c, j] - b[c', j])**2 / 8)_s - (the same)_t)**2`` over consecutive stages ``a`` and
    ``b``. In each, vectors come from the matrix ``(positions, channels)`` of a sample's map: the teacher's are the
    first ``k`` right singular vectors; the student's are those among its first ``k + 3`` with the largest absolute
    cosine to each of them, with matching sign. Both are multiplied by the teacher's singular values, scaled to length
    1.

    The sign of a singular vector is arbitrary, and the value depends on the relative signs of the teacher's from stage
    to stage. Here each is turned so that its largest entry is above 0, whatever the library or device.

    Where singular values are equal, the vectors have no derivative; that part of the gradient is 0.

    Args:
        student_features: at least two maps ``(batch, channels, height, width)``, in order.
        teacher_features: as many, each with the student's number of channels; sizes may differ.
        k: number of vectors, at least 1 and at most the number of positions and of channels.
        first_signs: signs, ``(batch, k)`` for each stage, that the first entries of the teacher's vectors get instead.

    Returns:
        ``(batch,)``, no unit; not finite if a feature is not.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there are fewer than ``k`` vectors.
    Source: Lee, Kim and Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018.
    Differs from: public code, which takes the signs as they come. One public copy uses the matrix
        ``(channels * height, width)``; pass maps with those axes in place of positions and channels.

    Example:
        >>> maps = [torch.eye(2).reshape(1, 2, 2, 1) * torch.tensor([2.0, 1.0]).reshape(1, 2, 1, 1)] * 2
        >>> kd_svd(maps, maps)
        tensor([0.])
    """
    stages = _stages(student_features, teacher_features)
    if isinstance(k, bool) or not isinstance(k, int):
        raise InvalidTypeError("k", "a whole number", type(k).__name__, "type k=1")
    most = min(min(f.shape[1], f.shape[2:].numel()) for pair in stages for f in pair)
    if not 1 <= k <= most:
        raise InvalidValueError(
            "k", f"at least 1 vector, and at most {most}, the fewest positions or channels of a map", k, "type k=1"
        )
    signs = [None] * len(stages) if first_signs is None else list(first_signs)
    if len(signs) != len(stages):
        raise InvalidValueError("first_signs", f"{len(stages)} tensors, one per stage", len(signs), "leave it out")
    vectors = [_singular(*pair, k=k, first_signs=sign) for pair, sign in zip(stages, signs, strict=True)]
    total = torch.stack(
        [
            (_kernel(student, next_student) - _kernel(teacher, next_teacher)).square().sum((1, 2, 3))
            for (student, teacher), (next_student, next_teacher) in itertools.pairwise(vectors)
        ]
    ).sum(0)
    finite = torch.stack([f.isfinite().flatten(1).all(1) for pair in stages for f in pair]).all(0)
    return torch.where(finite, total, torch.nan)


def _at_least_one(value: float, name: str) -> None:
    checks.positive(value, name, example=1)
    if value < 1:
        raise InvalidValueError(name, "a number of at least 1", value, f"for example {name}=1")


def _stages(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of maps, checked, in at least float32, the teacher's without a gradient."""
    for name, maps in (("student_features", student_features), ("teacher_features", teacher_features)):
        if not isinstance(maps, list | tuple):
            raise InvalidTypeError(name, "a list of maps, one per stage", type(maps).__name__, "type [first, second]")
        if len(maps) < 2:
            raise InvalidValueError(
                name, "at least 2 stages, between which changes are compared", len(maps), "name more taps"
            )
    if len(student_features) != len(teacher_features):
        expected = f"{len(student_features)} stages, as student_features"
        instead = "name as many taps of both networks"
        raise InvalidValueError("teacher_features", expected, len(teacher_features), instead)
    pairs = []
    for stage, pair in enumerate(zip(student_features, teacher_features, strict=True)):
        student, teacher = checks.feature_pair(*pair, checks.MAPS, same="batch", stage=f"[{stage}]")
        if student.shape[1] != teacher.shape[1]:
            expected = f"{student.shape[1]} channels, as student_features[{stage}]"
            instead = "name stages of equal width, or use another objective"
            raise InvalidValueError(f"teacher_features[{stage}]", expected, teacher.shape[1], instead)
        pairs.append((student, teacher))
    return pairs


def _flow(first: Tensor, second: Tensor, pool: str) -> Tensor:
    """Return ``(batch, channels of the first, channels of the second)``."""
    size = common_size(first, second)
    shrink = averaged if pool == "average" else F.adaptive_max_pool2d
    first, second = (f if list(f.shape[2:]) == size else shrink(f, size) for f in (first, second))
    return first.flatten(2) @ second.flatten(2).mT / (size[0] * size[1])


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """Return ``(batch, channels, channels of the next stage, k)``."""
    return (-(first[:, :, None] - second[:, None]).square() / 8).exp()


def _singular(student: Tensor, teacher: Tensor, *, k: int, first_signs: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the student's and the teacher's vectors of one stage, ``(batch, channels, k)`` each."""
    values, teacher_vectors = _decomposed(_matrix(teacher))
    teacher_vectors = teacher_vectors[:, :, :k]
    if first_signs is None:
        signs = teacher_vectors.gather(1, teacher_vectors.abs().argmax(1, keepdim=True)).sign()
    elif first_signs.shape == (len(teacher), k):
        signs = teacher_vectors[:, :1].sign() * first_signs[:, None].to(teacher_vectors)
    else:
        raise InvalidValueError(
            "first_signs", f"shape {(len(teacher), k)} per stage", tuple(first_signs.shape), "leave it out"
        )
    teacher_vectors = teacher_vectors * signs
    candidates = _leading(_matrix(student), k + 3)
    cosines = candidates.detach().mT @ teacher_vectors
    nearest = cosines.abs().argmax(1, keepdim=True)
    student_vectors = candidates.gather(2, nearest.expand(-1, candidates.shape[1], -1))
    student_vectors = student_vectors * cosines.gather(1, nearest).sign()
    scale = F.normalize(values[:, :k], dim=1)[:, None]
    return student_vectors * scale, teacher_vectors * scale


def _matrix(maps: Tensor) -> Tensor:
    """Return ``(batch, positions, channels)``, scaled so that no square overflows; the vectors stay as they are."""
    rows = maps.flatten(2).mT
    # Decomposing non-finite values raises; the value of such a sample becomes NaN at the end instead.
    rows = torch.where(rows.isfinite().all(2, keepdim=True).all(1, keepdim=True), rows, 0.0)
    scale = rows.detach().abs().amax((1, 2), keepdim=True)
    return rows / torch.where(scale > 0, scale, 1.0)


def _decomposed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return singular values ``(batch, rank)`` and right vectors ``(batch, channels, rank)``, without a gradient."""
    _, values, vectors = torch.linalg.svd(rows.detach(), full_matrices=False)
    return values, vectors.mT


def _leading(rows: Tensor, count: int) -> Tensor:
    """Return the first right singular vectors ``(batch, channels, count)``, with only their own derivative.

    For a vector ``v`` with singular value ``s`` it is ``(s**2 - A)^+ dA v`` with ``A = rows' rows``. The library's
    covers all vectors, used or not, and is NaN if any two values are equal, such as those of channels that never fire.
    """
    values, vectors = _decomposed(rows)
    chosen, squares = vectors[:, :, :count], values.square()
    moved = rows.mT @ (rows @ chosen)
    moved = moved - moved.detach()
    least = squares[:, :1, None] * torch.finfo(rows.dtype).eps
    gaps = squares[:, None, :count] - squares[:, :, None]
    inside = vectors.mT @ moved
    outside = moved - vectors @ inside
    return (
        chosen + vectors @ (inside * _reciprocal(gaps, least)) + outside * _reciprocal(squares[:, None, :count], least)
    )


def _reciprocal(values: Tensor, least: Tensor) -> Tensor:
    nonzero = values.abs() > least
    return torch.where(nonzero, 1 / torch.where(nonzero, values, 1.0), 0.0)
