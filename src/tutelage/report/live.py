"""How far runs are, for a page that is looked at while they go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tutelage import records
from tutelage.report.reading import FINISHED, NOT_STARTED, Run, Subject, number, section
from tutelage.report.summary import duration

RUNNING = "running"
RECENT = 5
"""Epochs by whose median time it is told how long the others take."""
WRITTEN = (
    *(records.MANIFEST, records.METRICS, records.EVALUATION, records.COSTS, records.DISPUTED, records.PREDICTIONS),
    *(records.COMPARISON, records.STUDY),
)
"""Files that a page is made of."""


class Live(NamedTuple):
    """What a page says of runs that may go on."""

    text: str
    written: float  # moment of the last record, seconds since 1970
    tag: str  # of the records that the page is made of


def live(subject: Subject, tag: str) -> Live:
    """Return how far a subject's runs are."""
    text = _of_many(subject.runs) if subject.comparison else _of_one(subject.runs[0])
    return Live(text, max((time / 1e9 for _, time, _ in signature(folders(subject))), default=0.0), tag)


def folders(subject: Subject) -> list[Path]:
    """Return the folders whose records a page is made of."""
    teachers = [] if subject.teacher is None else [subject.teacher.folder]
    return [subject.folder, *(run.folder for run in subject.runs), *teachers]


def signature(folders: list[Path]) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a record in one of the folders does: of each its path, time and size."""

    def found() -> Iterator[tuple[str, int, int]]:
        for folder in dict.fromkeys(folders):
            for name in WRITTEN:
                try:
                    state = (folder / name).stat()
                except OSError:
                    continue
                yield str(folder / name), state.st_mtime_ns, state.st_size

    return tuple(found())


def _of_one(run: Run) -> str:
    planned, done = epochs_of(run), len(run.epochs)
    far = f"epoch {done}" + (f" of {planned}" if planned else "")
    if run.status != RUNNING:
        return run.status if run.status == FINISHED or not done else f"{run.status} after {far}"
    if not done:
        return "running: no epoch is recorded yet"
    if planned is None:
        return f"running: {far}"
    if done >= planned:
        return f"running: {far}, the last evaluation"
    seconds = [value for epoch in run.epochs[-RECENT:] if (value := number(epoch.get("seconds"))) is not None]
    left = f", about {duration((planned - done) * median(seconds))} left" if seconds else ""
    return f"running: {far}{left}"


def _of_many(runs: tuple[Run, ...]) -> str:
    count = Counter(run.status for run in runs)
    order = dict.fromkeys((FINISHED, RUNNING, *count, NOT_STARTED))
    parts = [f"{count[status]} {status}" for status in order if status != NOT_STARTED and count[status]]
    parts += [f"{count[NOT_STARTED]} not started"] if count[NOT_STARTED] else []
    return f"{len(runs)} runs: {', '.join(parts)}" if parts else "no run yet"


def epochs_of(run: Run) -> int | None:
    """Return how many epochs a run is to have, over all stages; ``None`` if its recipe is not recorded."""
    recipe = section(run.manifest, "recipe")
    whole, stages = recipe.get("epochs"), recipe.get("stages")
    if isinstance(stages, list) and stages:
        each: list[Any] = [stage.get("epochs") or whole for stage in stages if isinstance(stage, dict)]
        return sum(each) if all(isinstance(value, int) for value in each) else None
    return whole if isinstance(whole, int) else None
