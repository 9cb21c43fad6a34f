"""Divergences between the student's distribution and the teacher's, by name: one value per sample, in nats.

``q = softmax(z)`` is the student, ``p = softmax(v)`` the teacher. Everything is computed from log-probabilities. A
class of probability 0 is masked before any product, so that ``0 * inf`` occurs neither forwards nor backwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tutelage import checks, targets
from tutelage.errors import InvalidValueError
from tutelage.losses.logits import kl_divergence


def divergence(
    student_logits: Tensor, teacher_logits: Tensor, *, kind: str, alpha: float | None = None, beta: float | None = None
) -> Tensor:
    """Compute a divergence between the student's distribution and the teacher's.

    With ``q = softmax(z)`` and ``p = softmax(v)``; its gradient with respect to the student's logits comes second:

    * ``forward``: ``KL(p || q)``; ``q - p``.
    * ``reverse``: ``KL(q || p)``; ``q * (log(q / p) - KL(q || p))``.
    * ``jensen_shannon``: ``beta * KL(p || m) + (1 - beta) * KL(q || m)`` with ``m = beta * p + (1 - beta) * q``;
      ``(1 - beta) * q * (log(q / m) - KL(q || m))``.
    * ``skew``: ``KL(p || m)`` with ``m = alpha * p + (1 - alpha) * q``;
      ``(1 - alpha) * q * (sum_i q[i] * p[i] / m[i] - p / m)``.
    * ``total_variation``: ``0.5 * sum_i |p[i] - q[i]|``; ``0.5 * q * (s - sum_i q[i] * s[i])`` with
      ``s = sign(q - p)``, which is 0 if the two are equal.

    There is no temperature and no ``T**2``: divide both networks' logits by the temperature, as in
    ``kd(z, v, temperature=T) = T**2 * divergence(z / T, v / T, kind="forward")``. In the same way
    ``ttm(z, v, gamma=g) = divergence(z, g * v, kind="forward")``, and `wttm` is that times ``U_g(p)``.

    A class with ``q = 0`` and ``p > 0`` makes ``forward`` infinite; one with ``p = 0`` and ``q > 0`` makes ``reverse``
    infinite, with a gradient of NaN. The others are always finite: ``jensen_shannon`` is at most
    ``-beta * log(beta) - (1 - beta) * log(1 - beta)``, ``log(2)`` at 0.5; ``skew`` at most ``-log(alpha)``.

    Args:
        student_logits: ``(..., classes)``, ``z``; ``-inf`` means probability 0.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0.
        kind: name of the divergence, one of `KINDS`.
        alpha: teacher's share of the mixture, above 0 and below 1, by default 0.1; for ``skew`` only.
        beta: teacher's share of the mixture, and the weight of the first term, above 0 and below 1, by default 0.5;
            for ``jensen_shannon`` only.

    Returns:
        ``(...)`` nats, or for ``total_variation`` a number in [0, 1] without unit; 0 if the two are equal, otherwise
        above 0, up to rounding.

    Raises: TypeError or ValueError if a dtype, shape, name or number is not as above, or a number is given for a kind
        that takes none.
    Source: ``jensen_shannon``: the generalised form of Agarwal et al., "On-Policy Distillation of Language Models",
        arXiv 2306.13649; ``skew``: Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models",
        arXiv 2402.03898.
    Differs from: TRL and Liger-Kernel, whose ``beta`` of 0 is ``KL(p || q)`` and of 1 ``KL(q || p)``, while the formula
        tends to 0 at both: type ``kind="forward"`` or ``kind="reverse"`` for these; DistiLLM's code, whose ``lam`` of
        the Jensen-Shannon divergence is the student's share, ``1 - beta``, and whose forward and skewed divergences
        are cross-entropies, larger by the teacher's entropy, with equal gradients.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> divergence(student, teacher, kind="reverse")
        tensor([1.5232])
        >>> divergence(student, teacher, kind="jensen_shannon", beta=0.9)
        tensor([0.1286])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    parameter = parameter_of(kind, alpha, beta)
    return KINDS[kind](torch.log_softmax(student_logits, dim=-1), torch.log_softmax(teacher_logits, dim=-1), parameter)


