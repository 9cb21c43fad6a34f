"""More epochs for a finished run: a new run that begins with its last checkpoint. No torch until that is read.

The finished run is only read, and not at all once the new one has a checkpoint of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tutelage import records
from tutelage.config.schema import Recipe
from tutelage.errors import RecipeError
from tutelage.runs.resume import read_as_now, read_recorded, recipe_differences, require_library, shown
from tutelage.runs.resume import student_fingerprint as fingerprint_of
from tutelage.runs.run import finished
from tutelage.training.early_stopping import reason_to_stop

STAYING = ("epochs", "optimizer", "schedule", "early_stopping")
"""Keys that may differ, all or in part, and that for a stage that is over stay as they were."""


class Origin(NamedTuple):
    """The end of a finished run, at which another one begins."""

    folder: Path
    checkpoint: Path
    manifest: records.Manifest
    stage: int
    epoch: int  # of the stage

    def describe(self) -> dict[str, Any]:
        """Return what the manifest of the new run says of it."""
        name = self.manifest.get("name", self.folder.name)
        return {"name": name, "fingerprint": fingerprint_of(self.folder), "epoch": self.epoch}


def origin(recipe: Recipe, folder: Path) -> Origin | None:
    """Return where a run in a folder begins; ``None`` at its first step, or at a checkpoint of its own.

    Raises:
        RecipeError: if ``start`` is no finished run with its last checkpoint, has as many epochs, or differs in what a
            run that goes on from it must have too.
    """
    if recipe.start is None or records.checkpoint_names(folder / records.CHECKPOINTS):
        return None
    start = Path(recipe.start)
    if start.resolve() == folder.resolve():
        instead = f"type name=... for the run that starts from {start}"
        raise RecipeError("start", "another run's folder", f"{start}, the run's own", instead)
    if not (start / records.MANIFEST).is_file():
        got = f"{start}, which is not there" if not start.exists() else f"{start} without {records.MANIFEST}"
        raise RecipeError("start", "the folder of a finished run", got, "for example start=runs/NAME")
    recorded = read_recorded(start)
    assert recorded is not None
    if not finished(start):
        got = f"{start}, whose status is {recorded.manifest.get('status')}"
        if lost := records.lost(start, recorded.manifest):
            got = f"{start}, which lost {', '.join(lost)}"
        instead = f"type tutelage train {start}, or distill, to finish it first"
        raise RecipeError("start", "a finished run", got, instead)
    place, state = _newest_state(start)
    _check_recipe(recorded.recipe(), recipe, start)
    done = int(state["epoch"])
    if (planned := recipe.fits()[-1].settings.epochs) <= done:
        what = f"stages.{len(recipe.stages) - 1}.epochs" if recipe.stages else "epochs"
        expected = f"more than the {done} that {start} has"
        raise RecipeError(what, expected, planned, f"type {what}={2 * done} for as many again")
    stopping = recipe.fits()[-1].settings.early_stopping
    if stopping is not None and (why := reason_to_stop(state.get("history", ()), stopping)) is not None:
        what = f"stages.{len(recipe.stages) - 1}.early_stopping" if recipe.stages else "early_stopping"
        expected = f"one by which {start} goes on"
        got = f"a patience of {stopping.patience}, by which it is over: {why}"
        raise RecipeError(what, expected, got, f"type {what}.patience={done + 1}, or another")
    require_library(recorded.manifest, recipe, start)
    return Origin(start, place, recorded.manifest, int(state["stage"]), done)


def _newest_state(start: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the last checkpoint of a finished run, and its plain values."""
    instead = f"begin with its weights alone: student.weights={start / records.STUDENT}"
    expected = "a finished run with its last checkpoint"
    if not (names := records.checkpoint_names(start / records.CHECKPOINTS)):
        raise RecipeError("start", expected, f"{start} without {records.CHECKPOINTS}", instead)
    place = start / records.CHECKPOINTS / names[-1]
    try:
        state = records.parse_state(records.read_checked(place, records.STATE)[records.STATE], names[-1])
        whole = all(isinstance(state.get(key), int) for key in ("stage", "epoch")) and state.get("step_in_epoch") == 0
    except (OSError, ValueError) as error:
        raise RecipeError("start", expected, f"{place}, which is damaged ({error})", instead) from error
    if not whole:
        raise RecipeError("start", expected, f"{place}, which is not at the end of an epoch", instead)
    return place, state


def _check_recipe(recorded: Mapping[str, Any], recipe: Recipe, start: Path) -> None:
    """Refuse a recipe that differs from a finished run's in more than the epochs and the rate of what is still done."""
    last = f"stages.{len(recipe.stages) - 1}."
    own = ("epochs", "optimizer.lr", "schedule", "early_stopping")
    differs = recipe_differences(recorded, recipe, but=("start", *own, *(last + key for key in own)))
    differs += _differences_before(read_as_now(recorded, type(recipe)), recipe.model_dump(mode="json"))
    if differs:
        but = "name, epochs, optimizer.lr, schedule, early_stopping and how it is computed"
        expected = f"what {start} has, in all but {but}"
        raise RecipeError("start", expected, ", ".join(differs), "type the same, or leave start out for a run anew")


def _differences_before(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Describe how stages differ that are over, by keys that they may take from the recipe."""
    stages = zip(before.get("stages", ())[:-1], now["stages"][:-1], strict=False)
    for k, pair in enumerate(stages):
        for key in STAYING:
            then, value = (stage.get(key) or recipe.get(key) for stage, recipe in zip(pair, (before, now), strict=True))
            if then != value and (pair[0].get(key) or pair[1].get(key)) is None:
                yield f"{key} of the finished stage {k} was {shown(then)}, is {shown(value)}"


def bring_teacher(start: Origin, folder: Path) -> None:
    """Copy the teacher that a finished run has trained, without its checkpoints, where there is none yet."""
    source = start.folder / "teacher"
    if folder.exists() or not finished(source):
        return
    temporary = folder.with_name(".teacher.tmp")
    with records.writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(records.CHECKPOINTS))
        temporary.rename(folder)
