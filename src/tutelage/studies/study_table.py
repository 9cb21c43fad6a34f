"""The table of a study, from its records: for every pair and method what was measured beside what was published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from tutelage import records
from tutelage.report import table as tables
from tutelage.report.reading import NOT_STARTED, Run, Subject, deviation, mapping, mean, number, read_run, section
from tutelage.report.reading import text as string
from tutelage.report.results import Unfinished, selector, unfinished
from tutelage.report.table import MISSING, fixed, plain

if TYPE_CHECKING:
    from rich.console import Console

MARKDOWN = "table.md"
JSON = "table.json"
TEACHER = "teacher"


@dataclass(frozen=True)
class Row:
    """One method on one pair, or the pair's teacher. Accuracies are in percent, differences in percentage points."""

    pair: str  # as the study calls it
    method: str  # as the study calls it; ``teacher`` for the teacher
    role: Literal["teacher", "student"]  # what the row is of
    n: int = 0  # finished runs, for the teacher different teachers
    # mean of the last epoch's test accuracy over the n runs; none where one of them lacks it
    accuracy: float | None = None
    std: float | None = None  # sample standard deviation (n - 1); none for one run
    values: tuple[float | None, ...] = ()  # each run's accuracy
    best: float | None = None  # mean accuracy of the epoch that selection would take, on ``best_set``
    best_set: str | None = None  # the set that selected it; ``"test"`` makes the figure optimistic
    published: float | None = None  # the published mean
    published_std: float | None = None  # its standard deviation, where the source gives one
    published_n: int | None = None  # the runs it is over, where the source says
    difference: float | None = None  # accuracy less the published mean
    z: float | None = None  # the difference over ``sqrt(std**2 / n + published_std**2 / published_n)``
    untested: str | None = None  # why there is no z though there is a difference
    status: str | None = None  # why there is no accuracy
    unfinished: tuple[Unfinished, ...] = ()  # the runs that are in no mean
    # milliseconds of a training step, evaluation left out: mean over runs of the median over epochs
    step_ms: float | None = None
    memory_mb: float | None = None  # peak memory while training, mean over runs, in 1e6 bytes
    costs_of: str | None = None  # the method that the last two are held against
    step_ratio: float | None = None  # ``step_ms`` over that method's
    memory_ratio: float | None = None  # ``memory_mb`` over that method's


@dataclass(frozen=True)
class StudyTable:
    """A study's table."""

    name: str  # the study's
    title: str  # what it is about
    source: str  # where the published values stand
    departures: tuple[str, ...]  # how it was run otherwise than published
    notes: tuple[str, ...]  # what the study's author adds
    rows: tuple[Row, ...]  # pair by pair, the teacher first

    @property
    def pairs(self) -> dict[str, list[Row]]:
        """The rows of each pair."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.pair, []).append(row)
        return found

    @property
    def begun(self) -> dict[str, list[Row]]:
        """The rows of each pair of which there is a run, finished or not."""
        return {pair: rows for pair, rows in self.pairs.items() if any(row.n or row.unfinished for row in rows)}


def is_study(folder: Path | str) -> bool:
    """Whether a folder is a study's."""
    return (Path(folder) / records.STUDY).exists()


def subjects(folder: Path | str) -> dict[str, Subject]:
    """Read the runs of a study, a subject for each pair; its entries are methods."""
    folder = Path(folder)
    study = read_study(folder)
    found = {}
    for pair in study["pairs"]:
        own = [cell for cell in study["cells"] if cell["pair"] == pair]
        teachers = [place for cell in own if (place := cell["teacher"])]
        found[pair] = Subject(
            folder=folder,
            name=pair,
            runs=tuple(read_run(folder / cell["folder"], entry=cell["method"], seed=cell["seed"]) for cell in own),
            teacher=read_run(folder / teachers[0], entry=TEACHER) if teachers else None,
            comparison=True,
        )
    return found


def read_study(folder: Path) -> records.Study:
    """Read a study's own record; keys that an older one lacks are empty."""
    value = mapping(folder / records.STUDY)
    if value is None:
        raise FileNotFoundError(
            f"folder: expected a study's folder, with {records.STUDY} in it, got {str(folder)!r}; "
            "type the folder that `tutelage study` printed"
        )
    empty = records.Study(
        name=folder.resolve().name,
        title="",
        source="",
        pairs=[],
        methods=[],
        cells=[],
        published=[],
        figures=[],
        costs=None,
        departures=[],
        missing={},
        notes=[],
    )
    return {**empty, **value}  # type: ignore[typeddict-item]


