"""Several runs in lockstep, with shared batches and teacher passes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor

from tutelage import data, launcher, records
from tutelage.config.schema import Recipe, TrainedTeacher
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.models import Classifier
from tutelage.runs import autotune, resume
from tutelage.runs.execute import beginning, execute, report_finished
from tutelage.runs.lock import folder_lock
from tutelage.runs.run import DEFAULTS, PrunedError, Run, RunOptions
from tutelage.runs.run_state import RunState
from tutelage.runs.setup import build_inputs, build_objectives, check_run, needs_teacher, torch_settings
from tutelage.training.distributed import by_all, by_main, entered_by_main, naming_process, require_of_all
from tutelage.training.evaluate import TeacherOutputs
from tutelage.training.generators import RngState
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep


class RunGroup:
    """Runs that are trained in lockstep, stage by stage; an error in one ends only that run.

    Args:
        runs: runs by number; the caller may still be adding to them.
        options: options of their execution.
        isolation: isolation of their work, by the same numbers.
    """

    def __init__(self, runs: Mapping[int, RunState], options: RunOptions, isolation: Isolation) -> None:
        self.runs, self.options, self.isolation = runs, options, isolation

    def go(self) -> None:
        """Fit every stage, then evaluate and record."""
        names = [run.recipe.name for run in self.runs.values()]
        for k, run in self.left():
            run.grouped = True
            self.isolation.generators[k] = RngState(run.device)
            others = [name for name in names if name != run.recipe.name]
            run.manifest["class"] = list(dict.fromkeys([*run.manifest["class"], *others]))
            self.isolation.attempt(k, run.write_manifest, "running")
        for k, run in self.left():
            self.isolation.attempt(k, run.begin)
        for stage in range(max((len(run.fits) for run in self.runs.values()), default=0)):
            self.fit_stage(stage)
        for _, run in self.left()[:1]:
            run.check_time()  # for all of them
        for k, run in self.left():
            self.isolation.attempt(k, run.finish)
            if k not in self.isolation.errors:
                report_finished(self.options, run.folder)

    def left(self) -> list[tuple[int, RunState]]:
        """The runs that have neither failed nor finished."""
        return [(k, run) for k, run in self.runs.items() if k not in self.isolation.errors and not run.finished]

    def fit_stage(self, stage: int) -> None:
        """Fit a stage of every run that has not passed it."""
        jobs: dict[int, FitJob] = {}
        for k, run in self.left():
            if run.stage <= stage and (job := self.isolation.attempt(k, run.fit_job, stage)):
                jobs[k] = job
        if not jobs:
            return
        taps = dict.fromkeys(
            tap for job in jobs.values() if job.uses_teacher for tap in job.distiller.objective.needs.teacher_taps
        )
        source = next((self.runs[k] for k, job in jobs.items() if job.uses_teacher), None)
        teacher = source.training_teacher(stage, tuple(taps)) if source else None
        first = self.runs[next(iter(jobs))]
        lockstep = Lockstep(
            jobs,
            teacher,
            first.tracked_batches(stage, [job.start for job in jobs.values()]),
            accelerator=first.accelerator,
            isolation=self.isolation,
            stage=stage,
            side_by_side=self._side_by_side(first),
        )
        for k, epoch in lockstep.run():
            self.isolation.attempt(k, self.runs[k].record_epoch, stage, epoch)
        for k in jobs:
            if k not in self.isolation.errors:
                self.runs[k].end_stage(stage)
        first.reporter.end()

    def _side_by_side(self, run: RunState) -> int:
        """Return how many students the cores have room for, if each computes with the threads that the recipe names."""
        alone = not self.options.shares_machine and run.accelerator.num_processes == 1
        if run.recipe.threads is None or not alone or run.device.type != "cpu":
            return 1
        cores = min(launcher.cores(), psutil.cpu_count(logical=False) or launcher.cores())
        return max(1, cores // run.recipe.threads)


def execute_group(planned: Sequence[tuple[Recipe, Path]], *, options: RunOptions = DEFAULTS) -> list[Run | Exception]:
    """Execute a group of runs at once, each with the bits that `execute` gives it alone.

    Opened data, batches and teacher passes are shared. An error in one run ends only that run; an error in something
    shared ends all.

    Args:
        planned: recipes that `can_share_batches`, with their runs' folders.
        options: options of their execution.

    Returns:
        For each run, the run or the error that ended it: a `BusyError` if another process has it, a `DeadlineExceeded`
        if its time is up.

    Raises:
        ValueError: if the recipes cannot share batches.
    """
    if any(not can_share_batches(first, second) for (first, _), (second, _) in itertools.combinations(planned, 2)):
        raise InvalidValueError("recipes", "some that can share batches", "some that cannot", "execute them one by one")
    runs: dict[int, RunState] = {}

    def fail(k: int, error: Exception) -> None:
        if k in runs:
            runs[k].stop(error)
            what = "pruned" if isinstance(error, PrunedError) else "failed"
            options.reporter.say(f"{what}: {runs[k].recipe.name}: {runs[k].failure}")

    isolation = Isolation(on_error=fail)
    if len(planned) == 1:
        run = isolation.attempt(0, execute, *planned[0], options=options)
        return [run or isolation.errors[0]]
    options = beginning(planned[0][0], options)
    group = RunGroup(runs, options, isolation)
    shared = _Shared(options)
    with naming_process(), ExitStack() as stack, torch_settings(planned[0][0]):
        for k, (_, folder) in enumerate(planned):
            isolation.attempt(k, stack.enter_context, entered_by_main(partial(folder_lock, folder)))
        try:
            # Runs that were begun, or read recorded outputs, have a precision that the others take.
            begun = by_main(lambda: [resume.begun(folder) for _, folder in planned])
            order = sorted(enumerate(planned), key=lambda item: (not begun[item[0]], item[1][0].outputs is None))
            for k, (recipe, folder) in order:
                if k not in isolation.errors and (state := isolation.attempt(k, shared.begin, recipe, folder)):
                    runs[k] = state
            runs |= {k: runs.pop(k) for k in sorted(runs)}
            group.go()
        except BaseException as error:
            for _, state in group.left():
                state.stop(error)
            if not isinstance(error, Exception):
                raise
            require_of_all(error, f"group/{isolation.number}")
        finally:
            if shared.splits is not None:
                shared.splits.close()
    results = {k: state.failure or Run(state.folder) for k, state in runs.items()}
    return [results.get(k) or isolation.errors[k] for k in range(len(planned))]


class _Shared:
    """The objects that a group's runs share, opened by the first run that needs them."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.splits: data.Splits | None = None
        self.teacher: Classifier | None = None
        self.teacher_outputs: dict[str, TeacherOutputs] = {}
        self.statistics: list[Tensor] = []
        self.precision: str | None = None
        self.reason: str | None = None

    def begin(self, recipe: Recipe, folder: Path) -> RunState:
        """Begin a run."""
        recorded = by_main(lambda: resume.earlier_run(folder, recipe))
        run_inputs = replace(
            build_inputs(recipe, splits=self.splits, teacher=self.teacher, trust_code=self.options.trust_code),
            statistics=self.statistics,
        )
        self.splits, self.teacher = run_inputs.splits, self.teacher or run_inputs.teacher
        check_run(recipe, run_inputs)
        by_all(lambda: resume.same_fingerprints(run_inputs, resume.fingerprints(recorded and recorded.manifest)))
        recipe, reason = by_main(
            lambda: autotune.resolve_precision(recipe, lambda: run_inputs, folder=folder, beside=self.precision)
        )
        self.precision, self.reason = self.precision or recipe.precision, self.reason or reason
        if recipe.precision != self.precision:
            expected = f"{self.precision}, as the runs beside {recipe.name} have"
            got = f"{recipe.precision}, which it began with or its recorded outputs have"
            raise RecipeError("precision", expected, got, "execute it alone")
        return RunState(
            recipe,
            folder,
            run_inputs,
            self.options,
            recorded=recorded,
            precision_reason=self.reason,
            teacher_outputs=self.teacher_outputs,
        )


