"""A study's runs: which there are, where they lie, what they share, and how they deviate from the study."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from tutelage import records
from tutelage.config.schema import Network, Recipe, known_presets
from tutelage.errors import RecipeError, raise_all
from tutelage.models.names import RUNS_CODE
from tutelage.runs import manifest, preflight, resume
from tutelage.runs.run import finished
from tutelage.settings.fit import Constant, Cosine, MultiStep, Step
from tutelage.settings.objective import read_objective
from tutelage.studies.schema import FOLDER, PRECISION, STAND_IN, TEACHER, Method, Study, merged, slug, unknown

Section = TypeVar("Section", bound=BaseModel)


class Job(NamedTuple):
    """One run of a study; its recipe's name is the run's folder, relative to the folder of all runs."""

    recipe: Recipe
    pair: str  # the first one that it belongs to
    method: str  # ``teacher`` where it trains the pair's teacher
    needs: str | None = None  # the name of the teacher's run that has to be finished first
    teacher: str | None = None  # the name of the run of the pair's teacher, whether or not this run uses it

    @property
    def name(self) -> str:
        """The run's folder, relative to the folder of all runs."""
        return self.recipe.name


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """What of a study is to be run, and how."""

    study: Study  # with its overrides
    plain: Study  # as it is written
    runs: Path  # the folder of all runs
    pool: str  # the folder in it that this study's runs lie in
    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int | None = None  # runs per method; none for the study's number
    epochs: int | None = None  # of the protocol, where they are not the study's; schedules are scaled with them
    trial: float | None = None  # of a search's trials: the share of the epochs that a student is trained for
    undecided: frozenset[tuple[str, str]] = frozenset()  # pairs and methods without runs until their search is done

    @property
    def folder(self) -> Path:
        """The study's own folder."""
        return self.runs / self.pool / self.study.name

    @property
    def factor(self) -> float:
        """Requested epochs over the study's."""
        return self.epochs / self.study.recipe.epochs if self.epochs else 1.0

    @property
    def missing(self) -> dict[str, str]:
        """The study's methods that cannot be run, and why."""
        methods = self.study.methods.items()
        return {name: f"not built: {', '.join(method.missing)}" for name, method in methods if method.missing}

    @functools.cached_property
    def deviations(self) -> tuple[str, ...]:
        """How the runs differ from those of the study as it is written, each key once, without the number of seeds."""
        before, after = identity(self.plain), identity(self.study)
        if self.epochs:
            recipe = scaled(self.study.recipe, self.factor).model_dump(mode="json")
            short = dict(flat({"protocol": {key: recipe[key] for key in ("epochs", "schedule")}}))
            if self.study.search:
                short["search.epochs"] = _epochs(self.study.search.epochs, self.factor)
            after |= {key: value for key, value in short.items() if key in after}
        changed = _changed(before, after)
        by_epochs = {key: pair for key, pair in changed.items() if self.epochs and key in SCALED and None not in pair}
        first = [f"{SCALED[key]} {_listed(new)} instead of {_listed(old)}" for key, (old, new) in by_epochs.items()]
        others = [
            f"{key.removeprefix('protocol.')}: {shown(new)} instead of {shown(old)}"
            for key, (old, new) in changed.items()
            if key not in by_epochs
        ]
        return tuple(["; ".join(first), *others] if first else others)


def assign(
    plain: Study,
    study: Study,
    *,
    runs: Path,
    pairs: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: int | None = None,
    epochs: int | None = None,
    pool: str | None = None,
) -> StudyRequest:
    """Check a request and fill in what it leaves open.

    Empty ``pairs`` and ``methods`` stand for all; ``epochs`` scales decays of the learning rate and warm-ups too; the
    pool is by default the study's with a suffix for what deviates from the study as it is written, ``plain``.

    Raises:
        RecipeError: a name is unknown, or a number is out of range.
    """
    errors = [
        unknown(f"--{key}", f"a {key.removesuffix('s')} of the study", name, tuple(known))
        for key, names, known in (("pairs", pairs, study.pairs), ("methods", methods, study.methods))
        for name in names
        if name not in known
    ]
    errors += [
        RecipeError(f"--{key}", "a whole number >= 1", value, f"for example --{key} 2")
        for key, value in (("seeds", seeds), ("epochs", epochs))
        if value is not None and value < 1
    ]
    first = max(study.recipe.seed, study.recipe.data_seed) if seeds else 0
    if seeds and first + seeds > 2**63:
        instead = "type seed=0 data_seed=0"
        errors.append(RecipeError("--seeds", "seeds up to 2**63 - 1", f"{seeds} from {first} on", instead))
    if pool is not None and not re.fullmatch(FOLDER, pool):
        name = "a folder's name of letters, digits, `.`, `_` and `-`"
        errors.append(RecipeError("--pool", name, repr(pool), "for example --pool mine"))
    raise_all(errors, RecipeError)
    epochs = epochs if epochs != study.recipe.epochs else None
    return StudyRequest(
        study=study,
        plain=plain,
        runs=runs,
        pool=pool or (study.pool or study.name) + _suffix(plain, study, epochs),
        pairs=tuple(name for name in study.pairs if name in pairs or not pairs),
        methods=tuple(name for name in study.methods if name in methods or not methods),
        seeds=seeds,
        epochs=epochs,
    )


