"""Checks of a recipe that need no torch: names and paths of networks and data, a teacher, a folder for outputs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tutelage import user_code
from tutelage.config.schema import Comparison, Network, Recipe, Teachers, TrainedTeacher
from tutelage.data import names as data_names
from tutelage.errors import RecipeError, TutelageError, raise_all
from tutelage.models import names as model_names
from tutelage.settings.data import DataSettings
from tutelage.settings.objective import OWN_EXAMPLE, ObjectiveSpec, is_own

T = TypeVar("T")


def check_names(recipe: Recipe, *, trust_code: bool | frozenset[str] = False, evaluate: bool = False) -> None:
    """Refuse names and paths of networks and data that stand for nothing, all of them at once.

    Args:
        recipe: recipe of the run.
        trust_code: whether models and objectives that run code are allowed: all, or only those of these names.
        evaluate: whether the recipe's student is only evaluated.

    Raises:
        TutelageError: such as an `InvalidValueError` or a `NotFoundError`; the libraries that have the others raise
            theirs when they are asked.
    """
    if recipe.student.init is not None:
        require_teacher(recipe.teacher, "of which student.init makes the student")
    if not evaluate:
        check_early_stopping(recipe, validation=recipe.data.validation > 0)
    networks = networks_of(recipe.student, recipe.teacher)
    errors = [*network_errors(networks, trust_code=trust_code, evaluate=evaluate)]
    errors += [] if evaluate else code_errors(objectives_of(recipe), trust_code=trust_code)
    raise_all([*errors, *source_errors(recipe.data)])


def objectives_of(recipe: Recipe) -> list[ObjectiveSpec]:
    """Return the objectives of all runs of a recipe, with that of a teacher that is trained first."""
    objectives = (
        [*recipe.objectives.values()] if isinstance(recipe, Comparison) else [f.objective for f in recipe.fits()]
    )
    first = recipe.teacher.train.objective if isinstance(recipe.teacher, TrainedTeacher) else None
    return objectives if first is None else [*objectives, first]


def code_errors(
    objectives: Iterable[ObjectiveSpec], *, trust_code: bool | frozenset[str] = False
) -> Iterable[TutelageError]:
    """Yield what is wrong with the functions of the user's own that objectives name; none is run."""
    calls = [call for objective in objectives for call in objective.presets if is_own(call.preset)]
    for name, sha256 in dict.fromkeys((call.preset, call.sha256) for call in calls):
        try:
            user_code.require_trust(name, "objective", trust_code)
            file, _ = user_code.split(name, "objective", example=OWN_EXAMPLE)
            user_code.require_file(name, "objective", file)
            user_code.require_unchanged(f"objective {name}", file, sha256)
        except TutelageError as error:
            yield error


def check_early_stopping(recipe: Recipe, *, validation: bool) -> None:
    """Refuse to stop early if no labelled ``validation`` split can decide it: the test set must not."""
    if any(fit.settings.early_stopping for fit in recipe.fits()) and not validation:
        expected = "a validation split with labels, as a test set that chooses the epoch says too much of it"
        instead = "type data.validation=0.1, or early_stopping=null"
        raise RecipeError("early_stopping", expected, "none", instead)


def networks_of(student: Network, teacher: Network | Teachers | TrainedTeacher | None) -> list[tuple[str, Network]]:
    """Return the networks of a recipe by their keys."""
    if teacher is None:
        return [("model", student)]
    if isinstance(teacher, TrainedTeacher):
        return [("student", student), ("teacher.train.model", teacher.train.model)]
    if isinstance(teacher, Teachers):
        return [("student", student), *((f"teacher.members.{k}", each) for k, each in enumerate(teacher.members))]
    return [("student", student), *([] if teacher.served else [("teacher", teacher)])]


def network_errors(
    networks: Iterable[tuple[str, Network]],
    *,
    trust_code: bool | frozenset[str] = False,
    evaluate: bool = False,
) -> Iterable[TutelageError]:
    """Yield what is wrong with the names and paths of networks, each given with its key in a recipe."""
    for key, network in networks:
        try:
            if not evaluate and key.rpartition(".")[2] != "teacher":
                require_trainable(network, key)
        except TutelageError as error:
            yield error
            continue
        try:
            if network.init is None:
                model_names.check(network.name, trust_code=trust_code)
        except TutelageError as error:
            yield error.renamed(partial(_with_key, key))
        try:
            if network.weights is not None:
                model_names.weights_file(network.weights)
        except TutelageError as error:
            yield error.renamed(partial(_with_key, key))


def _with_key(key: str, what: str) -> str:
    return key if what == "model" else f"{key}.{what}"


def source_errors(settings: DataSettings) -> Iterable[TutelageError]:
    """Yield what is wrong with the sources of data."""
    try:
        data_names.check(settings.source)
    except TutelageError as error:
        yield error
    try:
        if settings.unlabelled is not None:
            data_names.check_unlabelled(settings.unlabelled.source)
    except TutelageError as error:
        yield error


def require_teacher(teacher: T | None, purpose: str, *, instead: str = "") -> T:
    """Return a run's teacher; refuse none. ``instead`` is what else to type."""
    if teacher is None:
        other = f", or {instead}" if instead else ""
        raise RecipeError("teacher", f"one {purpose}", "none", f"add teacher=..., such as a run's folder{other}")
    return teacher


def require_trainable(network: Network, key: str) -> None:
    """Refuse a file that holds a network as a graph where one is to be trained."""
    if model_names.is_exported(network.name):
        expected = "a network that can be trained"
        instead = "name it as the teacher, and for the student a network such as timm:mobilenetv3_small_050"
        raise RecipeError(key, expected, f"{network.name}, which is a graph in a file", instead)


def require_outputs(recipe: Recipe) -> Path:
    """Return the folder in which a teacher's outputs are to be recorded; refuse none, and a teacher without weights."""
    if recipe.outputs is None:
        raise RecipeError("outputs", "a folder for the teacher's outputs", "none", "type outputs=runs/outputs")
    if isinstance(recipe.teacher, TrainedTeacher):
        instead = "train it by a recipe of its own, with tutelage train, and type teacher=runs/NAME"
        raise RecipeError("teacher", "a network that is trained", "one to train first", instead)
    return Path(recipe.outputs)
