"""Shared parts of all plotly figures: colours, dashes and markers, escaped names, and the layout.

Every colour has its own dash and marker, so that figures are readable in greyscale and for the colour-blind.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tutelage.errors import printable

if TYPE_CHECKING:
    import plotly.graph_objects as go

    Figure: TypeAlias = go.Figure

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Palette of Okabe and Ito; black is the teacher's, and yellow is left out because it vanishes on white."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")


@dataclass(frozen=True)
class Panel:
    """One figure with its caption."""

    key: str  # name in the page
    caption: str  # explanation of what is shown and how to read it
    figure: go.Figure  # figure for plotly, including its title


@dataclass(frozen=True)
class Style:
    """The look that distinguishes one trace from the others."""

    colour: str
    dash: str
    marker: str

    def line(self, width: float = 2) -> dict[str, Any]:
        """Return it as plotly's ``line``."""
        return {"color": self.colour, "dash": self.dash, "width": width}

    def points(self, size: float = 7) -> dict[str, Any]:
        """Return it as plotly's ``marker``."""
        return {"color": self.colour, "symbol": self.marker, "size": size}

    def veil(self, alpha: float) -> str:
        """Return its colour, translucent."""
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{alpha})"


TEACHER = Style("#000000", "dot", "star-diamond")


def style(index: int) -> Style:
    """Return the style of the trace with an index; the first 42 differ in more than colour."""
    return Style(COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)])


def inert(name: object, width: int = 40) -> str:
    """Shorten and escape a name: plotly reads tags and links in its labels."""
    plain = printable(" ".join(str(name).split()))
    return html.escape(plain if len(plain) <= width else f"{plain[: width - 1].rstrip()}…")


def add_line(
    figure: go.Figure,
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    look: Style,
    *,
    width: float = 2,
    digits: str = ".4f",
    **options: Any,
) -> None:
    """Draw a curve; ``options`` are plotly's and override those here."""
    marker = {**look.points(6 if width > 1 else 4), "maxdisplayed": 10}
    standard = {"mode": "lines+markers", "name": name, "line": look.line(width), "marker": marker}
    figure.add_scatter(x=list(x), y=list(y), hovertemplate=f"%{{y:{digits}}}", **{**standard, **options})


def add_band(
    figure: go.Figure, x: Sequence[float], low: Sequence[float], high: Sequence[float], look: Style, group: str
) -> None:
    """Fill the space between two curves; it is shown and hidden with the line of the same group."""
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=look.veil(0.16),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=group,
    )


def add_histogram(
    figure: go.Figure, edges: Sequence[float], heights: Sequence[float], look: Style, **options: Any
) -> None:
    """Draw the outline of a histogram, lightly filled."""
    figure.add_scatter(
        x=list(edges),
        y=[*heights, heights[-1]],
        mode="lines",
        line={**look.line(), "shape": "hv"},
        fill="tozeroy",
        fillcolor=look.veil(0.08),
        **options,
    )


def reach(edges: Sequence[float], counts: Sequence[float]) -> float:
    """Return the edge below which all but a thousandth of a histogram lies; the rest would be empty."""
    inside = itertools.accumulate(counts)
    total = sum(counts)
    return next((edge for edge, seen in zip(edges[1:], inside, strict=True) if seen >= 0.999 * total), edges[-1])


def empty(title: str, across: str, up: str) -> go.Figure:
    """Return an empty figure in the common style: white, thin grid, the system's font."""
    import plotly.graph_objects as go  # here alone: looks and names are needed without it

    return go.Figure(
        layout={
            "template": "none",
            "title": {"text": title, "x": 0, "xref": "container", "font": {"size": 15}, "y": 0.98, "yanchor": "top"},
            "font": {"family": FONT, "size": 12, "color": "#1d1d1f"},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "height": 360,
            "margin": {"l": 56, "r": 16, "t": 44, "b": 48},
            "hovermode": "x unified",
            "hoverlabel": {"namelength": -1},
            "legend": {"orientation": "h", "x": 0, "y": -0.26, "yanchor": "top", "font": {"size": 11.5}},
            "xaxis": _axis(across),
            "yaxis": _axis(up),
        }
    )


def _axis(name: str) -> dict[str, Any]:
    return {
        "title": {"text": name, "standoff": 8, "font": {"size": 12.5}},
        "gridcolor": "#e8e8e8",
        "linecolor": "#777777",
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "tickcolor": "#777777",
        "ticklen": 4,
        "automargin": True,
    }