def check_names(request: StudyRequest) -> None:
    """Refuse data that are not there, and names that no network has where no pair is without one.

    Otherwise they fail their own runs, and do not stop the others.

    Raises:
        TutelageError: such as an `InvalidValueError`, of all names at once.
    """
    errors = []
    for name in request.pairs:
        pair = request.study.pairs[name]
        networks = [
            (f"pairs.{name}.{key}", Network(name=network.name))
            for key, network in preflight.networks_of(pair.student, pair.teacher)
            if "/" not in network.name
            and not network.name.startswith(RUNS_CODE)  # a finished run needs no path any more
        ]
        errors.append(list(preflight.network_errors(networks)))
    wrong = [error for each in errors for error in each] if all(errors) else []
    raise_all([*wrong, *preflight.source_errors(request.study.recipe.data)])


def identity(study: Study) -> dict[str, Any]:
    """Return all that a study's runs consist of, by dotted keys, without the keys that change no result."""
    protocol = study.recipe.model_dump(mode="json", exclude={*STAND_IN, "teacher", "objective", "stages"})
    whole = {
        # Stages as they are written: the protocol fills in what they leave open.
        "protocol": {**protocol, "stages": study.protocol.get("stages") or []},
        "teacher_seed": study.teacher_seed,
        "pairs": {name: pair.model_dump(mode="json", exclude={"published"}) for name, pair in study.pairs.items()},
        "methods": {
            name: method.model_dump(
                mode="json", exclude={"published", "seeds", *(() if method.candidates else ("candidates",))}
            )
            for name, method in study.methods.items()
        },
        **({"search": study.search.model_dump(mode="json")} if study.search else {}),
    }
    return {key: value for key, value in flat(whole) if key.removeprefix("protocol.") not in resume.FREE}


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a nested mapping's leaves with dotted keys.

    Example:
        >>> dict(flat({"data": {"flip": True}, "epochs": 3}))
        {'data.flip': True, 'epochs': 3}
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


# Deviations from the study as it is written

SCALED = {
    "protocol.epochs": "epochs:",
    "search.epochs": "epochs of a trial:",
    "protocol.schedule.milestones": "the learning rate decays after",
    "protocol.schedule.every": "the learning rate decays every",
    "protocol.schedule.warmup": "warm-up",
}
"""What ``--epochs`` changes of a protocol."""


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return both values of each key of `identity` that differs between two studies.

    A section that is empty in one study and has keys in the other is left out: those are listed themselves.
    """
    values = {key: (before.get(key), after.get(key)) for key in {**before, **after}}
    return {
        key: (old, new)
        for key, (old, new) in values.items()
        if old != new and not ({} in (old, new) and any(inner.startswith(f"{key}.") for inner in values))
    }


def _suffix(plain: Study, study: Study, epochs: int | None) -> str:
    """Name a pool after what deviates in it: epochs in words, anything else by six digits of a hash."""
    changed = _changed(identity(plain), identity(study)).items()
    other = {key: new for key, (_, new) in changed if key.removeprefix("protocol.") not in resume.WHERE}
    suffix = f"-{epochs}epoch{'' if epochs == 1 else 's'}" if epochs else ""
    return f"{suffix}-{hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()[:6]}" if other else suffix


def deviations(request: StudyRequest, jobs: Sequence[Job]) -> list[str]:
    """Describe how a table of these runs, whoever asked for them, deviates from the study as it is written."""
    counts = Counter((job.method, job.pair) for job in jobs)
    both = {cell: (number, runs_of(request.plain, cell[0])) for cell, number in counts.items()}
    lines = []
    for new, old in dict.fromkeys(numbers for numbers in both.values() if numbers[0] != numbers[1]):
        cells = [cell for cell, numbers in both.items() if numbers == (new, old)]
        of = "" if len(cells) == len(both) else f" ({', '.join(_cell_names(cells, list(both)))})"
        lines.append(f"seeds: {new} instead of {old}{of}")
    return [*lines, *request.deviations]


def _cell_names(cells: Sequence[tuple[str, str]], every: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Name the methods of some cells, and their pairs where not all pairs of a method are among them."""
    for method in dict.fromkeys(method for method, _ in cells):
        pairs, known = ([pair for name, pair in of if name == method] for of in (cells, every))
        yield method if pairs == known else f"{method} of {' and '.join(pairs)}"