def read_table(folder: Path | str, found: Mapping[str, Subject] | None = None) -> StudyTable:
    """Return a study's table.

    Args:
        folder: the study's.
        found: its runs, where they were read already.

    Raises:
        FileNotFoundError: the folder is no study's.
        ValueError: a record is not JSON.
    """
    study = read_study(Path(folder))
    found = subjects(folder) if found is None else found
    published = {(value["pair"], value["method"]): value for value in study["published"]}
    rows = []
    for pair, subject in found.items():
        rows.append(_against(_teacher(pair, subject), published.get((pair, TEACHER))))
        methods = [_method(pair, method, subject, study["missing"].get(method)) for method in study["methods"]]
        if study["costs"]:
            methods = _with_costs(methods, subject, of=study["costs"])
        rows += [_against(row, published.get((pair, row.method))) for row in methods]
    return StudyTable(
        name=study["name"],
        title=study["title"] or study["name"],
        source=study["source"],
        departures=tuple(study["departures"]),
        notes=tuple(study["notes"]),
        rows=tuple(rows),
    )


def _teacher(pair: str, subject: Subject) -> Row:
    """The teacher's row: from its own run, or from what its students' runs say of it."""
    own = subject.teacher
    if own is not None and own.status != NOT_STARTED:
        return _row(pair, TEACHER, "teacher", [own] if own.finished else [], [] if own.finished else [own])
    told: dict[str, float | None] = {}
    for run in subject.runs:
        judgement = section(run.evaluation, "teacher")
        if run.finished and judgement:
            told[str(section(run.manifest, "teacher").get("fingerprint"))] = _percent(judgement.get("accuracy"))
    values = tuple(told.values())
    status = None if values else "not run" if own else "not measured"
    return Row(pair, TEACHER, "teacher", len(values), mean(values), deviation(values), values, status=status)


def _method(pair: str, method: str, subject: Subject, missing: str | None) -> Row:
    row = _row(pair, method, "student", subject.of(method), subject.of(method, finished=False))
    if row.n or row.unfinished:
        return row
    return Row(pair, method, "student", status=missing or "not run")


def _row(pair: str, method: str, role: Literal["teacher", "student"], done: Sequence[Run], left: Sequence[Run]) -> Row:
    values = tuple(_percent(section(run.evaluation, "student").get("accuracy")) for run in done)
    bests = [section(run.evaluation, "best") for run in done]
    places = {string(best.get("set")) for best in bests}
    return Row(
        pair,
        method,
        role,
        n=len(done),
        accuracy=mean(values),
        std=deviation(values),
        values=values,
        best=mean(_percent(best.get("accuracy")) for best in bests) if len(places) == 1 else None,
        best_set=next(iter(places)) if len(places) == 1 else None,
        status=None if done else f"0 of {len(left)} finished",
        unfinished=tuple(unfinished(run) for run in left),
    )


def _with_costs(rows: Sequence[Row], subject: Subject, *, of: str) -> list[Row]:
    """Add what a step took in each method's finished runs, and how that stands to one method's."""
    taken = {row.method: _costs(subject.of(row.method)) for row in rows}
    base = taken.get(of, (None, None))
    found = []
    for row in rows:
        step, memory = taken[row.method]
        ratios = [_ratio(step, base[0]), _ratio(memory, base[1])]
        found.append(
            replace(row, step_ms=step, memory_mb=memory, costs_of=of, step_ratio=ratios[0], memory_ratio=ratios[1])
        )
    return found


def _costs(runs: Sequence[Run]) -> tuple[float | None, float | None]:
    """A step's time in ms and the peak memory, over the runs that were trained alone: a class's are not one run's."""
    steps, memories = [], []
    for run in runs:
        if run.manifest.get("class"):
            continue
        size = number(section(run.manifest, "recipe").get("batch_size"))
        rates = [rate for epoch in run.epochs if (rate := number(epoch.get("images_per_second")))]
        steps.append(1000 * size / median(rates) if size and rates else None)
        peaks = [peak for epoch in run.epochs if (peak := number(epoch.get("memory_mb")))]
        memories.append(max(peaks) if peaks else None)
    return mean(steps), mean(memories)


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _percent(value: object) -> float | None:
    found = number(value)
    return None if found is None else 100 * found


