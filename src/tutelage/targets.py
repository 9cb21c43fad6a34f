"""What is done to a distribution over classes: the power transform, the power sum, the entropies.

Everything takes and gives logarithms of probabilities, natural ones, with the classes on the last axis and any leading
shape. In log space nothing underflows: ``softmax(v) ** gamma``, the form printed in most algorithms, is wrong by a
factor of several in float16 at a logit gap of 25 and in float32 beyond a gap of about 100. Results are at least float32
and are differentiable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage import checks

# Above this order log(1 + S) of `renyi_entropy` cancels for flat distributions; below it log(sum) / (1 - order) does.
_SERIES_UP_TO = 1.25


def power(log_probs: Tensor, *, gamma: float) -> Tensor:
    """Raise a distribution to a power and normalise it: the logarithm of the power-transformed distribution.

    ``log p_gamma[i] = gamma * log p[i] - log sum_j p[j]**gamma``, which is ``log_softmax(v / T)`` for
    ``log p = log_softmax(v)`` and ``gamma = 1 / T``: temperature scaling is a power transform.

    Args:
        log_probs: ``(..., classes)``, any floating dtype, log-probabilities; ``-inf`` is a class of probability 0.
            Logits give the same result, because a common shift cancels.
        gamma: exponent, finite and above 0; below 1 it flattens, above 1 it sharpens, at 1 it changes nothing.

    Returns:
        ``(..., classes)`` log-probabilities (nats), at least float32.

    Raises:
        TypeError: if ``log_probs`` is not a floating tensor or ``gamma`` no Python number.
        ValueError: if ``log_probs`` has no classes or ``gamma`` is not finite and above 0.

    Source: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148, Section 3.

    Differs from: the authors' code, which computes ``softmax(v) ** gamma`` and divides by its sum; that underflows.

    Example:
        >>> import torch
        >>> power(torch.tensor([0.64, 0.36]).log(), gamma=0.5).exp()
        tensor([0.5714, 0.4286])
    """
    log_probs = checks.classwise(log_probs, "log_probs")
    checks.positive(gamma, "gamma", example=0.1)
    return torch.log_softmax(gamma * log_probs, dim=-1)


def log_power_sum(log_probs: Tensor, *, gamma: float) -> Tensor:
    """Compute the logarithm of a distribution's power sum.

    ``log U_gamma(p) = log sum_j p[j]**gamma = (1 - gamma) * H_gamma(p)``, with the Rényi entropy ``H_gamma``.

    Args:
        log_probs: ``(..., classes)``, any floating dtype, normalised log-probabilities; ``-inf`` is a class of
            probability 0.
        gamma: exponent, finite and above 0.

    Returns:
        ``(...)``, at least float32; between 0 (one-hot) and ``(1 - gamma) * log(classes)`` (uniform) for ``gamma < 1``,
        0 at 1.

    Raises:
        TypeError: if ``log_probs`` is not a floating tensor or ``gamma`` no Python number.
        ValueError: if ``log_probs`` has no classes or ``gamma`` is not finite and above 0.

    Source: the sample weight of WTTM, arXiv 2402.11148, Section 4.

    Differs from: the authors' code, which sums ``softmax(v) ** gamma``; that underflows.

    Example:
        >>> import torch
        >>> log_power_sum(torch.tensor([0.25, 0.25, 0.25, 0.25]).log(), gamma=0.5).exp()
        tensor(2.)
    """
    log_probs = checks.classwise(log_probs, "log_probs")
    checks.positive(gamma, "gamma", example=0.1)
    return torch.logsumexp(gamma * log_probs, dim=-1)


def power_sum(log_probs: Tensor, *, gamma: float) -> Tensor:
    """Compute a distribution's power sum, the exponential of `log_power_sum`.

    ``U_gamma(p) = sum_j p[j]**gamma``. It depends on ``gamma`` and on the number of classes (up to about 501 for 1000
    classes at ``gamma = 0.1``), so a weight that multiplies it does not carry over from one to another.

    Args:
        log_probs: ``(..., classes)``, any floating dtype, normalised log-probabilities; ``-inf`` is a class of
            probability 0.
        gamma: exponent, finite and above 0.

    Returns:
        ``(...)``, at least float32; between 1 (one-hot) and ``classes ** (1 - gamma)`` (uniform) for ``gamma < 1``, 1
        at 1.

    Raises:
        TypeError: if ``log_probs`` is not a floating tensor or ``gamma`` no Python number.
        ValueError: if ``log_probs`` has no classes or ``gamma`` is not finite and above 0.

    Source: the sample weight of WTTM, arXiv 2402.11148, Section 4.

    Example:
        >>> import torch
        >>> power_sum(torch.tensor([0.64, 0.36]).log(), gamma=0.5)
        tensor(1.4000)
    """
    return log_power_sum(log_probs, gamma=gamma).exp()


def shannon_entropy(log_probs: Tensor) -> Tensor:
    """Compute Shannon entropy.

    ``H(p) = -sum_i p[i] * log p[i]``, where a class of probability 0 contributes 0 to the value and to the gradient.

    Args:
        log_probs: ``(..., classes)``, any floating dtype, normalised log-probabilities; ``-inf`` is a class of
            probability 0.

    Returns:
        ``(...)`` nats, at least float32; between 0 (one-hot) and ``log(classes)`` (uniform).

    Raises:
        TypeError: if ``log_probs`` is not a floating tensor.
        ValueError: if ``log_probs`` has no classes.

    Source: Shannon, "A Mathematical Theory of Communication", 1948.

    Differs from: `torch.distributions.Categorical.entropy`, which renormalises its logits and clamps ``-inf``.

    Example:
        >>> import torch
        >>> shannon_entropy(torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log())
        tensor([0.6931, 1.0297])
    """
    log_probs = checks.classwise(log_probs, "log_probs")
    probs = log_probs.exp()
    # Masked before the product: masking after it would leave 0 * -inf in the backward pass.
    return (probs * -log_probs.masked_fill(probs == 0, 0.0)).sum(dim=-1)


def renyi_entropy(log_probs: Tensor, *, order: float) -> Tensor:
    """Compute Rényi entropy.

    ``H_a(p) = log(sum_i p[i]**a) / (1 - a)``, with its limits: order 0 is the logarithm of the number of classes of
    probability above 0, order 1 is Shannon entropy, order infinity is ``-max_i log p[i]``. It never increases with the
    order.

    Up to order 1.25 it is computed as ``log(1 + S) / (1 - a)`` with ``S = sum_i p[i]**a - p[i]``, each difference by
    ``expm1``, so the quotient keeps its precision as the order approaches 1.

    Args:
        log_probs: ``(..., classes)``, any floating dtype, normalised log-probabilities; ``-inf`` is a class of
            probability 0.
        order: at least 0; infinity is legal. Order 0 has no gradient.

    Returns:
        ``(...)`` nats, at least float32; between 0 (one-hot) and ``log(classes)`` (uniform).

    Raises:
        TypeError: if ``log_probs`` is not a floating tensor or ``order`` no Python number.
        ValueError: if ``log_probs`` has no classes or ``order`` is negative or NaN.

    Source: Rényi, "On Measures of Entropy and Information", 1961; its role in distillation: arXiv 2402.11148, Section
    3.

    Example:
        >>> import torch
        >>> log_probs = torch.tensor([0.64, 0.36]).log()
        >>> renyi_entropy(log_probs, order=0.5), renyi_entropy(log_probs, order=2)
        (tensor(0.6729), tensor(0.6177))
    """
    log_probs = checks.classwise(log_probs, "log_probs")
    checks.order(order)
    if order == 1:
        return shannon_entropy(log_probs)
    if order == 0:
        return (log_probs > -math.inf).sum(dim=-1).to(log_probs.dtype).log()
    if order == math.inf:
        return -log_probs.amax(dim=-1)
    if order > _SERIES_UP_TO:
        return torch.logsumexp(order * log_probs, dim=-1) / (1 - order)
    # p**a - p = +-exp(min(a, 1) * log p) * (1 - exp(|1 - a| * log p)): no exponent is above 0, so nothing overflows.
    difference = -(min(order, 1.0) * log_probs).exp() * torch.expm1(abs(1 - order) * log_probs)
    return torch.log1p((1.0 if order < 1 else -1.0) * difference.sum(dim=-1)) / (1 - order)
