from __future__ import annotations

import pytest

from tutelage.intervals import accuracy_interval, interval_of


@pytest.mark.parametrize(
    ("correct", "samples", "expected"),
    # Newcombe 1998, table I, method 3: Wilson's without continuity correction.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_an_interval_is_wilsons(correct, samples, expected):
    assert accuracy_interval(correct, samples) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("accuracy", "samples", "expected"),
    [(0.5, 10, (0.2366, 0.7634)), (1.0, 20, (0.8389, 1.0)), (0.0, 5, (0.0, 0.4345)), (1 / 3, 10, None), (0.5, 0, None)],
)
def test_the_interval_of_an_accuracy(accuracy, samples, expected):
    judgement = {"accuracy": accuracy, "reliability": [{"count": samples}], "per_class": [accuracy]}
    found = interval_of(judgement)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-4))
    assert interval_of({**judgement, "per_class": []}) is None
