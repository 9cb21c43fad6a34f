"""One fit between its steps: how it is computed, evaluated, recorded, saved and resumed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import safetensors.torch
import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from tutelage import records
from tutelage.adapters import inputs_for
from tutelage.errors import InvalidValueError, RunError, message
from tutelage.interruption import uninterrupted
from tutelage.modules import Distiller
from tutelage.settings.fit import FitSettings, Switch, smallest_share
from tutelage.submodules import trained_state
from tutelage.tensor_files import to_bytes
from tutelage.training import memory, optim
from tutelage.training.agreement import Agreement
from tutelage.training.batch_norm import local_statistics
from tutelage.training.captured import CapturedStep, Snapshot, reason_eager
from tutelage.training.checkpoints import Checkpoint, CheckpointSink
from tutelage.training.compile import NOT_CAPTURED, ComputePlan, PlannedTeacher, Trials, reason_unmeasured, unchanged
from tutelage.training.deadline import DeadlineExceeded
from tutelage.training.distributed import (
    batches_on,
    by_main,
    gathered_objects,
    is_main,
    share,
    share_buffers,
    step_totals,
    summed,
)
from tutelage.training.dry_forward import PROBED, check_batches, smallest_batch
from tutelage.training.early_stopping import BY, reason_to_stop
from tutelage.training.evaluate import EvalSet, evaluate
from tutelage.training.generators import random_state, restore_random, seed_rank
from tutelage.training.graphs import CAPTURES, NotCapturableError
from tutelage.training.nonfinite import combined, raise_nonfinite
from tutelage.training.precision import mixed_precision
from tutelage.training.state import TrainState
from tutelage.training.step import split_batch, train_step
from tutelage.types import Batch, Batches, Outputs, Teacher
from tutelage.views import map_views, with_own_inputs


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """One student, and how it is trained."""

    distiller: Distiller  # student with its objective
    settings: FitSettings  # settings of its training
    uses_teacher: bool = True  # whether it gets the teacher's outputs; an objective that needs none may do without
    held_out: Sequence[EvalSet] = ()  # held-out sets, as for `fit`, like the next three
    keep: CheckpointSink | None = None  # destination of its state
    to_beat: float | None = None  # best `records.merit` of earlier stages
    resume: Checkpoint | None = None  # checkpoint to resume from

    @property
    def start(self) -> int:
        """The step at which it begins."""
        return 0 if self.resume is None else int(self.resume.state["step"])


_OFF = "switched off"


class TrainingTotals(NamedTuple):
    """The totals of an epoch's steps."""

    sums: Mapping[str, float]  # sums over all processes, as named by `EpochMetrics.names`
    seconds: float
    memory: float | None  # peak memory in MB


class _Share(NamedTuple):
    """What each process knows of an epoch for itself."""

    samples: int  # samples that it took
    memory: float | None  # peak memory in MB
    training: float  # seconds of the steps
    seconds: float  # seconds since the epoch began
    evaluations: Mapping[str, records.EvaluationMeans]


