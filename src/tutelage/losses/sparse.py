"""Matching a teacher of which some classes are known: its largest, or some that were drawn from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage import checks
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.types import Sparse

RESTS = ("bucket", "dropped", "renormalised")
"""What `top_k` does with the classes behind the largest."""


def sparse_matching(
    student_logits: Tensor, teacher: Sparse, *, gamma: float, student_gamma: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute ``KL(p_gamma || q)`` and the power sum ``U_gamma(p)`` of a teacher of which some classes are known.

    With equal logits behind the largest: of ``k`` kept classes and ``m = classes - k`` others, each of probability
    ``t`` in ``p_gamma``, ``KL = sum_top p (log p - z + lse) + m t log t - t (sum z - sum_top z - m lse)``, where
    ``lse`` is that of the whole row ``z``, ``student_gamma`` times the student's logits. The others count as one class
    of mass ``m t`` against the mean of their logits, so nothing but the student has an axis of all classes.

    With a bucket it is the divergence of the largest and the sum of all others (`top_k`); of sampled classes
    ``sampled_cross_entropy(z) - H(p)``, whose mean over all draws is ``KL(p || q)``, in value and in gradient.

    Args:
        student_logits: ``(..., classes)``, finite.
        teacher: the teacher's logits ``(..., top)``.
        gamma: exponent of the teacher, finite and above 0; 1 for a bucket and sampled classes.
        student_gamma: exponent of the student, finite and above 0; likewise.

    Returns:
        Divergence and power sum, each ``(...)``; the teacher gets no gradient.

    Raises: TypeError or ValueError if a dtype, a shape or a number is not as above.
    """
    z, others = checks.classwise(student_logits, "student_logits"), teacher.classes - teacher.values.shape[-1]
    checks.sparse_for(z, teacher)
    v = checks.classwise(teacher.values, "teacher_logits.values").detach()
    if teacher.form != "level":
        level = teacher.level.detach().to(v.dtype)
        return _at_one(z, teacher, v, level, gamma, student_gamma), torch.ones_like(level)
    if student_gamma != 1:
        z = student_gamma * z
    rows = z.gather(-1, teacher.index)
    count = v.new_zeros(v.shape[-1] + (others > 0))  # logarithms of how many classes each stands for
    if others:
        count[-1] = math.log(others)
        v = torch.cat([v, teacher.level.detach().to(v.dtype)[..., None]], -1)
        rows = torch.cat([rows, ((z.sum(-1) - rows.sum(-1)) / others)[..., None]], -1)
    log_q = rows - z.logsumexp(-1, keepdim=True)
    log_mass = torch.log_softmax(gamma * v + count, -1)
    log_p, mass = log_mass - count, log_mass.exp()
    values = (mass * (log_p - log_q).masked_fill(mass == 0, 0.0)).sum(-1)
    # As in `wttm`: at the likeliest class both logarithms are small, so nothing cancels.
    log_top = (torch.log_softmax(v + count, -1) - count).amax(-1)
    return values, (gamma * log_top - log_p.amax(-1)).exp()


def _at_one(z: Tensor, teacher: Sparse, v: Tensor, level: Tensor, gamma: float, student_gamma: float) -> Tensor:
    for name, number in (("gamma", gamma), ("student_gamma", student_gamma)):
        if not math.isclose(number, 1, rel_tol=1e-9):
            expected = f"1 with a teacher's recorded form {teacher.form}, which says nothing of other exponents"
            raise InvalidValueError(name, expected, number, "type gamma=1, or temperature=1 of kd")
    if teacher.form == "sampled":
        return sampled_cross_entropy(z, teacher.index, v.exp()) + level
    return kl(with_rest(z, teacher.index), torch.cat([v, level[..., None]], -1).log_softmax(-1))


def with_rest(logits: Tensor, index: Tensor) -> Tensor:
    """Return the log-probabilities of some classes and, behind them, of all others together.

    The others' logits are summed as exponentials, never taken as 1 less the sum, so a rest of probability 1e-30 is one.

    Args:
        logits: ``(..., classes)``; ``-inf`` means probability 0.
        index: classes, ``(..., top)`` int64, each at most once.

    Returns:
        ``(..., top + 1)`` nats; ``-inf`` for a rest of no class.

    Raises: TypeError or ValueError if a dtype or shape is not as above.
    Source: the two sides of `top_k`, for losses of one's own.

    Example:
        >>> with_rest(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0]]))
        tensor([[-0.2395, -1.5464]])
    """
    logits = checks.classwise(logits, "logits")
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        raise InvalidTypeError("index", "a tensor of torch.int64", checks.kind_of(index), "type index.long()")
    if index.shape[:-1] != logits.shape[:-1] or not index.ndim:
        expected, instead = f"classes {(*logits.shape[:-1], 'top')}", "give each row's classes, on the last axis"
        raise InvalidValueError("index", expected, tuple(index.shape), instead)
    others = logits.scatter(-1, index, -torch.inf)
    empty = (others == -torch.inf).all(-1, keepdim=True)
    # A sum of no exponentials has no gradient, which NaN would be.
    rest = others.masked_fill(empty, 0.0).logsumexp(-1, keepdim=True).masked_fill(empty, -torch.inf)
    return torch.cat([logits.gather(-1, index), rest], -1).log_softmax(-1)