def runs_of(study: Study, method: str, seeds: int | None = None) -> int:
    """Return the number of runs of a method."""
    known = study.methods.get(method)
    return seeds or (known and known.seeds) or study.seeds


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else shown(value)


def shown(value: Any) -> str:
    """Show a setting in a record, without paths."""
    return resume.shown(manifest.without_paths(value))


# Runs


def jobs(request: StudyRequest) -> list[Job]:
    """Return the requested runs, each once, in the order of their execution: pair by pair, the teacher first.

    Raises:
        RecipeError: two runs that differ would share a folder.
    """
    planned: dict[str, Job] = {}
    for pair in request.pairs:
        teacher = teacher_of(request, pair)
        for job in without_idle_teachers([*([teacher] if teacher else []), *students_of(request, pair)]):
            other = planned.setdefault(job.name, job)
            if other.recipe != job.recipe:
                got = f"two for {job.name}, of {other.pair} and of {job.pair}"
                raise RecipeError("study", "runs that differ to have names that do", got, "rename a pair or a method")
    return list(planned.values())


def without_idle_teachers(jobs: Iterable[Job]) -> list[Job]:
    """Leave out the teachers that none of the other runs needs."""
    jobs = list(jobs)
    needed = {job.needs for job in jobs}
    return [job for job in jobs if job.method != TEACHER or job.name in needed]


def teacher_of(request: StudyRequest, pair: str) -> Job | None:
    """Return the run of a pair's teacher; none where the teacher is trained already."""
    study = request.study
    trained = study.pairs[pair].training(study.teacher_seed)
    if trained is None:
        return None
    recipe = study.recipe.model_copy(update={"teacher": trained}).training("teacher")
    assert recipe is not None
    name = f"{request.pool}/teachers/{slug(pair.partition('/')[0])}-seed{recipe.seed}"
    recipe = scaled(recipe, request.factor).model_copy(update={"name": name})
    return Job(recipe=recipe, pair=pair, method=TEACHER, teacher=name)


def cells(request: StudyRequest) -> list[Job]:
    """Return the students' runs in the table: the requested ones and those that exist already.

    A run that several pairs share is listed for each of them.
    """
    return [job for pair in request.study.pairs for job in students_of(request, pair, existing=True)]


def students_of(request: StudyRequest, pair: str, *, existing: bool = False) -> list[Job]:
    """Return the requested runs of a pair's students, seed by seed, with ``existing`` also those that exist already."""
    study = request.study
    job = teacher_of(request, pair)
    teacher = job.name if job else None
    students: list[Job] = []
    for name, method in study.methods.items():
        if method.missing or (pair, name) in request.undecided:
            continue
        recipe = _recipe(request, pair, name, method, teacher)
        needs = teacher if recipe.teacher is not None else None
        seeds = _existing_seeds(request.runs / recipe.name) if existing else set()
        if pair in request.pairs and name in request.methods:
            seeds |= {study.recipe.seed + k for k in range(runs_of(study, name, request.seeds))}
        for seed in seeds:
            data_seed = study.recipe.data_seed + seed - study.recipe.seed
            changes: dict[str, Any] = {"seed": seed, "data_seed": data_seed, "name": f"{recipe.name}-seed{seed}"}
            if recipe.outputs is not None:
                views = "" if recipe.teacher_reads_text else f"-data{data_seed}"
                trials = "" if request.trial is None else "-trials"  # of fewer samples
                changes["outputs"] = f"{recipe.outputs}/{slug(pair.partition('/')[0])}{views}{trials}"
            run = recipe.model_copy(update=changes)
            students.append(Job(recipe=run, pair=pair, method=name, needs=needs, teacher=teacher))
    return sorted(students, key=lambda job: job.recipe.seed)


def _existing_seeds(stem: Path) -> set[int]:
    """Return the seeds of the existing runs whose folders' names begin with this path."""
    folders = (path.parent.name for path in stem.parent.glob(f"*/{records.MANIFEST}"))
    matches = (re.fullmatch(rf"{re.escape(stem.name)}-seed(\d+)", name) for name in folders)
    return {int(match[1]) for match in matches if match}


