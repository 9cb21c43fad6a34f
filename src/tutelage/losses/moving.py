"""Targets that move from the student to the teacher, and divergences from a mixture of both: one value per sample.

``q = softmax(z)`` is the student, ``p = softmax(v)`` the teacher.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage import checks
from tutelage.losses.divergences import from_mixture
from tutelage.losses.logits import kl_divergence, labelled_class
from tutelage.types import UNLABELLED

OF = ("teacher", "student")
"""Whose divergence from the mixture `skewed_kl` is."""
LEAST_SHARE = 0.01
"""Least share that `adaptive_share` returns."""
_ENDS = 'divergence(..., kind="forward") or kind="reverse"'


def taid(student_logits: Tensor, teacher_logits: Tensor, *, t: float | Tensor) -> Tensor:
    """Compute the matching term of temporally adaptive interpolated distillation.

    ``KL(r || q)`` with the target ``r = softmax((1 - t) * z + t * v)`` of `taid_target`, which is a constant. The
    gradient with respect to the logits is ``q - r``. At ``t = 1`` it is `kd` at temperature 1, at ``t = 0`` it is 0.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0.
        t: teacher's share of the target's logits, in [0, 1], a number or a ``()`` tensor (which is not checked).

    Returns:
        ``(...)`` nats; 0 if the two are equal.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Shing et al., "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in
        Language Models", arXiv 2501.16937.
    Differs from: the authors' code, whose value is the cross-entropy ``-sum_i r[i] * log q[i]``, larger by the entropy
        of ``r``, with the same gradient.

    Example:
        >>> taid(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), t=0.5)
        tensor([0.4338])
    """
    target = taid_target(student_logits, teacher_logits, t=t)
    return kl_divergence(torch.log_softmax(checks.classwise(student_logits, "student_logits"), dim=-1), target)


def taid_target(student_logits: Tensor, teacher_logits: Tensor, *, t: float | Tensor) -> Tensor:
    """Return the target of `taid` as log-probabilities, ``log softmax((1 - t) * z + t * v)``, without gradients.

    A class has probability 0 if one of the two has ``-inf`` there and a share above 0.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``.
        t: teacher's share, in [0, 1], a number or a ``()`` tensor (which is not checked).

    Returns:
        Same shape, in nats.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Shing et al., arXiv 2501.16937.

    Example:
        >>> taid_target(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), t=0.5).exp()
        tensor([[0.5000, 0.5000]])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    if not isinstance(t, Tensor):
        checks.share(t, "t", example=0.4)
    t = torch.as_tensor(t, dtype=student_logits.dtype, device=student_logits.device).detach()
    # A share of 0 times -inf would be NaN.
    parts = ((student_logits.detach(), 1 - t), (teacher_logits, t))
    mixed = sum((share * logits.masked_fill(share == 0, 0.0) for logits, share in parts), torch.zeros_like(t))
    return torch.log_softmax(mixed, dim=-1)


