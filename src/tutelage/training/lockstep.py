"""Several students fitted in lockstep, on one batch and one teacher pass per step."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from tutelage import records
from tutelage.modules import Distiller
from tutelage.settings.fit import FitSettings
from tutelage.training import memory
from tutelage.training.checkpoints import Checkpoint, CheckpointSink
from tutelage.training.compile import CompiledForms, ComputePlan, choose_teacher_plan
from tutelage.training.deadline import Deadline, DeadlineExceeded
from tutelage.training.evaluate import EvalSet, to_device
from tutelage.training.state import RngState
from tutelage.training.step import FitState, split_batch
from tutelage.types import Batch, Batches, Outputs, Teacher


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """One student of several that are fitted together, and what differs from the others.

    Attributes:
        distiller: the student with its objective.
        settings: how to train it.
        asks: it gets the teacher's outputs; an objective that needs none may go without.
        held_out: as for `fit`, and so are the next three.
        keep: where its state goes.
        to_beat: the best accuracy of earlier stages.
        resume: a checkpoint to resume from.
        rng: its random generators; none where it is the only one and draws from the process's.
    """

    distiller: Distiller
    settings: FitSettings
    asks: bool = True
    held_out: Sequence[EvalSet] = ()
    keep: CheckpointSink | None = None
    to_beat: float | None = None
    resume: Checkpoint | None = None
    rng: RngState | None = None


class Lockstep:
    """Several lessons fitted in lockstep: a batch is made, placed and put to the teacher once for all of them.

    Each lesson takes the same steps, to the bit, as alone. Those that go on from a checkpoint take none until the class
    has come to where they were, so the class begins where the least advanced one was.

    Args:
        jobs: the lessons; with more than one, each with a `RngState` of its own. Their settings agree in ``epochs``,
            ``accumulate``, ``precision``, ``channels_last`` and ``compile_teacher``.
        teacher: asked about every batch; its answers carry the features that any of the jobs reads.
        batches: the training set.
        accelerator: where.
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
                f"until: expected none where several processes train together, got one for "
                f"{accelerator.num_processes}: each would stop at a step of its own; leave it out"
            )
        for name in ("epochs", "accumulate", "precision", "channels_last", "compile_teacher"):
            found = {getattr(pupil.settings, name) for pupil in jobs}
            if len(found) > 1:
                raise ValueError(
                    f"{name}: expected one value for all that are fitted together, got "
                    f"{', '.join(sorted(map(str, found)))}; fit them one after the other"
                )
        self.jobs, self.teacher, self.batches = jobs, teacher, batches
        self.accelerator, self.stage, self.deadline = accelerator, stage, deadline
        self.forms = CompiledForms(None, teacher)
        self.speed: ComputePlan | None = None
        self._fits: dict[int, FitState] = {}
        self._failed: list[tuple[int, Exception]] = []

    def drop(self, k: int) -> None:
        """Go on without one of the jobs."""
        self._fits.pop(k, None)

    def run(self) -> Iterator[tuple[int, records.Epoch | Exception]]:
        """Train, yielding after every epoch each pupil's place in the class and its record, or what ended its part.

        Raises:
            Exception: what they share failed: the batches or the teacher.
        """
        try:
            for k in range(len(self.jobs)):
                if made := self._try(k, partial(self._begin, k)):
                    self._fits[k] = made
            yield from self._told()
            while going := [one.epoch for one in self._fits.values() if one.epoch < one.settings.epochs]:
                yield from self._run_epoch(min(going))
        finally:
            self._fits.clear()
            # The one accelerator of the process would keep the lessons and their optimizers.
            self.accelerator.free_memory()

    def _begin(self, k: int) -> FitState:
        own = self.jobs[k]
        fitting = FitState(
            own.distiller,
            self.teacher if own.asks else None,
            self.batches,
            own.settings,
            self.accelerator,
            own.held_out,
            own.keep,
            self.stage,
            own.to_beat,
        )
        if own.resume is not None:
            fitting.restore(own.resume)
        return fitting

    def _run_epoch(self, epoch: int) -> Iterator[tuple[int, records.Epoch | Exception]]:
        """Train an epoch from where the least advanced pupil is in it; then each is evaluated and kept."""
        settings, device, steps = self.jobs[0].settings, self.accelerator.device, len(self.batches)
        start = min(one.step_in_epoch for one in self._fits.values() if one.epoch == epoch)
        stream = self.batches.epoch(
            epoch, start=start, rank=self.accelerator.process_index, world=self.accelerator.num_processes
        )
        began = time.monotonic()
        for one in self._at(epoch, start).values():
            one.begin_epoch(began)
        memory.restart(device)
        for step, given in enumerate(stream, start):
            if self.deadline is not None and self.deadline.over(self.deadline.evaluation if step == steps - 1 else 0.0):
                yield from self._stop(steps * epoch + step)
            present = self._at(epoch, step)
            if not present:  # Those that were at this step have failed: go on from where the others are.
                return
            batch = Batch(
                given.index.to(device, non_blocking=True),
                to_device(given.inputs, device, channels_last=settings.channels_last),
                given.labels.to(device, non_blocking=True),
            )
            pieces = split_batch(batch, settings.accumulate)
            ahead = steps * settings.epochs - (steps * epoch + step)
            if self.speed is None:
                self.speed = self._choose(pieces[0], ahead)
            if new := {k: one for k, one in present.items() if one.speed is None}:
                heard_first = None
                if any(self.jobs[k].asks and one.unmeasured(ahead) is None for k, one in new.items()):
                    (heard_first,) = self._ask(pieces[:1])
                for k, one in new.items():
                    (said,) = self._own(k, [heard_first])
                    teacher = self.speed if self.jobs[k].asks else ComputePlan()
                    self._try(k, partial(one.choose_plan, pieces[0], said, ahead, teacher))
                present = self._at(epoch, step)
            answers: Iterable[Outputs | None] = [None] * len(pieces)
            if self.teacher is not None and any(self.jobs[k].asks for k in present):
                answers = self._ask(pieces)
            if len(present) > 1:
                answers = list(answers)
            for place_in_class, (k, one) in enumerate(present.items()):
                if one.begun_at < 0:  # It comes in from a checkpoint.
                    one.begin_epoch(time.monotonic())
                own, heard = batch, answers
                if len(self.jobs) > 1:
                    heard = self._own(k, answers)
                    if place_in_class < len(present) - 1:  # A student may write into what it is given.
                        own = batch._replace(inputs=batch.inputs.clone())
                self._try(k, partial(one.do_step, own, heard, steps))
            yield from self._told()
        done = {k: one for k, one in self._fits.items() if one.epoch == epoch}
        sums = {k: found for k, one in done.items() if (found := self._try(k, one.end_training)) is not None}
        yield from self._told()
        ended, taken = time.monotonic(), memory.peak(device)
        for k, found in sums.items():
            if record := self._try(k, partial(done[k].end_epoch, found, ended, taken)):
                yield k, record
            yield from self._told()
        if self.deadline is not None:
            self.deadline.evaluation = time.monotonic() - ended

    def _stop(self, step: int) -> Iterator[tuple[int, Exception]]:
        """Save, and stop before a step that there is no time for; an epoch's last one has the evaluations after it."""
        for k, one in list(self._fits.items()):
            if one.step_in_epoch and one.begun_at >= 0:  # else its last checkpoint lacks nothing
                self._try(k, one.raise_if_nonfinite)
                self._try(k, one.save)
        yield from self._told()
        raise DeadlineExceeded(f"stopped in time before step {step + 1} of stage {self.stage + 1}")

    def _choose(self, piece: Batch, steps: int) -> ComputePlan:
        """Choose how the teacher is asked: as by those that go on from a checkpoint, or by measurement."""
        chosen = next((one.speed for one in self._fits.values() if one.speed is not None), None)
        if chosen is None:
            chosen = choose_teacher_plan(
                self.jobs[0].settings,
                self.forms,
                lambda: list(self._ask([piece])),
                steps=steps,
                processes=self.accelerator.num_processes,
                samples=len(piece.index),
                device=self.accelerator.device,
            )
        self.forms.take(chosen)
        return chosen

    def _at(self, epoch: int, step: int) -> dict[int, FitState]:
        """The fits whose next step this is."""
        return {k: one for k, one in self._fits.items() if (one.epoch, one.step_in_epoch) == (epoch, step)}

    def _ask(self, pieces: Sequence[Batch]) -> Iterator[Outputs | None]:
        """Ask the teacher about each micro-batch when it comes to it."""
        assert self.teacher is not None
        bf16 = self.jobs[0].settings.precision == "bf16"
        for piece in pieces:
            with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=bf16):
                said = self.forms.ask(piece)
            yield said

    def _own(self, k: int, answers: Iterable[Outputs | None]) -> list[Outputs | None]:
        """The answers as a pupil would have them alone: its own features, or none at all."""
        if not self.jobs[k].asks:
            return [None for _ in answers]
        names = self.jobs[k].distiller.objective.needs.teacher_taps
        return [said and Outputs(said.logits, {name: said.taps[name] for name in names}) for said in answers]

    def _try(self, k: int, do: Callable[[], Any]) -> Any:
        """Do something for one pupil; what goes wrong ends its part alone."""
        try:
            with self.jobs[k].rng or contextlib.nullcontext():
                return do()
        except Exception as error:  # noqa: BLE001  whatever it is, the others do not depend on it
            if len(self.jobs) > 1:
                # Its tensors are not kept for as long as the class goes on.
                traceback.clear_frames(error.__traceback__)
            self.drop(k)
            self._failed.append((k, error))
            return None

    def _told(self) -> Iterator[tuple[int, Exception]]:
        """Yield the failures that were not told yet."""
        while self._failed:
            yield self._failed.pop(0)
