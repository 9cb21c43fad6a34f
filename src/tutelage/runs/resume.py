"""Whether it is the same run: differences between a folder's run and a planned one, and which ones resume allows."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tutelage import config, models, plain_files, records
from tutelage.config.schema import Network, Recipe, Teachers
from tutelage.errors import InvalidValueError, RecipeError, TutelageError
from tutelage.runs.manifest import without_paths
from tutelage.runs.transform_library import release, transform_library

if TYPE_CHECKING:
    from tutelage.runs.setup import RunInputs
    from tutelage.training.checkpoints import Checkpoint

FREE = {
    *("nonfinite", "checkpoint_steps", "checkpoint_seconds", "log_steps", "threads", "device", "weak_teacher"),
    *("graphs", "checkpoint_activations", "outputs_limit_mb", "outputs_top", "outputs_form", "outputs_max_error"),
    *("data.workers", "data.root", "data.memory_limit_mb", "data.on_device", "data.on_corrupt"),
    *("seeds", "baseline", "together"),
}
"""Keys that may change on resume: they say how a run is executed, or how many a comparison has, not what is computed.
A comparison's ``objectives`` may also be added and removed."""
WHERE = {
    *("name", "data.source", "data.unlabelled.source", "data.test_shards", "data.image", "data.label", "outputs"),
    *("data.text", "data.prompt", "data.completion", "data.messages", "data.tokenizer", "data.teacher_tokenizer"),
}
"""Keys that say where run, data, tokenizers and outputs are; fingerprints check their content, as the teacher's."""

BASE = "student's frozen part"
"""What its fingerprint is called, beside those of data and teacher."""


def recipe_differences(recorded: Mapping[str, Any], planned: Recipe, *, but: Collection[str] = ()) -> list[str]:
    """Describe how a recorded recipe, as read from YAML, differs from a planned one; empty if they belong to one run.

    Recipes of comparisons are compared the same way. Keys that a later version added have their defaults. A teacher's
    folder counts by its last component, as runs may be moved together, and so does ``start``. An open precision and
    an open number of micro-batches are the recorded ones. Keys in ``but``, and those under them, may differ.
    """
    before, now = read_as_now(recorded, type(planned)), planned.model_dump(mode="json")
    for recipe in (before, now):
        if isinstance(teacher := recipe.get("teacher"), dict):
            several = teacher.get("members")
            members = {"members": [_by_name(each) for each in several]} if isinstance(several, list) else {}
            recipe["teacher"] = {**_by_name(teacher), **members}
        if isinstance(start := recipe.get("start"), str):
            recipe["start"] = Path(start).name
    if before.get("precision") in (None, "auto"):
        before["precision"] = "fp32"
    if now["precision"] == "auto":
        now["precision"] = before["precision"]
    if now["accumulate"] == "auto":
        now["accumulate"] = before.get("accumulate")
    comparison = "objectives" in before and "objectives" in now
    if comparison:
        both = [name for name in before["objectives"] if name in now["objectives"]]
        for recipe in (before, now):
            recipe["objectives"] = {name: recipe["objectives"][name] for name in both}
    return [
        f"{key} was {shown(then)}, is {shown(value)}"
        for key, then, value in _changes(before, now)
        # All runs of a comparison learn from recorded outputs, or all from the live teacher.
        if not any(f"{key}.".startswith(f"{each}.") for each in but)
        and (key not in FREE | WHERE or (comparison and key == "outputs" and None in (then, value)))
    ]


def _by_name(network: dict[str, Any]) -> dict[str, Any]:
    """Return what a recipe says of a network, with the last component of a folder's path as its name."""
    name = network.get("name")
    # A model's name has a prefix, such as timm:, and is not a path.
    if not isinstance(name, str) or re.match(r"\w+:", name):
        return network
    return {**network, "name": Path(name).name}


