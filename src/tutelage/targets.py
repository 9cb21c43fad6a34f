"""Transforms of distributions over classes (the power and others), their sums, entropies and sample weights.

All functions take natural logarithms of probabilities in any floating dtype, with the classes on the last axis, and
return at least float32. In log space nothing underflows: ``softmax(v) ** gamma``, the form printed in most
algorithms, is wrong by a factor of several in float16 at a logit gap of 25 and in float32 beyond a gap of about 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from tutelage import checks
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.types import Sparse

Transform = Callable[[Tensor], Tensor]
"""Mapping f of single probabilities in log space: from ``log x`` to ``log f(x)``, elementwise."""

# Above this order log(1 + S) of `renyi_entropy` cancels for flat distributions; below it log(sum) / (1 - order) does.
_SERIES_UP_TO = 1.25


def power(log_probs: Tensor, *, gamma: float) -> Tensor:
    """Compute the logarithm of the power-transformed distribution: raised to a power, then normalised.

    ``log p_gamma[i] = gamma * log p[i] - log sum_j p[j]**gamma``, which is ``log_softmax(v / T)`` for
    ``log p = log_softmax(v)`` and ``gamma = 1 / T``: temperature scaling is a power transform.

    Args:
        log_probs: ``(..., classes)``, or logits, since a shift cancels; ``-inf`` means probability 0.
        gamma: exponent, finite and above 0; flattens below 1, sharpens above 1, changes nothing at 1.

    Returns:
        ``(..., classes)`` log-probabilities (nats).

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148, Section 3.
    Differs from: the authors' code, which computes ``softmax(v) ** gamma`` and divides by its sum; that underflows.

    Example:
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
        log_probs: ``(..., classes)``, normalised; ``-inf`` is a class of probability 0.
        gamma: exponent, finite and above 0.

    Returns:
        ``(...)``; from 0 (one-hot) to ``(1 - gamma) * log(classes)`` (uniform) for ``gamma < 1``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: the sample weight of WTTM, arXiv 2402.11148, Section 4.
    Differs from: the authors' code, which sums ``softmax(v) ** gamma``; that underflows.

    Example:
        >>> log_power_sum(torch.tensor([0.25, 0.25, 0.25, 0.25]).log(), gamma=0.5).exp()
        tensor(2.)
    """
    log_probs = checks.classwise(log_probs, "log_probs")
    checks.positive(gamma, "gamma", example=0.1)
    return torch.logsumexp(gamma * log_probs, dim=-1)


def power_sum(log_probs: Tensor, *, gamma: float) -> Tensor:
    """Compute a distribution's power sum, the exponential of `log_power_sum`.

    ``U_gamma(p) = sum_j p[j]**gamma``. It depends on ``gamma`` and on the number of classes (up to about 501 for 1000
    classes at ``gamma = 0.1``), so a weight that multiplies it does not carry over to others.

    Args:
        log_probs: ``(..., classes)``, normalised; ``-inf`` is a class of probability 0.
        gamma: exponent, finite and above 0.

    Returns:
        ``(...)``; from 1 (one-hot) to ``classes ** (1 - gamma)`` (uniform) for ``gamma < 1``, 1 at 1.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: the sample weight of WTTM, arXiv 2402.11148, Section 4.

    Example:
        >>> power_sum(torch.tensor([0.64, 0.36]).log(), gamma=0.5)
        tensor(1.4000)
    """
    return log_power_sum(log_probs, gamma=gamma).exp()


def shannon_entropy(log_probs: Tensor) -> Tensor:
    """Compute Shannon entropy.

    ``H(p) = -sum_i p[i] * log p[i]``; a class of probability 0 adds 0 to value and gradient.

    Args:
        log_probs: ``(..., classes)``, normalised; ``-inf`` is a class of probability 0.

    Returns:
        ``(...)`` nats; between 0 (one-hot) and ``log(classes)`` (uniform).

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Shannon, "A Mathematical Theory of Communication", 1948.
    Differs from: `torch.distributions.Categorical.entropy`, which renormalises its logits and clamps ``-inf``.

    Example:
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
    probability above 0, order 1 is Shannon entropy, order infinity is ``-max_i log p[i]``. It never rises with the
    order.

    Up to order 1.25 it is computed as ``log(1 + S) / (1 - a)`` with ``S = sum_i p[i]**a - p[i]``, each difference by
    ``expm1``, so the quotient keeps its precision as the order approaches 1.

    Args:
        log_probs: ``(..., classes)``, normalised; ``-inf`` is a class of probability 0.
        order: order of the entropy, at least 0, possibly infinity. Order 0 has no gradient.

    Returns:
        ``(...)`` nats; between 0 (one-hot) and ``log(classes)`` (uniform).

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Rényi, "On Measures of Entropy and Information", 1961; in distillation: arXiv 2402.11148, Section 3.

    Example:
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


