"""The report: one HTML file that opens without a network, in a run's folder, a comparison's or a study's."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tutelage import records
from tutelage.errors import printable
from tutelage.report.against_teacher import against_teacher
from tutelage.report.curves import by_epoch, curves_note
from tutelage.report.figures import Panel
from tutelage.report.reading import Run, Subject, formula, number, read, section, text
from tutelage.report.results import Result, beside, rows, selected, table
from tutelage.report.table import MISSING, Row, Table, fixed, judged, percent, plural

GROUPS = {
    "Run": ("name", "verb", "status", "repeatable", "started", "duration_s", "resumed", "command", "notes"),
    "Data": ("data",),
    "Teacher": ("teacher",),
    "Student": ("student",),
    "Objective": ("objective", "objective_terms", "papers"),
    "Selection": ("selection",),
    "Seeds": ("seeds",),
    "Recipe": ("recipe",),
    "Hardware": ("hardware",),
    "Software": ("version", "commit", "schema", "software"),
}
"""Groups of a manifest's keys; keys in none of them go to ``Other``."""

RUN_SPECIFIC = ("name", "command", "started", "duration_s", "resumed")
"""Keys whose value is specific to each run, so that they say nothing about the comparison."""


class Tile(NamedTuple):
    """One figure at the top of the page."""

    name: str
    value: str
    unit: str
    aside: str


@dataclass(frozen=True)
class Section:
    """Figures under a heading, with a note above them; ``key`` is part of their names."""

    key: str
    title: str
    note: str
    panels: Sequence[Panel]


@dataclass(frozen=True, kw_only=True)
class Page:
    """The contents of a page, from top to bottom."""

    kind: str  # kind of the folder
    title: str  # headline
    what: str  # sentence that says what was run
    result: str  # sentence or two that say what came out
    warnings: Sequence[str]  # warnings for the reader
    tiles: Sequence[Tile]  # figures at the top
    table: Table  # results
    selection: str  # sets by which anything was chosen
    sections: Sequence[Section]  # figures below
    # keys on which the runs' manifests differ, with the different values and the runs that have them
    differences: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def write_report(folder: Path | str, *, subject: Subject | None = None, page: Page | None = None) -> Path:
    """Write ``report.html`` into a run's or a comparison's folder, atomically.

    ``subject`` is the runs, by default those that the folder's records name, and ``page`` what to show of them.
    Returns the report's path.

    Raises:
        FileNotFoundError: if the folder holds no records.
        ValueError: if a record is not JSON.
    """
    path = Path(folder) / records.REPORT
    records.write_bytes(path, render(subject or read(folder), page).encode())
    return path


def render(subject: Subject, page: Page | None = None) -> str:
    """Return the report as HTML."""
    page = page or run_page(subject)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            runs=_run_table(subject) if subject.comparison and subject.runs else None,
            manifest_title="Manifest of the first run" if subject.comparison else "Manifest",
            manifest=groups(subject.manifest),
            definitions=definitions(subject),
            # Markup: plotly.js is code, and holds no closing script tag.
            plotly=Markup(get_plotlyjs()) if any(part.panels for part in page.sections) else "",  # noqa: S704
        )
    )


def run_page(subject: Subject) -> Page:
    """Return the page of a run or a comparison."""
    results = rows(subject)
    beside = "The student against its teacher" if subject.manifest.get("teacher") else "The student in detail"
    last = "Of the last epoch's student, on the set that it was evaluated on."
    last += " Finished runs are pooled. Names in grey are off: click them." if subject.comparison else ""
    run_kind = "Distillation run" if subject.manifest.get("verb") == "distill" else "Training run"
    return Page(
        kind="Comparison" if subject.comparison else run_kind,
        title=subject.name,
        what=what(subject),
        result=result(subject, results),
        warnings=list(warnings(subject)),
        tiles=tiles(subject, results),
        table=table(results),
        selection=selection(subject),
        sections=[
            Section("0", "By epoch", curves_note(subject), by_epoch(subject)),
            Section("1", beside, last, against_teacher(subject)),
        ],
        differences=differences(subject.runs),
    )


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown)
    environment.filters |= {"identifier": _identifier, "plotly_json": _plotly_json}
    return environment