def read_as_now(recorded: Mapping[str, Any], kind: type[Recipe]) -> dict[str, Any]:
    """Return a recorded recipe as it would be written now."""
    # An objective of user-defined terms cannot be read back: another stands in for it.
    for stand_in in ({}, {"objective": "cross_entropy"}):
        with contextlib.suppress(RecipeError):
            written = config.parse(kind, {**recorded, **stand_in}).model_dump(mode="json")
            return written | {key: recorded.get(key) for key in stand_in}
    return {key: value for key, value in recorded.items() if key != "schema"}


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
    recorded = read_recorded(folder)
    if recorded is None:  # It was stopped before its first record.
        return []
    lines = recipe_differences(recorded.recipe(), planned)
    then = fingerprints(recorded.manifest)
    if data and then.get("data") not in (None, data):
        lines.append(f"the data's fingerprint was {then['data']}, is {data}")
    for what, network, known in _teachers(recorded.manifest, planned):
        teacher = Path(network.name)
        now = student_fingerprint(teacher)
        if now and known not in (now, _fingerprint_before_rounding(teacher, now)):
            lines.append(f"{what}'s fingerprint was {known}, is {now}")
    return lines


def _teachers(manifest: Mapping[str, Any], planned: Recipe) -> Iterator[tuple[str, Network, str]]:
    """Yield each teacher whose weights are those of a run's folder: what it is, its name, and its fingerprint then."""
    recorded: Mapping[str, Any] = manifest.get("teacher") or {}
    networks, then = [planned.teacher], [recorded]
    if isinstance(planned.teacher, Teachers):
        networks, then = [*planned.teacher.members], recorded.get("members") or []
    for network, known in zip(networks, then, strict=False):
        if isinstance(network, Network) and network.weights is None and known.get("fingerprint"):
            what = "the teacher" if network is planned.teacher else f"the teacher {Path(network.name).name}"
            yield what, network, known["fingerprint"]


class Recorded(NamedTuple):
    """What a run's folder says of the run: its manifest, perhaps made again from a checkpoint, and its recipe."""

    folder: Path
    manifest: records.Manifest
    kept: records.KeptRun | None  # by the newest good checkpoint
    rebuilt: tuple[str, ...] = ()  # what was made again, a line each

    def recipe(self, *, exact: bool = False) -> dict[str, Any]:
        """Return the run's recipe as read from YAML.

        A missing or damaged one is that of the newest checkpoint; if there is none, and unless ``exact``, that of the
        manifest, whose paths are reduced to their last component.

        Raises:
            DamagedError: it is none of these, or it was changed since the run began; ``got`` says how.
        """
        path = self.folder / records.RECIPE
        original = self.kept["recipe"] if self.kept else self.manifest.get("recipe")
        instead = "restore the file, or type name=... for a new run with the recipe that you want"
        try:
            records.read_bytes(path)
            value = config.read(path)
            records.check_schema(path, value)
        except records.NewerError:
            raise
        except (TutelageError, OSError) as error:
            if self.kept is None and (exact or original is None):
                got = error.got if isinstance(error, TutelageError) else error
                raise records.DamagedError(path, "the recipe of the run", got, instead) from error
            return dict(original or {})
        known = self.manifest.get("files", {}).get(records.RECIPE)
        if known == records.digest(path) or (known is None and original is None):
            return value
        if original is None:
            raise records.DamagedError(path, "the recipe that the run began with", "another", instead)
        if changes := list(_significant(without_paths(original), without_paths(value))):
            expected = f"the recipe that the run began with, as its {records.MANIFEST} has it"
            got = f"another one: {', '.join(changes)}"
            raise records.DamagedError(path, expected, got, instead)
        return value


def read_recorded(folder: Path) -> Recorded | None:
    """Read what a folder says of its run; ``None`` if none was begun there. What a checkpoint knows is made again.

    Raises:
        DamagedError: the manifest is damaged, or missing beside a run's other files, and no checkpoint knows it.
        NewerError: a newer version wrote it.
    """
    path = folder / records.MANIFEST
    kept, name = records.kept_run(folder) or (None, "")
    try:
        manifest = records.read_manifest(folder)
        changes = list(_significant(kept["manifest"].get("recipe"), manifest.get("recipe"))) if kept else []
        if kept is None or not changes:
            return Recorded(folder, manifest, kept)
        if records.RECIPE in manifest.get("files", {}) and not records.lost(folder, manifest, [records.RECIPE]):
            return Recorded(folder, manifest, None)  # Two against one: the checkpoint is the stranger, and passed over.
        line = f"{path} is that of another run ({', '.join(changes)}): made again from checkpoint {name}"
        return Recorded(folder, kept["manifest"], kept, (line,))
    except TutelageError as error:
        if isinstance(error, records.NewerError):
            raise
        what = "missing" if not path.exists() else f"damaged ({error.got})"
        if kept is not None:
            return Recorded(folder, kept["manifest"], kept, (f"{path} is {what}: made again from checkpoint {name}",))
        if path.exists():
            raise records.DamagedError(
                path, error.expected, error.got, f"restore the file, remove the folder {folder}, or type name=..."
            ) from error
    left = [name for name in (records.CHECKPOINTS, records.STUDENT) if (folder / name).exists()]
    if left:
        expected, instead = f"that of the run whose {left[0]} are in {folder}", "restore the file, or type name=..."
        raise records.DamagedError(path, expected, "none", instead)
    return None