def taid_step(
    t: Tensor,
    momentum: Tensor,
    previous: Tensor,
    loss: Tensor,
    *,
    linear: float | Tensor,
    end: float,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Return the share ``t`` and the momentum of `taid` after a step, which follow the relative change of its loss.

    ``m <- beta * m + (1 - beta) * (previous - loss) / (previous + 1e-15)`` and
    ``t <- min(end, max(linear, t + alpha * sigmoid(m) * (1 - t)))``: ``t`` never falls behind a straight line, and runs
    ahead of it the faster the loss falls. After the first step, whose ``previous`` is infinite, nothing changes.

    Args:
        t: share before, ``()``.
        momentum: ``m`` before, ``()``.
        previous: loss of the step before, ``()``; infinite if there was none.
        loss: loss of the step, ``()``, a cross-entropy with the target.
        linear: the straight line's value.
        end: largest share.
        alpha: largest advance of a step.
        beta: share of the momentum that is kept.

    Returns:
        ``t`` and ``m`` after the step, each ``()``; the next step's ``previous`` is ``loss``.

    Raises: nothing: numbers are not checked.
    Source: Shing et al., arXiv 2501.16937.

    Example:
        >>> state = (torch.tensor(0.4), torch.tensor(0.0), torch.tensor(2.5))
        >>> taid_step(*state, torch.tensor(1.25), linear=0.4, end=1.0, alpha=0.1, beta=0.9)
        (tensor(0.4307), tensor(0.0500))
    """
    known = previous.isfinite()
    change = (previous - loss) / (previous + 1e-15)
    moved = torch.where(known, beta * momentum + (1 - beta) * change, momentum)
    further = (t + alpha * moved.sigmoid() * (1 - t)).clamp(min=linear).clamp(max=end)
    return torch.where(known, further, t), moved


def skewed_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, share: float | Tensor = 0.1, of: str = "teacher"
) -> Tensor:
    """Compute the divergence of the teacher, or of the student, from a mixture in which it has a share.

    * of the ``teacher``: ``KL(p || m)`` with ``m = share * p + (1 - share) * q``;
    * of the ``student``: ``KL(q || m)`` with ``m = share * q + (1 - share) * p``, a constant: its gradient with respect
      to the logits is ``q * (log(q / m) - KL(q || m))``.

    Args:
        student_logits: ``(..., classes)``, ``z``; ``-inf`` means probability 0.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0.
        share: share of the one whose divergence it is, above 0 and below 1: a number, or a tensor ``(...)`` or one that
            broadcasts to it (not checked), which gets a gradient.
        of: ``teacher`` or ``student``.

    Returns:
        ``(...)`` nats, at most ``-log(share)``; 0 if the two are equal.

    Raises: TypeError or ValueError if a dtype, shape, name or number is not as above.
    Source: Ko et al., "DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs", arXiv 2503.07067.
    Differs from: `divergence`, whose kind ``skew`` is that of the teacher, with a number alone, while no gradient flows
        through this mixture of the student's, as in the authors' code of DistiLLM-2 but not in that of DistiLLM; and
        both of these, which take the logarithm of mixed probabilities: NaN once both underflow.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> skewed_kl(student, teacher, share=0.1), skewed_kl(student, teacher, share=0.1, of="student")
        (tensor([1.0988]), tensor([1.0988]))
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    checks.known(of, "of", OF, example='"student"')
    log_q, log_p = torch.log_softmax(student_logits, dim=-1), torch.log_softmax(teacher_logits, dim=-1)
    log_a, log_b = (log_p, log_q) if of == "teacher" else (log_q, log_p)
    if isinstance(share, Tensor):
        s = share.to(student_logits).unsqueeze(-1)
        return from_mixture(log_a, log_b, s.log(), torch.log1p(-s), constant=of == "student")
    checks.mixture_weight(share, "share", example=0.1, ends=_ENDS)
    return from_mixture(log_a, log_b, math.log(share), math.log1p(-share), constant=of == "student")


def adaptive_share(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, share: float, anchor: float, of: str = "teacher"
) -> Tensor:
    """Return a share for each sequence by how far apart the networks are on its labels, for `skewed_kl`.

    ``min(max(1 - (1 - share) * anchor / (gap + 1e-5), 0.01), share)``. The gap is the difference of both networks'
    geometric mean probability of the labels, teacher minus student, and for the share ``of`` the student the reverse.
    A sequence whose gap is the anchor has about ``share``, one with a smaller gap less: it is mixed less.

    Args:
        student_logits: ``(batch, *positions, classes)``.
        teacher_logits: the same shape.
        labels: ``(batch, *positions)`` int64, or -100 where a position takes no part.
        share: largest share, above 0 and below 1.
        anchor: gap of an ordinary sequence: its mean at the start of training; 0 for ``share`` everywhere.
        of: ``teacher`` or ``student``.

    Returns:
        ``(batch, 1, ...)``, with as many axes as the labels; differentiable.

    Raises: TypeError or ValueError if a dtype, shape, name or number is not as above.
    Source: Ko et al., arXiv 2503.07067.

    Example:
        >>> student, teacher = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[2.0, 0.0]]])
        >>> adaptive_share(student, teacher, torch.tensor([[0]]), share=0.3, anchor=0.6)
        tensor([[0.3000]])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    checks.known(of, "of", OF, example='"student"')
    checks.mixture_weight(share, "share", example=0.1, ends=_ENDS)
    checks.finite(anchor, "anchor", example=0.3)
    target, labelled = labelled_class(student_logits, labels), labels != UNLABELLED
    positions = tuple(range(1, labels.ndim))

    def mean_probability(logits: Tensor) -> Tensor:
        log_probs = torch.log_softmax(logits, dim=-1).gather(-1, target).squeeze(-1).where(labelled, 0.0)
        if not positions:
            return log_probs.exp()
        return (log_probs.sum(positions, keepdim=True) / labelled.sum(positions, keepdim=True).clamp(min=1)).exp()

    gap = mean_probability(teacher_logits) - mean_probability(student_logits)
    gap = gap if of == "teacher" else -gap
    return (1 - (1 - share) * anchor / (gap + 1e-5)).clamp(min=LEAST_SHARE).clamp(max=share)


def distillm2(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    share: float = 0.1,
    anchor: float = 0.0,
    of: str = "teacher",
) -> Tensor:
    """Compute one of both terms of DistiLLM-2: `skewed_kl` at the `adaptive_share` of each sequence, a constant.

    Args:
        student_logits: ``(batch, *positions, classes)``, ``z``.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0.
        labels: ``(batch, *positions)`` int64, or -100: value and gradient exactly 0.
        share: largest share, above 0 and below 1.
        anchor: gap of an ordinary sequence (`adaptive_share`).
        of: ``teacher``, or ``student``.

    Returns:
        ``(batch, *positions)`` nats.

    Raises: TypeError or ValueError if a dtype, shape, name or number is not as above.
    Source: Ko et al., arXiv 2503.07067.
    Differs from: the authors' code, which sends a gradient through the share where it is within its bounds, so that the
        student also learns to change its share, and whose mean is over each sequence's positions first.

    Example:
        >>> student, teacher = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[2.0, 0.0]]])
        >>> distillm2(student, teacher, torch.tensor([[0]]), share=0.3, anchor=0.7)
        tensor([[0.5213]])
    """
    at = adaptive_share(student_logits, teacher_logits, labels, share=share, anchor=anchor, of=of).detach()
    return skewed_kl(student_logits, teacher_logits, share=at, of=of).masked_fill(labels == UNLABELLED, 0.0)
