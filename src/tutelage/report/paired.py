"""Paired tests of two entries of a comparison, and of a student and its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tutelage import records
from tutelage.report.reading import Run, Subject, number, section
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
    """Test whether two entries differ; ``None`` where their records allow no test.

    With three seeds or more that both have, it is the paired t-test of their results: it tests the methods. With fewer,
    it is McNemar's test of the two runs of one seed, on the same samples of the test set: it tests these networks. Of
    two seeds it is the larger p of the two tests, and 1 where their signs differ: both have to show the difference.
    """
    runs = [{run.seed: run for run in subject.of(entry)} for entry in (first, second)]
    pairs = [(run, runs[1][seed]) for seed, run in runs[0].items() if seed in runs[1]]
    if not pairs and all(len(each) == 1 for each in runs):
        pairs = [(next(iter(runs[0].values())), next(iter(runs[1].values())))]
    values = [[number(section(run.evaluation, "student").get(subject.measure.key)) for run in pair] for pair in pairs]
    known = [(one, other) for one, other in values if one is not None and other is not None]
    if len(known) == len(pairs) >= 3:
        p = paired_t(*zip(*known, strict=True))
        if p is not None:
            return Paired(p, f"paired t-test over {len(pairs)} seeds")
    return _by_samples(pairs) if subject.measure is records.ACCURACY else None


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
        if first is None or second is None or _data(one) != _data(other) or not _same_samples(first, second):
            return None
        p_values.append(mcnemar(first.student, second.student, first.label))
        signs.add(np.sign(np.sum(first.student == first.label) - np.sum(second.student == first.label)))
    if not p_values:
        return None
    several = "" if len(pairs) == 1 else f" of each of {len(pairs)} seeds, the largest p"
    return Paired(max(p_values) if len(signs) == 1 else 1.0, f"McNemar's test{several}")


def _data(run: Run) -> object:
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
