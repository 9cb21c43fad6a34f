"""Several runs in lockstep, with shared batches and teacher passes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tutelage import data, records
from tutelage.config.schema import Recipe, TrainedTeacher
from tutelage.models import Classifier
from tutelage.runs import autotune, resume
from tutelage.runs.lock import folder_lock
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import DEFAULTS, Run, RunOptions
from tutelage.runs.run_state import RunState
from tutelage.runs.setup import build_inputs, build_objectives, needs_teacher, torch_settings
from tutelage.teacher_cache.cache import CachedTeacher
from tutelage.training.evaluate import EvalOutputs
from tutelage.training.lockstep import Lockstep
from tutelage.training.state import RngState
from tutelage.training.step import FitJob
from tutelage.types import Batch, Teacher


class RunGroup:
    """Runs that are trained in lockstep, stage by stage; one run is a group of one."""

    def __init__(self, runs: Sequence[RunState], options: RunOptions) -> None:
        self.runs, self.reporter, self.deadline = runs, options.reporter, options.deadline
        self.when_finished = options.when_finished
        if len(runs) > 1:
            for run in runs:
                run.rng = RngState(run.device)
                names = [member.recipe.name for member in runs if member is not run]
                run.manifest["class"] = list(dict.fromkeys([*run.manifest["class"], *names]))
                records.write_json(run.folder / records.MANIFEST, run.manifest)

    def go(self) -> None:
        """Fit every stage, then evaluate and record; a run that fails keeps the error as its ``failure``."""
        try:
            for run in self.runs:
                self.attempt(run, run.begin)
            for stage in range(max((len(run.fits) for run in self.runs), default=0)):
                self.fit_stage(stage)
            if self.deadline is not None and self.left():
                self.deadline.check(f"{self.runs[0].recipe.name}: the last evaluation", self.deadline.evaluation)
            for run in self.left():
                self.attempt(run, run.finish)
                run.finished = True
                if self.when_finished and run.failure is None:
                    self.when_finished(run.folder)
        except BaseException as error:
            for run in self.left():
                run.stop(error)
            if not isinstance(error, Exception):
                raise

    def left(self) -> list[RunState]:
        """The runs that have neither failed nor finished."""
        return [run for run in self.runs if run.failure is None and not run.finished]

    def attempt(self, run: RunState, action: Callable[[], Any]) -> Any:
        """Call ``action`` with a run's own random generators; an error ends that run alone."""
        try:
            with run.rng or contextlib.nullcontext():
                return action()
        except Exception as error:  # noqa: BLE001  an error of one run must not end the others
            self.fail(run, error)

    def fail(self, run: RunState, error: Exception) -> None:
        """Record that a run has failed."""
        run.stop(error)
        if len(self.runs) > 1:
            self.reporter.say(f"failed: {run.recipe.name}: {run.failure}")

    def fit_stage(self, stage: int) -> None:
        """Fit a stage of every run that has not passed it."""
        members: list[RunState] = []
        jobs: list[FitJob] = []
        for run in self.left():
            if run.stage <= stage and (job := self.attempt(run, partial(run.fit_job, stage))):
                members.append(run)
                jobs.append(job)
        if not jobs:
            return
        taps = dict.fromkeys(tap for job in jobs if job.asks for tap in job.distiller.objective.needs.teacher_taps)
        source = next((run for run, job in zip(members, jobs, strict=True) if job.asks), None)
        teacher = source.training_teacher(stage, tuple(taps)) if source else None
        starts = [job.resume.state["step"] if job.resume else 0 for job in jobs]
        first, batches = members[0], _StageBatches(members[0], stage, self.reporter, teacher, starts)
        title = first.recipe.name + (f" and {len(jobs) - 1} more" if len(jobs) > 1 else "")
        title += f" stage {stage + 1} of {len(first.fits)}" if len(first.fits) > 1 else ""
        self.reporter.begin(title, len(batches) * first.fits[stage].settings.epochs * len(jobs), sum(starts))
        lockstep = Lockstep(jobs, teacher, batches, accelerator=first.accelerator, stage=stage, deadline=self.deadline)
        for k, result in lockstep.run():
            if isinstance(result, Exception):
                self.fail(members[k], result)
                continue
            self.attempt(members[k], partial(members[k].record_epoch, stage, result))
            if members[k].failure is not None:
                lockstep.drop(k)


