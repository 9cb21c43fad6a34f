"""Read a run's folder, or a comparison's, into values for tables and figures.

Records of older or interrupted runs may lack keys, so anything missing is ``None`` here and never an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tutelage import records
from tutelage.errors import NotFoundError, StorageError

FINISHED = "finished"
NOT_STARTED = "not started"
NOT_EVALUATED = "finished, not evaluated"
DAMAGED = "damaged"
HELD_OUT = ("validation", "test")

Points = dict[int, float]
"""Recorded number by epoch."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run's records."""

    folder: Path  # folder of the records
    entry: str  # name in a comparison; for a single run, its objective's name
    seed: int | None  # seed; None if the records do not say
    status: str  # status, ``"finished"`` only if there also is an evaluation to report
    manifest: Mapping[str, Any]  # manifest; empty if there is none
    epochs: tuple[records.Epoch, ...]  # epochs so far
    evaluation: Mapping[str, Any] | None  # evaluation; None if the run did not reach it
    costs: Mapping[str, Any] | None = None  # `records.Costs`, if they were measured
    disputed: Mapping[str, Any] | None = None  # `records.Disputed`, if there are predictions
    damage: tuple[str, ...] = ()  # what is wrong with its records, a line for each file

    @cached_property
    def predictions(self) -> records.Predictions | None:
        """What its networks answer each sample of the test set, read when first asked for.

        ``None`` where there are none, or a damaged file, or another run's: then accuracies are not those evaluated.
        """
        try:
            answers = records.read_predictions(self.folder) if self.finished else None
        except (NotFoundError, records.DamagedError, StorageError):
            return None
        return answers if answers is not None and _are_of(answers, self.evaluation) else None

    @property
    def finished(self) -> bool:
        """Whether the run may take part in means."""
        return self.status == FINISHED

    @property
    def label(self) -> str:
        """Entry and seed, for display."""
        return self.entry if self.seed is None else f"{self.entry}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The subject of a report: one run, or a comparison of several."""

    folder: Path  # folder of its records and of its report
    name: str  # name for the headline
    runs: tuple[Run, ...]  # runs in the order of the records
    baseline: str | None = None  # entry that gains are measured against
    teacher: Run | None = None  # teacher's own run, if the comparison trained it
    comparison: bool = False  # whether this is a comparison, of however many runs
    share_data_seed: bool = False  # whether its seeds share order and views

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The first run's manifest; empty if there is none."""
        return self.runs[0].manifest if self.runs else {}

    @property
    def entries(self) -> tuple[str, ...]:
        """Entries' names, the baseline first, then in order of first appearance."""
        names = dict.fromkeys(run.entry for run in self.runs)
        return tuple(sorted(names, key=lambda name: name != self.baseline))

    @property
    def measure(self) -> records.Measure:
        """What its networks are judged by, as their evaluations say."""
        found = (
            means
            for run in self.runs
            for means in (
                section(run.evaluation, "student"),
                *(section(epoch, name) for epoch in run.epochs[:1] for name in HELD_OUT),
            )
        )
        return next((by for means in found if (by := records.measure(means)) is not records.ACCURACY), records.ACCURACY)

    def objective(self, entry: str) -> object:
        """Return an entry's objective, as recorded by the first of its runs that has begun; ``None`` before that.

        It is with the exponent or the temperature that was found.
        """
        begun = (run.manifest for run in self.runs if run.entry == entry and run.manifest.get("objective"))
        return next(map(with_found, begun), None)

    def of(self, entry: str, *, finished: bool = True) -> tuple[Run, ...]:
        """Return an entry's finished or unfinished runs."""
        return tuple(run for run in self.runs if run.entry == entry and run.finished == finished)


def reported_epoch(runs: Iterable[Run]) -> str:
    """Name the epoch whose student the runs report, ``last`` or ``best``; both where they differ."""
    said = (section(run.manifest, "selection").get("reported") == "best epoch" for run in runs)
    return " or ".join(dict.fromkeys("best" if best else "last" for best in said)) or "last"


def read(folder: Path | str) -> Subject:
    """Read the contents of a folder: a comparison if it holds ``comparison.json``, otherwise a run.

    Raises:
        FileNotFoundError: if the folder holds the records of neither.
        DamagedError: if ``comparison.json`` is damaged. Damaged records of runs are noted in the runs.
        NewerError: if a newer version wrote a record.
    """
    folder = Path(folder)
    comparison = mapping(folder / records.COMPARISON, records.Comparison)
    if comparison is not None:
        return _comparison(folder, comparison)
    if not (folder / records.MANIFEST).exists():
        expected = f"a run's or a comparison's, with {records.MANIFEST} or {records.COMPARISON} in it"
        instead = "type the folder that `tutelage train`, `distill` or `compare` printed"
        raise NotFoundError("folder", expected, repr(str(folder)), instead)
    run = read_run(folder)
    return Subject(folder=folder, name=text(run.manifest.get("name")) or folder.resolve().name, runs=(run,))


