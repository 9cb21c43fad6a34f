"""Several students fitted in lockstep, on one batch and one teacher pass per step."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from tutelage import records
from tutelage.training import memory
from tutelage.training.compile import CompiledForms, ComputePlan, choose_teacher_plan
from tutelage.training.deadline import Deadline, DeadlineExceeded
from tutelage.training.evaluate import to_device
from tutelage.training.step import FitJob, FitState, split_batch
from tutelage.types import Batch, Batches, Outputs, Teacher


class Lockstep:
    """Several students fitted in lockstep: a batch is made, moved and passed through the teacher once for all.

    Each student takes the same steps, to the bit, as alone. Those that resume from a checkpoint take none until the
    group reaches their step, so the group begins where the least advanced one was.

    Args:
        jobs: the students; with more than one, each has an `RngState` of its own. Their settings agree in ``epochs``,
            ``accumulate``, ``precision``, ``channels_last`` and ``compile_teacher``.
        teacher: called on every batch; its outputs carry the features that any of the jobs reads.
        batches: the training set.
        accelerator: the device and processes to train on.
        stage: as for `fit`.
        deadline: as for `fit`; all of them stop.

    Raises:
        ValueError: the jobs' settings do not agree.
    """

    def __init__(
        self,
        jobs: Sequence[FitJob],
        teacher: Teacher | None,
        batches: Batches,
        *,
        accelerator: Accelerator,
        stage: int = 0,
        deadline: Deadline | None = None,
    ) -> None:
        if deadline is not None and accelerator.num_processes > 1:
            raise ValueError(
                f"deadline: expected none where several processes train together, got one for "
                f"{accelerator.num_processes}: each would stop at a step of its own; leave it out"
            )
        for name in ("epochs", "accumulate", "precision", "channels_last", "compile_teacher"):
            values = {getattr(job.settings, name) for job in jobs}
            if len(values) > 1:
                raise ValueError(
                    f"{name}: expected one value for all that are fitted together, got "
                    f"{', '.join(sorted(map(str, values)))}; fit them one after the other"
                )
        self.jobs, self.teacher, self.batches = jobs, teacher, batches
        self.accelerator, self.stage, self.deadline = accelerator, stage, deadline
        self.forms = CompiledForms(None, teacher)
        self.speed: ComputePlan | None = None
        self._fits: dict[int, FitState] = {}
        self._failed: list[tuple[int, Exception]] = []

    def drop(self, k: int) -> None:
        """Continue without this job."""
        self._fits.pop(k, None)

    def run(self) -> Iterator[tuple[int, records.Epoch | Exception]]:
        """Train, yielding after every epoch each job's index and record, or the error that ended it.

        Raises:
            Exception: what they share failed: the batches or the teacher.
        """
        try:
            for k, job in enumerate(self.jobs):
                if state := self._try(k, partial(FitState, job, self.teacher, self.accelerator, stage=self.stage)):
                    self._fits[k] = state
            yield from self._failures()
            while epochs := [state.epoch for state in self._fits.values() if state.epoch < state.settings.epochs]:
                yield from self._run_epoch(min(epochs))
        finally:
            self._fits.clear()
            # The one accelerator of the process would keep the students and their optimizers.
            self.accelerator.free_memory()

    def _run_epoch(self, epoch: int) -> Iterator[tuple[int, records.Epoch | Exception]]:
        """Train an epoch from where the least advanced job is in it; then each is evaluated and saved."""
        settings, device, steps = self.jobs[0].settings, self.accelerator.device, len(self.batches)
        start = min(state.step_in_epoch for state in self._fits.values() if state.epoch == epoch)
        stream = self.batches.epoch(
            epoch, start=start, rank=self.accelerator.process_index, world=self.accelerator.num_processes
        )
        began = time.monotonic()
        for state in self._at(epoch, start).values():
            state.begin_epoch(began)
        memory.restart(device)
        for step, cpu_batch in enumerate(stream, start):
            if self.deadline is not None and self.deadline.over(self.deadline.evaluation if step == steps - 1 else 0.0):
                yield from self._stop(steps * epoch + step)
            present = self._at(epoch, step)
            if not present:  # Those that were at this step have failed: continue from where the others are.
                return
            batch = Batch(
                cpu_batch.index.to(device, non_blocking=True),
                to_device(cpu_batch.inputs, device, channels_last=settings.channels_last),
                cpu_batch.labels.to(device, non_blocking=True),
            )
            pieces = split_batch(batch, settings.accumulate)
            ahead = steps * settings.epochs - (steps * epoch + step)
            if self.speed is None:
                self.speed = self._choose(pieces[0], ahead)
            if new := {k: state for k, state in present.items() if state.speed is None}:
                first = None
                if any(self.jobs[k].asks and state.unmeasured(ahead) is None for k, state in new.items()):
                    first = self._teacher_outputs(pieces[0])
                for k, state in new.items():
                    outputs = self._outputs_of(k, first)
                    teacher_plan = self.speed if self.jobs[k].asks else ComputePlan()
                    self._try(k, partial(state.choose_plan, pieces[0], outputs, ahead, teacher_plan))
                present = self._at(epoch, step)
            needed = any(self.jobs[k].asks for k in present)
            shared: Iterable[Outputs | None] = map(self._teacher_outputs, pieces) if needed else [None] * len(pieces)
            if len(present) > 1:
                shared = list(shared)
            for position, (k, state) in enumerate(present.items()):
                if state.begun_at < 0:  # It joins from a checkpoint.
                    state.begin_epoch(time.monotonic())
                job_batch, job_outputs = batch, shared
                if len(self.jobs) > 1:
                    job_outputs = [self._outputs_of(k, outputs) for outputs in shared]
                    if position < len(present) - 1:  # A student may write into its inputs.
                        job_batch = batch._replace(inputs=batch.inputs.clone())
                self._try(k, partial(state.do_step, job_batch, job_outputs, steps))
            yield from self._failures()
        done = {k: state for k, state in self._fits.items() if state.epoch == epoch}
        sums = {k: total for k, state in done.items() if (total := self._try(k, state.end_training)) is not None}
        yield from self._failures()
        ended, peak = time.monotonic(), memory.peak(device)
        for k, total in sums.items():
            if record := self._try(k, partial(done[k].end_epoch, total, ended, peak)):
                yield k, record
            yield from self._failures()
        if self.deadline is not None:
            self.deadline.evaluation = time.monotonic() - ended

    def _stop(self, step: int) -> Iterator[tuple[int, Exception]]:
        """Save, and stop before a step that there is no time for; an epoch's last one has the evaluations after it."""
        for k, state in list(self._fits.items()):
            if state.step_in_epoch and state.begun_at >= 0:  # else its last checkpoint lacks nothing
                self._try(k, state.raise_if_nonfinite)
                self._try(k, state.save)
        yield from self._failures()
        raise DeadlineExceeded(f"stopped in time before step {step + 1} of stage {self.stage + 1}")

    def _choose(self, piece: Batch, steps: int) -> ComputePlan:
        """Choose how the teacher is computed: as in the checkpoints that are resumed, or by measurement."""
        plan = next((state.speed for state in self._fits.values() if state.speed is not None), None)
        plan = plan or choose_teacher_plan(
            self.jobs[0].settings,
            self.forms,
            partial(self._teacher_outputs, piece),
            steps=steps,
            processes=self.accelerator.num_processes,
            samples=len(piece.index),
            device=self.accelerator.device,
        )
        self.forms.take(plan)
        return plan

    def _at(self, epoch: int, step: int) -> dict[int, FitState]:
        """Return the fits whose next step this is."""
        return {k: state for k, state in self._fits.items() if (state.epoch, state.step_in_epoch) == (epoch, step)}

    def _teacher_outputs(self, piece: Batch) -> Outputs | None:
        """Return the teacher's outputs for a micro-batch; none without a teacher."""
        bf16 = self.jobs[0].settings.precision == "bf16"
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=bf16):
            return self.forms.ask(piece)

    def _outputs_of(self, k: int, outputs: Outputs | None) -> Outputs | None:
        """Return the outputs as the job would have them alone: with its own features, or none at all."""
        if outputs is None or not self.jobs[k].asks:
            return None
        names = self.jobs[k].distiller.objective.needs.teacher_taps
        return Outputs(outputs.logits, {name: outputs.taps[name] for name in names})

    def _try(self, k: int, call: Callable[[], Any]) -> Any:
        """Call something for one job; an error ends that job alone."""
        try:
            with self.jobs[k].rng or contextlib.nullcontext():
                return call()
        except Exception as error:  # noqa: BLE001  whatever it is, the others do not depend on it
            if len(self.jobs) > 1:
                # Its tensors are not kept while the group continues.
                traceback.clear_frames(error.__traceback__)
            self.drop(k)
            self._failed.append((k, error))
            return None

    def _failures(self) -> Iterator[tuple[int, Exception]]:
        """Yield the failures that were not reported yet."""
        while self._failed:
            yield self._failed.pop(0)
