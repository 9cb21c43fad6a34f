"""Losses on layers of maps and tokens: pooled and normalised, as distributions, as Gaussians, as relations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks
from tutelage.errors import InvalidValueError
from tutelage.losses.embeddings import cosine_distance, embedding_mse
from tutelage.losses.features import same_size
from tutelage.losses.logits import kl_divergence

OVER = ("positions", "channels")
NORMALISE = ("layer", "batch")
TOKEN_DISTANCES = {"mean_square": embedding_mse, "cosine": cosine_distance}
RELATION_DISTANCES = ("kl", "mean_square")


def vkd(student_features: Tensor, teacher_features: Tensor, *, normalise: str = "layer") -> Tensor:
    """Compute VkD's distance of a projected feature from the teacher's normalised one.

    ``(1 / width) * sum_d h(s[d] - n(t)[d])`` with ``h(x) = x**2 / 2`` where ``|x| < 1``, else ``|x| - 1 / 2``, of
    features averaged over their positions. ``n`` takes the mean off and divides by ``sqrt(variance + 1e-5)``, over the
    teacher's channels. With ``normalise="batch"``, for detection, nothing is averaged: both sides are standardised,
    each channel over all positions of the batch, and what is returned is the mean over these too.

    Args:
        student_features: ``(batch, width)``, ``(batch, tokens, width)`` or maps ``(batch, channels, height, width)``,
            mapped to the teacher's width, which of maps is the number of channels.
        teacher_features: any of these layouts; with ``batch`` as many positions as the student's, or maps of any size,
            of which the larger is averaged down.
        normalise: kind of normalisation: ``layer`` or ``batch``.

    Returns:
        ``(batch,)``; ``()`` for ``batch``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or a batch has one position in all.
    Source: Miles et al., "VkD: Improving Knowledge Distillation using Orthogonal Projections", arXiv 2403.06213.
    Differs from: public code in ``batch`` alone, where a channel that is constant over the batch is NaN: here it is 0.

    Example:
        >>> vkd(torch.tensor([[3.0, -1.0]]), torch.tensor([[5.0, 1.0]]))
        tensor([0.7500])
    """
    checks.known(normalise, "normalise", NORMALISE, example="layer")
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.ANY, same="batch")
    if normalise == "batch" and student.ndim == teacher.ndim == 4:
        student, teacher = same_size(student, teacher)
    student, teacher = _rows(student, "student_features"), _rows(teacher, "teacher_features")
    if normalise == "layer":
        student, teacher = student.mean(1), teacher.mean(1)
        checks.same_shape(student, teacher, "student_features", "teacher_features")
        teacher = F.layer_norm(teacher, teacher.shape[-1:])
        return F.smooth_l1_loss(student, teacher, reduction="none").mean(1)
    checks.same_shape(student, teacher, "student_features", "teacher_features")
    if student.shape[:2].numel() < 2:
        expected = "at least 2 positions in a batch to standardise over"
        raise InvalidValueError("student_features", expected, 1, "use larger batches, or type normalise=layer")
    return F.smooth_l1_loss(_standardised(student.flatten(0, 1)), _standardised(teacher.flatten(0, 1)))


def _rows(features: Tensor, name: str) -> Tensor:
    """Return ``(batch, positions, width)``."""
    if features.ndim == 4:
        return features.flatten(2).mT
    if features.ndim in (2, 3):
        return features if features.ndim == 3 else features[:, None]
    expected = "shape (batch, width), (batch, tokens, width) or (batch, channels, height, width)"
    raise InvalidValueError(name, expected, tuple(features.shape), "name another tap, or reshape what it gives")


def _standardised(rows: Tensor) -> Tensor:
    """Standardise columns by the unbiased variance; a constant one becomes 0 and gets no gradient."""
    variance, mean = torch.var_mean(rows, 0)
    # Rounding leaves a variance to a column of equal numbers. One with NaN is not constant, so that it is noticed.
    constant = variance <= (mean * torch.finfo(rows.dtype).eps).square()
    return ((rows - mean) * variance.masked_fill(constant, 1.0).rsqrt()).masked_fill(constant, 0.0)


def cwd(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    temperature: float = 1.0,
    over: str = "positions",
    counted: Tensor | None = None,
) -> Tensor:
    """Compute channel-wise distillation: each channel's map is a distribution over the positions.

    ``T**2 * (1 / C) * sum_c KL(softmax_x(t[c] / T) || softmax_x(s[c] / T))``. With ``over="channels"``, the spatial
    variant, each position has a distribution over the channels, and the mean is over positions. The larger map is
    averaged down.

    Args:
        student_features: ``(batch, channels, height, width)``.
        teacher_features: as many channels, any size.
        temperature: ``T``, finite and above 0.
        over: axis of the distributions, ``positions`` or ``channels``.
        counted: positions that take part, ``(batch, height, width)`` bool, for maps of one size; ``None`` for all.

    Returns:
        ``(batch,)`` nats times ``T**2``; 0 for a sample of which nothing counts.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", arXiv 2011.13256.
    Differs from: public code of the spatial variant, which takes the logarithm of a softmax: infinite at large gaps.

    Example:
        >>> cwd(torch.zeros(1, 2, 1, 2), torch.tensor([[[[0.0, 0.0]], [[100.0, 0.0]]]]))
        tensor([0.3466])
    """
    checks.positive(temperature, "temperature", example=4.0)
    checks.known(over, "over", OVER, example="positions")
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.MAPS, same="batch")
    if counted is None:
        student, teacher = same_size(student, teacher)
    checks.same_shape(student, teacher, "student_features", "teacher_features")
    student, teacher = student.flatten(2) / temperature, teacher.flatten(2) / temperature
    seen: Tensor | None = None
    if counted is not None:
        seen = checks.mask(counted, student_features.shape[:1] + student_features.shape[2:], "counted").flatten(1)
    if over == "channels":
        return temperature**2 * mean_of(_kl(student.mT, teacher.mT), seen)
    if seen is not None:
        student, teacher = (_only(maps, seen[:, None]) for maps in (student, teacher))
    return temperature**2 * _kl(student, teacher).mean(1)


def mean_of(values: Tensor, counted: Tensor | None) -> Tensor:
    """Return the mean of each row ``(batch, positions)`` over those of its values that count; 0 if none does."""
    return values.mean(1) if counted is None else values.where(counted, 0.0).sum(1) / counted.sum(1).clamp(min=1)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    return kl_divergence(student.log_softmax(-1), teacher.log_softmax(-1))


def _only(logits: Tensor, counted: Tensor) -> Tensor:
    """Leave what does not count out of a softmax, but where nothing counts."""
    return logits.masked_fill(~counted, torch.finfo(logits.dtype).min)


def wkd_f(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    mean_cov_ratio: float = 4.0,
    grid: int = 1,
    epsilon: float = 1e-5,
) -> Tensor:
    """Compute the Wasserstein distance of Gaussians that each cell of a map is taken for, with diagonal covariances.

    ``(1 / grid**2) * sum_{cells, c} (mean_cov_ratio * (m_s[c] - m_t[c])**2 + (d_s[c] - d_t[c])**2)`` with ``m`` a
    channel's mean in a cell and ``d`` its deviation there, ``sqrt(variance + epsilon)``, the variance unbiased: a sum
    over channels. The cells are those of adaptive pooling, which overlap where ``grid`` does not divide a side. A
    larger map is averaged down first (`same_size`).

    Args:
        student_features: ``(batch, channels, height, width)``.
        teacher_features: as many channels, any size.
        mean_cov_ratio: weight of the means, above 0.
        grid: number of cells a side, at least 1.
        epsilon: constant added to the variance, above 0.

    Returns:
        ``(batch,)``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or a cell has one position.
    Source: Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", arXiv
        2412.08139.
    Differs from: public code, which is NaN where a cell has one position.

    Example:
        >>> wkd_f(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
        tensor([4.])
    """
    checks.positive(mean_cov_ratio, "mean_cov_ratio", example=4.0)
    checks.positive(epsilon, "epsilon", example=1e-5)
    checks.whole_number(grid, "grid", example=1)
    student, teacher = same_size(student_features, teacher_features)
    checks.same_shape(student, teacher, "student_features", "teacher_features")
    height, width = student.shape[2:]
    rows, columns = ([(i * side // grid, -(-(i + 1) * side // grid)) for i in range(grid)] for side in (height, width))
    if min((b - a) * (d - c) for a, b in rows for c, d in columns) < 2:
        expected = f"at most a cell of 2 positions of maps of {height} x {width}, as its variance is measured"
        raise InvalidValueError("grid", expected, grid, "type grid=1, or name taps of larger maps")
    distances = []
    for a, b in rows:
        for c, d in columns:
            (s_var, s_mean), (t_var, t_mean) = (
                torch.var_mean(maps[..., a:b, c:d], (2, 3)) for maps in (student, teacher)
            )
            deviations = (s_var + epsilon).sqrt() - (t_var + epsilon).sqrt()
            distances.append((mean_cov_ratio * (s_mean - t_mean).square() + deviations.square()).sum(1))
    return torch.stack(distances).sum(0) / grid**2


def hidden_states(student_features: Tensor, teacher_features: Tensor, *, distance: str = "mean_square") -> Tensor:
    """Compute how far each token's hidden state is from the teacher's.

    ``mean_square`` is ``(1 / width) * sum_d (s[d] - t[d])**2``, ``cosine`` is ``1 - s t / (|s| |t|)``.

    Args:
        student_features: ``(batch, tokens, width)``, mapped to the teacher's width.
        teacher_features: the same shape.
        distance: kind of distance, ``mean_square`` or ``cosine``. Patient knowledge distillation has the squared
            distance of vectors of length 1, which is twice the ``cosine``.

    Returns:
        ``(batch, tokens)``; padding is for the caller to leave out.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Jiao et al., "TinyBERT", arXiv 1909.10351; Sanh et al., "DistilBERT", arXiv 1910.01108; Sun et al., "Patient
        Knowledge Distillation for BERT Model Compression", arXiv 1908.09355.
    Differs from: Liger-Kernel's ``cosine``, which adds up all positions, those that are ignored too, and divides by the
        number of the others.

    Example:
        >>> hidden_states(torch.ones(1, 1, 2), torch.tensor([[[1.0, 3.0]]]))
        tensor([[2.]])
    """
    checks.known(distance, "distance", TOKEN_DISTANCES, example="mean_square")
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.TOKENS)
    return TOKEN_DISTANCES[distance](student, teacher)


def attention_relations(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    heads: int,
    student_keys: Tensor | None = None,
    teacher_keys: Tensor | None = None,
    mask: Tensor | None = None,
    attend: str = "all",
    distance: str = "kl",
) -> Tensor:
    """Compute how far the relations of a text's tokens are from those of the teacher, for each token.

    ``(1 / heads) * sum_h KL(R_t[h, i] || R_s[h, i])`` with ``R[h, i] = softmax_j(a[h, i] . b[h, j] / sqrt(d))`` for the
    vectors ``a`` and ``b`` of the tokens, cut in ``heads`` parts of width ``d``: queries, keys or values, and ``b = a``
    but for queries with keys, whose relations are the attention itself. Widths may differ. ``distance="mean_square"``
    compares what is in the softmax instead, with the mean over the tokens that are attended to.

    Args:
        student_features: ``(batch, tokens, width)``, ``a``.
        teacher_features: as many tokens, any width.
        heads: number of relation heads, which divides both widths; it need not be that of the attention.
        student_keys: ``b`` of the student, of the shape of ``a``; ``None`` for ``a``.
        teacher_keys: ``b`` of the teacher, likewise.
        mask: tokens that count, ``(batch, tokens)`` bool; ``None`` for all.
        attend: tokens that a token is related to: ``all``, or ``earlier`` for those up to itself.
        distance: kind of distance, ``kl`` or ``mean_square``.

    Returns:
        ``(batch, tokens)`` nats, or squares of scores; 0 for a token that does not count.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation", arXiv 2012.15828; "MiniLM", arXiv
        2002.10957; for ``mean_square`` Jiao et al., "TinyBERT", arXiv 1909.10351.
    Differs from: nothing in value for queries with keys where the attention adds nothing to their products. Rotary
        positions come after the layers of queries and keys, so their outputs do not have them.

    Example:
        >>> attention_relations(torch.zeros(1, 2, 4), torch.tensor([[[300.0], [0.0]]]), heads=1)
        tensor([[0.6931, 0.0000]])
    """
    checks.whole_number(heads, "heads", example=12)
    checks.known(attend, "attend", ("all", "earlier"), example="all")
    checks.known(distance, "distance", RELATION_DISTANCES, example="kl")
    student, teacher = checks.feature_pair(student_features, teacher_features, checks.TOKENS, same="batch")
    tokens = student.shape[:2]
    if teacher.shape[:2] != tokens:
        expected = f"the tokens of student_features, {tuple(tokens)}"
        raise InvalidValueError("teacher_features", expected, tuple(teacher.shape[:2]), "let both read the same tokens")
    if mask is None:
        mask = torch.ones(tokens, dtype=torch.bool, device=student.device)
    seen = checks.mask(mask, tokens, "mask")
    pairs = seen[:, None, None, :].expand(-1, 1, tokens[1], -1)
    if attend == "earlier":
        pairs = pairs.tril()
    if any(each.shape[2] % heads for each in (student, teacher)):
        widths = [student.shape[2], teacher.shape[2]]
        expected = f"a number that divides both networks' widths, {widths[0]} and {widths[1]}"
        instead = f"type one that does, such as heads={math.gcd(*widths, heads)}"
        raise InvalidValueError("heads", expected, heads, instead)
    scores = [
        _scores(vectors, keys, heads, f"{who}_features")
        for who, vectors, keys in (("student", student, student_keys), ("teacher", teacher, teacher_keys))
    ]
    if distance == "mean_square":
        squares = (scores[0] - scores[1].detach()).square().where(pairs, 0.0)
        values = squares.sum(3) / pairs.sum(3).clamp(min=1)
    else:
        values = _kl(*(_only(each, pairs) for each in scores))
    return values.mean(1).masked_fill(~seen, 0.0)


def _scores(vectors: Tensor, keys: Tensor | None, heads: int, name: str) -> Tensor:
    """Return products of the tokens' parts, ``(batch, heads, tokens, tokens)``."""
    others, width = vectors, vectors.shape[2]
    if keys is not None:
        others = checks.features(keys, name.replace("features", "keys"), axes=checks.TOKENS)
        if others.shape != vectors.shape:
            expected = f"the shape of {name}, {tuple(vectors.shape)}"
            instead = "compare queries, keys and values each with themselves where they share heads"
            raise InvalidValueError(name.replace("features", "keys"), expected, tuple(others.shape), instead)
    a, b = (each.unflatten(2, (heads, width // heads)).transpose(1, 2) for each in (vectors, others))
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.mT / math.sqrt(width // heads)