def transformed_matching(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    transform: targets.Transform,
    sample_weight: Callable[[Tensor], Tensor] | None = None,
    normalise: bool = False,
    kind: str = "forward",
    alpha: float | None = None,
    beta: float | None = None,
) -> Tensor:
    """Compute the matching term for any point-wise transform of the teacher, any sample weight and any divergence.

    ``w(p) * KL(p_f || q)`` with ``p_f[i] = f(p[i]) / sum_j f(p[j])``, or another divergence of the two. With the power
    it is `ttm`, and with the power sum as the weight, `wttm`. The gradient with respect to the logits is
    ``w * (q - p_f)``, and for other divergences ``w`` times that of `divergence`.

    Args:
        student_logits: ``(..., classes)``, ``z``.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0.
        transform: mapping from ``log x`` to ``log f(x)``, elementwise: a `targets.Pointwise`, or your own
            (`targets.check_transform`).
        sample_weight: function from the teacher's log-probabilities to weights ``(...)`` >= 0: a
            `targets.SampleWeight`, or your own.
        normalise: whether weights are divided by their mean over all samples, so values depend on the batch; if all
            are 0 they stay 0.
        kind: name of the divergence between ``p_f`` and ``q``, one of `KINDS`.
        alpha: teacher's share of the mixture of ``skew``; see `divergence`.
        beta: teacher's share of the mixture of ``jensen_shannon``; see `divergence`.

    Returns:
        ``(...)`` nats times the weight.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above, including those of returned tensors.
    Source: Zheng and Yang, arXiv 2402.11148, which leaves other transforms and weights open; the divergences: see
        `divergence`.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> flat = targets.Pointwise("complement", gamma=0.5)
        >>> transformed_matching(student, teacher, transform=flat)
        tensor([1.2770])
        >>> uncertainty = targets.SampleWeight("one_minus_top", transform=flat)
        >>> transformed_matching(student, teacher, transform=flat, sample_weight=uncertainty)
        tensor([0.1522])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    log_p = torch.log_softmax(teacher_logits, dim=-1)
    target = targets.transform(log_p, transform).detach()
    values = KINDS[kind](torch.log_softmax(student_logits, dim=-1), target, parameter_of(kind, alpha, beta))
    if sample_weight is None:
        return values
    weight = sample_weight(log_p).detach()
    if weight.shape != values.shape:
        expected = f"one weight per sample, shape {tuple(values.shape)}"
        instead = "sum over the classes, which are on the last axis"
        raise InvalidValueError("sample_weight", expected, tuple(weight.shape), instead)
    if normalise:
        weight = weight / weight.mean().clamp(min=torch.finfo(weight.dtype).tiny)
    return weight * values


def parameter_of(kind: str, alpha: float | None, beta: float | None) -> float:
    """Return the parameter of a kind of `divergence`: the default if none is given, 0.0 if it has none.

    Raises:
        TypeError: if it is not a Python number.
        ValueError: if there is no such kind, a number is given for a kind that takes none, or it is out of range.
    """
    checks.known(kind, "kind", KINDS, example='"forward"')
    own, default = PARAMETERS.get(kind, ("", 0.0))
    for name, value in (("alpha", alpha), ("beta", beta)):
        if name != own and value is not None:
            owners = " or ".join(f'kind="{other}"' for other, (its, _) in PARAMETERS.items() if its == name)
            raise InvalidValueError(name, f'none for kind="{kind}"', value, f"leave it out, or type {owners}")
    given = alpha if own == "alpha" else beta
    if given is None:
        return default
    checks.mixture_weight(given, own, example=default, ends='kind="forward" or kind="reverse"')
    return given


def _reverse(log_q: Tensor, log_p: Tensor, _: float) -> Tensor:
    q = log_q.exp()
    return (q * (log_q - log_p).masked_fill(q == 0, 0.0)).sum(dim=-1)


def _jensen_shannon(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    rest = 1 - beta
    return beta * _from_mixture(log_p, log_q, beta, rest) + rest * _from_mixture(log_q, log_p, rest, beta)


def _total_variation(log_q: Tensor, log_p: Tensor, _: float) -> Tensor:
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(dim=-1)


def _from_mixture(log_a: Tensor, log_b: Tensor, share_a: float, share_b: float) -> Tensor:
    """Return ``KL(a || share_a * a + share_b * b)``."""
    a = log_a.exp()
    # log(m / a) = log(share_a + share_b * b / a): one side is a finite constant, so if a class has neither a nor b,
    # logaddexp never differentiates two infinities, and nothing of the size of log a cancels.
    ratio = (log_b - log_a).masked_fill(a == 0, 0.0) + math.log(share_b)
    return -(a * torch.logaddexp(ratio, ratio.new_full((), math.log(share_a)))).sum(dim=-1)


KINDS: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward": lambda log_q, log_p, _: kl_divergence(log_q, log_p),
    "reverse": _reverse,
    "jensen_shannon": _jensen_shannon,
    "skew": lambda log_q, log_p, alpha: _from_mixture(log_p, log_q, alpha, 1 - alpha),
    "total_variation": _total_variation,
}
"""Divergences by name: functions of the student's log-probabilities, the teacher's, and the kind's parameter."""

PARAMETERS: Mapping[str, tuple[str, float]] = {"jensen_shannon": ("beta", 0.5), "skew": ("alpha", 0.1)}
"""Parameters by kind of `divergence`, with their defaults; the other kinds have none."""
