"""Contrast with banks: one network's embedding of a sample against the other's embeddings of many samples.

A bank holds one embedding per training sample; the scores of a batch are inner products with some of its rows.
Everything is computed in log space. No gradient reaches a bank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import checks
from tutelage.errors import InvalidTypeError, InvalidValueError

EPSILON = 1e-7
"""Constant added to the prior of a negative, as in the public code."""


def bank_scores(embeddings: Tensor, bank: Tensor, columns: Tensor, *, temperature: float) -> Tensor:
    """Compute the scores of a batch with chosen rows of a bank.

    ``scores[i, j] = <embeddings[i], bank[columns[i, j]]> / temperature``. The columns are taken from one dense product
    with the whole bank: gathering rows first would move ``dimension`` times as much memory.

    Args:
        embeddings: ``(batch, dimension)``.
        bank: ``(samples, dimension)``; gets no gradient.
        columns: ``(batch, some)`` int64, rows of the bank.
        temperature: temperature of the scores, finite and above 0.

    Returns:
        ``(batch, some)``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Tian, Krishnan and Isola, "Contrastive Representation Distillation", arXiv 1910.10699.

    Example:
        >>> bank_scores(torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.tensor([[1, 0, 0]]), temperature=0.5)
        tensor([[0., 2., 2.]])
    """
    embeddings = checks.features(embeddings, "embeddings", axes=("batch", "dimension"))
    bank = checks.features(bank, "bank", axes=("samples", "dimension")).detach()
    checks.positive(temperature, "temperature", example=0.07)
    if bank.shape[1] != embeddings.shape[1]:
        instead = f"make it torch.zeros(samples, {embeddings.shape[1]})"
        raise InvalidValueError("bank", f"rows as long as an embedding, {embeddings.shape[1]}", bank.shape[1], instead)
    if not isinstance(columns, Tensor) or columns.dtype != torch.int64:
        raise InvalidTypeError("columns", "an int64 tensor", checks.kind_of(columns), "type torch.as_tensor(columns)")
    if columns.ndim != 2 or len(columns) != len(embeddings):
        expected = f"shape ({len(embeddings)}, some), a row per sample"
        instead = "type torch.cat([index[:, None], negatives], dim=1)"
        raise InvalidValueError("columns", expected, tuple(columns.shape), instead)
    return (embeddings @ bank.T).gather(1, columns) / temperature


def log_normaliser(scores: Tensor, *, samples: int) -> Tensor:
    """Estimate the logarithm of the constant that turns scores into probabilities; batch-coupled.

    ``log Z = log(samples * mean(exp(scores)))``, over all entries.

    Args:
        scores: ``(batch, some)``.
        samples: number of samples in the bank, at least 1.

    Returns:
        ``()``, without gradient.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Tian, Krishnan and Isola, "Contrastive Representation Distillation", arXiv 1910.10699; the estimate, made
        once from the first batch, is that of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
        Discrimination", arXiv 1805.01978.

    Example:
        >>> log_normaliser(torch.zeros(2, 3), samples=1000)
        tensor(6.9078)
    """
    scores = checks.features(scores, "scores", axes=("batch", "some")).detach()
    _count(samples)
    return scores.flatten().logsumexp(0) + math.log(samples / scores.numel())


def contrast(log_ratios: Tensor, *, samples: int) -> Tensor:
    """Compute the noise-contrastive loss of one positive against many negatives.

    ``-log(x[0] / (x[0] + c')) - sum_{j>0} log(c / (x[j] + c'))`` with ``x = exp(log_ratios)``, ``m`` negatives,
    ``c = m / samples`` and ``c' = c + 1e-7``: summed over the negatives, one value per sample.

    Args:
        log_ratios: ``(batch, 1 + m)``, ``scores - log Z``: the positive's first, then the negatives'.
        samples: number of samples that a negative is drawn from, at least 1.

    Returns:
        ``(batch,)`` nats.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there is no negative.
    Source: Tian, Krishnan and Isola, "Contrastive Representation Distillation", arXiv 1910.10699, equation 18.
    Differs from: the authors' code and its copies in form only: ratios, no logarithms, the sum divided by the batch.

    Example:
        >>> contrast(torch.tensor([[5.0, -5.0, -5.0]]), samples=2)
        tensor([0.0201])
    """
    log_ratios = checks.features(log_ratios, "log_ratios", axes=("batch", "1 + negatives"))
    _count(samples)
    negatives = log_ratios.shape[1] - 1
    if negatives < 1:
        expected = "the positive and at least one negative, shape (batch, 1 + negatives)"
        raise InvalidValueError("log_ratios", expected, tuple(log_ratios.shape), "draw negatives")
    prior = negatives / samples
    shifted = log_ratios - math.log(prior + EPSILON)
    rejected = F.logsigmoid(-shifted[:, 1:]).sum(1) - negatives * math.log1p(EPSILON / prior)
    return -F.logsigmoid(shifted[:, 0]) - rejected


def crd(student_scores: Tensor, teacher_scores: Tensor, log_normalisers: Tensor, *, samples: int) -> Tensor:
    """Compute contrastive representation distillation: both networks' embeddings against the other's bank.

    ``contrast(student_scores - log Z_s) + contrast(teacher_scores - log Z_t)``, as in `contrast`. The teacher's scores
    do get a gradient, which trains the map that embeds the teacher.

    Args:
        student_scores: ``(batch, 1 + negatives)``: `bank_scores` with the teacher's bank, the sample's row first.
        teacher_scores: the same shape: `bank_scores` of the teacher with the student's bank.
        log_normalisers: ``(2,)``: ``log Z_s`` and ``log Z_t`` (`log_normaliser`).
        samples: number of samples in a bank, at least 1.

    Returns:
        ``(batch,)`` nats.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there is no negative.
    Source: Tian, Krishnan and Isola, "Contrastive Representation Distillation", arXiv 1910.10699.

    Example:
        >>> scores = torch.tensor([[5.0, -5.0, -5.0]])
        >>> crd(scores, scores, torch.zeros(2), samples=2)
        tensor([0.0403])
    """
    student_scores = checks.features(student_scores, "student_scores", axes=("batch", "1 + negatives"))
    teacher_scores = checks.features(teacher_scores, "teacher_scores", axes=("batch", "1 + negatives"))
    checks.same_shape(student_scores, teacher_scores, "student_scores", "teacher_scores")
    if log_normalisers.shape != (2,):
        expected = "shape (2,), the student's and the teacher's"
        instead = "type torch.stack([of_student, of_teacher])"
        raise InvalidValueError("log_normalisers", expected, tuple(log_normalisers.shape), instead)
    of_student, of_teacher = log_normalisers.detach()
    student_contrast = contrast(student_scores - of_student, samples=samples)
    return student_contrast + contrast(teacher_scores - of_teacher, samples=samples)


def moved(rows: Tensor, embeddings: Tensor, *, momentum: float) -> Tensor:
    """Move rows of a bank towards new embeddings, and back onto the unit sphere.

    ``normalise(momentum * rows + (1 - momentum) * embeddings)``.

    Args:
        rows: ``(batch, dimension)``, the bank's current rows.
        embeddings: same shape; each sample's new embedding.
        momentum: share of the old row that is kept, in [0, 1).

    Returns:
        The same shape and dtype as ``rows``, without gradient.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Tian, Krishnan and Isola, "Contrastive Representation Distillation", arXiv 1910.10699.

    Example:
        >>> moved(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), momentum=0.5)
        tensor([[0.7071, 0.7071]])
    """
    checks.same_shape(rows, embeddings, "rows", "embeddings")
    checks.fraction(momentum, "momentum", example=0.5)
    mixed = momentum * rows.detach() + (1 - momentum) * embeddings.detach().to(rows.dtype)
    return F.normalize(mixed, dim=1)


def _count(samples: int) -> None:
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise InvalidTypeError("samples", "a whole number", repr(samples), "for example samples=50000")
    if samples < 1:
        raise InvalidValueError("samples", "at least 1", samples, "for example samples=50000")
