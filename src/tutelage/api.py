"""The commands as functions: train, distill, compare, evaluate, predict; every setting is an argument."""

from __future__ import annotations

import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, Unpack, cast

from torch import nn

from tutelage import config, data, models, objectives, records
from tutelage.config import schema
from tutelage.config.schema import Comparison, R, Recipe
from tutelage.data.custom_transforms import name_of
from tutelage.data.pairs import read_by
from tutelage.errors import InvalidTypeError, InvalidValueError, RecipeError, explaining
from tutelage.exports import opening, registry, writing
from tutelage.exports.writing import Export
from tutelage.models import Classifier, Ensemble
from tutelage.models.predict import Prediction
from tutelage.objectives import Objective, from_spec
from tutelage.places.here import with_reports
from tutelage.report import libraries
from tutelage.runs import notes, recipes
from tutelage.runs.class_weights import with_class_weights
from tutelage.runs.display import Display, shown
from tutelage.runs.evaluation import evaluate_in_detail
from tutelage.runs.execute import execute
from tutelage.runs.networks import (
    adopt,
    adopt_teacher,
    as_one,
    check_classes,
    create_as_trained,
    create_student,
    create_teacher,
    member_key,
    with_classes,
)
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import Run, RunOptions, Trained, load
from tutelage.runs.setup import (
    RunInputs,
    check_model_outputs,
    for_recipe,
    held_out_sets,
    metric_of,
    parse,
    served_of,
)
from tutelage.runs.trackers import Track, check
from tutelage.settings.data import DataSettings
from tutelage.settings.fit import Precision
from tutelage.settings.run import TOGETHER, RunSettings
from tutelage.studies import compare as comparisons
from tutelage.studies.compare import ComparedRuns
from tutelage.training.distributed import accelerator_on, by_main, once_a_node, one_a_node_first, world
from tutelage.training.evaluate import EvalSet
from tutelage.tuning import search as searches
from tutelage.tuning.request import Space, folder_name, request
from tutelage.tuning.search import Search
from tutelage.tuning.space import flow

