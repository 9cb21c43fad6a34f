"""The results of a run or a comparison: a row per objective and one for the teacher, and the table of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tutelage import records
from tutelage.intervals import accuracy_interval
from tutelage.report.costs import Cost, cost_table, pooled, usual_place
from tutelage.report.matched import matched_notes
from tutelage.report.paired import Paired, compare, corrected, p_value
from tutelage.report.reading import Run, Subject, deviation, mean, number, read, reported_epoch, section, teachers
from tutelage.report.reading import text as string
from tutelage.report.statistics import LEVEL
from tutelage.report.table import Row, Table, count, fixed, judged, percent, plural, print_notes

if TYPE_CHECKING:
    from rich.console import Console


MOST_SAMPLES = 2**53
"""Number of samples above which a number is no count."""


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A run that no mean includes."""

    folder: str  # name of its folder
    seed: int | None  # seed; None if the records do not say
    status: str  # status in the records
    epochs: int  # number of epochs done

    def __str__(self) -> str:
        """Write it for display."""
        seed = "" if self.seed is None else f"seed {self.seed}, "
        return f"{self.folder} ({seed}{self.status}, {plural(self.epochs, 'epoch')} done)"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One objective's runs, or the teacher. Accuracies and agreement are fractions, means over ``n`` runs.

    A mean is ``None`` if one of the runs lacks the number, or the runs were evaluated on different sets. Fields of the
    ``measure`` are accuracies, or of a language model perplexities, of which the lower is the better.
    """

    name: str  # name of the entry or the teacher
    role: Literal["teacher", "baseline", "student"]  # role of the row in the comparison
    set: str | None = None  # set on which the figures were taken
    n: int = 0  # number of finished runs; for the teacher, of different teachers
    measure: records.Measure = records.ACCURACY  # what the networks are judged by
    accuracy: float | None = None  # accuracy of the student that is reported
    epoch: str = "last"  # its epoch: ``last``, ``best``, or ``last or best`` where the runs differ
    of_task: Mapping[str, float | None] = field(default_factory=dict)  # measures besides that are known of it
    std: float | None = None  # sample standard deviation (n - 1) of the measure; None for one run
    values: tuple[float | None, ...] = ()  # measure of each run
    # difference of the measure to the baseline's mean, in percentage points or of perplexity; None for baseline and
    # teacher
    gain: float | None = None
    best: float | None = None  # measure of the epoch that selection would take, on ``best_set``
    best_set: str | None = None  # set that selected it; ``"test"`` makes the figure optimistic
    agreement: float | None = None  # agreement with the teacher
    entropy: float | None = None  # entropy of the network's distribution, nats
    kl_to_teacher: float | None = None  # KL(p || q) at temperature 1, nats
    ece: float | None = None  # expected calibration error, a fraction
    samples: int | None = None  # labelled ones of the set on which it was evaluated; None if the runs differ
    test: Paired | None = None  # whether it differs from the baseline, corrected for the number of objectives
    cost: Cost | None = None  # what the network costs, as most of the runs measured it
    unfinished: tuple[Unfinished, ...] = ()  # runs of the entry that are not in the means
    damage: tuple[str, ...] = ()  # what is wrong with the records of its runs, a line for each file
    share_data_seed: bool = False  # whether the runs share order and views, and differ only in initialisation
    objective: object = None  # its objective as recorded

    @property
    def value(self) -> float | None:
        """The mean of the measure."""
        return self.accuracy if self.measure is records.ACCURACY else self.of_task.get(self.measure.key)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of an accuracy, from the number of samples."""
        if self.measure is not records.ACCURACY or self.accuracy is None or not self.samples:
            return None
        share = min(1.0, max(0.0, self.accuracy))
        return accuracy_interval(round(share * self.samples), self.samples)

    @property
    def better(self) -> bool | None:
        """Whether a test shows that it is better than the baseline, or worse; ``None`` where it shows nothing."""
        return self.measure.merit(self.gain) > 0 if self.gain and self.test and self.test.shown else None

    @property
    def merit(self) -> float:
        """The mean with the sign by which higher is better; the lowest there is for no mean."""
        return -math.inf if self.value is None else self.measure.merit(self.value)


