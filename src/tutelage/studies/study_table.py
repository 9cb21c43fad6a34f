"""The table of a study, from its records: measured and published values for every pair and method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from tutelage import plain_files, records
from tutelage.errors import NotFoundError, printable
from tutelage.report import table as tables
from tutelage.report.matched import matched_notes
from tutelage.report.reading import (
    NOT_STARTED,
    Run,
    Subject,
    deviation,
    mapping,
    mean,
    number,
    read_run,
    reported_epoch,
    section,
)
from tutelage.report.reading import text as string
from tutelage.report.results import Unfinished, best_notes, selected, unfinished
from tutelage.report.table import MISSING, count, fixed, plain
from tutelage.studies import differences as paired
from tutelage.studies import scoreboard
from tutelage.studies.differences import Difference

if TYPE_CHECKING:
    from rich.console import Console

MARKDOWN = "table.md"
JSON = "table.json"
TEACHER = "teacher"
NOT_RUN = "not run"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one pair, or the pair's teacher. Accuracies are in percent, differences in percentage points.

    Fields of the ``measure`` are accuracies, or of a language model perplexities, of which the lower is the better.
    """

    pair: str  # name in the study
    method: str  # name in the study; ``teacher`` for the teacher
    role: Literal["teacher", "student"]  # role of the row
    n: int = 0  # number of finished runs; for the teacher, of different teachers
    # mean test accuracy of the runs' students over the n runs; None if one of them lacks it
    accuracy: float | None = None
    of_task: float | None = None  # mean of their other measure, instead, such as a perplexity
    epoch: str = "last"  # their epoch: ``last``, ``best``, or ``last or best`` where the runs differ
    measure: records.Measure = records.ACCURACY  # what the networks are judged by
    std: float | None = None  # sample standard deviation (n - 1); None for one run
    values: tuple[float | None, ...] = ()  # measure of each run
    best: float | None = None  # mean measure of the epoch that selection would take, on ``best_set``
    best_set: str | None = None  # set that selected it; ``"test"`` makes the figure optimistic
    published: float | None = None  # published mean
    published_std: float | None = None  # its standard deviation, if the source gives one
    published_n: int | None = None  # number of its runs, if the source says
    difference: float | None = None  # measure less the published mean
    z: float | None = None  # difference over ``sqrt(std**2 / n + published_std**2 / published_n)``
    untested: str | None = None  # reason for no z although there is a difference
    status: str | None = None  # reason for no value
    unfinished: tuple[Unfinished, ...] = ()  # runs that are in no mean
    # milliseconds per training step, without evaluation: mean over runs of the median over epochs
    step_ms: float | None = None
    memory_mb: float | None = None  # peak memory while training, mean over runs, in 1e6 bytes
    costs_of: str | None = None  # method with which the last two are compared
    step_ratio: float | None = None  # ``step_ms`` over that method's
    memory_ratio: float | None = None  # ``memory_mb`` over that method's

    @property
    def value(self) -> float | None:
        """The mean of the measure, in percent if it is an accuracy."""
        return self.accuracy if self.measure is records.ACCURACY else self.of_task


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """A study's table."""

    name: str  # name of the study
    title: str  # title that says what it is about
    source: str  # source of the published values
    departures: tuple[str, ...]  # deviations from the published settings
    notes: tuple[str, ...]  # notes by the study's author
    matched: tuple[str, ...]  # which methods are matched, and what else differs between those that are not
    rows: tuple[Row, ...]  # rows pair by pair, the teacher first
    differences: tuple[Difference, ...] = ()  # differences between methods, pair by pair
    scoreboard: tuple[scoreboard.Standing, ...] = ()  # of a study with a search
    search: records.StudySearch | None = None  # that search

    @property
    def pairs(self) -> dict[str, list[Row]]:
        """The rows of each pair."""
        pairs: dict[str, list[Row]] = {}
        for row in self.rows:
            pairs.setdefault(row.pair, []).append(row)
        return pairs

    @property
    def begun(self) -> dict[str, list[Row]]:
        """The rows of each pair that has a run or a trial, finished or not."""
        return {pair: rows for pair, rows in self.pairs.items() if any(map(self._is_begun, rows))}

    def _is_begun(self, row: Row) -> bool:
        tried = ((each.pair, each.method) for each in self.scoreboard)
        return bool(row.n or row.unfinished) or (row.pair, row.method) in tried

    @property
    def shown(self) -> dict[str, list[Row]]:
        """The rows of each pair; if anything was begun, of methods with a run, a trial or a published value alone.

        A method that cannot be run stays, with the reason.
        """
        if not self.begun:
            return self.pairs

        def is_kept(row: Row) -> bool:
            return self._is_begun(row) or row.published is not None

        return {
            pair: [row for row in rows if is_kept(row) or row.role == TEACHER or row.status != NOT_RUN]
            for pair, rows in self.pairs.items()
            if any(map(is_kept, rows))
        }

    @property
    def left_out(self) -> list[str]:
        """The pairs, and the methods of shown pairs, that are not in `shown`."""
        whole = [pair for pair in self.pairs if pair not in self.shown]
        parts = {pair: [row.method for row in self.pairs[pair] if row not in rows] for pair, rows in self.shown.items()}
        return whole + [f"{', '.join(methods)} of {pair}" for pair, methods in parts.items() if methods]

    def of(self, pair: str) -> list[Difference]:
        """The differences of one pair."""
        return [difference for difference in self.differences if difference.pair == pair]