def top_k(
    student_logits: Tensor, teacher_logits: Tensor, *, top: int, rest: str = "bucket", temperature: float = 1.0
) -> Tensor:
    """Compute classic distillation on the teacher's largest classes.

    ``T**2 * KL(p || q)`` on the ``k`` classes that the teacher finds likeliest. With ``bucket`` all others are one more
    class, for both networks the sum of their probabilities at ``T``: a lower bound of `kd`, equal to it where both
    divide the rest alike. ``dropped`` takes the teacher's ``k`` for all there are and compares them with the student's
    whole distribution; ``renormalised`` does so with both networks. These two are biased: the gradient pushes the
    student's mass onto the ``k``, or leaves its amount free.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0.
        top: ``k``, at least 1; all classes if there are fewer.
        rest: what becomes of the other classes, one of `RESTS`.
        temperature: ``T``, finite and above 0; it divides both networks' logits before the rest is summed.

    Returns:
        ``(...)`` nats times ``T**2``; with ``renormalised`` and ``top=1`` always 0.

    Raises: TypeError or ValueError if a dtype, shape, name or number is not as above.
    Source: the left-over bucket: the loss of trl's server distillation and of DistillKit (``symmetric_uniform``);
        what is lost without it: Anshumann et al., "Sparse Logit Sampling", arXiv 2503.16870.
    Differs from: trl, which takes the rest as 1 less the sum and lets neither fall below 1e-7, where the gradient of
        the rest ends; DistillKit, whose rest is NaN in float32 once the ``k`` hold all mass, and which at ``T != 1``
        raises the teacher's rest to ``1 / T`` as one class, but sums the student's tempered classes.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0]])
        >>> [top_k(student, teacher, top=1, rest=rest) for rest in RESTS]
        [tensor([0.4330]), tensor([1.0986]), tensor([0.])]
    """
    z, v = checks.logit_pair(student_logits, teacher_logits)
    checks.positive(temperature, "temperature", example=1.0)
    checks.known(rest, "rest", RESTS, example="bucket")
    checks.whole_number(top, "top", example=16)
    z, v = z / temperature, v / temperature
    index = v.topk(min(top, v.shape[-1])).indices
    if rest == "bucket":
        log_q, log_p = with_rest(z, index), with_rest(v, index)
    else:
        log_q, log_p = z.log_softmax(-1).gather(-1, index), v.gather(-1, index).log_softmax(-1)
        if rest == "renormalised":
            log_q = z.gather(-1, index).log_softmax(-1)
    return temperature * temperature * kl(log_q, log_p)


def sampled_cross_entropy(student_logits: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Compute the student's cross-entropy with classes that were drawn from a teacher.

    ``-sum_i w[i] * log q[c[i]]`` over the draws ``c``; the gradient with respect to the logits is
    ``sum(w) * q - h`` with the histogram ``h[j] = sum of w[i] where c[i] = j``. With ``n`` independent draws from a
    proposal and ``w = p / (n * proposal)``, as `targets.draw` returns, the mean of ``h`` over all draws is ``p``. So
    value and gradient are right in the mean, whatever ``n`` is, and their variance falls as ``1 / n``.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        index: classes drawn, ``(..., draws)`` int64, repeats allowed.
        weights: weight of each draw, the same shape, at least 0.

    Returns:
        ``(...)`` nats.

    Raises: TypeError or ValueError if a dtype or shape is not as above.
    Source: Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", arXiv 2503.16870.
    Differs from: public code that divides the weights by their sum, which is unbiased only where the proposal is the
        teacher itself, as all weights are then ``1 / n``; and that adds the entropy of the drawn classes, of which its
        value, but no gradient, depends.

    Example:
        >>> sampled_cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([[0, 0, 1]]), torch.full((1, 3), 1 / 3))
        tensor([0.7936])
    """
    z, weights = checks.classwise(student_logits, "student_logits"), checks.classwise(weights, "weights").detach()
    if not isinstance(index, Tensor):
        raise InvalidTypeError(
            "index", "a torch.Tensor", type(index).__name__, "type what tutelage.targets.draw returns"
        )
    if index.dtype != torch.int64 or index.shape != weights.shape or index.shape[:-1] != z.shape[:-1]:
        expected = f"int64 classes and weights of one shape, {tuple(z.shape[:-1])} and the number of draws"
        got = f"{index.dtype} of {tuple(index.shape)}, and {tuple(weights.shape)}"
        raise InvalidValueError("index", expected, got, "type what tutelage.targets.draw returns")
    surprise = z.logsumexp(-1, keepdim=True) - z.gather(-1, index)
    return (weights * surprise.masked_fill(weights == 0, 0.0)).sum(-1)


def likeliest(teacher: Sparse) -> Tensor:
    """Return the class that a teacher finds likeliest, ``(...)`` int64, or that of the drawn ones."""
    if teacher.form == "sampled":
        return teacher.index[..., 0]
    return teacher.index.gather(-1, teacher.values.argmax(-1, keepdim=True))[..., 0]


def kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return ``KL(p || q)`` of log-probabilities, which are not checked."""
    p = log_p.exp()
    # Compared with 0, not "above 0": a NaN teacher must stay NaN and be noticed. Masked before the product, as p has a
    # gradient where the temperature is learned, which would be 0 * inf.
    return (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(dim=-1)
