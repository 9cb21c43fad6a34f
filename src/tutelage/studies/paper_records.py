"""A study's records as the paper's figures need them: its runs by method.

Which method a run is of is read from its recorded objective, not from the name that the study gives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tutelage.report.figures import Style, style
from tutelage.report.reading import Run, Subject, number, parts, section, stages
from tutelage.report.reading import text as string
from tutelage.studies import study_table


@dataclass(frozen=True)
class Method:
    """What the runs under one name of a study have in common."""

    name: str  # in the study
    kind: str | None  # ``ce``, ``ls`` (label smoothing), ``kd``, ``ttm``, ``wttm``; none for anything else
    supervised: bool | None  # whether a cross-entropy term takes part; none where that is not recorded
    level: float | None  # the share of label smoothing, KD's temperature, or gamma; none where the runs differ in it
    label: str  # for people, different from every other method's
    look: Style  # the same in all figures

    def is_kd_at(self, temperature: float) -> bool:
        """Whether it is KD at a temperature."""
        return self.kind == "kd" and self.level is not None and math.isclose(self.level, temperature)


@dataclass(frozen=True, kw_only=True)
class Readings:
    """A study's records."""

    title: str  # of the study
    kinds: Sequence[str]  # the figures that it asks for
    subjects: Mapping[str, Subject]  # its runs by pair, in the study's order
    methods: Mapping[str, Method]  # by name, those that have runs
    departures: Sequence[str]  # how it was run otherwise than published

    def of(self, pair: str, method: str, *, finished: bool = True) -> tuple[Run, ...]:
        """Return a method's finished runs on a pair, or those that are not."""
        return self.subjects[pair].of(method, finished=finished)


@dataclass
class Gathered:
    """What was met on the way, for the caption."""

    sources: dict[str, None] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)
    counts: set[int] = field(default_factory=set)
    pending: list[str] = field(default_factory=list)
    thin: int = 0
    left_out: int = 0

    def meet(self, runs: Iterable[Run]) -> None:
        """Note finished runs that a figure shows."""
        runs = list(runs)
        self.counts.add(len(runs))
        for run in runs:
            self.lengths.add(len(run.epochs))
            if source := string(section(run.manifest, "data").get("source")):
                self.sources[printable(source)] = None

    def wait_for(self, run: Run, method: Method, pair: str, *, drawn: bool) -> None:
        """Note a run that is not finished."""
        self.thin += drawn
        self.left_out += not drawn
        planned = number(section(run.manifest, "recipe").get("epochs"))
        done = f"{len(run.epochs)} epochs done" if planned is None else f"{len(run.epochs)} of {planned:g} epochs done"
        seed = "" if run.seed is None else f", seed {run.seed}"
        fate = "thin line, in no mean" if drawn else "left out"
        self.pending.append(f"{pair}, {method.label}{seed}: {run.status}, {done}; {fate}")

    def words(self) -> str:
        """Say what was run, and what is missing."""
        parts = []
        if self.counts:
            said = ", ".join(self.sources) or "not recorded"
            least, most = min(self.counts), max(self.counts)
            seeds = f"n = {most} {_plural(most, 'seed')}" if least == most else f"n = {least} to {most} seeds"
            parts.append(f"Data: {said}; {_range(self.lengths)}; {seeds}.")
        if self.thin:
            verb = "is" if self.thin == 1 else "are"
            parts.append(
                f"{self.thin} {_plural(self.thin, 'run')} {verb} not finished and drawn as far as recorded, as a "
                "thin line that ends in a cross, in no mean."
            )
        if self.left_out:
            verb = "is" if self.left_out == 1 else "are"
            parts.append(f"{self.left_out} {_plural(self.left_out, 'run')} {verb} not finished and left out.")
        return " ".join(parts)


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _range(lengths: set[int]) -> str:
    least, most = min(lengths), max(lengths)
    return f"{most} {_plural(most, 'epoch')}" if least == most else f"{least} to {most} epochs"