def _shown(value: object) -> object:
    """Write out what of a text cannot be printed, as `printable` does, wherever the page has one."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _identifier(key: str) -> str:
    return "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in key)


def _plotly_json(figure: go.Figure) -> Markup:
    # In a script element no entity is decoded, so anything that could end it is written with JSON's escapes.
    body = figure.to_json().replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(body)  # noqa: S704


# The text at the top


def what(subject: Subject) -> str:
    """Say in one sentence what was run."""
    manifest = subject.manifest
    student = text(section(manifest, "student").get("name")) or "a student"
    names = (text(section(run.manifest, "teacher").get("name")) for run in subject.runs)
    teacher = next(filter(None, names), None)
    data = text(section(manifest, "data").get("source")) or "unknown data"
    if subject.comparison:
        seeds = len({run.seed for run in subject.runs})
        each = f", {seeds} seeds" if seeds > 1 else ""
        return (
            f"{plural(len(subject.entries), 'objective')} ({', '.join(subject.entries)}){each}: {student} on {data} "
            f"with {teacher or 'no teacher'} as the teacher; {plural(len(subject.runs), 'run')}."
        )
    objective = formula(manifest.get("objective"))
    how = f" with {objective}" if objective else ""
    epochs = len(subject.runs[0].epochs)
    after = f" for {plural(epochs, 'epoch')}" if epochs else ""
    if manifest.get("verb") == "distill" or teacher:
        return f"{student} was distilled from {teacher or 'a teacher'} on {data}{how}{after}."
    return f"{student} was trained on {data}{how}{after}."


def result(subject: Subject, results: Sequence[Result]) -> str:
    """Say in one or two sentences what came out."""
    known = [row for row in results if row.role != "teacher" and row.value is not None]
    if not known:
        if subject.comparison:
            return "No result yet: no run has finished."
        run = subject.runs[0]
        done = plural(len(run.epochs), "epoch")
        if run.status == "failed":
            return f"No result: the run failed after {done}."
        return f"No result yet: the run is {run.status}, {done} done."
    students = [row for row in known if row.role == "student"]
    top = max(students or known, key=lambda row: row.merit)
    by = top.measure
    named = "" if by is records.ACCURACY else f"a {by.name} of "
    reached = f"{named}{_amount(by, top.value, top.std)} on the {top.set} set"
    if not subject.comparison:
        sentence = f"The student reaches {reached} after its last epoch"
    else:
        sentence = f"{top.name} reaches {reached}"
        if len(students) > 1:
            others = " besides the baseline," if len(students) < len(known) else ""
            sentence = f"Of {len(students)} objectives{others} {top.name} has the {_extreme(by)} mean, {reached}"
        sentence += f" (n\u00a0=\u00a0{top.n})" if top.n > 1 else " (one run: its spread is not known)"
    if top.gain is not None:
        base = next(row for row in results if row.role == "baseline")
        away = fixed(abs(top.gain), 2)
        points = "" if not by.steps else " point" if away == "1.00" else f" {by.steps}"
        sentence += f", {away}{points} {'above' if top.gain >= 0 else 'below'} the baseline {base.name}"
        sentence += f" ({_amount(by, base.value, base.std)})"
    teacher = next((row for row in results if row.role == "teacher" and row.value is not None), None)
    if teacher:
        on = "" if teacher.set == top.set else f" on the {teacher.set} set"
        sentence += f"; the teacher has {_amount(by, teacher.value)}{on}"
    return f"{sentence}."


def _amount(by: records.Measure, value: float | None, std: float | None = None) -> str:
    """Write a value of a measure with its unit."""
    return judged(by, value, std) + (f" {by.unit}" if by.unit else "")


def _extreme(by: records.Measure) -> str:
    """Name the end of a measure's scale that is the best."""
    return "lowest" if by.lower_is_better else "highest"


def warnings(subject: Subject) -> Iterator[str]:
    """Yield what a reader of the results must know first."""
    unfinished = [run for run in subject.runs if not run.finished]
    if unfinished:
        verb = "is" if len(unfinished) == 1 else "are"
        states = ", ".join(f"{run.label}: {run.status}" for run in unfinished)
        several = f"{len(unfinished)} of {len(subject.runs)} runs {verb} not finished and in no mean"
        yield f"{several if subject.comparison else 'This run is not finished'} ({states})."
    if subject.teacher is not None:
        yield from (f"Damaged: {line}." for line in subject.teacher.damage)
    for run in subject.runs:
        yield from (f"Damaged: {line}." for line in run.damage)
        skipped = sum(int(number(epoch.get("skipped_steps")) or 0) for epoch in run.epochs)
        if skipped:
            yield f"{run.label}: {skipped} steps had a non-finite loss or gradient and were not applied."
    if any(run.manifest.get("repeatable") is False for run in subject.runs):
        yield "Made of Python objects that the records cannot name: not repeatable from the folder alone."
    if any(section(run.manifest, "selection").get("set") == "test" for run in subject.runs):
        yield "The test set was used for selection."


