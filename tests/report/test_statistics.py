from __future__ import annotations

import math

import numpy as np
import pytest

from tutelage.report import statistics


def test_mcnemar_counts_the_samples_that_tell_two_networks_apart():
    labels = np.array([0] * 20 + [-1] * 5)
    first = np.array([0] * 9 + [1] * 1 + [0] * 10 + [-1] * 5)
    second = np.array([1] * 9 + [0] * 1 + [0] * 10 + [0] * 5)
    # 9 and 1 of 10: twice the sum of 10! / (k! (10 - k)!) / 2^10 over k = 0, 1.
    assert statistics.mcnemar(first, second, labels) == pytest.approx(2 * 11 / 1024)
    assert statistics.mcnemar(second, first, labels) == pytest.approx(2 * 11 / 1024)
    assert statistics.mcnemar(first, first, labels) == 1.0


def test_a_paired_t_test_has_the_p_value_of_its_t():
    first, second = [5.0, 7.0, 9.0], [4.0, 5.0, 6.0]
    t = 2 / (1 / math.sqrt(3))  # differences 1, 2, 3
    # Two degrees of freedom have a closed form: 1 - t / sqrt(t² + 2).
    assert statistics.paired_t(first, second) == pytest.approx(1 - t / math.sqrt(t**2 + 2))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [([0.9, 0.8], [0.1, 0.2], None), ([0.3, 0.4, 0.5], [0.2, 0.3, 0.4], None), ([0.3, 0.4, 0.5], [0.3, 0.4, 0.5], 1.0)],
)
def test_two_seeds_or_no_spread_make_no_test(first, second, expected):
    assert statistics.paired_t(first, second) == expected


def test_holm_multiplies_each_by_the_comparisons_left():
    # Each by hand: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 is not below the one before.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []
