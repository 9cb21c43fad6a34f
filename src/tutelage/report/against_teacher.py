"""The last epoch's student next to its teacher: accuracy by class and its change, entropy, calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tutelage import records
from tutelage.report.answers import names_of
from tutelage.report.figures import TEACHER, Panel, Style, add_histogram, empty, inert, reach, style
from tutelage.report.reading import Subject, mean, number, section, teachers
from tutelage.report.results import best_entry
from tutelage.report.table import Row, Table, fixed, percent

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_NAMED_CLASSES = 30
"""Largest number of classes with separate places on an axis; beyond it, teacher is plotted against student."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One network's detailed evaluation, pooled over its runs."""

    name: str
    look: Style
    per_class: Sequence[float | None]  # accuracy by class, or average precision by label
    loss: float | None
    temperature: float | None  # of the scaled logits, if the evaluation is of these
    edges: Sequence[float]
    counts: Sequence[float]
    bins: Sequence[tuple[float, float, float]]  # confidence, accuracy, count; of bins that hold samples
    ece: float | None
    shown: bool = True

    @property
    def trace(self) -> dict[str, Any]:
        """The common options of its traces: its name, and whether they are initially visible."""
        return {"name": inert(self.name), "visible": True if self.shown else "legendonly"}


def by_class(subject: Subject) -> list[Panel]:
    """Return accuracy by class of the last epoch's student and its teacher, and what differs between the two."""
    networks = judged(subject)
    panels = [per_class(subject, networks), change_by_class(subject, networks)]
    return [panel for panel in panels if panel]


def certainty(subject: Subject) -> list[Panel]:
    """Return the figures of how sure the last epoch's student and its teacher are: entropy and calibration."""
    networks, counted = judged(subject), subject.measure.counted
    scaled = judged(subject, scaled=True)
    panels = [
        entropy_histogram(networks, counted),
        reliability(networks, counted),
        reliability(scaled, counted, key="reliability-scaled", title="Reliability after temperature scaling"),
    ]
    return [panel for panel in panels if panel]


def judged(subject: Subject, *, scaled: bool = False) -> list[Judged]:
    """Return the teacher, the baseline and the other entries; of these, the best mean is initially visible.

    With ``scaled``, of their logits after temperature scaling; networks of which that is not known are left out.
    """
    best = best_entry(subject)
    found = [("teacher", TEACHER, True, [judgement for judgement, _ in teachers(subject)])]
    for at, entry in enumerate(subject.entries):
        name = f"{entry} (baseline)" if entry == subject.baseline else entry
        judgements = [section(run.evaluation, "student") for run in subject.of(entry)]
        shown = best is None or entry in (subject.baseline, best)
        found.append((name if subject.comparison else "student", style(at), shown, judgements))
    pooled = []
    for name, look, shown, judgements in found:
        if scaled:
            judgements = [section(judgement, "calibration") for judgement in judgements]
        if judgements and all(judgements):
            pooled.append(_pool(judgements, name=name, look=look, shown=shown))
    return pooled


def _pool(judgements: Sequence[Mapping[str, Any]], **options: Any) -> Judged:
    """Average the accuracies over runs, and sum the counts."""
    classes = [judgement.get("average_precision") or judgement.get("per_class") or [] for judgement in judgements]
    per_class: list[float | None] = []
    if len(set(map(len, classes))) == 1:
        for values in zip(*classes, strict=True):
            per_class.append(mean(value for value in map(number, values) if value is not None))
    histograms = [section(judgement, "entropy_histogram") for judgement in judgements]
    edges = [histogram.get("edges") or [] for histogram in histograms]
    counts = [histogram.get("counts") or [] for histogram in histograms]
    alike = all(bins == edges[0] for bins in edges) and all(len(edges[0]) == len(bins) + 1 for bins in counts)
    diagrams: dict[tuple[object, object], list[tuple[float, float, float]]] = {}
    for judgement in judgements:
        for held in judgement.get("reliability") or []:
            count, sure, right = (number(held.get(key)) for key in ("count", "confidence", "accuracy"))
            if count and sure is not None and right is not None:
                diagrams.setdefault((held.get("low"), held.get("high")), []).append((sure, right, count))
    bins = []
    for parts in diagrams.values():
        total = sum(count for _, _, count in parts)
        bins.append((sum(s * c for s, _, c in parts) / total, sum(r * c for _, r, c in parts) / total, total))
    return Judged(
        per_class=per_class,
        edges=edges[0] if alike else [],
        counts=[*map(sum, zip(*counts, strict=True))] if alike else [],
        bins=sorted(bins),
        ece=mean(number(judgement.get("ece")) for judgement in judgements),
        loss=mean(number(judgement.get("loss")) for judgement in judgements),
        temperature=mean(number(judgement.get("temperature")) for judgement in judgements),
        **options,
    )


