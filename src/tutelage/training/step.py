"""One fit: its state, and the steps that change it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tutelage import records
from tutelage.modules import Distiller, StepOutput
from tutelage.settings.fit import FitSettings
from tutelage.training import optim
from tutelage.training.checkpoints import Checkpoint, CheckpointSink, to_bytes
from tutelage.training.compile import CompiledForms, ComputePlan, choose_plan, reason_unmeasured, unchanged
from tutelage.training.distributed import keep_from_broadcast, step_totals
from tutelage.training.evaluate import EvalSet, collect_outputs, summarize
from tutelage.training.metrics import EpochMetrics
from tutelage.training.state import RngState, optimizer_state, random_state, restore_optimizer, restore_random, under
from tutelage.types import Batch, Outputs, Progress, StatefulTerm, Teacher, Totals


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """One student, and how it is trained; what differs between several that are fitted together."""

    distiller: Distiller  # the student with its objective
    settings: FitSettings  # how to train it
    asks: bool = True  # whether it gets the teacher's outputs; an objective that needs none may do without
    held_out: Sequence[EvalSet] = ()  # as for `fit`, and so are the next three
    keep: CheckpointSink | None = None  # where its state goes
    to_beat: float | None = None  # the best accuracy of earlier stages
    resume: Checkpoint | None = None  # a checkpoint to resume from
    rng: RngState | None = None  # its random generators; none where it is the only one and draws from the process's


class FitState:
    """The state of one fit, and the steps that change it."""

    def __init__(self, job: FitJob, teacher: Teacher | None, accelerator: Accelerator, *, stage: int) -> None:
        distiller, settings = job.distiller, job.settings
        if settings.accumulate > 1 and distiller.objective.needs.coupled:
            raise ValueError(
                f"accumulate: expected 1 for an objective that couples a batch's samples, got {settings.accumulate}; "
                "its value would change with the micro-batches: type accumulate=1"
            )
        self.device = accelerator.device
        self.accelerator, self.settings = accelerator, settings
        self.held_out, self.keep, self.stage = job.held_out, job.keep, stage
        self.has_teacher = teacher is not None and job.asks
        for module in (distiller, teacher if job.asks else None):
            if isinstance(module, nn.Module):
                module.to(self.device)
                if settings.channels_last:
                    module.to(memory_format=torch.channels_last)
        self.module = distiller
        self.optimizer = optim.build(settings.optimizer, distiller, self.device)
        self.stateful_terms: list[StatefulTerm] = [
            term for term in distiller.objective.terms.values() if isinstance(term, StatefulTerm)
        ]
        terms = [cast(nn.Module, term) for term in self.stateful_terms]
        owned = {id(buffer) for term in terms for buffer in term.buffers()}
        keep_from_broadcast(distiller, [name for name, buffer in distiller.named_buffers() if id(buffer) in owned])
        self.wrapped, self.prepared = accelerator.prepare(distiller, self.optimizer)
        self.buffers = [buffer for buffer in distiller.buffers() if id(buffer) not in owned]
        self.metrics = EpochMetrics(distiller.objective, self.device)
        self.epoch = self.step = self.step_in_epoch = self.trained = 0
        self.rate, self.begun_at, self.saved_at = 0.0, -1.0, 0.0
        self.history: list[records.Epoch] = []
        self.to_beat = job.to_beat
        self.forms = CompiledForms(distiller.student, None)
        self.speed: ComputePlan | None = None
        if job.resume is not None:
            self.restore(job.resume)

    def begin_epoch(self, now: float) -> None:
        """Begin an epoch, or what is left of it, at a time of the monotonic clock."""
        self.begun_at = self.saved_at = now
        self.trained = 0
        self.module.train()

    def do_step(self, batch: Batch, teacher_outputs: Iterable[Outputs | None], steps: int) -> None:
        """Take the next of an epoch's steps, read the log and save where that is due."""
        settings = self.settings
        self.rate = optim.learning_rate(
            settings.schedule,
            settings.optimizer.lr,
            epoch=self.epoch,
            begin=self.step_in_epoch / steps,
            end=(self.step_in_epoch + 1) / steps,
            epochs=settings.epochs,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        progress = Progress(self.epoch, self.step, self.step / (steps * settings.epochs))
        self.take_step(batch, teacher_outputs, progress)
        self.trained += len(batch.index)
        self.step += 1
        self.step_in_epoch += 1
        if self.step % settings.log_steps == 0:
            self.raise_if_nonfinite()
        now = time.monotonic()
        due = settings.checkpoint_steps and self.step_in_epoch % settings.checkpoint_steps == 0
        if self.step_in_epoch < steps and (due or now - self.saved_at > settings.checkpoint_seconds):
            self.raise_if_nonfinite()
            self.save()
            self.saved_at = time.monotonic()

    def end_training(self) -> dict[str, float]:
        """Return the epoch's sums over all processes; here the host waits for the device."""
        self.raise_if_nonfinite()
        return dict(zip(self.metrics.names, self.accelerator.reduce(self.metrics.sums).tolist(), strict=True))

    def end_epoch(self, sums: Mapping[str, float], ended: float, taken: float | None) -> records.Epoch:
        """Evaluate, keep, and return the record; training ended at this time of the monotonic clock, at this peak."""
        began, seconds, self.begun_at = self.begun_at, ended - self.begun_at, -1.0
        evaluations = {}
        for held in self.held_out:
            outputs = collect_outputs(
                self.module.student,
                held.batches,
                device=self.device,
                precision=self.settings.precision,
                channels_last=self.settings.channels_last,
                who="student",
            )
            gamma = self.module.objective.target_gamma
            evaluations[held.name] = summarize(held.name, outputs, held.teacher, gamma=gamma)
        self.epoch += 1
        self.step_in_epoch = 0
        record: records.Epoch = {
            "stage": self.stage,
            "epoch": self.epoch,
            "step": self.step,
            "learning_rate": self.rate,
            "train": self.metrics.means(sums, has_teacher=self.has_teacher),
            "validation": evaluations.get("validation"),
            "test": evaluations.get("test"),
            "images_per_second": self.trained * self.accelerator.num_processes / max(seconds, 1e-9),
            "seconds": time.monotonic() - began,
            "memory_mb": taken,
            "skipped_steps": int(sums["skipped"]),
        }
        self.history.append(record)
        # The first held-out set is the one that the best weights are chosen by.
        accuracy = next(iter(evaluations.values()))["accuracy"] if evaluations else None
        if accuracy is not None and (self.to_beat is None or accuracy > self.to_beat):
            self.to_beat = accuracy
            if self.keep is not None and self.accelerator.is_main_process:
                student = self.module.student
                weights = getattr(student, "network", student).state_dict()
                self.keep.checkpoints.write(self.keep.best, to_bytes(weights))
        self.metrics.clear()
        self.save()
        return record

    def take_step(self, batch: Batch, teacher_outputs: Iterable[Outputs | None], progress: Progress) -> None:
        """Do one optimizer step; a non-finite one is counted, logged and not applied. The host waits for nothing.

        The batch is on the device; the teacher's outputs are those for its micro-batches, in their order.
        """
        settings = self.settings
        totals = step_totals(batch, self.accelerator)
        before = [b.clone() for b in self.buffers]
        pieces = split_batch(batch, settings.accumulate)
        sums = torch.zeros_like(self.metrics.sums)
        suspects = []
        for i, (piece, teacher) in enumerate(zip(pieces, teacher_outputs, strict=True)):
            last = i == len(pieces) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                output = self.learn(piece, teacher, progress, totals)
            share, suspect = self.metrics.measure(piece, teacher, output, totals)
            sums += share
            suspects.append(suspect)
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite = torch.isfinite(norm) & torch.isfinite(sums[0])
        if settings.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
        self.apply(finite, before)
        self.metrics.add(sums, finite, torch.cat(suspects), batch.index, step=self.step)

    def learn(self, piece: Batch, teacher: Outputs | None, progress: Progress, totals: Totals) -> StepOutput:
        """Run the student on a micro-batch, forward and backward."""
        samples = len(piece.index)
        self.module.called = self.forms.student(samples)
        bf16 = self.settings.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16), self.forms.gradients(samples):
            output: StepOutput = self.wrapped(piece, teacher, progress, totals)
        self.accelerator.backward(output.loss.total)
        return output

    def unmeasured(self, steps: int) -> str | None:
        """Return why nothing is to be measured of the student, if so."""
        wanted = self.settings.compile_student, self.settings.gradient_products
        return reason_unmeasured(steps, self.accelerator.num_processes, wanted)

    def choose_plan(self, piece: Batch, teacher: Outputs | None, steps: int, teacher_plan: ComputePlan) -> None:
        """Choose once how the student is computed, on its first micro-batch; state and generators stay as they are."""
        settings = self.settings
        if reason := self.unmeasured(steps):
            plan = ComputePlan(reasons={"student": reason})
        else:
            totals = step_totals(piece, self.accelerator)

            def step() -> None:
                self.learn(piece, teacher, Progress(), totals)
                for term in self.stateful_terms:
                    term.commit(torch.zeros((), dtype=torch.bool, device=self.device))

            samples = len(piece.index)
            with unchanged(self.module, self.device):
                plan = choose_plan(settings, self.forms, step=step, steps=steps, samples=samples, device=self.device)
        self.adopt(plan.after(teacher_plan))

    def adopt(self, plan: ComputePlan) -> None:
        """Compute by a plan, and record it."""
        self.speed = plan
        self.forms.take(plan)
        if self.keep is not None and self.keep.announce is not None:
            self.keep.announce(plan.to_json())

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
        for term in self.stateful_terms:
            term.commit(finite)
        self.prepared.zero_grad()

    def raise_if_nonfinite(self) -> None:
        """Stop the run after a non-finite step, unless such steps are to be skipped."""
        if self.settings.nonfinite != "skip":
            self.metrics.raise_if_nonfinite(stage=self.stage)

    def save(self) -> None:
        """Write a checkpoint from which the run resumes with the same bits."""
        if self.keep is None or not self.accelerator.is_main_process:
            return
        moments, optimizer = optimizer_state(self.optimizer)
        generators, rng = random_state(self.device)
        tensors = {
            **{f"lesson.{name}": tensor for name, tensor in self.module.state_dict().items()},
            **moments,
            "sums": self.metrics.sums,
            "blame": self.metrics.nonfinite_log,
            **generators,
        }
        state = {
            "stage": self.stage,
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "optimizer": optimizer,
            "rng": rng,
            "history": self.history,
            "to_beat": self.to_beat,
            "choices": dict(self.keep.choices),
            "speed": self.speed.to_json() if self.speed else None,
        }
        self.keep.checkpoints.save(f"{self.stage:02d}-{self.step:09d}", tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint of this stage."""
        tensors, state = checkpoint
        self.module.load_state_dict(under("lesson.", tensors))
        restore_optimizer(self.optimizer, checkpoint)
        self.epoch, self.step, self.step_in_epoch = state["epoch"], state["step"], state["step_in_epoch"]
        self.history, self.to_beat = state["history"], state["to_beat"]
        self.metrics.sums = tensors["sums"].to(self.device)
        self.metrics.nonfinite_log = tensors["blame"].to(self.device)
        # Checkpoints of older versions were computed eagerly.
        self.adopt(ComputePlan.from_json(state["speed"]) if state.get("speed") else ComputePlan())
        restore_random(tensors, state["rng"], self.device)


def split_batch(batch: Batch, pieces: int) -> list[Batch]:
    """Cut a batch into micro-batches."""
    if pieces == 1:
        return [batch]
    parts = zip(*(tensor.chunk(pieces) for tensor in batch), strict=True)
    return [Batch(*part) for part in parts]
