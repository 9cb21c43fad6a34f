"""The results of a run or a comparison: a row per objective and one for the teacher, and the table of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tutelage.report.reading import Run, Subject, deviation, mean, number, read, section, teachers
from tutelage.report.reading import text as string
from tutelage.report.table import Row, Table, fixed, percent, print_notes

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Unfinished:
    """A run that no mean includes."""

    folder: str  # its folder's name
    seed: int | None  # none where the records do not say
    status: str  # what the records say of it
    epochs: int  # how many it has done

    def __str__(self) -> str:
        """Write it for people."""
        seed = "" if self.seed is None else f"seed {self.seed}, "
        return f"{self.folder} ({seed}{self.status}, {self.epochs} {'epoch' if self.epochs == 1 else 'epochs'} done)"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One objective's runs, or the teacher. Accuracies and agreement are fractions, means over ``n`` runs.

    A mean is none where one of the runs lacks the number, or the runs were evaluated on different sets.
    """

    name: str  # the entry's name, or the teacher's
    role: Literal["teacher", "baseline", "student"]  # what the row is in the comparison
    set: str | None = None  # the set that the figures were taken on
    n: int = 0  # finished runs; for the teacher, different teachers
    accuracy: float | None = None  # of the last epoch
    std: float | None = None  # sample standard deviation (n - 1) of the accuracy; none for one run
    values: tuple[float | None, ...] = ()  # each run's accuracy
    gain: float | None = None  # over the baseline's mean, in percentage points; none for the baseline and the teacher
    best: float | None = None  # accuracy of the epoch that selection would take, on ``best_set``
    best_set: str | None = None  # the set that selected it; ``"test"`` makes the figure optimistic
    agreement: float | None = None  # with the teacher
    entropy: float | None = None  # of the network's distribution, nats
    kl_to_teacher: float | None = None  # KL(p || q) at temperature 1, nats
    ece: float | None = None  # expected calibration error, a fraction
    unfinished: tuple[Unfinished, ...] = ()  # the entry's runs that are not in the means
    share_data_seed: bool = False  # the runs share order and views, and differ in their initialisation alone


def rows(folder: Path | str | Subject) -> list[Result]:
    """Return the table of a run's or a comparison's folder: the teacher, the baseline, then the other objectives.

    Raises:
        FileNotFoundError: the folder holds no records.
        ValueError: a record is not JSON.
    """
    subject = folder if isinstance(folder, Subject) else read(folder)
    found = [_entry(subject, name) for name in subject.entries]
    base = next((row for row in found if row.role == "baseline"), None)
    found = [_with_gain(row, base) for row in found]
    teacher = _teacher(subject)
    return [teacher, *found] if teacher else found


def _entry(subject: Subject, name: str) -> Result:
    runs = subject.of(name)
    judged = [section(run.evaluation, "student") for run in runs]
    place = _common(string(section(run.evaluation).get("set")) for run in runs)
    bests = [section(run.evaluation, "best") for run in runs]
    best_place = _common(string(best.get("set")) for best in bests if best)
    values = tuple(number(one.get("accuracy")) for one in judged)
    comparable = len(set(place)) == 1

    def average(key: str) -> float | None:
        return mean(number(one.get(key)) for one in judged) if comparable else None

    return Result(
        name=name,
        role="baseline" if name == subject.baseline else "student",
        set=" and ".join(place) or None,
        n=len(runs),
        accuracy=average("accuracy"),
        std=deviation(values) if comparable else None,
        values=values,
        best=mean(number(best.get("accuracy")) for best in bests) if len(best_place) == 1 else None,
        best_set=" and ".join(best_place) or None,
        agreement=average("agreement"),
        entropy=average("entropy"),
        kl_to_teacher=average("kl_to_teacher"),
        ece=average("ece"),
        unfinished=tuple(unfinished(run) for run in subject.of(name, finished=False)),
        share_data_seed=subject.share_data_seed,
    )


def unfinished(run: Run) -> Unfinished:
    """Say how far a run came."""
    return Unfinished(run.folder.name, run.seed, run.status, len(run.epochs))


def _common(sets: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(place or "unknown" for place in sets))


def _with_gain(row: Result, base: Result | None) -> Result:
    if base is None or row is base or row.accuracy is None or base.accuracy is None or row.set != base.set:
        return row
    return replace(row, gain=100 * (row.accuracy - base.accuracy))


