"""The commands as functions: train, distill, evaluate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tutelage import data, models, objectives, records
from tutelage.config.schema import Recipe
from tutelage.errors import RecipeError
from tutelage.models import Classifier
from tutelage.objectives import Objective, from_spec
from tutelage.runs.execute import execute
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import Run, RunOptions
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
        data: a source's name, a mapping of `DataSettings`, or a pair (training set, test set) of map-style data sets
            that yield (image in [0, 1] or PIL image, class index).
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
    named = all(isinstance(value, str | Mapping | DataSettings | None) for value in (student, teacher, data))
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
    run_inputs = None if named and built_in else _inputs_of(recipe, passed, student, teacher, data, trust_code)
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
        network = network.folder
    return network.as_posix() if isinstance(network, Path) else network


def _inputs_of(
    recipe: Recipe,
    passed: Sequence[Any],
    student: str | nn.Module,
    teacher: str | nn.Module | None,
    source: Any,
    trust_code: bool | frozenset[str],
) -> RunInputs:
    """Build a run's inputs where some of them are the caller's objects; ``passed`` are its fits' objectives."""
    if isinstance(source, str | Mapping | DataSettings):
        splits = data.open_data(recipe.data)
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
            "data",
            "a source's name, settings, or (training set, test set)",
            type(source).__name__,
            "for example data='digits'",
        )
    names = getattr(source[0], "classes", None)
    if isinstance(names, Sequence):
        return data.from_datasets(*source, classes=len(names), class_names=[str(name) for name in names])
    modules = [network for network in networks if isinstance(network, nn.Module)]
    if not modules:
        raise RecipeError(
            "data",
            "data sets that name their classes",
            "none",
            (
                "give the training set an attribute `classes`, or type "
                "data=tutelage.data.from_datasets(train, test, classes=10)"
            ),
        )
    return data.from_datasets(*source, classes=models.adopt(modules[0]).card.classes)


def evaluate(recipe: Recipe, *, trust_code: bool | frozenset[str] = False) -> tuple[records.Judgement, str]:
    """Evaluate the student of a recipe (`runs.recipes.to_evaluate`) on its test set, in detail.

    Args:
        recipe: names the model and the data.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.

    Returns:
        The evaluation, and a title with the model and the data.
    """
    name, weights = recipe.student.name, recipe.student.weights
    splits = data.open_data(recipe.data)
    network = models.create(
        name,
        weights=weights,
        classes=None if weights or Path(name).is_dir() else splits.classes,
        channels=splits.channels,
        image_size=splits.image_size,
        trust_code=trust_code,
    )
    if network.card.classes != splits.classes:
        raise RecipeError(
            f"model {name}",
            f"{splits.classes} classes, as the data have",
            network.card.classes,
            "name the data that it was trained on, data.source=...",
        )
    outputs = evaluation_outputs(recipe, network, dict(held_out_sets(splits, recipe))["test"])
    if not bool((outputs.labels != UNLABELLED).any()):
        raise RecipeError("data", f"labels in the test set of {splits.source}", "none", "name data with labels")
    return evaluate_outputs(outputs), f"{name} on {len(outputs.labels)} test samples of {splits.source}"
