"""The scoreboard of a study with a search: means with intervals, differences by seed, what was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage import records
from tutelage.report.paired import p_value
from tutelage.report.reading import Subject, deviation, mean
from tutelage.report.statistics import holm, mean_interval
from tutelage.report.table import MISSING, Row, Table, fixed, interval, written
from tutelage.studies import objective_rows
from tutelage.studies.differences import Difference, by_seed, difference
from tutelage.studies.objective_rows import Published

BASE = "kd"
"""The method that the others are compared with, where a study has it."""
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One method on one pair. Accuracies are in percent, differences in percentage points."""

    pair: str  # name in the study
    method: str  # name in the study
    n: int  # number of finished runs
    value: float | None = None  # mean of the measure over them
    std: float | None = None  # sample standard deviation (n - 1); None for one run
    interval: Interval | None = None  # 95 % interval of the mean by Student's t; None for one run
    against: str | None = None  # method that it is compared with
    seeds: int = 0  # number of seeds that both have
    difference: float | None = None  # mean over those seeds of the measure less that of the other
    difference_interval: Interval | None = None  # 95 % interval of that mean
    p: float | None = None  # p of the paired t-test, by Holm's correction for the pair's methods
    setting: Mapping[str, Mapping[str, Any]] | None = None  # chosen setting by preset; None before it is chosen
    validation: float | None = None  # its trial's measure on the validation split
    tried: tuple[float | None, ...] = ()  # that of each candidate; None for one that failed or is to do
    preset: str | None = None  # the one preset beside cross-entropy


def standings(study: records.Study, subjects: Mapping[str, Subject]) -> tuple[Standing, ...]:
    """Return the standings of a study with a search, the best mean of a pair first; none of one without.

    Methods of which nothing was tried yet are left out, such as those that were not asked for.
    """
    search = study.get("search")
    if search is None:
        return ()
    found: list[Standing] = []
    for pair, subject in subjects.items():
        by, candidates = subject.measure, search["candidates"]
        tried = {each["method"] for each in candidates if each["pair"] == pair and each["state"] != "to do"}
        tests = {
            method: difference(pair, subject, {"tests": "", "first": method, "second": BASE})
            for method in study["methods"]
            if BASE in study["methods"] and method != BASE
        }
        p_values = {method: test.p for method, test in tests.items() if test.p is not None}
        corrected = dict(zip(p_values, holm([*p_values.values()]), strict=True))
        standing = [
            _standing(pair, method, subject, tests.get(method), corrected.get(method), search)
            for method in study["methods"]
            if method in tried
        ]
        found += sorted(standing, key=lambda each: math.inf if each.value is None else -by.merit(each.value))
    return tuple(found)


def _standing(
    pair: str,
    method: str,
    subject: Subject,
    test: Difference | None,
    p: float | None,
    search: records.StudySearch,
) -> Standing:
    by = subject.measure
    tried = [each for each in search["candidates"] if (each["pair"], each["method"]) == (pair, method)]
    scaled = [None if each["value"] is None else by.scale * each["value"] for each in tried]
    best = next((at for at, each in enumerate(tried) if each["chosen"]), None)
    numbers = [by.scale * value for value in by_seed(subject, method).values()]
    compared: dict[str, Any] = {}
    if test is not None:
        bounds = None if test.low is None or test.high is None else (test.low, test.high)
        compared = {"against": BASE, "seeds": len(test.seeds), "difference": test.mean, "difference_interval": bounds}
    return Standing(
        pair=pair,
        method=method,
        n=len(numbers),
        value=mean(numbers),
        std=deviation(numbers),
        interval=mean_interval(numbers),
        setting=None if best is None else tried[best]["setting"],
        validation=None if best is None else scaled[best],
        tried=tuple(scaled),
        preset=search["presets"].get(method),
        p=p,
        **compared,
    )


# In words


def in_words(setting: Mapping[str, Mapping[str, Any]]) -> str:
    """Write a candidate's setting.

    Example:
        >>> in_words({"kd": {"weight": 2.7}, "dkd": {"weight": {"schedule": "warm_up", "value": 3.0, "epochs": 20}}})
        'kd.weight=2.7, dkd.weight={schedule: warm_up, value: 3, epochs: 20}'
        >>> in_words({})
        'as written'
    """
    arguments = [(f"{preset}.{name}", value) for preset, values in setting.items() for name, value in values.items()]
    return ", ".join(f"{key}={written(value)}" for key, value in arguments) or "as written"


def tables(found: Sequence[Standing], by: records.Measure) -> Iterator[Table]:
    """Yield a table for each pair, then one of what others published for the presets."""
    compared = any(each.against for each in found)
    for pair in dict.fromkeys(each.pair for each in found):
        headings = ["Method", by.heading(by.title), "n", "95 % interval"]
        headings += [by.heading(f"Less {BASE}", by.steps), "Its interval", "p"] if compared else []
        headings += ["Chosen", by.heading("Validation")]
        yield Table(
            headings=headings,
            rows=[_row(each, compared) for each in found if each.pair == pair],
            words=[len(headings) - 2, len(headings) - 1],
            extra=[*([3] if compared else []), len(headings) - 2, len(headings) - 1],
            caption=pair,
        )
    known = {row.name: row.published for row in objective_rows.read()}
    published = {each.preset: of for each in found if each.preset and (of := known.get(each.preset))}
    if published:
        headings = ["Preset", "Published", "KD there", "Epoch", "Setting", "Table", "Source"]
        rows = [Row(cells=_published(preset, of)) for preset, of in published.items()]
        yield Table(headings=headings, rows=rows, words=[1, 3, 4, 5, 6], extra=[4, 5, 6], caption=PUBLISHED)


PUBLISHED = "What others published"


def _published(preset: str, of: Published) -> list[str]:
    return [preset, f"{of.figure} {of.measure}", of.kd or MISSING, of.epoch, of.setting, of.table, of.source]


def _row(each: Standing, compared: bool) -> Row:
    spread = "" if each.std is None else f" ± {each.std:.2f}"
    cells = [each.method, fixed(each.value, 2) + spread, str(each.n), interval(each.interval)]
    if compared:
        cells += [fixed(each.difference, 2, sign=True), interval(each.difference_interval, sign=True), p_value(each.p)]
    tried = ", ".join(fixed(value, 2) for value in each.tried)
    best = MISSING if each.validation is None else f"{each.validation:.2f} of {tried}"
    cells += [MISSING if each.setting is None else in_words(each.setting), best]
    exact = {"pair": each.pair, "method": each.method, "value": each.value, "difference": each.difference, "p": each.p}
    return Row(cells=cells, exact=exact)


def notes(found: Sequence[Standing], search: records.StudySearch) -> list[str]:
    """Say what the scoreboard's figures are."""
    epochs, share = search["epochs"], 100 * search["validation"]
    sentences = [
        f"Each method has as many candidates. Each was tried once, with the first seed, for {epochs} "
        f"epoch{'s' * (epochs != 1)} without {share:g} % of the training samples, and the best on those was chosen.",
        "Intervals are of the mean over seeds, by Student's t: training again, not other data, another teacher or a "
        "finer search.",
    ]
    if any(each.against for each in found):
        sentences.append(
            f"Less {BASE} is the mean difference by seed from {BASE}. p is of the paired t-test, with Holm's "
            "correction for the methods of a pair."
        )
    return sentences
