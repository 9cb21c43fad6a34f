"""Losses on the networks' embeddings, which are outputs of no classes: their values, or their similarities."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage import checks
from tutelage.errors import InvalidValueError
from tutelage.losses.logits import kl_divergence


def cosine_distance(student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
    """Compute one minus the cosine similarity of both networks' embeddings.

    ``1 - s t / (|s| |t|)``. Only the direction is matched; a vector of zeros has a distance of 1 to any.

    Args:
        student_embeddings: ``(..., width)``, ``s``.
        teacher_embeddings: the same shape, ``t``.

    Returns:
        ``(...)``, in [0, 2].

    Raises: TypeError or ValueError if a dtype or shape is not as above.
    Source: the field's common practice; half the squared distance of embeddings scaled to length 1.

    Example:
        >>> cosine_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([1.])
    """
    student, teacher = checks.logit_pair(student_embeddings, teacher_embeddings, "embeddings")
    return 1 - (_unit(student) * _unit(teacher)).sum(-1)


def embedding_mse(student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
    """Compute the mean squared difference of both networks' embeddings.

    ``(1 / width) * sum_d (s[d] - t[d])**2``: direction and length are matched.

    Args:
        student_embeddings: ``(..., width)``, ``s``.
        teacher_embeddings: the same shape, ``t``.

    Returns:
        ``(...)``, at least 0.

    Raises: TypeError or ValueError if a dtype or shape is not as above.
    Source: Reimers and Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation",
        arXiv 2004.09813, whose student sees translations too.

    Example:
        >>> embedding_mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([2.5000])
    """
    student, teacher = checks.logit_pair(student_embeddings, teacher_embeddings, "embeddings")
    return (student - teacher).square().mean(-1)


def in_batch_similarity(
    student_embeddings: Tensor, teacher_embeddings: Tensor, *, temperature: float, teacher_temperature: float
) -> Tensor:
    """Compute the KL divergence between distributions of the similarity to the batch's other samples: batch-coupled.

    ``(1 / batch) * sum_i KL(P_i || Q_i)`` with ``Q_i = softmax_{j != i}(cos(s_i, s_j) / temperature)``, and ``P_i``
    alike of the teacher's embeddings and temperature. Only similarities are compared, so the widths may differ. It
    depends on how a batch is split: each sample has the others of its batch as anchors.

    Args:
        student_embeddings: ``(batch, width)``, ``s``.
        teacher_embeddings: ``(batch, any width)``.
        temperature: the student's, above 0.
        teacher_temperature: the teacher's, above 0.

    Returns:
        ``()`` nats, at least 0; 0 for 2 samples, which have one anchor each.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, or there are fewer than 2 samples.
    Source: Fang et al., "SEED: Self-supervised Distillation for Visual Representation", arXiv 2101.04731 (0.01 for the
        teacher, 0.2 for the student), and Abbasi Koohpayegani et al., "CompRess: Self-Supervised Learning by
        Compressing Representations", arXiv 2010.14713 (0.04 for both).
    Differs from: both, whose anchors are a queue of earlier samples; the minimum is that of SEED's cross-entropy, from
        which the teacher's entropy is subtracted here.

    Example:
        >>> one = torch.eye(3)
        >>> in_batch_similarity(one, 2 * one, temperature=0.1, teacher_temperature=0.1)
        tensor(0.)
    """
    checks.positive(temperature, "temperature", example=0.1)
    checks.positive(teacher_temperature, "teacher_temperature", example=0.05)
    student, teacher = checks.feature_pair(
        student_embeddings, teacher_embeddings, checks.EMBEDDINGS, same="batch", min_batch=2, kind="embeddings"
    )
    q, p = (_log_similarities(x, t) for x, t in ((student, temperature), (teacher, teacher_temperature)))
    return kl_divergence(q, p).mean()


def embedding_distance(student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
    """Compute the Euclidean distance of both networks' embeddings.

    ``|s - t|``. Unlike the squared distance, its gradient has length 1 however far apart the two are; at 0 it is 0.

    Args:
        student_embeddings: ``(..., width)``, ``s``.
        teacher_embeddings: the same shape, ``t``.

    Returns:
        ``(...)``, at least 0.

    Raises: TypeError or ValueError if a dtype or shape is not as above.
    Source: Kim et al., "EmbedDistill: A Geometric Knowledge Distillation for Information Retrieval", arXiv 2301.12005.

    Example:
        >>> embedding_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
        tensor([5.])
    """
    student, teacher = checks.logit_pair(student_embeddings, teacher_embeddings, "embeddings")
    difference = student - teacher
    largest = difference.detach().abs().amax(-1, keepdim=True)  # so that no square overflows or vanishes
    scale = torch.where(largest > 0, largest, 1.0)
    return torch.linalg.vector_norm(difference / scale, dim=-1) * scale[..., 0]


def margin_mse(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Compute the mean squared difference of both networks' margins between a relevant document and others.

    ``(1 / n) * sum_j ((s[0] - s[j]) - (t[0] - t[j]))**2`` over the ``n`` others, so that a score's level does not
    matter. No preset has it, as no data source gives a query with its documents: use it in a loop of your own, with
    ``s = (query[:, None] * documents).sum(-1)``.

    Args:
        student_scores: of a query with its documents, the relevant one first, ``(batch, documents)``, at least 2.
        teacher_scores: the same shape, such as of a cross-encoder.

    Returns:
        ``(batch,)``, at least 0.

    Raises: TypeError or ValueError if a dtype or shape is not as above.
    Source: Hofstätter et al., "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
        Distillation", arXiv 2010.02666.

    Example:
        >>> margin_mse(torch.tensor([[2.0, 1.0]]), torch.tensor([[9.0, 5.0]]))
        tensor([9.])
    """
    student, teacher = _score_pair(student_scores, teacher_scores)
    margins = student - teacher
    return (margins[..., :1] - margins[..., 1:]).square().mean(-1)


