"""Numbers that are found once, before training, from the frozen teacher's logits on training samples.

They are rounded to four significant digits: further digits are sampling noise, and a short number is easy to type.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tutelage import targets
from tutelage.errors import InvalidValueError
from tutelage.objectives.term import BindContext
from tutelage.settings.weights import AUTO, Automatic
from tutelage.types import UNLABELLED, Batch, Outputs, Progress, Term

SHARE = 3.0
"""Initial gradient of a term with an automatic weight, as a multiple of cross-entropy's where all have labels."""
BIT = math.log(2)
"""Divergence of an untrained student from its target, in nats, that an automatic gamma gives."""
FLAT_GAMMA = 0.25
"""Power whose mean entropy an automatic gamma of another mapping matches: that of a temperature of 4."""
GAMMA_OF_TOKENS = 1.0
"""Automatic gamma where each token has a label."""

_ROWS = 1024
_DIGITS = 4
_DIGITS_OF_EXPONENT = 2
_ROUNDING = 1e-6  # of float32 logits, relative to the largest or to 1, with room
_VANISHED = 1e-12  # a gradient over cross-entropy's, of which float64 leaves no four digits


def balanced_weight(term: Term, context: BindContext, weight: Automatic = AUTO) -> float:
    """Find the weight that makes a term's gradient a multiple of cross-entropy's for a uniform student.

    ``beta = SHARE * sqrt(N / n) * ||q0 - onehot(y)|| / mean ||g||`` with the uniform student ``q0 = 1/K``, where
    ``||q0 - onehot(y)|| = sqrt((K - 1) / K)`` whatever the label; ``g`` is the gradient of a sample's term
    with respect to the student's logits, for a matching term ``w * (q0 - p_f)``. Of an epoch's ``N`` samples ``n`` have
    a label: the noise of cross-entropy's gradient, a mean over those of a batch, grows as ``sqrt(N / n)``, and so does
    the weight. What is rounded is this number over ``weight.unit``: the ``T * w * (q0 - p_gamma)`` of KD gives gamma
    times the beta of TTM, to the last digit.

    Raises:
        ValueError: if the context lacks the teacher's logits, they say nothing of at least two classes, the term's
            gradient is not finite or vanishes, or the term reads something besides logits.
    """
    needs = term.needs
    if needs.labels != "none" or needs.student_taps or needs.teacher_taps or needs.projections:
        expected = "a term that reads logits alone for auto"
        instead = f"for example {weight.argument}=3.0"
        raise InvalidValueError(weight.argument, expected, "one that reads labels or features", instead)
    logits = _logits(context, f"an automatic {weight.argument}", every=needs.teacher_head)
    _require_preference(logits, weight.argument, f"{weight.argument}=3.0")
    # A coupled term has a different value on part of the samples.
    chunks = [logits] if needs.coupled else logits.split(_ROWS)
    size = torch.cat([_gradient(term, chunk.double()).norm(dim=-1) for chunk in chunks]).mean().item()
    unit: float = term.target_gamma if weight.unit is None else weight.unit  # type: ignore[attr-defined]  # it was found
    of_cross_entropy = math.sqrt(1 - 1 / logits.shape[-1])
    relative = size * unit / of_cross_entropy
    if not _VANISHED <= relative < math.inf:
        expected = "a term with a finite gradient above 0 for an untrained student"
        got = f"a gradient of {relative:.1e} times cross-entropy's on {len(logits)} samples"
        instead = (
            "type a larger gamma, normalise=training, or a number"
            if math.isfinite(relative)
            else "check the teacher's logits, or name a divergence that takes probabilities of 0, such as forward"
        )
        raise InvalidValueError(weight.argument, expected, got, instead)
    return _rounded(SHARE / math.sqrt(_labelled(context)) / relative) * unit


def _require_preference(logits: Tensor, argument: str, example: str) -> None:
    """Refuse a teacher whose logits of a sample are all alike but for rounding, on every sample."""
    least, most = logits.aminmax(dim=-1)
    if (most - least <= _ROUNDING * most.abs().clamp(min=1)).all():
        expected, got = "a teacher that prefers a class somewhere", f"equal logits on all {len(logits)} samples"
        raise InvalidValueError(argument, expected, got, f"train it, or type {example}, for example")


def _labelled(context: BindContext) -> float:
    """Return the share of an epoch's samples with a label; 1 if there are none, or they are not one class a sample."""
    labels = context.labels
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        return 1.0
    known = int((labels != UNLABELLED).sum())
    return known / (context.per_epoch or len(labels)) or 1.0


def gamma(transform: str, context: BindContext) -> float:
    """Find the parameter of a mapping: the `exponent`, or what is as flat as the power at `FLAT_GAMMA`.

    Args:
        transform: name of the mapping, one of `targets.TRANSFORMS`.
        context: context with the teacher's logits. Where each token has a label gamma is 1: a student that is judged by
            the probabilities that it gives to texts is to learn those of its teacher.

    Returns:
        A number in (0, 1], rounded to two significant digits for the power and to four for other mappings.

    Raises:
        ValueError: if the teacher's logits are missing, not finite or all alike, or no gamma is flat enough.
    """
    if context.per_token:  # without the logits of a vocabulary in float64
        return GAMMA_OF_TOKENS
    logits = _logits(context, f"an automatic gamma of {transform}")
    _require_preference(logits, "gamma", f"gamma={FLAT_GAMMA}")
    log_probs = logits.double().log_softmax(dim=-1)
    return exponent(log_probs) if transform == "power" else equally_flat(transform, log_probs)


