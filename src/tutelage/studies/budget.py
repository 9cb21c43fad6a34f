"""A study within a time budget: the cost of each pair on this machine, the cheapest first, and what fits."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from tutelage import data, records
from tutelage.config.schema import Recipe
from tutelage.data.registry import import_library
from tutelage.errors import one_line
from tutelage.places.time_limit import Budget
from tutelage.report.table import aligned
from tutelage.runs import autotune, manifest
from tutelage.runs.run import finished
from tutelage.runs.setup import (
    RunInputs,
    build_inputs,
    build_objectives,
    held_out_sets,
    needs_teacher,
    steps_of,
    torch_settings,
)
from tutelage.studies.plan import Job, StudyRequest, dry_run_recipe, jobs, without_idle_teachers
from tutelage.studies.schema import TEACHER
from tutelage.training.deadline import Deadline
from tutelage.training.distributed import accelerator_on

TIMES = "times.json"
"""File with a study's timings and their machine; later commands on the same machine read it."""
SHARE = 0.1
"""Share of the budget for timing; pairs not timed by then come last."""
MARGIN = 5.0
"""Seconds of the budget reserved for a checkpoint, a manifest and the end of the process."""
STRETCH = 10
"""Number of steps, or of the remaining ones if fewer, that must fit in the budget to begin or resume a run."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """The timings of a pair, in seconds."""

    teacher: float | None  # time per step of the teacher's training; None if it is not trained
    student: float  # time per step of a student, with a live teacher if its method uses one
    batch: int  # number of samples in the student's step
    asked: bool  # whether the teacher ran in it
    teacher_eval_s: float | None  # teacher's evaluation time per sample; None if there is no teacher
    student_eval_s: float  # student's evaluation time per sample
    samples: int  # number of samples in the training set
    held: int  # number of samples in the held-out sets
    opened: float  # time to open the data
    of: str  # names of the two networks, as the same pair in another study file may have others


FIELDS = {field.name: field.name for field in fields(Times)} | {"teacher_eval_s": "word", "student_eval_s": "eyes"}
"""Keys of ``times.json`` by the fields of `Times`."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The remaining cost of a run, in seconds on this machine."""

    steps: int = 0  # number of remaining steps
    step: float = 0.0  # time per step
    evaluation: float = 0.0  # time to evaluate the student on the held-out sets, after each epoch
    start: float = 0.0  # time before the first step: opening the data, the teacher's outputs for held-out sets
    record: float = 0.0  # time to record the teacher's outputs, if this run is the first to need them
    epochs: int = 0  # number of remaining epochs, a begun one included
    source: Literal["timed", "records"] = "timed"  # source of ``step``: timed here, or a run's records from here

    @property
    def seconds(self) -> float:
        """Total time; the student is evaluated once more at the end."""
        return self.start + self.record + self.steps * self.step + (self.epochs + 1) * self.evaluation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study in the order required by a budget."""

    request: StudyRequest  # request with the pairs in that order
    left: tuple[Job, ...]  # unfinished runs, in order
    costs: Mapping[str, Cost]  # costs by name, of runs whose pair was timed
    budget: Budget
    workers: int  # number of processes that share it
    untimed: Mapping[str, str]  # reasons why pairs were not timed

    @property
    def seconds(self) -> float:
        """Known time for the unfinished runs."""
        return self._seconds(self.left)

    def _seconds(self, left: Sequence[Job]) -> float:
        return sum(self.costs[job.name].seconds for job in left if job.name in self.costs) / self.workers

    def lines(self) -> Iterator[str]:
        """Yield a line per pair with its cost and how much of it fits."""
        available = self.budget.left
        spent = self.budget.seconds - available
        yield (
            f"budget: {_minutes(self.budget.seconds)}, of which {_minutes(spent)} are used; "
            "the pair that takes least comes first"
        )
        rows: list[tuple[str, ...]] = [
            ("pair", "runs left", "steps left", "teacher", "students", "estimated", "in the budget")
        ]
        total = 0.0
        for pair in self.request.pairs:
            left = [job for job in self.left if job.pair == pair]
            if not left:
                rows.append((pair, "0", "0", "-", "-", "-", "done"))
            elif any(job.name not in self.costs for job in left):
                why = self.untimed.get(pair, "not timed")
                rows.append((pair, str(len(left)), "?", "?", "?", "?", f"not known: {why}"))
            else:
                seconds = self._seconds(left)
                fits = "all" if total + seconds <= available else "in part" if total < available else "no"
                steps = sum(self.costs[job.name].steps for job in left)
                times = (
                    _step_times([self.costs[job.name] for job in left if (job.method == TEACHER) is teachers])
                    for teachers in (True, False)
                )
                rows.append((pair, str(len(left)), f"{steps:,}", *times, _minutes(seconds), fits))
                total += seconds
        for line in aligned(rows):
            yield f"  {line}"
        processes = f" with {self.workers} processes" if self.workers > 1 else ""
        whole = "in all" if self.request.trial is None else "for the search"
        yield f"estimated {whole}: {_minutes(total)}{processes}; left of the budget: {_minutes(available)}"


def prepare(
    request: StudyRequest,
    budget: Budget,
    *,
    workers: int = 1,
    trust_code: bool | frozenset[str] = False,
    measure: bool = True,
    keep: bool = True,
) -> Plan:
    """Time what is unknown about each pair on this machine, and order the pairs by remaining cost.

    A step's time is taken from a run's own epochs, or from those of another seed of its method, if they were done on
    the same machine; else from a few steps of the pair's teacher and of one of its students. Timing takes at most a
    tenth of the budget. Without ``measure``, pairs that were not timed before have no costs; ``keep`` writes
    ``times.json``.
    """
    recipe = request.study.recipe
    with torch_settings(recipe):
        if not recipe.threads:  # one worker's threads
            torch.set_num_threads(max(1, torch.get_num_threads() // workers))
        hardware = manifest.hardware(accelerator_on(recipe.device).device)
        machine = {**hardware, "torch": torch.__version__, "precision": recipe.precision}
        timed, untimed = _read(request, machine), {}
        known, opened = dict(timed), dict[data.DataSettings, tuple[data.Splits, float]]()
        began = time.monotonic()
        for pair in request.pairs if measure else ():
            left = _left(request, pair)
            teacher_left = any(job.method == TEACHER for job in left)
            if not left or (pair in timed and (timed[pair].teacher is not None or not teacher_left)):
                continue
            if timed and time.monotonic() - began > SHARE * budget.seconds:
                untimed[pair] = "timing would take more than a tenth of the budget"
                continue
            try:
                timed[pair] = _time(request, left, opened, trust_code, limit=SHARE * budget.seconds / 4)
            except (ValueError, TypeError, OSError, ImportError) as error:
                untimed[pair] = one_line(error)
        if keep and timed != known:
            pairs = {pair: {FIELDS[key]: value for key, value in asdict(timed[pair]).items()} for pair in timed}
            records.write_json(request.folder / TIMES, {"machine": machine, "pairs": pairs})
        order, costs = _order(request, timed, hardware)
    ordered = replace(request, pairs=tuple(order))
    left = _left(ordered)
    return Plan(request=ordered, left=tuple(left), costs=costs, budget=budget, workers=workers, untimed=untimed)


def _read(request: StudyRequest, machine: Mapping[str, Any]) -> dict[str, Times]:
    """Return earlier timings from the same machine."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        value = records.read_json(request.folder / TIMES)
        if value["machine"] == machine:
            timed = {
                pair: Times(**{field: entry[key] for field, key in FIELDS.items()})
                for pair, entry in value["pairs"].items()
            }
            pairs = request.study.pairs
            return {pair: times for pair, times in timed.items() if pair in pairs and times.of == _of(request, pair)}
    return {}