def score_kl(
    student_scores: Tensor, teacher_scores: Tensor, *, temperature: float = 1.0, teacher_temperature: float = 1.0
) -> Tensor:
    """Compute the KL divergence between both networks' distributions over a query's documents.

    ``temperature**2 * KL(softmax(t / teacher_temperature) || softmax(s / temperature))``. No preset has it, as no data
    source gives a query with its documents: use it in a loop of your own, as `margin_mse`.

    Args:
        student_scores: of a query with its documents in any order, ``(batch, documents)``, at least 2.
        teacher_scores: the same shape.
        temperature: the student's, above 0; its square multiplies the value.
        teacher_temperature: the teacher's, above 0.

    Returns:
        ``(batch,)`` nats times ``temperature**2``, at least 0.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: sentence-transformers' DistillKLDivLoss; Lin et al., "In-Batch Negatives for Knowledge Distillation with
        Tightly-Coupled Teachers for Dense Retrieval", 2021.

    Example:
        >>> score_kl(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]]), teacher_temperature=2.0)
        tensor([0.1109])
    """
    checks.positive(temperature, "temperature", example=1.0)
    checks.positive(teacher_temperature, "teacher_temperature", example=1.0)
    student, teacher = _score_pair(student_scores, teacher_scores)
    log_q, log_p = (student / temperature).log_softmax(-1), (teacher / teacher_temperature).log_softmax(-1)
    return temperature**2 * kl_divergence(log_q, log_p)


def _score_pair(student_scores: Tensor, teacher_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return both networks' scores of one shape; refuse fewer than 2 documents, which nothing compares."""
    student, teacher = checks.logit_pair(student_scores, teacher_scores, "scores")
    if student.shape[-1] < 2:
        instead = "give each query a document more"
        raise InvalidValueError("student_scores", "at least 2 documents a query", student.shape[-1], instead)
    return student, teacher


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1; zeros stay. Those of any size that the dtype holds neither overflow nor vanish."""
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1.0)


def _log_similarities(embeddings: Tensor, temperature: float) -> Tensor:
    """Return each sample's log-distribution over the others, ``(batch, batch - 1)``."""
    unit = _unit(embeddings)
    similarities, size = unit @ unit.T / temperature, len(unit)
    # A sample's own place is left out: each column from it on is the next one.
    columns = torch.arange(size - 1, device=unit.device)
    columns = columns + (columns >= torch.arange(size, device=unit.device)[:, None])
    return similarities.gather(1, columns).log_softmax(-1)