Model: TypeAlias = str | Path | Run | nn.Module
"""A model's name, a run or its folder, or a module of the caller's."""
Network: TypeAlias = Model | Mapping[str, Any]
"""A model, or what a recipe writes of one, such as ``{"name": "timm:resnet18.a1_in1k", "size": 224}``."""
Teacher: TypeAlias = Network | Sequence[Network]
"""A teacher, or several, also as what a recipe writes of them, such as ``{"members": [a, b], "weights": [1, 3]}``."""
Data: TypeAlias = "str | Mapping[str, Any] | DataSettings | data.Splits | Sequence[Any]"
"""A source's name, settings with one, or the caller's (training set, test set)."""
AnyObjective: TypeAlias = Objective | str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""An objective, or what a recipe writes of one."""
QUIET = Reporter()
F = TypeVar("F", bound=Callable[..., Any])


def _lists_settings(function: F) -> F:
    """Let `help` and notebooks show each setting and its default where a signature has ``**settings``."""
    signature = inspect.signature(function)
    named = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    settings = [
        inspect.Parameter(
            key, inspect.Parameter.KEYWORD_ONLY, default=Recipe.model_fields[key].default, annotation=kind
        )
        for key, kind in typing.get_type_hints(RunSettings).items()
    ]
    vars(function)["__signature__"] = signature.replace(parameters=[*named, *settings])
    return function


@_lists_settings
def train(
    *,
    model: Network,
    data: Data,
    objective: AnyObjective = "cross_entropy",
    name: str | None = None,
    runs: str | Path = "runs",
    track: Track | Sequence[Track] | None = None,
    display: Display = "auto",
    trust_code: bool | frozenset[str] = False,
    **settings: Unpack[RunSettings],
) -> Run:
    """Train a network from labels: `distill` without a teacher."""
    trackers = check(track)
    recipe, run_inputs = _prepared("train", model, None, data, objective, name, trust_code, settings)
    with shown(display) as reporter:
        options = RunOptions(reporter=reporter, trust_code=trust_code, command="tutelage.train(...)", track=trackers)
        run = execute(recipe, Path(runs) / recipe.name, options=with_reports(options), run_inputs=run_inputs)
        _say_where_no_report(run.folder, reporter)
    return _with_student(run, model, run_inputs, options)


@_lists_settings
def distill(
    *,
    student: Network,
    teacher: Teacher | None,
    data: Data,
    objective: AnyObjective,
    name: str | None = None,
    runs: str | Path = "runs",
    track: Track | Sequence[Track] | None = None,
    display: Display = "auto",
    trust_code: bool | frozenset[str] = False,
    **settings: Unpack[RunSettings],
) -> Run:
    """Distil a teacher into a student and record the run in ``runs/name``.

    Args:
        student: a model's name, a run or its folder, or a module, which is trained in place; or a recipe's mapping,
            such as ``{"name": "cifar:resnet20", "size": 32}``. A module takes the data's images; for a size of its own
            wrap it: ``models.adopt(module, classes=10, image_size=(16, 16))``.
        teacher: the same, with ``classes`` where its outputs are not the data's classes in order; a list of several, or
            ``{"members": [a, b], "weights": [1, 3], "combine": "logits"}``; none to learn from labels alone.
        data: a source's name, a mapping of `DataSettings`, whose ``transform`` may be an object as of `open_data`, or a
            pair (training set, test set) of map-style data sets that yield (image in [0, 1] or PIL image, class index).
        objective: such as ``objectives.wttm(gamma=0.1, beta=3.0)``.
        name: of the run; by default the student's and the objective's.
        runs: the folder of all runs.
        track: trackers that are handed what is recorded, one or several: ``"tensorboard"``, ``"wandb"``, ``"mlflow"``,
            ``"trackio"``, or an object of a class of ``accelerate.tracking``; by default none, and nothing is sent.
        display: what shows the progress: ``"auto"``, a bar in a terminal and in Jupyter, and lines elsewhere, on
            standard error; ``None``, nothing; or a `Reporter`.
        trust_code: allow ``file:`` and ``export:`` models and ``file:`` objectives, which run code: all of them, or
            those of these names.
        settings: `RunSettings`: ``epochs``, ``batch_size``, ``optimizer``, ``seed``, ...

    Returns:
        The run; an interrupted one is resumed.

    Raises:
        RecipeError: a setting is wrong (every error is listed), or the name is that of a finished run.
    """
    trackers = check(track)
    recipe, run_inputs = _prepared("distill", student, teacher, data, objective, name, trust_code, settings)
    with shown(display) as reporter:
        options = RunOptions(reporter=reporter, trust_code=trust_code, command="tutelage.distill(...)", track=trackers)
        run = execute(recipe, Path(runs) / recipe.name, options=with_reports(options), run_inputs=run_inputs)
        _say_where_no_report(run.folder, reporter)
    return _with_student(run, student, run_inputs, options)


def _say_where_no_report(folder: Path, reporter: Reporter) -> None:
    if not libraries.installed():
        reporter.say(libraries.why_not_written(folder))


def _with_student(run: Run, student: Network, run_inputs: RunInputs | None, options: RunOptions) -> Run:
    """Return a run that holds its student, if that was handed in as a module, and knows what code was trusted."""
    run = replace(run, trust_code=options.trust_code)
    if run_inputs is None or not isinstance(student, nn.Module):
        return run
    run_inputs.student.eval()
    return replace(run, trained=Trained(student, run_inputs.student))


def _prepared(
    call: Literal["train", "distill"],
    student: Network,
    teacher: Teacher | None,
    data: Data,
    objective: AnyObjective,
    name: str | None,
    trust_code: bool | frozenset[str],
    settings: RunSettings,
) -> tuple[Recipe, RunInputs | None]:
    """Return the recipe of a call, and its inputs where some of them are the caller's objects."""
    objective = objectives.from_recipe(objective, trust_code=trust_code)
    student = _written(student, "model" if call == "train" else "student")
    teacher = None if teacher is None else _written_teacher(teacher)
    data, transform = _without_object(data)
    objects = [network for network in (student, *_alone(teacher)) if isinstance(network, nn.Module)]
    named = transform is None and not objects and _is_settings(data)
    label = type(student).__name__ if isinstance(student, nn.Module) else student["name"]
    value: dict[str, Any] = {
        "name": name or _file_name(label, objective.name),
        "student": label if isinstance(student, nn.Module) else student,
        "objective": objective,
        **settings,
        "data": data if _is_settings(data) else {"source": "own"},
    }
    if isinstance(start := settings.get("start"), os.PathLike):
        value["start"] = os.fspath(start)
    if teacher is not None:
        value["teacher"] = _in_recipe(teacher)
    recipe = _parse(Recipe, value, where=call, trust_code=trust_code)
    stages = [stage if isinstance(stage, Mapping) else dict(stage) for stage in settings.get("stages") or [{}]]
    # What each fit learns from, as it was passed: two objectives of the caller's may have one spec.
    passed = [stage.get("objective") or objective for stage in stages]
    pieces = [piece for each in passed if isinstance(each, Objective) for piece in each.pieces]
    built_in = all(objectives.is_built_in(piece.preset) or piece.sha256 for piece in pieces)
    run_inputs = (
        None if named and built_in else _inputs_of(recipe, passed, student, teacher, data, transform, trust_code)
    )
    if run_inputs and run_inputs.splits.per_token:  # which the recipe does not say of data that the caller opened
        with _in_arguments():
            schema.require_typed_exponents(recipe, where=call)
    return recipe, run_inputs