def _against(row: Row, value: records.Published | None) -> Row:
    """Hold a row against what was published."""
    if value is None:
        return row
    theirs, std, n = value["mean"], value["std"], value["n"]
    given: dict[str, Any] = {"published": theirs, "published_std": std, "published_n": n}
    if row.accuracy is not None:
        difference = row.accuracy - theirs
        z, why = z_score(difference, row.std, row.n, std, n)
        given |= {"difference": difference, "z": z, "untested": why}
    return Row(**{**row.__dict__, **given})


def z_score(
    difference: float, std: float | None, n: int, published_std: float | None, published_n: int | None
) -> tuple[float | None, str | None]:
    """Return the difference of two means in units of its standard error, ``sqrt(s1**2 / n1 + s2**2 / n2)``.

    Args:
        difference: of the means.
        std: ours, the sample standard deviation.
        n: our runs.
        published_std: theirs; none where the source gives none.
        published_n: their runs; none where the source does not say.

    Returns:
        The score and none, or none and why there is no such.

    Example:
        >>> z_score(0.5, 0.3, 2, 0.5, 5)[0] == 0.5 / math.sqrt(0.3**2 / 2 + 0.5**2 / 5)
        True
        >>> z_score(0.5, 0.3, 2, None, 5)
        (None, 'the published value has no standard deviation')
    """
    if published_std is None:
        return None, "the published value has no standard deviation"
    if published_n is None:
        return None, "the published value's number of runs is not known"
    if n < 2 or std is None:
        return None, "fewer than two runs"
    error = math.sqrt(std**2 / n + published_std**2 / published_n)
    return (None, "neither side has any spread") if error == 0 else (difference / error, None)


# In words

HEADINGS = (
    *("Method", "Accuracy (%)", "n", "Best epoch (%)"),
    *("Published (%)", "Difference (points)", "z"),
    *("Step (ms)", "Memory (MB)"),
)
"""What `cells` gives, in order."""
Z = HEADINGS.index("z")
ON_TEST = " [selected on test]"


def _spread(value: float | None, std: float | None) -> str:
    return fixed(value, 2) + ("" if value is None or std is None else f" ± {std:.2f}")


def columns(table: StudyTable) -> tuple[int, ...]:
    """Return the columns that the table needs: those about published values or costs only where there are any."""
    published, costs = HEADINGS.index("Published (%)"), HEADINGS.index("Step (ms)")
    shown = list(range(published))
    if any(row.published is not None for row in table.rows):
        shown += range(published, costs)
    if any(row.costs_of is not None for row in table.rows):
        shown += range(costs, len(HEADINGS))
    return tuple(shown)


def cells(row: Row) -> tuple[str, ...]:
    """Write a row under `HEADINGS`."""
    total = row.n + len(row.unfinished)
    selected = "" if row.best is None else f" [{selector(row.best_set)}]"
    published = _spread(row.published, row.published_std)

    def cost(value: float | None, ratio: float | None) -> str:
        return fixed(value, 0) + ("" if ratio is None else f" ({ratio:.2f} x {row.costs_of})")

    return (
        row.method,
        row.status or _spread(row.accuracy, row.std),
        MISSING if not total else str(row.n) if total == row.n else f"{row.n} of {total}",
        fixed(row.best, 2) + selected,
        published + (f" (n = {row.published_n})" if row.published_n else ""),
        fixed(row.difference, 2, sign=True),
        f"not testable: {row.untested}" if row.untested else fixed(row.z, 2, sign=True),
        cost(row.step_ms, row.step_ratio),
        cost(row.memory_mb, row.memory_ratio),
    )


def exact(row: Row) -> dict[str, str]:
    """Return a row's numbers unrounded, as the names and values of data attributes."""
    keys = (
        *("pair", "method", "n", "accuracy", "std", "best", "published", "difference", "z", "status"),
        *("step_ms", "memory_mb"),
    )
    return {key: "" if (value := getattr(row, key)) is None else str(value) for key in keys}