def is_study(folder: Path | str) -> bool:
    """Whether a folder is a study's."""
    return (Path(folder) / records.STUDY).exists()


def read_study(folder: Path | str) -> tuple[records.Study, dict[str, Subject]]:
    """Read a study's record and its runs, a subject for each pair; its entries are methods.

    Raises:
        FileNotFoundError: if the folder is not a study's.
        ValueError: if a record is not JSON.
    """
    folder = Path(folder)
    value = mapping(folder / records.STUDY, records.Study)
    if value is None:
        instead = "type the folder that `tutelage study` printed"
        raise NotFoundError("folder", f"a study's folder, with {records.STUDY} in it", repr(str(folder)), instead)
    name = folder.resolve().name
    lists: dict[str, list[Any]] = {
        key: [] for key in ("pairs", "methods", "cells", "published", "figures", "differences", "departures", "notes")
    }
    study: records.Study = {"name": name, "title": "", "source": "", "costs": None, "missing": {}, **lists, **value}  # type: ignore[typeddict-item]
    if wrong := plain_files.misfit(study, records.Study):
        instead = "type the study's command again to write it again, or restore the file"
        raise records.DamagedError(folder / records.STUDY, "the record that was written", wrong, instead)
    subjects = {}
    for pair in study["pairs"]:
        cells = [cell for cell in study["cells"] if cell["pair"] == pair]
        teacher = next((path for cell in cells if (path := cell["teacher"])), None)
        subjects[pair] = Subject(
            folder=folder,
            name=pair,
            runs=tuple(read_run(folder / cell["folder"], entry=cell["method"], seed=cell["seed"]) for cell in cells),
            teacher=read_run(folder / teacher, entry=TEACHER) if teacher else None,
            comparison=True,
        )
    return study, subjects


def read_table(folder: Path | str) -> StudyTable:
    """Return a study's table; raises what `read_study` does."""
    return table_of(*read_study(folder))


def table_of(study: records.Study, subjects: Mapping[str, Subject]) -> StudyTable:
    """Return the table of a study that was read."""
    published = {(value["pair"], value["method"]): value for value in study["published"]}
    rows = []
    for pair, subject in subjects.items():
        methods = [
            _row(
                pair,
                method,
                subject.of(method),
                subject.of(method, finished=False),
                subject.measure,
                study["missing"].get(method) or NOT_RUN,
            )
            for method in study["methods"]
        ]
        if study["costs"]:
            methods = _with_costs(methods, subject, of=study["costs"])
        rows += [_against(row, published.get((pair, row.method))) for row in (_teacher(subject), *methods)]
    runs = [run for subject in subjects.values() for run in (*subject.runs, *filter(None, [subject.teacher]))]
    damage = dict.fromkeys(line for run in runs for line in run.damage)
    return StudyTable(
        name=study["name"],
        title=study["title"] or study["name"],
        source=study["source"],
        departures=tuple(study["departures"]),
        notes=(*study["notes"], *(f"Damaged: {line}." for line in damage)),
        rows=tuple(rows),
        differences=tuple(paired.differences_of(study["differences"], subjects)),
        matched=tuple(
            matched_notes({name: each.objective(name) for name in study["methods"]} for each in subjects.values())
        ),
        scoreboard=scoreboard.standings(study, subjects),
        search=study.get("search"),
    )


