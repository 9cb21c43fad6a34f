"""Losses on logits that rank the classes, or read the logits of regions: one value per sample, in nats.

Shapes, precision and notation are those of `tutelage.losses.logits`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutelage import checks
from tutelage.errors import InvalidValueError
from tutelage.losses.logits import kl_within, labelled_class
from tutelage.types import UNLABELLED


def ldrld(
    student_logits: Tensor, teacher_logits: Tensor, *, k: int, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Compute local dense relational logit distillation: pairs among the student's likeliest classes, and the rest.

    ``alpha * T**2 / (P + 1) * (sum_{i < j} w[i, j] * KL_{i, j} + KL_top) + beta * T**2 * KL_rest``. Ranks ``i`` and
    ``j`` count the student's ``k`` largest logits from 1, largest first, and ``P = k * (k - 1) / 2`` is the number of
    pairs. Each KL is that of the teacher's and the student's softmax at temperature ``T`` over some classes alone: two
    of them, all ``k``, or all others. ``w[i, j] = 2 * exp(-0.05 * (i + j)) / (1.5 + j - i)``: likely and neighbouring
    classes count more. The ranks have no gradient.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``.
        k: number of classes that are ranked, at least 2; where there are no more, all are, and ``KL_rest`` is 0.
        alpha: weight of the ranked classes, finite and at least 0.
        beta: weight of the rest, finite and at least 0.
        temperature: ``T``, finite and above 0, of both networks' logits.

    Returns:
        ``(...)`` nats times ``T**2``; 0 if the two networks agree.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Xu et al., "Local Dense Logit Relations for Enhanced Knowledge Distillation", ICCV 2025.
    Differs from: the authors' code if ``k`` is the number of classes, above which it fails. It leaves a class out by
        subtracting 1000 from its logit, which changes nothing if all are left out: its ``KL_rest`` is then `kd`. With
        ``k = 2`` the pair is all that is ranked, and ``KL_top`` has the pair's weight too, as there.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 2.0, 0.0]])
        >>> ldrld(student, teacher, k=2, alpha=1.0, beta=1.0, temperature=1.0)
        tensor([0.3182])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    checks.whole_number(k, "k", example=7, minimum=2)
    checks.weight(alpha, "alpha", example=10.5)
    checks.weight(beta, "beta", example=7.0)
    checks.positive(temperature, "temperature", example=4.0)
    k = min(k, student_logits.shape[-1])
    ranked = student_logits.detach().topk(k, dim=-1).indices
    both = student_logits / temperature, teacher_logits / temperature
    top = [logits.gather(-1, ranked) for logits in both]
    first, second = torch.triu_indices(k, k, 1, device=ranked.device)
    pairs = [torch.stack((logits[..., first], logits[..., second]), dim=-1) for logits in top]
    weights = 2 * torch.exp(-0.05 * (first + second + 2).to(student_logits.dtype)) / (1.5 + second - first)
    of_pairs, of_top = (kl_within(z, v, torch.ones_like(z, dtype=torch.bool)) for z, v in (pairs, top))
    local = ((weights * of_pairs).sum(dim=-1) + (weights[0] if k == 2 else 1.0) * of_top) / (len(weights) + 1)
    rest = kl_within(*both, torch.ones_like(student_logits, dtype=torch.bool).scatter(-1, ranked, False))
    return temperature * temperature * (alpha * local + beta * rest)


def sdd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    base: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Compute scale-decoupled distillation: another loss for each region of an image, the whole and its parts.

    ``mean_r(w[r] * base(z[r], v[r], y))``. The weight ``w[r]`` is 2 where the teacher is right about region ``r`` and
    wrong about the whole image, or the other way round, and 1 elsewhere. It has no gradient.

    Args:
        student_logits: ``(..., regions, classes)``, ``z``; region 0 is the whole.
        teacher_logits: the same shape, ``v``.
        labels: ``(...)`` int64 class indices, or -100, unlabelled: value and gradient exactly 0.
        base: loss of ``z``, ``v`` and the labels of all regions, which returns one value for each, such as
            ``functools.partial(losses.dkd, alpha=1.0, beta=8.0, temperature=4.0)``.

    Returns:
        ``(...)`` in the unit of ``base``.

    Raises: TypeError or ValueError if a dtype or shape is not as above, or labels are soft.
    Source: Wei et al., "Scaled Decoupled Distillation", arXiv 2403.13512.
    Differs from: the authors' code where ``base`` is `nkd`. Its term of the classes that are not labelled runs over the
        labelled one too. Where the loss is not finite, their code makes it 0.

    Example:
        >>> student, teacher = torch.tensor([[[2.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[0.0, 2.0], [2.0, 0.0]]])
        >>> sdd(student, teacher, torch.tensor([0]), base=lambda z, v, y: (z - v).abs().sum(-1))
        tensor([2.])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    if student_logits.ndim < 2 or student_logits.shape[-2] == 0:
        expected, instead = "shape (..., regions, classes)", "put the regions before the classes, the whole first"
        raise InvalidValueError("student_logits", expected, tuple(student_logits.shape), instead)
    labelled_class(student_logits[..., 0, :], labels)
    each = labels.unsqueeze(-1).expand(student_logits.shape[:-1])
    right = teacher_logits.argmax(dim=-1) == each
    weights = 1 + (right != right[..., :1]).to(student_logits.dtype)
    values = base(student_logits, teacher_logits, each)
    if values.shape != weights.shape:
        expected, instead = f"a loss of one value for each region, shape {tuple(weights.shape)}", "leave out its mean"
        raise InvalidValueError("base", expected, tuple(values.shape), instead)
    return (weights * values).mean(dim=-1).masked_fill(labels == UNLABELLED, 0.0)
