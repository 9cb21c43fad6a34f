"""Several runs in lockstep: one pass over the data and one of the teacher for all of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tutelage import data, records
from tutelage.config.schema import Recipe, TrainedTeacher
from tutelage.runs import autotune, resume
from tutelage.runs.lock import folder_lock
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import DEFAULTS, Run, RunOptions
from tutelage.runs.run_state import RunState
from tutelage.runs.setup import RunInputs, build_inputs, build_objectives, torch_settings
from tutelage.teacher_cache.cache import CachedTeacher
from tutelage.training.evaluate import EvalOutputs
from tutelage.training.lockstep import Lockstep
from tutelage.training.state import RngState
from tutelage.training.step import FitJob
from tutelage.types import Batch, Batches, Teacher


class RunGroup:
    """Runs that are trained in lockstep, stage by stage; one run is a group of one."""

    def __init__(self, runs: Sequence[RunState], options: RunOptions) -> None:
        self.runs, self.reporter, self.deadline = runs, options.reporter, options.deadline
        self.failures: dict[int, Exception] = {}
        self.finished: set[int] = set()
        if len(runs) > 1:
            for run in runs:
                run.rng = RngState(run.device)
                run.record_group([other.recipe.name for other in runs if other is not run])

    def go(self) -> list[Exception | None]:
        """Fit every stage, then evaluate and record; return for each run what made it fail, or none."""
        try:
            for k in self.left():
                self.attempt(k, self.runs[k].begin)
            for stage in range(max((len(run.fits) for run in self.runs), default=0)):
                self.fit_stage(stage)
            if self.deadline is not None and self.left():
                self.deadline.check(f"{self.runs[0].recipe.name}: the last evaluation", self.deadline.evaluation)
            for k in self.left():
                self.attempt(k, self.runs[k].finish)
                self.finished.add(k)
        except BaseException as error:
            for k in set(self.left()) - self.finished:
                failure = self.runs[k].stop(error)
                if isinstance(failure, Exception):
                    self.failures[k] = failure
            if not isinstance(error, Exception):
                raise
        return [self.failures.get(k) for k in range(len(self.runs))]

    def left(self) -> list[int]:
        """The runs that have not failed."""
        return [k for k in range(len(self.runs)) if k not in self.failures]

    def attempt(self, k: int, action: Callable[[], Any]) -> Any:
        """Do something for one run, with its own generators; an error ends that run alone."""
        try:
            with self.runs[k].rng or contextlib.nullcontext():
                return action()
        except Exception as error:  # noqa: BLE001  whatever it is, the other runs do not depend on it
            self.fail(k, error)

    def fail(self, k: int, error: Exception) -> None:
        """Record that a run has failed."""
        failure = self.runs[k].stop(error)
        assert isinstance(failure, Exception)
        self.failures[k] = failure
        if len(self.runs) > 1:
            self.reporter.say(f"failed: {self.runs[k].recipe.name}: {failure}")

    def fit_stage(self, stage: int) -> None:
        """Fit one stage of every run that is not beyond it."""
        present = [k for k in self.left() if self.runs[k].stage <= stage]
        jobs: dict[int, FitJob] = {}
        for k in present:
            if job := self.attempt(k, partial(self.runs[k].fit_job, stage)):
                jobs[k] = job
        if not jobs:
            return
        members, first = list(jobs), self.runs[next(iter(jobs))]
        batches = data.BatchLoader(
            first.run_inputs.splits.train,
            batch_size=first.fits[stage].batch_size,
            data_seed=first.recipe.data_seed,
            train=True,
        )
        teacher = self.training_teacher(jobs, stage)
        steps = len(batches) * first.fits[stage].settings.epochs
        starts = [job.resume.state["step"] if job.resume else 0 for job in jobs.values()]
        title = first.recipe.name + (f" and {len(jobs) - 1} more" if len(jobs) > 1 else "")
        title += f" stage {stage + 1} of {len(first.fits)}" if len(first.fits) > 1 else ""
        self.reporter.begin(title, steps * len(jobs), sum(starts))
        before = sum(fit.settings.epochs for fit in first.fits[:stage])
        lockstep = Lockstep(
            list(jobs.values()),
            teacher,
            _Followed(batches, self.reporter, before, teacher, starts),
            accelerator=first.accelerator,
            stage=stage,
            deadline=self.deadline,
        )
        for member, result in lockstep.run():
            k = members[member]
            if isinstance(result, Exception):
                self.fail(k, result)
                continue
            self.attempt(k, partial(self.runs[k].record_epoch, stage, result))
            if k in self.failures:
                lockstep.drop(member)

    def training_teacher(self, jobs: Mapping[int, FitJob], stage: int) -> Teacher | None:
        """Return the teacher of a stage, live or recorded, with all features that are read."""
        asking = {k: job.distiller.objective.needs.teacher_taps for k, job in jobs.items() if job.asks}
        if not asking:
            return None
        first = self.runs[next(iter(asking))]
        taps = tuple(dict.fromkeys(itertools.chain(*asking.values())))
        return first.training_teacher(first.objectives[stage], taps)


class _Followed:
    """Batches that tell a display of each step taken, and a recorded teacher of the epoch whose views they are.

    ``before`` is the number of epochs of earlier stages: a later one goes on with order and views, not over them again.
    ``starts`` has for each run the step of the stage that it goes on from; steps of one that failed pass with the rest.
    """

    def __init__(
        self, batches: Batches, reporter: Reporter, before: int, teacher: Teacher | None, starts: Sequence[int]
    ) -> None:
        self.samples, self._batches, self._display, self._before = batches.samples, batches, reporter, before
        self._teacher, self._starts = teacher, starts

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        if isinstance(self._teacher, CachedTeacher):
            self._teacher.open(epoch + self._before)
        stream = self._batches.epoch(epoch + self._before, start=start, rank=rank, world=world)
        for step, batch in enumerate(stream, epoch * len(self) + start):
            yield batch
            for begun in self._starts:
                if begun <= step:
                    self._display.tick()


def execute_group(planned: Sequence[tuple[Recipe, Path]], *, options: RunOptions = DEFAULTS) -> list[Run | Exception]:
    """Do a group of runs at once, each as `execute` does it alone and with the same bits.

    The data are opened, a batch is made and the teacher is asked once for all of them. What fails one of them ends that
    run alone; what they share fails them all.

    Args:
        planned: recipes that `can_share_batches`, with their runs' folders.
        options: how to do them.

    Returns:
        For each either the run, or why there is none: a `BusyError` where another process is doing it,
        a `DeadlineExceeded` where the moment to stop has come.

    Raises:
        ValueError: the recipes are none of one group.
    """
    planned = [(autotune.recorded_precision(recipe, folder), folder) for recipe, folder in planned]
    precision: str | None = next((recipe.precision for recipe, _ in planned if recipe.precision != "auto"), None)
    planned = [(autotune.with_precision(recipe, precision), folder) for recipe, folder in planned]
    recipes = [recipe for recipe, _ in planned]
    if any(not can_share_batches(first, second) for first, second in itertools.combinations(recipes, 2)):
        raise ValueError("recipes: expected those of one class, got some that differ in more than a class's may")
    results: dict[int, Run | Exception] = {}
    shared: RunInputs | None = None
    teacher_outputs: dict[str, EvalOutputs] = {}
    runs: dict[int, RunState] = {}
    reason: str | None = None
    with contextlib.ExitStack() as stack, torch_settings(recipes[0]):
        for k, (_, folder) in enumerate(planned):
            try:
                stack.enter_context(folder_lock(folder))
            except Exception as error:  # noqa: BLE001  whatever it is, the other runs do not depend on it
                results[k] = error
        for k, (recipe, folder) in enumerate(planned):
            if k in results:
                continue
            try:
                earlier = resume.earlier_manifest(folder, recipe)
                run_inputs = build_inputs(recipe, beside=shared, trust_code=options.trust_code)
                shared = replace(shared, teacher=shared.teacher or run_inputs.teacher) if shared else run_inputs
                resume.same_fingerprints(run_inputs, resume.fingerprints(earlier))
                if precision is None:
                    resolved, reason = autotune.resolve_precision(recipe, run_inputs)
                    precision = resolved.precision
                runs[k] = RunState(
                    autotune.with_precision(recipe, precision),
                    folder,
                    run_inputs,
                    options,
                    earlier=earlier,
                    precision_reason=reason,
                    teacher_outputs=teacher_outputs,
                )
            except Exception as error:  # noqa: BLE001  whatever it is, the other runs do not depend on it
                results[k] = error
            except BaseException as error:
                for run in runs.values():
                    run.stop(error)
                raise
        failures = RunGroup(list(runs.values()), options).go()
    results |= {k: failure or Run(planned[k][1]) for k, failure in zip(runs, failures, strict=True)}
    return [results[k] for k in range(len(planned))]


_SHARED = (
    *("data", "data_seed", "batch_size", "accumulate", "precision", "channels_last"),
    *("device", "threads", "deterministic", "compile_teacher"),
)
"""Keys that all runs of a group agree in, besides the teacher and each stage's epochs and batch size."""


