"""Figures of a run or a comparison: curves by epoch, and the student against its teacher.

Every colour goes with a dash and a marker of its own, so that a figure reads in greyscale and for the colour-blind.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from tutelage.report.reading import Run, Subject, mean, number, section, teachers
from tutelage.report.table import rows

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's palette; black is the teacher's, yellow is left out because it vanishes on white."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
SETS = ("train", "validation", "test")
MAX_NAMED_CLASSES = 30
"""Up to here every class has its own place on an axis; beyond, a scatter of teacher against student."""

Points = dict[int, float]


@dataclass(frozen=True)
class Panel:
    """One figure with the words that go below it.

    Attributes:
        key: its name in the page.
        caption: what is shown and how to read it.
        figure: what plotly draws; its title is inside.
    """

    key: str
    caption: str
    figure: go.Figure


@dataclass(frozen=True)
class Style:
    """How one trace is told from the others."""

    colour: str
    dash: str
    marker: str

    def line(self, width: float = 2) -> dict[str, Any]:
        """As plotly's ``line``."""
        return {"color": self.colour, "dash": self.dash, "width": width}

    def points(self, size: float = 7) -> dict[str, Any]:
        """As plotly's ``marker``."""
        return {"color": self.colour, "symbol": self.marker, "size": size}

    def veil(self, alpha: float) -> str:
        """Its colour, translucent."""
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{alpha})"


TEACHER = Style("#000000", "dot", "star-diamond")


def style(place: int) -> Style:
    """Return the style of the trace in a given place; the first 42 differ in more than colour."""
    return Style(COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)])


def inert(name: object, width: int = 40) -> str:
    """Shorten and escape a name: plotly reads tags and links in its labels."""
    plain = " ".join(str(name).split())
    return html.escape(plain if len(plain) <= width else f"{plain[: width - 1].rstrip()}…")


def panels(subject: Subject) -> tuple[list[Panel], list[Panel]]:
    """Return every figure that the records have numbers for: curves by epoch, then the student against its teacher."""
    return by_epoch(subject), against_teacher(subject)


# Curves by epoch


def by_epoch(subject: Subject) -> list[Panel]:
    """Return the curves: accuracy, agreement, entropy, KL to the target, every term, the learning rate."""
    made: list[Panel | None] = [accuracy_by_epoch(subject, place) for place in SETS] if subject.comparison else []
    if not subject.comparison:
        made.append(accuracy_by_epoch(subject))
    made += [agreement_by_epoch(subject), entropy_by_epoch(subject), kl_by_epoch(subject), loss_by_epoch(subject)]
    made += [term_by_epoch(subject, name) for name in term_names(subject)]
    made.append(learning_rate_by_epoch(subject))
    return [panel for panel in made if panel]


def curves_note(subject: Subject) -> str:
    """Say once for all curves what lines and bands are."""
    if not subject.comparison:
        return "Means over a whole epoch's samples; held-out sets in evaluation mode, without augmentation."
    said = []
    if any(len(subject.of(entry)) > 1 for entry in subject.entries):
        said.append("Line: mean over finished runs; band: from the lowest to the highest run.")
    if any(not run.finished and run.epochs for run in subject.runs):
        said.append("Thin lines: unfinished runs, which are in no mean.")
    return " ".join([*said, "Click a name in a legend to hide it, twice to see it alone."])


def points(run: Run, *keys: str) -> Points:
    """Return one recorded number by epoch; the epochs of later stages follow those of earlier ones."""
    found: Points = {}
    before, stage, last = 0, None, 0
    for epoch in run.epochs:
        if epoch.get("stage") != stage:
            before, stage = before + last, epoch.get("stage")
        last = int(number(epoch.get("epoch")) or last + 1)
        value = number(section(epoch, *keys[:-1]).get(keys[-1]))
        if value is not None:
            found[before + last] = value
    return found


def accuracy_by_epoch(subject: Subject, place: str | None = None) -> Panel | None:
    """Student accuracy by epoch: of one run on every set, of a comparison on one."""
    place = place or (held_out(subject, "accuracy") if subject.comparison else None)
    teacher, on = teacher_number(subject, "accuracy")
    level = (teacher, on) if on == (place or evaluated_set(subject)) else None
    return _curve(subject, "accuracy", "Student accuracy", "Accuracy (%)", scale=100, place=place, level=level)