def _of(request: StudyRequest, pair: str) -> str:
    networks = request.study.pairs[pair].model_dump(mode="json", exclude={"published", "settings"})
    return json.dumps(manifest.without_paths(networks), sort_keys=True)


def _left(request: StudyRequest, pair: str | None = None) -> list[Job]:
    """Return the unfinished runs of one pair or all; a teacher without unfinished students does not count."""
    planned = jobs(request if pair is None else replace(request, pairs=(pair,)))
    return without_idle_teachers(job for job in planned if not finished(request.runs / job.name))


def _time(
    request: StudyRequest,
    left: Sequence[Job],
    opened: dict[data.DataSettings, tuple[data.Splits, float]],
    trust_code: bool | frozenset[str],
    *,
    limit: float,
) -> Times:
    """Time a pair's teacher, if it is trained, and one of its students: the first that uses a teacher.

    ``opened`` holds opened data, with the seconds that opening took.
    """

    def inputs_of(recipe: Recipe) -> RunInputs:
        if recipe.data not in opened:
            import_library(recipe.data)
            began = time.monotonic()
            opened[recipe.data] = data.open_data(recipe.data), time.monotonic() - began
        return build_inputs(recipe, trust_code=trust_code, splits=opened[recipe.data][0])

    job = min((job for job in left if job.method != TEACHER), key=lambda job: _rank(job.recipe))
    # The teacher's weights do not affect the cost of a step.
    recipe = autotune.with_untrained_teacher(dry_run_recipe(request, job))
    run_inputs = inputs_of(recipe)
    splits, network = run_inputs.splits, run_inputs.teacher
    student = autotune.time_step(recipe, run_inputs, limit=limit).seconds
    teacher = None
    if trained := next((job.recipe for job in left if job.method == TEACHER), None):
        teacher = autotune.time_step(trained, inputs_of(trained), limit=limit).seconds
    return Times(
        teacher=teacher,
        student=student,
        batch=recipe.fits()[0].batch_size * splits.train.views_per_sample,
        asked=build_objectives(recipe)[0].needs.teacher,
        teacher_eval_s=autotune.time_evaluation(recipe, network, splits.test) if network else None,
        student_eval_s=autotune.time_evaluation(recipe, run_inputs.student, splits.test),
        samples=splits.train.per_epoch,
        held=sum(batches.samples for _, batches in held_out_sets(splits, recipe)),
        opened=max(seconds for _, seconds in opened.values()),
        of=_of(request, job.pair),
    )


