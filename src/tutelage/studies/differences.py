"""Differences of two methods of a study, paired by seed: each tests what its name says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tutelage import records
from tutelage.report import table as tables
from tutelage.report.paired import p_value
from tutelage.report.reading import Subject, deviation, mean, number, section
from tutelage.report.statistics import mean_interval, paired_t
from tutelage.report.table import MISSING, fixed, interval

NOTE = (
    "A difference is the first method's less the second's of the same seed: mean ± sample standard deviation over the "
    "n seeds that both have finished, the mean's 95 % interval by Student's t, and p of the paired t-test, for which "
    "it takes three seeds."
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One method's measure less another's on one pair, seed by seed; accuracies are in percentage points."""

    pair: str  # name in the study
    tests: str  # what the difference tests, as the study names it
    first: str
    second: str
    measure: records.Measure = records.ACCURACY  # what the networks are judged by
    seeds: tuple[int, ...] = ()  # seeds of which both runs are finished
    values: tuple[float, ...] = ()  # difference of each
    mean: float | None = None
    std: float | None = None  # sample standard deviation (n - 1)
    low: float | None = None  # ends of the mean's 95 % interval; None with fewer than two seeds
    high: float | None = None
    p: float | None = None  # of the paired t-test; None with fewer than three seeds
    untested: str | None = None  # reason for no interval

    @property
    def above(self) -> int:
        """Number of seeds with a difference above 0."""
        return sum(value > 0 for value in self.values)


def differences_of(asked: Sequence[records.Compared], subjects: Mapping[str, Subject]) -> list[Difference]:
    """Return the differences that a study asks for, pair by pair."""
    return [difference(pair, subject, each) for pair, subject in subjects.items() for each in asked]


def difference(pair: str, subject: Subject, asked: records.Compared) -> Difference:
    """Return one difference on one pair, over the seeds of which both runs are finished."""
    by = subject.measure
    first, second = (by_seed(subject, asked[which]) for which in ("first", "second"))
    seeds = tuple(sorted(first.keys() & second.keys()))
    values = tuple(by.scale * (first[seed] - second[seed]) for seed in seeds)
    low, high = mean_interval(values) or (None, None)
    untested = {0: "no seed that both have finished", 1: "one seed has no spread"}.get(len(seeds))
    return Difference(
        pair=pair,
        **asked,
        measure=by,
        seeds=seeds,
        values=values,
        mean=mean(values),
        std=deviation(values),
        low=low,
        high=high,
        p=paired_t(values, [0.0] * len(values)),
        untested=untested,
    )


def by_seed(subject: Subject, method: str) -> dict[int, float]:
    """Return what a method's finished students are judged by, as recorded."""
    found = {
        run.seed: number(section(run.evaluation, "student").get(subject.measure.key)) for run in subject.of(method)
    }
    return {seed: value for seed, value in found.items() if seed is not None and value is not None}


def fields(of: Difference) -> dict[str, Any]:
    """Return a difference's fields for ``table.json``; its measure is the rows'."""
    written = asdict(of)
    del written["measure"]
    return written | {"n": len(of.values), "above": of.above}


def table_of(differences: Sequence[Difference], *, caption: str = "") -> tables.Table:
    """Return the table of one pair's differences, at least one."""
    by = differences[0].measure
    headings = ("Tests", "Difference", "n", by.heading("Mean", by.steps), "95\u00a0% interval", "p", "Above 0")
    exact = ("pair", "tests", "first", "second", "mean", "std", "low", "high", "p")
    rows = [
        tables.Row(cells=_cells(each), exact={key: getattr(each, key) for key in exact} | {"n": len(each.values)})
        for each in differences
    ]
    return tables.Table(headings=headings, rows=rows, wrapped=(4,), words=(1,), caption=caption)


def _cells(of: Difference) -> list[str]:
    spread = "" if of.std is None else f" ± {of.std:.2f}"
    bounds = f"none: {of.untested}" if of.untested else interval((of.low, of.high), sign=True)
    n = len(of.values)
    shown = fixed(of.mean, 2, sign=True) + spread
    above = f"{of.above} of {n}" if n else MISSING
    return [of.tests, f"{of.first} - {of.second}", str(n), shown, bounds, p_value(of.p), above]