def tiles(subject: Subject, results: Sequence[Result]) -> list[Tile]:
    """Return the figures at the top: of the teacher, the baseline, and the best mean of the other objectives."""
    tiles = []
    known = [row for row in results if row.role == "student" and row.value is not None]
    top = max(known, key=lambda row: row.merit, default=None)
    for row in results:
        by = row.measure
        value, on, several = judged(by, row.value, row.std), f"{row.set} {by.name}", f"{row.name}, n = {row.n}"
        more = by.describe_beside(row.of_task, "; ")
        if row.role == "teacher":
            tiles.append(Tile(f"Teacher, {on}", judged(by, row.value), by.unit, row.name + more))
        elif row.role == "baseline":
            tiles.append(Tile(f"Baseline, {on}", value, by.unit, several + more))
        elif row is top:
            best = f"{_extreme(by).capitalize()} mean" + ("" if by.merit(row.gain or 0) >= 0 else " of the others")
            name, aside = (best, several) if subject.comparison else ("Student", row.name)
            tiles.append(Tile(f"{name}, {on}", value, by.unit, aside + more))
            if row.gain is not None:
                than = "from" if by.lower_is_better else "over"
                change = fixed(row.gain, 2, sign=True)
                tiles.append(Tile(f"{by.difference} {than} the baseline", change, by.steps, row.name))
            elif row.agreement is not None:
                tiles.append(Tile("Agreement with the teacher", percent(row.agreement), "%", f"{row.set} set"))
    seconds = number(subject.manifest.get("duration_s"))
    if not subject.comparison and seconds is not None:
        hardware = section(subject.manifest, "hardware")
        devices = (text(hardware.get(key)) for key in ("gpu", "processor", "device"))
        tiles.append(Tile("Time", duration(seconds), "", next(filter(None, devices), "")))
    return tiles


def duration(seconds: float) -> str:
    """Write a time in its two largest units.

    Example:
        >>> duration(4000), duration(75.4), duration(3.21)
        ('1 h 6 min', '1 min 15 s', '3.2 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(math.floor(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def selection(subject: Subject) -> str:
    """Say which set decided anything, and that the reported figure is the last epoch's in any case."""
    recorded = [section(run.manifest, "selection") for run in subject.runs]
    sentences = {
        "test": "The test set was used for selection{by}: the best epoch's figure is optimistic.",
        "none": "No set was used for selection.",
        None: "The records do not say which set was used for selection.",
    }
    held_out = "The {name} set was used for selection{by}; the test set took no part in it."
    chosen_by = [
        sentences.get(name, held_out).format(name=name, by=f" by {subject.measure.name}" if metric else "")
        for name, metric in dict.fromkeys((text(chosen.get("set")), text(chosen.get("metric"))) for chosen in recorded)
    ]
    return " ".join(
        [
            *chosen_by,
            f"The {subject.measure.name} that is reported is the last epoch's, whichever epoch selection would take.",
        ]
    )


# Tables


def _run_table(subject: Subject) -> Table:
    """Return the table of every run."""
    by = subject.measure
    results = (by.heading(by.title), *beside(by), by.heading("Best epoch"), "Agreement (%)", "Time")
    headings = ("Run", "Network", "Seed", "Status", "Epochs", *results)
    return Table(headings=headings, rows=[_run(subject, run) for run in subject.runs])


def _run(subject: Subject, run: Run) -> Row:
    student, best = section(run.evaluation, "student"), section(run.evaluation, "best")
    folder = Path(os.path.relpath(run.folder, subject.folder)).as_posix()
    by = subject.measure
    value, best_value = number(student.get(by.key)), number(best.get(by.key))
    seconds = number(run.manifest.get("duration_s"))
    return Row(
        cells=(
            *(folder, run.entry, MISSING if run.seed is None else str(run.seed), run.status, str(len(run.epochs))),
            judged(by, value),
            *([] if by.beside is None else [fixed(number(student.get(by.beside)))]),
            judged(by, best_value) + selected(best_value, best.get("set")),
            percent(number(student.get("agreement"))),
            MISSING if seconds is None else duration(seconds),
        ),
        kind="finished" if run.finished else "unfinished",
        exact={"folder": folder, "status": run.status, by.key.replace("_", "-"): value},
        link=quote(f"./{folder}/{records.REPORT}") if (run.folder / records.REPORT).exists() else "",
    )


