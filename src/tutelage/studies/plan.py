"""From a study to its runs: which there are, where they lie, what they share, how they depart from the study."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tutelage import config, models, records
from tutelage.config.schema import Network, Recipe, RecipeError
from tutelage.objectives import from_recipe
from tutelage.runs import execute, manifest
from tutelage.runs.setup import build_objectives, parse
from tutelage.settings.fit import Constant, Cosine, MultiStep, Step
from tutelage.settings.objective import ObjectiveSpec
from tutelage.studies.schema import FOLDER, PRECISION, STAND_IN, TEACHER, Method, Pair, Study, merged, slug, unknown

WHERE = {"protocol.data.source", "protocol.data.image", "protocol.data.label", "protocol.outputs"}
"""Keys that say where data and recorded outputs lie; what they are is checked by their fingerprints."""
FREE = {f"protocol.{key}" for key in execute.FREE}


class Job(NamedTuple):
    """One run of a study.

    Attributes:
        recipe: its name is the run's folder, relative to that of all runs.
        pair: the first pair that it belongs to.
        method: ``teacher`` where it trains the pair's teacher.
        needs: the name of the teacher's run that has to be finished first.
        teacher: the name of the run of the pair's teacher, whether or not this one asks it.
    """

    recipe: Recipe
    pair: str
    method: str
    needs: str | None = None
    teacher: str | None = None

    @property
    def name(self) -> str:
        """The run's folder, relative to that of all runs."""
        return self.recipe.name


@dataclass(frozen=True)
class StudyRequest:
    """What of a study is to be done, and how.

    Attributes:
        study: with what was overridden.
        plain: as it is written.
        runs: the folder of all runs.
        pool: the folder in it that this study's runs lie in.
        pairs: those to do.
        methods: those to do.
        seeds: runs of each method; none for as many as the study says.
        epochs: of the protocol, where they are others than the study's; schedules are scaled with them.
        departures: how its runs differ from those of the study as it is written, a line each; `departures` adds how
            many there are.
    """

    study: Study
    plain: Study
    runs: Path
    pool: str
    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int | None = None
    epochs: int | None = None
    departures: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The study's own folder."""
        return self.runs / self.pool / self.study.name

    @property
    def factor(self) -> float:
        """Epochs to do over the study's."""
        return self.epochs / self.study.recipe.epochs if self.epochs else 1.0

    @property
    def missing(self) -> dict[str, str]:
        """The study's methods that cannot be run, and why."""
        return {
            name: f"not built: {', '.join(method.missing)}"
            for name, method in self.study.methods.items()
            if method.missing
        }


def assign(
    plain: Study,
    given: Study,
    *,
    runs: Path,
    pairs: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: int | None = None,
    epochs: int | None = None,
    pool: str | None = None,
) -> StudyRequest:
    """Say what is to be done.

    Args:
        plain: the study as it is written.
        given: with what was overridden.
        runs: the folder of all runs.
        pairs: those to do; none given for all.
        methods: those to do; none given for all.
        seeds: runs of each method.
        epochs: instead of the protocol's; decays of the learning rate and warm-ups are scaled with them.
        pool: the folder of the runs; by default the study's with a suffix that says what is otherwise.

    Raises:
        RecipeError: a name is unknown, a number is out of range, or two runs that differ would share a folder.
    """
    found = [
        f"--{key}: {unknown('a name of the study', name, tuple(known))}"
        for key, names, known in (("pairs", pairs, given.pairs), ("methods", methods, given.methods))
        for name in names
        if name not in known
    ]
    found += [
        f"--{key}: expected a whole number >= 1, got {value}; for example --{key} 2"
        for key, value in (("seeds", seeds), ("epochs", epochs))
        if value is not None and value < 1
    ]
    if pool is not None and not re.fullmatch(FOLDER, pool):
        found.append(
            f"--pool: expected a folder's name of letters, digits, `.`, `_` and `-`, got {pool!r}; "
            "for example --pool mine"
        )
    if found:
        raise RecipeError("\n".join(found))
    changed = _changed(identity(plain), identity(given))
    scaled = epochs if epochs != given.recipe.epochs else None
    assignment = StudyRequest(
        study=given,
        plain=plain,
        runs=runs,
        pool=pool or (given.pool or given.name) + _suffix({k: v for k, (_, v) in changed.items()}, scaled),
        pairs=tuple(name for name in given.pairs if name in pairs or not pairs),
        methods=tuple(name for name in given.methods if name in methods or not methods),
        seeds=seeds,
        epochs=scaled,
    )
    return replace(assignment, departures=tuple(_otherwise(assignment)))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what two studies' runs are made of where it differs: each key's two values."""

    def filled(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether an empty section of one has keys in the other, which say it all."""
        return one.get(key) == {} and key not in other and any(inner.startswith(f"{key}.") for inner in other)

    return {
        key: (before.get(key), now.get(key))
        for key in {**before, **now}
        if before.get(key) != now.get(key) and not filled(key, before, now) and not filled(key, now, before)
    }


