"""Runs in a study's folders that are not the planned ones: another recipe, other data or another teacher."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tutelage import config, models, records
from tutelage.config.schema import Network, Recipe
from tutelage.data import DataSettings
from tutelage.runs import resume
from tutelage.studies.plan import Job, StudyRequest, flat, shown

ForeignRuns = Mapping[tuple[str, str], str]
"""By pair and run, as pairs with settings of their own may share a folder: why a run is not the planned one."""


def foreign_runs(
    request: StudyRequest, planned: Iterable[Job], fingerprint: Callable[[DataSettings], str | None]
) -> ForeignRuns:
    """Return the runs whose folders hold others than are planned, and what to do about it.

    ``fingerprint`` returns that of data; it is called only for runs that exist.
    """
    foreign = {}
    for job in {(job.pair, job.name): job for job in planned}.values():
        folder = request.runs / job.name
        if not (folder / records.RECIPE).exists():
            continue
        try:
            differs = differences(request, job, fingerprint=fingerprint(job.recipe.data))
        except (ValueError, OSError, ImportError) as error:
            differs = [str(error)]
        if differs:
            foreign[job.pair, job.name] = (
                f"expected the run that the study plans, got another in {folder} "
                f"({'; '.join(differs)}); type --pool NAME for new runs, or remove the folder"
            )
    return foreign


def differences(request: StudyRequest, job: Job, *, fingerprint: str | None = None) -> list[str]:
    """Describe how the run in a job's folder differs from the planned one; empty where there is none.

    ``fingerprint`` is that of the job's data as they are now; none where it is unknown.
    """
    folder = request.runs / job.name
    if not (folder / records.RECIPE).exists():
        return []
    recorded = config.parse(Recipe, config.read(folder / records.RECIPE), where=str(folder / records.RECIPE))
    before, now = (dict(flat(_compared(recipe, job.needs))) for recipe in (recorded, job.recipe))
    lines = [
        f"{key} was {shown(before.get(key))}, is {shown(now.get(key))}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and key not in resume.FREE | resume.WHERE
    ]
    manifest = _manifest(folder)
    data = manifest.get("data", {}).get("fingerprint")
    if fingerprint and data and data != fingerprint:
        lines.append(f"the data's fingerprint was {data}, is {fingerprint}")
    recorded_teacher = (manifest.get("teacher") or {}).get("fingerprint")
    if recorded_teacher and isinstance(job.recipe.teacher, Network) and job.recipe.teacher.weights is None:
        teacher = Path(job.recipe.teacher.name)
        weights = teacher / records.STUDENT
        current = _fingerprint(weights.resolve(), weights.stat().st_mtime_ns) if weights.is_file() else None
        if current and recorded_teacher not in (current, _fingerprint_before_rounding(teacher, current)):
            lines.append(f"the teacher's fingerprint was {recorded_teacher}, is {current}")
    return lines


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / records.MANIFEST
    return records.read_json(path) if path.is_file() else {}


def _compared(recipe: Recipe, needs: str | None) -> dict[str, Any]:
    value = recipe.model_dump(mode="json", exclude={"name"})
    if needs is not None and value["teacher"]:
        # The pool may have been moved, with its teachers.
        value["teacher"] = Path(value["teacher"].get("name", "")).name
    return value


def _fingerprint_before_rounding(teacher: Path, fingerprint: str) -> str | None:
    """Return the fingerprint of a teacher before its weights were rounded for copying; none where they were not."""
    rounded = _manifest(teacher).get("rounded") or {}
    return rounded.get("from") if rounded.get("fingerprint") == fingerprint else None


@functools.lru_cache(maxsize=256)
def _fingerprint(path: Path, written: int) -> str:
    """Return the fingerprint of a network with a file's weights; a file is read again only when it has changed.

    A network holds in float32 what a file rounds to half precision.
    """
    state = models.read(path)
    return models.fingerprint(
        {k: v.float() if v.is_floating_point() and v.itemsize < 4 else v for k, v in state.items()}
    )