class FitState:
    """One fit between its steps.

    Args:
        job: student, and how it is trained.
        accelerator: device and processes to train on.
        steps: number of steps per epoch.
        samples: number of samples per epoch, by which the smallest batch is known; ``None`` to check none.
        stage: number of the stage, as for `fit`.
        agreement: what the processes decide together; by default without a deadline.

    Attributes:
        train: state that a step reads and changes.
        plan: plan of the computation, once chosen.
        step: function that takes a step: `train_step`, or a graph of it.
        group_reason: reason why steps are not captured, if it lies in what a group shares.
        history: records of its epochs.
    """

    def __init__(
        self,
        job: FitJob,
        accelerator: Accelerator,
        *,
        steps: int,
        samples: int | None = None,
        stage: int = 0,
        agreement: Agreement | None = None,
    ) -> None:
        if job.settings.accumulate > 1 and job.distiller.objective.needs.coupled:
            expected = "1 for an objective that couples a batch's samples"
            instead = "its value would change with the micro-batches: type accumulate=1"
            raise InvalidValueError("accumulate", expected, job.settings.accumulate, instead)
        if job.settings.early_stopping is not None:
            _require_choice(job)
        self.job, self.accelerator, self.steps, self.samples, self.stage = job, accelerator, steps, samples, stage
        self.device, self.settings = accelerator.device, job.settings
        self.agreement = agreement or Agreement(accelerator)
        self.train = TrainState(job.distiller, job.settings, accelerator, self.agreement)
        self.now = self.train.now
        self.plan: ComputePlan | None = None
        self.step: Callable[[TrainState, Batch, Teacher | None], None] = train_step
        self.group_reason: str | None = None
        self.history: list[records.Epoch] = []
        self.to_beat = job.to_beat
        self.total_steps = steps * job.settings.epochs
        self.in_epoch = False
        self.consistent = True  # false while a step or the end of an epoch changes the state
        self.samples_seen = 0  # number of samples since the epoch began or was resumed
        self.began = self.saved = 0.0
        if accelerator.process_index:  # Until here all drew the same, for the same initialisation.
            seed_rank(torch.initial_seed(), accelerator.process_index)
        if job.resume is not None:
            self._restore(job.resume)
        if is_main() and (local := local_statistics(job.distiller, job.settings.sync_bn)):
            warnings.warn(local, stacklevel=2)

    def begin_epoch(self) -> None:
        """Begin an epoch, or the rest of it."""
        memory.restart(self.device)
        self.began = self.saved = time.monotonic()
        self.in_epoch, self.samples_seen = True, 0
        self.train.distiller.train()

    def epoch(self, batches: Batches) -> Iterator[Batch]:
        """Begin an epoch, or the rest of it, and yield its batches on the device."""
        self.begin_epoch()
        return batches_on(self.accelerator, batches, self.now.epoch, self.now.step_in_epoch, self.settings)

    @contextmanager
    def saving_if_stopped(self) -> Iterator[None]:
        """Enter this for an epoch: its steps are saved if a deadline, Ctrl-C or SIGTERM ends it.

        Several processes save together before they stop: see `Agreement`. One that stops alone saves nothing.
        """
        try:
            yield
        except DeadlineExceeded:
            if not self.agreement.several:
                self.save_steps()
            raise
        except KeyboardInterrupt as error:
            if self.agreement.several:
                raise
            try:
                self.save_steps()
            except RunError as failure:  # The interruption is the reason of the end.
                error.add_note(str(failure))
            raise

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """Enter this for a step, or the end of an epoch: a signal waits for its end, as its middle cannot be saved."""
        self.consistent = False
        # Of several processes, none is interrupted at all while they train.
        with nullcontext() if self.agreement.several else uninterrupted():
            yield
            self.consistent = True

    def begin_step(
        self, batch: Batch, teacher: PlannedTeacher | None, outputs: Teacher | None = None, *, apart: bool = False
    ) -> None:
        """Set a step's learning rate and scheduled weights; before the first step, choose how it is computed.

        Args:
            batch: batch of the step.
            teacher: teacher as for `train_step`.
            outputs: substitute that is called in its place if its outputs are already known.
            apart: whether others are trained on the batch beside this one.
        """
        now, steps = self.now, self.steps
        now.set(self._rate(now.step_in_epoch), self.position / self.total_steps)
        if self.agreement.several:
            last = now.step_in_epoch == steps - 1
            late = self._late and self.accelerator.is_main_process and not last
            self.agreement.ask(save=late, following="evaluation" if last else "step")
        if teacher is not None:
            teacher.prepare(batch)
        self.job.distiller.objective.check_labels(batch)  # before the step, in which the host waits for nothing
        self.consistent = False
        if self.plan is None:
            self._check_batches(batch)
            self._adopt(self._choose_plan(batch, teacher, outputs, apart=apart))
        elif self.plan.graph and not (isinstance(self.step, CapturedStep) and self.step.samples >= len(batch.index)):
            # A resumed fit; maybe before an epoch's last, smaller batch, which full ones follow.
            self._capture(self.plan, batch, outputs or teacher, apart=apart)
        self.consistent = True

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step of the epoch."""
        return optim.learning_rate(
            self.settings.schedule,
            self.settings.optimizer.lr,
            epoch=self.now.epoch,
            begin=step / self.steps,
            end=(step + 1) / self.steps,
            epochs=self.settings.epochs,
        )

    def end_step(self, batch: Batch) -> None:
        """Count a step, and read the log and save when due; stop if several processes agreed to."""
        if self.count_step(batch):
            self.save_steps()
        if self.agrees:
            self.agreement.act(self.save_steps, before=self.next_step)

    def count_step(self, batch: Batch) -> bool:
        """Count a step and read the log when due; return whether it is time to save."""
        now, settings = self.now, self.settings
        self.samples_seen += len(batch.index)
        now.step += 1
        now.step_in_epoch += 1
        self.consistent = True
        if now.step % settings.log_steps == 0:
            self.join()
            self._raise_if_nonfinite()
        due = settings.checkpoint_steps and now.step_in_epoch % settings.checkpoint_steps == 0
        late = self._late and not self.agreement.several  # Several processes go by the clock of the main one.
        return bool(now.step_in_epoch < self.steps and (due or late))

    @property
    def _late(self) -> bool:
        """Whether the last checkpoint is so old that it is time for another."""
        return time.monotonic() - self.saved > self.settings.checkpoint_seconds

    @property
    def agrees(self) -> bool:
        """Whether several processes read after this step what they asked of each other; on CUDA the host would wait."""
        step, last = self.now.step, self.now.step_in_epoch == self.steps
        return self.agreement.several and (self.device.type == "cpu" or last or step % self.settings.log_steps == 0)

    @property
    def next_step(self) -> str:
        """The name of the next step, or of the evaluations that follow the epoch's last."""
        epoch, step = self.now.epoch + 1, self.now.step_in_epoch + 1
        return f"step {step} of epoch {epoch}" if step <= self.steps else f"the evaluation of epoch {epoch}"

    def join(self) -> None:
        """Order further work on the device after the steps so far."""
        if isinstance(self.step, CapturedStep):
            self.step.join()

    def save_steps(self) -> None:
        """Save the steps since the epoch began or was resumed, if there are any."""
        if self.samples_seen and self.consistent:
            self.join()
            self._raise_if_nonfinite()
            self._save()
            self.saved = time.monotonic()

    def training_totals(self) -> TrainingTotals:
        """Return the totals of the epoch's steps; here the host waits for the device."""
        self._raise_if_nonfinite()
        sums = dict(zip(self.train.metrics.names, summed(self.now.sums, self.accelerator).tolist(), strict=True))
        return TrainingTotals(sums, time.monotonic() - self.began, memory.peak(self.device))

    def end_epoch(self, totals: TrainingTotals) -> records.Epoch:
        """Evaluate, save, and return the record; several processes evaluate the first one's buffers, which it saves."""
        share_buffers(self.train.distiller, but=self.train.unsynchronised)
        if self.train.average is not None:
            share(self.train.average.buffers)
        with self._judged():
            evaluations = {held.name: self._evaluate(held) for held in self.job.held_out}
        with self.undivided():
            return self._record_epoch(totals, evaluations)

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Enter this for what is done with the student's weights as they are judged and kept: the average, if any."""
        average, was = self.train.average, self.consistent
        if average is None:
            yield
            return
        self.consistent = False
        own = average.lend()
        try:
            yield
        finally:
            with nullcontext() if self.agreement.several else uninterrupted():
                average.take_back(own)
                self.consistent = was

    @property
    def done(self) -> bool:
        """Whether the fit is over: after its last epoch, or an earlier one by which it stops."""
        stopping = self.settings.early_stopping
        early = stopping is not None and reason_to_stop(self.history, stopping) is not None
        return self.now.epoch >= self.settings.epochs or early

    def end(self) -> None:
        """Leave the student with the weights that it is judged by, once the fit is over."""
        stopping, keep = self.settings.early_stopping, self.job.keep
        if stopping is not None and stopping.keep == "best" and keep is not None:
            best = by_main(lambda: safetensors.torch.load(keep.read_best()))
            for name, tensor in trained_state(self.job.distiller.student).items():
                tensor.copy_(best[name])
        elif self.train.average is not None:
            self.train.average.give()

    def agree(self, *, ends: bool) -> None:
        """Stop between epochs if several processes agree to; ``ends`` if no epoch follows."""
        if self.agreement.several:
            self.agreement.meet(before=self.next_step, ends=ends)

    def _evaluate(self, held: EvalSet) -> records.EvaluationMeans:
        evaluation = evaluate(
            self.train.distiller.student,
            held.batches,
            device=self.device,
            precision=self.settings.precision,
            channels_last=self.settings.channels_last,
            who="student",
            teacher=held.teacher and held.teacher.logits,
            gamma=self.train.distiller.objective.target_gamma,
            text_bytes=held.text_bytes,
            metric=held.metric,
        )
        if self.now.epoch == 0 and evaluation.answers_alike:
            expected = "answers that differ from sample to sample"
            counted = records.measure(evaluation.of_task()).counted
            all_of = f"all {evaluation.samples} {held.name} {counted}"
            got = f"the same logits for {all_of}: its units are dead, or see nothing"
            instead = "lower optimizer.lr, type schedule.warmup=1, or look at its activations and its first weights"
            warnings.warn(message("student after epoch 1", expected, got, instead), stacklevel=2)
        return evaluation.means(held.name)

    def _record_epoch(
        self, totals: TrainingTotals, evaluations: Mapping[str, records.EvaluationMeans]
    ) -> records.Epoch:
        now, job = self.now, self.job
        elapsed = time.monotonic() - self.began
        shares = gathered_objects(_Share(self.samples_seen, totals.memory, totals.seconds, elapsed, evaluations))
        memories = [share.memory for share in shares if share.memory is not None]
        samples, (_, _, training, seconds, evaluations) = [share.samples for share in shares], shares[0]
        rate = self._rate(self.steps - 1)  # Resumed after the last step, the epoch has had no step here.
        now.epoch += 1
        now.step_in_epoch = 0
        record: records.Epoch = {
            "stage": self.stage,
            "epoch": now.epoch,
            "step": now.step,
            "learning_rate": rate,
            "train": self.train.metrics.means(totals.sums, has_teacher=job.uses_teacher),
            "validation": evaluations.get("validation"),
            "test": evaluations.get("test"),
            "images_per_second": sum(samples) / max(training, 1e-9),
            "seconds": seconds,
            "memory_mb": max(memories, default=None),
            "skipped_steps": int(totals.sums["skipped"]),
        }
        if self.agreement.several:
            record["samples_by_rank"] = samples
        if now.loss_scale is not None:
            record["overflowed_steps"] = int(now.loss_scale.overflows)
        self.history.append(record)
        self.train.copy_back()
        # The first held-out set decides which weights are best.
        merit = records.merit(next(iter(evaluations.values()))) if evaluations else None
        if merit is not None and (self.to_beat is None or merit > self.to_beat):
            self.to_beat = merit
            if job.keep is not None:
                self._save_best(job.keep)
        self.in_epoch, self.samples_seen = False, 0
        now.clear()
        self._save()
        return record

    def _save_best(self, keep: CheckpointSink) -> None:
        """Write the weights that did best so far."""
        weights = trained_state(self.job.distiller.student)

        def write() -> str | None:
            keep.checkpoints.write(keep.best, to_bytes(weights))
            return records.digest(keep.best)

        with self._judged():
            digest = by_main(write)
        if keep.run is not None:
            keep.run["best"] = digest

    def _raise_if_nonfinite(self) -> None:
        """Stop the run after a non-finite step, unless such steps are to be skipped."""
        now = self.now
        if self.settings.nonfinite == "skip" or (log := now.nonfinite_log.tolist())[0] < 0:
            return
        values = now.nonfinite_values.tolist()
        if self.agreement.several:  # All have logged this step, each its own share of it.
            log, values = combined(gathered_objects((log, values)))
        raise_nonfinite(
            log,
            values,
            distiller=self.train.distiller,
            settings=self.settings,
            with_gradient=self.train.with_gradient,
            epoch=now.epoch,
            step_in_epoch=log[0] - (now.step - now.step_in_epoch),
            steps=self.steps,
            stage=self.stage,
        )

    @property
    def to_be_captured(self) -> bool:
        """Whether steps may or must be captured."""
        if self.plan is not None:
            return self.plan.graph
        return self._reason_eager() is None

    @property
    def steps_left(self) -> int:
        """Number of remaining steps of the fit."""
        return self.total_steps - self.position

    @property
    def position(self) -> int:
        """Number of steps before the next one, if all were taken with as many processes as now."""
        return self.now.epoch * self.steps + self.now.step_in_epoch

    def _check_batches(self, batch: Batch) -> None:
        """Refuse, before the first step, batches of this size if one of an epoch is too small to be computed."""
        if self.samples is None:
            return
        world, accumulate = self.accelerator.num_processes, self.settings.accumulate
        batch_size, objective = sum(gathered_objects(len(batch.index))), self.job.distiller.objective
        least = {"the objective": objective.needs.min_batch}
        if smallest_share(self.samples, batch_size, world=world, accumulate=accumulate) == 1:
            sizes = (1, len(split_batch(batch, accumulate)[0].index))
            student = self.job.distiller.student
            device, inputs = next(student.parameters()).device, inputs_for(student, batch.inputs, "student")
            probe = map_views(lambda view: view[:PROBED].to(device), inputs)
            size, layer = smallest_batch(student, "student", probe, sizes, settings=self.settings)
            least["the student" + f", its {layer}" * bool(layer)] = size
        check_batches(self.samples, batch_size, least, world=world, accumulate=accumulate)

    def _adopt(self, plan: ComputePlan) -> None:
        """Compute by a plan from now on, and record it."""
        self.plan = plan
        self.train.student.use(plan)
        if self.job.keep is not None and self.job.keep.announce is not None:
            self.job.keep.announce(plan.to_json())

    def _choose_plan(
        self, batch: Batch, teacher: PlannedTeacher | None, outputs: Teacher | None, *, apart: bool
    ) -> ComputePlan:
        """Choose how steps are computed; measuring leaves state and generators unchanged."""
        wanted, reason = self.settings.graphs, self._reason_eager(batch)
        if reason is None:
            plan = _choose_captured_plan(self, batch, teacher, outputs, apart=apart)
            said = plan.reasons["graph"]
            reason = said if not plan.graph and (wanted is True or said.startswith(NOT_CAPTURED)) else None
        else:
            plan = _choose_eager_plan(self.train, batch, teacher, steps=self.steps_left, shared=outputs is not None)
            if wanted == "auto" and self.device.type not in CAPTURES:
                return plan
            plan = replace(plan, reasons={**plan.reasons, "graph": reason})
        self._warn_eager(reason)
        return plan

    def _reason_eager(self, batch: Batch | None = None) -> str | None:
        """Return why steps are not captured, if that is known beforehand."""
        return _OFF if self.settings.graphs is False else self.group_reason or reason_eager(self.train, batch)

    def _warn_eager(self, reason: str | None) -> None:
        """Warn why steps are not captured, unless that was the choice."""
        if reason not in (None, _OFF):
            warnings.warn(
                f"graphs: expected to capture a step, got {reason}; it is computed eagerly (graphs=false says so "
                "beforehand)",
                stacklevel=2,
            )

    def _capture(self, plan: ComputePlan, batch: Batch, teacher: Teacher | None, *, apart: bool) -> None:
        """Capture the step of a resumed run, as before."""
        reason = self._reason_eager(batch)
        try:
            if reason is None:
                self.step = CapturedStep(self.train, batch, teacher, apart=apart)
                return
        except NotCapturableError as error:
            reason = str(error)
        self._warn_eager(reason)
        self.step = train_step
        self._adopt(replace(plan, graph=False, reasons={**plan.reasons, "graph": reason}))

    def _save(self) -> None:
        """Write a checkpoint from which the run resumes with the same bits."""
        keep, now = self.job.keep, self.now
        if keep is None:
            return
        tensors, state = self.train.packed()
        name = f"{self.stage:02d}-{now.step:09d}"
        shards = {key: tensors.pop(key) for key in list(tensors) if isinstance(tensors[key], DTensor)}
        digests = keep.checkpoints.save_shards(name, shards)
        state |= {
            "schema": records.SCHEMA,
            "stage": self.stage,
            "history": self.history,
            "to_beat": self.to_beat,
            "choices": dict(keep.choices),
            "speed": self.plan.to_json() if self.plan else None,
            "run": keep.run,
        }
        by_main(lambda: keep.checkpoints.save(name, tensors, state, digests))

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint of this stage."""
        state = checkpoint.state
        self.train.unpack(checkpoint)
        self.history, self.to_beat = [*state["history"]], state["to_beat"]
        # Checkpoints of older versions were computed eagerly.
        plan = ComputePlan.from_json(state["speed"]) if state.get("speed") else ComputePlan()
        if self.train.recomputed:  # The key may be new.
            plan = replace(plan, student_compiled=False, graph=False, products=())
        if self.settings.shard != "none" and self.accelerator.num_processes > 1 and plan.loss_form == "last_layer":
            plan = replace(plan, loss_form="plain")
        self._adopt(plan)


def _require_choice(job: FitJob) -> None:
    """Refuse to stop early without a set that decides, or to keep best weights nowhere."""
    if BY not in (held.name for held in job.held_out):
        raise InvalidValueError("early_stopping", f"a {BY} set among held_out", "none", "add one, or leave it out")
    if job.settings.early_stopping and job.settings.early_stopping.keep == "best" and job.keep is None:
        instead = "give a CheckpointSink, or type early_stopping.keep=last"
        raise InvalidValueError("early_stopping.keep", "a place for the best weights", "none", instead)


def _choose_captured_plan(
    state: FitState, batch: Batch, teacher: PlannedTeacher | None, outputs: Teacher | None, *, apart: bool
) -> ComputePlan:
    """Choose among whole steps if they can be captured: eager, as a graph, and either with compiled networks."""
    train, settings, asked = state.train, state.settings, outputs or teacher
    given = teacher.plan if teacher is not None and outputs is not None and teacher.plan else ComputePlan()
    wanted = [*_wanted(settings), settings.graphs, settings.compile_teacher]
    if reason := reason_unmeasured(state.steps_left, 1, wanted):
        return ComputePlan(reasons={"student": reason, "graph": reason}).after(given)
    steps: dict[str, Callable[[TrainState, Batch, Teacher | None], None]] = {}

    def use(plan: ComputePlan) -> None:
        train.student.use(plan)
        if teacher is not None and outputs is None:
            teacher.use(plan)
        key = str(replace(plan, reasons={}))
        if key not in steps:
            steps[key] = CapturedStep(train, batch, asked, apart=apart) if plan.graph else train_step
        state.step = steps[key]

    def step() -> None:
        state.step(train, batch, asked)

    before = Snapshot(train, batch)
    piece = split_batch(batch, settings.accumulate)[0]
    trials = Trials(step, use, state.steps_left, piece, train.device)
    may_leave_out = train.student.may_leave_logits_out(settings.loss_form, piece)
    own = teacher if outputs is None else None
    refusal = partial(_refuses_last_layers, train, piece, own) if may_leave_out else None
    try:
        train.student.take_last_layer(trials, settings.loss_form, refusal)
        if settings.gradient_products is True:
            trials.attempt_products(True)
        else:  # They save CPU time.
            trials.reasons["products"] = "not tried where steps may be captured"
        if trials.is_open("graph", settings.graphs):
            trials.attempt("graph", settings.graphs, replace(trials.plan, graph=True), after="as a graph")
        train.student.attempt_losses(trials, settings.loss_form, refusal)
        alone = teacher is not None and outputs is None and teacher.compiles
        if trials.plan.loss_form == "last_layer":
            trials.reasons["student"] = trials.reasons["teacher"] = "not tried with last_layer losses"
            return trials.chosen().after(given)
        if alone and trials.is_open("teacher", settings.compile_teacher):
            candidate = replace(trials.plan, teacher_compiled=True)
            trials.attempt("teacher", settings.compile_teacher, candidate, after="with a compiled teacher")
        if trials.is_open("student", settings.compile_student):
            candidate = replace(trials.plan, student_compiled=True)
            trials.attempt("student", settings.compile_student, candidate, after="with a compiled student")
    finally:
        before.restore()
    return trials.chosen().after(given)


def _choose_eager_plan(
    train: TrainState, batch: Batch, teacher: PlannedTeacher | None, *, steps: int, shared: bool
) -> ComputePlan:
    """Choose how teacher and student are computed for this many steps; measuring changes no state or generator."""
    settings, processes = train.settings, train.accelerator.num_processes
    if train.recomputed:  # Products and compiled forms would have to be those of the recomputation too.
        settings = replace(settings, compile_student=False, gradient_products=False)
    piece = split_batch(batch, settings.accumulate)[0]
    teacher_plan = ComputePlan() if teacher is None else teacher.choose_plan(piece, steps=steps, processes=processes)
    if reason := reason_unmeasured(steps, processes, _wanted(settings)):
        return ComputePlan(reasons={"student": reason}).after(teacher_plan)
    totals, samples = step_totals(piece, train.accelerator, settings.precision), len(piece.index)

    @cache
    def outputs() -> Outputs | None:
        return teacher(piece) if teacher is not None else None

    may_leave_out = train.student.may_leave_logits_out(settings.loss_form, piece)
    own = None if shared else teacher
    refusal = partial(_refuses_last_layers, train, piece, own) if may_leave_out else None

    def use(plan: ComputePlan) -> None:
        train.student.use(plan)
        if own is not None and may_leave_out:
            own.use(plan.after(teacher_plan))

    def step() -> None:
        # The teacher's last layer is a part of what is measured, if it may be left out.
        teacher_outputs = own(with_own_inputs(piece)) if own is not None and may_leave_out else outputs()
        inputs = with_own_inputs(piece)  # A student may write into its inputs.
        with train.forward_context(samples):
            # As in steps: losses compiled for numbers on the host would be compiled again in the first step.
            output = train.module(inputs, teacher_outputs, train.now.progress, totals)
        output.loss.total.backward()
        for term in train.stateful_terms:
            term.commit(torch.zeros((), dtype=torch.bool, device=train.device))

    with unchanged(train.distiller, train.device):
        plan = train.student.choose_plan(Trials(step, use, steps, piece, train.device), settings, refusal)
    if plan.loss_form == "last_layer":
        teacher_plan = replace(teacher_plan, teacher_compiled=False)
    return plan.after(teacher_plan)


def _refuses_last_layers(train: TrainState, piece: Batch, teacher: PlannedTeacher | None) -> str | None:
    """Return why the networks' last layers cannot be left to the objective, if that is so; each is called twice."""
    if reason := train.distiller.objective.refuses_hidden(piece):
        return reason
    if teacher is None or teacher.last_layer is None:
        return "a teacher that is not called for this student alone"
    layers = {"student": train.student.found_last_layer, "teacher": teacher.last_layer}
    if layers["student"].is_within(train.recomputed):
        return "a student's last layer in a block that is computed again"
    own, device = with_own_inputs(piece), train.device
    with unchanged(train.distiller, device), mixed_precision(device, train.settings.precision):
        for who, layer in layers.items():
            again = partial(restore_random, *random_state(device), device)
            probe = map_views(lambda view: view[:PROBED], inputs_for(layer.network, own.inputs, who))
            if reason := layer.misfit(probe, again=again):
                return f"{who}: {reason}"
    return None


def _wanted(settings: FitSettings) -> list[Switch]:
    """Return the requested forms of the student's part."""
    return [settings.compile_student, settings.gradient_products, settings.loss_form not in ("auto", "plain")]