def notes(table: StudyTable) -> list[str]:
    """Say what the table's figures are, and what is not in them."""
    said = ["Accuracy is the last epoch's on the test set: mean ± sample standard deviation over the n finished runs."]
    if any(row.best is not None for row in table.rows):
        said.append("The best epoch is shown beside it with the set that selected it, and is not what is reported.")
    if any(row.best is not None and row.best_set == "test" for row in table.rows):
        said.append("Selected on test: the test set itself chose that epoch, so that figure is optimistic.")
    if any(row.published is not None for row in table.rows):
        said.append(
            "z is the difference over sqrt(s1^2 / n1 + s2^2 / n2): beyond about 2 the two means differ by more than "
            "their spread explains. With few runs it is rough."
        )
    if any(row.costs_of is not None for row in table.rows):
        said.append(
            "Time is of a training step, the median over epochs, evaluation left out. Memory is the peak while "
            "training: of tensors on CUDA, of the whole process and its data on the CPU."
        )
    said += [f"Not averaged: {row.pair}, {row.method}: {run}." for row in table.rows for run in row.unfinished]
    return [*said, *table.notes]


def warning(table: StudyTable) -> str | None:
    """Say above the table that it is not what was published; none where nothing is otherwise."""
    if not table.departures:
        return None
    return "This is not the protocol that the study states, so the published values are no target:"


def pair_table(table: StudyTable, rows: Sequence[Row], *, pair: str | None = None) -> tables.Table:
    """Return the table of some rows; with ``pair`` over its first column."""
    shown = columns(table)
    headings = [HEADINGS[at] for at in shown]
    lines = []
    for row in rows:
        written = cells(row)
        short = [cell.replace(ON_TEST, "*") for cell in written]
        lines.append(
            tables.Row(
                cells=[written[at] for at in shown],
                short=[short[at] for at in shown],
                kind=row.role,
                exact=exact(row),
            )
        )
    wrapped = [at for at, column in enumerate(shown) if column in (0, 1, Z)]
    return tables.Table(headings=[pair or headings[0], *headings[1:]], rows=lines, wrapped=wrapped)


def whole_table(table: StudyTable) -> tables.Table:
    """Return the table of all pairs, each row with its pair in front."""
    shown = pair_table(table, table.rows)
    lines = [replace(line, cells=(row.pair, *line.cells)) for row, line in zip(table.rows, shown.rows, strict=True)]
    return replace(shown, headings=("Pair", *shown.headings), rows=lines, notes=notes(table))


def markdown(table: StudyTable) -> str:
    """Return the table as GitHub Markdown."""
    lines = [f"# {plain(table.title)}", ""]
    if table.source:
        lines += [f"Published values: {plain(table.source)}", ""]
    if warned := warning(table):
        lines += [warned, "", *(f"- {plain(departure)}" for departure in table.departures), ""]
    for pair, rows in table.pairs.items():
        lines += [f"## {plain(pair)}", "", pair_table(table, rows).markdown()]
    return "\n".join([*lines, *(f"- {plain(note)}" for note in notes(table))]) + "\n"


def write_tables(folder: Path | str) -> None:
    """Write a study's table into its folder, as Markdown and as JSON with unrounded numbers."""
    table = read_table(folder)
    value = asdict(table)
    records.write_bytes(Path(folder) / MARKDOWN, markdown(table).encode())
    records.write_json(Path(folder) / JSON, value)


def print_study(folder: Path | str, console: Console) -> None:
    """Print a study's table on a terminal: the pairs of which there is a run, or all where there is none."""
    from rich.text import Text

    table = read_table(folder)
    console.print(Text(table.title, style="bold"))
    if warned := warning(table):
        console.print(Text(warned))
        for departure in table.departures:
            console.print(Text(f"  {departure}"))
    for pair, rows in (table.begun or table.pairs).items():
        pair_table(table, rows, pair=pair).print(console)
    untouched = [pair for pair in table.pairs if pair not in table.begun]
    if untouched and table.begun:
        console.print(Text(f"No runs yet: {', '.join(untouched)}.", style="dim"))
    tables.print_notes(notes(table), console)
