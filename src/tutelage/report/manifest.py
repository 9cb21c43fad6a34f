"""The records of every run as tables: its results, its manifest, what differs, and the terms that are used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tutelage import records
from tutelage.report.reading import Run, Subject, formula, number, reported_epoch, section
from tutelage.report.results import beside, selected
from tutelage.report.summary import duration
from tutelage.report.table import MISSING, Row, Table, fixed, judged, percent

GROUPS = {
    "Run": (
        *("name", "verb", "status", "repeatable", "started", "started_from", "duration_s", "resumed", "command"),
        "notes",
    ),
    "Data": ("data",),
    "Teacher": ("teacher",),
    "Student": ("student",),
    "Objective": ("objective", "objective_terms", "papers"),
    "Selection": ("selection", "stopped"),
    "Seeds": ("seeds",),
    "Recipe": ("recipe",),
    "Hardware": ("hardware",),
    "Software": ("version", "commit", "schema", "software"),
}
"""Groups of a manifest's keys; keys in none of them go to ``Other``."""

RUN_SPECIFIC = ("name", "command", "started", "duration_s", "resumed", "class", "files")
"""Keys whose value is specific to each run, so that they say nothing about the comparison."""


def run_table(subject: Subject) -> Table:
    """Return the table of every run."""
    by = subject.measure
    results = (by.heading(by.title), *beside(by), by.heading("Best epoch"), "Agreement (%)", "Time")
    headings = ("Run", "Network", "Seed", "Status", "Epochs", *results)
    return Table(headings=headings, rows=[_run(subject, run) for run in subject.runs])


def _run(subject: Subject, run: Run) -> Row:
    student, best = section(run.evaluation, "student"), section(run.evaluation, "best")
    folder = Path(os.path.relpath(run.folder, subject.folder)).as_posix()
    by = subject.measure
    value, best_value = number(student.get(by.key)), number(best.get(by.key))
    seconds = number(run.manifest.get("duration_s"))
    return Row(
        cells=(
            *(folder, run.entry, MISSING if run.seed is None else str(run.seed), run.status, str(len(run.epochs))),
            judged(by, value),
            *([] if by.beside is None else [fixed(number(student.get(by.beside)))]),
            judged(by, best_value) + selected(best_value, best.get("set")),
            percent(number(student.get("agreement"))),
            MISSING if seconds is None else duration(seconds),
        ),
        kind="finished" if run.finished else "unfinished",
        exact={"folder": folder, "status": run.status, by.key.replace("_", "-"): value},
        link=quote(f"./{folder}/{records.REPORT}") if (run.folder / records.REPORT).exists() else "",
    )


def flatten(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield a nested value's leaves with dotted keys; a list of plain values is one leaf.

    Example:
        >>> list(flatten({"sizes": {"train": 60, "test": None}, "notes": ["a", "b"]}))
        [('sizes.train', '60'), ('sizes.test', 'none'), ('notes', 'a, b')]
    """
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flatten(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        for at, inner in enumerate(value):
            yield from flatten(inner, f"{key}[{at}]")
    elif isinstance(value, list | tuple):
        yield key, ", ".join(map(_leaf, value)) or "none"
    else:
        yield key, _leaf(value)


def _leaf(value: object) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)


def groups(manifest: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return a manifest's flat keys and values by the title of their group; keys in no group come last."""
    grouped = {key for keys in GROUPS.values() for key in keys}
    titles = {**GROUPS, "Other": tuple(key for key in manifest if key not in grouped)}
    flat = {
        title: [item for key in keys if key in manifest for item in _items(title, key, manifest[key])]
        for title, keys in titles.items()
    }
    return {title: items for title, items in flat.items() if items}


def _items(title: str, key: str, value: object) -> Iterable[tuple[str, str]]:
    if key == "objective" and (objective := formula(value)):
        return [(key, objective)]
    # Under a heading of the same name, a key needs no prefix.
    headed = isinstance(value, Mapping) and value and (key == title.lower() or key == "software")
    return flatten(value, "" if headed else key)


def differences(runs: Iterable[Run]) -> dict[str, dict[str, str]]:
    """Return the keys on which the runs' manifests differ, with the runs that have each value.

    A run without a manifest does not count.
    """
    flat = {}
    for run in runs:
        if run.manifest:
            compared = {key: value for key, value in run.manifest.items() if key not in RUN_SPECIFIC}
            flat[run.folder.name] = dict(flatten({**compared, "objective": formula(compared.get("objective"))}))
    different = {}
    for key in dict.fromkeys(key for values in flat.values() for key in values):
        cases: dict[str, list[str]] = {}
        for name, values in flat.items():
            cases.setdefault(values.get(key, MISSING), []).append(name)
        if len(cases) > 1:
            different[key] = {value: ", ".join(names) for value, names in cases.items()}
    return different


def definitions(subject: Subject) -> list[tuple[str, str]]:
    """Return the definitions of the page's terms."""
    judgements = (section(run.evaluation, "student") for run in subject.runs)
    bins = next((len(judgement["reliability"]) for judgement in judgements if judgement.get("reliability")), None)
    by = subject.measure
    counted, points = by.counted, "accuracies" if by is records.ACCURACY else "means"
    whose = f"labelled {counted} whose class is the network's most probable one"
    if by is records.MEAN_AVERAGE_PRECISION:
        whose = "labels that are answered right, yes above a probability of 1/2, of all known ones"
    return [
        *([] if by is records.ACCURACY else [(by.title, by.definition)]),
        *([] if by.beside is None else [(beside(by)[0], records.COMPANIONS[by.beside][1])]),
        ("Accuracy", f"Share of {whose}; the {reported_epoch(subject.runs)} epoch's."),
        ("±", "Sample standard deviation over finished runs, with n - 1 in the denominator; none for one run."),
        ("Agreement", f"Share of {counted} on which student and teacher name the same class, right or wrong."),
        (
            "H(q), entropy",
            "Shannon entropy of the network's distribution q at temperature 1, natural logarithm (nats), "
            f"mean over {counted}: 0 for a certain network, log K for one that spreads evenly over K classes.",
        ),
        (
            "KL to teacher",
            f"KL(p || q), mean over {counted}, nats: teacher's distribution p and student's q, both at temperature 1. "
            "By epoch, KL to the transformed teacher: p is first transformed as the objective does.",
        ),
        (
            "ECE",
            "Expected calibration error: mean of |accuracy - confidence| over "
            f"{f'{bins} ' if bins else ''}bins of the top-1 probability, weighted by their {counted}.",
        ),
        *([("Points", f"Percentage points: a difference of two {points} in percent.")] if by.steps else []),
    ]
