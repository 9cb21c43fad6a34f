"""Divergences between the student's distribution and the teacher's, by name: one value per sample, in nats.

``q = softmax(z)`` is the student, ``p = softmax(v)`` the teacher. Everything is computed from log-probabilities. A
class of probability 0 is masked before any product, so that ``0 * inf`` occurs neither forwards nor backwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage import checks, targets
from tutelage.errors import InvalidValueError
from tutelage.losses.logits import kl_divergence
from tutelage.losses.transport import transport


def divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: str,
    temperature: float = 1.0,
    alpha: float | None = None,
    beta: float | None = None,
    mu: float | None = None,
    cost: Tensor | None = None,
    sinkhorn_lambda: float | None = None,
    sinkhorn_iter: int | None = None,
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
    * ``skew_reverse``: ``KL(q || m)`` with ``m = alpha * q + (1 - alpha) * p``, ``skew`` with the roles exchanged;
      ``q * (r - sum_i q[i] * r[i])`` with ``r = log(q / m) - alpha * q / m``.
    * ``alpha_beta``: ``-1 / (a * b) * sum_i (p**a * q**b - a / (a + b) * p**(a + b) - b / (a + b) * q**(a + b))`` with
      ``a`` and ``b`` for ``alpha`` and ``beta``; ``g - q * sum_i g[i]`` with ``g = (q**(a + b) - p**a * q**b) / a``.
      Where ``a``, ``b`` or ``a + b`` is 0 it is the limit. ``forward`` is (1, 0), ``reverse`` (0, 1), and (0, 0) is
      ``0.5 * sum_i log(q[i] / p[i])**2``.
    * ``adaptive``: ``w * KL(p || q) + (1 - w) * KL(q || p)``, where ``w`` is the part of ``sum_i |p[i] - q[i]|`` that
      is in the teacher's head: its likeliest class, and those down to which probabilities add up to at most ``mu``.
    * ``class_wise``: ``sum_i (w[i] * p[i] * log(p[i] / q[i]) + (1 - w[i]) * q[i] * log(q[i] / p[i]))`` with
      ``w = p / (p + q)``. Its value is ``KL(p || q) + KL(q || p)``, its gradient is not: see below.
    * ``wasserstein``: the cost of moving ``q`` to ``p`` by `transport`.

    The weights ``w`` of ``adaptive`` and ``class_wise`` have no gradient, so the step is not that of the value's slope.

    No value is multiplied by ``T**2``: ``kd(z, v, temperature=T) = T**2 * divergence(z, v, kind="forward",
    temperature=T)``. In the same way ``ttm(z, v, gamma=g) = divergence(z, g * v, kind="forward")``, and `wttm` is that
    times ``U_g(p)``.

    A class with ``q = 0`` and ``p > 0`` makes ``forward`` infinite; one with ``p = 0`` and ``q > 0`` makes ``reverse``
    infinite, with a gradient of NaN; either makes ``class_wise`` infinite, and ``adaptive`` where its weight is not 0.
    ``alpha_beta`` is finite if ``alpha`` and ``beta`` are above 0, and at most ``1 / (alpha * beta)`` if they add up to
    at least 1. The others are always finite: ``jensen_shannon`` is at most
    ``-beta * log(beta) - (1 - beta) * log(1 - beta)``, ``log(2)`` at 0.5; ``skew`` and ``skew_reverse`` at most
    ``-log(alpha)``; ``wasserstein`` at most the largest cost.

    Args:
        student_logits: ``(..., classes)``, ``z``; ``-inf`` means probability 0.
        teacher_logits: the same shape, ``v``; ``-inf`` means probability 0.
        kind: name of the divergence, one of `KINDS`.
        temperature: ``T``, finite and above 0; it divides both networks' logits.
        alpha: for ``skew`` and ``skew_reverse`` the share of the mixture, above 0 and below 1, by default 0.1, that is
            the teacher's in the one and the student's in the other; for ``alpha_beta`` the teacher's exponent, any
            finite number, by default 0.5.
        beta: for ``jensen_shannon`` the teacher's share of the mixture, and the weight of the first term, above 0 and
            below 1, by default 0.5; for ``alpha_beta`` the student's exponent, any finite number, by default 0.5.
        mu: mass of the head, in [0, 1), by default 0.5; for ``adaptive`` only.
        cost: cost of moving probability from the student's class, a row, to the teacher's, ``(classes, classes)``, at
            least 0 (not checked); for ``wasserstein`` only, which needs it: `class_cost` makes one.
        sinkhorn_lambda: weight of the entropy of the plan, above 0, by default 0.05; for ``wasserstein`` only.
        sinkhorn_iter: number of Sinkhorn's iterations, by default 10, which do not converge: see `transport`; for
            ``wasserstein`` only.

    Returns:
        ``(...)`` nats, for ``total_variation`` a number in [0, 1] without unit, for ``wasserstein`` in the unit of the
        cost; 0 if the two are equal, but for ``wasserstein``, otherwise above 0, up to rounding.

    Raises: TypeError or ValueError if a dtype, shape, name or number is not as above, or a number is given for a kind
        that takes none.
    Source: ``jensen_shannon``: the generalised form of Agarwal et al., "On-Policy Distillation of Language Models",
        arXiv 2306.13649; ``skew`` and ``skew_reverse``: Ko et al., "DistiLLM: Towards Streamlined Distillation for
        Large Language Models", arXiv 2402.03898; ``alpha_beta``: Wang et al., "ABKD: Pursuing a Proper Allocation of
        the Probability Mass in Knowledge Distillation via alpha-beta-Divergence", arXiv 2505.04560; ``adaptive``: Wu et
        al., "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models", arXiv
        2404.02657; ``class_wise``: Jung et al., "ToDi: Token-wise Distillation via Fine-Grained Divergence Control",
        arXiv 2505.16297; ``wasserstein``: Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for
        Knowledge Distillation", arXiv 2412.08139.
    Differs from: TRL and Liger-Kernel, whose ``beta`` of 0 is ``KL(p || q)`` and of 1 ``KL(q || p)``, while the formula
        tends to 0 at both: type ``kind="forward"`` or ``kind="reverse"`` for these; DistiLLM's code, whose ``lam`` of
        the Jensen-Shannon divergence is the student's share, ``1 - beta``, and whose forward and skewed divergences
        are cross-entropies, larger by the teacher's entropy, with equal gradients. The code of ABKD jumps where an
        exponent or their sum is 0: its factor is ``1 / b`` where the limit's is ``1 / b**2`` (``1 / a`` and
        ``1 / a**2``), equal only at 1; its powers give a gradient of NaN once a student's probability underflows, and
        its sums values below 0 near equality. The code of AKL is NaN where the two are equal; a public copy counts
        the class that crosses ``mu`` to the head. The code of ToDi sums over tokens.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> divergence(student, teacher, kind="reverse")
        tensor([1.5232])
        >>> divergence(student, teacher, kind="jensen_shannon", beta=0.9)
        tensor([0.1286])
    """
    student_logits, teacher_logits = checks.logit_pair(student_logits, teacher_logits)
    checks.positive(temperature, "temperature", example=4.0)
    parameters = parameters_of(
        kind,
        alpha=alpha,
        beta=beta,
        mu=mu,
        cost=cost,
        sinkhorn_lambda=sinkhorn_lambda,
        sinkhorn_iter=sinkhorn_iter,
    )
    if temperature != 1:
        student_logits, teacher_logits = student_logits / temperature, teacher_logits / temperature
    log_q, log_p = torch.log_softmax(student_logits, dim=-1), torch.log_softmax(teacher_logits, dim=-1)
    return KINDS[kind](log_q, log_p, **parameters)


