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
"""Initial gradient of a term with an automatic weight, as a multiple of cross-entropy's."""
FLAT_GAMMA = 0.25
"""Power whose mean entropy an automatic gamma of another mapping matches: that of a temperature of 4."""

_ROWS = 1024
_DIGITS = 4


def balanced_weight(term: Term, context: BindContext, weight: Automatic = AUTO) -> float:
    """Find the weight that makes a term's gradient `SHARE` times as large as cross-entropy's for a uniform student.

    ``beta = SHARE * ||q0 - onehot(y)|| / mean ||g||`` with the uniform student ``q0 = 1/K``, where
    ``||q0 - onehot(y)|| = sqrt((K - 1) / K)`` whatever the label; ``g`` is the gradient of a sample's term
    with respect to the student's logits, for a matching term ``w * (q0 - p_f)``. What is rounded is this number over
    ``weight.unit``: the ``T * w * (q0 - p_gamma)`` of KD gives gamma times the beta of TTM, to the last digit.

    Raises:
        ValueError: if the context lacks the teacher's logits or they are not finite, the term's gradient is 0 on all of
            them, or the term reads something besides logits.
    """
    needs = term.needs
    if needs.labels != "none" or needs.student_taps or needs.teacher_taps or needs.projections:
        expected = "a term that reads logits alone for auto"
        instead = f"for example {weight.argument}=3.0"
        raise InvalidValueError(weight.argument, expected, "one that reads labels or features", instead)
    logits = _logits(context, f"an automatic {weight.argument}")
    # A coupled term has a different value on part of the samples.
    chunks = [logits] if needs.coupled else logits.split(_ROWS)
    size = torch.cat([_gradient(term, chunk.double()).norm(dim=-1) for chunk in chunks]).mean().item()
    classes = logits.shape[-1]
    if not size > 0:
        expected = "a teacher that prefers a class somewhere"
        got = f"one whose target is uniform on all {len(logits)} samples"
        instead = f"train it, or type {weight.argument}=3.0, for example"
        raise InvalidValueError(weight.argument, expected, got, instead)
    return _rounded(SHARE * math.sqrt((classes - 1) / classes) / (size * weight.unit)) * weight.unit


def equally_flat(name: str, context: BindContext) -> float:
    """Find the gamma at which a mapping makes the teacher as flat as the power does at `FLAT_GAMMA`.

    Equally flat means the same mean Shannon entropy on training samples. It falls as gamma rises, so bisect.

    Args:
        name: name of the mapping, one of `targets.TRANSFORMS`.
        context: context with the teacher's logits.

    Raises:
        ValueError: if the teacher's logits are missing or not finite, or no gamma is flat enough.
    """
    if name == "power":
        return FLAT_GAMMA
    log_probs = _logits(context, f"an automatic gamma of {name}").double().log_softmax(dim=-1)

    def entropy(mapping: str, gamma: float) -> float:
        f = targets.Pointwise(mapping, gamma=gamma)
        return _mean(lambda rows: targets.shannon_entropy(targets.transform(rows, f)), log_probs)

    target_entropy = entropy("power", FLAT_GAMMA)
    low, high = math.log(targets.SMALLEST_GAMMA), 0.0
    if entropy(name, math.exp(low)) < target_entropy:
        expected = f"a teacher that {name} can make as flat as a power of {FLAT_GAMMA}"
        raise InvalidValueError("gamma", expected, "one that is too confident", "type a number, for example gamma=1e-6")
    while high - low > 10.0**-_DIGITS / 2:
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(name, math.exp(middle)) >= target_entropy else (low, middle)
    return _rounded(math.exp((low + high) / 2))


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
        return torch.autograd.grad(values.sum(), untrained)[0]


def _mean(function: Callable[[Tensor], Tensor], log_probs: Tensor) -> float:
    return torch.cat([function(rows) for rows in log_probs.split(_ROWS)]).mean().item()


def _logits(context: BindContext, purpose: str) -> Tensor:
    logits = context.teacher_logits
    if logits is None:
        instead = "type context=BindContext(teacher_logits=...), or a number in place of auto"
        raise InvalidValueError("context", f"the teacher's logits on training samples for {purpose}", "none", instead)
    of_rows, finite = logits.ndim == 2 and len(logits) > 0, logits.isfinite()
    if not of_rows or not ((finite | (logits == -math.inf)).all() and finite.any(dim=-1).all()):
        expected = "teacher_logits that are finite, or -inf for probability 0, of shape (samples, classes)"
        raise InvalidValueError("context", expected, "others" if of_rows else tuple(logits.shape), "check the teacher")
    return logits.detach()[:, finite.any(dim=0)]  # without classes that no sample has


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
