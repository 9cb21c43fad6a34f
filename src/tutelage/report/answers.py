"""What the networks answer wrongly: confused classes, and the samples that are in dispute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutelage import records
from tutelage.report.reading import Run, Subject, number, section, text
from tutelage.report.table import Row, Table, plural

MOST_CLASSES = 12
"""Number of classes up to which all counts are shown."""
MOST_PAIRS = 10
"""Number of confused pairs in a table."""
MOST_SAMPLES = 24
"""Number of samples in dispute on a page."""
PICTURE = "data:image/png;base64,"


@dataclass(frozen=True)
class Matrix:
    """How often each class is answered for each, summed over runs: ``counts[label, answer]``."""

    caption: str
    names: Sequence[str]
    counts: NDArray[np.int64]

    @property
    def rows(self) -> list[tuple[str, list[tuple[int, float]]]]:
        """Each label's name, with counts of its answers and their tints: shares of the label, or of the worst pair."""
        right = np.eye(len(self.counts), dtype=bool)
        worst = max(int(self.counts[~right].max()), 1)
        totals = np.maximum(self.counts.sum(1, keepdims=True), 1)
        shares = np.where(right, self.counts / totals, self.counts / worst).round(3)
        lines = zip(self.counts.tolist(), shares.tolist(), strict=True)
        return [(name, [*zip(*line, strict=True)]) for name, line in zip(self.names, lines, strict=True)]


class Sample(NamedTuple):
    """A sample in dispute, in words."""

    title: str
    picture: str | None  # a data URL
    text: str | None
    answers: Sequence[str]


class _Counts(NamedTuple):
    """A network's wrong answers: how often each pair of label and answer is met in a run, on average."""

    name: str
    pairs: Mapping[tuple[int, int], float]


def names_of(subject: Subject) -> list[str]:
    """Return the names of the classes; none where they are not known."""
    named = next((run.evaluation.get("class_names") for run in subject.runs if run.evaluation), None)
    return [str(name) for name in named] if isinstance(named, list) else []


def matrices(subject: Subject, entry: str | None) -> list[Matrix]:
    """Return an entry's confusion matrix, summed over its runs, where the classes are few."""
    names = names_of(subject)
    known = [run.predictions for run in subject.of(entry)] if entry else []
    if not known or not 2 <= len(names) <= MOST_CLASSES:
        return []
    counts = np.zeros((len(names), len(names)), np.int64)
    for answers in known:
        if answers is None or not _within(answers, len(names)):
            return []
        kept = answers.label >= 0
        np.add.at(counts, (answers.label[kept], answers.student[kept]), 1)
    over = f", summed over {plural(len(known), 'run')}" if len(known) > 1 else ""
    who = entry if subject.comparison else "the student"
    return [Matrix(f"Answers of {who} by class{over}: labels in rows, answers in columns", names, counts)]


def _within(answers: records.Predictions, classes: int) -> bool:
    known = (answers.label, answers.student)
    return all(int(each.max(initial=0)) < classes for each in known) and int(answers.student.min(initial=0)) >= 0


def confused_pairs(subject: Subject, entry: str | None) -> list[Table]:
    """Return the classes that an entry confuses most, with how often the baseline and the teacher do."""
    known = [run.predictions for run in subject.of(entry)] if entry else []
    first = _counts(str(entry) if subject.comparison else "student", known)
    if first is None or not first.pairs:
        return []
    base = subject.baseline if subject.baseline != entry else None
    others = [
        _counts(f"{base} (baseline)", [run.predictions for run in subject.of(base)] if base else []),
        _counts("teacher", known, of_teacher=True),
    ]
    counted = [first, *filter(None, others)]
    names = names_of(subject)
    most = sorted(first.pairs, key=lambda pair: (-first.pairs[pair], pair))[:MOST_PAIRS]
    rows = [
        Row(cells=[*(_named(names, at) for at in pair), *(_rounded(each.pairs.get(pair, 0)) for each in counted)])
        for pair in most
    ]
    mean = ", mean over its runs" if len(known) > 1 else ""
    caption = f"Most confused classes: samples of the {_set(subject)} set{mean}"
    return [Table(headings=("Class", "Answered", *(each.name for each in counted)), rows=rows, caption=caption)]


def _counts(name: str, known: Sequence[records.Predictions | None], *, of_teacher: bool = False) -> _Counts | None:
    pairs: dict[tuple[int, int], float] = {}
    for answers in known:
        given = None if answers is None else answers.teacher if of_teacher else answers.student
        if answers is None or given is None:
            return None
        wrong = (answers.label >= 0) & (given != answers.label)
        found, counts = np.unique(np.stack([answers.label[wrong], given[wrong]]), axis=1, return_counts=True)
        for pair, count in zip(found.T.tolist(), counts.tolist(), strict=True):
            pairs[pair[0], pair[1]] = pairs.get((pair[0], pair[1]), 0) + count / len(known)
    return _Counts(name, pairs) if known else None


def _rounded(count: float) -> str:
    return f"{count:.0f}" if float(count).is_integer() else f"{count:.1f}"


def _named(names: Sequence[str], at: int) -> str:
    return names[at] if 0 <= at < len(names) else str(at)


def _set(subject: Subject) -> str:
    return next((name for run in subject.runs if (name := text(section(run.evaluation).get("set")))), "test")


def disputed_run(subject: Subject, entry: str | None) -> Run | None:
    """Return the first of an entry's runs that has samples in dispute."""
    runs = subject.of(entry) if entry else ()
    return next((run for run in runs if section(run.disputed).get("samples")), None)


def samples(subject: Subject, run: Run) -> list[Sample]:
    """Return a run's samples in dispute, the surest first."""
    names = names_of(subject)
    listed = section(run.disputed).get("samples")
    found = [each for each in (listed if isinstance(listed, list) else []) if isinstance(each, Mapping)]
    return [_sample(each, names) for each in found[:MOST_SAMPLES]]


def _sample(each: Mapping[str, Any], names: Sequence[str]) -> Sample:
    label = each.get("label")
    title = f"Sample {each.get('index')}" + ("" if label is None else f": {_named(names, label)}")
    picture = text(each.get("picture"))
    answers = []
    for who in ("student", "teacher"):
        if answer := section(each, who):
            right = "" if label is None else ", right" if answer.get("label") == label else ", wrong"
            sure = number(answer.get("probability"))
            certain = "" if sure is None else f" ({100 * sure:.0f} %{right})"
            answers.append(f"{who}: {_named(names, int(answer.get('label', -1)))}{certain}")
    return Sample(title, picture if picture and picture.startswith(PICTURE) else None, text(each.get("text")), answers)


def disputed_note(subject: Subject, run: Run) -> str:
    """Say which samples are shown, and of how many."""
    disputed = section(run.disputed)
    count, shown = int(number(disputed.get("count")) or 0), len(samples(subject, run))
    size = number(section(run.evaluation).get("samples"))
    of = f" of {size:,.0f}" if size else ""
    whose = f" Of {run.label}." if subject.comparison else ""
    how = "differently by student and teacher"
    sure = "on which the networks are surest against each other"
    if not section(run.evaluation, "teacher"):
        how, sure = "wrongly", "of which the student is surest"
    return (
        f"{plural(count, 'sample')}{of} of the {_set(subject)} set {'is' if count == 1 else 'are'} answered {how}; "
        f"the {shown} shown are those {sure}.{whose}"
    )