def _recipe(request: StudyRequest, pair: str, name: str, method: Method, teacher: str | None) -> Recipe:
    """Return the recipe of a method's runs for one pair; its name lacks the seed."""
    from tutelage.runs.setup import needs_teacher, parse  # imports torch, and a request is checked without it

    networks = request.study.pairs[pair]
    value = {
        **merged({**PRECISION, **request.study.protocol}, networks.settings, method.settings),
        "name": f"{request.pool}/x",
        "student": networks.student,
        "objective": method.entry(pair),
    }
    recipe = parse(Recipe, value, where=f"{request.study.name}: {pair}, {name}")
    changes: dict[str, Any]
    if needs_teacher(recipe):
        network = networks.teacher
        if teacher:
            network = Network(name=(request.runs / teacher).as_posix(), reads=network.reads)
        changes = {"name": f"{request.pool}/{slug(pair)}/{slug(name)}", "teacher": network}
    else:
        # A run without a teacher is the same for all teachers.
        student = slug(pair.partition("/")[2])
        changes = {"name": f"{request.pool}/students/{student}-{slug(name)}", "outputs": None}
    return scaled(recipe, request.factor * (request.trial or 1)).model_copy(update=changes)


def dry_run_recipes(request: StudyRequest) -> list[Recipe]:
    """Return the first run's recipe of each method on each pair, to try in a dry run."""
    students = (job for pair in request.pairs for job in students_of(request, pair))
    return [dry_run_recipe(request, job) for job in students if job.recipe.seed == request.study.recipe.seed]


def dry_run_recipe(request: StudyRequest, job: Job) -> Recipe:
    """Return a run's recipe for a dry run, in which an untrained teacher is one to train."""
    if job.needs is None or finished(request.runs / job.needs):
        return job.recipe
    trained = request.study.pairs[job.pair].training(request.study.teacher_seed)
    assert trained is not None
    teacher = trained.model_copy(update={"train": _scaled(trained.train, request.factor)})
    return job.recipe.model_copy(update={"teacher": teacher})


# Another number of epochs


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """Return a recipe with its epochs times a factor, and with them decays and warm-ups of the learning rate.

    Warm-ups of an objective's weights are scaled too.

    Example:
        >>> long = Recipe(name="x", student="mlp:8", epochs=240, schedule={"name": "multistep"})
        >>> scaled(long, 8 / 240).schedule.milestones
        (5, 6, 7)
    """
    stages = tuple(_scaled(stage, factor) for stage in recipe.stages)
    return _scaled(recipe, factor).model_copy(update={"stages": stages})


def _scaled(section: Section, factor: float) -> Section:
    """Scale a part of a recipe, as far as it says something of epochs."""
    if factor == 1:
        return section
    changes: dict[str, Any] = {}
    epochs, schedule, objective = (getattr(section, key) for key in ("epochs", "schedule", "objective"))
    if epochs:
        changes["epochs"] = _epochs(epochs, factor)
    if schedule:
        changes["schedule"] = _schedule(schedule, factor)
    if objective:
        changes["objective"] = read_objective(scaled_weights(objective.to_recipe(), factor), known_presets())
    return section.model_copy(update=changes)


def _epochs(epochs: int, factor: float) -> int:
    return max(1, round(epochs * factor))


def _schedule(schedule: Constant | Step | MultiStep | Cosine, factor: float) -> Constant | Step | MultiStep | Cosine:
    short = replace(schedule, warmup=schedule.warmup * factor)
    if isinstance(short, MultiStep):
        # Decays that come together multiply; a milestone is named once, so those that fall on one epoch are one.
        return replace(short, milestones=tuple(sorted({_epochs(m, factor) for m in short.milestones})))
    return replace(short, every=_epochs(short.every, factor)) if isinstance(short, Step) else short


def scaled_weights(objective: Any, factor: float) -> Any:
    """Return an objective as a recipe writes it, the warm-ups of its weights, which are in epochs, times a factor."""
    if isinstance(objective, list):
        return [scaled_weights(entry, factor) for entry in objective]
    if not isinstance(objective, dict):
        return objective
    result = {key: scaled_weights(value, factor) for key, value in objective.items()}
    if result.get("schedule") in ("warm_up", "cosine_warm_up") and isinstance(result.get("epochs"), int):
        result["epochs"] = _epochs(result["epochs"], factor)
    return result