def run(
    recipe: Recipe,
    folder: Path,
    *,
    options: RunOptions,
    run_inputs: RunInputs | None = None,
    expected: Mapping[str, str | None] | None = None,
) -> Run:
    """`execute` a run, with its report, and that of a teacher that it trains."""
    return execute(recipe, folder, options=with_reports(options), run_inputs=run_inputs, expected=expected)


def _parse(kind: type[R], value: Mapping[str, Any], *, where: str, trust_code: bool | frozenset[str] = False) -> R:
    """Check a recipe as `parse` does."""
    with _in_arguments():
        return parse(kind, value, where=where, trust_code=trust_code)


@contextmanager
def _in_arguments() -> Iterator[None]:
    """Write what is to be typed instead, in errors of a recipe, as arguments of the call."""
    try:
        yield
    except RecipeError as error:
        typed = r"(?<![\w.])([a-z_]+(?:\.\w+)*)=(\[.*?\]|\{.*?\}|[^\s,;]+)"
        raise RecipeError.of(
            RecipeError(part.what, part.expected, part.got, re.sub(typed, _as_argument, part.instead))
            for part in error.errors
        ) from None


def _as_argument(override: re.Match[str]) -> str:
    """Write an override as an argument: ``optimizer.lr=0.1`` as ``optimizer={'lr': 0.1}``, ``stages.1`` as an item."""
    name, *keys = override[1].split(".")
    if keys and keys[0].isdecimal():
        name += f"[{keys.pop(0)}]"
    (value,) = config.override({}, [f"value={override[2]}"]).values()
    for key in reversed(keys):
        value = {key: value}
    return f"{name}={value!r}"


def _named(network: Network, argument: str = "model") -> str | nn.Module:
    """Return the folder of a run or a path as a name, and a name or a module unchanged; a mapping is refused."""
    if isinstance(network, Run):
        network = network.folder
    if not isinstance(network, str | Path | nn.Module):
        known = isinstance(network, Mapping) and "train" in network
        raise InvalidTypeError(
            argument,
            "a model's name, a run or its folder, or a module",
            network if isinstance(network, str | int | float | None) else f"an object of type {type(network).__name__}",
            f"type {argument}=tutelage.train(...)" if known else f"for example {argument}='cifar:resnet20'",
        )
    return network.as_posix() if isinstance(network, Path) else network


def _written(network: Network, argument: str) -> dict[str, Any] | nn.Module:
    """Return a named network as a recipe writes it, and a module unchanged."""
    if isinstance(network, Mapping) and "name" in network:
        name = _named(network["name"], f"{argument}.name")
        if isinstance(name, nn.Module):
            instead = f"type {argument}=tutelage.models.adopt(module, image_size=(16, 16)) for one at a size of its own"
            got = f"an object of type {type(name).__name__}"
            raise InvalidTypeError(f"{argument}.name", "a model's name, a run or its folder", got, instead)
        return {**network, "name": name}
    written = _named(network, argument)
    return written if isinstance(written, nn.Module) else {"name": written}