def read_run(folder: Path, *, entry: str | None = None, seed: object = None) -> Run:
    """Read one run's folder; missing parts are left empty. A given entry or seed takes precedence over the records."""
    damage: dict[str, str] = {}

    def readable(name: str, kind: Any) -> Mapping[str, Any] | None:
        try:
            return mapping(folder / name, kind)
        except (records.DamagedError, StorageError) as error:
            damage[name] = f"{folder / name}: expected {error.expected}, got {error.got}"
            return None

    recorded = readable(records.MANIFEST, records.ManifestTypes)
    evaluation = readable(records.EVALUATION, records.Evaluation)
    costs, disputed = readable(records.COSTS, records.Costs), readable(records.DISPUTED, records.Disputed)
    metrics = records.read_metrics(folder)
    if metrics.damage:
        damage[records.METRICS] = f"{folder / records.METRICS}: {'; '.join(metrics.damage)}; left out"
    manifest = recorded or {}
    for name in records.lost(folder, manifest, (records.RECIPE, records.METRICS, records.EVALUATION)):
        got = "another content" if (folder / name).exists() else "none"
        expected = f"what the run wrote, as {records.MANIFEST} has it"
        damage.setdefault(name, f"{folder / name}: expected {expected}, got {got}")
    status = text(manifest.get("status")) or (FINISHED if evaluation else "unknown")
    if records.MANIFEST in damage or (status == FINISHED and records.EVALUATION in damage):
        status = DAMAGED
    elif recorded is None:
        status = NOT_STARTED
    elif status == FINISHED and evaluation is None:
        status = NOT_EVALUATED
    seed = seed if isinstance(seed, int) else section(manifest, "seeds").get("seed")
    name = presets(manifest.get("objective")) or text(manifest.get("name")) or folder.resolve().name
    return Run(
        folder=folder,
        entry=entry or name,
        seed=seed if isinstance(seed, int) else None,
        status=status,
        manifest=manifest,
        epochs=tuple(metrics.epochs),
        evaluation=evaluation,
        costs=costs,
        disputed=disputed,
        damage=tuple(damage.values()),
    )


def _are_of(answers: records.Predictions, evaluation: Mapping[str, Any] | None) -> bool:
    """Whether predictions are those of which an evaluation tells: of its set and size, and as often right."""
    known = answers.label >= 0
    for who, given in (("student", answers.student), ("teacher", answers.teacher)):
        accuracy = number(section(evaluation, who).get("accuracy"))
        right = None if given is None else int((given == answers.label)[known].sum())
        if right is not None and accuracy is not None and abs(right - accuracy * int(known.sum())) > 0.5:
            return False
    said = section(evaluation)
    return answers.set == said.get("set") and len(answers.index) == said.get("samples")


def _comparison(folder: Path, comparison: Mapping[str, Any]) -> Subject:
    runs = []
    for entry in comparison.get("entries") or ():
        path = str(entry.get("folder", ""))
        runs.append(read_run(folder / path, entry=text(entry.get("objective")) or path, seed=entry.get("seed")))
    teacher = text(comparison.get("teacher"))
    return Subject(
        folder=folder,
        name=text(comparison.get("name")) or folder.resolve().name,
        runs=tuple(runs),
        baseline=text(comparison.get("baseline")),
        teacher=read_run(folder / teacher, entry="teacher") if teacher else None,
        comparison=True,
        share_data_seed=comparison.get("share_data_seed") is True,
    )


def mapping(path: Path, kind: Any) -> Mapping[str, Any] | None:
    """Read a JSON object of a kind, of which keys may be missing; ``None`` if there is no such file."""
    instead = "type the same command again to write it again, or restore the file"
    value: Mapping[str, Any] | None = (
        records.read_json(path, kind, partial=True, instead=instead) if path.exists() else None
    )
    return value


def section(value: Mapping[str, Any] | None, *keys: str) -> Mapping[str, Any]:
    """Return a nested object; empty if any step to it is missing or null."""
    for key in keys:
        inner = value.get(key) if value else None
        value = inner if isinstance(inner, Mapping) else {}
    return value or {}


def number(value: object) -> float | None:
    """Return a finite number unchanged, and ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON's whole numbers have no largest one.
        return None


def text(value: object) -> str | None:
    """Return a non-empty string unchanged, and ``None`` for anything else."""
    return value if isinstance(value, str) and value else None


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean, or ``None`` if there are no values or one is missing: no mean over only some of them."""
    numbers = list(values)
    known = [value for value in numbers if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(numbers) else None


def deviation(values: Sequence[float | None]) -> float | None:
    """Return the sample standard deviation (n - 1), or ``None`` for fewer than two values or if one is missing."""
    centre = mean(values)
    if centre is None or len(values) < 2:
        return None
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values if value is not None) / (len(values) - 1))