def _rank(recipe: Recipe) -> int:
    """Rank students for timing: those with a teacher first, except if their binding reads the whole training set."""
    needs = build_objectives(recipe)[0].needs
    return 2 if not needs.teacher else 1 if needs.class_means or needs.teacher_statistics else 0


def _recorded_step(hardware: Mapping[str, Any], folder: Path) -> float | None:
    """Return a run's seconds per step from its records, if it was done on this machine."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        recorded = records.read_json(folder / records.MANIFEST)
        rates = [epoch["images_per_second"] for epoch in records.read_epochs(folder)]
        if recorded["hardware"] == hardware and rates:
            # Students in lockstep wait for each other: each was as fast as the whole group.
            together = 1 + len(recorded.get("class") or [])
            views = 2 if recorded["recipe"]["data"].get("strong") else 1
            return float(views * recorded["recipe"]["batch_size"] / median(rates) / together)
    return None


def _order(
    request: StudyRequest, timed: Mapping[str, Times], hardware: Mapping[str, Any]
) -> tuple[list[str], dict[str, Cost]]:
    """Choose pairs in turn by least added cost, as runs shared with earlier pairs cost nothing; return all costs."""
    step_of = functools.cache(functools.partial(_recorded_step, hardware))
    left = {pair: _left(request, pair) for pair in request.pairs}
    costs: dict[str, Cost] = {}
    recorded: set[str] = set()
    order: list[str] = []

    def recorded_step(job: Job) -> float | None:
        """Return the seconds per step of the job's own run, else of its method with another seed."""
        run = request.runs / job.name
        others = sorted(run.parent.glob(f"{run.name.rpartition('-seed')[0]}-seed*"))
        return next((step for folder in (run, *others) if (step := step_of(folder)) is not None), None)

    def added(pair: str) -> dict[str, Cost]:
        stores = set(recorded)
        new = [job for job in left[pair] if pair in timed and job.name not in costs]
        return {job.name: _cost(request, job, timed[pair], recorded_step(job), stores) for job in new}

    def seconds(pair: str) -> float:
        known = pair in timed or not left[pair]
        return sum(cost.seconds for cost in added(pair).values()) if known else math.inf

    while len(order) < len(left):
        first = min((pair for pair in left if pair not in order), key=seconds)
        costs |= added(first)
        recorded |= {job.recipe.outputs for job in left[first] if job.recipe.outputs}
        order.append(first)
    return order, costs