def rows(folder: Path | str | Subject) -> list[Result]:
    """Return the table of a run's or a comparison's folder: the teacher, the baseline, then the other objectives.

    Raises:
        FileNotFoundError: if the folder holds no records.
        DamagedError: if ``comparison.json`` is damaged.
    """
    subject = folder if isinstance(folder, Subject) else read(folder)
    place = usual_place(subject.runs)
    results = [_entry(subject, name, place) for name in subject.entries]
    base = next((row for row in results if row.role == "baseline"), None)
    results = [_with_gain(row, base) for row in results]
    if base is not None:
        tests = corrected([compare(subject, row.name, base.name) if row.gain is not None else None for row in results])
        results = [replace(row, test=test) for row, test in zip(results, tests, strict=True)]
    return [*_teacher(subject, place), *results]


def best_entry(subject: Subject) -> str | None:
    """Return the entry of the best row, if one has a mean; nothing is tested for it."""
    best = best_of([_entry(subject, name, None) for name in subject.entries])
    return None if best is None else best.name


def best_of(results: Sequence[Result]) -> Result | None:
    """Return the row with the best mean besides the baseline's, or else the baseline's."""
    known = [row for row in results if row.role != "teacher" and row.value is not None]
    return max(known, key=lambda row: (row.role == "student", row.merit), default=None)


def _entry(subject: Subject, name: str, place: str | None) -> Result:
    runs = subject.of(name)
    bests = [section(run.evaluation, "best") for run in runs]
    best_sets = _distinct(string(best.get("set")) for best in bests if best)
    return _averaged(
        [section(run.evaluation, "student") for run in runs],
        [string(section(run.evaluation).get("set")) for run in runs],
        name=name,
        measure=subject.measure,
        role="baseline" if name == subject.baseline else "student",
        best=mean(number(best.get(subject.measure.key)) for best in bests) if len(best_sets) == 1 else None,
        best_set=" and ".join(best_sets) or None,
        epoch=reported_epoch(runs),
        samples=_samples(runs, "student"),
        cost=pooled(runs, "student", place),
        unfinished=tuple(map(unfinished, subject.of(name, finished=False))),
        damage=tuple(line for run in subject.runs if run.entry == name for line in run.damage),
        share_data_seed=subject.share_data_seed,
        objective=subject.objective(name),
    )


def _samples(runs: Iterable[Run], who: str) -> int | None:
    """Return the number of labelled samples of which an accuracy is the mean, as the bins of reliability have it."""
    sizes = set()
    for run in runs:
        bins = section(run.evaluation, who).get("reliability") or []
        sizes.add(sum(number(each.get("count")) or 0 for each in bins))
    size = sizes.pop() if len(sizes) == 1 else 0
    return int(size) if 1 <= size <= MOST_SAMPLES else None


def _averaged(
    judgements: Sequence[Mapping[str, Any]], sets: Sequence[str | None], *, measure: records.Measure, **fields: Any
) -> Result:
    """Return the row of evaluations on their sets; ``fields`` are its other fields."""
    names = _distinct(sets)
    values = tuple(number(judgement.get(measure.key)) for judgement in judgements)
    means: dict[str, Any] = {}
    if len(names) == 1:
        for key in ("accuracy", "agreement", "entropy", "kl_to_teacher", "ece"):
            means[key] = mean(number(judgement.get(key)) for judgement in judgements)
        known = [key for key in records.OF_TASKS if any(key in judgement for judgement in judgements)]
        means["of_task"] = {key: mean(number(judgement.get(key)) for judgement in judgements) for key in known}
        fields["std"] = deviation(values)
    on = " and ".join(names) or None
    return Result(set=on, n=len(judgements), measure=measure, values=values, **means, **fields)