_SHARED = (
    *("data", "data_seed", "batch_size", "accumulate", "precision", "channels_last"),
    *("device", "threads", "deterministic", "compile_teacher"),
)
"""Keys that agree among all runs of a group, besides the teacher and each stage's epochs and batch size."""


def can_share_batches(first: Recipe, second: Recipe) -> bool:
    """Whether two runs may be in one group: with the same batches, and the same teacher if both use one.

    Seeds, students, objectives, optimizers and their schedules may differ. Where a student writes some of the samples,
    they are its own. Runs that start from a finished one, or leave their micro-batches open, are executed alone.
    """
    pair = (first, second)
    if any(recipe.start is not None or recipe.accumulate == "auto" for recipe in pair):
        return False
    if any(recipe.shard != "none" or any(fit.on_policy for fit in recipe.fits()) for recipe in pair):
        return False
    teachers = [recipe.teacher for recipe in pair if recipe.teacher is not None]
    if any(isinstance(teacher, TrainedTeacher) for teacher in teachers) or teachers[1:] not in ([], teachers[:1]):
        return False
    stages = [[(fit.settings.epochs, fit.batch_size) for fit in recipe.fits()] for recipe in pair]
    if any(getattr(first, name) != getattr(second, name) for name in (*_SHARED, "reads")) or stages[0] != stages[1]:
        return False
    both_use_teacher = all(map(needs_teacher, pair))
    return not both_use_teacher or (first.outputs == second.outputs and _exponents(first) == _exponents(second))


def _exponents(recipe: Recipe) -> list[Any] | None:
    """Return each stage's exponents where recorded outputs are, or may become, anything but all logits; else none."""
    if recipe.outputs is None:
        return None
    path = Path(recipe.outputs) / records.OUTPUTS
    form: Any = recipe.outputs_top or recipe.outputs_form
    if path.exists():
        form = records.read_json(path, reads=records.OUTPUTS_SCHEMA).get("form")
    if not form:
        return None
    return [objective.read_at for objective in build_objectives(recipe)]


def group_of(planned: Sequence[Recipe], most: int) -> list[int]:
    """Return the indices of the runs that can share batches with the first, itself included: at most ``most``."""
    group: list[int] = []
    for k, recipe in enumerate(planned):
        if len(group) < most and all(can_share_batches(recipe, planned[member]) for member in group):
            group.append(k)
    return group