def read_study(folder: Path, subjects: Mapping[str, Subject] | None = None) -> Readings:
    """Read a study's folder, and its runs unless they were read already; what is missing of a run is left empty."""
    study = study_table.read_study(folder)
    subjects = study_table.subjects(folder) if subjects is None else subjects
    runs: dict[str, list[Run]] = {name: [] for name in study["methods"]}
    for run in (run for subject in subjects.values() for run in subject.runs):
        runs.setdefault(run.entry, []).append(run)
    return Readings(
        title=printable(study["title"] or study["name"]),
        kinds=study["figures"],
        subjects={printable(pair): subject for pair, subject in subjects.items()},
        methods=_methods({name: those for name, those in runs.items() if those}),
        departures=study["departures"],
    )


def printable(name: object) -> str:
    """Return a name without what cannot be printed or written into XML."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(name)).split())


def _methods(runs: Mapping[str, Sequence[Run]]) -> dict[str, Method]:
    methods = [_method(name, those, style(at)) for at, (name, those) in enumerate(runs.items())]
    labels = [method.label for method in methods]
    return {
        method.name: method
        if labels.count(method.label) == 1
        else replace(method, label=f"{method.label} ({printable(method.name)})")
        for method in methods
    }


def _method(name: str, runs: Sequence[Run], look: Style) -> Method:
    """Tell by the recorded objectives which method it is."""
    described = [run for run in runs if run.manifest.get("objective")]
    kinds = {_kind(presets(run)) for run in described}
    kind = kinds.pop() if len(kinds) == 1 else None
    argument = {"ls": "label_smoothing", "kd": "temperature", "ttm": "gamma", "wttm": "gamma"}.get(kind or "", "")
    levels = {number(args.get(argument)) for run in described for args in presets(run).values() if argument in args}
    level = levels.pop() if len(levels) == 1 else None
    supervised = {bool(terms(run).get("ce")) for run in described if terms(run)}
    with_labels = supervised.pop() if len(supervised) == 1 else None
    return Method(name, kind, with_labels, level, _label(name, kind, level, with_labels), look)


def _label(name: str, kind: str | None, level: float | None, supervised: bool | None) -> str:
    if kind is None:
        return printable(name)
    if kind == "ce":
        return "cross-entropy"
    if kind == "ls":
        return "label smoothing" if level is None else f"label smoothing {level:g}"
    sign = "T" if kind == "kd" else "γ"
    label = kind.upper() if level is None else f"{kind.upper()}, {sign} = {level:g}"
    return f"{label}, no cross-entropy" if supervised is False else label


def _kind(named: Mapping[str, Mapping[str, Any]]) -> str | None:
    matching = [name for name in named if name not in ("cross_entropy", "ce")]
    if not matching:
        smoothed = any(number(args.get("label_smoothing")) for args in named.values())
        return ("ls" if smoothed else "ce") if named else None
    if any(args.get("logits", "raw") != "raw" for args in named.values()):
        return None  # KD of standardised logits is another method than KD.
    return matching[0] if matching in (["kd"], ["ttm"], ["wttm"]) else None


def presets(run: Run) -> dict[str, Mapping[str, Any]]:
    """Return the presets of a run's last stage with their arguments; without these where Python objects made it."""
    last = (stages(run.manifest.get("objective")) or [None])[-1]
    return {name: args if isinstance(args, Mapping) else {} for name, args, _ in parts(last)}


def terms(run: Run) -> Mapping[str, Any]:
    """Return the weights of a run's last stage by term."""
    recorded = run.manifest.get("objective_terms")
    last = recorded[-1] if isinstance(recorded, list) and recorded else recorded
    return last if isinstance(last, Mapping) else {}


def argument(runs: Iterable[Run], preset: str, name: str) -> float | None:
    """Return an argument of a preset that all runs have in common."""
    values = {number(presets(run).get(preset, {}).get(name)) for run in runs}
    return values.pop() if len(values) == 1 else None