def unfinished(run: Run) -> Unfinished:
    """Say how far a run got."""
    return Unfinished(folder=run.folder.name, seed=run.seed, status=run.status, epochs=len(run.epochs))


def _distinct(sets: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(name or "unknown" for name in sets))


def _with_gain(row: Result, base: Result | None) -> Result:
    if base is None or row is base or row.value is None or base.value is None or row.set != base.set:
        return row
    return replace(row, gain=row.measure.scale * (row.value - base.value))


def _teacher(subject: Subject, place: str | None) -> list[Result]:
    """Return the teacher's row if it is known."""
    known = teachers(subject)
    names = {name for run in subject.runs if (name := string(section(run.manifest, "teacher").get("name")))}
    name = names.pop() if len(names) == 1 else "teacher"
    row = _averaged(
        [judgement for judgement, _ in known],
        [set_name for _, set_name in known],
        measure=subject.measure,
        name=name,
        role="teacher",
        samples=_samples((run for run in subject.runs if section(run.evaluation, "teacher")), "teacher"),
        cost=pooled(subject.runs, "teacher", place),
    )
    damage = subject.teacher.damage if subject.teacher is not None else ()
    return [replace(row, agreement=None, kl_to_teacher=None, damage=damage)] if known else []


EXACT = (
    *("role", "set", "n", "accuracy", "std", "gain", "best", "best_set"),
    *("agreement", "entropy", "kl_to_teacher", "ece"),
)
"""Fields that HTML holds unrounded, and besides the measures of a task."""


P_VALUE = "p"
"""Heading of the tests' column, which is there if one was possible."""
KL = "KL to teacher (nats)"


def headings(by: records.Measure, *, tested: bool = False) -> tuple[str, ...]:
    """Return the headings of a table of networks that are judged by a measure."""
    return (
        "Network",
        by.heading(by.title),
        "n",
        by.heading(by.difference, by.steps),
        *([P_VALUE] if tested else []),
        by.heading("Best epoch"),
        *beside(by),
        "Agreement (%)",
        "Entropy (nats)",
        KL,
    )


def beside(by: records.Measure) -> list[str]:
    """Return the heading of what is shown beside a measure, if there is such."""
    return [] if by.beside is None else [records.COMPANIONS[by.beside][0].capitalize()]


def measure_of(results: Sequence[Result]) -> records.Measure:
    """Return what the networks of a table are judged by."""
    return next((row.measure for row in results), records.ACCURACY)


def main_set(results: Sequence[Result]) -> str | None:
    """Return the set on which the students were evaluated: the first that a row names."""
    return next((row.set for row in sorted(results, key=lambda row: row.role == "teacher") if row.set), None)


def selected(best: float | None, name: str | None) -> str:
    """Say which set selected a best epoch's figure, if there is one."""
    return "" if best is None else " [selected on test]" if name == "test" else f" [{name}]"


def notes(results: Sequence[Result]) -> list[str]:
    """Say what the table's figures are, and what they leave out."""
    name, by = main_set(results), measure_of(results)
    epoch = " or ".join(dict.fromkeys(row.epoch for row in results if row.role != "teacher")) or "last"
    sentences = [
        f"{by.title} is the {epoch} epoch's{f' on the {name} set' if name else ''}; "
        "± is the sample standard deviation over the n runs."
    ]
    if any(row.share_data_seed for row in results):
        sentences.append("Seeds share order and views (share_data_seed): ± is the spread of the initialisation alone.")
    base = next((row.name for row in results if row.role == "baseline"), None)
    if base:
        unit = "; below 0 is better" if by.lower_is_better else ", in percentage points"
        sentences.append(f"{by.difference} is the difference of means to {base}{unit}.")
    if tests := [row.test for row in results if row.test]:
        how = " or ".join(dict.fromkeys(test.how for test in tests))
        how += f"; with Holm's correction for {len(tests)} tests" if len(tests) > 1 else ""
        sentences.append(
            f"p: how likely a difference as large is if there is none ({how}). Only below {LEVEL}, in bold, is a "
            "difference shown."
        )
    sentences += best_notes(results)
    sentences += matched_notes([{row.name: row.objective for row in results}])
    for row in results:
        if row.set and " and " in row.set:
            sentences.append(f"{row.name}: evaluated on different sets ({row.set}), so not averaged.")
        sentences += [f"Not averaged: {row.name}: {run}." for run in row.unfinished]
        sentences += [f"Damaged: {line}." for line in row.damage]
    return sentences


