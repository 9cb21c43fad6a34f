"""Figures of the last epoch's student beside its teacher: accuracy by class, entropy, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from tutelage.report.figures import TEACHER, Panel, Style, add_histogram, empty, inert, reach, style
from tutelage.report.reading import Subject, mean, number, section, teachers
from tutelage.report.results import rows

MAX_NAMED_CLASSES = 30
"""Up to here every class has its own place on an axis; beyond, a scatter of teacher against student."""


@dataclass(frozen=True)
class Judged:
    """One network's detailed judgement, pooled over its runs."""

    name: str
    look: Style
    per_class: tuple[float | None, ...]
    edges: tuple[float, ...]
    counts: tuple[float, ...]
    bins: tuple[tuple[float, float, float], ...]
    """Confidence, accuracy, count; of bins that hold samples."""
    ece: float | None
    shown: bool = True


def against_teacher(subject: Subject) -> list[Panel]:
    """Return the figures of the last epoch's student beside its teacher's."""
    found = judged(subject)
    made = [per_class(subject, found), entropy_histogram(found), reliability(found)]
    return [panel for panel in made if panel]


def judged(subject: Subject) -> list[Judged]:
    """Return the teacher, the baseline and the other entries; of these, the highest mean is switched on at first."""
    pooled = []
    teacher = [one for one, _ in teachers(subject)]
    if teacher:
        pooled.append(_pool("teacher", TEACHER, teacher))
    students = [row for row in rows(subject) if row.role == "student" and row.accuracy is not None]
    best = max(students, key=lambda row: row.accuracy or 0, default=None)
    for at, entry in enumerate(subject.entries):
        judgements = [section(run.evaluation, "student") for run in subject.of(entry)]
        if judgements:
            shown = entry == subject.baseline or best is None or entry == best.name
            plain = f"{entry} (baseline)" if entry == subject.baseline else entry
            pooled.append(_pool(plain if subject.comparison else "student", style(at), judgements, shown=shown))
    return pooled


def _pool(name: str, look: Style, judgements: Sequence[Mapping[str, Any]], *, shown: bool = True) -> Judged:
    """Mean over runs of the accuracies, sum of the counts."""
    classes = [one.get("per_class") or [] for one in judgements]
    per_class: list[float | None] = []
    if len(set(map(len, classes))) == 1:
        for values in zip(*classes, strict=True):
            known = [value for value in map(number, values) if value is not None]
            per_class.append(mean(known))
    histograms = [section(one, "entropy_histogram") for one in judgements]
    edges = [tuple(histogram.get("edges") or ()) for histogram in histograms]
    counts = [histogram.get("counts") or [] for histogram in histograms]
    alike = len(set(edges)) == 1 and all(len(edges[0]) == len(one) + 1 for one in counts)
    diagrams: dict[tuple[object, object], list[tuple[float, float, float]]] = {}
    for one in judgements:
        for held in one.get("reliability") or []:
            count, sure, right = (number(held.get(key)) for key in ("count", "confidence", "accuracy"))
            if count and sure is not None and right is not None:
                diagrams.setdefault((held.get("low"), held.get("high")), []).append((sure, right, count))
    bins = []
    for parts in diagrams.values():
        total = sum(count for _, _, count in parts)
        bins.append((sum(s * c for s, _, c in parts) / total, sum(r * c for _, r, c in parts) / total, total))
    return Judged(
        name=name,
        look=look,
        per_class=tuple(per_class),
        edges=edges[0] if alike else (),
        counts=tuple(map(sum, zip(*counts, strict=True))) if alike else (),
        bins=tuple(sorted(bins)),
        ece=mean(number(one.get("ece")) for one in judgements),
        shown=shown,
    )


def _visible(one: Judged) -> bool | str:
    return True if one.shown else "legendonly"


def per_class(subject: Subject, found: Sequence[Judged]) -> Panel | None:
    """Accuracy by class: a place for each class where they are few, teacher against student where they are many."""
    found = [one for one in found if any(value is not None for value in one.per_class)]
    size = max((len(one.per_class) for one in found), default=0)
    found = [one for one in found if len(one.per_class) == size]
    if not found:
        return None
    named = next((run.evaluation.get("class_names") for run in subject.runs if run.evaluation), None) or []
    names = [str(name) for name in named] if len(named) == size else [str(at) for at in range(size)]
    teacher = found[0] if found[0].name == "teacher" and found[0].look == TEACHER else None
    if size > MAX_NAMED_CLASSES and teacher and len(found) > 1:
        return _class_scatter(found[1:], teacher, names)
    return _class_places(found, names)


