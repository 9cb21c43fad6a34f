"""One run, from a recipe to its folder: build, check, fit, evaluate, record; resume and repeat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tutelage.config.schema import Network, Recipe
from tutelage.errors import explaining
from tutelage.modules import restored
from tutelage.runs import autotune, resume
from tutelage.runs.lock import folder_lock
from tutelage.runs.run import DEFAULTS, Run, RunOptions, finished
from tutelage.runs.run_state import RunState
from tutelage.runs.setup import RunInputs, build_inputs, check_run, torch_settings
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
    # A teacher that the caller has in hand is frozen for the time of the run.
    with folder_lock(folder), torch_settings(recipe), restored(run_inputs.teacher if run_inputs else None):
        recorded = resume.earlier_run(folder, recipe)
        inputs = run_inputs or build_inputs(autotune.with_untrained_teacher(recipe), trust_code=options.trust_code)
        check_run(recipe, inputs)
        recipe, reason = autotune.resolve_precision(recipe, lambda: inputs, folder=folder)
        if reason:
            options.reporter.say(f"{recipe.name}: {reason}")
        training = recipe.training(f"{recipe.name}/teacher")
        if training is not None and run_inputs is None:
            teacher = folder / "teacher"
            if not finished(teacher):
                execute(training, teacher, options=options)
            with_teacher = recipe.model_copy(update={"teacher": Network(name=str(teacher))})
            inputs = build_inputs(with_teacher, splits=inputs.splits, trust_code=options.trust_code)
            check_run(recipe, inputs)
        resume.same_fingerprints(inputs, expected or resume.fingerprints(recorded and recorded.manifest))
        run = RunState(recipe, folder, inputs, options, recorded=recorded, precision_reason=reason, teacher_outputs={})
        with run.recording():
            run.begin()
            for stage in range(run.stage, len(run.fits)):
                run_stage(run, stage)
            run.check_time()
            run.finish()
        if options.when_finished is not None:
            options.when_finished(folder)
    return Run(folder)


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