def _written_teacher(teacher: Teacher) -> dict[str, Any] | nn.Module:
    """Return a teacher as `_written` does, or several as a recipe writes them, with modules as they are."""
    if isinstance(teacher, Ensemble):
        teacher = {"members": teacher.members, "weights": list(teacher.weights), "combine": teacher.combine}
    if isinstance(teacher, list | tuple):
        teacher = {"members": teacher}
    if isinstance(teacher, Mapping) and isinstance(members := teacher.get("members"), list | tuple):
        return {**teacher, "members": [_written(each, member_key(k)) for k, each in enumerate(members)]}
    return _written(cast(Network, teacher), "teacher")


def _alone(teacher: dict[str, Any] | nn.Module | None) -> list[Any]:
    """Return each teacher of what `_written_teacher` returns."""
    return teacher["members"] if isinstance(teacher, dict) and "members" in teacher else [teacher]


def _in_recipe(teacher: dict[str, Any] | nn.Module) -> Any:
    """Return a teacher, or several, with the class's name in place of a module: of several with its number."""
    if isinstance(teacher, nn.Module):
        return type(teacher).__name__
    if "members" not in teacher:
        return teacher
    members = enumerate(_alone(teacher), 1)
    named = [f"{type(each).__name__} {k}" if isinstance(each, nn.Module) else each for k, each in members]
    return {**teacher, "members": named}


def _file_name(student: str, *objectives: str) -> str:
    """Return what to call the run of a student's name or folder, where the caller does not say."""
    name = Path(student).name if Path(student).is_dir() else student
    return re.sub(r"[^A-Za-z0-9._]+", "-", "-".join([name, *objectives]))


def _is_settings(source: Any) -> bool:
    """Whether data are named, or left to a default, and not the caller's objects."""
    return isinstance(source, str | Mapping | DataSettings | None)