def _class_places(found: Sequence[Judged], names: Sequence[str]) -> Panel:
    order = sorted(range(len(names)), key=lambda at: -1.0 if (v := found[0].per_class[at]) is None else v)[::-1]
    figure = empty("Accuracy by class", "Class", "Accuracy (%)")
    for one in found:
        values = [one.per_class[at] for at in order]
        figure.add_scatter(
            x=list(range(len(order))),
            y=[None if value is None else 100 * value for value in values],
            text=[inert(names[at]) for at in order],
            mode="markers",
            name=inert(one.name),
            visible=_visible(one),
            marker={**one.look.points(10), "opacity": 0.9, "line": {"color": "white", "width": 1}},
            hovertemplate="%{text}: %{y:.2f} %",
        )
    ticks: dict[str, Any] = {"showticklabels": False}
    if len(names) <= MAX_NAMED_CLASSES:
        ticks = {"tickvals": list(range(len(order))), "ticktext": [inert(names[at], 16) for at in order]}
        # Slanted labels take the room that the axis title and the legend have elsewhere.
        ticks |= {"tickangle": -40 if max(map(len, names)) * len(names) > 60 else 0}
        figure.update_layout(legend={"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}, margin={"t": 74})
    figure.update_xaxes(range=[-0.6, len(order) - 0.4], **ticks)
    figure.update_layout(hovermode="x unified" if len(names) <= MAX_NAMED_CLASSES else "closest")
    caption = f"Classes sorted by the accuracy of {found[0].name}."
    return Panel("per-class", caption, figure)


def _class_scatter(students: Sequence[Judged], teacher: Judged, names: Sequence[str]) -> Panel:
    figure = empty("Accuracy by class", "Teacher accuracy (%)", "Student accuracy (%)")
    known = [value for one in (teacher, *students) for value in one.per_class if value is not None]
    low = 100 * min(known)
    _diagonal(figure, low, 100)
    for one in students:
        pairs = zip(teacher.per_class, one.per_class, names, strict=True)
        kept = [(100 * t, 100 * s, inert(name)) for t, s, name in pairs if t is not None and s is not None]
        figure.add_scatter(
            x=[t for t, _, _ in kept],
            y=[s for _, s, _ in kept],
            text=[name for _, _, name in kept],
            mode="markers",
            name=inert(one.name),
            visible=_visible(one),
            marker={**one.look.points(7), "opacity": 0.75},
            hovertemplate="%{text}: teacher %{x:.1f} %, student %{y:.1f} %",
        )
    figure.update_layout(hovermode="closest")
    caption = "One mark a class; below the line the student is worse than its teacher."
    return Panel("per-class", caption, figure)


def entropy_histogram(found: Sequence[Judged]) -> Panel | None:
    """How the entropy of the distributions is spread over the samples."""
    found = [one for one in found if sum(one.counts) > 0]
    figure = empty("Entropy of the predictions", "Entropy (nats)", "Share of samples (%)")
    for one in found:
        total = sum(one.counts)
        shares = [100 * count / total for count in one.counts]
        options = {"name": inert(one.name), "visible": _visible(one), "hovertemplate": "%{y:.2f} %"}
        add_histogram(figure, one.edges, shares, one.look, **options)
    if not found:
        return None
    figure.update_xaxes(
        hoverformat=".3f", range=[min(n.edges[0] for n in found), max(reach(n.edges, n.counts) for n in found)]
    )
    figure.update_layout(showlegend=True)
    return Panel("entropy-histogram", "Shannon entropy of each sample's distribution.", figure)


def reliability(found: Sequence[Judged]) -> Panel | None:
    """Accuracy against confidence, with the expected calibration error in the legend."""
    found = [one for one in found if one.bins]
    figure = empty("Reliability", "Confidence (%)", "Accuracy (%)")
    _diagonal(figure, 0, 100)
    for one in found:
        name = inert(one.name) + ("" if one.ece is None else f" (ECE {100 * one.ece:.2f} %)")
        figure.add_scatter(
            x=[100 * sure for sure, _, _ in one.bins],
            y=[100 * right for _, right, _ in one.bins],
            customdata=[count for _, _, count in one.bins],
            mode="lines+markers",
            name=name,
            visible=_visible(one),
            line=one.look.line(),
            marker=one.look.points(),
            hovertemplate="confidence %{x:.1f} %, accuracy %{y:.1f} %, %{customdata:,} samples",
        )
    if not found:
        return None
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(range=[0, 102])
    figure.update_yaxes(range=[0, 102])
    caption = "On the line confidence is right; below it the network is too sure of itself."
    return Panel("reliability", caption, figure)


def _diagonal(figure: go.Figure, low: float, high: float) -> None:
    line = {"color": "#999999", "width": 1}
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line=line, showlegend=False, hoverinfo="skip")