def agreement_by_epoch(subject: Subject) -> Panel | None:
    """Agreement with the teacher by epoch."""
    caption = "Share of samples on which student and teacher name the same class."
    return _curve(subject, "agreement", "Agreement with the teacher", "Agreement (%)", scale=100, caption=caption)


def entropy_by_epoch(subject: Subject) -> Panel | None:
    """Mean Shannon entropy of the student's distribution by epoch."""
    teacher, on = teacher_number(subject, "entropy")
    level = (teacher, on) if on == (held_out(subject, "entropy") if subject.comparison else on) else None
    caption = "Mean Shannon entropy H(q) of the student's distribution."
    return _curve(subject, "entropy", "Entropy of the student", "Entropy (nats)", level=level, caption=caption)


def kl_by_epoch(subject: Subject) -> Panel | None:
    """KL from the student to the transformed teacher that the objective matches, by epoch."""
    caption = "Mean KL between the transformed teacher and the student."
    caption += " Objectives may transform differently." if subject.comparison else ""
    return _curve(subject, "kl_to_target", "KL to the transformed teacher", "KL (nats)", caption=caption)


def loss_by_epoch(subject: Subject) -> Panel | None:
    """The whole loss on the training samples, by epoch."""
    caption = "Weighted sum of the terms, mean over the training samples."
    caption += " Objectives differ in scale." if subject.comparison else ""
    return _curve(subject, "loss", "Training loss", "Loss (nats)", place="train", caption=caption)


def term_by_epoch(subject: Subject, name: str) -> Panel | None:
    """One term of the objective, not weighted, by epoch."""
    weights = dict.fromkeys(
        f"{stage[name]}"
        for run in subject.runs
        for stage in _weights(run)
        if isinstance(stage, Mapping) and name in stage
    )
    said = f" Weight in the loss: {', '.join(weights)}." if weights else ""
    caption = f"Mean over the training samples, not weighted.{said}"
    title = f"Term {inert(name, 30)}"
    keys = ("terms", name)
    return _curve(subject, keys, title, "Term (nats)", place="train", caption=caption, key=f"term-{name}")


def _weights(run: Run) -> list[object]:
    """Return each stage's weights by term."""
    recorded = run.manifest.get("objective_terms")
    return recorded if isinstance(recorded, list) else [recorded]


def learning_rate_by_epoch(subject: Subject) -> Panel | None:
    """The learning rate of each epoch's last step."""
    caption = "Of the epoch's last step."
    return _curve(subject, "learning_rate", "Learning rate", "Learning rate", place="", caption=caption, digits=".3g")


def term_names(subject: Subject) -> tuple[str, ...]:
    """Return the names of every term of every run, as they first appear."""
    named = (section(run.epochs[0], "train", "terms") for run in subject.runs if run.epochs)
    return tuple(dict.fromkeys(name for terms in named for name in terms))


def evaluated_set(subject: Subject) -> str | None:
    """Return the set that the first evaluated run was judged on."""
    return next((str(run.evaluation.get("set")) for run in subject.runs if run.evaluation), None)


def held_out(subject: Subject, key: str) -> str:
    """Return the set that a comparison's curve is drawn on: held out where that was recorded."""
    for place in ("test", "validation"):
        if any(points(run, place, key) for run in subject.runs):
            return place
    return "train"


def teacher_number(subject: Subject, key: str) -> tuple[float | None, str | None]:
    """Return a number of the teacher's with its set; none where there are several teachers."""
    judged = teachers(subject)
    return (number(judged[0][0].get(key)), judged[0][1]) if len(judged) == 1 else (None, None)