def per_class(subject: Subject, networks: Sequence[Judged]) -> Panel | None:
    """Return accuracy by class, or average precision by label.

    There is a place for each if they are few, and teacher against student if they are many.
    """
    networks = [network for network in networks if any(value is not None for value in network.per_class)]
    size = max((len(network.per_class) for network in networks), default=0)
    networks = [network for network in networks if len(network.per_class) == size]
    if not networks:
        return None
    names, what = _class_names(subject, size), _what(subject)
    if size > MAX_NAMED_CLASSES and networks[0].look == TEACHER and len(networks) > 1:
        return _class_scatter(networks[0], networks[1:], names, what)
    return _class_places(networks, names, what)


def _class_names(subject: Subject, size: int) -> list[str]:
    named = names_of(subject)
    return named if len(named) == size else [*map(str, range(size))]


class _What(NamedTuple):
    """What is shown for each class or label."""

    measure: str
    each: str
    several: str


def _what(subject: Subject) -> _What:
    of_labels = subject.measure is records.MEAN_AVERAGE_PRECISION
    return _What("Average precision", "label", "labels") if of_labels else _What("Accuracy", "class", "classes")


def _class_places(networks: Sequence[Judged], names: Sequence[str], what: _What) -> Panel:
    first = networks[0]
    order = sorted(range(len(names)), key=lambda at: -1.0 if (v := first.per_class[at]) is None else v)[::-1]
    figure = empty(f"{what.measure} by {what.each}", what.each.capitalize(), f"{what.measure} (%)")
    for network in networks:
        values = [network.per_class[at] for at in order]
        figure.add_scatter(
            x=list(range(len(order))),
            y=[None if value is None else 100 * value for value in values],
            text=[inert(names[at]) for at in order],
            mode="markers",
            marker={**network.look.points(10), "opacity": 0.9, "line": {"color": "white", "width": 1}},
            hovertemplate="%{text}: %{y:.2f} %",
            **network.trace,
        )
    ticks: dict[str, Any] = {"showticklabels": False}
    named = len(names) <= MAX_NAMED_CLASSES
    if named:
        # Slanted labels take the room that the axis title and the legend have elsewhere.
        slant = -40 if max(map(len, names)) * len(names) > 60 else 0
        labels = [inert(names[at], 16) for at in order]
        ticks = {"tickvals": list(range(len(order))), "ticktext": labels, "tickangle": slant}
        lines = math.ceil(len(networks) / 2)
        figure.update_layout(legend={"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"})
        figure.update_layout(margin={"t": 52 + 22 * lines}, height=316 + 22 * lines)
    figure.update_xaxes(range=[-0.6, len(order) - 0.4], **ticks)
    figure.update_layout(hovermode="x unified" if named else "closest")
    caption = f"{what.several.capitalize()} sorted by the {what.measure.lower()} of {first.name}."
    return Panel("per-class", caption, figure)


def _class_scatter(teacher: Judged, students: Sequence[Judged], names: Sequence[str], what: _What) -> Panel:
    axes = (f"{who} {what.measure.lower()} (%)" for who in ("Teacher", "Student"))
    figure = empty(f"{what.measure} by {what.each}", *axes)
    _diagonal(
        figure, 100 * min(value for network in (teacher, *students) for value in network.per_class if value is not None)
    )
    for network in students:
        pairs = zip(teacher.per_class, network.per_class, names, strict=True)
        kept = [(100 * t, 100 * s, inert(name)) for t, s, name in pairs if t is not None and s is not None]
        figure.add_scatter(
            x=[t for t, _, _ in kept],
            y=[s for _, s, _ in kept],
            text=[name for _, _, name in kept],
            mode="markers",
            marker={**network.look.points(7), "opacity": 0.75},
            hovertemplate="%{text}: teacher %{x:.1f} %, student %{y:.1f} %",
            **network.trace,
        )
    figure.update_layout(hovermode="closest")
    caption = f"One mark per {what.each}; below the line the student is worse than its teacher."
    return Panel("per-class", caption, figure)


MOST_BARS = 20
"""Number of classes that are drawn; of more, those that lost and gained the most."""


