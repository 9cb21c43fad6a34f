"""Paired tests of two entries of a comparison, and of a student and its teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tutelage import records
from tutelage.report.reading import Run, Subject, mean, number, section
from tutelage.report.statistics import LEVEL, holm, mcnemar, paired_t
from tutelage.report.table import MISSING


class Paired(NamedTuple):
    """The outcome of a test of two networks or methods."""

    p: float  # probability of a difference as large if there were none
    how: str  # the test, in words

    @property
    def shown(self) -> bool:
        """Whether the test shows a difference."""
        return self.p < LEVEL


def compare(subject: Subject, first: str, second: str) -> Paired | None:
    """Test whether two entries differ; ``None`` where their records allow no test, as of other data.

    With three seeds or more that both have, it is the paired t-test of their results: it tests the methods. With fewer,
    it is McNemar's test of the two runs of one seed, on the same samples of the test set: it tests these networks. Of
    two seeds it is the larger p of the two tests, and 1 where their signs differ: both have to show the difference.
    p is also 1 where the difference over those seeds has another sign than that of the means over all runs.
    """
    runs = [{run.seed: run for run in subject.of(entry)} for entry in (first, second)]
    pairs = [(run, runs[1][seed]) for seed, run in runs[0].items() if seed in runs[1]]
    if not pairs and all(len(each) == 1 for each in runs):
        pairs = [(next(iter(runs[0].values())), next(iter(runs[1].values())))]
    if not pairs or any(evaluated_on(one) != evaluated_on(other) for one, other in pairs):
        return None

    def measured(runs: Iterable[Run]) -> list[float]:
        values = [number(section(run.evaluation, "student").get(subject.measure.key)) for run in runs]
        return [value for value in values if value is not None]

    known = [measured(each) for each in zip(*pairs, strict=True)]
    found = None
    if len(known[0]) == len(known[1]) == len(pairs) >= 3 and (p := paired_t(*known)) is not None:
        found = Paired(p, f"paired t-test over {len(pairs)} seeds")
    elif subject.measure is records.ACCURACY:
        found = _by_samples(pairs)
    signs = {_sign(*each) for each in (known, [measured(each.values()) for each in runs])}
    return found if found is None or len(signs) == 1 else found._replace(p=1.0)


def _sign(first: Sequence[float], second: Sequence[float]) -> int:
    difference = (mean(first) or 0.0) - (mean(second) or 0.0)
    return 0 if abs(difference) < 1e-9 else 1 if difference > 0 else -1


def with_teacher(run: Run) -> Paired | None:
    """Test whether a run's student and its teacher differ on the test set; ``None`` without their predictions."""
    answers = run.predictions
    if answers is None or answers.teacher is None:
        return None
    return Paired(mcnemar(answers.student, answers.teacher, answers.label), "McNemar's test")


def corrected(tests: Sequence[Paired | None]) -> list[Paired | None]:
    """Correct tests of several methods with one by Holm; those that were not possible do not count."""
    p_values = iter(holm([test.p for test in tests if test is not None]))
    return [None if test is None else Paired(next(p_values), test.how) for test in tests]


def _by_samples(pairs: Sequence[tuple[Run, Run]]) -> Paired | None:
    p_values, signs = [], set()
    for one, other in pairs:
        first, second = one.predictions, other.predictions
        if first is None or second is None or not _same_samples(first, second):
            return None
        p_values.append(mcnemar(first.student, second.student, first.label))
        signs.add(np.sign(np.sum(first.student == first.label) - np.sum(second.student == first.label)))
    several = "" if len(pairs) == 1 else f" of each of {len(pairs)} seeds, the largest p"
    return Paired(max(p_values) if len(signs) == 1 else 1.0, f"McNemar's test{several}")


def evaluated_on(run: Run) -> object:
    """Return the data and the set on which a run's networks were evaluated."""
    return section(run.manifest, "data").get("fingerprint"), section(run.evaluation).get("set")


def _same_samples(first: records.Predictions, second: records.Predictions) -> bool:
    return np.array_equal(first.index, second.index) and np.array_equal(first.label, second.label)


def p_value(p: float | None) -> str:
    """Write a p-value for a table: its size matters, not its digits.

    Example:
        >>> p_value(0.0312), p_value(0.2345), p_value(1e-9), p_value(None)
        ('0.031', '0.23', '<0.001', '–')
    """
    if p is None:
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_in_words(p: float) -> str:
    """Write a p-value in a sentence: ``p = 0.031``."""
    return f"p {p_value(p)}".replace("<", "< ") if p < 0.001 else f"p = {p_value(p)}"
