"""What a run's or a comparison's folder says of itself in a notebook: a block of HTML, and a figure.

Folders may be of unfinished, damaged or lost runs: what is missing is said, and nothing but `figure` raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from tutelage import records
from tutelage.errors import one_line, printable
from tutelage.report import libraries
from tutelage.report.costs import interval
from tutelage.report.reading import Points, Run, Subject, number, points, read, section, text
from tutelage.report.results import Result, beside, rows, table
from tutelage.report.summary import warnings, what
from tutelage.report.table import MISSING, Row, Table, fixed, judged, percent, si

if TYPE_CHECKING:
    import plotly.graph_objects as go

SETS = ("train", "validation", "test")
COLOURS = {"train": "#888888", "validation": "#e08a1e", "test": "#3b8ed0"}
"""Seen on white and on black."""
WIDTH, HEIGHT = 240, 80


def run_html(folder: Path) -> str:
    """Return a run as HTML: what it is, its evaluation, its curves, where its files are."""
    return _html(folder, _of_run)


def comparison_html(folder: Path) -> str:
    """Return a comparison as HTML: what it is, its table, where its files are."""
    return _html(folder, _of_comparison)


def figure(folder: Path) -> go.Figure:
    """Return the curves of loss and measure by epoch, side by side, as a figure of plotly.

    Raises:
        FileNotFoundError: if the folder holds no records.
        ImportError: if the extra ``report`` is not installed.
    """
    libraries.require("plot")
    from plotly.subplots import make_subplots

    from tutelage.report.curves import by_epoch
    from tutelage.report.figures import empty, inert
    from tutelage.report.svg import ShownFigure

    subject = read(folder)
    panels = {panel.key: panel.figure for panel in by_epoch(subject)}
    measured = [f"{subject.measure.key}-{name}" for name in reversed(SETS)] if subject.comparison else []
    measure = next((key for key in (subject.measure.key, *measured) if key in panels), "")
    chosen = [panels[key] for key in ("loss", measure) if key in panels]
    if not chosen:
        return ShownFigure(empty(f"{inert(subject.name)}: no epoch is recorded", "Epoch", ""))
    joint = make_subplots(cols=len(chosen), subplot_titles=[each.layout.title.text for each in chosen])
    style = empty(inert(subject.name), "", "").layout
    joint.update_layout({key: style[key] for key in style if not key.startswith(("xaxis", "yaxis"))})
    joint.update_layout(margin={"t": 72})
    named = set[str]()
    for at, each in enumerate(chosen, 1):
        for trace in each.data:
            shown = trace.showlegend is not False and trace.name not in named
            named.add(trace.name)
            joint.add_trace(trace.update(legendgroup=trace.name, showlegend=shown), row=1, col=at)
        for axis in ("xaxis", "yaxis"):
            joint.layout[f"{axis}{at if at > 1 else ''}"].update(each.layout[axis].to_plotly_json())
    joint.update_layout(showlegend=len(named) > 1)
    return ShownFigure(joint)


def _html(folder: Path, parts: Callable[[Subject], Iterator[Markup]]) -> str:
    try:
        subject = read(folder)
        return str(Markup("<div>{}</div>").format(Markup("").join(map(_DIV.format, parts(subject)))))
    except Exception as error:  # noqa: BLE001  a cell must not fail because a value cannot be shown whole
        where, why = printable(str(folder)), printable(one_line(error))
        return str(Markup("<div><code>{}</code>: {}</div>").format(where, why))


_DIV = Markup("<div>{}</div>")


def _of_run(subject: Subject) -> Iterator[Markup]:
    run = subject.runs[0]
    yield Markup("<b>{}</b>, {}").format(printable(subject.name), printable(run.status))
    yield escape(printable(what(subject)))
    if sizes := ", ".join(_sizes(run)):
        yield escape(sizes)
    if evaluation := _evaluation(rows(subject)):
        yield evaluation.html("evaluation")
    curves = [("loss", 1.0, {"train": points(run, "train", "loss")})]
    by = subject.measure
    curves.append((by.heading(by.name), by.scale, {name: points(run, name, by.key) for name in SETS}))
    drawn = [_svg(title, scale, by_set) for title, scale, by_set in curves if any(by_set.values())]
    if drawn:
        yield Markup("").join(drawn)
    yield from _ending(subject)


def _of_comparison(subject: Subject) -> Iterator[Markup]:
    yield Markup("<b>{}</b>").format(printable(subject.name))
    yield escape(printable(what(subject)))
    yield table(rows(subject)).html("results")
    yield from _ending(subject)


def _ending(subject: Subject) -> Iterator[Markup]:
    """Yield what is missing or doubtful, and where the files are."""
    yield from (escape(printable(each)) for each in warnings(subject))
    folder, report = subject.folder, subject.folder / records.REPORT
    where = Markup("folder <code>{}</code>").format(printable(str(folder)))
    there = Markup("report <code>{}</code>").format(printable(str(report))) if report.exists() else "no report yet"
    yield Markup("{}, {}").format(where, there)


def _sizes(run: Run) -> Iterator[str]:
    for who in ("student", "teacher"):
        described = section(run.manifest, who)
        size = number(described.get("parameters"))
        if size is not None and size >= 0:
            name = text(described.get("name")) or who
            yield printable(f"{who} {name} with {si(size)} parameters")


def _evaluation(found: list[Result]) -> Table | None:
    """Return the table of what a run's networks were judged by; columns without a value are left out."""
    known = [row for row in found if row.value is not None]
    if not known:
        return None
    by = known[0].measure
    columns = {
        "Network": [f"{row.name} ({row.role})" if row.role != row.name else row.name for row in known],
        f"{by.heading(by.title)}": [judged(by, row.value) for row in known],
        "95 % interval": [interval(row) for row in known],
        **{heading: [fixed(row.of_task.get(str(by.beside))) for row in known] for heading in beside(by)},
        "Agreement (%)": [percent(row.agreement) for row in known],
        "Entropy (nats)": [fixed(row.entropy) for row in known],
        "ECE (%)": [percent(row.ece) for row in known],
    }
    kept = {heading: cells for heading, cells in columns.items() if any(cell != MISSING for cell in cells)}
    lines = [Row(cells=cells) for cells in zip(*kept.values(), strict=True)]
    return Table(headings=list(kept), rows=lines)


