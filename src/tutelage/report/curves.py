"""Curves by epoch of a run or a comparison."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from tutelage.report.figures import TEACHER, Panel, Style, add_band, add_line, empty, inert, style
from tutelage.report.reading import Points, Run, Subject, number, points, section, teachers

SETS = ("train", "validation", "test")


def by_epoch(subject: Subject) -> list[Panel]:
    """Return the curves: accuracy, agreement, entropy, KL to the target, every term, the learning rate."""
    sets = SETS if subject.comparison else (None,)
    differ = (
        (" Objectives may transform differently.", " Objectives differ in scale.") if subject.comparison else ("", "")
    )
    agreement = "Share of samples on which student and teacher name the same class."
    kl = f"Mean KL between the transformed teacher and the student.{differ[0]}"
    loss = f"Weighted sum of the terms, mean over the training samples.{differ[1]}"
    drawn = [
        *(accuracy_by_epoch(subject, name) for name in sets),
        _curve(subject, "agreement", "Agreement with the teacher", "Agreement (%)", scale=100, caption=agreement),
        entropy_by_epoch(subject),
        _curve(subject, "kl_to_target", "KL to the transformed teacher", "KL (nats)", caption=kl),
        _curve(subject, "loss", "Training loss", "Loss (nats)", place="train", caption=loss),
        *(term_by_epoch(subject, name) for name in term_names(subject)),
        _curve(
            subject,
            "learning_rate",
            "Learning rate",
            "Learning rate",
            place="",
            caption="Of the epoch's last step.",
            digits=".3g",
        ),
    ]
    return [panel for panel in drawn if panel]


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


def accuracy_by_epoch(subject: Subject, place: str | None = None) -> Panel | None:
    """Student accuracy by epoch: of one run on every set, of a comparison on one."""
    place = place or (held_out(subject, "accuracy") if subject.comparison else None)
    teacher, on = teacher_number(subject, "accuracy")
    level = (teacher, on) if on == (place or evaluated_set(subject)) else None
    return _curve(subject, "accuracy", "Student accuracy", "Accuracy (%)", scale=100, place=place, level=level)


def entropy_by_epoch(subject: Subject) -> Panel | None:
    """Mean Shannon entropy of the student's distribution by epoch."""
    teacher, on = teacher_number(subject, "entropy")
    level = (teacher, on) if on == (held_out(subject, "entropy") if subject.comparison else on) else None
    caption = "Mean Shannon entropy H(q) of the student's distribution."
    return _curve(subject, "entropy", "Entropy of the student", "Entropy (nats)", level=level, caption=caption)


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
                add_band(figure, shared, low, high, style(at), f"entry-{at}")
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
    y = [scale * value for value in found.values()]
    add_line(figure, list(found), y, inert(name), look, width=width, digits=digits, legendgroup=group)