def _teacher(subject: Subject) -> Result | None:
    judged = teachers(subject)
    if not judged:
        return None
    names = dict.fromkeys(string(section(run.manifest, "teacher").get("name")) for run in subject.runs)
    known = [name for name in names if name]
    place = _common(on for _, on in judged)
    values = tuple(number(one.get("accuracy")) for one, _ in judged)
    comparable = len(place) == 1
    return Result(
        name=known[0] if len(known) == 1 else "teacher",
        role="teacher",
        set=" and ".join(place),
        n=len(judged),
        accuracy=mean(values) if comparable else None,
        std=deviation(values) if comparable else None,
        values=values,
        entropy=mean(number(one.get("entropy")) for one, _ in judged) if comparable else None,
        ece=mean(number(one.get("ece")) for one, _ in judged) if comparable else None,
    )


HEADINGS = (
    "Network",
    "Accuracy (%)",
    "n",
    "Gain (points)",
    "Best epoch (%)",
    "Agreement (%)",
    "Entropy (nats)",
    "KL to teacher (nats)",
)
"""What `cells` gives, in order."""

BEST = HEADINGS.index("Best epoch (%)")


def label(row: Result) -> str:
    """Name a row with its role."""
    return row.name if row.role == "student" or row.name == row.role else f"{row.name} ({row.role})"


def main_set(found: Sequence[Result]) -> str | None:
    """Return the set that the students were evaluated on: the first that a row names."""
    return next((row.set for row in sorted(found, key=lambda row: row.role == "teacher") if row.set), None)


def cells(row: Result, place: str | None) -> tuple[str, ...]:
    """Write a row under `HEADINGS`; a figure taken on another set than ``place`` says so."""
    accuracy = percent(row.accuracy, row.std)
    if row.set and row.set != place:
        accuracy += f" [{row.set}]"
    total = row.n + len(row.unfinished)
    best = percent(row.best) if row.best is None else f"{percent(row.best)} [{selector(row.best_set)}]"
    return (
        label(row),
        accuracy,
        f"{row.n}" if total == row.n else f"{row.n} of {total}",
        fixed(row.gain, 2, sign=True),
        best,
        percent(row.agreement),
        fixed(row.entropy),
        fixed(row.kl_to_teacher),
    )


def selector(name: str | None) -> str:
    """Say which set the best epoch was taken by."""
    return "selected on test" if name == "test" else f"{name}"


def notes(found: Sequence[Result]) -> list[str]:
    """Say what the table's figures are, and what is not in them."""
    place = main_set(found)
    said = [
        f"Accuracy is the last epoch's{f' on the {place} set' if place else ''}; "
        "± is the sample standard deviation over the n runs."
    ]
    if any(row.share_data_seed for row in found):
        said.append("Seeds share order and views (share_data_seed): ± is the spread of the initialisation alone.")
    base = next((row.name for row in found if row.role == "baseline"), None)
    if base:
        said.append(f"Gain is the difference of means to {base}, in percentage points.")
    if any(row.best is not None for row in found):
        said.append("The best epoch is shown beside it with the set that selected it, and is not what is reported.")
    if any(row.best is not None and row.best_set == "test" for row in found):
        said.append("Selected on test: the test set itself chose that epoch, so that figure is optimistic.")
    for row in found:
        if row.set and " and " in row.set:
            said.append(f"{row.name}: evaluated on different sets ({row.set}), so not averaged.")
        said += [f"Not averaged: {row.name}: {run}." for run in row.unfinished]
    return said


def exact(row: Result) -> dict[str, str]:
    """Return a row's numbers unrounded, as the names and values of data attributes."""
    keys = ("role", "set", "n", "accuracy", "std", "gain", "best", "best_set", "agreement", "entropy")
    values = {key.replace("_", "-"): getattr(row, key) for key in (*keys, "kl_to_teacher", "ece")}
    values = {"entry": row.name, **values, "unfinished": len(row.unfinished)}
    return {key: "" if value is None else str(value) for key, value in values.items()}


def table(results: Sequence[Result]) -> Table:
    """Return the table, with its notes."""
    place = main_set(results)
    return Table(headings=HEADINGS, rows=[_row(result, place) for result in results], notes=notes(results))


def _row(result: Result, place: str | None) -> Row:
    written = cells(result, place)
    # Units and roles under their names, a mark for what the test set selected.
    short = [" ".join(cell.split()) for cell in written]
    short[0] = short[0].replace(" (", "\n(")
    short[BEST] = short[BEST].replace(" [selected on test]", "*").removesuffix(f" [{result.best_set}]")
    return Row(cells=written, short=short, kind=result.role, exact=exact(result))


def print_table(results: Sequence[Result], console: Console) -> None:
    """Print the table on a terminal."""
    shown = table(results)
    shown.print(console)
    extra = ["Validation selected the best epoch; its figure is the validation set's."]
    print_notes([*shown.notes, *(extra if any(row.best_set == "validation" for row in results) else [])], console)
