"""Figures of accuracy against what a network costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tutelage.report.costs import FLOPS, LATENCY, PARAMETERS, Quantity, amount
from tutelage.report.figures import TEACHER, Panel, empty, inert, style
from tutelage.report.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go


def against_cost(results: Sequence[Result]) -> list[Panel]:
    """Return accuracy against latency, FLOPs and parameters, where there are two networks to compare."""
    panels = []
    for of, unit in ((LATENCY, "ms"), (FLOPS, ""), (PARAMETERS, "")):
        known = [row for row in results if row.cost and (getattr(row.cost, of.key) or 0) > 0 and row.value is not None]
        if len(known) < 2:
            continue
        by, name = known[0].measure, of.heading.removesuffix(" (ms)")
        figure = empty(
            f"{by.title} against {name if of is FLOPS else name.lower()}", f"{name}{unit and f' ({unit})'}", ""
        )
        figure.layout.yaxis.title.text = by.heading(by.title)
        students = [row for row in results if row.role != "teacher"]
        for row in known:
            look = TEACHER if row.role == "teacher" else style(students.index(row))
            x, y = getattr(row.cost, of.key), by.scale * (row.value or 0)
            bars: dict[str, Any] = {}
            if row.interval:
                low, high = (100 * bound for bound in row.interval)
                bars["error_y"] = {"array": [high - y], "arrayminus": [y - low], "thickness": 1.2, "color": look.colour}
            shown = "teacher" if row.role == "teacher" else inert(row.name)
            hover = (
                f"{shown}: %{{y:.2f}}{by.unit and f' {by.unit}'}, {amount(x, of)}{unit and f' {unit}'}<extra></extra>"
            )
            figure.add_scatter(
                x=[x], y=[y], mode="markers", name=shown, marker=look.points(10), hovertemplate=hover, **bars
            )
        _cost_axis(figure, [getattr(row.cost, of.key) for row in known], of)
        figure.update_layout(hovermode="closest", showlegend=True)
        caption = f"Each network's {by.name}" + (", with its 95 % interval." if any(r.interval for r in known) else ".")
        panels.append(
            Panel(
                f"cost-{of.key}",
                f"{caption} Better is further {'down' if by.lower_is_better else 'up'} and to the left.",
                figure,
            )
        )
    return panels


def _cost_axis(figure: go.Figure, values: Sequence[float], of: Quantity) -> None:
    """Let an axis begin at 0, or make it logarithmic where most of it would be empty; its numbers as in the table."""
    low, high = min(values), max(values)
    if high <= 5 * low:
        figure.update_xaxes(rangemode="tozero")
        return
    ends = [math.log10(low) - 0.15, math.log10(high) + 0.15]
    decades = range(math.floor(ends[0]), math.ceil(ends[1]))
    steps = (1, 2, 5) if high < 100 * low else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    labels = [amount(tick, of) if of is not LATENCY else f"{tick:g}" for tick in ticks]
    labels = [label.replace(".00", "").replace(".0 ", " ") for label in labels]
    figure.update_xaxes(type="log", range=ends, tickvals=ticks, ticktext=labels)