def exponent(log_probs: Tensor) -> float:
    """Find the exponent of the power at which an untrained student is `BIT` away from its target, 1 at most.

    ``mean KL(p_gamma || 1/K) = log K - mean H(p_gamma)``, in nats, rises with gamma; of fewer than four classes it is
    to be half of ``log K``. Above 1 the target would be surer than the teacher.

    Args:
        log_probs: distributions, float64 ``(samples, classes)``.

    Raises:
        ValueError: if no gamma is flat enough.
    """
    most = math.log(log_probs.shape[-1])
    entropy = most - min(BIT, most / 2)

    def is_flat(gamma: float) -> bool:
        return _mean(lambda rows: targets.shannon_entropy(targets.power(rows, gamma=gamma)), log_probs) >= entropy

    expected = "a teacher that a power can make so flat that an untrained student is a bit away"
    return 1.0 if is_flat(1.0) else _rounded(_largest(is_flat, expected, str(FLAT_GAMMA)), _DIGITS_OF_EXPONENT)


def _largest(is_flat: Callable[[float], bool], expected: str, example: str) -> float:
    """Return the largest gamma up to 1 that is flat enough, as all are that are small enough.

    Raises:
        ValueError: if none is.
    """
    if not is_flat(targets.SMALLEST_GAMMA):
        got = "one that is too confident, or rules out too many classes"
        raise InvalidValueError("gamma", expected, got, f"type a number, for example gamma={example}")
    low, high = math.log(targets.SMALLEST_GAMMA), 0.0
    while high - low > 10.0**-_DIGITS / 2:
        middle = (low + high) / 2
        low, high = (middle, high) if is_flat(math.exp(middle)) else (low, middle)
    return math.exp((low + high) / 2)


def equally_flat(name: str, log_probs: Tensor) -> float:
    """Find the gamma at which a mapping makes distributions as flat as the power does at `FLAT_GAMMA`.

    Equally flat means the same mean Shannon entropy on training samples.

    Args:
        name: name of the mapping, one of `targets.TRANSFORMS`.
        log_probs: distributions, float64 ``(samples, classes)``.

    Raises:
        ValueError: if no gamma is flat enough.
    """

    def entropy(mapping: str, gamma: float) -> float:
        f = targets.Pointwise(mapping, gamma=gamma)
        return _mean(lambda rows: targets.shannon_entropy(targets.transform(rows, f)), log_probs)

    target_entropy = entropy("power", FLAT_GAMMA)
    expected = f"a teacher that {name} can make as flat as a power of {FLAT_GAMMA}"
    return _rounded(_largest(lambda gamma: entropy(name, gamma) >= target_entropy, expected, "1e-6"))


def mean_weight(weigh: Callable[[Tensor], Tensor], context: BindContext) -> float:
    """Find the mean over training samples of a sample weight, a function of the teacher's log-probabilities.

    Raises:
        ValueError: if the teacher's logits are missing or not finite, or the weight is 0 on all of them.
    """
    log_probs = _logits(context, "a weight normalised over the training set").double().log_softmax(dim=-1)
    mean = _mean(weigh, log_probs)
    if not mean > 0:
        expected = "a weight above 0 somewhere"
        instead = "type normalise=none, or weight_by=power_sum, which is at least 1"
        raise InvalidValueError("normalise", expected, f"0 on all {len(log_probs)} training samples", instead)
    return _rounded(mean)


def _gradient(term: Term, teacher_logits: Tensor) -> Tensor:
    samples = len(teacher_logits)
    batch = Batch(torch.arange(samples), teacher_logits.new_empty((samples, 0)), torch.full((samples,), UNLABELLED))
    with torch.enable_grad():
        untrained = torch.zeros_like(teacher_logits, requires_grad=True)
        values = term(Outputs(untrained), Outputs(teacher_logits), batch, Progress())
        total = values.sum() if values.ndim else samples * values  # one value is a mean
        return torch.autograd.grad(total, untrained)[0]


def _mean(function: Callable[[Tensor], Tensor], log_probs: Tensor) -> float:
    return torch.cat([function(rows) for rows in log_probs.split(_ROWS)]).mean().item()


def _logits(context: BindContext, purpose: str, *, every: bool = False) -> Tensor:
    """Return the teacher's logits on training samples, without the classes that are -inf on all of them.

    With ``every`` those stay, so that columns are the rows of the teacher's head.
    """
    logits = context.teacher_logits
    if logits is None:
        instead = "type context=BindContext(teacher_logits=...), or a number in place of auto"
        raise InvalidValueError("context", f"the teacher's logits on training samples for {purpose}", "none", instead)
    of_rows, finite = logits.ndim == 2 and len(logits) > 0, logits.isfinite()
    if not of_rows or not ((finite | (logits == -math.inf)).all() and finite.any(dim=-1).all()):
        expected = "teacher_logits that are finite, or -inf for probability 0, of shape (samples, classes)"
        raise InvalidValueError("context", expected, "others" if of_rows else tuple(logits.shape), "check the teacher")
    possible = finite.any(dim=0)
    if (classes := int(possible.sum())) < 2:
        raise InvalidValueError(
            "context", "teacher_logits of at least 2 possible classes", classes, "check the teacher"
        )
    return logits.detach() if every else logits.detach()[:, possible]


def _rounded(value: float, digits: int = _DIGITS) -> float:
    return float(f"{value:.{digits}g}")
