"""The training loop: a generator that yields one record an epoch.

It names no method, model or data set. It saves before it yields; whoever iterates logs, plots or stops.
"""

from __future__ import annotations

import contextlib
import random
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from tutelage import losses, records, targets
from tutelage.modules import Distiller, StepOutput
from tutelage.settings.fit import FitSettings
from tutelage.training import compile as speed
from tutelage.training import memory, optim
from tutelage.training.checkpoints import Checkpoint, Checkpoints
from tutelage.training.deadline import Deadline, DeadlineExceeded
from tutelage.training.evaluate import NAMED, EvalSet, NonFiniteError, collect_outputs, summarize, to_device
from tutelage.training.rng_state import RngState
from tutelage.types import UNLABELLED, Batch, Batches, Outputs, Progress, StatefulTerm, Teacher, Totals


class CheckpointSink(NamedTuple):
    """Where a run's state goes.

    Attributes:
        checkpoints: of the run.
        best: the file for the weights that did best on the selection set.
        choices: facts that exact resume depends on; a resumed run warns where they differ.
        announce: is told how the fit is computed (`speed.ComputePlan`, as JSON holds it) once that is settled.
    """

    checkpoints: Checkpoints
    best: Path
    choices: Mapping[str, Any]
    announce: Callable[[dict[str, Any]], None] | None = None


