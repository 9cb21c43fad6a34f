"""Figures 1 to 4 of the paper of TTM (arXiv:2402.11148), from a study's records alone.

`draw` writes them for print, `panels` returns them for the report, `statements` says what they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from tutelage import records
from tutelage.report.figures import Panel, add_band, add_histogram, empty, inert
from tutelage.studies.paper_figures import pictures
from tutelage.studies.paper_print import paint
from tutelage.studies.paper_records import Readings, read_study
from tutelage.studies.paper_values import Line, Picture, Plot

WORDS = "figures.md"


def draw(folder: Path | str) -> list[Path]:
    """Draw the figures that a study asks for into its folder: ``<kind>.svg``, ``<kind>.png``, and ``figures.md``.

    The kinds are ``entropy``, ``divergence``, ``histogram`` and ``mappings``: the paper's Figures 1 to 4. The same
    records give the same bytes. A figure of which nothing is recorded yet is not drawn; ``figures.md`` says so. Files
    are replaced as a whole or not at all.

    Args:
        folder: of the study, with ``study.json`` in it.

    Returns:
        The paths of the files written; empty where the study asks for no figure.

    Raises:
        FileNotFoundError: the folder holds no study.
        ImportError: matplotlib is not installed.
        ValueError: the study asks for a figure that does not exist, or a record is not JSON.
    """
    folder = Path(folder)
    readings = read_study(folder)
    made = pictures(readings)
    written = []
    for picture in made:
        if picture.plots:
            for ending, content in zip(("svg", "png"), paint(picture), strict=True):
                written.append(folder / f"{picture.kind}.{ending}")
                records.write_bytes(written[-1], content)
    if made:
        written.append(folder / WORDS)
        records.write_bytes(written[-1], _words(readings, made).encode())
    return written


def statements(folder: Path | str) -> list[str]:
    """Say what each figure of a study shows, and whether it is what the paper shows.

    Raises:
        FileNotFoundError: the folder holds no study.
        ValueError: the study asks for a figure that does not exist, or a record is not JSON.
    """
    return [said for picture in pictures(read_study(Path(folder))) for said in picture.statements]


def panels(folder: Path | str) -> list[Panel]:
    """Return a study's figures for the report, one for each pair of networks.

    Raises:
        FileNotFoundError: the folder holds no study.
        ValueError: the study asks for a figure that does not exist, or a record is not JSON.
    """
    return panels_of(pictures(read_study(Path(folder))))


def panels_of(drawn: Sequence[Picture]) -> list[Panel]:
    """Return figures for the report, one for each of their panels."""
    return [_panel(picture, plot, at) for picture in drawn for at, plot in enumerate(picture.plots)]


def _words(readings: Readings, made: Sequence[Picture]) -> str:
    """Write the statements as Markdown."""
    parts = [f"# Figures: {_plain(readings.title)}"]
    for picture in made:
        parts.append(f"## {picture.title} (Figure {picture.number} of arXiv:2402.11148)")
        if picture.plots:
            parts += [f"![{picture.title}]({picture.kind}.png)", _plain(picture.caption)]
        parts.append("\n".join(f"- {_plain(said)}" for said in picture.statements))
        if picture.pending:
            parts.append("Runs that are in no mean:")
            parts.append("\n".join(f"- {_plain(one)}" for one in picture.pending))
    if readings.departures:
        parts.append("## Run otherwise than published")
        parts.append("\n".join(f"- {_plain(one)}" for one in readings.departures))
    return "\n\n".join(parts) + "\n"


def _plain(words: str) -> str:
    """Keep a name from being read as Markdown or HTML."""
    flat = " ".join(words.split())
    return "".join(f"\\{sign}" if sign in "\\`*_[]<|" else sign for sign in flat)


def _panel(picture: Picture, plot: Plot, at: int) -> Panel:
    figure = empty(f"{picture.title}: {inert(plot.name)}", picture.across, picture.up)
    for pile in plot.piles:
        name = inert(f"{pile.label}: mean {pile.mean:.2f} (n = {pile.n})", 60)
        add_histogram(figure, pile.edges, pile.density, pile.look, name=name, hovertemplate="%{y:.3f}")
    for line in plot.lines:
        _add_line(figure, line, points=picture.kind != "mappings")
    figure.update_layout(showlegend=True)
    caption = picture.caption if plot.said in picture.caption else f"{plot.said} {picture.caption}"
    return Panel(f"paper-{picture.kind}-{at}", caption, figure)


def _add_line(figure: go.Figure, line: Line, *, points: bool) -> None:
    group = line.label
    if line.spread is not None:
        low = [y - spread for y, spread in zip(line.y, line.spread, strict=True)]
        high = [y + spread for y, spread in zip(line.y, line.spread, strict=True)]
        add_band(figure, line.x, low, high, line.look, group)
    if line.x:
        figure.add_scatter(
            x=list(line.x),
            y=list(line.y),
            mode="lines+markers" if points else "lines",
            name=inert(f"{line.label} (n = {line.n})" if points else line.label),
            line=line.look.line(),
            marker={**line.look.points(6), "maxdisplayed": 10},
            legendgroup=group,
            hovertemplate="%{y:.4f}",
        )
    for found in line.loose:
        figure.add_scatter(
            x=list(found),
            y=list(found.values()),
            mode="lines+markers",
            name=inert(f"{line.label} (not finished)"),
            line=line.look.line(1),
            marker={"color": line.look.colour, "symbol": "x", "size": [0] * (len(found) - 1) + [7]},
            legendgroup=group,
            showlegend=not line.x,
            hovertemplate="%{y:.4f}",
        )