def flatten(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield a nested value's leaves with dotted keys; a list of plain values is one leaf.

    Example:
        >>> list(flatten({"sizes": {"train": 60, "test": None}, "notes": ["a", "b"]}))
        [('sizes.train', '60'), ('sizes.test', 'none'), ('notes', 'a, b')]
    """
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flatten(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        for at, inner in enumerate(value):
            yield from flatten(inner, f"{key}[{at}]")
    elif isinstance(value, list | tuple):
        yield key, ", ".join(map(_leaf, value)) or "none"
    else:
        yield key, _leaf(value)


def _leaf(value: object) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)


def groups(manifest: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return a manifest's flat keys and values by the title of their group; keys in no group come last."""
    grouped = {key for keys in GROUPS.values() for key in keys}
    titles = {**GROUPS, "Other": tuple(key for key in manifest if key not in grouped)}
    flat = {
        title: [item for key in keys if key in manifest for item in _items(title, key, manifest[key])]
        for title, keys in titles.items()
    }
    return {title: items for title, items in flat.items() if items}


def _items(title: str, key: str, value: object) -> Iterable[tuple[str, str]]:
    if key == "objective" and (objective := formula(value)):
        return [(key, objective)]
    # Under a heading of the same name, a key needs no prefix.
    headed = isinstance(value, Mapping) and value and (key == title.lower() or key == "software")
    return flatten(value, "" if headed else key)


def differences(runs: Iterable[Run]) -> dict[str, dict[str, str]]:
    """Return the keys on which the runs' manifests differ, with the runs that have each value.

    A run without a manifest does not count.
    """
    flat = {}
    for run in runs:
        if run.manifest:
            compared = {key: value for key, value in run.manifest.items() if key not in RUN_SPECIFIC}
            flat[run.folder.name] = dict(flatten({**compared, "objective": formula(compared.get("objective"))}))
    different = {}
    for key in dict.fromkeys(key for values in flat.values() for key in values):
        cases: dict[str, list[str]] = {}
        for name, values in flat.items():
            cases.setdefault(values.get(key, MISSING), []).append(name)
        if len(cases) > 1:
            different[key] = {value: ", ".join(names) for value, names in cases.items()}
    return different


def definitions(subject: Subject) -> list[tuple[str, str]]:
    """Return the definitions of the page's terms."""
    judgements = (section(run.evaluation, "student") for run in subject.runs)
    bins = next((len(judgement["reliability"]) for judgement in judgements if judgement.get("reliability")), None)
    by = subject.measure
    counted, points = by.counted, "accuracies" if by is records.ACCURACY else "means"
    whose = f"labelled {counted} whose class is the network's most probable one"
    if by is records.MEAN_AVERAGE_PRECISION:
        whose = "labels that are answered right, yes above a probability of 1/2, of all known ones"
    return [
        *([] if by is records.ACCURACY else [(by.title, by.definition)]),
        *([] if by.beside is None else [(beside(by)[0], records.COMPANIONS[by.beside][1])]),
        ("Accuracy", f"Share of {whose}; the last epoch's."),
        ("±", "Sample standard deviation over finished runs, with n - 1 in the denominator; none for one run."),
        ("Agreement", f"Share of {counted} on which student and teacher name the same class, right or wrong."),
        (
            "H(q), entropy",
            "Shannon entropy of the network's distribution q at temperature 1, natural logarithm (nats), "
            f"mean over {counted}: 0 for a certain network, log K for one that spreads evenly over K classes.",
        ),
        (
            "KL to teacher",
            f"KL(p || q), mean over {counted}, nats: teacher's distribution p and student's q, both at temperature 1. "
            "By epoch, KL to the transformed teacher: p is first transformed as the objective does.",
        ),
        (
            "ECE",
            "Expected calibration error: mean of |accuracy - confidence| over "
            f"{f'{bins} ' if bins else ''}bins of the top-1 probability, weighted by their {counted}.",
        ),
        *([("Points", f"Percentage points: a difference of two {points} in percent.")] if by.steps else []),
    ]
