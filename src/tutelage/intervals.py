"""What a number of test samples leaves open of an accuracy. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def accuracy_interval(correct: int, samples: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, ``correct`` of ``samples`` (Wilson 1927, doi:10.2307/2276774).

    ``(p + z² / 2n ± z √(p(1 - p) / n + z² / 4n²)) / (1 + z² / n)`` with ``p = correct / n``, ``n = samples`` and
    ``z = 1.96``: bounds in [0, 1], also of a share of 0 or 1. It is the error of so few samples, and of nothing else.

    Raises:
        ValueError: ``samples`` is below 1, or ``correct`` is not from 0 to ``samples``.

    Example:
        >>> [round(bound, 4) for bound in accuracy_interval(90, 100)]
        [0.8256, 0.9448]
    """
    from scipy.stats import binomtest

    low, high = binomtest(correct, samples).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def interval_of(judgement: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the interval of a `records.Judgement`'s accuracy, from the labelled samples in its bins of reliability.

    ``None`` where there is no accuracy by class, as of tokens, no label, or a mean of something else.
    """
    samples = sum(each["count"] for each in judgement.get("reliability") or [])
    accuracy = judgement.get("accuracy")
    if accuracy is None or not samples or not judgement.get("per_class"):
        return None
    correct = round(accuracy * samples)
    return accuracy_interval(correct, samples) if abs(accuracy * samples - correct) <= 1e-6 * samples else None