def _teacher(subject: Subject) -> Row:
    """Return the teacher's row: from its own run, or from what its students' runs say about it."""
    teacher = subject.teacher
    if teacher is not None and teacher.status != NOT_STARTED:
        done, left = ([teacher], []) if teacher.finished else ([], [teacher])
        return _row(subject.name, TEACHER, done, left, subject.measure)
    judged: dict[str, float | None] = {}
    for run in subject.runs:
        judgement = section(run.evaluation, "teacher")
        if run.finished and judgement:
            fingerprint = str(section(run.manifest, "teacher").get("fingerprint"))
            judged[fingerprint] = _scaled(subject.measure, judgement)
    values = tuple(judged.values())
    status = None if values else NOT_RUN if teacher else "not measured"
    row = _row(subject.name, TEACHER, [], [], subject.measure)
    return replace(
        row, n=len(values), **_average(row.measure, values), std=deviation(values), values=values, status=status
    )


def _row(
    pair: str, method: str, done: Sequence[Run], left: Sequence[Run], by: records.Measure, missing: str | None = None
) -> Row:
    """Return a row of finished and unfinished runs; ``missing`` says why there are neither."""
    values = tuple(_scaled(by, section(run.evaluation, "student")) for run in done)
    bests = [section(run.evaluation, "best") for run in done]
    sets = {string(best.get("set")) for best in bests}
    best_set = next(iter(sets)) if len(sets) == 1 else None
    status = None
    if not done:
        status = f"0 of {len(left)} finished" if left else missing or NOT_RUN
    return Row(
        pair=pair,
        method=method,
        role="teacher" if method == TEACHER else "student",
        n=len(done),
        **_average(by, values),
        measure=by,
        std=deviation(values),
        values=values,
        best=mean(_scaled(by, best) for best in bests) if len(sets) == 1 else None,
        best_set=best_set,
        epoch=reported_epoch(done),
        status=status,
        unfinished=tuple(map(unfinished, left)),
    )


