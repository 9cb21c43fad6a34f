"""The paper's figures for print, drawn by matplotlib as SVG and PNG."""

from __future__ import annotations

import itertools
import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.report.figures import Style, reach
from tutelage.studies.paper_values import REFERENCE, Line, Picture, Plot
from tutelage.studies.print_style import GREY, INK, SIZES, encode, style

if TYPE_CHECKING:
    from types import ModuleType

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLUMNS = 3
WIDTHS = {1: 6.0, 2: 4.1, 3: 3.4}
"""Width of a panel by the number of columns, inches."""
PILE = 1.15
"""Height of a histogram, inches."""
LEFT, RIGHT, TOP, BOTTOM = 0.65, 0.15, 0.3, 0.5
"""Margins of a panel, inches. Fixed, as a computed layout differs in the last digit from run to run."""
LETTER = 0.58
"""Average width of a letter, as a share of its size."""
DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (5, 2)),
    "dot": (0, (1, 1.4)),
    "dashdot": (0, (5, 1.6, 1, 1.6)),
    "longdash": (0, (9, 2.4)),
    "longdashdot": (0, (9, 2, 1, 2)),
}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "cross": "P", "star": "*"}
"""Matplotlib's names for the plotly markers of `tutelage.report.figures`."""


def paint(picture: Picture) -> tuple[bytes, bytes]:
    """Return a figure as SVG and as PNG."""
    with style() as plt:
        figure = _figure(plt, picture)
        return encode(figure, "svg"), encode(figure, "png")


def _figure(plt: ModuleType, picture: Picture) -> Figure:
    """Lay a figure out: its panels row by row, then the legend of all, then the caption."""
    columns = 2 if len(picture.plots) == 4 else min(COLUMNS, len(picture.plots))
    rows = math.ceil(len(picture.plots) / columns)
    width = columns * WIDTHS[columns]
    piles = max(len(plot.piles) for plot in picture.plots)
    tall = 1.1 + piles * PILE if piles else (3.6 if columns < COLUMNS else 2.9)
    looks = _looks(picture) if picture.kind in ("entropy", "divergence") else {}
    widest = max(map(len, looks), default=0) * LETTER * SIZES["legend"] / 72
    entries = max(1, int(width / (0.8 + widest)))
    caption = textwrap.wrap(picture.caption, round(width * 72 / (LETTER * SIZES["caption"])))
    heights = [0.35, *[tall] * rows, 0.22 * math.ceil(len(looks) / entries) + 0.05, 0.16 * len(caption) + 0.1]
    figure = plt.figure.Figure(figsize=(width, sum(heights)), facecolor="white")
    title, *panels, legend, below = figure.subfigures(len(heights), 1, height_ratios=heights)
    title.text(0.1 / width, 0.4, picture.title, fontsize=SIZES["title"], fontweight="bold", va="center")
    for at, plot in enumerate(picture.plots):
        row, column = divmod(at, columns)
        panel = panels[row] if columns == 1 else panels[row].subfigures(1, columns)[column]
        left, right = LEFT / WIDTHS[columns], 1 - RIGHT / WIDTHS[columns]
        top = TOP + 0.25 if piles else TOP
        panel.subplots_adjust(left, BOTTOM / tall, right, 1 - top / tall, hspace=0.35)
        name = _shortened(plot.name, WIDTHS[columns] - LEFT - RIGHT, "heading")
        panel.text(left, 1 - 0.15 / tall, name, fontsize=SIZES["heading"], va="center")
        panel.supxlabel(picture.across, fontsize=SIZES["axis"], x=(left + right) / 2, y=0.12 / tall)
        panel.supylabel("" if column else picture.up, fontsize=SIZES["axis"], y=(1 + (BOTTOM - top) / tall) / 2)
        if plot.piles:
            _piles(plt, panel, plot, WIDTHS[columns] - LEFT - RIGHT)
        elif picture.kind == "mappings":
            _functions(panel.subplots(), plot, direct=at == 1)
        else:
            _curves(plt, panel.subplots(), plot)
    if looks:
        handles = [plt.lines.Line2D([], [], **_key(look)) for look in looks.values()]
        labels = [_shortened(label, width - 1, "legend") for label in looks]
        legend.legend(
            handles, labels, loc="center left", ncols=entries, frameon=False, handlelength=3, fontsize=SIZES["legend"]
        )
    for at, line in enumerate(caption):
        position = {"x": 0.1 / width, "y": 1 - 0.16 * at / heights[-1], "va": "top"}
        below.text(s=line, fontsize=SIZES["caption"], color="#444444", **position)
    return figure