def transform(log_probs: Tensor, f: Transform) -> Tensor:
    """Compute the logarithm of a transformed distribution: each probability mapped, then normalised.

    ``log p_f[i] = log f(p[i]) - log sum_j f(p[j])``. With ``f(x) = x**gamma`` it is `power`.

    Args:
        log_probs: ``(..., classes)``, normalised, unlike for `power`; ``-inf`` means probability 0.
        f: a `Pointwise`, or any `Transform`; its conditions are checked by `check_transform`, not here.

    Returns:
        ``(..., classes)`` log-probabilities (nats).

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Zheng and Yang, arXiv 2402.11148, which uses the power and leaves other mappings open.

    Example:
        >>> transform(torch.tensor([0.8, 0.2]).log(), Pointwise("rational", gamma=0.25)).exp()
        tensor([0.6531, 0.3469])
    """
    return torch.log_softmax(_mapped(log_probs, f), dim=-1)


def log_sum(log_probs: Tensor, f: Transform) -> Tensor:
    """Compute the logarithm of a transformed distribution's normaliser: the power sum of any mapping.

    ``log U_f(p) = log sum_j f(p[j])``. With ``f(x) = x**gamma`` it is `log_power_sum`.

    Args:
        log_probs: ``(..., classes)``, normalised; ``-inf`` is a class of probability 0.
        f: a `Pointwise`, or any `Transform`.

    Returns:
        ``(...)``. In ``[0, log(classes)]`` if ``f(0) = 0``, ``f(1) = 1``, ``f(x) >= x``.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: the sample weight of WTTM, arXiv 2402.11148, Section 4, for mappings other than the power.

    Example:
        >>> log_sum(torch.tensor([0.25, 0.25, 0.25, 0.25]).log(), Pointwise("power", gamma=0.5)).exp()
        tensor(2.)
    """
    return torch.logsumexp(_mapped(log_probs, f), dim=-1)


def dense(logits: Sparse) -> Tensor:
    """Return all logits ``(..., classes)`` of rows whose largest values and level are known.

    The dtype is the wider one of values and level; differentiable in both.

    Raises:
        ValueError: if they are a bucket or sampled classes, which have no whole row.

    Example:
        >>> dense(Sparse(torch.tensor([[3.0]]), torch.tensor([[1]]), torch.tensor([0.5]), 3))
        tensor([[0.5000, 3.0000, 0.5000]])
    """
    if logits.form != "level":
        expected = "a teacher whose whole rows are known, which this objective reads"
        instead = "type ttm or wttm with gamma=1, or kd with temperature=1, or outputs=null to ask the teacher itself"
        raise InvalidValueError("teacher_logits", expected, f"its recorded form {logits.form}", instead)
    dtype = torch.promote_types(logits.values.dtype, logits.level.dtype)
    level = logits.level.to(dtype)[..., None].expand(*logits.level.shape, logits.classes)
    return level.scatter(-1, logits.index, logits.values.to(dtype))