class _StageBatches(data.BatchLoader):
    """A stage's batches: they report each step that is taken, and tell a cached teacher the epoch of their views.

    Order and views continue after the epochs of earlier stages. ``starts`` holds, per run, the step of the stage that
    it resumes at; the steps of a run that failed are still reported.
    """

    def __init__(
        self, run: RunState, stage: int, reporter: Reporter, teacher: Teacher | None, starts: Sequence[int]
    ) -> None:
        train, batch_size = run.run_inputs.splits.train, run.fits[stage].batch_size
        super().__init__(train, batch_size=batch_size, data_seed=run.recipe.data_seed, train=True)
        self.before = sum(fit.settings.epochs for fit in run.fits[:stage])
        self.reporter, self.teacher, self.starts = reporter, teacher, starts

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        if isinstance(self.teacher, CachedTeacher):
            self.teacher.open(epoch + self.before)
        stream = super().epoch(epoch + self.before, start=start, rank=rank, world=world)
        for step, batch in enumerate(stream, epoch * len(self) + start):
            yield batch
            for start_step in self.starts:
                if start_step <= step:
                    self.reporter.tick()


def execute_group(planned: Sequence[tuple[Recipe, Path]], *, options: RunOptions = DEFAULTS) -> list[Run | Exception]:
    """Execute a group of runs at once, each with the bits that `execute` gives it alone.

    Opened data, batches and teacher passes are shared. An error of one run ends that run alone; an error in what they
    share ends them all.

    Args:
        planned: recipes that `can_share_batches`, with their runs' folders.
        options: how to execute them.

    Returns:
        Per run either the run or the error that ended it: a `BusyError` where another process has it, a
        `DeadlineExceeded` where its time is up.

    Raises:
        ValueError: the recipes cannot share batches.
    """
    recipes = [autotune.recorded_precision(recipe, folder) for recipe, folder in planned]
    precision: str | None = next((recipe.precision for recipe in recipes if recipe.precision != "auto"), None)
    recipes = [autotune.with_precision(recipe, precision) for recipe in recipes]
    folders = [folder for _, folder in planned]
    if any(not can_share_batches(first, second) for first, second in itertools.combinations(recipes, 2)):
        raise ValueError("recipes: expected some that can share batches, got some that cannot; execute them one by one")
    results: dict[int, Run | Exception] = {}
    splits: data.Splits | None = None
    teacher: Classifier | None = None
    teacher_outputs: dict[str, EvalOutputs] = {}
    runs: dict[int, RunState] = {}
    reason: str | None = None
    with contextlib.ExitStack() as stack, torch_settings(recipes[0]):
        for k, folder in enumerate(folders):
            try:
                stack.enter_context(folder_lock(folder))
            except Exception as error:  # noqa: BLE001  an error of one run must not end the others
                results[k] = error
        for k in [k for k in range(len(planned)) if k not in results]:
            recipe, folder = recipes[k], folders[k]
            try:
                earlier = resume.earlier_manifest(folder, recipe)
                run_inputs = build_inputs(recipe, splits=splits, teacher=teacher, trust_code=options.trust_code)
                splits, teacher = run_inputs.splits, teacher or run_inputs.teacher
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
            except Exception as error:  # noqa: BLE001  an error of one run must not end the others
                results[k] = error
            except BaseException as error:
                for run in runs.values():
                    run.stop(error)
                raise
        RunGroup(list(runs.values()), options).go()
    results |= {k: run.failure or Run(run.folder) for k, run in runs.items()}
    return [results[k] for k in range(len(planned))]


_SHARED = (
    *("data", "data_seed", "batch_size", "accumulate", "precision", "channels_last"),
    *("device", "threads", "deterministic", "compile_teacher"),
)
"""Keys in which all runs of a group agree, besides the teacher and each stage's epochs and batch size."""


def can_share_batches(first: Recipe, second: Recipe) -> bool:
    """Whether two runs may be in one group: with the same batches, and the same teacher if both use one.

    Seeds, students, objectives, optimizers and their schedules may differ.
    """
    pair = (first, second)
    teachers = [recipe.teacher for recipe in pair if recipe.teacher is not None]
    if any(isinstance(teacher, TrainedTeacher) for teacher in teachers) or teachers[1:] not in ([], teachers[:1]):
        return False
    stages = [[(fit.settings.epochs, fit.batch_size) for fit in recipe.fits()] for recipe in pair]
    if any(getattr(first, name) != getattr(second, name) for name in _SHARED) or stages[0] != stages[1]:
        return False
    both_use_teacher = all(map(needs_teacher, pair))
    return not both_use_teacher or (first.outputs == second.outputs and _exponents(first) == _exponents(second))


def _exponents(recipe: Recipe) -> list[Any] | None:
    """The exponents at which each stage reads recorded top classes; none with all classes, or a live teacher."""
    path = Path(recipe.outputs or "") / records.OUTPUTS
    if recipe.outputs is None or not path.exists() or not records.read_json(path).get("form"):
        return None
    return [objective.read_at for objective in build_objectives(recipe)]


def group_of(planned: Sequence[Recipe], most: int) -> list[int]:
    """Return the indices of the runs that can share batches with the first, itself included: at most ``most``."""
    group: list[int] = []
    for k, recipe in enumerate(planned):
        if len(group) < most and all(can_share_batches(recipe, planned[member]) for member in group):
            group.append(k)
    return group