def accelerator_on(device: str) -> Accelerator:
    """Return the process's accelerator for ``auto``, ``cpu`` or ``cuda``.

    There is one a process. Its own mixed precision stays off: it would be fixed for every later run of the process.

    Raises:
        ValueError: CUDA is asked for and is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected a CUDA device, got none that torch can see; type device=cpu or device=auto")
    if AcceleratorState._shared_state and (AcceleratorState().device.type == "cpu") != _on_cpu(device):
        AcceleratorState._reset_state(reset_partial_state=True)
    # An objective of features alone gives the layers behind them no gradient, which DDP would wait for.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=_on_cpu(device), mixed_precision="no", kwargs_handlers=[unused])


def _on_cpu(device: str) -> bool:
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


class FitJob(NamedTuple):
    """One lesson of several that are fitted together, and what is its own.

    Attributes:
        distiller: the student with its objective.
        settings: how to train it.
        asks: it gets the teacher's answers; an objective that needs none may go without.
        held_out: as for `fit`, and so are the next three.
        keep: where its state goes.
        to_beat: the best accuracy of earlier stages.
        resume: a checkpoint to go on from.
        chance: its random generators; none where it is the only one and draws from the process's.
    """

    distiller: Distiller
    settings: FitSettings
    asks: bool = True
    held_out: Sequence[EvalSet] = ()
    keep: CheckpointSink | None = None
    to_beat: float | None = None
    resume: Checkpoint | None = None
    chance: RngState | None = None


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
    deadline: Deadline | None = None,
) -> Iterator[records.Epoch]:
    """Train a lesson, yielding a record after every epoch.

    Args:
        distiller: the student with its objective.
        teacher: asked about every batch; none where the objective needs none.
        batches: the training set.
        settings: how to train.
        accelerator: where.
        held_out: sets to evaluate the student on after every epoch; the first is the one that ``best`` is chosen by.
        keep: where checkpoints and the best weights go; none to keep nothing.
        stage: a number that orders the fits of one run.
        to_beat: the best accuracy of earlier stages, a fraction.
        resume: a checkpoint of this stage to go on from.
        deadline: the moment to stop by; none to train to the end.

    Raises:
        NonFiniteError: a loss or gradient was not finite and ``settings.nonfinite`` is ``stop``.
        CheckpointError: a checkpoint could not be written.
        DeadlineExceeded: the moment to stop has come; a checkpoint is written.
    """
    pupil = FitJob(distiller, settings, True, held_out, keep, to_beat, resume)
    for _, told in Lockstep([pupil], teacher, batches, accelerator=accelerator, stage=stage, deadline=deadline).run():
        if isinstance(told, Exception):
            raise told
        yield told


class Lockstep:
    """Several lessons fitted in lockstep: a batch is made, placed and put to the teacher once for all of them.

    Each lesson takes the same steps, to the bit, as alone. Those that go on from a checkpoint take none until the class
    has come to where they were, so the class begins where the least advanced one was.

    Args:
        pupils: the lessons; with more than one, each with a `RngState` of its own. Their settings agree in ``epochs``,
            ``accumulate``, ``precision``, ``channels_last`` and ``compile_teacher``.
        teacher: asked about every batch; its answers carry the features that any of the pupils reads.
        batches: the training set.
        accelerator: where.
        stage: as for `fit`.
        deadline: as for `fit`; all of them stop.

    Raises:
        ValueError: the pupils' settings do not agree.
    """

    def __init__(
        self,
        pupils: Sequence[FitJob],
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
            found = {getattr(pupil.settings, name) for pupil in pupils}
            if len(found) > 1:
                raise ValueError(
                    f"{name}: expected one value for all that are fitted together, got "
                    f"{', '.join(sorted(map(str, found)))}; fit them one after the other"
                )
        self.pupils, self.teacher, self.batches = pupils, teacher, batches
        self.accelerator, self.stage, self.deadline = accelerator, stage, deadline
        self.forms = speed.CompiledForms(None, teacher)
        self.speed: speed.ComputePlan | None = None
        self._fits: dict[int, FitState] = {}
        self._failed: list[tuple[int, Exception]] = []

    def drop(self, k: int) -> None:
        """Go on without one of the pupils."""
        self._fits.pop(k, None)

    def run(self) -> Iterator[tuple[int, records.Epoch | Exception]]:
        """Train, yielding after every epoch each pupil's place in the class and its record, or what ended its part.

        Raises:
            Exception: what they share failed: the batches or the teacher.
        """
        try:
            for k in range(len(self.pupils)):
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
        own = self.pupils[k]
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
        settings, device, steps = self.pupils[0].settings, self.accelerator.device, len(self.batches)
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
            pieces = _cut(batch, settings.accumulate)
            ahead = steps * settings.epochs - (steps * epoch + step)
            if self.speed is None:
                self.speed = self._choose(pieces[0], ahead)
            if new := {k: one for k, one in present.items() if one.speed is None}:
                heard_first = None
                if any(self.pupils[k].asks and one.unmeasured(ahead) is None for k, one in new.items()):
                    (heard_first,) = self._ask(pieces[:1])
                for k, one in new.items():
                    (said,) = self._own(k, [heard_first])
                    teacher = self.speed if self.pupils[k].asks else speed.ComputePlan()
                    self._try(k, partial(one.choose_speed, pieces[0], said, ahead, teacher))
                present = self._at(epoch, step)
            answers: Iterable[Outputs | None] = [None] * len(pieces)
            if self.teacher is not None and any(self.pupils[k].asks for k in present):
                answers = self._ask(pieces)
            if len(present) > 1:
                answers = list(answers)
            for place_in_class, (k, one) in enumerate(present.items()):
                if one.begun_at < 0:  # It comes in from a checkpoint.
                    one.begin_epoch(time.monotonic())
                own, heard = batch, answers
                if len(self.pupils) > 1:
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
                self._try(k, one.look)
                self._try(k, one.save)
        yield from self._told()
        raise DeadlineExceeded(f"stopped in time before step {step + 1} of stage {self.stage + 1}")

    def _choose(self, piece: Batch, steps: int) -> speed.ComputePlan:
        """Choose how the teacher is asked: as by those that go on from a checkpoint, or by measurement."""
        chosen = next((one.speed for one in self._fits.values() if one.speed is not None), None)
        if chosen is None:
            chosen = speed.choose_teacher_plan(
                self.pupils[0].settings,
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
        bf16 = self.pupils[0].settings.precision == "bf16"
        for piece in pieces:
            with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=bf16):
                said = self.forms.ask(piece)
            yield said

    def _own(self, k: int, answers: Iterable[Outputs | None]) -> list[Outputs | None]:
        """The answers as a pupil would have them alone: its own features, or none at all."""
        if not self.pupils[k].asks:
            return [None for _ in answers]
        names = self.pupils[k].distiller.objective.needs.teacher_taps
        return [said and Outputs(said.logits, {name: said.taps[name] for name in names}) for said in answers]

    def _try(self, k: int, do: Callable[[], Any]) -> Any:
        """Do something for one pupil; what goes wrong ends its part alone."""
        try:
            with self.pupils[k].chance or contextlib.nullcontext():
                return do()
        except Exception as error:  # noqa: BLE001  whatever it is, the others do not depend on it
            if len(self.pupils) > 1:
                # Its tensors are not kept for as long as the class goes on.
                traceback.clear_frames(error.__traceback__)
            self.drop(k)
            self._failed.append((k, error))
            return None

    def _told(self) -> Iterator[tuple[int, Exception]]:
        """Yield the failures that were not told yet."""
        while self._failed:
            yield self._failed.pop(0)


class FitState:
    """The state of one fit, and the steps that change it."""

    def __init__(
        self,
        distiller: Distiller,
        teacher: Teacher | None,
        batches: Batches,
        settings: FitSettings,
        accelerator: Accelerator,
        held_out: Sequence[EvalSet],
        keep: CheckpointSink | None,
        stage: int,
        to_beat: float | None,
    ) -> None:
        if settings.accumulate > 1 and distiller.objective.needs.coupled:
            raise ValueError(
                f"accumulate: expected 1 for an objective that couples a batch's samples, got {settings.accumulate}; "
                "its value would change with the micro-batches: type accumulate=1"
            )
        self.device = accelerator.device
        self.accelerator, self.settings, self.batches = accelerator, settings, batches
        self.held_out, self.keep, self.stage = held_out, keep, stage
        self.teacher = teacher.to(self.device) if isinstance(teacher, nn.Module) else teacher
        distiller.to(self.device)
        if settings.channels_last:
            _convolutions_last(distiller)
            if isinstance(self.teacher, nn.Module):
                _convolutions_last(self.teacher)
        self.bare = distiller
        self.optimizer = optim.build(settings.optimizer, distiller, self.device)
        self.stateful_terms = [term for term in distiller.objective.terms.values() if isinstance(term, StatefulTerm)]
        guarded = {id(buffer) for keeper in self.stateful_terms for buffer in cast(nn.Module, keeper).buffers()}
        # DDP would send these from the first process to the others before every step.
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            distiller, [name for name, buffer in distiller.named_buffers() if id(buffer) in guarded]
        )
        self.module, self.prepared = accelerator.prepare(distiller, self.optimizer)
        self.buffers = [buffer for buffer in distiller.buffers() if id(buffer) not in guarded]
        self.gamma = distiller.objective.target_gamma
        counted = ("correct", "labelled", "entropy", "kl", "agree", "samples", "skipped")
        self.names = ("loss", *distiller.objective.names, *counted)
        self.epoch = self.step = self.step_in_epoch = self.trained = 0
        self.rate, self.begun_at, self.saved_at = 0.0, -1.0, 0.0
        self.history: list[records.Epoch] = []
        self.to_beat = to_beat
        self.forms = speed.CompiledForms(distiller.student, None)
        self.speed: speed.ComputePlan | None = None
        self.clear()

    def clear(self) -> None:
        """Start an epoch's sums; they stay on the device until the epoch ends."""
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self.nonfinite_log = torch.full((2 + NAMED,), -1, dtype=torch.int64, device=self.device)

    def begin_epoch(self, now: float) -> None:
        """Begin an epoch, or what is left of it, at a time of the monotonic clock."""
        self.begun_at = self.saved_at = now
        self.trained = 0
        self.bare.train()

    def do_step(self, batch: Batch, answers: Iterable[Outputs | None], steps: int) -> None:
        """Take the next of an epoch's steps, look and save where that is due."""
        self.rate = self.set_rate(self.step_in_epoch, steps)
        self.take_step(batch, answers, Progress(self.epoch, self.step, self.step / (steps * self.settings.epochs)))
        self.trained += len(batch.index)
        self.step += 1
        self.step_in_epoch += 1
        if self.step % self.settings.log_steps == 0:
            self.look()
        now = time.monotonic()
        due = self.settings.checkpoint_steps and self.step_in_epoch % self.settings.checkpoint_steps == 0
        if self.step_in_epoch < steps and (due or now - self.saved_at > self.settings.checkpoint_seconds):
            self.look()
            self.save()
            self.saved_at = time.monotonic()

    def end_training(self) -> dict[str, float]:
        """Return the epoch's sums over all processes; here the host waits for the device."""
        self.look()
        return dict(zip(self.names, self.accelerator.reduce(self.sums).tolist(), strict=True))

    def end_epoch(self, sums: Mapping[str, float], ended: float, taken: float | None) -> records.Epoch:
        """Evaluate, keep, and return the record; training ended at this time of the monotonic clock, at this peak."""
        began, seconds, self.begun_at = self.begun_at, ended - self.begun_at, -1.0
        evaluations = {held.name: self.evaluate(held) for held in self.held_out}
        self.epoch += 1
        self.step_in_epoch = 0
        record: records.Epoch = {
            "stage": self.stage,
            "epoch": self.epoch,
            "step": self.step,
            "learning_rate": self.rate,
            "train": self.train_means(sums),
            "validation": evaluations.get("validation"),
            "test": evaluations.get("test"),
            "images_per_second": self.trained * self.accelerator.num_processes / max(seconds, 1e-9),
            "seconds": time.monotonic() - began,
            "memory_mb": taken,
            "skipped_steps": int(sums["skipped"]),
        }
        self.history.append(record)
        self.keep_best(record)
        self.clear()
        self.save()
        return record

    def set_rate(self, step: int, steps: int) -> float:
        """Set the learning rate of one of an epoch's steps."""
        rate = optim.learning_rate(
            self.settings.schedule,
            self.settings.optimizer.lr,
            epoch=self.epoch,
            begin=step / steps,
            end=(step + 1) / steps,
            epochs=self.settings.epochs,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def take_step(self, batch: Batch, answers: Iterable[Outputs | None], progress: Progress) -> None:
        """Do one optimizer step; a non-finite one is counted, blamed and not applied. The host waits for nothing.

        The batch is on the device; the teacher's answers are those for its micro-batches, in their order.
        """
        settings = self.settings
        totals = self.count(batch)
        before = [b.clone() for b in self.buffers]
        pieces = _cut(batch, settings.accumulate)
        sums = torch.zeros_like(self.sums)
        suspects = []
        for i, (piece, said) in enumerate(zip(pieces, answers, strict=True)):
            last = i == len(pieces) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                taught = self.learn(piece, said, progress, totals)
            seen, suspect = self.measure(piece, said, taught, totals)
            sums += seen
            suspects.append(suspect)
        parameters = [p for p in self.bare.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite = torch.isfinite(norm) & torch.isfinite(sums[0])
        if settings.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
        self.apply(finite, before)
        sums = torch.where(finite, sums, 0.0)
        sums[-1] = (~finite).double()
        self.sums += sums
        self.record_nonfinite(finite, torch.cat(suspects), batch.index)

    def learn(self, piece: Batch, said: Outputs | None, progress: Progress, totals: Totals) -> StepOutput:
        """Run the student on a micro-batch, forward and backward."""
        samples = len(piece.index)
        self.bare.called = self.forms.student(samples)
        bf16 = self.settings.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16), self.forms.gradients(samples):
            taught: StepOutput = self.module(piece, said, progress, totals)
        self.accelerator.backward(taught.loss.total)
        return taught

    def unmeasured(self, steps: int) -> str | None:
        """Return why nothing is to be measured of the student, if so."""
        wanted = self.settings.compile_student, self.settings.gradient_products
        return speed.unmeasured(steps, self.accelerator.num_processes, wanted)

    def choose_speed(self, piece: Batch, said: Outputs | None, steps: int, teacher: speed.ComputePlan) -> None:
        """Choose once how the student is computed, on its first micro-batch; state and generators stay as they are."""
        settings = self.settings
        if why := self.unmeasured(steps):
            chosen = speed.ComputePlan(why={"student": why})
        else:
            totals = self.count(piece)

            def step() -> None:
                self.learn(piece, said, Progress(), totals)
                for keeper in self.stateful_terms:
                    keeper.commit(torch.zeros((), dtype=torch.bool, device=self.device))

            samples = len(piece.index)
            with speed.unchanged(self.bare, self.device):
                chosen = speed.choose_plan(
                    settings, self.forms, step=step, steps=steps, samples=samples, device=self.device
                )
        self.settle(chosen.after(teacher))

    def settle(self, chosen: speed.ComputePlan) -> None:
        """Compute as was chosen, and say so."""
        self.speed = chosen
        self.forms.take(chosen)
        if self.keep is not None and self.keep.announce is not None:
            self.keep.announce(chosen.to_json())

    def apply(self, finite: Tensor, before: Sequence[Tensor]) -> None:
        """Step the optimizer if the gradient is finite; else leave parameters and buffers as they were."""
        if self.device.type == "cpu":
            if not finite:
                for buffer, old in zip(self.buffers, before, strict=True):
                    buffer.copy_(old)
            else:
                self.prepared.step()
        else:
            # Fused optimizers read these two, which gradient scalers set, and skip on the device.
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
            self.prepared.step()
            for buffer, old in zip(self.buffers, before, strict=True):
                buffer.copy_(torch.where(finite, buffer, old))
        for keeper in self.stateful_terms:
            keeper.commit(finite)
        self.prepared.zero_grad()

    def count(self, batch: Batch) -> Totals:
        """Count the step's samples and labels over all processes, as means divide by them."""
        samples = torch.full((), float(len(batch.index)), device=self.device)
        labelled = samples if batch.labels.is_floating_point() else (batch.labels != UNLABELLED).sum().float()
        if self.accelerator.num_processes == 1:
            return Totals(samples, labelled)
        both = self.accelerator.reduce(torch.stack([samples, labelled])) / self.accelerator.num_processes
        return Totals(both[0], both[1])

    @torch.no_grad()
    def measure(
        self, batch: Batch, teacher: Outputs | None, taught: StepOutput, totals: Totals
    ) -> tuple[Tensor, Tensor]:
        """Return a micro-batch's share of the epoch's sums, and which of its samples are not finite."""
        logits = taught.outputs.logits.float()
        log_q = logits.log_softmax(-1)
        n = len(batch.index)
        labels = batch.labels.argmax(-1) if batch.labels.is_floating_point() else batch.labels
        named = logits.argmax(-1)
        zero = logits.new_zeros(())
        kl = agree = zero
        suspect = ~torch.isfinite(logits).all(-1)
        if teacher is not None:
            v = teacher.logits.float()
            suspect |= ~torch.isfinite(v).all(-1)
            agree = (named == v.argmax(-1)).sum()
            if self.gamma is not None:
                kl = losses.kl_divergence(log_q, (self.gamma * v).log_softmax(-1)).sum()
        # Terms are means over the whole step already; the epoch's mean weighs each step by what they are means over.
        supervised = self.bare.objective.supervised
        seen = [taught.loss.total * totals.samples.double()]
        for name, part in taught.loss.parts.items():
            over = totals.labelled if name in supervised else totals.samples
            seen.append(part * over.double())
        seen += [(named == labels).sum(), (labels != UNLABELLED).sum(), targets.shannon_entropy(log_q).sum(), kl, agree]
        return torch.stack([s.detach().double() for s in (*seen, zero + n, zero)]), suspect

    def record_nonfinite(self, finite: Tensor, suspect: Tensor, index: Tensor) -> None:
        """Remember the first non-finite step of the epoch, and its samples, on the device."""
        which = torch.where(suspect, index, -1).sort(descending=True).values[:NAMED]
        fresh = torch.full_like(self.nonfinite_log, -1)
        fresh[0] = self.step
        fresh[1] = suspect.sum()
        fresh[2 : 2 + len(which)] = which
        self.nonfinite_log = torch.where(~finite & (self.nonfinite_log[0] < 0), fresh, self.nonfinite_log)

    def look(self) -> None:
        """Read what the device has kept of non-finite steps; stop the run if that is what was asked for."""
        if self.settings.nonfinite == "skip":
            return
        step, count, *which = self.nonfinite_log.tolist()
        if step < 0:
            return
        bad = sorted(i for i in which if i >= 0)
        named = ", ".join(map(str, bad)) or "none alone (the loss or a gradient was)"
        more = f" and {count - NAMED} more" if count > NAMED else ""
        raise NonFiniteError(
            f"step {step + 1} of stage {self.stage + 1}: expected a finite loss and gradient, got NaN or infinity; "
            f"samples with non-finite student or teacher logits: {named}{more}; the step was not applied: "
            "look at these samples or lower optimizer.lr, or type nonfinite=skip to go on without such steps"
        )

    def train_means(self, sums: Mapping[str, float]) -> records.TrainMeans:
        """Turn an epoch's sums into means."""
        n = max(sums["samples"], 1.0)
        taught = self.teacher is not None
        return {
            "loss": sums["loss"] / n,
            "terms": {
                name: sums[name] / (max(sums["labelled"], 1.0) if name in self.bare.objective.supervised else n)
                for name in self.bare.objective.names
            },
            "accuracy": sums["correct"] / sums["labelled"] if sums["labelled"] else None,
            "entropy": sums["entropy"] / n,
            "kl_to_target": sums["kl"] / n if taught and self.gamma is not None else None,
            "agreement": sums["agree"] / n if taught else None,
            "samples": int(sums["samples"]),
        }

    def evaluate(self, held: EvalSet) -> records.EvaluationMeans:
        """Evaluate the student on a held-out set."""
        answers = collect_outputs(
            self.bare.student,
            held.batches,
            device=self.device,
            precision=self.settings.precision,
            channels_last=self.settings.channels_last,
            who="student",
        )
        return summarize(held.name, answers, held.teacher, gamma=self.gamma)

    def keep_best(self, record: records.Epoch) -> None:
        """Keep the student's weights if they are the best so far on the first held-out set."""
        if not self.held_out:
            return
        name = self.held_out[0].name
        evaluation = record["validation"] if name == "validation" else record["test"]
        if evaluation is None or evaluation["accuracy"] is None:
            return
        if self.to_beat is None or evaluation["accuracy"] > self.to_beat:
            self.to_beat = evaluation["accuracy"]
            if self.keep is not None and self.accelerator.is_main_process:
                self.keep.checkpoints.write(self.keep.best, safetensors.torch.save(plain_state(self.bare.student)))

    def save(self) -> None:
        """Write a checkpoint from which the run goes on with the same bits."""
        if self.keep is None or not self.accelerator.is_main_process:
            return
        tensors = {f"lesson.{name}": tensor for name, tensor in self.bare.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        plain: dict[str, dict[str, Any]] = {}
        for i, values in optimizer["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{i}.{name}"] = value
                else:
                    plain.setdefault(str(i), {})[name] = value
        tensors["sums"], tensors["blame"] = self.sums, self.nonfinite_log
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        state = {
            "stage": self.stage,
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "optimizer": {"plain": plain, "groups": optimizer["param_groups"]},
            "rng": {"python": random.getstate(), "numpy": _numpy_state()},
            "history": self.history,
            "to_beat": self.to_beat,
            "choices": dict(self.keep.choices),
            "speed": self.speed.to_json() if self.speed else None,
        }
        self.keep.checkpoints.save(f"{self.stage:02d}-{self.step:09d}", tensors, state)

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint of this stage."""
        tensors, state = saved
        self.bare.load_state_dict(_under("lesson.", tensors))
        moments: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in state["optimizer"]["plain"].items()}
        for name, tensor in _under("optimizer.", tensors).items():
            i, key = name.split(".", 1)
            moments.setdefault(int(i), {})[key] = tensor
        # How the optimizer is done belongs to the device, which may be another than the checkpoint's.
        groups = [
            {**saved_group, "fused": own.get("fused")}
            for saved_group, own in zip(state["optimizer"]["groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                # Fused optimizers want a moment in its parameter's memory layout; a checkpoint's are contiguous.
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.epoch, self.step, self.step_in_epoch = state["epoch"], state["step"], state["step_in_epoch"]
        self.history, self.to_beat = state["history"], state["to_beat"]
        self.sums, self.nonfinite_log = tensors["sums"].to(self.device), tensors["blame"].to(self.device)
        # Checkpoints of older versions were computed plainly.
        self.settle(speed.ComputePlan.from_json(state["speed"]) if state.get("speed") else speed.ComputePlan())
        restore_random(saved, self.device)


def restore_random(saved: Checkpoint, device: torch.device) -> None:
    """Put every random generator where it was when a checkpoint was written."""
    torch.set_rng_state(saved.tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in saved.tensors:
        torch.cuda.set_rng_state(saved.tensors["rng.cuda"], device)
    version, words, gauss = saved.state["rng"]["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = saved.state["rng"]["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # the state of the user's own code


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state on the CPU, contiguous, each tensor its own memory: what safetensors accepts."""
    network = getattr(module, "network", module)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}


def _numpy_state() -> list[Any]:
    kind, keys, *rest = np.random.get_state()  # the state of the user's own code
    return [kind, np.asarray(keys).tolist(), *rest]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _convolutions_last(module: nn.Module) -> None:
    module.to(memory_format=torch.channels_last)


def _cut(batch: Batch, pieces: int) -> list[Batch]:
    if pieces == 1:
        return [batch]
    parts = zip(*(tensor.chunk(pieces) for tensor in batch), strict=True)
    return [Batch(*part) for part in parts]