def _significant(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> Iterator[str]:
    """Describe how a recipe of a run's records differs from another, but in keys that may change on resume."""
    if before is None or now is None:  # of a run that names cannot repeat
        return
    for key, then, value in _changes(read_as_now(before, Recipe), read_as_now(now, Recipe)):
        if key not in FREE and key != "schema":
            yield f"{key} was {shown(then)}, is {shown(value)}"


def begun(folder: Path) -> bool:
    """Whether a folder holds anything of a run."""
    return any((folder / name).exists() for name in (records.RECIPE, records.MANIFEST, records.CHECKPOINTS))


def _fingerprint_before_rounding(teacher: Path, fingerprint: str) -> str | None:
    """Return a teacher's fingerprint before its weights were rounded for copying; ``None`` if they were not."""
    manifest = records.read_manifest(teacher) if (teacher / records.MANIFEST).exists() else {}
    rounded = manifest.get("rounded") or {}
    return rounded.get("from") if rounded.get("fingerprint") == fingerprint else None


def student_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of the student in a run's folder; ``None`` if there is none."""
    weights = folder / records.STUDENT
    return _fingerprint(weights.resolve(), weights.stat().st_mtime_ns) if weights.is_file() else None


@functools.lru_cache(maxsize=256)
def _fingerprint(path: Path, written: int) -> str:
    """Return the fingerprint of a network with a file's weights; a file is read again only if it has changed.

    A network holds in float32 what a file rounds to half precision. A file of what was trained is one part of it.
    """
    if path.with_name(records.CARD).is_file() and models.read_parts(path.parent)[1] is not None:
        return models.fingerprint(models.create(str(path.parent)).network)
    state = models.read(path)
    return models.fingerprint(
        {k: v.float() if v.is_floating_point() and v.itemsize < 4 else v for k, v in state.items()}
    )


def earlier_run(folder: Path, recipe: Recipe) -> Recorded | None:
    """Return what the folder of an unfinished run says of it, if there is one.

    A finished run that lost some of its files and has a checkpoint counts as unfinished: the files are written again.

    Raises:
        RecipeError: if the folder holds a comparison, a finished run, or a run of another recipe.
        DamagedError: if its recipe or manifest is damaged and cannot be made again.
    """
    if (folder / records.COMPARISON).exists():
        raise RecipeError("name", "a folder for a run", f"{folder}, which holds a comparison", "type name=...")
    recorded = read_recorded(folder)
    if recorded is None:
        return None
    earlier = recorded.manifest
    if not recorded.rebuilt and earlier.get("status") == "finished":
        lost = [name for name in records.lost(folder, earlier) if name != records.RECIPE]
        if not lost:
            more = f"for more epochs of it type start={folder} with name=... and epochs=..."
            instead = f"type name=... for another, or remove the folder; {more}"
            raise RecipeError("name", "a new run", f"{folder}, which is finished", instead)
        named = ", ".join(str(folder / name) for name in lost)
        if not records.checkpoint_names(folder / records.CHECKPOINTS):
            got = f"{folder}, which is finished, but lost {named}, and has no checkpoint to write it again from"
            instead = "restore it, remove the folder to run it again, or type name=... for another"
            raise RecipeError("name", "a new run", got, instead)
        line = f"expected what the finished run wrote in {named}, got another content or none: written again"
        recorded = recorded._replace(rebuilt=(line,))
    if differs := recipe_differences(recorded.recipe(), recipe):
        expected = f"the recipe of the unfinished run {folder} to resume it"
        instead = "type name=... for a new run, or remove the folder"
        raise RecipeError("name", expected, f"another one: {', '.join(differs)}", instead)
    if records.lost(folder, earlier, [records.RECIPE]):
        line = f"{folder / records.RECIPE} is missing, or is not as the run wrote it: written again"
        recorded = recorded._replace(rebuilt=(*recorded.rebuilt, line))
    require_library(earlier, recipe, folder)
    return recorded


def require_library(manifest: Mapping[str, Any], recipe: Recipe, folder: Path) -> None:
    """Refuse to go on with a run whose views another version of a library has made; ``folder`` is the run's."""
    if (library := transform_library(recipe.data)) is not None:
        name, now = library
        then = release(manifest.get("software", {}).get(name, "none"))
        if then != now:
            expected = f"{name} {then}, whose views the run {folder} has seen"
            instead = "install that version to go on with it, or type name=... for a new run"
            raise InvalidValueError("data.transform", expected, f"{name} {now}", instead)


def fingerprints(manifest: Mapping[str, Any] | None) -> dict[str, str | None]:
    """Return the fingerprints of data, teacher and what is frozen of the student in a manifest, if it has them."""
    if not manifest:
        return {}
    known = {what: (manifest.get(what) or {}).get("fingerprint") for what in ("data", "teacher")}
    base = (manifest.get("student") or {}).get("base")
    return known if base is None else {**known, BASE: base}


def same_fingerprints(run_inputs: RunInputs, expected: Mapping[str, str | None]) -> None:
    """Refuse data, a teacher, or frozen weights of the student, whose fingerprint differs from the expected one."""
    teacher = run_inputs.teacher and models.fingerprint(run_inputs.teacher.network)
    base = models.frozen_fingerprint(run_inputs.student) if BASE in expected else None
    got = {"data": run_inputs.splits.fingerprint, "teacher": teacher, BASE: base}
    for what, then in expected.items():
        if then is not None and got[what] != then:
            instead = f"put the same {what} back, or start a new run from the folder's {records.RECIPE}"
            if what == "data":
                instead += "; where they are the same, another version of tutelage reads their pictures otherwise"
            raise RecipeError(what, f"the fingerprint {then} that the run had", got[what], instead)


def same_inputs(run_inputs: RunInputs, earlier: Mapping[str, Any] | None) -> None:
    """Refuse to resume a run one of whose networks was fed at another size, as by an earlier version."""
    for what, network in (("student", run_inputs.student), ("teacher", run_inputs.teacher)):
        if earlier is None or network is None:
            continue
        then, now = (earlier.get(what) or {}).get("input"), network.resized_to
        if then != now:
            fed = [" x ".join(map(str, size)) if size else "the data's own size" for size in (then, now)]
            expected = f"images of {fed[0]}, as the run so far fed it"
            raise RecipeError(f"{what} {network.card.name}", expected, fed[1], "type name=... for a new run")


def same_choices(saved: Checkpoint, choices: Mapping[str, Any]) -> None:
    """Warn if a resumed run cannot reproduce the bits of an uninterrupted one."""
    then = {"processes": 1, **saved.state["choices"]}  # Earlier versions ran in one.
    differs = [f"{key} was {then.get(key)}, is {now}" for key, now in choices.items() if then.get(key) != now]
    if then["processes"] != choices["processes"]:
        differs[-1] += " (same order of the data; other random draws of the student, and sums in another order)"
    if differs:
        warnings.warn(f"resume: expected the same set-up for the same bits, got {'; '.join(differs)}", stacklevel=2)


def same_run(saved: Checkpoint, recipe: Recipe, manifest: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run: of another recipe, other data or another teacher.

    Raises:
        ValueError: so; it says how they differ. A checkpoint of an earlier version does not know its run.
    """
    if (run := saved.state.get("run")) is None:
        return
    if wrong := plain_files.misfit(run, records.KeptRun):
        raise ValueError(wrong)
    differs = recipe_differences(run["recipe"], recipe)
    now = fingerprints(manifest)
    differs += [
        f"the fingerprint of the {what} was {then}, is {now[what]}"
        for what, then in fingerprints(run["manifest"]).items()
        if then != now.get(what) and None not in (then, now.get(what))
    ]
    if differs:
        raise ValueError(f"that of another run: {', '.join(differs)}")