def points(run: Run, *keys: str) -> Points:
    """Return one recorded number by epoch; the epochs of later stages follow those of earlier ones."""
    curve: Points = {}
    before, stage, last = 0, None, 0
    for epoch in run.epochs:
        if epoch.get("stage") != stage:
            before, stage = before + last, epoch.get("stage")
        last = int(number(epoch.get("epoch")) or last + 1)
        value = number(section(epoch, *keys[:-1]).get(keys[-1]))
        if value is not None:
            curve[before + last] = value
    return curve


def stages(objective: object) -> list[object]:
    """Return what a manifest says about each stage's objective; older ones have one stage and no list of stages."""
    several = isinstance(objective, list) and all(isinstance(stage, list) for stage in objective)
    return list(objective) if several and isinstance(objective, list) else [objective]


FOUND = ("gamma", "temperature")
"""Arguments that say which target is matched, where they were found automatically."""


def with_found(manifest: Mapping[str, Any]) -> list[object]:
    """Return each stage's recorded objective, with the numbers of `FOUND` that the run recorded in place of auto."""
    recorded, resolved = stages(manifest.get("objective")), manifest.get("objective_resolved")
    numbers = resolved if isinstance(resolved, list) else []
    return [
        [_entry_with(entry, found) for entry in stage]
        if isinstance(stage, list) and isinstance(found, Mapping)
        else stage
        for stage, found in zip_longest(recorded, numbers[: len(recorded)])
    ]


def _entry_with(entry: object, found: Mapping[str, Any]) -> object:
    def typed(name: str, arguments: object) -> object:
        if not isinstance(arguments, Mapping):
            return arguments
        of_preset = section(found, name)
        return {
            key: of_preset.get(key, value) if key in FOUND and value == "auto" else value
            for key, value in arguments.items()
        }

    return {name: typed(name, arguments) for name, arguments in entry.items()} if isinstance(entry, Mapping) else entry


def parts(objective: object) -> list[tuple[str, object, Mapping[str, object]]]:
    """Return name and arguments of every preset of a recorded objective, and its entry."""
    entries = objective if isinstance(objective, list | tuple) else [objective]
    named = [{entry: {}} if isinstance(entry, str) else entry for entry in entries]
    mappings = [entry for entry in named if isinstance(entry, Mapping)]
    return [
        (str(name), arguments, entry)
        for entry in mappings
        for name, arguments in entry.items()
        if isinstance(name, str) and name not in records.BESIDE
    ]


def presets(objective: object) -> str | None:
    """Name the presets of every stage: ``wttm + crd``, ``hint, then kd``."""
    return ", then ".join(" + ".join(name for name, _, _ in parts(stage)) for stage in stages(objective)) or None


def formula(objective: object) -> str | None:
    """Write every stage's objective as it would be typed: ``wttm(gamma=0.1, beta=3.0) + 0.8 * crd()``."""
    return ", then ".join(filter(None, map(_formula, stages(objective)))) or None


def _formula(objective: object) -> str:
    written = []
    for name, arguments, entry in parts(objective):
        scale = entry.get("scale")
        shown = arguments.items() if isinstance(arguments, Mapping) else ()
        factor = "" if scale is None or scale == 1 else f"{scale} * "
        call = f"{name}({', '.join(f'{key}={value!r}' for key, value in shown)})"
        written.append(f"{factor}{call}{'.gathered()' if entry.get('gather') else ''}")
    return " + ".join(written)


JUDGED = ("accuracy", *records.OF_TASKS)
"""What a manifest says of a teacher's evaluation."""
Judgement = tuple[Mapping[str, Any], str | None]
"""Evaluation of a network, and the set on which it was made."""


def teachers(subject: Subject) -> list[Judgement]:
    """Return the evaluation of each different teacher, with its set.

    Students that share a teacher each record it; it counts once. If none does, the teacher's own run is read.
    """
    judged: dict[str, list[Judgement]] = {}
    for run in subject.runs:
        if judgement := section(run.evaluation, "teacher"):
            fingerprint = str(section(run.manifest, "teacher").get("fingerprint"))
            judged.setdefault(fingerprint, []).append((judgement, text(section(run.evaluation).get("set"))))
    if judged:
        return [_merged(same) for same in judged.values()]
    if subject.teacher is not None and subject.teacher.evaluation is not None:
        evaluation = subject.teacher.evaluation
        return [(section(evaluation, "student"), text(evaluation.get("set")))]
    for run in subject.runs:
        recorded = section(run.manifest, "teacher")
        if known := {key: recorded[key] for key in JUDGED if number(recorded.get(key)) is not None}:
            return [(known, text(recorded.get("set")))]
    return []


def _merged(same: Sequence[Judgement]) -> Judgement:
    """Merge evaluations of one teacher: equal on one set, averaged over several splits."""
    keys = (*JUDGED, "loss", "entropy", "ece")
    known = [key for key in keys if any(key in judgement for judgement, _ in same)]
    means = {key: mean(number(judgement.get(key)) for judgement, _ in same) for key in known}
    sets = list(dict.fromkeys(name for _, name in same))
    return {**same[0][0], **means}, sets[0] if len(sets) == 1 else " and ".join(map(str, sets))
