"""Paired tests: what a test set, or a few seeds, can tell of two networks.

SciPy is imported where it is used: a table without a test does not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
"""A difference is called one if it would be less likely than this between networks that are equally good."""


def mcnemar(first: NDArray[Any], second: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the p-value of McNemar's exact test of two networks on the same samples.

    Of the ``b + c`` samples that only one of them answers right, ``b`` are the first one's. If both were equally good,
    ``b`` would be binomial with probability 1/2, and p is that of a ``b`` as far from the middle: two-sided
    (McNemar 1947, doi:10.1007/BF02295996; for learning algorithms Dietterich 1998, doi:10.1162/089976698300017197).

    Args:
        first: (n,), the classes that one network answers.
        second: (n,), the other's.
        labels: (n,), the right ones; samples below 0 have none and are left out.

    Returns:
        p in (0, 1]; 1 where no sample tells them apart.

    Example:
        >>> labels = np.zeros(10, int)
        >>> mcnemar(np.zeros(10, int), np.array([1] * 6 + [0] * 4), labels)
        0.03125
    """
    from scipy.stats import binomtest

    right, other = first == labels, second == labels
    only_first = int(np.sum(right & ~other & (labels >= 0)))
    only_second = int(np.sum(other & ~right & (labels >= 0)))
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def paired_t(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the paired t-test of two methods' results, one pair for each seed.

    ``t = mean(d) / (std(d) / √n)`` of the differences ``d``, with n - 1 degrees of freedom. ``None`` for fewer than 3
    pairs, with which the spread is not known, and where all differences are equal but for rounding: then there is none.

    Example:
        >>> round(paired_t([0.80, 0.82, 0.81], [0.78, 0.79, 0.80]), 4)
        0.0742
    """
    from scipy.stats import ttest_rel

    differences = [one - other for one, other in zip(first, second, strict=True)]
    if len(differences) < 3:
        return None
    if math.isclose(max(differences), min(differences), rel_tol=1e-6, abs_tol=1e-9):
        return 1.0 if abs(differences[0]) < 1e-9 else None
    return float(ttest_rel(first, second).pvalue)


def mean_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean by Student's t: ``mean ± t * std / √n``, ``t`` for n - 1 degrees of freedom.

    ``None`` for fewer than 2 numbers, whose spread is not known.

    Example:
        >>> [round(bound, 4) for bound in mean_interval([0.02, 0.03, 0.01])]
        [-0.0048, 0.0448]
    """
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return None
    mean, half = float(np.mean(differences)), float(t.ppf(0.975, n - 1)) * float(np.std(differences, ddof=1)) / n**0.5
    return mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values of several comparisons corrected so that one in ``1 / LEVEL`` families has a false difference.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is below one before it, none above 1
    (Holm 1979, jstor:4615733).

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = largest
    return corrected
