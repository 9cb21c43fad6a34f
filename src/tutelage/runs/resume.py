"""Whether it is the same run: differences between a folder's run and a planned one, and which ones resume allows."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage import config, models, records
from tutelage.config.schema import Network, Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.runs.transform_library import release, transform_library

if TYPE_CHECKING:
    from tutelage.runs.setup import RunInputs
    from tutelage.training.checkpoints import Checkpoint

FREE = {
    *("nonfinite", "checkpoint_steps", "checkpoint_seconds", "log_steps", "threads", "device", "weak_teacher"),
    *("graphs", "outputs_limit_mb", "outputs_top", "outputs_max_error"),
    *("data.workers", "data.root", "data.memory_limit_mb", "data.on_device", "data.on_corrupt"),
    *("seeds", "baseline", "together"),
}
"""Keys that may change on resume: they say how a run is executed, or how many a comparison has, not what is computed.
A comparison's ``objectives`` may also be added and removed."""
WHERE = {"name", "data.source", "data.image", "data.label", "outputs"}
"""Keys that say where run, data and outputs are; their content is checked by fingerprint, as the teacher's is."""


def recipe_differences(recorded: Mapping[str, Any], planned: Recipe) -> list[str]:
    """Describe how a recorded recipe, as read from YAML, differs from a planned one; empty if they belong to one run.

    Recipes of comparisons are compared the same way. Keys that a later version added have their defaults. A teacher's
    folder counts by its last component, as runs may be moved together. An open precision is the recorded one.
    """
    before, now = _read(recorded, type(planned)), planned.model_dump(mode="json")
    for recipe in (before, now):
        if isinstance(teacher := recipe.get("teacher"), dict) and isinstance(name := teacher.get("name"), str):
            # A model's name has a prefix, such as timm:, and is not a path.
            recipe["teacher"] = teacher if re.match(r"\w+:", name) else {**teacher, "name": Path(name).name}
    if before.get("precision") in (None, "auto"):
        before["precision"] = "fp32"
    if now["precision"] == "auto":
        now["precision"] = before["precision"]
    comparison = "objectives" in before and "objectives" in now
    if comparison:
        both = [name for name in before["objectives"] if name in now["objectives"]]
        for recipe in (before, now):
            recipe["objectives"] = {name: recipe["objectives"][name] for name in both}
    return [
        f"{key} was {shown(then)}, is {shown(value)}"
        for key, then, value in _changes(before, now)
        # All runs of a comparison learn from recorded outputs, or all from the live teacher.
        if key not in FREE | WHERE or (comparison and key == "outputs" and None in (then, value))
    ]


def _read(recorded: Mapping[str, Any], kind: type[Recipe]) -> dict[str, Any]:
    """Return a recorded recipe as it would be written now."""
    # An objective of user-defined terms cannot be read back: another stands in for it.
    for stand_in in ({}, {"objective": "cross_entropy"}):
        with contextlib.suppress(RecipeError):
            written = config.parse(kind, {**recorded, **stand_in}).model_dump(mode="json")
            return written | {key: recorded.get(key) for key in stand_in}
    return dict(recorded)


