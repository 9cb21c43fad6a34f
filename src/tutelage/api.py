"""The commands as functions: train, distill, evaluate; and recipes from a file, a run's folder or overrides."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tutelage import config, data, models, objectives, records
from tutelage.config.schema import Network, Recipe, RecipeError
from tutelage.data.custom_transforms import name_of
from tutelage.models import Classifier
from tutelage.objectives import Objective, from_spec
from tutelage.runs.execute import execute
from tutelage.runs.reporter import Reporter
from tutelage.runs.resume import fingerprints
from tutelage.runs.run import Run, RunOptions, finished
from tutelage.runs.setup import RunInputs, evaluation_outputs, held_out_sets, parse
from tutelage.settings.data import DataSettings
from tutelage.studies.compare import with_reports
from tutelage.training.evaluate import evaluate_outputs
from tutelage.types import UNLABELLED


def train(*, model: str | nn.Module, data: Any, **settings: Any) -> Run:
    """Train a network from labels: `distill` without a teacher."""
    return distill(
        student=model, teacher=None, data=data, objective=settings.pop("objective", "cross_entropy"), **settings
    )


def distill(
    *,
    student: str | Path | Run | nn.Module,
    teacher: str | Path | Run | nn.Module | None,
    data: Any,
    objective: Objective | str | Mapping[str, Any],
    name: str | None = None,
    runs: str | Path = "runs",
    reporter: Reporter | None = None,
    trust_code: bool | frozenset[str] = False,
    **settings: Any,
) -> Run:
    """Distil a teacher into a student and record the run in ``runs/name``.

    Args:
        student: a model's name, a run or its folder, or a module, which is trained in place.
        teacher: a model's name, a run or its folder, or a module; none to learn from labels alone.
        data: a source's name, a mapping of `DataSettings`, whose ``transform`` may be an object as of `open_data`, or a
            pair (training set, test set) of map-style data sets that yield (image in [0, 1] or PIL image, class index).
        objective: such as ``objectives.wttm(gamma=0.1, beta=3.0)``.
        name: of the run; by default the student's and the objective's.
        runs: the folder of all runs.
        reporter: shows the progress; by default nothing is shown.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.
        settings: the other fields of `Recipe`: ``epochs``, ``batch_size``, ``optimizer``, ``seed``, ...

    Returns:
        The run; an interrupted one is resumed.

    Raises:
        RecipeError: a setting is wrong (every error is listed), or the name is that of a finished run.
    """
    objective = objectives.from_recipe(objective)
    student, teacher = _named(student), _named(teacher) if teacher is not None else None
    data, transform = _without_object(data)
    named = transform is None and all(
        isinstance(value, str | Mapping | DataSettings | None) for value in (student, teacher, data)
    )
    label = student if isinstance(student, str) else type(student).__name__
    short = Path(label).name if Path(label).is_dir() else label
    source = data if isinstance(data, Mapping | DataSettings) else {"source": data if isinstance(data, str) else "own"}
    value: dict[str, Any] = {
        "name": name or re.sub(r"[^A-Za-z0-9._]+", "-", f"{short}-{objective.name}"),
        "student": label,
        "objective": objective,
        **settings,
        "data": source,
    }
    if teacher is not None:
        value["teacher"] = teacher if isinstance(teacher, str) else type(teacher).__name__
    recipe = parse(Recipe, value, where="distill")
    stages = [stage if isinstance(stage, Mapping) else dict(stage) for stage in settings.get("stages") or [{}]]
    # What each fit learns from, as it was passed: two objectives of the caller's may have one spec.
    passed = [stage.get("objective") or objective for stage in stages]
    pieces = [piece for each in passed if isinstance(each, Objective) for piece in each.pieces]
    built_in = all(objectives.is_built_in(piece.preset) for piece in pieces)
    run_inputs = (
        None if named and built_in else _inputs_of(recipe, passed, student, teacher, data, transform, trust_code)
    )
    options = RunOptions(reporter=reporter or Reporter(), trust_code=trust_code, command="tutelage.distill(...)")
    return execute(recipe, Path(runs) / recipe.name, options=with_reports(options), run_inputs=run_inputs)


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


def _named(network: str | Path | Run | nn.Module) -> str | nn.Module:
    """Return the folder of a run or a path as a name, and anything else unchanged."""
    if isinstance(network, Run):
        return str(network.folder)
    return str(network) if isinstance(network, Path) else network


def _without_object(source: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """Return data with a name in place of a transform that is an object, and that object."""
    if isinstance(source, Mapping) and callable(transform := source.get("transform")):
        return {**source, "transform": name_of(transform)}, transform
    return source, None


def _inputs_of(
    recipe: Recipe,
    passed: Sequence[Any],
    student: str | nn.Module,
    teacher: str | nn.Module | None,
    source: Any,
    transform: Callable[[Any], Any] | None,
    trust_code: bool | frozenset[str],
) -> RunInputs:
    """Build a run's inputs where some of them are the caller's objects; ``passed`` are its fits' objectives."""
    if isinstance(source, str | Mapping | DataSettings):
        splits = data.open_data(recipe.data, transform=transform)
    else:
        splits = source if isinstance(source, data.Splits) else _splits_of(source, student, teacher)
    shape: dict[str, Any] = {"classes": splits.classes, "channels": splits.channels, "image_size": splits.image_size}

    def build(network: str | nn.Module) -> Classifier:
        if isinstance(network, nn.Module):
            return models.adopt(network, f"object:{type(network).__name__}", **shape)
        return models.create(network, seed=recipe.seed, trust_code=trust_code, **shape)

    return RunInputs(
        splits=splits,
        student=build(student),
        teacher=build(teacher) if teacher is not None else None,
        objectives=tuple(
            objective if isinstance(objective, Objective) else from_spec(fit.objective)
            for objective, fit in zip(passed, recipe.fits(), strict=True)
        ),
        repeatable=False,
    )