def can_share_batches(first: Recipe, second: Recipe) -> bool:
    """Whether two runs may be in one group: they see the same batches, and ask the same teacher if both ask one.

    Seeds, students, objectives, optimizers and their schedules may differ.
    """
    pair = (first, second)
    if any(isinstance(recipe.teacher, TrainedTeacher) for recipe in pair):
        return False
    keys, other_keys = (
        {name: getattr(recipe, name) for name in _SHARED}
        | {"fits": [(fit.settings.epochs, fit.batch_size) for fit in recipe.fits()]}
        for recipe in pair
    )
    both_ask = all(any(objective.needs.teacher for objective in build_objectives(recipe)) for recipe in pair)
    teachers = [recipe.teacher for recipe in pair if recipe.teacher is not None]
    same_outputs = first.outputs == second.outputs and _exponents(first) == _exponents(second)
    return keys == other_keys and teachers[1:] in ([], teachers[:1]) and (not both_ask or same_outputs)


def _exponents(recipe: Recipe) -> list[Any] | None:
    """The exponents that each stage reads recorded top classes at; none where all classes are there, or the teacher."""
    path = Path(recipe.outputs or "") / records.OUTPUTS
    if recipe.outputs is None or not path.exists() or not records.read_json(path).get("form"):
        return None
    return [objective.read_at for objective in build_objectives(recipe)]


def group_of(planned: Sequence[Recipe], most: int) -> list[int]:
    """Return which runs may be done with the first, itself included: at most so many, in their order."""
    group: list[int] = []
    for k, recipe in enumerate(planned):
        if len(group) < most and all(can_share_batches(recipe, planned[other]) for other in group):
            group.append(k)
    return group
