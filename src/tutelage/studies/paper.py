"""Figures 1 to 4 of the paper of TTM (arXiv:2402.11148), from a study's records alone.

`draw` writes them for print, `panels` gives them to the report, `statements` says what they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tutelage import records
from tutelage.errors import printable
from tutelage.report.figures import Panel, add_band, add_histogram, add_line, empty, inert
from tutelage.studies.paper_figures import pictures
from tutelage.studies.paper_print import paint
from tutelage.studies.paper_records import Readings, read_study
from tutelage.studies.paper_values import Picture, Plot

WORDS = "figures.md"


def draw(folder: Path | str) -> list[Path]:
    """Draw the figures that a study requests into its folder: ``<kind>.svg``, ``<kind>.png``, and ``figures.md``.

    The kinds are ``entropy``, ``divergence``, ``histogram`` and ``mappings``: the paper's Figures 1 to 4. The same
    records give the same bytes. A figure without records so far is not drawn; ``figures.md`` says so. Files are
    replaced atomically.

    Returns the paths of the files written; none if the study requests no figure.

    Raises:
        FileNotFoundError: if the folder holds no study.
        ImportError: if matplotlib is not installed.
        ValueError: if the study requests a figure that does not exist, or a record is not JSON.
    """
    folder = Path(folder)
    readings = read_study(folder)
    drawn = pictures(readings)
    files = {
        f"{picture.kind}.{ending}": content
        for picture in drawn
        if picture.plots
        for ending, content in zip(("svg", "png"), paint(picture), strict=True)
    }
    if drawn:
        files[WORDS] = _words(readings, drawn).encode()
    for name, content in files.items():
        records.write_bytes(folder / name, content)
    return [folder / name for name in files]


def statements(drawn: Sequence[Picture]) -> list[str]:
    """Say what each figure shows, and whether it agrees with the paper."""
    return [statement for picture in drawn for statement in picture.statements]


def panels(drawn: Sequence[Picture]) -> list[Panel]:
    """Return figures for the report, one for each of their panels."""
    return [_panel(picture, plot, at) for picture in drawn for at, plot in enumerate(picture.plots)]


def _words(readings: Readings, drawn: Sequence[Picture]) -> str:
    """Write the statements as Markdown."""
    parts = [f"# Figures: {_plain(readings.title)}"]
    for picture in drawn:
        parts.append(f"## {picture.title} (Figure {picture.number} of arXiv:2402.11148)")
        if picture.plots:
            parts += [f"![{picture.title}]({picture.kind}.png)", _plain(picture.caption)]
        parts.append(_list(picture.statements))
        if picture.pending:
            parts += ["Runs that are in no mean:", _list(picture.pending)]
    if readings.departures:
        parts += ["## Run otherwise than published", _list(readings.departures)]
    return "\n\n".join(parts) + "\n"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _plain(words: str) -> str:
    """Keep a name from being interpreted as Markdown or HTML."""
    flat = printable(" ".join(words.split()))
    return "".join(f"\\{sign}" if sign in "\\`*_[]<|" else sign for sign in flat)


def _panel(picture: Picture, plot: Plot, at: int) -> Panel:
    figure = empty(f"{picture.title}: {inert(plot.name)}", picture.across, picture.up)
    for pile in plot.piles:
        name = inert(f"{pile.label}: mean {pile.mean:.2f} (n = {pile.n})", 60)
        add_histogram(figure, pile.edges, pile.density, pile.look, name=name, hovertemplate="%{y:.3f}")
    by_epoch = picture.kind != "mappings"
    for line in plot.lines:
        look, group = line.look, line.label
        if line.band:
            add_band(figure, line.x, *line.band, look, group)
        if line.x:
            name = inert(f"{line.label} (n = {line.n})" if by_epoch else line.label)
            mode = "lines+markers" if by_epoch else "lines"
            add_line(figure, line.x, line.y, name, look, mode=mode, legendgroup=group)
        for curve in line.loose:
            add_line(
                figure,
                list(curve),
                list(curve.values()),
                inert(f"{line.label} (not finished)"),
                look,
                width=1,
                marker={"color": look.colour, "symbol": "x", "size": [0] * (len(curve) - 1) + [7]},
                legendgroup=group,
                showlegend=not line.x,
            )
    figure.update_layout(showlegend=True)
    caption = picture.caption if plot.statement in picture.caption else f"{plot.statement} {picture.caption}"
    return Panel(f"paper-{picture.kind}-{at}", caption, figure)
