from __future__ import annotations

import pytest

from tutelage.intervals import accuracy_interval


@pytest.mark.parametrize(
    ("correct", "samples", "expected"),
    # Newcombe 1998, table I, method 3: Wilson's without continuity correction.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_an_interval_is_wilsons(correct, samples, expected):
    assert accuracy_interval(correct, samples) == pytest.approx(expected, abs=5e-5)
