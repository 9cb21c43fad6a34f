"""A run's recipe, read from a file, from overrides alone, or from a run's folder. No torch.

Ranges of objectives' values are known to the losses; `runs.setup.check_objectives` refuses what is outside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage import config, records
from tutelage.config.schema import Judged, Recipe, TrainedTeacher
from tutelage.errors import RecipeError
from tutelage.runs.resume import fingerprints, read_recorded
from tutelage.runs.run import finished


def from_file(path: Path, overrides: Sequence[str]) -> Recipe:
    """Read a run's recipe from a file."""
    value = config.read(path, overrides)
    if "objectives" in value:
        raise RecipeError(
            path, "the recipe of one run", "one that compares several objectives", f"type tutelage compare {path}"
        )
    return config.parse(Recipe, value, where=str(path), overrides=overrides)


def from_overrides(overrides: Sequence[str]) -> Recipe:
    """Read a run's recipe from ``key=value`` alone."""
    return config.parse(Recipe, {"name": "run", **config.override({}, overrides)}, overrides=overrides)


def again(folder: Path, overrides: Sequence[str], runs: Path) -> tuple[Recipe, dict[str, str | None] | None]:
    """Read the recipe of a run's folder: to resume the run or, if it is finished, to repeat it under a new name.

    Returns:
        The recipe and, without overrides, the fingerprints that data and teacher must have.
    """
    recorded = read_recorded(folder)
    if recorded is None:
        missing = f"without {records.RECIPE} and {records.MANIFEST}"
        raise RecipeError("recipe", "a run's folder", f"{folder} {missing}", "name another")
    manifest = recorded.manifest
    if not manifest.get("repeatable", False):
        got = f"{folder}, which was made of Python objects"
        raise RecipeError("recipe", "a run that names can repeat", got, "run the program that made it")
    value = recorded.recipe(exact=True)
    if finished(folder):
        stem = f"{value.get('name', folder.name)}-again"
        names = [stem, *(f"{stem}-{k}" for k in range(2, 1000))]
        value["name"] = next(name for name in names if not finished(runs / name))
    recipe = config.parse(
        Recipe, config.override(value, overrides), where=str(folder / records.RECIPE), overrides=overrides
    )
    if overrides:
        return recipe, None
    expected = fingerprints(manifest)
    # A teacher that the run trains itself is trained again.
    return recipe, {"data": expected["data"]} if isinstance(recipe.teacher, TrainedTeacher) else expected


def to_evaluate(
    model: str,
    overrides: Sequence[str] = (),
    *,
    best: bool = False,
    typed: Mapping[str, Any] = {},
    **settings: Any,
) -> Recipe:
    """Return a recipe whose student is a model to evaluate: a run's, with that run's data, or any that a name has.

    ``best`` takes the run's best weights instead of its last; ``typed`` are further keys of the model, and ``settings``
    replace those of the run.
    """
    folder = Path(model)
    is_run = any((folder / name).exists() for name in (records.MANIFEST, records.CHECKPOINTS))
    recorded = read_recorded(folder) if is_run else None
    value = recorded.recipe(exact=True) if recorded else {}
    if not recorded and (folder / records.RECIPE).exists():
        value = config.read(folder / records.RECIPE)
    shared = ("data", "precision", "device", "channels_last", "batch_size", "threads")
    kept = {key: value[key] for key in shared if key in value}
    if isinstance(kept.get("data"), Mapping):  # Evaluation views have no transform: its library need not be there.
        kept["data"] = {**kept["data"], "transform": None}
    student = value.get("student")
    reads = {"reads": student["reads"]} if isinstance(student, Mapping) and "reads" in student else {}
    changed = config.override(
        {"name": "evaluate", **kept, **settings, "model": {"name": model, **reads, **typed}}, overrides
    )
    recipe = config.parse(Judged, changed, where="evaluate", overrides=overrides)
    if not best:
        return recipe
    if not (folder / records.BEST).is_file():
        raise RecipeError("best", f"{records.BEST} in a run's folder", f"{model} without it", "leave best out")
    weights = recipe.student.weights or str(folder / records.BEST)
    return recipe.model_copy(update={"student": recipe.student.model_copy(update={"weights": weights})})