def _average(by: records.Measure, values: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean under the field that holds it."""
    return {"accuracy" if by is records.ACCURACY else "of_task": mean(values)}


def _with_costs(rows: Sequence[Row], subject: Subject, *, of: str) -> list[Row]:
    """Add the cost of a step in each method's finished runs, absolute and relative to one method's."""
    costs = {row.method: _costs(subject.of(row.method)) for row in rows}
    base_step, base_memory = costs.get(of, (None, None))
    return [
        replace(
            row,
            costs_of=of,
            step_ms=step,
            memory_mb=memory,
            step_ratio=step / base_step if step is not None and base_step else None,
            memory_ratio=memory / base_memory if memory is not None and base_memory else None,
        )
        for row, (step, memory) in zip(rows, costs.values(), strict=True)
    ]


def _costs(runs: Sequence[Run]) -> tuple[float | None, float | None]:
    """Return time per step in ms and peak memory of the runs trained alone: a group's are not one run's."""
    steps, memories = [], []
    for run in runs:
        if run.manifest.get("class"):
            continue
        recipe = section(run.manifest, "recipe")
        size = number(recipe.get("batch_size"))
        rates = [rate for epoch in run.epochs if (rate := number(epoch.get("images_per_second")))]
        views = 2 if section(recipe, "data").get("strong") else 1
        steps.append(1000 * views * size / median(rates) if size and rates else None)
        peaks = [peak for epoch in run.epochs if (peak := number(epoch.get("memory_mb")))]
        memories.append(max(peaks, default=None))
    return mean(steps), mean(memories)


def _scaled(by: records.Measure, means: Mapping[str, Any]) -> float | None:
    value = number(means.get(by.key))
    return None if value is None else by.scale * value


def _against(row: Row, value: records.Published | None) -> Row:
    """Compare a row with the published value."""
    if value is None:
        return row
    row = replace(row, published=value["mean"], published_std=value["std"], published_n=value["n"])
    if row.value is None:
        return row
    difference = row.value - value["mean"]
    z, untested = z_score(difference, row.std, row.n, value["std"], value["n"])
    return replace(row, difference=difference, z=z, untested=untested)


def z_score(
    difference: float, std: float | None, n: int, published_std: float | None, published_n: int | None
) -> tuple[float | None, str | None]:
    """Return the difference of two means in units of its standard error, ``sqrt(s1**2 / n1 + s2**2 / n2)``.

    ``std`` is the sample standard deviation of ``n`` runs; for the published value either may be unknown. Returns the
    score and ``None``, or ``None`` and why there is no score.

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

PUBLISHED = ("Published", "Difference", "z")
COSTS = ("Step (ms)", "Memory (MB)")
COLUMNS = ("Method", "Measure", "n", "Best epoch", *PUBLISHED, *COSTS)
EXACT = (
    *("pair", "method", "n", "accuracy", "std", "best", "published", "difference", "z", "status"),
    *("step_ms", "memory_mb"),
)
WARNING = "This is not the protocol that the study states, so the published values are no target:"
"""Warning above the table and the study's deviations."""


def measure_of(rows: Sequence[Row]) -> records.Measure:
    """Return what the networks of a study are judged by; of those without runs nothing is known."""
    return next((row.measure for row in rows if row.measure is not records.ACCURACY), records.ACCURACY)


def heading(column: str, by: records.Measure) -> str:
    """Return the heading of one of `COLUMNS` in a table of networks that are judged by a measure."""
    if column == "Measure":
        return by.heading(by.title)
    units = {"Best epoch": by.unit, "Published": by.unit, "Difference": by.steps}
    return by.heading(column, units.get(column, ""))


def _spread(value: float | None, std: float | None) -> str:
    return fixed(value, 2) + ("" if value is None or std is None else f" ± {std:.2f}")


def cells(row: Row) -> dict[str, str]:
    """Write a row by its `COLUMNS`."""

    def cost(value: float | None, ratio: float | None) -> str:
        return fixed(value, 0) + ("" if ratio is None else f" ({ratio:.2f} x {row.costs_of})")

    written = (
        row.method,
        row.status or _spread(row.value, row.std),
        count(row.n, len(row.unfinished)) if row.n or row.unfinished else MISSING,
        fixed(row.best, 2) + selected(row.best, row.best_set),
        _spread(row.published, row.published_std) + (f" (n = {row.published_n})" if row.published_n else ""),
        fixed(row.difference, 2, sign=True),
        f"not testable: {row.untested}" if row.untested else fixed(row.z, 2, sign=True),
        cost(row.step_ms, row.step_ratio),
        cost(row.memory_mb, row.memory_ratio),
    )
    return dict(zip(COLUMNS, written, strict=True))


def notes(table: StudyTable) -> list[str]:
    """Say what the table's figures are, and what they leave out."""
    judged = measure_of(table.rows).title
    epoch = " or ".join(dict.fromkeys(row.epoch for row in table.rows if row.n)) or "last"
    sentences = [
        f"{judged} is the {epoch} epoch's on the test set: mean ± sample standard deviation over the n finished runs."
    ]
    sentences += best_notes(table.rows)
    if any(row.published is not None for row in table.rows):
        sentences.append(
            "z is the difference over sqrt(s1^2 / n1 + s2^2 / n2): beyond about 2 the two means differ by more than "
            "their spread explains. With few runs it is rough."
        )
    if any(row.costs_of is not None for row in table.rows):
        sentences.append(
            "Time is of a training step, the median over epochs, evaluation left out. Memory is the peak while "
            "training: of tensors on CUDA, of the whole process and its data on the CPU."
        )
    if table.differences:
        sentences.append(paired.NOTE)
    sentences += table.matched
    sentences += [f"Not averaged: {row.pair}, {row.method}: {run}." for row in table.rows for run in row.unfinished]
    if table.left_out:
        published = any(row.published is not None for row in table.rows)
        without = " and without a published value" if published else ""
        sentences.append(f"Not run{without}: {'; '.join(table.left_out)}.")
    return [*sentences, *table.notes]


def pair_table(table: StudyTable, rows: Sequence[Row], *, pair: str | None = None) -> tables.Table:
    """Return the table of some rows, with ``pair`` over its first column.

    Columns for published values or costs appear only if the whole table has any.
    """
    published = any(row.published is not None for row in table.rows)
    costs = any(row.costs_of is not None for row in table.rows)
    hidden = (*(() if published else PUBLISHED), *(() if costs else COSTS))
    columns = [name for name in COLUMNS if name not in hidden]
    by = measure_of(table.rows)
    lines = []
    for row in rows:
        written = cells(row)
        shown = [written[name] for name in columns]
        short = [cell.replace(" [selected on test]", "*") for cell in shown]
        exact = {key: getattr(row, key) for key in EXACT} | {by.key: row.value}
        lines.append(tables.Row(cells=shown, short=short, kind=row.role, exact=exact))
    wrapped = [at for at, name in enumerate(columns) if name in ("Measure", "z")]
    headings = [heading(name, by) for name in columns[1:]]
    return tables.Table(headings=[pair or "Method", *headings], rows=lines, wrapped=wrapped)


def whole_table(table: StudyTable) -> tables.Table:
    """Return the table of all pairs that are shown, each row with its pair in front."""
    rows = [row for rows in table.shown.values() for row in rows]
    shown = pair_table(table, rows)
    lines = [replace(line, cells=(row.pair, *line.cells)) for row, line in zip(rows, shown.rows, strict=True)]
    return replace(
        shown,
        headings=("Pair", *shown.headings),
        rows=lines,
        wrapped=[at + 1 for at in shown.wrapped],
        words=[1],
        notes=notes(table),
    )


def markdown(table: StudyTable) -> str:
    """Return the table as GitHub Markdown."""
    lines = [f"# {plain(table.title)}", ""]
    if table.source:
        lines += [f"Published values: {plain(table.source)}", ""]
    if table.departures:
        lines += [WARNING, "", *(f"- {plain(departure)}" for departure in table.departures), ""]
    for pair, rows in table.shown.items():
        lines += [f"## {plain(pair)}", "", pair_table(table, rows).markdown()]
        if differences := table.of(pair):
            lines += [paired.table_of(differences).markdown()]
    lines += [f"- {plain(note)}" for note in notes(table)]
    if table.scoreboard:
        lines += ["", "## Scoreboard", "", *(f"- {plain(note)}" for note in scoreboard_notes(table)), ""]
        for part in scoreboard_tables(table):
            lines += [f"### {plain(part.caption)}", "", part.markdown()]
    return "\n".join(lines).rstrip("\n") + "\n"


def scoreboard_tables(table: StudyTable) -> list[tables.Table]:
    """Return the tables of a study's scoreboard; none of one without."""
    return [*scoreboard.tables(table.scoreboard, measure_of(table.rows))]


def scoreboard_notes(table: StudyTable) -> list[str]:
    """Say what the scoreboard's figures are."""
    return scoreboard.notes(table.scoreboard, table.search) if table.search else []


def write_tables(folder: Path | str) -> None:
    """Write a study's table into its folder, as Markdown and as JSON with unrounded numbers."""
    table = read_table(folder)
    records.write_bytes(Path(folder) / MARKDOWN, markdown(table).encode())
    both = {"rows": [*map(_fields, table.rows)], "differences": [*map(paired.fields, table.differences)]}
    fields = asdict(table) | both
    without = ("search",) if table.search else ("search", "scoreboard")  # The search is in the study's own record.
    records.write_json(Path(folder) / JSON, {key: value for key, value in fields.items() if key not in without})


def _fields(row: Row) -> dict[str, Any]:
    """Return a row's fields, a measure that is not accuracy under its own key."""
    fields = {key: value for key, value in asdict(row).items() if key not in ("measure", "of_task")}
    return fields if row.measure is records.ACCURACY else fields | {row.measure.key: row.of_task}


def print_study(folder: Path | str, console: Console) -> None:
    """Print a study's table on a terminal: the pairs that have a run, or all if none has."""
    from rich.text import Text

    table = read_table(folder)
    console.print(Text(printable(table.title), style="bold"))
    if table.departures:
        console.print(Text("\n  ".join([WARNING, *map(printable, table.departures)])))
    for pair in table.begun or table.pairs:
        pair_table(table, table.shown[pair], pair=pair).print(console)
        if differences := table.of(pair):
            paired.table_of(differences).print(console)
    untouched = [pair for pair in table.shown if pair not in table.begun]
    if untouched and table.begun:
        console.print(Text(printable(f"No runs yet: {', '.join(untouched)}."), style="dim"))
    tables.print_notes(notes(table), console)
    for part in scoreboard_tables(table):
        console.print(Text(f"\nScoreboard: {printable(part.caption)}", style="bold"))
        part.print(console)
    tables.print_notes(scoreboard_notes(table), console)
