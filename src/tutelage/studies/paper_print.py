"""The paper's figures for print, drawn by matplotlib as SVG and PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tutelage.report.figures import Style
from tutelage.studies.paper_values import REFERENCE, Line, Picture, Pile, Plot
from tutelage.studies.print_style import GREY, INK, SIZES, encode, style

if TYPE_CHECKING:
    from types import ModuleType

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
WIDTHS = {1: 5.2, 2: 3.4, 3: 2.75}
"""Of a panel by the number of columns, inches."""
LEFT, RIGHT, GAP = 0.68, 0.16, 0.62
TOP, HEADING, FOOT = 0.36, 0.27, 0.5
LEGEND_LINE, CAPTION_LINE, SAMPLE = 0.2, 0.155, 0.52
PILE, PILE_HEADING = 0.8, 0.34
DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (5, 2)),
    "dot": (0, (1, 1.4)),
    "dashdot": (0, (5, 1.6, 1, 1.6)),
    "longdash": (0, (9, 2.4)),
    "longdashdot": (0, (9, 2, 1, 2)),
}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "cross": "P", "star": "*"}
"""Plotly's names of `tutelage.report.figures` in matplotlib's words."""


@dataclass(frozen=True)
class Sheet:
    """A figure under construction; places are inches from the upper left corner."""

    plt: ModuleType
    figure: Figure
    width: float
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add a panel."""
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def write(self, left: float, top: float, words: str, size: str, **options: Any) -> None:
        """Add a text whose upper left corner is there."""
        options = {"ha": "left", "va": "top", **options}
        self.figure.text(left / self.width, 1 - top / self.height, words, fontsize=SIZES[size], **options)


def paint(picture: Picture) -> tuple[bytes, bytes]:
    """Return a figure as SVG and as PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with style() as plt:
        figure = _figure(plt, picture)
        return encode(figure, "svg"), encode(figure, "png")


def _figure(plt: ModuleType, picture: Picture) -> Figure:
    columns = 2 if len(picture.plots) == 4 else min(COLUMNS, len(picture.plots))
    across = WIDTHS[columns]
    width = LEFT + columns * across + (columns - 1) * GAP + RIGHT
    piles = max((len(plot.piles) for plot in picture.plots), default=0)
    tall = piles * (PILE + PILE_HEADING) if piles else (2.9 if columns < COLUMNS else 2.2)
    cell = HEADING + tall + FOOT
    rows = math.ceil(len(picture.plots) / columns)
    measure = _Measure(plt)
    shared = _keys(picture) if picture.kind in ("entropy", "divergence") else []
    legend = measure.rows([label for label, _ in shared], width - LEFT - RIGHT)
    caption = measure.wrapped(picture.caption, width - 2 * RIGHT)
    body = TOP + rows * cell
    height = body + len(legend) * LEGEND_LINE + 0.1 + len(caption) * CAPTION_LINE + 0.12
    figure = plt.figure.Figure(figsize=(width, height), facecolor="white")
    sheet = Sheet(plt, figure, width, height)
    sheet.write(RIGHT, 0.12, picture.title, "title", fontweight="bold")
    for at, plot in enumerate(picture.plots):
        row, column = divmod(at, columns)
        left, top = LEFT + column * (across + GAP), TOP + row * cell
        heading = measure.shortened(plot.name, across, "heading")
        sheet.write(left, top + 0.02, heading, "heading")
        if plot.piles:
            _piles(sheet, picture, plot, left, top + HEADING - PILE_HEADING / 3, across, measure, first=column == 0)
        else:
            axes = sheet.axes(left, top + HEADING, across, tall)
            axes.set_xlabel(picture.across)
            if column == 0:
                axes.set_ylabel(picture.up)
            _functions(axes, plot, direct=at == 1) if picture.kind == "mappings" else _curves(plt, axes, plot)
    _legend(sheet, legend, dict(shared), body, measure)
    for at, words in enumerate(caption):
        sheet.write(
            RIGHT, body + len(legend) * LEGEND_LINE + 0.1 + at * CAPTION_LINE, words, "caption", color="#444444"
        )
    return figure


class _Measure:
    """How wide words are, inches."""

    def __init__(self, plt: ModuleType) -> None:
        self.path = plt.textpath.TextPath
        self.known: dict[tuple[str, str], float] = {}

    def width(self, words: str, size: str) -> float:
        """Of one line."""
        key = (words, size)
        if key not in self.known:
            self.known[key] = (
                self.path((0, 0), words, size=SIZES[size]).get_extents().width / 72 if words.strip() else 0
            )
        return self.known[key]

    def shortened(self, words: str, room: float, size: str) -> str:
        """Cut words off where they do not fit."""
        if self.width(words, size) <= room:
            return words
        fits, over = 0, len(words)
        while over - fits > 1:
            half = (fits + over) // 2
            fits, over = (half, over) if self.width(f"{words[:half].rstrip()}…", size) <= room else (fits, half)
        return f"{words[:fits].rstrip()}…"

    def wrapped(self, words: str, room: float) -> list[str]:
        """Break the caption into lines."""
        lines: list[str] = []
        blank = self.width("n n", "caption") - 2 * self.width("n", "caption")
        used = 0.0
        for word in words.split():
            shown = self.shortened(word, room, "caption")
            wide = self.width(shown, "caption")
            if lines and used + blank + wide <= room:
                lines[-1] += f" {shown}"
                used += blank + wide
            else:
                lines.append(shown)
                used = wide
        return lines

    def rows(self, labels: Sequence[str], room: float) -> list[list[str]]:
        """Break a legend into rows."""
        rows: list[list[str]] = []
        used = 0.0
        for label in labels:
            wide = self.entry(label)
            if rows and used + wide <= room:
                rows[-1].append(label)
                used += wide
            else:
                rows.append([label])
                used = wide
        return rows

    def entry(self, label: str) -> float:
        """Of a legend's entry with its sample of the line."""
        return SAMPLE + 0.07 + self.width(label, "legend") + 0.24


