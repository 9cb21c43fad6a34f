"""The training loop: a generator that yields one record an epoch.

It names no method, model or data set. It saves before it yields; whoever iterates logs, plots or stops.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from tutelage import losses, records, targets
from tutelage.contracts import UNLABELLED, Batch, Batches, Keeper, Outputs, Progress, Teacher, Totals
from tutelage.engine import memory, optimise, speed
from tutelage.engine.checkpoints import Checkpoints, Saved
from tutelage.engine.evaluate import NAMED, HeldOut, NonFiniteError, answer, means, place
from tutelage.engine.settings import FitSettings
from tutelage.engine.until import OutOfTimeError, Until
from tutelage.lesson import Lesson, Taught


class Keep(NamedTuple):
    """Where a run's state goes.

    Attributes:
        checkpoints: of the run.
        best: the file for the weights that did best on the selection set.
        choices: facts that exact resume depends on; a resumed run warns where they differ.
        announce: is told how the fit is computed (`speed.Speed`, as JSON holds it) once that is settled.
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


def fit(
    lesson: Lesson,
    teacher: Teacher | None,
    batches: Batches,
    settings: FitSettings,
    *,
    accelerator: Accelerator,
    held_out: Sequence[HeldOut] = (),
    keep: Keep | None = None,
    stage: int = 0,
    to_beat: float | None = None,
    resume: Saved | None = None,
    until: Until | None = None,
) -> Iterator[records.Epoch]:
    """Train a lesson, yielding a record after every epoch.

    Args:
        lesson: the student with its objective.
        teacher: asked about every batch; none where the objective needs none.
        batches: the training set.
        settings: how to train.
        accelerator: where.
        held_out: sets to evaluate the student on after every epoch; the first is the one that ``best`` is chosen by.
        keep: where checkpoints and the best weights go; none to keep nothing.
        stage: a number that orders the fits of one run.
        to_beat: the best accuracy of earlier stages, a fraction.
        resume: a checkpoint of this stage to go on from.
        until: the moment to stop by; none to train to the end.

    Raises:
        NonFiniteError: a loss or gradient was not finite and ``settings.nonfinite`` is ``stop``.
        CheckpointError: a checkpoint could not be written.
        OutOfTimeError: the moment to stop has come; a checkpoint is written.
    """
    if until is not None and accelerator.num_processes > 1:
        raise ValueError(
            f"until: expected none where several processes train together, got one for {accelerator.num_processes}: "
            "each would stop at a step of its own; leave it out"
        )
    fitting = _Fit(lesson, teacher, batches, settings, accelerator, held_out, keep, stage, to_beat)
    fitting.until = until
    if resume is not None:
        fitting.restore(resume)
    try:
        while fitting.epoch < settings.epochs:
            yield fitting.run_epoch()
    finally:
        # The one accelerator of the process would keep the lesson and its optimizer.
        accelerator.free_memory()