def _splits_of(source: Any, *networks: str | nn.Module | None) -> data.Splits:
    """Wrap a pair of data sets; their classes are those of the training set, or as many as a network has outputs."""
    if not isinstance(source, Sequence) or len(source) != 2:
        raise RecipeError(
            f"data: expected a source's name, settings, or (training set, test set), got {type(source).__name__}; "
            "for example data='digits'"
        )
    names = getattr(source[0], "classes", None)
    if isinstance(names, Sequence):
        return data.from_datasets(*source, classes=len(names), class_names=[str(name) for name in names])
    modules = [network for network in networks if isinstance(network, nn.Module)]
    if not modules:
        raise RecipeError(
            "data: expected data sets that name their classes, got none; give the training set an attribute `classes`, "
            "or type data=tutelage.data.from_datasets(train, test, classes=10)"
        )
    return data.from_datasets(*source, classes=models.adopt(modules[0]).card.classes)


def from_file(path: Path, overrides: Sequence[str]) -> Recipe:
    """Read a run's recipe from a file."""
    value = config.read(path, overrides)
    if "objectives" in value:
        raise RecipeError(
            f"{path}: expected the recipe of one run, got one that compares several objectives; "
            f"type tutelage compare {path}"
        )
    return parse(Recipe, value, where=str(path))


def from_overrides(overrides: Sequence[str]) -> Recipe:
    """Read a run's recipe from ``key=value`` alone."""
    return parse(Recipe, {"name": "run", **config.override({}, overrides)})


def again(folder: Path, overrides: Sequence[str], runs: Path) -> tuple[Recipe, dict[str, str | None] | None]:
    """Read the recipe of a run's folder: to resume the run or, if it is finished, to repeat it under a new name.

    Returns:
        The recipe and, without overrides, the fingerprints that data and teacher must have.
    """
    if not (folder / records.RECIPE).exists() or not (folder / records.MANIFEST).exists():
        missing = f"without {records.RECIPE} and {records.MANIFEST}"
        raise RecipeError(f"recipe: expected a run's folder, got {folder} {missing}; name another")
    manifest = records.read_json(folder / records.MANIFEST)
    if not manifest.get("repeatable", False):
        raise RecipeError(
            f"recipe: expected a run that names can repeat, got {folder}, which was made of Python objects; "
            "run the program that made it"
        )
    value = config.read(folder / records.RECIPE)
    if manifest["status"] == "finished":
        stem = f"{value['name']}-again"
        names = [stem, *(f"{stem}-{k}" for k in range(2, 1000))]
        value["name"] = next(name for name in names if not finished(runs / name))
    recipe = parse(Recipe, config.override(value, overrides), where=str(folder / records.RECIPE))
    if overrides:
        return recipe, None
    expected = fingerprints(manifest)
    # A teacher that the run trains itself is trained again.
    return recipe, expected if isinstance(recipe.teacher, Network) else {"data": expected["data"]}


def evaluate(
    model: str, overrides: Sequence[str], *, best: bool = False, trust_code: bool | frozenset[str] = False
) -> tuple[records.Judgement, str]:
    """Evaluate a model on a test set, by default its run's.

    Args:
        model: a run's folder, or a model's name.
        overrides: ``data.*``, ``precision``, ``device`` and ``batch_size``.
        best: a run's best weights instead of its last.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.

    Returns:
        The evaluation, and a title with the model and the data.
    """
    folder = Path(model)
    value = config.read(folder / records.RECIPE) if (folder / records.RECIPE).exists() else {}
    shared = ("data", "precision", "device", "channels_last", "batch_size", "threads")
    kept = {key: value[key] for key in shared if key in value}
    if isinstance(kept.get("data"), Mapping):
        # Of training views alone; its library need not be there.
        kept["data"] = {**kept["data"], "transform": None}
    recipe = parse(Recipe, config.override({"name": "evaluate", **kept, "student": model}, overrides), where="evaluate")
    if best and not (folder / records.BEST).is_file():
        raise RecipeError(
            f"--best: expected {records.BEST} in a run's folder, got {model} without it; leave --best out"
        )
    weights = recipe.student.weights or (str(folder / records.BEST) if best else None)
    splits = data.open_data(recipe.data)
    network = models.create(
        recipe.student.name,
        weights=weights,
        classes=None if weights or Path(recipe.student.name).is_dir() else splits.classes,
        channels=splits.channels,
        image_size=splits.image_size,
        trust_code=trust_code,
    )
    if network.card.classes != splits.classes:
        raise RecipeError(
            f"model {model}: expected {splits.classes} classes, as the data have, got {network.card.classes}; "
            "name the data that it was trained on, data.source=..."
        )
    outputs = evaluation_outputs(recipe, network, dict(held_out_sets(splits, recipe))["test"])
    if not bool((outputs.labels != UNLABELLED).any()):
        raise RecipeError(f"data: expected labels in the test set of {splits.source}, got none; name data with labels")
    return evaluate_outputs(outputs), f"{model} on {len(outputs.labels)} test samples of {splits.source}"