Key = tuple[str, Style | None]


def _keys(picture: Picture) -> list[Key]:
    """Return the legend's entries: each method once, and what an unfinished run looks like."""
    lines = [line for plot in picture.plots for line in plot.lines]
    found: list[Key] = list({line.label: line.look for line in lines}.items())
    return [*found, ("not finished", None)] if any(line.loose for line in lines) else found


def _legend(
    sheet: Sheet, rows: Sequence[Sequence[str]], looks: dict[str, Style | None], top: float, measure: _Measure
) -> None:
    room = sheet.width - LEFT - RIGHT - SAMPLE - 0.07
    for at, labels in enumerate(rows):
        left, middle = LEFT, top + (at + 0.35) * LEGEND_LINE
        for label in labels:
            axes = sheet.axes(left, middle - 0.08, SAMPLE, 0.16)
            axes.set_axis_off()
            axes.set_xlim(0, 1)
            axes.set_ylim(-1, 1)
            look = looks[label]
            if look is None:
                axes.plot([0, 0.9], [0, 0], color=GREY, linewidth=0.8)
                axes.plot([0.9], [0], color=GREY, marker="x", markersize=5, clip_on=False)
            else:
                axes.plot([0, 1], [0, 0], color=look.colour, linestyle=DASHES[look.dash])
                axes.plot([0.5], [0], **_marker(look))
            shown = measure.shortened(label, room, "legend")
            sheet.write(left + SAMPLE + 0.07, middle, shown, "legend", va="center_baseline")
            left += measure.entry(label)


