"""One run, from a recipe to its folder: build, check, fit, evaluate, record; resume and repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from tutelage.config.schema import Network, Recipe
from tutelage.errors import explaining
from tutelage.launcher import launched
from tutelage.modules import restored
from tutelage.runs import autotune, micro_batches, resume, start
from tutelage.runs.lock import folder_lock
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import DEFAULTS, Run, RunOptions, finished
from tutelage.runs.run_state import RunState
from tutelage.runs.setup import RunInputs, build_inputs, check_run, torch_settings
from tutelage.taps import restored_hooks
from tutelage.training.distributed import (
    accelerator_on,
    by_all,
    by_main,
    entered_by_main,
    is_main,
    naming_process,
    world,
)
from tutelage.training.loop import fit


@explaining()
def execute(
    recipe: Recipe,
    folder: Path,
    *,
    options: RunOptions = DEFAULTS,
    run_inputs: RunInputs | None = None,
    expected: Mapping[str, str | None] | None = None,
) -> Run:
    """Execute a run, or resume it where it stopped.

    Several processes execute one run: the main one decides, locks, writes and shows, and its errors reach all.

    Args:
        recipe: recipe of the run.
        folder: folder of the run; created if missing.
        options: options of its execution.
        run_inputs: objects of the run, if the caller already has them.
        expected: fingerprints of data and teacher of the run that is repeated; others are refused.

    Raises:
        RecipeError: if the folder holds a finished run or a run of another recipe, or data, teacher and student are not
            compatible.
        BusyError: if another process is executing the run.
        DeadlineExceeded: if the time is up; the same call resumes the run.
    """
    # A teacher that the caller has in hand is frozen for the time of the run; a student is left without hooks.
    given = (run_inputs.teacher, run_inputs.student) if run_inputs else (None, None)
    options = beginning(recipe, options)
    with (
        naming_process(),
        entered_by_main(lambda: folder_lock(folder)),
        torch_settings(recipe),
        restored(given[0]),
        restored_hooks(given[1]),
    ):
        recorded = by_main(lambda: resume.earlier_run(folder, recipe))
        origin = by_main(lambda: start.origin(recipe, folder))
        inputs = run_inputs or build_inputs(autotune.with_untrained_teacher(recipe), trust_code=options.trust_code)
        check_run(recipe, inputs)
        recipe, reason, pieces_reason = resolve_open(recipe, inputs, folder)
        for line in filter(None, (reason, pieces_reason)):
            options.reporter.say(f"{recipe.name}: {line}")
        training = recipe.training(f"{recipe.name}/teacher")
        if training is not None and run_inputs is None:
            teacher = folder / "teacher"
            if origin is not None:
                by_main(partial(start.bring_teacher, origin, teacher))
            if not by_main(lambda: finished(teacher)):
                execute(training, teacher, options=replace(options, track=options.named_trackers()))
            trained = Network(name=str(teacher), reads=training.student.reads)
            with_teacher = recipe.model_copy(update={"teacher": trained})
            inputs = build_inputs(with_teacher, splits=inputs.splits, trust_code=options.trust_code)
            check_run(recipe, inputs)
        known = expected or resume.fingerprints(recorded and recorded.manifest)
        for fingerprints in (known, resume.fingerprints(origin and origin.manifest)):
            by_all(partial(resume.same_fingerprints, inputs, fingerprints))
        run = RunState(
            recipe,
            folder,
            inputs,
            options,
            recorded=recorded,
            precision_reason=reason,
            pieces_reason=pieces_reason,
            teacher_outputs={},
            origin=origin,
        )
        with run.recording():
            run.begin()
            for stage in range(run.stage, len(run.fits)):
                run_stage(run, stage)
            run.check_time()
            run.finish()
        report_finished(options, folder)
    return Run(folder)


def resolve_open(
    recipe: Recipe, inputs: RunInputs, folder: Path | None = None
) -> tuple[Recipe, str | None, str | None]:
    """Fill in the precision and the number of micro-batches where a recipe leaves them open.

    Returns:
        The recipe, and why each of them was chosen, if it just was; checked, as smaller batches may be too small.
    """
    given = recipe
    # Steps are timed in micro-batches that fit, in float32, in which they take the most.
    recipe, pieces_reason = micro_batches.resolve(recipe, inputs, folder=folder)
    recipe, reason = by_main(lambda: autotune.resolve_precision(recipe, lambda: inputs, folder=folder))
    if pieces_reason and given.precision == "auto" and recipe.precision == "bf16":
        open_again = recipe.model_copy(update={"accumulate": "auto"})
        recipe, pieces_reason = micro_batches.resolve(open_again, inputs, folder=folder)
    if recipe.accumulate != (1 if given.accumulate == "auto" else given.accumulate):
        check_run(recipe, inputs)
    return recipe, reason, pieces_reason


def report_finished(options: RunOptions, folder: Path) -> None:
    """Let the main process report a finished run, while the others wait."""
    by_main(lambda: None if options.when_finished is None else options.when_finished(folder))


def beginning(recipe: Recipe, options: RunOptions) -> RunOptions:
    """Let the processes of a launch meet, and return each one's options: only the main one shows anything."""
    accelerator_on(recipe.device)
    if not is_main():
        return replace(options, reporter=Reporter())
    if launched():
        options.reporter.say(f"{recipe.name}: {world()} process{'es' if world() > 1 else ''}")
    return options


def run_stage(run: RunState, stage: int) -> None:
    """Fit a stage of a run, or the rest of it, and record its epochs."""
    job = run.fit_job(stage)
    teacher = run.training_teacher(stage, job.distiller.objective.needs.teacher_taps) if job.uses_teacher else None
    epochs = fit(
        job.distiller,
        teacher,
        run.tracked_batches(stage, [job.start]),
        job.settings,
        accelerator=run.accelerator,
        held_out=job.held_out,
        keep=job.keep,
        stage=stage,
        to_beat=job.to_beat,
        resume=job.resume,
    )
    for epoch in epochs:
        run.record_epoch(stage, epoch)
    run.end_stage(stage)
    run.reporter.end()
