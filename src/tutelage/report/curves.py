"""Curves by epoch of a run or a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tutelage import records
from tutelage.report.figures import TEACHER, Panel, Style, add_band, add_line, empty, inert, style
from tutelage.report.reading import Points, Subject, number, points, section, teachers
from tutelage.report.table import written

if TYPE_CHECKING:
    import plotly.graph_objects as go

SETS = ("train", "validation", "test")


def by_epoch(subject: Subject) -> list[Panel]:
    """Return the curves: measure, accuracy, agreement, entropy, KL to the target, every term, the learning rate."""
    several, by = subject.comparison, subject.measure
    agreement = f"Share of {by.counted} on which student and teacher name the same class."
    entropy = "Mean Shannon entropy H(q) of the student's distribution."
    kl = "Mean KL between the transformed teacher and the student."
    kl += " Objectives may transform differently." if several else ""
    loss = f"Weighted sum of the terms, mean over the training {by.counted}."
    loss += " Objectives differ in scale." if several else ""
    rate = "Learning rate"
    panels = [
        *(
            _curve(subject, each.key, f"Student {each.name}", each.heading(each.title), source=name, teacher=True)
            for each in dict.fromkeys((by, records.ACCURACY))
            for name in (SETS if several else (None,))
        ),
        _curve(subject, "agreement", "Agreement with the teacher", "Agreement (%)", caption=agreement),
        _curve(subject, "entropy", "Entropy of the student", "Entropy (nats)", caption=entropy, teacher=True),
        _curve(subject, "kl_to_target", "KL to the transformed teacher", "KL (nats)", caption=kl),
        _curve(subject, "loss", "Training loss", "Loss (nats)", source="train", caption=loss),
        *(term_by_epoch(subject, name) for name in term_names(subject)),
        _curve(subject, "learning_rate", rate, rate, source="", caption="Of the epoch's last step.", digits=".3g"),
    ]
    return [panel for panel in panels if panel]


def curves_note(subject: Subject) -> str:
    """Explain the lines and bands of all curves."""
    if not subject.comparison:
        counted = subject.measure.counted
        return f"Means over a whole epoch's {counted}; held-out sets in evaluation mode, without augmentation."
    sentences = []
    if any(len(subject.of(entry)) > 1 for entry in subject.entries):
        sentences.append("Line: mean over finished runs; band: from the lowest to the highest run.")
    if any(not run.finished and run.epochs for run in subject.runs):
        sentences.append("Thin lines: unfinished runs, which are in no mean.")
    return " ".join([*sentences, "Click a name in a legend to hide it, twice to see it alone."])


def term_by_epoch(subject: Subject, name: str) -> Panel | None:
    """Return one unweighted term of the objective by epoch."""
    recorded = [run.manifest.get("objective_terms") for run in subject.runs]
    stages = [stage for terms in recorded for stage in (terms if isinstance(terms, list) else [terms])]
    weights = dict.fromkeys(written(stage[name]) for stage in stages if isinstance(stage, Mapping) and name in stage)
    weighted = f" Weight in the loss: {', '.join(weights)}." if weights else ""
    caption = f"Mean over the training {subject.measure.counted}, not weighted.{weighted}"
    return _curve(subject, f"terms.{name}", f"Term {inert(name, 30)}", "Term (nats)", source="train", caption=caption)


def term_names(subject: Subject) -> tuple[str, ...]:
    """Return the names of every term of every run, in order of first appearance."""
    named = (section(run.epochs[0], "train", "terms") for run in subject.runs if run.epochs)
    return tuple(dict.fromkeys(name for terms in named for name in terms))


def _held_out(subject: Subject, key: str) -> str:
    """Return the set for a comparison's curve: held out if that was recorded."""
    recorded = (name for name in ("test", "validation") if any(points(run, name, key) for run in subject.runs))
    return next(recorded, "train")