def _without_object(source: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """Return data with a name in place of a transform that is an object, and that object."""
    if isinstance(source, Mapping) and callable(transform := source.get("transform")):
        return {**source, "transform": name_of(transform)}, transform
    return source, None


def _inputs_of(
    recipe: Recipe,
    passed: Sequence[Any],
    student: dict[str, Any] | nn.Module,
    teacher: dict[str, Any] | nn.Module | None,
    source: Any,
    transform: Callable[[Any], Any] | None,
    trust_code: bool | frozenset[str],
) -> RunInputs:
    """Build a run's inputs where some of them are the caller's objects; ``passed`` are its fits' objectives."""
    opened = _splits_of(source, recipe.data, student, *_alone(teacher), transform=transform)
    splits = read_by(opened, recipe.reads)
    known: Classifier | None = None
    if isinstance(teacher, nn.Module):
        known = adopt_teacher(teacher, splits)
    elif isinstance(several := recipe.teacher, schema.Teachers):
        members = [
            adopt_teacher(given, splits, member_key(k))
            if isinstance(given, nn.Module)
            else create_teacher(named, splits, seed=recipe.seed, trust_code=trust_code, key=member_key(k))
            for k, (given, named) in enumerate(zip(_alone(teacher), several.members, strict=True))
        ]
        known = as_one(members, splits, several.weights, several.combine)
    elif isinstance(recipe.teacher, schema.Network) and not recipe.teacher.served:
        known = create_teacher(recipe.teacher, splits, seed=recipe.seed, trust_code=trust_code)
    if isinstance(student, nn.Module):
        trainee = adopt(student, splits, "student")
    else:
        trainee = create_student(recipe.student, splits, seed=recipe.seed, teacher=known, trust_code=trust_code)
    learned = [
        for_recipe(
            recipe,
            objective if isinstance(objective, Objective) else from_spec(fit.objective),
            per_token=splits.per_token,
        )
        for objective, fit in zip(passed, recipe.fits(), strict=True)
    ]
    return RunInputs(
        splits=splits,
        student=trainee,
        teacher=known,
        objectives=with_class_weights(recipe, learned, splits),
        repeatable=False,
        served=served_of(recipe, splits),
    )


def _splits_of(
    source: Any,
    settings: DataSettings,
    *networks: object,
    transform: Callable[[Any], Any] | None = None,
) -> data.Splits:
    """Open the data that settings name, or wrap the caller's.

    The classes of a pair of data sets are those of the training set, or as many as a network has outputs.
    """
    if _is_settings(source):
        return data.open_data(settings, transform=transform)
    if isinstance(source, data.Splits):
        return source
    if not isinstance(source, Sequence) or len(source) != 2:
        expected = "a source's name, settings, or (training set, test set)"
        raise RecipeError("data", expected, type(source).__name__, "for example data='digits'")
    names = getattr(source[0], "classes", None)
    if isinstance(names, Sequence):
        return data.from_datasets(*source, classes=len(names), class_names=[str(name) for name in names])
    modules = [network for network in networks if isinstance(network, nn.Module)]
    if not modules:
        instead = (
            "give the training set an attribute `classes`, or type "
            "data=tutelage.data.from_datasets(train, test, classes=10)"
        )
        raise RecipeError("data", "data sets that name their classes", "none", instead)
    return data.from_datasets(*source, classes=models.adopt(modules[0]).card.classes)


def _of_names(student: Any, teacher: Any, data: Any, settings: RunSettings) -> dict[str, Any]:
    """Return what a recipe of several runs writes of networks and data.

    Raises:
        TypeError: one of them is the caller's object.
    """
    value: dict[str, Any] = {"student": _written(student, "student"), "data": data, **settings}
    if teacher is not None:
        trained = isinstance(teacher, Mapping) and "members" not in teacher
        value["teacher"] = teacher if trained else _written_teacher(teacher)
    objects = {key: value.get(key) for key in ("student", "teacher", "data")}
    if isinstance(several := value.get("teacher"), dict) and "members" in several:
        objects |= {member_key(k): member for k, member in enumerate(_alone(several))}
    if isinstance(data, Mapping):
        objects["data.transform"] = data.get("transform")
    for key, given in objects.items():
        if not isinstance(given, str | Mapping | DataSettings | None):
            expected = "a name, so that each run can build it again"
            instead = "for objects of your own type tutelage.distill(...) once for each run"
            raise InvalidTypeError(key, expected, f"an object of type {type(given).__name__}", instead)
    return value


@_lists_settings
def compare(
    *,
    student: str | Path | Run | Mapping[str, Any],
    teacher: Teacher | None,
    data: str | Mapping[str, Any] | DataSettings,
    objectives: Mapping[str, AnyObjective],
    seeds: int = 1,
    baseline: str | None = None,
    share_data_seed: bool = False,
    together: int = TOGETHER,
    name: str | None = None,
    runs: str | Path = "runs",
    track: Track | Sequence[Track] | None = None,
    display: Display = "auto",
    trust_code: bool | frozenset[str] = False,
    **settings: Unpack[RunSettings],
) -> ComparedRuns:
    """Compare several objectives over several seeds on one task, in ``runs/name``.

    Args:
        student: a model's name, or a run or its folder; every run builds it anew.
        teacher: the same, or a list of several; ``{"train": {"model": ..., ...}}`` trains it first; none to learn from
            labels alone.
        data: a source's name, or a mapping of `DataSettings`.
        objectives: by the names that the table shows, such as ``{"kd": "kd", "wttm": objectives.wttm(beta=3.0)}``.
        seeds: how many runs each; both seeds differ from run to run.
        baseline: the entry that gains are measured against; by default the first.
        share_data_seed: all seeds have the data seed of the first, so that order and views are the same for all runs.
        together: how many students at most are trained in lockstep, on one batch and one teacher pass per step.
        name: of the comparison; by default the student's and the objectives'.
        runs: the folder of all runs.
        track: trackers by name that are handed what is recorded, each run to its own, as of `distill`.
        display: what shows the progress: ``"auto"``, a bar in a terminal and in Jupyter, and lines elsewhere, on
            standard error; ``None``, nothing; or a `Reporter`.
        trust_code: allow ``file:`` and ``export:`` models and ``file:`` objectives, which run code: all of them, or
            those of these names.
        settings: `RunSettings`: ``epochs``, ``batch_size``, ``optimizer``, ``seed``, ...

    Returns:
        The comparison; an interrupted one is resumed.

    Raises:
        RecipeError: a setting is wrong (every error is listed), or the folder holds another comparison.
        TypeError: a network or the data are the caller's objects, of which no second run can be made.
    """
    trackers = check(track, objects=False)
    value = _of_names(student, teacher, data, settings)
    value |= {
        "name": name or _file_name(value["student"]["name"], *objectives),
        "objectives": objectives,
        "seeds": seeds,
        "baseline": baseline,
        "share_data_seed": share_data_seed,
        "together": together,
    }
    comparison = _parse(Comparison, value, where="compare", trust_code=trust_code)
    with shown(display) as reporter:
        options = RunOptions(reporter=reporter, trust_code=trust_code, command="tutelage.compare(...)", track=trackers)
        comparisons.compare(comparison, folder := Path(runs) / comparison.name, options=options)
        _say_where_no_report(folder, reporter)
    return ComparedRuns(folder)


@_lists_settings
def tune(
    *,
    student: str | Path | Run | Mapping[str, Any],
    teacher: Teacher | None,
    data: str | Mapping[str, Any] | DataSettings,
    objective: AnyObjective,
    trials: int = 20,
    search: Mapping[str, str | Sequence[Any]] | None = None,
    space: Space = "recipe",
    confirm: int = 3,
    together: int = TOGETHER,
    prune: bool = True,
    name: str | None = None,
    runs: str | Path = "runs",
    display: Display = "auto",
    trust_code: bool | frozenset[str] = False,
    **settings: Unpack[RunSettings],
) -> Search:
    """Search for settings on the validation set, and try what was found over new seeds, in ``runs/name-tune``.

    Args:
        student: a model's name, or a run or its folder; every trial builds it anew.
        teacher: the same, or a list of several; ``{"train": {"model": ..., ...}}`` trains it first; none to learn from
            labels alone.
        data: a source's name, or a mapping of `DataSettings`, with ``validation`` above 0.
        objective: as in `distill`, by names.
        trials: number of trials; the first has the settings as they are passed.
        search: ranges by key, such as ``{"optimizer.lr": "1e-3..1e-1,log", "batch_size": [32, 64]}``; none for the
            objective's exponent, temperature and weight and the learning rate.
        space: ``recipe``, or ``objective`` for the parts of the term that matches the teacher.
        confirm: new seeds over which what was found is tried beside the settings as they are passed; 0 for none.
        together: trials that are chosen at a time, and share batches and the teacher's pass.
        prune: whether trials end that do worse than the median of earlier ones.
        name: of the search; by default the student's and the objective's.
        runs: the folder of all runs.
        display: what shows the progress, as of `distill`.
        trust_code: allow ``file:`` and ``export:`` models and ``file:`` objectives, which run code: all of them, or
            those of these names.
        settings: `RunSettings`: ``epochs``, ``batch_size``, ``optimizer``, ``seed``, ...

    Returns:
        The search; an interrupted one goes on where it was.

    Raises:
        RecipeError: a setting or a range is wrong, or the folder holds another search.
        TypeError: a network or the data are the caller's objects, of which no second run can be made.
        ImportError: Optuna is not installed.
    """
    spec = objectives.from_recipe(objective, trust_code=trust_code)
    value = _of_names(student, teacher, data, settings)
    value |= {"name": name or _file_name(value["student"]["name"], spec.name), "objective": spec}
    recipe = _parse(Recipe, value, where="tune", trust_code=trust_code)
    typed = [
        f"{key}={ranges if isinstance(ranges, str) else flow(list(ranges))[1:-1]}"
        for key, ranges in (search or {}).items()
    ]
    asked = request(recipe, trials=trials, search=typed, space=space, confirm=confirm, together=together, prune=prune)
    with shown(display) as reporter:
        options = RunOptions(reporter=reporter, trust_code=trust_code, command="tutelage.tune(...)")
        found = searches.tune(asked, Path(runs) / folder_name(asked), options=options)
        _say_where_no_report(found.folder, reporter)
    return found


@explaining()
def predict(
    model: str | Path | Run | Classifier,
    images: Any,
    *,
    top_k: int | None = None,
    best: bool = False,
    trust_code: bool | frozenset[str] = False,
) -> list[Prediction]:
    """Classify raw images, or texts where the model reads texts.

    Args:
        model: a run or its folder, a model's name, or a classifier.
        images: one or a sequence of: a path, a PIL image, or a uint8 array ``(height, width[, channels])``; of texts:
            a text, or the path of a ``.txt`` file.
        top_k: how many classes ``top`` of a prediction has; ``None`` for none.
        best: a run's best weights instead of its last.
        trust_code: allow ``file:`` and ``export:`` models, which run code: all of them, or those of these names.

    Returns:
        One prediction per image: the likeliest class, its name, and the probability that the classifier gives it; where
        several labels may hold, ``labels`` are those above 1/2.
    """
    if isinstance(model, Run) and model.trained is not None and not best:
        return model.trained.classifier.predict(images, top_k=top_k)
    network = _named(model)
    if isinstance(network, str):
        return load(network, best=best, trust_code=trust_code).predict(images, top_k=top_k)
    if best:
        raise InvalidValueError(
            "best", "a run or its folder", f"an object of type {type(network).__name__}", "leave best out"
        )
    return models.adopt(network, f"object:{type(network).__name__}").predict(images, top_k=top_k)


@explaining()
def evaluate(
    model: Network,
    *,
    data: Data | None = None,
    best: bool = False,
    batch_size: int | None = None,
    precision: Literal["auto", Precision] | None = None,
    device: Literal["auto", "cpu", "cuda"] | str | None = None,
    channels_last: bool | None = None,
    display: Display = "auto",
    trust_code: bool | frozenset[str] = False,
) -> records.Judgement:
    """Evaluate a model on a test set. What is left out is as in the model's run, or a recipe's default.

    Args:
        model: a run or its folder, a model's name, or a module; or a recipe's mapping, such as
            ``{"name": "runs/flowers", "classes": ["tulip", "rose"]}``: its output for each class of the data.
        data: as in `distill`, whose test set is taken; by default that of the run.
        best: a run's best weights instead of its last.
        batch_size: samples per batch; evaluation takes at least 256.
        precision: what the network is computed in.
        device: where to compute.
        channels_last: memory layout of convolutions.
        display: as of `distill`; a bar goes when the evaluation is done.
        trust_code: allow ``file:`` and ``export:`` models, which run code: all of them, or those of these names.

    Returns:
        ``accuracy`` and ``ece`` as fractions, ``loss`` and ``entropy`` in nats, of a language model ``perplexity`` and
        ``bits_per_byte``, and the other keys of ``evaluation.json``.

    Raises:
        RecipeError: a setting is wrong, or the model does not fit the data.
    """
    if isinstance(model, Run) and model.trained is not None and data is not None and not best:
        model = model.trained.classifier
    typed = dict(model) if isinstance(model, Mapping) else {}
    network = _named(typed.pop("name", model))
    label = network if isinstance(network, str) else f"object:{type(network).__name__}"
    if isinstance(data, Mapping):
        data = {**data, "transform": None}  # Of training images; it may be an object.
    given = {
        "data": data if _is_settings(data) else {"source": "own"},
        "batch_size": batch_size,
        "precision": precision,
        "device": device,
        "channels_last": channels_last,
    }
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    recipe = recipes.to_evaluate(label, best=best, typed=typed, **settings)
    with shown(display, transient=True) as reporter:
        return judge(recipe, network, source=data, reporter=reporter, trust_code=trust_code).judgement


class Evaluated(NamedTuple):
    """A model on a test set."""

    judgement: records.Judgement
    title: str  # the model and the data
    costs: records.Costs | None  # None where they were not asked for


def judge(
    recipe: Recipe,
    model: str | nn.Module,
    *,
    source: Any = None,
    reporter: Reporter = QUIET,
    trust_code: bool | frozenset[str] = False,
    costs_of: Callable[[data.Splits, Classifier], records.Costs] | None = None,
) -> Evaluated:
    """Evaluate a model with a recipe's settings.

    Args:
        recipe: recipe whose student is the model.
        model: the model's name, or a module.
        source: data where they are the caller's objects.
        reporter: what takes what is to be known of model and data.
        trust_code: as of `evaluate`.
        costs_of: what measures the model's costs, called in the main process after the evaluation.
    """
    name = recipe.student.name
    accelerator_on(recipe.device)
    splits = read_by(once_a_node(lambda: _splits_of(source, recipe.data, model)), recipe.reads)
    if isinstance(model, nn.Module):
        network = adopt(model, splits, "student", trained=True)
    else:
        make = partial(create_as_trained, recipe.student, splits, "student", key="model", trust_code=trust_code)
        network = one_a_node_first(make)
    instead = "name the data that it was trained on, data.source=..."
    if splits.task == "embedding":
        if (width := network.card.classes) != splits.outputs:
            raise RecipeError(
                f"model {name}", f"{splits.outputs} numbers in a vector, as the data have", width, instead
            )
    else:
        network = with_classes(network, splits, recipe.student.classes, key="model")
        check_classes(network, splits, key="model", judged=name)
    check_model_outputs(recipe, network, f"model {name}", splits, instead=instead)
    sets = dict(held_out_sets(splits, recipe))
    if world() == 1:  # Of several processes each takes whole batches, and reads those alone.
        reporter.begin(f"evaluating {name}", sum(map(len, sets.values())), 0)
        sets = {name: reporter.track(batches) for name, batches in sets.items()}
    held_out = [
        EvalSet(name, batches, text_bytes=splits.by_name()[name].text_bytes, metric=metric_of(splits))
        for name, batches in sets.items()
    ]
    evaluation = evaluate_in_detail(recipe, network, splits, held_out)
    for line in notes.of_judged(network, splits):
        reporter.remark(line)
    if not evaluation.is_judged:
        raise RecipeError("data", f"labels in the test set of {splits.source}", "none", "name data with labels")
    judgement = evaluation.judgement()
    counted = records.measure(judgement).counted
    title = f"{name} on {evaluation.samples} test {counted} of {splits.source}"
    return Evaluated(judgement, title, None if costs_of is None else by_main(lambda: costs_of(splits, network)))


@explaining()
def export(
    model: Model,
    *,
    to: str = "onnx",
    output: str | Path | None = None,
    data: Data | None = None,
    network: nn.Module | None = None,
    int8: bool = False,
    best: bool = False,
    force: bool = False,
    samples: int = opening.SAMPLES,
    trust_code: bool | frozenset[str] = False,
) -> Export:
    """Write a student for other programs, verified on test samples before the file gets its name.

    Args:
        model: a run or its folder, a model's name, or a module.
        to: name of the format; see `tutelage.exports.registry.FORMATS`.
        output: file, or folder for it; by default ``exports/`` in the run's folder, or the working folder.
        data: as in `distill`, whose test set is taken; by default that of the run.
        network: module with the architecture of a run's student that was a module of the caller's.
        int8: compute in 8-bit integers; the ranges of activations are measured on training samples.
        best: a run's best weights instead of its last.
        force: replace what is there.
        samples: number of test samples that the file is verified on.
        trust_code: allow ``file:`` models and modules of one's own that a run names, which run code: all of them, or
            those of these names.

    Returns:
        The file's path, its difference from the student, and the accuracy, latency, throughput and size of both.

    Raises:
        ValueError: the format, the model, the data or the path is wrong.
        ImportError: a library of the format is missing.
        RunError: the file does not answer as the student does, and was removed.
        StorageError: it cannot be written.
    """
    known = _named(model)
    label = known if isinstance(known, str) else type(known).__name__
    registry.format_of(to, int8=int8)
    registry.check_model(label, data=data is not None)
    path = registry.destination(label, to, None if output is None else Path(output), int8=int8, best=best, force=force)
    if isinstance(data, Mapping):
        data = {**data, "transform": None}
    settings: dict[str, Any] = {} if data is None else {"data": data if _is_settings(data) else {"source": "own"}}
    recipe = recipes.to_evaluate(label if isinstance(known, str) else f"object:{label}", best=best, **settings)
    return export_recipe(
        recipe,
        known,
        source=data,
        network=network,
        to=to,
        path=path,
        int8=int8,
        force=force,
        samples=samples,
        trust_code=trust_code,
    )


def export_recipe(
    recipe: Recipe,
    model: str | nn.Module,
    *,
    to: str,
    path: Path,
    source: Any = None,
    network: nn.Module | None = None,
    int8: bool = False,
    force: bool = False,
    samples: int = opening.SAMPLES,
    trust_code: bool | frozenset[str] = False,
) -> Export:
    """Export a recipe's student, or a module.

    ``source`` is the data where they are the caller's objects, ``network`` the student's architecture where it is.
    """
    splits = read_by(_splits_of(source, recipe.data, network or model), recipe.reads)
    if isinstance(model, nn.Module):
        student = adopt(model, splits, "student", trained=True)
    elif network is not None:
        student = adopt(
            models.restored(model, network, weights=recipe.student.weights), splits, "student", trained=True
        )
    else:
        student = create_as_trained(recipe.student, splits, "student", trust_code=trust_code)
    folder = model if isinstance(model, str) and Path(model).is_dir() else None
    made = opening.source_of(
        student,
        splits,
        name=Path(folder).resolve().name if folder else student.card.name,
        folder=folder,
        samples=samples,
        int8=int8,
    )
    return writing.write(made, to, path, force=force)
