"""The training loop: a generator that yields one record per epoch.

It names no method, model or data set. It saves before it yields; the caller logs, plots or stops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from accelerate import Accelerator

from tutelage import records
from tutelage.modules import Distiller, FrozenTeacher, refuse_shared
from tutelage.settings.fit import FitSettings
from tutelage.training.agreement import Agreement
from tutelage.training.checkpoints import Checkpoint, CheckpointSink
from tutelage.training.compile import PlannedTeacher
from tutelage.training.evaluate import EvalSet
from tutelage.training.job import FitJob, FitState
from tutelage.training.precision import float32_products
from tutelage.types import Batches, Teacher


def fit(
    distiller: Distiller,
    teacher: Teacher | None,
    batches: Batches,
    settings: FitSettings,
    *,
    accelerator: Accelerator,
    held_out: Sequence[EvalSet] = (),
    keep: CheckpointSink | None = None,
    stage: int = 0,
    to_beat: float | None = None,
    resume: Checkpoint | None = None,
) -> Iterator[records.Epoch]:
    """Train a student, yielding a record after every epoch.

    With ``settings.ema`` every evaluation is of the average of its weights, which it has for its own at the end.

    Args:
        distiller: student with its objective.
        teacher: teacher, called on every batch; ``None`` if the objective needs none.
        batches: training set.
        settings: settings of the training.
        accelerator: device and processes to train on.
        held_out: sets on which the student is evaluated after every epoch; the first decides ``best``.
        keep: destination of checkpoints and the best weights; ``None`` to keep nothing.
        stage: number that orders the fits of one run.
        to_beat: best `records.merit` of earlier stages, such as an accuracy, a fraction.
        resume: checkpoint of this stage to resume from.

    Raises:
        ValueError: if student and teacher share something, or a batch or micro-batch is too small for the objective or
            the student, or there is nothing to stop early by; nothing was trained then.
        DamagedError: if the best weights are to be kept at the end, and are no longer there.
        NonFiniteError: if a loss or gradient is not finite and ``settings.nonfinite`` is ``stop``.
        CheckpointError: if a checkpoint cannot be written.
        ProcessError: if another process that trains too is gone, or did not answer in time.
        Exception: if the batches, the teacher or the student raise it.
    """
    if isinstance(teacher, FrozenTeacher):
        refuse_shared(distiller.student, teacher.network)
    job = FitJob(
        distiller=distiller,
        settings=settings,
        uses_teacher=teacher is not None,
        held_out=held_out,
        keep=keep,
        to_beat=to_beat,
        resume=resume,
    )
    agreement = Agreement(accelerator, batches)
    with agreement.training():
        state = FitState(
            job, accelerator, steps=len(batches), samples=batches.samples, stage=stage, agreement=agreement
        )
        planned = PlannedTeacher(teacher, settings, accelerator.device, state.plan) if teacher is not None else None
        while not state.done:
            with state.saving_if_stopped():
                with float32_products(accelerator.device, settings.precision):
                    for batch in state.epoch(batches):
                        state.begin_step(batch, planned)
                        with state.undivided():
                            state.step(state.train, batch, planned)  # `train_step`, or its replay
                            state.end_step(batch)
                record = state.end_epoch(state.training_totals())
            state.agree(ends=state.done)
            yield record
        state.end()