def _svg(title: str, scale: float, curves: dict[str, Points]) -> Markup:
    """Draw curves by epoch, each with its last value in words."""
    values = [scale * value for curve in curves.values() for value in curve.values()]
    low, high, last = min(values), max(values), max(epoch for curve in curves.values() for epoch in curve)
    lines, words, said = [], [], []
    for name, curve in curves.items():
        if not curve:
            continue
        # A lone epoch, or a level, is in the middle.
        across = {epoch: (epoch - 1) / (last - 1) if last > 1 else 0.5 for epoch in curve}
        up = {epoch: (scale * value - low) / (high - low) if high > low else 0.5 for epoch, value in curve.items()}
        places = [(4 + (WIDTH - 8) * across[k], 4 + (HEIGHT - 8) * (1 - up[k])) for k in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>').format(*places[-1], COLOURS[name])
        curve_of = Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="2"/>').format
        lines.append(curve_of(path, COLOURS[name]) + dot)
        last_value = f"{name} {scale * list(curve.values())[-1]:.4g}"
        said.append(last_value)
        words.append(Markup('<span style="color:{}">&#9632;</span> {}').format(COLOURS[name], last_value))
    legend = Markup("{}: {}").format(title, Markup(", ").join(words))
    return Markup(
        '<div style="display:inline-block;margin:0.5em 1em 0.5em 0"><svg width="{}" height="{}" role="img" '
        'aria-label="{}">{}</svg><div style="font-size:smaller">{}</div></div>'
    ).format(WIDTH, HEIGHT, f"{title} by epoch: {', '.join(said)}", Markup("").join(lines), legend)