def _cost(request: StudyRequest, job: Job, times: Times, recorded: float | None, stores: set[str]) -> Cost:
    """Return a run's remaining cost; ``stores`` gets the recorded outputs that it is the first to need."""
    recipe = job.recipe
    steps = steps_of(recipe, times.samples)
    left = max(steps - _done(request.runs / job.name, recipe, times.samples), 0)
    epochs = sum(fit.settings.epochs for fit in recipe.fits())
    uses_teacher = needs_teacher(recipe)
    teacher_eval = times.teacher_eval_s or 0.0
    record = 0.0
    if uses_teacher and recipe.outputs and recipe.outputs not in stores:
        stores.add(recipe.outputs)
        record = teacher_eval * times.samples * epochs if left == steps else 0.0
    if job.method == TEACHER:
        step, evaluation = times.teacher or 0.0, teacher_eval
    else:
        # A teacher that is unused, or whose outputs are recorded, takes no time in the step.
        live = uses_teacher and recipe.outputs is None
        step = times.student - (teacher_eval * times.batch if times.asked and not live else 0.0)
        step, evaluation = max(step, times.student_eval_s * times.batch), times.student_eval_s
    return Cost(
        steps=left,
        step=step if recorded is None else recorded,
        evaluation=evaluation * times.held,
        start=times.opened + (teacher_eval * times.held if recipe.teacher is not None else 0.0),
        record=record,
        epochs=math.ceil(epochs * left / max(steps, 1)),
        source="timed" if recorded is None else "records",
    )


def _done(folder: Path, recipe: Recipe, samples: int) -> int:
    """Return the number of steps before a run's last checkpoint."""
    names = records.checkpoint_names(folder / records.CHECKPOINTS)
    stage, step = map(int, max(names, default="0-0").split("-"))
    return step + steps_of(recipe, samples, stages=stage)


def deadline(plan: Plan, together: Sequence[Job], writing: float) -> Deadline:
    """Return the deadline of a group of the plan's runs, and refuse one that could make no progress.

    `MARGIN`, a step, and for every process the ``writing`` seconds that the study's records, table and report took last
    are reserved.

    Raises:
        DeadlineExceeded: if less time is left than the runs need to start and do a few steps.
    """
    costs = [plan.costs.get(job.name, Cost()) for job in together]
    reserved = MARGIN + (1 + plan.workers) * writing + sum(cost.step for cost in costs)
    evaluation = sum(cost.evaluation for cost in costs)
    stop = Deadline(plan.budget.ends - reserved, evaluation=evaluation, clock=plan.budget.clock)
    stop.check(together[0].name, sum(cost.start + min(cost.steps, STRETCH) * cost.step for cost in costs))
    return stop


def progress(plan: Plan) -> str:
    """Describe how much of a study, or of its search, is done, and how much is left."""
    runs, requested, left = plan.request.runs, jobs(plan.request), plan.left
    what, then = "runs", "nothing is left"
    if plan.request.trial is not None:
        what, then = "runs of the search", "the runs with what it chooses come after"
    text = f"{sum(finished(runs / job.name) for job in requested)} of {len(requested)} {what} are finished"
    if not left:
        return f"{text}; {then}"
    begun = sum((runs / job.name / records.CHECKPOINTS).is_dir() for job in left)
    text += f", {begun} of the {len(left)} left {'is' if begun == 1 else 'are'} begun"
    if all(job.name in plan.costs for job in left):
        text += f"; they take about {_minutes(plan.seconds)} more on this machine"
    return text if plan.request.trial is None else f"{text}; {then}"


def _step_times(costs: Sequence[Cost]) -> str:
    """Show the milliseconds per step, with their source."""
    if not costs:
        return "-"
    steps = sorted(cost.step for cost in costs)
    low, high = (f"{1000 * step:.1f}" for step in (steps[0], steps[-1]))
    sources = "/".join(sorted({cost.source for cost in costs}, reverse=True))
    return f"{low if low == high else f'{low} to {high}'} ms per step ({sources})"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if abs(seconds) < 120 else f"{seconds / 60:.1f} min"