def _shortened(name: str, inches: float, size: str) -> str:
    """Cut a name off where a line of this many inches is full; letters of other scripts are up to twice as wide."""
    most = int(inches * 72 / (LETTER * SIZES[size]))
    widths = itertools.accumulate(1 if ord(letter) < 0x1100 else 2 for letter in name)
    fits = sum(width <= most for width in widths)
    return name if fits == len(name) else f"{name[: fits - 1].rstrip()}…"


def _looks(picture: Picture) -> dict[str, Style | None]:
    """Return the legend's entries: each method once, and the look of an unfinished run."""
    lines = [line for plot in picture.plots for line in plot.lines]
    looks: dict[str, Style | None] = {line.label: line.look for line in lines}
    return looks | {"not finished": None} if any(line.loose for line in lines) else looks


def _key(look: Style | None) -> dict[str, Any]:
    if look is None:
        return {"color": GREY, "linewidth": 0.8, "marker": "x", "markersize": 5}
    return {"linestyle": DASHES[look.dash], **_marker(look)}


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
        for curve in line.loose:
            x, y = list(curve), list(curve.values())
            axes.plot(x, y, color=line.look.colour, linewidth=0.8, linestyle=DASHES[line.look.dash], alpha=0.8)
            axes.plot(x[-1:], y[-1:], color=line.look.colour, marker="x", markersize=5, alpha=0.8)
    longest = max(max([*line.x, *(x for curve in line.loose for x in curve)]) for line in plot.lines)
    beside = 0.015 * (longest - 1) or 1
    axes.set_xlim(1 - beside, longest + beside)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(plt.ticker.MaxNLocator(6, integer=True))


def _curve(axes: Axes, line: Line, at: int) -> None:
    look = line.look
    if line.band:
        axes.fill_between(line.x, *line.band, color=look.colour, alpha=0.18, linewidth=0)
    axes.plot(line.x, line.y, color=look.colour, linestyle=DASHES[look.dash])
    # About eight markers per curve, offset where curves run together.
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


def _piles(plt: ModuleType, panel: SubFigure, plot: Plot, width: float) -> None:
    every = panel.subplots(len(plot.piles), sharex=True, squeeze=False)[:, 0]
    for axes, pile in zip(every, plot.piles, strict=True):
        words = f"{pile.label}: mean {pile.mean:.2f} nats, n = {pile.n}"
        axes.set_title(_shortened(words, width, "tick"), fontsize=SIZES["tick"], loc="left")
        axes.stairs(pile.density, pile.edges, fill=True, color=pile.look.colour, alpha=0.3)
        axes.stairs(pile.density, pile.edges, color=pile.look.colour, linewidth=1.1)
        if plot.level is not None:
            axes.axvline(plot.level, color=INK, linewidth=1.0, linestyle=(0, (4, 2)))
        axes.axvline(pile.mean, color=pile.look.colour, linewidth=1.6)
        axes.set_ylim(0, 1.08 * max(pile.density))
        axes.yaxis.set_major_locator(plt.ticker.MaxNLocator(3))
    ends = [reach(pile.edges, (pile.density * np.diff(pile.edges)).tolist()) for pile in plot.piles]
    every[0].set_xlim(plot.piles[0].edges[0], max(ends))
