"""The report: one HTML file that opens without a network, in a run's folder, a comparison's or a study's."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from tutelage import records
from tutelage.errors import printable
from tutelage.report import answers, costs, libraries
from tutelage.report.against_teacher import by_class, calibration_note, calibration_table, certainty
from tutelage.report.cost_figures import against_cost
from tutelage.report.curves import by_epoch, curves_note
from tutelage.report.figures import Panel
from tutelage.report.live import Live
from tutelage.report.manifest import definitions, differences, groups, run_table
from tutelage.report.reading import Subject, read, reported_epoch
from tutelage.report.results import Result, best_of, rows, table
from tutelage.report.summary import Tile, further, result, selection, tiles, warnings, what
from tutelage.report.table import Table

if TYPE_CHECKING:
    import plotly.graph_objects as go

PLOTLY = Path(__file__).parent / "plotly-basic.min.js.gz"
"""plotly.js as its makers publish it, with the traces that the figures here have; its licence lies beside it."""


@dataclass(frozen=True)
class Section:
    """What stands under a heading, with a note above it; ``key`` is part of its names. An empty one is not shown."""

    key: str
    title: str
    note: str
    panels: Sequence[Panel] = ()
    tables: Sequence[Table] = ()
    matrices: Sequence[answers.Matrix] = ()
    samples: Sequence[answers.Sample] = ()

    def __bool__(self) -> bool:
        """Whether it has contents."""
        return any((self.panels, self.tables, self.matrices, self.samples))


@dataclass(frozen=True, kw_only=True)
class Page:
    """The contents of a page, from top to bottom."""

    kind: str  # kind of the folder
    title: str  # headline
    what: str  # sentence that says what was run
    result: str  # sentence that says what came out
    further: Sequence[str] = ()  # sentences besides
    warnings: Sequence[str]  # warnings for the reader
    tiles: Sequence[Tile]  # figures at the top
    table: Table  # results
    selection: str  # sets by which anything was chosen
    sections: Sequence[Section]  # what stands below
    # keys on which the runs' manifests differ, with the different values and the runs that have them
    differences: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def write_report(folder: Path | str, *, subject: Subject | None = None, page: Page | None = None) -> Path:
    """Write ``report.html`` into a run's or a comparison's folder, atomically.

    ``subject`` is the runs, by default those that the folder's records name, and ``page`` what to show of them.
    Returns the report's path.

    Raises:
        FileNotFoundError: if the folder holds no records.
        ImportError: if the extra ``report`` is not installed.
        ValueError: if a record is not JSON.
    """
    path = Path(folder) / records.REPORT
    records.write_bytes(path, render(subject or read(folder), page).encode())
    return path


def render(subject: Subject, page: Page | None = None, *, live: Live | None = None) -> str:
    """Return the report as HTML; with ``live`` one that asks whoever serves it for newer ones."""
    libraries.require("report")
    page = page or run_page(subject)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            live=live,
            sections=[*filter(None, page.sections)],
            runs=run_table(subject) if subject.comparison and subject.runs else None,
            manifest_title="Manifest of the first run" if subject.comparison else "Manifest",
            manifest=groups(subject.manifest),
            definitions=definitions(subject),
            # Packed, it is a third as large; the page unpacks it.
            plotly=_plotly() if any(part.panels for part in page.sections) else "",
        )
    )


def run_page(subject: Subject) -> Page:
    """Return the page of a run or a comparison."""
    results = rows(subject)
    run_kind = "Distillation run" if subject.manifest.get("verb") == "distill" else "Training run"
    return Page(
        kind="Comparison" if subject.comparison else run_kind,
        title=subject.name,
        what=what(subject),
        result=result(subject, results),
        further=[*further(subject, results)],
        warnings=list(warnings(subject)),
        tiles=tiles(subject, results),
        table=table(results),
        selection=selection(subject),
        sections=_sections(subject, results),
        differences=differences(subject.runs),
    )


def _sections(subject: Subject, results: Sequence[Result]) -> list[Section]:
    """Return the sections of a run or a comparison; those of which there are no records are empty."""
    top = best_of(results)
    best = None if top is None else top.name
    last = f"Of the {reported_epoch(subject.runs)} epoch's student, on the set that it was evaluated on."
    last += " Finished runs are pooled. Names in grey are off: click them." if subject.comparison else ""
    cost, disputed = costs.cost_table(results), answers.disputed_run(subject, best)
    return [
        Section("cost", "What it costs", "", against_cost(results), [cost] if cost else []),
        Section(
            "class",
            "By class",
            last,
            by_class(subject),
            answers.confused_pairs(subject, best),
            answers.matrices(subject, best),
        ),
        Section("sure", "How sure it is", calibration_note(subject), certainty(subject), calibration_table(subject)),
        Section(
            "disputed",
            "Samples in dispute",
            answers.disputed_note(subject, disputed) if disputed else "",
            samples=answers.samples(subject, disputed) if disputed else (),
        ),
        Section("epoch", "By epoch", curves_note(subject), by_epoch(subject)),
    ]


@cache
def _plotly() -> str:
    return base64.b64encode(PLOTLY.read_bytes()).decode()


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
