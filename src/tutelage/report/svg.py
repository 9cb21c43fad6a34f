"""A figure of lines as a static SVG, for places that run no JavaScript, such as an exported notebook."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

WIDTH, HEIGHT, LEGEND = 440, 240, 18
"""Of a panel, and the height of a line of the legend."""
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 34, 34
DASHES = {"dash": "8 4", "dot": "2 3", "dashdot": "8 3 2 3", "longdash": "14 5", "longdashdot": "14 4 2 4"}
_GRID = Markup('<line x1="{0}" y1="{2}" x2="{1}" y2="{2}" stroke="#e8e8e8"/>').format
_TEXT = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format
_LINE = Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="{}" stroke-dasharray="{}"/>').format
_BAND = Markup('<polygon points="{}" fill="{}"/>').format
_DOT = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>').format


class ShownFigure(go.Figure):  # type: ignore[misc]  # which has no types
    """A figure that a notebook shows as plotly's where it can, and else, also when it is exported, as an SVG."""

    _ipython_display_ = None  # of plotly: needs nbformat, and shows nothing in an exported notebook

    def _repr_mimebundle_(self, *_: object, **__: object) -> dict[str, Any]:
        return {
            "application/vnd.plotly.v1+json": self.to_plotly_json(),
            "image/svg+xml": static(self),
            "text/plain": f"Figure({_plain(self.layout.title.text)!r})",
        }

    def _repr_html_(self) -> None:
        """Return nothing: plotly's would come before the SVG, and loads a script from the network."""


def static(figure: go.Figure) -> str:
    """Return the lines and bands of a figure's panels, side by side, as SVG."""
    panels: dict[str, list[Any]] = {}
    for trace in figure.data:
        panels.setdefault(trace.yaxis or "y", []).append(trace)
    titles = [each.text for each in figure.layout.annotations] or [figure.layout.title.text or ""]
    titles += [""] * len(panels)
    named = {trace.name: trace for trace in figure.data if trace.showlegend is not False and trace.name}
    width, height = WIDTH * max(1, len(panels)), HEIGHT + LEGEND * len(named)
    parts = [
        Markup('<g transform="translate({} 0)">{}</g>').format(WIDTH * at, Markup("").join(_panel(traces, title)))
        for at, (traces, title) in enumerate(zip(panels.values(), titles, strict=False))
    ]
    for at, (name, trace) in enumerate(named.items()):
        y = HEIGHT + LEGEND * at + 6
        sample = [(LEFT, y), (LEFT + 34, y)]
        if trace.fill == "toself":
            sample = [(LEFT, y - 4), (LEFT + 34, y - 4), (LEFT + 34, y + 4), (LEFT, y + 4)]
        parts.append(_line(sample, trace) + _TEXT(LEFT + 42, y + 4, "start", _plain(name)))
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" '
            'aria-label="{2}" font-family="sans-serif" font-size="12" fill="#1d1d1f" '
            'style="max-width:100%;height:auto">'
            '<rect width="100%" height="100%" fill="white"/>{3}</svg>'
        ).format(width, height, _plain(figure.layout.title.text), Markup("").join(parts))
    )


def _panel(traces: Sequence[Any], title: str) -> Iterator[Markup]:
    xs = [float(x) for trace in traces for x in trace.x]
    ys = [float(y) for trace in traces for y in trace.y]
    across, up = _ticks(min(xs), max(xs), whole=all(map(float.is_integer, xs))), _ticks(min(ys), max(ys))
    across = [x for x in across if min(xs) <= x <= max(xs)]
    left, right = min(*xs, across[0]), max(*xs, across[-1])
    low, high = min(*ys, up[0]), max(*ys, up[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        inside = (x - left) / (right - left or 1), (y - low) / (high - low or 1)
        return LEFT + (WIDTH - LEFT - RIGHT) * inside[0], HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * inside[1]

    yield _TEXT(LEFT, 18, "start", _plain(title))
    for y in up:
        at = round(place(left, y)[1], 1)
        yield _GRID(LEFT, WIDTH - RIGHT, at) + _TEXT(LEFT - 6, at + 4, "end", f"{y:g}")
    for x in across:
        yield _TEXT(round(place(x, low)[0], 1), HEIGHT - BOTTOM + 18, "middle", f"{x:g}")
    for trace in traces:
        yield _line([place(float(x), float(y)) for x, y in zip(trace.x, trace.y, strict=True)], trace)


def _line(places: Sequence[tuple[float, float]], trace: Any) -> Markup:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    if trace.fill == "toself":
        return _BAND(points, trace.fillcolor)
    look = trace.line
    dots = [_DOT(*places[-1], look.color)] if "markers" in trace.mode else []
    return Markup("").join([_LINE(points, look.color, look.width, DASHES.get(look.dash, "none")), *dots])


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return a few round numbers: from at or below ``low`` to at or above ``high``, or the ``whole`` ones between."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= high - low)
    if whole:
        step = max(step, 1.0)
        first, last = math.ceil(low / step), math.floor(high / step)
    else:
        first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * k, 12) for k in range(first, last + 1)]


def _plain(label: object) -> str:
    """Return a label without plotly's escapes, as it is escaped anew."""
    return html.unescape(str(label or ""))
