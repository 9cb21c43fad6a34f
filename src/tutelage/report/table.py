"""The table of a run or a comparison, a row an objective and one for the teacher: as text, Markdown, on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tutelage.report.reading import Run, Subject, deviation, mean, number, read, section, teachers
from tutelage.report.reading import text as string

if TYPE_CHECKING:
    from rich.console import Console

MISSING = "–"


@dataclass(frozen=True)
class Unfinished:
    """A run that no mean includes.

    Attributes:
        folder: its folder's name.
        seed: none where the records do not say.
        status: what the records say of it.
        epochs: how many it has done.
    """

    folder: str
    seed: int | None
    status: str
    epochs: int

    def __str__(self) -> str:
        """Write it for people."""
        seed = "" if self.seed is None else f"seed {self.seed}, "
        return f"{self.folder} ({seed}{self.status}, {self.epochs} {'epoch' if self.epochs == 1 else 'epochs'} done)"


@dataclass(frozen=True)
class Row:
    """One objective's runs, or the teacher. Accuracies and agreement are fractions, means over ``n`` runs.

    A mean is none where one of the runs lacks the number, or the runs were evaluated on different sets.

    Attributes:
        name: the entry's name, or the teacher's.
        role: what the row is in the comparison.
        set: the set that the figures were taken on.
        n: finished runs; for the teacher, different teachers.
        accuracy: of the last epoch.
        std: sample standard deviation (n - 1) of the accuracy; none for one run.
        values: each run's accuracy.
        gain: over the baseline's mean, in percentage points; none for the baseline and the teacher.
        best: accuracy of the epoch that selection would take, on ``best_set``.
        best_set: the set that selected it; ``"test"`` makes the figure optimistic.
        agreement: with the teacher.
        entropy: of the network's distribution, nats.
        kl_to_teacher: KL(p || q) at temperature 1, nats.
        ece: expected calibration error, a fraction.
        unfinished: the entry's runs that are not in the means.
        share_data_seed: the runs share order and views, and differ in their initialisation alone.
    """

    name: str
    role: Literal["teacher", "baseline", "student"]
    set: str | None = None
    n: int = 0
    accuracy: float | None = None
    std: float | None = None
    values: tuple[float | None, ...] = ()
    gain: float | None = None
    best: float | None = None
    best_set: str | None = None
    agreement: float | None = None
    entropy: float | None = None
    kl_to_teacher: float | None = None
    ece: float | None = None
    unfinished: tuple[Unfinished, ...] = ()
    share_data_seed: bool = False


def rows(folder: Path | str | Subject) -> list[Row]:
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


def _entry(subject: Subject, name: str) -> Row:
    runs = subject.of(name)
    judged = [section(run.evaluation, "student") for run in runs]
    place = _common(string(section(run.evaluation).get("set")) for run in runs)
    bests = [section(run.evaluation, "best") for run in runs]
    best_place = _common(string(best.get("set")) for best in bests if best)
    values = tuple(number(one.get("accuracy")) for one in judged)
    comparable = len(set(place)) == 1

    def average(key: str) -> float | None:
        return mean(number(one.get(key)) for one in judged) if comparable else None

    return Row(
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


def _with_gain(row: Row, base: Row | None) -> Row:
    if base is None or row is base or row.accuracy is None or base.accuracy is None or row.set != base.set:
        return row
    return Row(**{**row.__dict__, "gain": 100 * (row.accuracy - base.accuracy)})


def _teacher(subject: Subject) -> Row | None:
    judged = teachers(subject)
    if not judged:
        return None
    names = dict.fromkeys(string(section(run.manifest, "teacher").get("name")) for run in subject.runs)
    known = [name for name in names if name]
    place = _common(on for _, on in judged)
    values = tuple(number(one.get("accuracy")) for one, _ in judged)
    comparable = len(place) == 1
    return Row(
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


def percent(value: float | None, std: float | None = None) -> str:
    """Write a fraction in percent, with its standard deviation where there is one.

    Example:
        >>> percent(0.71234, 0.0021)
        '71.23 ± 0.21'
    """
    if value is None:
        return MISSING
    return f"{100 * value:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def fixed(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Write a number with fixed digits, or a dash for none."""
    if value is None:
        return MISSING
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def label(row: Row) -> str:
    """Name a row with its role."""
    return row.name if row.role == "student" or row.name == row.role else f"{row.name} ({row.role})"


def main_set(found: Sequence[Row]) -> str | None:
    """Return the set that the students were evaluated on: the first that a row names."""
    return next((row.set for row in sorted(found, key=lambda row: row.role == "teacher") if row.set), None)


def cells(row: Row, place: str | None) -> tuple[str, ...]:
    """Write a row under `HEADINGS`; a figure taken on another set than ``place`` says so."""
    accuracy = percent(row.accuracy, row.std)
    if row.set and row.set != place:
        accuracy += f" [{row.set}]"
    total = row.n + len(row.unfinished)
    best = percent(row.best) if row.best is None else f"{percent(row.best)} [{selector(row)}]"
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


def selector(row: Row) -> str:
    """Say which set the best epoch was taken by."""
    return "selected on test" if row.best_set == "test" else f"{row.best_set}"


def notes(found: Sequence[Row]) -> list[str]:
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


def text(found: Sequence[Row]) -> str:
    """Return the table as plain text, with its notes below."""
    lines = _aligned(found)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    written = []
    for line in lines:
        parts = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        written.append("  ".join([line[0].ljust(widths[0]), *parts]).rstrip())
    written.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*written, "", *notes(found)]) + "\n"


def _aligned(found: Sequence[Row]) -> list[tuple[str, ...]]:
    place = main_set(found)
    # A name with a line break would tear the table.
    return [HEADINGS, *(tuple(" ".join(cell.split()) for cell in cells(row, place)) for row in found)]


def markdown(found: Sequence[Row]) -> str:
    """Return the table as GitHub Markdown, with its notes below."""
    lines = [f"| {' | '.join(map(plain, line))} |" for line in _aligned(found)]
    lines.insert(1, f"|:---|{'---:|' * (len(HEADINGS) - 1)}")
    return "\n".join([*lines, "", *(f"- {plain(note)}" for note in notes(found))]) + "\n"


def plain(cell: str) -> str:
    """Escape what Markdown and the HTML inside it would act on."""
    for mark in "\\|*_`[]":
        cell = cell.replace(mark, f"\\{mark}")
    return cell.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def print_table(found: Sequence[Row], console: Console) -> None:
    """Print the table on a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Narrow, so that it fits 80 columns: units and roles under their names, a mark for what the test set selected.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    lines = _aligned(found)
    for heading in lines[0]:
        side: Literal["left", "right"] = "left" if heading == HEADINGS[0] else "right"
        table.add_column(heading.replace(" ", "\n"), justify=side, no_wrap=True)
    for row, line in zip(found, lines[1:], strict=True):
        short = list(line)
        short[0] = short[0].replace(" (", "\n(")
        short[BEST] = short[BEST].replace(" [selected on test]", "*").removesuffix(f" [{row.best_set}]")
        # Text and not markup: a name may hold brackets.
        table.add_row(*map(Text, short), style="dim" if row.role == "teacher" else "")
    console.print(table)
    for note in notes(found):
        console.print(Text(note.replace("Selected on test:", "*"), style="dim"))
    if any(row.best_set == "validation" for row in found):
        console.print(Text("Validation selected the best epoch; its figure is the validation set's.", style="dim"))