def transformed_matching(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    transform: targets.Transform,
    sample_weight: Callable[[Tensor], Tensor] | None = None,
    normalise: bool = False,
    kind: str = "forward",
    **parameters: Any,
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
        parameters: those of the kind, such as ``alpha`` of ``skew``; see `divergence`.

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
    values = KINDS[kind](torch.log_softmax(student_logits, dim=-1), target, **parameters_of(kind, **parameters))
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


def parameters_of(kind: str, **given: Any) -> dict[str, Any]:
    """Return the parameters of a kind of `divergence` by name, the defaults of those that are not given or ``None``.

    Raises:
        TypeError: if one is no Python number.
        ValueError: if there is no such kind, one is given for a kind that does not take it, or it is out of range.
    """
    checks.known(kind, "kind", KINDS, example='"forward"')
    parameters = PARAMETERS.get(kind, {})
    for name, value in given.items():
        if name not in parameters and value is not None:
            owners = " or ".join(f'kind="{other}"' for other, its in PARAMETERS.items() if name in its)
            got = tuple(value.shape) if isinstance(value, Tensor) else value
            instead = f"leave it out, or type {owners}" if owners else "leave it out"
            raise InvalidValueError(name, f'none for kind="{kind}"', got, instead)
    values = {name: known.default if given.get(name) is None else given[name] for name, known in parameters.items()}
    for name, value in values.items():
        parameters[name].check(value, name, example=parameters[name].default)
    return values


def _reverse(log_q: Tensor, log_p: Tensor) -> Tensor:
    q = log_q.exp()
    return (q * (log_q - log_p).masked_fill(q == 0, 0.0)).sum(dim=-1)


def _jensen_shannon(log_q: Tensor, log_p: Tensor, *, beta: float) -> Tensor:
    rest = 1 - beta
    of_teacher = from_mixture(log_p, log_q, math.log(beta), math.log(rest))
    return beta * of_teacher + rest * from_mixture(log_q, log_p, math.log(rest), math.log(beta))


def _skew(log_a: Tensor, log_b: Tensor, *, alpha: float) -> Tensor:
    return from_mixture(log_a, log_b, math.log(alpha), math.log(1 - alpha))


def _total_variation(log_q: Tensor, log_p: Tensor) -> Tensor:
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(dim=-1)


def from_mixture(
    log_a: Tensor, log_b: Tensor, log_share_a: float | Tensor, log_share_b: float | Tensor, *, constant: bool = False
) -> Tensor:
    """Return ``KL(a || share_a * a + share_b * b)``, without the gradient through a mixture that is a constant."""
    a = log_a.exp()
    # log(m / a) = log(share_a + share_b * b / a): one side is a finite constant, so if a class has neither a nor b,
    # logaddexp never differentiates two infinities, and nothing of the size of log a cancels.
    ratio = (log_b - log_a).masked_fill(a == 0, 0.0)
    # The derivative of a's own logarithm sums to 0, so with a constant mixture nothing of the ratio's is left.
    ratio = (ratio.detach() if constant else ratio) + log_share_b
    least = log_share_a if isinstance(log_share_a, Tensor) else ratio.new_full((), log_share_a)
    return -(a * torch.logaddexp(ratio, least)).sum(dim=-1)


def _adaptive(log_q: Tensor, log_p: Tensor, *, mu: float) -> Tensor:
    gaps = (log_p.exp() - log_q.exp()).detach().abs()
    likeliest, order = log_p.exp().sort(dim=-1, descending=True, stable=True)
    first = torch.arange(order.shape[-1], device=order.device) == 0
    head = (likeliest.cumsum(dim=-1) <= mu) | first
    parts = torch.stack([gaps.gather(-1, order).masked_fill(part, 0.0).sum(dim=-1) for part in (~head, head)])
    shares = parts / parts.sum(dim=0).clamp(min=torch.finfo(gaps.dtype).tiny)
    values = kl_divergence(log_q, log_p), _reverse(log_q, log_p)
    # A divergence that has no share may be infinite.
    forward, reverse = (
        (share * value).masked_fill(share == 0, 0.0) for share, value in zip(shares, values, strict=True)
    )
    return forward + reverse


def _class_wise(log_q: Tensor, log_p: Tensor) -> Tensor:
    p, q = log_p.exp(), log_q.exp()
    ratio = (log_p - log_q).masked_fill((p == 0) & (q == 0), 0.0)
    sure = ratio.detach()
    forward = sure.sigmoid() * (p * ratio).masked_fill(p == 0, 0.0)
    return (forward - (-sure).sigmoid() * (q * ratio.masked_fill(q == 0, 0.0))).sum(dim=-1)


def _alpha_beta(log_q: Tensor, log_p: Tensor, *, alpha: float, beta: float) -> Tensor:
    absent = (log_q == -math.inf) & (log_p == -math.inf)
    terms = _AlphaBeta.apply(log_q.masked_fill(absent, 0.0), log_p.masked_fill(absent, 0.0), alpha, beta)
    return terms.masked_fill(absent, 0.0).sum(dim=-1)


class _AlphaBeta(torch.autograd.Function):
    """Each class's term of the alpha-beta divergence, and its slope, both without cancellation.

    With ``d = log q - log p`` and the points ``x = (a + b) * log p``, ``y = a * log p + b * log q`` and
    ``z = (a + b) * log q``, the term is ``d**2`` times the second divided difference of the exponential at all three,
    and its slope by ``log q`` is ``d`` times the first at ``y`` and ``z``. Divided differences are continuous where
    points coincide, at exponents of 0 and at ``p = q``, and do not depend on the points' order.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_q: Tensor, log_p: Tensor, alpha: float, beta: float) -> Tensor:
        d, total = log_q - log_p, alpha + beta
        x, y, z = _power(log_p, total), _power(log_p, alpha) + _power(log_q, beta), _power(log_q, total)
        # The points that are farthest apart come first and last; ``one`` and ``two`` are the distances over d.
        if alpha * beta >= 0:
            first, middle, last, one, two = x, y, z, beta, alpha
        elif abs(alpha) >= abs(beta):
            first, middle, last, one, two = y, x, z, -beta, total
        else:
            first, middle, last, one, two = x, z, y, total, -alpha
        width = one + two
        if width == 0:
            return 0.5 * d * d
        apart = (_rise(middle, last, two, d) - _rise(first, middle, one, d)) / width
        t, series = width * d, torch.zeros_like(d)
        for coefficient in reversed(_coefficients(one / width - 0.5)):
            series = series * t + coefficient
        return torch.where(t.abs() < _NEAR, d * d * (first / 2 + last / 2).exp() * series, apart)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        log_q, log_p, ctx.alpha, ctx.beta = inputs
        ctx.save_for_backward(log_q, log_p)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (of_terms,) = grad_outputs
        log_q, log_p = ctx.saved_tensors
        y = _power(log_p, ctx.alpha) + _power(log_q, ctx.beta)
        slope = _rise(y, _power(log_q, ctx.alpha + ctx.beta), ctx.alpha, log_q - log_p)
        return of_terms * slope, None, None, None


def _power(log_x: Tensor, exponent: float) -> Tensor:
    """Return the logarithm of ``x**exponent``, with ``0**0 = 1``."""
    return exponent * log_x if exponent else torch.zeros_like(log_x)


def _rise(start: Tensor, end: Tensor, step: float, d: Tensor) -> Tensor:
    """Return ``(exp(end) - exp(start)) / step`` where ``end = start + step * d``; at a step of 0 ``exp(start) * d``."""
    if step == 0:
        size = start.exp()
        return size * d.masked_fill(size == 0, 0.0)
    t = step * d
    falls, rises = torch.expm1(t.masked_fill(t > 0, 0.0)), -torch.expm1(-t.masked_fill(t < 0, 0.0))
    grown = torch.where(t > 0, rises, falls)
    return torch.maximum(start, end).exp() * grown / step


_NEAR = 0.25
"""Distance of the outer points below which the second divided difference is a series."""


def _coefficients(middle: float) -> list[float]:
    """Return the series of the second divided difference of ``exp(t * .)`` at -1/2, ``middle`` and 1/2, by powers of t.

    They are complete homogeneous polynomials of the points over factorials. After ten the rest is below float64's
    precision for ``t`` up to `_NEAR`.
    """
    sums = [1.0]
    for n in range(1, 10):
        sums.append(middle * sums[-1] + (0.5**n if n % 2 == 0 else 0.0))
    return [total / math.factorial(n + 2) for n, total in enumerate(sums)]


class Parameter(NamedTuple):
    """A parameter of a kind of `divergence`: its default, and what refuses other values."""

    default: Any
    check: Callable[..., None]


_SHARE = partial(checks.mixture_weight, ends='kind="forward" or kind="reverse"')

KINDS: Mapping[str, Callable[..., Tensor]] = {
    "forward": kl_divergence,
    "reverse": _reverse,
    "jensen_shannon": _jensen_shannon,
    "skew": lambda log_q, log_p, *, alpha: _skew(log_p, log_q, alpha=alpha),
    "total_variation": _total_variation,
    "skew_reverse": _skew,
    "alpha_beta": _alpha_beta,
    "adaptive": _adaptive,
    "class_wise": _class_wise,
    "wasserstein": transport,
}
"""Divergences by name: functions of the student's log-probabilities, the teacher's, and the kind's parameters."""

PARAMETERS: Mapping[str, Mapping[str, Parameter]] = {
    "jensen_shannon": {"beta": Parameter(0.5, _SHARE)},
    "skew": {"alpha": Parameter(0.1, _SHARE)},
    "skew_reverse": {"alpha": Parameter(0.1, _SHARE)},
    "alpha_beta": {"alpha": Parameter(0.5, checks.finite), "beta": Parameter(0.5, checks.finite)},
    "adaptive": {"mu": Parameter(0.5, checks.fraction)},
    "wasserstein": {
        "cost": Parameter(None, checks.cost_matrix),
        "sinkhorn_lambda": Parameter(0.05, checks.positive),
        "sinkhorn_iter": Parameter(10, checks.whole_number),
    },
}
"""Parameters by kind of `divergence`; the other kinds have none."""