def identity(study: Study) -> dict[str, Any]:
    """Return all that a study's runs are made of, by dotted keys; what says how they are done is left out."""
    protocol = study.recipe.model_dump(mode="json", exclude={*STAND_IN, "teacher", "objective", "stages"})
    whole = {
        # Stages as they are written: what they do not say is the protocol's.
        "protocol": {**protocol, "stages": study.protocol.get("stages") or []},
        "teacher_seed": study.teacher_seed,
        "pairs": {name: pair.model_dump(mode="json", exclude={"published"}) for name, pair in study.pairs.items()},
        "methods": {
            name: method.model_dump(mode="json", exclude={"published", "seeds"})
            for name, method in study.methods.items()
        },
    }
    return {key: value for key, value in flat(whole) if key not in FREE}


def flat(value: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a nested mapping's leaves with dotted keys.

    Example:
        >>> dict(flat({"data": {"flip": True}, "epochs": 3}))
        {'data.flip': True, 'epochs': 3}
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{above}.{key}" if above else str(key))
    else:
        yield above, value


def _suffix(changed: Mapping[str, Any], epochs: int | None) -> str:
    """Name a pool after what is otherwise in it: epochs in words, the rest by six digits that follow from it."""
    other = {key: value for key, value in changed.items() if key not in WHERE}
    mark = hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()[:6] if other else ""
    named = f"-{epochs}epoch{'' if epochs == 1 else 's'}" if epochs else ""
    return named + (f"-{mark}" if mark else "")


SCALED = {
    "protocol.epochs": "epochs:",
    "protocol.schedule.milestones": "the learning rate decays after",
    "protocol.schedule.every": "the learning rate decays every",
    "protocol.schedule.warmup": "warm-up",
}
"""What ``--epochs`` changes of a protocol."""


def _otherwise(assignment: StudyRequest) -> Iterator[str]:
    """Say how the runs differ from those of the study as it is written, each key once."""
    before, now = identity(assignment.plain), identity(assignment.study)
    told: dict[str, tuple[Any, Any]] = {}
    if assignment.epochs:
        recipe = scaled(assignment.study.recipe, assignment.factor).model_dump(mode="json")
        short = dict(flat({"protocol": {key: recipe[key] for key in ("epochs", "schedule")}}))
        now |= {key: value for key, value in short.items() if key in now}
        told = {key: pair for key, pair in _changed(before, now).items() if key in SCALED and None not in pair}
    if told:
        yield "; ".join(f"{SCALED[key]} {_listed(new)} instead of {_listed(old)}" for key, (old, new) in told.items())
    for key, (old, new) in _changed(before, now).items():
        if key not in told:
            yield f"{key.removeprefix('protocol.')}: {_shown(new)} instead of {_shown(old)}"


def departures(assignment: StudyRequest, shown: Sequence[Job]) -> list[str]:
    """Say how a table departs from the study as it is written, a line each.

    Args:
        assignment: what is asked for.
        shown: the runs that the table is of, whichever command they were asked for by.
    """
    counts = Counter((job.method, job.pair) for job in shown)
    other = {place: (number, runs_of(assignment.plain, place[0])) for place, number in counts.items()}
    lines = []
    for new, old in dict.fromkeys(both for both in other.values() if both[0] != both[1]):
        concerned = [place for place, both in other.items() if both == (new, old)]
        of = "" if len(concerned) == len(other) else f" ({', '.join(_places(concerned, list(other)))})"
        lines.append(f"seeds: {new} instead of {old}{of}")
    return [*lines, *assignment.departures]


def _places(concerned: Sequence[tuple[str, str]], every: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Name methods, and those of their pairs that are concerned where not all are."""
    for method in dict.fromkeys(method for method, _ in concerned):
        pairs, known = ([pair for one, pair in places if one == method] for places in (concerned, every))
        yield method if pairs == known else f"{method} of {' and '.join(pairs)}"


def runs_of(study: Study, method: str, asked: int | None = None) -> int:
    """Return how many runs of a method there are to be."""
    known = study.methods.get(method)
    return asked or (known and known.seeds) or study.seeds


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return str(manifest.without_paths(value))
    return ", ".join(map(str, value)) if isinstance(value, tuple) else json.dumps(manifest.without_paths(value))


# Recipes


def jobs(assignment: StudyRequest) -> list[Job]:
    """Return the runs that are asked for, each once, in the order they are done in: pair by pair, the teacher first.

    Raises:
        RecipeError: two runs that differ would share a folder.
    """
    found: dict[str, Job] = {}
    for pair in assignment.pairs:
        students = students_of(assignment, pair)
        wanted = {job.needs for job in students if job.needs}
        trained = teacher_of(assignment, pair)
        for job in ([trained] if trained and trained.name in wanted else []) + students:
            other = found.setdefault(job.name, job)
            if other.recipe != job.recipe:
                raise RecipeError(
                    f"study: expected runs that differ to have names that do, got two for {job.name}, of "
                    f"{other.pair} and of {job.pair}; rename a pair or a method"
                )
    return list(found.values())


def teacher_of(assignment: StudyRequest, pair: str) -> Job | None:
    """Return the run of a pair's teacher; none where the teacher is there already."""
    study = assignment.study
    trained = study.pairs[pair].training(study.teacher_seed)
    if trained is None:
        return None
    recipe = study.recipe.model_copy(update={"teacher": trained}).training("teacher")
    assert recipe is not None
    label = slug(pair.partition("/")[0])
    name = f"{assignment.pool}/teachers/{label}-seed{recipe.seed}"
    recipe = scaled(recipe, assignment.factor).model_copy(update={"name": name})
    return Job(recipe, pair, TEACHER, teacher=name)


def cells(assignment: StudyRequest) -> list[Job]:
    """Return the runs of students that the table is of: those that are asked for, and those that are there already.

    A run that several pairs share is named for each of them.
    """
    return [job for pair in assignment.study.pairs for job in students_of(assignment, pair, there=True)]


def students_of(assignment: StudyRequest, pair: str, *, there: bool = False) -> list[Job]:
    """Return the runs of a pair's students that are asked for, seed by seed; and those that are there already."""
    study = assignment.study
    teacher = teacher_of(assignment, pair)
    found: list[tuple[int, int, Job]] = []
    for place, (name, method) in enumerate(study.methods.items()):
        if method.missing:
            continue
        recipe = _recipe(assignment, pair, study.pairs[pair], name, method, teacher)
        needs = teacher.name if teacher and recipe.teacher is not None else None
        wanted = range(runs_of(study, name, assignment.seeds)) if pair in assignment.pairs else ()
        asked = {study.recipe.seed + k for k in wanted if name in assignment.methods}
        for seed in asked | (_there(assignment.runs / recipe.name) if there else set()):
            own: dict[str, Any] = {"seed": seed, "data_seed": study.recipe.data_seed + seed - study.recipe.seed}
            if recipe.outputs is not None:
                own["outputs"] = f"{recipe.outputs}/{slug(pair.partition('/')[0])}-data{own['data_seed']}"
            one = recipe.model_copy(update={**own, "name": f"{recipe.name}-seed{seed}"})
            found.append((seed, place, Job(one, pair, name, needs, teacher.name if teacher else None)))
    return [job for _, _, job in sorted(found, key=lambda entry: entry[:2])]


def _there(stem: Path) -> set[int]:
    """The seeds of the runs that are there, by the beginning of their folders' names."""
    found = (re.fullmatch(r"(.+)-seed(\d+)", path.name) for path in stem.parent.glob(f"{stem.name}-seed*"))
    return {
        int(match[2])
        for match in found
        if match and match[1] == stem.name and (stem.parent / match[0] / records.MANIFEST).exists()
    }


def _recipe(
    assignment: StudyRequest, pair: str, networks: Pair, name: str, method: Method, teacher: Job | None
) -> Recipe:
    """Return the recipe of a method's runs for one pair; its name lacks the seed."""
    value = {
        **merged({**PRECISION, **assignment.study.protocol}, networks.settings, method.settings),
        "name": f"{assignment.pool}/x",
        "student": networks.student,
        "objective": method.entry(pair),
    }
    recipe = parse(Recipe, value, where=f"{assignment.study.name}: {pair}, {name}")
    taught = any(objective.needs.teacher for objective in build_objectives(recipe))
    # What no teacher takes part in is the same for every teacher.
    folder = slug(pair) if taught else f"students/{slug(pair.partition('/')[2])}"
    changes: dict[str, Any] = {"name": f"{assignment.pool}/{folder}{'/' if taught else '-'}{slug(name)}"}
    if not taught:
        changes["outputs"] = None
    if taught:
        changes["teacher"] = Network(name=str(assignment.runs / teacher.name)) if teacher else networks.teacher
    return scaled(recipe, assignment.factor).model_copy(update=changes)


def rehearsals(assignment: StudyRequest) -> list[Recipe]:
    """Return a recipe for each method on each pair, the first run's, to try in a dry run."""
    first: dict[tuple[str, str], Job] = {}
    for pair in assignment.pairs:
        for job in students_of(assignment, pair):
            first.setdefault((pair, job.method), job)
    return [rehearsed(assignment, job) for job in first.values()]


def rehearsed(assignment: StudyRequest, job: Job) -> Recipe:
    """Return a run's recipe for a dry run, in which a teacher that is not trained yet is one to train."""
    if job.needs is None or execute.finished(assignment.runs / job.needs):
        return job.recipe
    trained = assignment.study.pairs[job.pair].training(assignment.study.teacher_seed)
    assert trained is not None
    train, factor = trained.train, assignment.factor
    short = {
        "epochs": train.epochs and _epochs(train.epochs, factor),
        "objective": train.objective and _objective(train.objective, factor),
    }
    return job.recipe.model_copy(
        update={"teacher": trained.model_copy(update={"train": train.model_copy(update=short)})}
    )


# Fewer epochs, or more


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """Return a recipe with its epochs times a factor, and with them decays and warm-ups of the learning rate.

    Warm-ups of an objective's weights are scaled too.

    Example:
        >>> long = Recipe(name="x", student="mlp:8", epochs=240, schedule={"name": "multistep"})
        >>> scaled(long, 8 / 240).schedule.milestones
        (5, 6, 7)
    """
    if factor == 1:
        return recipe
    stages = tuple(
        stage.model_copy(
            update={
                "epochs": stage.epochs and _epochs(stage.epochs, factor),
                "schedule": stage.schedule and _schedule(stage.schedule, factor),
                "objective": stage.objective and _objective(stage.objective, factor),
            }
        )
        for stage in recipe.stages
    )
    changes = {
        "epochs": _epochs(recipe.epochs, factor),
        "schedule": _schedule(recipe.schedule, factor),
        "objective": _objective(recipe.objective, factor),
    }
    return recipe.model_copy(update={**changes, "stages": stages})


def _epochs(epochs: int, factor: float) -> int:
    return max(1, round(epochs * factor))


def _schedule(schedule: Constant | Step | MultiStep | Cosine, factor: float) -> Constant | Step | MultiStep | Cosine:
    short = replace(schedule, warmup=schedule.warmup * factor)
    if isinstance(short, MultiStep):
        # Decays that come together multiply; a milestone is named once, so those that fall on one epoch are one.
        return replace(short, milestones=tuple(sorted({_epochs(m, factor) for m in short.milestones})))
    return replace(short, every=_epochs(short.every, factor)) if isinstance(short, Step) else short


def _objective(spec: ObjectiveSpec, factor: float) -> ObjectiveSpec:
    return spec if factor == 1 else from_recipe(_scaled_weights(spec.to_recipe(), factor)).spec


def _scaled_weights(objective: Any, factor: float) -> Any:
    """Scale the warm-ups of an objective's weights, which are given in epochs."""
    if isinstance(objective, list):
        return [_scaled_weights(one, factor) for one in objective]
    if not isinstance(objective, dict):
        return objective
    found = {key: _scaled_weights(value, factor) for key, value in objective.items()}
    if found.get("schedule") == "warm_up" and isinstance(found.get("epochs"), int):
        found["epochs"] = _epochs(found["epochs"], factor)
    return found


# What is there already


def differences(assignment: StudyRequest, job: Job, *, fingerprint: str | None = None) -> list[str]:
    """Say how the run in a job's folder differs from the one that is planned; nothing where there is none.

    Args:
        assignment: what the job is of.
        job: what is planned.
        fingerprint: of the job's data as they are now; none where it is not known.
    """
    folder = assignment.runs / job.name
    if not (folder / records.RECIPE).exists():
        return []
    then = config.parse(Recipe, config.read(folder / records.RECIPE), where=str(folder / records.RECIPE))
    was, planned = (dict(flat(_essence(recipe, taught=job.needs is not None))) for recipe in (then, job.recipe))
    keys = [key for key in {**was, **planned} if was.get(key) != planned.get(key)]
    left_out = {key.removeprefix("protocol.") for key in FREE | WHERE}
    found = [f"{key} was {_shown(was.get(key))}, is {_shown(planned.get(key))}" for key in keys if key not in left_out]
    recorded = records.read_json(folder / records.MANIFEST) if (folder / records.MANIFEST).exists() else {}
    data = recorded.get("data", {}).get("fingerprint")
    if fingerprint and data and data != fingerprint:
        found.append(f"the data's fingerprint was {data}, is {fingerprint}")
    taught = (recorded.get("teacher") or {}).get("fingerprint")
    teacher = _teachers_weights(job.recipe)
    if taught and teacher and taught not in (teacher, _rounded_from(job.recipe, teacher)):
        found.append(f"the teacher's fingerprint was {taught}, is {teacher}")
    return found


def _teachers_weights(recipe: Recipe) -> str | None:
    """Return the fingerprint of a recipe's teacher as it is now; none where it is no run's folder, or not there."""
    if not isinstance(recipe.teacher, Network) or recipe.teacher.weights is not None:
        return None
    path = Path(recipe.teacher.name) / records.STUDENT
    return _fingerprint(path.resolve(), path.stat().st_mtime_ns) if path.is_file() else None


def _rounded_from(recipe: Recipe, fingerprint: str) -> str | None:
    """Return the fingerprint that a recipe's teacher had before it was rounded to be carried; none where it was not."""
    if not isinstance(recipe.teacher, Network):
        return None
    path = Path(recipe.teacher.name) / records.MANIFEST
    rounded = (records.read_json(path).get("rounded") or {}) if path.is_file() else {}
    return rounded.get("from") if rounded.get("fingerprint") == fingerprint else None


@functools.lru_cache(maxsize=256)
def _fingerprint(path: Path, written: int) -> str:
    """Return the fingerprint of a network with a file's weights; a file is read once for as long as it is as it was.

    A network holds in float32 what a file rounds to half precision.
    """
    state = models.read(path)
    return models.fingerprint(
        {k: v.float() if v.is_floating_point() and v.itemsize < 4 else v for k, v in state.items()}
    )


def _essence(recipe: Recipe, *, taught: bool) -> dict[str, Any]:
    value = recipe.model_dump(mode="json", exclude={"name"})
    if taught and value["teacher"]:
        # The pool may have been moved, with its teachers.
        value["teacher"] = Path(value["teacher"].get("name", "")).name
    return value


def _carried(assignment: StudyRequest, shown: Sequence[Job]) -> Iterator[str]:
    """Say which teachers are rounded copies of those that were trained."""
    for name in dict.fromkeys(job.teacher for job in shown if job.teacher):
        path = assignment.runs / name / records.MANIFEST
        rounded = records.read_json(path).get("rounded") if path.is_file() else None
        if rounded:
            yield (
                f"{name}: a copy in {rounded['to']} of the teacher that was trained; runs from before that "
                "were taught by the float32 weights."
            )


def record(assignment: StudyRequest, shown: Sequence[Job]) -> records.Study:
    """Return what ``study.json`` says; the runs shown are those that its table is of."""
    study = assignment.study

    def place(name: str) -> str:
        return Path(os.path.relpath(assignment.runs / name, assignment.folder)).as_posix()

    published = [(pair, TEACHER, value.published) for pair, value in study.pairs.items()]
    published += [
        (pair, name, value)
        for name, method in study.methods.items()
        for pair in study.pairs
        if (value := method.published.get(pair))
    ]
    return {
        "name": study.name,
        "title": study.title,
        "source": study.source,
        "pairs": list(study.pairs),
        "methods": list(study.methods),
        "cells": [
            {
                "folder": place(job.name),
                "pair": job.pair,
                "teacher": place(job.teacher) if job.teacher else None,
                "method": job.method,
                "seed": job.recipe.seed,
            }
            for job in shown
        ],
        "published": [
            {"pair": pair, "method": name, "mean": value.mean, "std": value.std, "n": value.n}
            for pair, name, value in published
            if value
        ],
        "figures": list(study.figures),
        "costs": study.costs,
        "departures": departures(assignment, shown),
        "missing": assignment.missing,
        "notes": [*study.notes, *_carried(assignment, shown)],
    }