def draw(teacher_logits: Tensor, uniform: Tensor, *, proposal: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw classes from a teacher, each with the weight that makes their histogram right in the mean.

    Classes are drawn with repeats from ``r = p**proposal / sum p**proposal`` and weigh ``p / (n * r)``. The histogram
    of the weights has the mean ``p`` over all draws. Below 1 a proposal finds unlikely classes oftener, above 1 likely
    ones; at 1 all weights are ``1 / n``, so that they always add up to 1.

    Args:
        teacher_logits: ``(..., classes)``, ``v``, ``p = softmax(v)``; ``-inf`` means probability 0.
        uniform: numbers in [0, 1), ``(..., n)``, float64 on the same device: each is one draw.
        proposal: exponent, finite and above 0.

    Returns:
        The classes, ``(..., n)`` int64, the likeliest first, and the logarithms of their weights, float64.

    Raises: TypeError or ValueError if a dtype, shape or number is not as above.
    Source: Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", arXiv 2503.16870.

    Example:
        >>> index, log_weights = draw(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.05, 0.5]]).double())
        >>> index, log_weights.exp()
        (tensor([[1, 0]]), tensor([[0.5000, 0.5000]], dtype=torch.float64))
    """
    log_p = checks.classwise(teacher_logits, "teacher_logits").detach().double().log_softmax(-1)
    checks.positive(proposal, "proposal", example=1.0)
    if not isinstance(uniform, Tensor) or uniform.dtype != torch.float64 or uniform.shape[:-1] != log_p.shape[:-1]:
        got = f"{uniform.dtype} of {tuple(uniform.shape)}" if isinstance(uniform, Tensor) else type(uniform).__name__
        expected = f"float64 of shape {tuple(log_p.shape[:-1])} and the number of draws"
        raise InvalidValueError("uniform", expected, got, "for example torch.rand(..., dtype=torch.float64)")
    log_r = log_p if proposal == 1 else (proposal * log_p).log_softmax(-1)
    below = log_r.exp().cumsum(-1)
    index = torch.searchsorted(below, uniform * below[..., -1:], right=True).clamp(max=log_p.shape[-1] - 1)
    index = index.sort(-1).values  # so that equally likely classes have an order
    index = index.gather(-1, log_p.gather(-1, index).argsort(dim=-1, descending=True, stable=True))
    log_weights = (log_p - log_r).gather(-1, index) if proposal != 1 else torch.zeros_like(uniform)
    return index, log_weights - math.log(uniform.shape[-1])


# Where f is this flat in log space, log f(x) = log x + log(slope) - c * x to the last bit of a float64.
_TAIL = -20.0
SMALLEST_GAMMA = 1e-12
"""Least gamma of mappings other than the power: below it they lose precision in float32."""


def _logarithm(log_x: Tensor, gamma: float) -> Tensor:
    log_a = math.log1p(-gamma) - math.log(gamma)
    log_ax = log_x + log_a
    near = torch.log1p(log_ax.clamp(min=_TAIL).exp()).log()
    tail = log_ax - 0.5 * log_ax.exp()
    return torch.where(log_ax > _TAIL, near, tail) - math.log(-math.log(gamma))


def _complement(log_x: Tensor, gamma: float) -> Tensor:
    slope = 1 / gamma
    log_slope = math.log(slope)
    # At x = 1 the inner logarithm and its gradient are infinite, although f is smooth; eps**2 away it equals f(1).
    inside = log_x.clamp(min=_TAIL - log_slope, max=-(torch.finfo(log_x.dtype).eps ** 2))
    near = _log1mexp(slope * _log1mexp(inside))
    tail = log_x + log_slope - 0.5 * (slope - 1) * log_x.exp()
    return torch.where(log_x > _TAIL - log_slope, near, tail)


def _log1mexp(log_x: Tensor) -> Tensor:
    """Compute ``log(1 - x)`` from ``log x < 0``."""
    half = -math.log(2.0)
    above = torch.log(-torch.expm1(log_x.clamp(min=half)))
    below = torch.log1p(-log_x.clamp(max=half).exp())
    return torch.where(log_x > half, above, below)


TRANSFORMS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "power": lambda log_x, gamma: gamma * log_x,
    "rational": lambda log_x, gamma: log_x - torch.log(gamma + (1 - gamma) * log_x.exp()),
    "logarithm": _logarithm,
    "complement": _complement,
}
"""Named mappings, as functions of ``(log x, gamma)``."""


@dataclass(frozen=True)
class Pointwise:
    """A named mapping of probabilities with one parameter that acts like the exponent of the power transform.

    At ``gamma = 1`` none changes anything; the smaller ``gamma``, the flatter the transformed distribution. They
    are concave, with ``f(0) = 0``, ``f(1) = 1`` and so ``f(x) >= x`` for ``gamma <= 1``:

    * ``power``: ``x**gamma``. It divides the distance between any two log-probabilities by ``1 / gamma``.
    * ``rational``: ``x / (gamma + (1 - gamma) * x)``, of slope ``1 / gamma`` at 0.
    * ``logarithm``: ``log(1 + a * x) / log(1 + a)`` with ``a = 1 / gamma - 1``, of slope ``-a / log(gamma)`` at 0.
    * ``complement``: ``1 - (1 - x)**(1 / gamma)``, of slope ``1 / gamma`` at 0.

    The slope of the last three is finite: they flatten the top, keep the ratios of small probabilities, and need a far
    smaller ``gamma`` than the power for the same entropy.

    Attributes:
        name: name of the mapping, one of `TRANSFORMS`.
        gamma: parameter of the mapping, finite and above 0; between 1e-12 and 1 unless it is ``power``.

    Raises: TypeError or ValueError if a name or a number is not as above.

    Example:
        >>> Pointwise("complement", gamma=0.5)(torch.tensor([0.1, 1.0]).log()).exp()
        tensor([0.1900, 1.0000])
    """

    name: str
    _: KW_ONLY
    gamma: float

    def __post_init__(self) -> None:
        checks.known(self.name, "transform", TRANSFORMS, example="power")
        checks.positive(self.gamma, "gamma", example=0.1)
        if self.name != "power" and not SMALLEST_GAMMA <= self.gamma <= 1:
            expected = f"a number between {SMALLEST_GAMMA} and 1 for {self.name}"
            raise InvalidValueError("gamma", expected, self.gamma, "for example gamma=0.01")

    def __call__(self, log_probs: Tensor) -> Tensor:
        """Return ``log f(x)`` for each ``log x``, in at least float32; ``f`` keeps its relative precision down to 0."""
        log_probs = checks.classwise(log_probs, "log_probs")
        return log_probs if self.gamma == 1 else TRANSFORMS[self.name](log_probs, self.gamma)


def check_transform(f: Transform) -> None:
    """Refuse an invalid transform of probabilities: f(0) = 0, f(1) = 1, never falling, never below x.

    The mapping is tried on a grid of ``log x`` from 0 down to -10000 and at ``-inf``, in float64 and in float32, where
    one that leaves log space loses small probabilities. Call this once on your own mapping; the losses do not.

    Args:
        f: mapping from ``log x`` to ``log f(x)``, elementwise.

    Raises:
        TypeError: if it does not return a floating tensor.
        ValueError: if it changes the shape, is not elementwise, or breaks one of the conditions.

    Source: the conditions of arXiv 2402.11148 on point-wise mappings that replace the power.

    Example:
        >>> check_transform(Pointwise("logarithm", gamma=0.01))
        >>> check_transform(lambda log_x: 2 * log_x)
        Traceback (most recent call last):
        tutelage.errors.InvalidValueError: transform: expected f(x) >= x, got log f(x) = -2.07e-06 at...
    """
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        below = -torch.logspace(-8, 4, 400, dtype=torch.float64)
        grid = torch.cat([below.new_zeros(1), below, below.new_full((1,), -math.inf)]).to(dtype)
        values = _mapped(grid, f)
        alone = _mapped(grid[:, None], f)[:, 0]
        elementwise = torch.isclose(values, alone, rtol=tolerance, atol=tolerance, equal_nan=True)
        _hold(elementwise, grid, values, "each log f(x) to depend on its own log x alone")
        _hold(~values.isnan(), grid, values, "a number")
        _hold((grid > -math.inf) | (values == -math.inf), grid, values, "f(0) = 0")
        _hold((grid < 0) | (values.abs() <= tolerance), grid, values, "f(1) = 1")
        # The grid falls, so the values must too.
        falls = torch.ones_like(grid, dtype=torch.bool)
        falls[1:] = ~(values[1:] > values[:-1] + tolerance * (1 + values[:-1].abs()))
        _hold(falls, grid, values, "f that never falls")
        _hold(values >= grid - tolerance * (1 + grid.abs()), grid, values, "f(x) >= x")


def _hold(kept: Tensor, grid: Tensor, values: Tensor, expected: str) -> None:
    if not kept.all():
        at = int((~kept).nonzero()[0])
        got = f"log f(x) = {values[at].item():.3g} at log x = {grid[at].item():.3g}"
        instead = 'map log x to log f(x) elementwise in log space, as Pointwise("logarithm", gamma=0.01) does'
        raise InvalidValueError("transform", expected, got, instead)


def _mapped(log_probs: Tensor, f: Transform) -> Tensor:
    log_probs = checks.classwise(log_probs, "log_probs")
    values = f(log_probs)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = checks.kind_of(values)
        raise InvalidTypeError("transform", "a floating tensor of log f(x)", kind, "return one from the mapping")
    if values.shape != log_probs.shape:
        expected = f"log f(x) for each log x, shape {tuple(log_probs.shape)}"
        instead = "map elementwise and leave the sum over classes to tutelage.targets.transform"
        raise InvalidValueError("transform", expected, tuple(values.shape), instead)
    return values


WEIGHTS = ("constant", "power_sum", "entropy", "one_minus_top")
"""Names of sample weights."""


@dataclass(frozen=True)
class SampleWeight:
    """A weight per sample that measures how unsure the teacher is, from the teacher's log-probabilities.

    * ``constant``: 1.
    * ``power_sum``: ``sum_j f(p[j])`` of the teacher's own distribution, with the mapping f; with the power, WTTM's
      weight.
    * ``entropy``: the Rényi entropy of ``order``, nats; 1 is Shannon's, infinity is ``-log max_i p[i]``.
    * ``one_minus_top``: ``1 - max_i p[i]``.

    A one-hot teacher has weight 1 by the first two and 0 by the last two.

    Attributes:
        name: name of the weight, one of `WEIGHTS`.
        transform: mapping of the teacher's probabilities.
        of: distribution whose entropy or top is used: the ``"teacher"``'s own, or the transformed ``"target"``.
        order: order of an entropy; at least 0.

    Raises:
        TypeError: if ``order`` is not a Python number.
        ValueError: if a name is unknown, or ``of`` or ``order`` is given for a weight that has none.

    Source: the power sum: Zheng and Yang, arXiv 2402.11148, which leaves other weights open.

    Example:
        >>> log_probs = torch.tensor([[0.64, 0.36], [1.0, 0.0]]).log()
        >>> half = Pointwise("power", gamma=0.5)
        >>> SampleWeight("power_sum", transform=half)(log_probs)
        tensor([1.4000, 1.0000])
        >>> SampleWeight("one_minus_top", transform=half, of="target")(log_probs)
        tensor([0.4286, 0.0000])
    """

    name: str
    _: KW_ONLY
    transform: Transform
    of: str = "teacher"
    order: float = 1.0

    def __post_init__(self) -> None:
        checks.known(self.name, "weight_by", WEIGHTS, example="constant")
        checks.known(self.of, "weight_of", ("teacher", "target"), example="teacher")
        checks.order(self.order)
        if self.of != "teacher" and self.name in ("constant", "power_sum"):
            raise InvalidValueError(
                "weight_of", f"teacher with weight_by {self.name}", self.of, "for example weight_by=entropy"
            )
        if self.order != 1 and self.name != "entropy":
            raise InvalidValueError(
                "order", f"1 with weight_by {self.name}, which has no order", self.order, "type weight_by=entropy"
            )

    def __call__(self, log_probs: Tensor) -> Tensor:
        """Return each sample's weight, ``(...)`` from ``(..., classes)`` normalised log-probabilities."""
        log_probs = checks.classwise(log_probs, "log_probs")
        if self.name == "constant":
            return torch.ones_like(log_probs[..., 0])
        if self.name == "power_sum":
            return log_sum(log_probs, self.transform).exp()
        log_probs = log_probs if self.of == "teacher" else transform(log_probs, self.transform)
        if self.name == "entropy":
            return renyi_entropy(log_probs, order=self.order)
        # The sum of the others: 1 - max would lose uncertainties below the precision of 1.
        return log_probs.exp().scatter(-1, log_probs.argmax(dim=-1, keepdim=True), 0.0).sum(dim=-1)
