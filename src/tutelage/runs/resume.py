"""Checks that the run in a folder is the one to resume."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tutelage import config, models, records
from tutelage.config.schema import Recipe, RecipeError
from tutelage.runs.setup import RunInputs
from tutelage.training.checkpoints import Checkpoint

FREE = {
    *("nonfinite", "checkpoint_steps", "checkpoint_seconds", "log_steps", "threads", "device", "weak_teacher"),
    *("outputs_limit_mb", "outputs_top", "outputs_max_error"),
    *("data.workers", "data.root", "data.memory_limit_mb", "data.on_corrupt"),
}
"""Keys that may change on resume: they say how a run is executed, not what it computes."""
WHERE = {"data.source", "data.image", "data.label", "outputs"}
"""Keys that say where data and outputs are; their content is checked by fingerprint, as the teacher's is."""


def earlier_manifest(folder: Path, recipe: Recipe) -> records.Manifest | None:
    """Return the manifest of the folder's unfinished run, if there is one.

    Raises:
        RecipeError: the folder holds a comparison, a finished run, or a run of another recipe.
    """
    path = folder / records.MANIFEST
    if (folder / records.COMPARISON).exists():
        raise RecipeError(f"name: expected a folder for a run, got {folder}, which holds a comparison; type name=...")
    if not path.exists():
        return None
    earlier = records.read_json(path)
    if earlier.get("status") == "finished":
        remedy = "type name=... for another, or remove the folder"
        raise RecipeError(f"name: expected a new run, got {folder}, which is finished; {remedy}")
    if _essence((folder / records.RECIPE).read_text()) != _essence(config.dump(recipe)):
        raise RecipeError(
            f"name: expected the recipe of the unfinished run {folder} to resume it, got another one; "
            "type name=... for a new run, or remove the folder"
        )
    return earlier


def _essence(resolved: str) -> dict[str, Any]:
    """A recipe without the keys that may change on resume; keys that a later version added have their defaults."""
    value = yaml.safe_load(resolved)
    with contextlib.suppress(RecipeError):
        value = yaml.safe_load(config.dump(config.parse(Recipe, value)))
    flat = {**value, **{f"data.{key}": inner for key, inner in value.pop("data").items()}}
    if isinstance(teacher := flat.get("teacher"), dict) and isinstance(teacher.get("name"), str):
        flat["teacher"] = {**teacher, "name": Path(teacher["name"]).name}
    return {key: inner for key, inner in flat.items() if key not in FREE | WHERE | {"data"}}


def fingerprints(manifest: records.Manifest | None) -> dict[str, str | None]:
    """Return the fingerprints of data and teacher in a manifest; none without a manifest."""
    if not manifest:
        return {}
    return {"data": manifest["data"]["fingerprint"], "teacher": (manifest["teacher"] or {}).get("fingerprint")}


def same_fingerprints(run_inputs: RunInputs, expected: Mapping[str, str | None]) -> None:
    """Refuse data or a teacher whose fingerprint differs from the expected one."""
    teacher = run_inputs.teacher and models.fingerprint(run_inputs.teacher.network)
    got = {"data": run_inputs.splits.fingerprint, "teacher": teacher}
    for what, then in expected.items():
        if then is not None and got[what] != then:
            raise RecipeError(
                f"{what}: expected the fingerprint {then} that the run had, got {got[what]}; "
                f"put the same {what} back, or start a new run from the folder's {records.RECIPE}"
            )


def same_choices(saved: Checkpoint, choices: Mapping[str, Any]) -> None:
    """Warn where a resumed run cannot reproduce the bits of an uninterrupted one."""
    then = saved.state["choices"]
    differs = [f"{key} was {then.get(key)}, is {now}" for key, now in choices.items() if then.get(key) != now]
    if differs:
        warnings.warn(f"resume: expected the same set-up for the same bits, got {'; '.join(differs)}", stacklevel=2)