def best_notes(results: Sequence[Any]) -> list[str]:
    """Explain the best epoch's figure of rows with ``best``, ``best_set`` and ``epoch``."""
    sets = {row.best_set for row in results if row.best is not None}
    shown = "The best epoch is shown beside it with the set that selected it, and is not what is reported."
    if {row.epoch for row in results if row.best is not None} == {"best"}:
        shown = "Beside it is the same epoch's figure on the set that selected it."
    optimistic = "Selected on test: the test set itself chose that epoch, so that figure is optimistic."
    return [*([shown] if sets else []), *([optimistic] if "test" in sets else [])]


def table(results: Sequence[Result]) -> Table:
    """Return the table, with its notes."""
    name, by = main_set(results), measure_of(results)
    tested = any(row.test for row in results)
    names = headings(by, tested=tested)
    lines = [_row(result, name, names) for result in results]
    extra = [names.index(name) for name in (*beside(by), *([KL] if tested else []))]
    return Table(headings=names, rows=lines, notes=notes(results), extra=extra)


def _row(result: Result, main: str | None, names: Sequence[str]) -> Row:
    """Write a row under headings; a figure taken on a set other than ``main`` says so."""
    by = result.measure
    role = "" if result.role in ("student", result.name) else f" ({result.role})"
    elsewhere = f" [{result.set}]" if result.set and result.set != main else ""
    p = [p_value(result.test.p if result.test else None)] if P_VALUE in names else []
    cells = [
        result.name + role,
        judged(by, result.value, result.std) + elsewhere,
        count(result.n, len(result.unfinished)),
        fixed(result.gain, 2, sign=True),
        *p,
        judged(by, result.best) + selected(result.best, result.best_set),
        *([] if by.beside is None else [fixed(result.of_task.get(by.beside))]),
        percent(result.agreement),
        fixed(result.entropy),
        fixed(result.kl_to_teacher),
    ]
    # Units and roles under their names, and a mark for anything selected on the test set.
    short = [" ".join(cell.split()) for cell in cells]
    short[0] = short[0].replace(" (", "\n(")
    best = 4 + len(p)
    short[best] = judged(by, result.best) + ("*" if result.best is not None and result.best_set == "test" else "")
    exact = {key.replace("_", "-"): getattr(result, key) for key in EXACT}
    exact |= {key.replace("_", "-"): value for key, value in result.of_task.items()}
    exact |= {"p": result.test.p} if result.test else {}
    exact = {"entry": result.name, **exact, "unfinished": len(result.unfinished)}
    bold = (3, 4) if result.better is not None else ()
    return Row(cells=cells, short=short, kind=result.role, exact=exact, bold=bold)


def print_table(results: Sequence[Result], console: Console) -> None:
    """Print the table on a terminal, and that of what the networks cost if that is known."""
    shown = table(results)
    shown.print(console)
    extra = ["Validation selected the best epoch; its figure is the validation set's."]
    print_notes([*shown.notes, *(extra if any(row.best_set == "validation" for row in results) else [])], console)
    if costs := cost_table(results):
        console.print()
        costs.print(console)
        print_notes(costs.notes, console)