class _Fit:
    """The state of one fit, and the steps that change it."""

    def __init__(
        self,
        lesson: Lesson,
        teacher: Teacher | None,
        batches: Batches,
        settings: FitSettings,
        accelerator: Accelerator,
        held_out: Sequence[HeldOut],
        keep: Keep | None,
        stage: int,
        to_beat: float | None,
    ) -> None:
        if settings.accumulate > 1 and lesson.objective.needs.coupled:
            raise ValueError(
                f"accumulate: expected 1 for an objective that couples a batch's samples, got {settings.accumulate}; "
                "its value would change with the micro-batches: type accumulate=1"
            )
        self.device = accelerator.device
        self.accelerator, self.settings, self.batches = accelerator, settings, batches
        self.held_out, self.keep, self.stage = held_out, keep, stage
        self.teacher = teacher.to(self.device) if isinstance(teacher, nn.Module) else teacher
        lesson.to(self.device)
        if settings.channels_last:
            _convolutions_last(lesson)
            if isinstance(self.teacher, nn.Module):
                _convolutions_last(self.teacher)
        self.bare = lesson
        self.optimizer = optimise.build(settings.optimizer, lesson, self.device)
        self.keepers = [term for term in lesson.objective.terms.values() if isinstance(term, Keeper)]
        guarded = {id(buffer) for keeper in self.keepers for buffer in cast(nn.Module, keeper).buffers()}
        # DDP would send these from the first process to the others before every step.
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            lesson, [name for name, buffer in lesson.named_buffers() if id(buffer) in guarded]
        )
        self.module, self.prepared = accelerator.prepare(lesson, self.optimizer)
        self.buffers = [buffer for buffer in lesson.buffers() if id(buffer) not in guarded]
        self.gamma = lesson.objective.target_gamma
        counted = ("correct", "labelled", "entropy", "kl", "agree", "samples", "skipped")
        self.names = ("loss", *lesson.objective.names, *counted)
        self.epoch = self.step = self.step_in_epoch = 0
        self.history: list[records.Epoch] = []
        self.to_beat = to_beat
        self.forms = speed.Forms(lesson.student, self.teacher)
        self.speed: speed.Speed | None = None
        self.until: Until | None = None
        self.clear()

    def clear(self) -> None:
        """Start an epoch's sums; they stay on the device until the epoch ends."""
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self.blame = torch.full((2 + NAMED,), -1, dtype=torch.int64, device=self.device)

    def run_epoch(self) -> records.Epoch:
        """Train one epoch, evaluate, keep, and return the record."""
        started, trained = time.monotonic(), 0
        saved = started
        rate = 0.0
        steps = len(self.batches)
        stream = self.batches.epoch(
            self.epoch,
            start=self.step_in_epoch,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        self.bare.train()
        memory.restart(self.device)
        for batch in stream:
            self.stop_in_time(steps)
            if self.speed is None:
                self.choose_speed(batch, steps * self.settings.epochs - self.step)
            rate = self.set_rate(self.step_in_epoch, steps)
            self.take_step(batch, Progress(self.epoch, self.step, self.step / (steps * self.settings.epochs)))
            trained += len(batch.index)
            self.step += 1
            self.step_in_epoch += 1
            if self.step % self.settings.log_steps == 0:
                self.look()
            now = time.monotonic()
            due = self.settings.checkpoint_steps and self.step_in_epoch % self.settings.checkpoint_steps == 0
            if self.step_in_epoch < steps and (due or now - saved > self.settings.checkpoint_seconds):
                self.look()
                self.save()
                saved = time.monotonic()
        self.look()
        sums = dict(zip(self.names, self.accelerator.reduce(self.sums).tolist(), strict=True))
        seconds, taken = time.monotonic() - started, memory.peak(self.device)
        evaluations = {held.name: self.evaluate(held) for held in self.held_out}
        if self.until is not None:
            self.until.evaluation = time.monotonic() - started - seconds
        self.epoch += 1
        self.step_in_epoch = 0
        record: records.Epoch = {
            "stage": self.stage,
            "epoch": self.epoch,
            "step": self.step,
            "learning_rate": rate,
            "train": self.train_means(sums),
            "validation": evaluations.get("validation"),
            "test": evaluations.get("test"),
            "images_per_second": trained * self.accelerator.num_processes / max(seconds, 1e-9),
            "seconds": time.monotonic() - started,
            "memory_mb": taken,
            "skipped_steps": int(sums["skipped"]),
        }
        self.history.append(record)
        self.keep_best(record)
        self.clear()
        self.save()
        return record

    def stop_in_time(self, steps: int) -> None:
        """Stop before a step that there is no time for; the epoch's last one has the evaluations after it."""
        if self.until is None:
            return
        last = self.step_in_epoch == steps - 1
        if not self.until.over(self.until.evaluation if last else 0.0):
            return
        if self.step_in_epoch:  # else there is nothing that the checkpoint after the epoch before lacks
            self.look()
            self.save()
        raise OutOfTimeError(f"stopped in time before step {self.step + 1} of stage {self.stage + 1}")

    def set_rate(self, step: int, steps: int) -> float:
        """Set the learning rate of one of an epoch's steps."""
        rate = optimise.learning_rate(
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

    def take_step(self, batch: Batch, progress: Progress) -> None:
        """Do one optimizer step; a non-finite one is counted, blamed and not applied. The host waits for nothing."""
        settings = self.settings
        batch = self.placed(batch)
        totals = self.count(batch)
        before = [b.clone() for b in self.buffers]
        pieces = _cut(batch, settings.accumulate)
        sums = torch.zeros_like(self.sums)
        suspects = []
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                answers = self.ask(piece)
                taught = self.learn(piece, answers, progress, totals)
            seen, suspect = self.measure(piece, answers, taught, totals)
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
        self.accuse(finite, torch.cat(suspects), batch.index)

    def placed(self, batch: Batch) -> Batch:
        """Move a batch to the device."""
        return Batch(
            batch.index.to(self.device, non_blocking=True),
            place(batch.inputs, self.device, channels_last=self.settings.channels_last),
            batch.labels.to(self.device, non_blocking=True),
        )

    def autocast(self) -> torch.autocast:
        """Enter the precision of the networks."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def ask(self, piece: Batch) -> Outputs | None:
        """Ask the teacher about a micro-batch; none where there is none."""
        with self.autocast():
            return self.forms.ask(piece)

    def learn(self, piece: Batch, answers: Outputs | None, progress: Progress, totals: Totals) -> Taught:
        """Run the student on a micro-batch, forward and backward."""
        self.bare.called = self.forms.student(len(piece.index))
        with self.autocast(), self.forms.gradients(len(piece.index)):
            taught: Taught = self.module(piece, answers, progress, totals)
        self.accelerator.backward(taught.loss.total)
        return taught

    def choose_speed(self, batch: Batch, steps: int) -> None:
        """Choose once how this fit is computed, on its first batch; state and generators stay as they are."""
        settings = self.settings
        wanted = speed.Wanted(settings.compile_teacher, settings.compile_student, settings.gradient_products)
        if self.accelerator.num_processes > 1 or (steps < speed.FEW and True not in wanted):
            # Each process would measure, and choose, for itself.
            self.settle(speed.Speed(why={"all": "several processes" if steps >= speed.FEW else "a short fit"}))
            return
        piece = _cut(self.placed(batch), settings.accumulate)[0]
        answers, totals = self.ask(piece), self.count(piece)

        def step() -> None:
            self.learn(piece, answers, Progress(), totals)
            for keeper in self.keepers:
                keeper.settle(torch.zeros((), dtype=torch.bool, device=self.device))

        with speed.unchanged(self.bare, self.device):
            chosen = speed.choose(
                wanted,
                self.forms,
                step=step,
                ask=(lambda: self.ask(piece)) if self.forms.network else None,
                steps=steps,
                samples=len(piece.index),
                device=self.device,
            )
        self.settle(chosen)

    def settle(self, chosen: speed.Speed) -> None:
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
        for keeper in self.keepers:
            keeper.settle(finite)
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
    def measure(self, batch: Batch, teacher: Outputs | None, taught: Taught, totals: Totals) -> tuple[Tensor, Tensor]:
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

    def accuse(self, finite: Tensor, suspect: Tensor, index: Tensor) -> None:
        """Remember the first non-finite step of the epoch, and its samples, on the device."""
        which = torch.where(suspect, index, -1).sort(descending=True).values[:NAMED]
        fresh = torch.full_like(self.blame, -1)
        fresh[0] = self.step
        fresh[1] = suspect.sum()
        fresh[2 : 2 + len(which)] = which
        self.blame = torch.where(~finite & (self.blame[0] < 0), fresh, self.blame)

    def look(self) -> None:
        """Read what the device has kept of non-finite steps; stop the run if that is what was asked for."""
        if self.settings.nonfinite == "skip":
            return
        step, count, *which = self.blame.tolist()
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

    def evaluate(self, held: HeldOut) -> records.EvaluationMeans:
        """Evaluate the student on a held-out set."""
        answers = answer(
            self.bare.student,
            held.batches,
            device=self.device,
            precision=self.settings.precision,
            channels_last=self.settings.channels_last,
            who="student",
        )
        return means(held.name, answers, held.teacher, gamma=self.gamma)

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
        tensors["sums"], tensors["blame"] = self.sums, self.blame
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

    def restore(self, saved: Saved) -> None:
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
        self.sums, self.blame = tensors["sums"].to(self.device), tensors["blame"].to(self.device)
        # Checkpoints of older versions were computed plainly.
        self.settle(speed.Speed.from_json(state["speed"]) if state.get("speed") else speed.Speed())
        restore_random(saved, self.device)


def restore_random(saved: Saved, device: torch.device) -> None:
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