def _marker(look: Style) -> dict[str, Any]:
    return {
        "color": look.colour,
        "marker": MARKERS[look.marker],
        "markersize": 5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def _curves(plt: ModuleType, axes: Axes, plot: Plot) -> None:
    for at, line in enumerate(plot.lines):
        if line.x:
            _curve(axes, line, at)
        for found in line.loose:
            x, y = list(found), list(found.values())
            axes.plot(x, y, color=line.look.colour, linewidth=0.8, linestyle=DASHES[line.look.dash], alpha=0.8)
            axes.plot(x[-1:], y[-1:], color=line.look.colour, marker="x", markersize=5, alpha=0.8)
    longest = max(max([*line.x, *(x for found in line.loose for x in found)]) for line in plot.lines)
    beside = 0.015 * (longest - 1) or 1
    axes.set_xlim(1 - beside, longest + beside)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(plt.ticker.MaxNLocator(6, integer=True))


def _curve(axes: Axes, line: Line, at: int) -> None:
    look = line.look
    if line.spread is not None:
        low = [y - spread for y, spread in zip(line.y, line.spread, strict=True)]
        high = [y + spread for y, spread in zip(line.y, line.spread, strict=True)]
        axes.fill_between(line.x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    axes.plot(line.x, line.y, color=look.colour, linestyle=DASHES[look.dash])
    # About eight marks a curve, not above each other where curves run together.
    step = max(1, len(line.x) // 8)
    marked = slice(min((1 + 2 * at) * step // 7 % step, len(line.x) - 1), None, step)
    axes.plot(line.x[marked], line.y[marked], linestyle="none", **_marker(look))


def _functions(axes: Axes, plot: Plot, *, direct: bool) -> None:
    for line in plot.lines:
        width = 1.2 if line.look == REFERENCE else 1.7
        axes.plot(
            line.x, line.y, color=line.look.colour, linestyle=DASHES[line.look.dash], linewidth=width, label=line.label
        )
        if direct:
            # On the diagonal from (0, 1) to (1, 0) the powers are furthest apart.
            x, y = min(zip(line.x, line.y, strict=True), key=lambda point: abs(point[0] + point[1] - 1))
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            axes.text(x, y, line.label, fontsize=SIZES["tick"], ha="center", va="center", bbox=box)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.005)
    axes.set_aspect("equal", adjustable="box", anchor="W")
    if not direct:
        axes.legend(
            loc="lower right", fontsize=SIZES["legend"], frameon=True, edgecolor="none", framealpha=1, borderpad=0.2
        )


def _piles(
    sheet: Sheet, picture: Picture, plot: Plot, left: float, top: float, width: float, measure: _Measure, *, first: bool
) -> None:
    reach = _reach(plot.piles)
    for at, pile in enumerate(plot.piles):
        above = top + at * (PILE + PILE_HEADING)
        words = measure.shortened(f"{pile.label}: mean {pile.mean:.2f} nats, n = {pile.n}", width, "tick")
        sheet.write(left, above + PILE_HEADING - 0.06, words, "tick", va="baseline")
        axes = sheet.axes(left, above + PILE_HEADING, width, PILE)
        axes.stairs(pile.density, pile.edges, fill=True, color=pile.look.colour, alpha=0.3)
        axes.stairs(pile.density, pile.edges, color=pile.look.colour, linewidth=1.1)
        if plot.level is not None:
            axes.axvline(plot.level, color=INK, linewidth=1.0, linestyle=(0, (4, 2)))
        axes.axvline(pile.mean, color=pile.look.colour, linewidth=1.6)
        axes.set_xlim(pile.edges[0], reach)
        axes.set_ylim(0, 1.08 * max(pile.density))
        axes.yaxis.set_major_locator(sheet.plt.ticker.MaxNLocator(3))
        axes.tick_params(labelbottom=at == len(plot.piles) - 1)
        if at == len(plot.piles) - 1:
            axes.set_xlabel(picture.across)
    if first:
        middle = top + len(plot.piles) * (PILE + PILE_HEADING) / 2
        sheet.write(0.12, middle, picture.up, "axis", rotation=90, va="center")


def _reach(piles: Sequence[Pile]) -> float:
    """Return the edge below which all but a thousandth of every pile lies: the rest is empty paper."""
    ends = []
    for pile in piles:
        seen = 0.0
        for low, high, density in zip(pile.edges, pile.edges[1:], pile.density, strict=False):
            seen += density * (high - low)
            if seen >= 0.999:
                ends.append(high)
                break
    return max(ends, default=piles[0].edges[-1])
