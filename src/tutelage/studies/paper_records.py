"""A study's records for the paper's figures: its runs by method.

A run's method is read from its recorded objective, not from the name that the study gives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tutelage import records
from tutelage.report.figures import Style, style
from tutelage.report.reading import Run, Subject, number, parts, section, with_found
from tutelage.report.reading import text as string
from tutelage.report.table import plural
from tutelage.studies import study_table

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Method:
    """The common properties of the runs under one name of a study."""

    name: str  # name in the study
    kind: str | None  # ``ce``, ``ls`` (label smoothing), ``kd``, ``ttm``, ``wttm``; None for anything else
    supervised: bool | None  # whether there is a cross-entropy term; None if that is not recorded
    level: float | None  # share of label smoothing, KD's temperature, or gamma; None if the runs differ in it
    label: str  # label for display, unique among methods
    look: Style  # look, the same in all figures

    def is_kd_at(self, temperature: float) -> bool:
        """Whether it is KD at a temperature."""
        return self.kind == "kd" and self.level is not None and math.isclose(self.level, temperature)


@dataclass(frozen=True, kw_only=True)
class Readings:
    """A study's records."""

    title: str  # title of the study
    kinds: Sequence[str]  # figures that it requests
    pairs: Sequence[Subject]  # pairs in the study's order; their entries are methods
    methods: Sequence[Method]  # methods that have runs
    departures: Sequence[str] = ()  # deviations from the published settings


@dataclass
class Gathered:
    """Facts collected while drawing, for the caption."""

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
            lengths, seeds = _range(self.lengths, "epoch"), _range(self.counts, "seed")
            parts.append(f"Data: {', '.join(self.sources) or 'not recorded'}; {lengths}; n = {seeds}.")
        if self.thin:
            how = "drawn as far as recorded, as a thin line that ends in a cross, in no mean"
            parts.append(f"{_unfinished(self.thin)} and {how}.")
        if self.left_out:
            parts.append(f"{_unfinished(self.left_out)} and left out.")
        return " ".join(parts)


def _unfinished(count: int) -> str:
    return f"{plural(count, 'run')} {'is' if count == 1 else 'are'} not finished"


def _range(counts: set[int], unit: str) -> str:
    least, most = min(counts), max(counts)
    return f"{least} to {most} {unit}s" if least < most else plural(most, unit)


def read_study(folder: Path) -> Readings:
    """Read a study's folder with the runs that it names; raises what `study_table.read_study` does."""
    return readings(*study_table.read_study(folder))


def readings(study: records.Study, subjects: Mapping[str, Subject]) -> Readings:
    """Return what the figures need from a study that was read."""
    runs = [run for subject in subjects.values() for run in subject.runs]
    entries = {run.entry for run in runs}
    names = [name for name in dict.fromkeys([*study["methods"], *(run.entry for run in runs)]) if name in entries]
    methods = [_method(name, [run for run in runs if run.entry == name], style(at)) for at, name in enumerate(names)]
    labels = [method.label for method in methods]
    return Readings(
        title=printable(study["title"] or study["name"]),
        kinds=study["figures"],
        pairs=[replace(subject, name=printable(pair)) for pair, subject in subjects.items()],
        methods=[
            method
            if labels.count(method.label) == 1
            else replace(method, label=f"{method.label} ({printable(method.name)})")
            for method in methods
        ],
        departures=study["departures"],
    )


def printable(name: object) -> str:
    """Return a name without characters that cannot be printed or written to XML."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(name)).split())


def _method(name: str, runs: Sequence[Run], look: Style) -> Method:
    """Determine the method from the recorded objectives."""
    runs = [run for run in runs if run.manifest.get("objective")]
    kind = _common(_kind(presets(run)) for run in runs)
    argument = {"ls": "label_smoothing", "kd": "temperature", "ttm": "gamma", "wttm": "gamma"}.get(kind or "", "")
    level = _common(number(args[argument]) for run in runs for args in presets(run).values() if argument in args)
    supervised = _common(bool(terms(run).get("ce")) for run in runs if terms(run))
    label = _label(printable(name), kind, level, supervised)
    return Method(name=name, kind=kind, supervised=supervised, level=level, label=label, look=look)


def _common(values: Iterable[T]) -> T | None:
    """Return the value that all have in common."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _label(name: str, kind: str | None, level: float | None, supervised: bool | None) -> str:
    if kind is None:
        return name
    if kind == "ce":
        return "cross-entropy"
    if kind == "ls":
        return "label smoothing" if level is None else f"label smoothing {level:g}"
    sign = "T" if kind == "kd" else "γ"
    label = kind.upper() if level is None else f"{kind.upper()}, {sign} = {level:.4g}"
    return f"{label}, no cross-entropy" if supervised is False else label


def _kind(named: Mapping[str, Mapping[str, Any]]) -> str | None:
    matching = [name for name in named if name not in ("cross_entropy", "ce")]
    if not matching:
        smoothed = any(number(args.get("label_smoothing")) for args in named.values())
        return ("ls" if smoothed else "ce") if named else None
    if any(args.get("logits", "raw") != "raw" for args in named.values()):
        return None  # KD of standardised logits is a different method.
    return matching[0] if matching in (["kd"], ["ttm"], ["wttm"]) else None


def presets(run: Run) -> dict[str, Mapping[str, Any]]:
    """Return the presets of a run's last stage with their arguments, or without these if Python objects made it.

    An exponent or temperature that was found automatically is the number.
    """
    last = with_found(run.manifest)[-1]
    return {name: args if isinstance(args, Mapping) else {} for name, args, _ in parts(last)}


def terms(run: Run) -> Mapping[str, Any]:
    """Return the weights of a run's last stage by term."""
    recorded = run.manifest.get("objective_terms")
    last = recorded[-1] if isinstance(recorded, list) and recorded else recorded
    return last if isinstance(last, Mapping) else {}


def argument(runs: Iterable[Run], preset: str | None, name: str) -> float | None:
    """Return an argument of a preset that all runs have in common."""
    return _common(number(presets(run).get(preset or "", {}).get(name)) for run in runs)