def change_by_class(subject: Subject, networks: Sequence[Judged]) -> Panel | None:
    """Return what each class gained or lost against the baseline, or without one against the teacher."""
    base_name = f"{subject.baseline} (baseline)" if subject.baseline else "teacher"
    base = next((network for network in networks if network.name == base_name), None)
    best = best_entry(subject) if subject.comparison else "student"
    other = next((network for network in networks if network.name == best), None)
    if base is None or other is None or len(base.per_class) != len(other.per_class):
        return None
    names, what = _class_names(subject, len(base.per_class)), _what(subject)
    pairs = zip(names, base.per_class, other.per_class, strict=True)
    changes = sorted(
        ((100 * (b - a), name) for name, a, b in pairs if a is not None and b is not None), key=lambda change: change[0]
    )
    if not changes:
        return None
    shown = changes if len(changes) <= MOST_BARS else [*changes[: MOST_BARS // 2], *changes[-MOST_BARS // 2 :]]
    than = "the baseline" if subject.baseline else "the teacher"
    title = f"{what.measure} of {inert(other.name, 20)} less that of {than}"
    figure = empty(title, what.each.capitalize(), "Difference (points)")
    figure.add_bar(
        x=list(range(len(shown))),
        y=[change for change, _ in shown],
        text=[inert(name) for _, name in shown],
        textposition="none",
        marker={"color": [style(0 if change >= 0 else 1).colour for change, _ in shown]},
        hovertemplate="%{text}: %{y:+.2f}<extra></extra>",
    )
    labels = [inert(name, 16) for _, name in shown]
    slant = -40 if max(map(len, labels)) * len(labels) > 60 else 0
    figure.update_xaxes(tickvals=list(range(len(shown))), ticktext=labels, tickangle=slant)
    figure.update_layout(hovermode="closest", showlegend=False)
    lost = [f"{name} ({change:+.1f})" for change, name in changes[:3] if round(change, 1) < 0]
    gained = [f"{name} ({change:+.1f})" for change, name in changes[:-4:-1] if round(change, 1) > 0]
    said = [f"Lost most: {', '.join(lost)}." if lost else "", f"Gained most: {', '.join(gained)}." if gained else ""]
    left_out = (
        f"The {len(shown)} largest changes of {len(changes)} {what.several}." if len(shown) < len(changes) else ""
    )
    caption = [*said, left_out, f"Differences of single {what.several} are not tested."]
    return Panel("class-change", " ".join(filter(None, caption)), figure)


def calibration_table(subject: Subject) -> list[Table]:
    """Return loss and calibration error before and after temperature scaling, where that was done."""
    scaled = {network.name: network for network in judged(subject, scaled=True)}
    rows_of = [
        Row(
            cells=(
                network.name,
                fixed(after.temperature, 2),
                percent(network.ece),
                percent(after.ece),
                fixed(network.loss),
                fixed(after.loss),
            ),
            kind="teacher" if network.look == TEACHER else "",
        )
        for network in judged(subject)
        if (after := scaled.get(network.name))
    ]
    ends = ("ECE before (%)", "ECE after (%)", "Loss before (nats)", "Loss after (nats)")
    caption = "Before and after temperature scaling"
    return [Table(headings=("Network", "Temperature", *ends), rows=rows_of, caption=caption)] if rows_of else []


def calibration_note(subject: Subject) -> str:
    """Say on what the temperatures were fitted."""
    judgements = [*(judgement for judgement, _ in teachers(subject))]
    judgements += [section(run.evaluation, "student") for run in subject.runs]
    sets = dict.fromkeys(
        str(fit.get("fitted_on")) for judgement in judgements if (fit := section(judgement, "calibration"))
    )
    how = {
        "validation": "Temperatures were fitted on the validation set.",
        "test": "Temperatures were fitted on the test set, each half of it with the temperature of the other half.",
    }
    said = [how[name] for name in sets if name in how]
    scaling = "Temperature scaling divides the logits by one number, and changes no answer (Guo et al. 2017)."
    return " ".join([*([scaling] if said else []), *said])


def entropy_histogram(networks: Sequence[Judged], counted: str) -> Panel | None:
    """Return the distribution of the entropy over the samples, or over what else is counted."""
    networks = [network for network in networks if sum(network.counts) > 0]
    if not networks:
        return None
    figure = empty("Entropy of the predictions", "Entropy (nats)", f"Share of {counted} (%)")
    for network in networks:
        total = sum(network.counts)
        shares = [100 * count / total for count in network.counts]
        add_histogram(figure, network.edges, shares, network.look, hovertemplate="%{y:.2f} %", **network.trace)
    ends = [
        min(network.edges[0] for network in networks),
        max(reach(network.edges, network.counts) for network in networks),
    ]
    figure.update_xaxes(hoverformat=".3f", range=ends)
    figure.update_layout(showlegend=True)
    return Panel("entropy-histogram", f"Shannon entropy of each {counted.removesuffix('s')}'s distribution.", figure)


def reliability(
    networks: Sequence[Judged], counted: str, *, key: str = "reliability", title: str = "Reliability"
) -> Panel | None:
    """Return accuracy against confidence, with the expected calibration error in the legend."""
    networks = [network for network in networks if network.bins]
    if not networks:
        return None
    figure = empty(title, "Confidence (%)", "Accuracy (%)")
    _diagonal(figure, 0)
    for network in networks:
        error = "" if network.ece is None else f" (ECE {100 * network.ece:.2f} %)"
        figure.add_scatter(
            x=[100 * sure for sure, _, _ in network.bins],
            y=[100 * right for _, right, _ in network.bins],
            customdata=[count for _, _, count in network.bins],
            mode="lines+markers",
            line=network.look.line(),
            marker=network.look.points(),
            hovertemplate="confidence %{x:.1f} %, accuracy %{y:.1f} %, %{customdata:,} " + counted,
            **{**network.trace, "name": inert(network.name) + error},
        )
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(range=[0, 102])
    figure.update_yaxes(range=[0, 102])
    return Panel(key, "On the line confidence is right; below it the network is too sure of itself.", figure)


def _diagonal(figure: go.Figure, low: float) -> None:
    line = {"color": "#999999", "width": 1}
    figure.add_scatter(x=[low, 100], y=[low, 100], mode="lines", line=line, showlegend=False, hoverinfo="skip")