def _curve(
    subject: Subject,
    quantity: str,
    title: str,
    axis: str,
    *,
    source: str | None = None,
    caption: str = "",
    teacher: bool = False,
    digits: str = ".3f",
) -> Panel | None:
    """Draw one quantity, by its name in the epochs or ``terms.NAME``; with ``teacher``, also the teacher's own value.

    ``source`` is a set, ``""`` for a quantity without one, or ``None`` for all sets of one run or a comparison's
    held-out set. Percentages and perplexities have two digits whatever ``digits`` says.
    """
    first, _, term = quantity.partition(".")
    keys = (first, term) if term else (first,)
    judged = quantity in (records.ACCURACY.key, *records.OF_TASKS)
    scale = 100 if axis.endswith("(%)") else 1
    digits = ".2f" if scale == 100 or judged else digits
    figure = empty(title, "Epoch", axis)
    level_set = next((str(run.evaluation.get("set")) for run in subject.runs if run.evaluation), None)
    if subject.comparison:
        level_set = source = _held_out(subject, first) if source is None else source
        _draw_entries(figure, subject, (source, *keys) if source else keys, scale, digits)
        if source:
            figure.layout.title.text += f" ({source} set)"
    else:
        run = subject.runs[0]
        for name in SETS if source is None else (source,):
            if curve := points(run, *filter(None, (name, *keys))):
                look = style(SETS.index(name) if name else 0)
                _line(figure, curve, name or title, look, scale=scale, digits=digits)
        if not source and len({epoch.get("stage") for epoch in run.epochs}) > 1:
            caption = f"{caption} Stages follow each other on the axis.".strip()
    if not figure.data:
        return None
    longest = max(max(trace.x) for trace in figure.data)
    taught = teachers(subject) if teacher else []
    # Several teachers have no common level.
    level = number(taught[0][0].get(first)) if len(taught) == 1 else None
    if level is not None and taught[0][1] == level_set:
        figure.add_scatter(
            x=[1, max(longest, 2)],
            y=[scale * level] * 2,
            mode="lines",
            name=f"teacher, {level_set} ({scale * level:{digits}})",
            line=TEACHER.line(1.5),
            hoverinfo="skip",
        )
    figure.update_xaxes(dtick=1 if longest <= 10 else None, tickformat=",d", hoverformat="d")
    if longest == 1:
        figure.update_xaxes(range=[0, 2])
    figure.update_layout(showlegend=sum(trace.showlegend is not False for trace in figure.data) > 1)
    set_part = f"-{source}" if subject.comparison and source and (scale == 100 or judged) else ""
    return Panel(f"term-{term}" if term else first + set_part, caption, figure)


def _draw_entries(figure: go.Figure, subject: Subject, keys: tuple[str, ...], scale: float, digits: str) -> None:
    """Add a line with its band for every entry, and a thin line for every run that is not finished."""
    for at, entry in enumerate(subject.entries):
        look, group = style(at), f"entry-{at}"
        curves = [curve for run in subject.of(entry) if (curve := points(run, *keys))]
        # Only epochs that all of them have: a mean over changing members would jump.
        shared = sorted(set.intersection(*map(set, curves))) if curves else []
        if shared:
            average = {x: sum(curve[x] for curve in curves) / len(curves) for x in shared}
            if len(curves) > 1:
                low = [scale * min(curve[x] for curve in curves) for x in shared]
                high = [scale * max(curve[x] for curve in curves) for x in shared]
                add_band(figure, shared, low, high, look, group)
            _line(figure, average, entry, look, scale=scale, digits=digits, legendgroup=group)
        for run in subject.of(entry, finished=False):
            if curve := points(run, *keys):
                _line(figure, curve, f"{run.label} ({run.status})", look, scale=scale, digits=digits, width=1)


def _line(figure: go.Figure, curve: Points, name: str, look: Style, *, scale: float, **options: Any) -> None:
    add_line(figure, list(curve), [scale * value for value in curve.values()], inert(name), look, **options)
