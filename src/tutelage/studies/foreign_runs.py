"""Runs in a study's folders that are not the planned ones: another recipe, other data or another teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tutelage.data import DataSettings
from tutelage.runs import resume
from tutelage.studies.plan import Job, StudyRequest

ForeignRuns = Mapping[tuple[str, str], str]
"""Reasons why runs are not the planned ones, by pair and run, as pairs with their own settings may share a folder."""


def foreign_runs(
    request: StudyRequest, planned: Iterable[Job], fingerprint: Callable[[DataSettings], str | None]
) -> ForeignRuns:
    """Return the runs whose folders hold different ones than planned, and what to do about it.

    ``fingerprint`` returns the fingerprint of data; it is called only for runs that exist.
    """
    foreign = {}
    for job in {(job.pair, job.name): job for job in planned}.values():
        folder = request.runs / job.name
        if not resume.begun(folder):
            continue
        try:
            differs = resume.run_differences(folder, job.recipe, data=fingerprint(job.recipe.data))
        except (ValueError, OSError, ImportError) as error:
            differs = [str(error)]
        if differs:
            foreign[job.pair, job.name] = (
                f"expected the run that the study plans, got another in {folder} "
                f"({'; '.join(differs)}); type --pool NAME for new runs, or remove the folder"
            )
    return foreign