def _changes(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each dotted key whose values differ, with both; a missing one counts as ``None``."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        # In sections of different kinds, such as two optimizers, keys mean different things.
        other_kind = prefix and "name" in before and "name" in now and before["name"] != now["name"]
        for key in ("name",) if other_kind else {**before, **now}:
            yield from _changes(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif _are_sections(before) and _are_sections(now) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _changes(old, new, f"{prefix}.{i}")
    elif before != now:
        yield prefix, before, now


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)


def shown(value: Any) -> str:
    """Show a setting in a message."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def run_differences(folder: Path, planned: Recipe, *, data: str | None) -> list[str]:
    """Describe how the run in a folder, finished or not, differs from a planned one, its data and teacher included.

    ``data`` is the fingerprint of the planned run's current data; ``None`` if unknown. A teacher's is known if it is a
    run's student. One whose weights were rounded for copying is still the teacher of its students.
    """
    lines = recipe_differences(config.read(folder / records.RECIPE), planned)
    then = fingerprints(_manifest(folder))
    if data and then.get("data") not in (None, data):
        lines.append(f"the data's fingerprint was {then['data']}, is {data}")
    if then.get("teacher") and isinstance(planned.teacher, Network) and planned.teacher.weights is None:
        teacher = Path(planned.teacher.name)
        weights = teacher / records.STUDENT
        now = _fingerprint(weights.resolve(), weights.stat().st_mtime_ns) if weights.is_file() else None
        if now and then["teacher"] not in (now, _fingerprint_before_rounding(teacher, now)):
            lines.append(f"the teacher's fingerprint was {then['teacher']}, is {now}")
    return lines


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / records.MANIFEST
    return records.read_json(path) if path.is_file() else {}


def _fingerprint_before_rounding(teacher: Path, fingerprint: str) -> str | None:
    """Return a teacher's fingerprint before its weights were rounded for copying; ``None`` if they were not."""
    rounded = _manifest(teacher).get("rounded") or {}
    return rounded.get("from") if rounded.get("fingerprint") == fingerprint else None


@functools.lru_cache(maxsize=256)
def _fingerprint(path: Path, written: int) -> str:
    """Return the fingerprint of a network with a file's weights; a file is read again only if it has changed.

    A network holds in float32 what a file rounds to half precision.
    """
    state = models.read(path)
    return models.fingerprint(
        {k: v.float() if v.is_floating_point() and v.itemsize < 4 else v for k, v in state.items()}
    )


def earlier_manifest(folder: Path, recipe: Recipe) -> records.Manifest | None:
    """Return the manifest of the folder's unfinished run, if there is one.

    Raises:
        RecipeError: if the folder holds a comparison, a finished run, or a run of another recipe.
    """
    path = folder / records.MANIFEST
    if (folder / records.COMPARISON).exists():
        raise RecipeError("name", "a folder for a run", f"{folder}, which holds a comparison", "type name=...")
    if not path.exists():
        return None
    earlier = records.read_json(path)
    if earlier.get("status") == "finished":
        instead = "type name=... for another, or remove the folder"
        raise RecipeError("name", "a new run", f"{folder}, which is finished", instead)
    if differs := recipe_differences(config.read(folder / records.RECIPE), recipe):
        expected = f"the recipe of the unfinished run {folder} to resume it"
        instead = "type name=... for a new run, or remove the folder"
        raise RecipeError("name", expected, f"another one: {', '.join(differs)}", instead)
    if (library := transform_library(recipe.data)) is not None:
        name, now = library
        then = release(earlier["software"].get(name, "none"))
        if then != now:
            expected = f"{name} {then}, whose views the unfinished run {folder} has seen"
            instead = "install that version to resume it, or type name=... for a new run"
            raise InvalidValueError("data.transform", expected, f"{name} {now}", instead)
    return earlier


def fingerprints(manifest: Mapping[str, Any] | None) -> dict[str, str | None]:
    """Return the fingerprints of data and teacher in a manifest; ``None`` for both without a manifest."""
    if not manifest:
        return {}
    return {what: (manifest.get(what) or {}).get("fingerprint") for what in ("data", "teacher")}


def same_fingerprints(run_inputs: RunInputs, expected: Mapping[str, str | None]) -> None:
    """Refuse data or a teacher whose fingerprint differs from the expected one."""
    teacher = run_inputs.teacher and models.fingerprint(run_inputs.teacher.network)
    got = {"data": run_inputs.splits.fingerprint, "teacher": teacher}
    for what, then in expected.items():
        if then is not None and got[what] != then:
            instead = f"put the same {what} back, or start a new run from the folder's {records.RECIPE}"
            raise RecipeError(what, f"the fingerprint {then} that the run had", got[what], instead)


def same_inputs(run_inputs: RunInputs, earlier: Mapping[str, Any] | None) -> None:
    """Refuse to resume a run one of whose networks was fed at another size, as by an earlier version."""
    for what, network in (("student", run_inputs.student), ("teacher", run_inputs.teacher)):
        if earlier is None or network is None:
            continue
        then, now = (earlier.get(what) or {}).get("input"), network.resized_to
        if then != now:
            fed = [" x ".join(map(str, size)) if size else "the data's own size" for size in (then, now)]
            expected = f"images of {fed[0]}, as the unfinished run fed it"
            raise RecipeError(f"{what} {network.card.name}", expected, fed[1], "type name=... for a new run")


def same_choices(saved: Checkpoint, choices: Mapping[str, Any]) -> None:
    """Warn if a resumed run cannot reproduce the bits of an uninterrupted one."""
    then = saved.state["choices"]
    differs = [f"{key} was {then.get(key)}, is {now}" for key, now in choices.items() if then.get(key) != now]
    if differs:
        warnings.warn(f"resume: expected the same set-up for the same bits, got {'; '.join(differs)}", stacklevel=2)