def _curve(
    subject: Subject,
    keys: str | tuple[str, ...],
    title: str,
    axis: str,
    *,
    scale: float = 1,
    place: str | None = None,
    level: tuple[float | None, str | None] | None = None,
    caption: str = "",
    key: str | None = None,
    digits: str = ".3f",
) -> Panel | None:
    """Draw one quantity; ``place`` is a set, ``""`` for what belongs to none, and none for all of one run's."""
    keys = (keys,) if isinstance(keys, str) else keys
    digits = ".2f" if scale == 100 else digits
    figure = empty(title, "Epoch", axis)
    if subject.comparison:
        place = held_out(subject, keys[0]) if place is None else place
        _draw_entries(figure, subject, (place, *keys) if place else keys, scale, digits)
        if place:
            figure.layout.title.text += f" ({place} set)"
    else:
        places = SETS if place is None else (place,)
        for at, name in enumerate(places):
            found = points(subject.runs[0], *filter(None, (name, *keys)))
            if found:
                shown = name or title
                _line(figure, found, shown, style(SETS.index(name) if name in SETS else at), scale, digits)
        if not place and subject.runs[0].epochs and len({e.get("stage") for e in subject.runs[0].epochs}) > 1:
            caption = f"{caption} Stages follow each other on the axis.".strip()
    if not figure.data:
        return None
    longest = max(max(trace.x) for trace in figure.data)
    if level is not None and level[0] is not None:
        height = scale * level[0]
        ends = [1, max(longest, 2)]
        figure.add_scatter(
            x=ends,
            y=[height] * 2,
            mode="lines",
            name=f"teacher, {level[1]} ({height:{digits}})",
            line=TEACHER.line(1.5),
            hoverinfo="skip",
        )
    figure.update_xaxes(dtick=1 if longest <= 10 else None, tickformat=",d", hoverformat="d")
    if longest == 1:
        figure.update_xaxes(range=[0, 2])
    traces = sum(trace.showlegend is not False for trace in figure.data)
    figure.update_layout(showlegend=traces > 1)
    set_part = f"-{place}" if subject.comparison and place and scale == 100 else ""
    return Panel((key or "-".join(keys)) + set_part, caption, figure)


def _draw_entries(figure: go.Figure, subject: Subject, keys: tuple[str, ...], scale: float, digits: str) -> None:
    """Add a line with its band for every entry, and a thin line for every run that is not finished."""
    for at, entry in enumerate(subject.entries):
        curves = [found for run in subject.of(entry) if (found := points(run, *keys))]
        # Only epochs that all of them have: a mean whose members change on the way would jump.
        shared = sorted(set.intersection(*map(set, curves))) if curves else []
        if shared:
            average = {x: sum(curve[x] for curve in curves) / len(curves) for x in shared}
            if len(curves) > 1:
                low = [scale * min(curve[x] for curve in curves) for x in shared]
                high = [scale * max(curve[x] for curve in curves) for x in shared]
                figure.add_scatter(
                    x=shared + shared[::-1],
                    y=high + low[::-1],
                    fill="toself",
                    fillcolor=style(at).veil(0.16),
                    line={"width": 0},
                    mode="lines",
                    hoverinfo="skip",
                    showlegend=False,
                    legendgroup=f"entry-{at}",
                )
            _line(figure, average, entry, style(at), scale, digits, group=f"entry-{at}")
        for run in subject.of(entry, finished=False):
            if found := points(run, *keys):
                _line(figure, found, f"{run.label} ({run.status})", style(at), scale, digits, width=1)


def _line(
    figure: go.Figure,
    found: Points,
    name: str,
    look: Style,
    scale: float,
    digits: str,
    *,
    width: float = 2,
    group: str | None = None,
) -> None:
    figure.add_scatter(
        x=list(found),
        y=[scale * value for value in found.values()],
        mode="lines+markers",
        name=inert(name),
        line=look.line(width),
        marker={**look.points(6 if width > 1 else 4), "maxdisplayed": 10},
        legendgroup=group,
        hovertemplate=f"%{{y:{digits}}}",
    )


# The student against its teacher


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
        figure.add_scatter(
            x=list(one.edges),
            y=[*shares, shares[-1]],
            mode="lines",
            line={**one.look.line(), "shape": "hv"},
            fill="tozeroy",
            fillcolor=one.look.veil(0.08),
            name=inert(one.name),
            visible=_visible(one),
            hovertemplate="%{y:.2f} %",
        )
    if not found:
        return None
    figure.update_xaxes(hoverformat=".3f", range=[min(one.edges[0] for one in found), _reach(found)])
    figure.update_layout(showlegend=True)
    return Panel("entropy-histogram", "Shannon entropy of each sample's distribution.", figure)


def _reach(found: Sequence[Judged]) -> float:
    """Return the edge below which all but a thousandth of the samples of every network lie: the rest is empty paper."""
    ends = []
    for one in found:
        seen, total = 0.0, sum(one.counts)
        for count, edge in zip(one.counts, one.edges[1:], strict=True):
            seen += count
            if seen >= 0.999 * total:
                ends.append(edge)
                break
    return max(ends)


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


def empty(title: str, across: str, up: str) -> go.Figure:
    """Return an empty figure in the house's dress: white, thin grid, the system's own font."""
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
