"""One run while it is being done: its checks, its records, and what the training loop needs for each stage."""

from __future__ import annotations

import contextlib
import errno
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tutelage import config, models, records
from tutelage.config.schema import Recipe, RecipeError
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Objective
from tutelage.runs import manifest, resume, setup
from tutelage.runs.run import RunOptions
from tutelage.runs.setup import RunInputs
from tutelage.teacher_cache.cache import CachedTeacher, TeacherCache
from tutelage.training.checkpoints import CheckpointError, Checkpoints, CheckpointSink
from tutelage.training.deadline import DeadlineExceeded
from tutelage.training.distributed import accelerator_on
from tutelage.training.evaluate import EvalOutputs, EvalSet, better_than_chance, collect_outputs, evaluate_outputs
from tutelage.training.state import RngState
from tutelage.training.step import FitJob
from tutelage.types import UNLABELLED, Batches, Teacher


class RunState:
    """One run while it is being done.

    Args:
        recipe: the run's, its precision chosen.
        folder: of the run.
        run_inputs: its data and networks.
        options: how it is done.
        earlier: the manifest of the part of the run that was done before, if there is one.
        precision_reason: what the precision was chosen by, where it was measured now.
        teacher_outputs: cache of the teacher's predictions on the evaluation sets, filled on first use.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        run_inputs: RunInputs,
        options: RunOptions,
        *,
        earlier: records.Manifest | None,
        precision_reason: str | None = None,
        teacher_outputs: dict[str, EvalOutputs] | None = None,
    ) -> None:
        self.recipe, self.folder, self.reporter, self.run_inputs = recipe, folder, options.reporter, run_inputs
        self.teacher_outputs = {} if teacher_outputs is None else teacher_outputs
        self.accelerator = accelerator_on(recipe.device)
        self.device = self.accelerator.device
        self.rng: RngState | None = None
        self.target_gamma: float | None = None
        self.started = time.monotonic()
        previous: dict[str, Any] = {**earlier} if earlier else {}
        self.seconds_before = previous.get("duration_s", 0.0)
        self.fits, self.objectives = recipe.fits(), run_inputs.objectives
        splits = run_inputs.splits
        setup.check_compatible(run_inputs)
        setup.check_last_batch(len(splits.train), self.objectives, self.fits, world=self.accelerator.num_processes)
        self.outputs: TeacherCache | None = None
        self.check_outputs()
        self.teacher = FrozenTeacher(run_inputs.teacher).to(self.device) if run_inputs.teacher else None
        first_of_group = not self.teacher_outputs
        self.held_out = [
            EvalSet(name, batches, self.ask_teacher(name, batches))
            for name, batches in setup.held_out_sets(splits, recipe)
        ]
        self.check_student()
        self.manifest: records.Manifest = {
            "schema": 1,
            "name": recipe.name,
            "verb": "distill" if recipe.teacher is not None else "train",
            "status": "running",
            "repeatable": run_inputs.repeatable,
            "started": previous.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
            "duration_s": self.seconds_before,
            "resumed": previous.get("resumed", -1) + 1,
            "command": manifest.without_paths(options.command),
            **manifest.version(),
            "hardware": manifest.hardware(self.device),
            "software": manifest.software(),
            "seeds": {
                "seed": recipe.seed,
                "data_seed": recipe.data_seed,
                "split_seed": recipe.data.split_seed,
            },
            "data": manifest.describe_data(splits),
            "teacher": self.describe_teacher(announce=first_of_group),
            "student": manifest.describe_network(run_inputs.student),
            "objective": [o.to_recipe() if run_inputs.repeatable else o.weights() for o in self.objectives],
            "objective_terms": [o.weights() for o in self.objectives],
            "precision": {
                "value": recipe.precision,
                "why": precision_reason or previous.get("precision", {}).get("why"),
            },
            "speed": previous.get("speed") or [{} for _ in self.fits],
            "objective_resolved": previous.get("objective_resolved") or [{} for _ in self.fits],
            "class": previous.get("class") or [],
            "selection": {"set": self.held_out[0].name, "metric": "accuracy", "reported": "last epoch"},
            "recipe": manifest.without_paths(recipe.model_dump(mode="json")) if run_inputs.repeatable else None,
            "notes": list(splits.notes),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        records.write_bytes(folder / records.RECIPE, config.dump(recipe).encode())
        records.write_json(folder / records.MANIFEST, self.manifest)

    def evaluation_outputs(self, who: str, network: torch.nn.Module, batches: Batches) -> EvalOutputs:
        """Return a network's outputs on an evaluation set."""
        precision, channels_last = self.recipe.precision, self.recipe.channels_last
        return collect_outputs(
            network, batches, device=self.device, precision=precision, channels_last=channels_last, who=who
        )

    def ask_teacher(self, name: str, batches: Batches) -> EvalOutputs | None:
        """Return the teacher's outputs on an evaluation set, which it is asked for once in a group of runs."""
        if self.teacher is None:
            return None
        if name not in self.teacher_outputs:
            self.teacher_outputs[name] = self.evaluation_outputs("teacher", self.teacher.network, batches)
        return self.teacher_outputs[name]

    def check_outputs(self) -> None:
        """Refuse recorded outputs that lack what a later epoch or stage will read."""
        if self.recipe.outputs is None or self.run_inputs.teacher is None:
            return
        self.outputs, epoch = setup.outputs_of(self.recipe, self.run_inputs), 0
        for objective, fit in zip(self.objectives, self.fits, strict=True):
            gamma = setup.single_exponent(objective) if self.outputs.form and objective.needs.teacher else None
            for _ in range(fit.settings.epochs):
                if objective.needs.teacher:
                    gammas = [] if gamma is None else [gamma]
                    self.outputs.require(epoch, objective.needs.teacher_taps, gammas=gammas)
                epoch += 1

    def record_group(self, names: Sequence[str]) -> None:
        """Record the runs that this one is trained beside."""
        self.manifest["class"] = list(dict.fromkeys([*self.manifest["class"], *names]))
        records.write_json(self.folder / records.MANIFEST, self.manifest)

    def check_student(self) -> None:
        """Refuse a student, perhaps the caller's own module, whose logits are not for the data's classes."""
        student, classes = self.run_inputs.student.to(self.device), self.run_inputs.splits.classes
        mode = student.training
        with torch.no_grad():
            logits = student.eval()(next(self.held_out[-1].batches.epoch(0)).inputs[:2].to(self.device))
        student.train(mode)
        if logits.shape[-1] != classes:
            raise RecipeError(
                f"student {student.card.name}: expected logits for the {classes} classes of the data, got "
                f"{logits.shape[-1]}; change its last layer"
            )

    def describe_teacher(self, *, announce: bool) -> dict[str, Any] | None:
        """Measure the teacher before the first step, say how good it is, and stop where it is no better than chance."""
        if self.teacher is None or self.run_inputs.teacher is None:
            return None
        test = self.held_out[-1]
        assert test.teacher is not None
        name, classes = self.run_inputs.teacher.card.name, self.run_inputs.splits.classes
        if (outputs := test.teacher.logits.shape[-1]) != classes:
            raise RecipeError(
                f"teacher {name}: expected logits for the {classes} classes of the data, got {outputs}; "
                "name a teacher that was trained on these classes"
            )
        better = better_than_chance(test.teacher)
        accuracy = evaluate_outputs(test.teacher)["accuracy"] if better is not None else None
        if accuracy is not None and announce:
            self.reporter.say(
                f"teacher {name}: accuracy {accuracy:.2%} on {len(test.teacher.labels)} {test.name} samples"
            )
        if better is False and not self.recipe.weak_teacher:
            raise RecipeError(
                f"teacher: expected one better than chance (1 in {test.teacher.logits.shape[-1]}), got an accuracy of "
                f"{accuracy:.2%}; check its weights and the order of its classes, or type weak_teacher=true to go on"
            )
        return {
            **manifest.describe_network(self.run_inputs.teacher),
            "accuracy": accuracy,
            "set": test.name,
            "mode": "eval",
            "answers": self.teacher_mode(),
        }

    def begin(self) -> None:
        """Read the checkpoint, if there is one, and seed."""
        checkpoints = Checkpoints(self.folder / records.CHECKPOINTS)
        self.checkpoint = checkpoints.load()
        choices = {
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "torch": torch.__version__,
            "deterministic": self.recipe.deterministic,
            "teacher": self.teacher_mode(),
        }
        self.sink = CheckpointSink(checkpoints, self.folder / records.BEST, choices)
        self.stage = 0
        self.epochs = list(records.read_epochs(self.folder)) if self.checkpoint else []
        if self.checkpoint:
            resume.same_choices(self.checkpoint, choices)
            self.stage, history = self.checkpoint.state["stage"], self.checkpoint.state["history"]
            self.epochs = [e for e in self.epochs if e["stage"] < self.stage] + history
            self.say(f"going on after epoch {self.checkpoint.state['epoch']}, step {self.checkpoint.state['step']}")
        records.rewrite_epochs(self.folder, self.epochs)
        # A student of the user's own may draw from any of the three; a checkpoint keeps all of them.
        torch.manual_seed(self.recipe.seed)
        random.seed(self.recipe.seed)
        np.random.seed(self.recipe.seed % 2**32)

    def fit_job(self, stage: int) -> FitJob:
        """Return what the training loop needs to fit a stage, from the checkpoint on if it is of this one."""
        objective, settings = self.objectives[stage], self.fits[stage].settings
        distiller = Distiller(self.run_inputs.student, objective, setup.run_context(objective, self.run_inputs))
        self.target_gamma = distiller.objective.target_gamma
        self.manifest["objective_resolved"][stage] = distiller.objective.resolved
        best = records.best_epoch([e for e in self.epochs if e["stage"] < stage], self.selection)
        checkpoint = self.checkpoint if stage == self.stage else None
        return FitJob(
            distiller=distiller,
            settings=settings,
            asks=objective.needs.teacher,
            held_out=self.held_out,
            keep=self.sink._replace(announce=partial(self.manifest["speed"].__setitem__, stage)),
            to_beat=best["accuracy"] if best else None,
            resume=checkpoint,
            rng=self.rng,
        )

    def record_epoch(self, stage: int, epoch: records.Epoch) -> None:
        """Record an epoch of a stage."""
        self.epochs.append(epoch)
        records.append_epoch(self.folder, epoch)
        self.write_manifest("running")
        self.reporter.note(self.named(_epoch_line(epoch, self.fits[stage].settings.epochs, self.selection)))

    def say(self, text: str) -> None:
        """Say something of this run."""
        self.reporter.say(self.named(text))

    def named(self, text: str) -> str:
        """Prefix a line with the run's name, where there are several runs."""
        return f"{self.recipe.name}: {text}" if self.rng else text

    def stop(self, error: BaseException) -> BaseException:
        """Record why the run ends here, and return the error to report."""
        interrupted = isinstance(error, KeyboardInterrupt | DeadlineExceeded)
        self.write_manifest("interrupted" if interrupted else "failed", note=None if interrupted else str(error))
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            full = CheckpointError(
                f"{self.recipe.name}: expected room on the disk for the run's records, got none; "
                "free some space and type the same command again to resume"
            )
            full.__cause__ = error
            return full
        return error

    def teacher_mode(self) -> str:
        """Say how the teacher takes part in training."""
        if not any(objective.needs.teacher for objective in self.objectives):
            return "not asked"
        if self.outputs is None:
            return "live"
        form = self.outputs.form
        return "recorded in float16" + (f", the top {form.kept} of {form.classes}" if form else "")

    def training_teacher(self, objective: Objective, taps: tuple[str, ...]) -> Teacher:
        """Return the teacher for training: the network, or its recorded outputs."""
        assert self.run_inputs.teacher is not None
        if self.outputs is None:
            return FrozenTeacher(self.run_inputs.teacher, taps)
        gamma = setup.single_exponent(objective) if self.outputs.form else None
        return CachedTeacher(self.outputs, taps, gamma=1.0 if gamma is None else gamma, device=self.device)

    @property
    def selection(self) -> Literal["validation", "test"]:
        """The set that ``best`` is chosen by."""
        return "validation" if self.held_out[0].name == "validation" else "test"

    def finish(self) -> None:
        """Write the student, its evaluation and the manifest."""
        splits, student = self.run_inputs.splits, self.run_inputs.student
        test = self.held_out[-1]
        self.folder.mkdir(parents=True, exist_ok=True)
        models.save(student, self.folder)
        outputs = self.evaluation_outputs("student", student, test.batches)
        evaluation: records.Evaluation | None = None
        if bool((outputs.labels != UNLABELLED).any()):
            evaluation = {
                "set": test.name,
                "samples": len(splits.test),
                "class_names": list(splits.class_names),
                "student": evaluate_outputs(outputs, test.teacher, gamma=self.target_gamma),
                "teacher": evaluate_outputs(test.teacher) if test.teacher else None,
                "best": records.best_epoch(list(records.read_epochs(self.folder)), self.selection),
            }
            records.write_json(self.folder / records.EVALUATION, evaluation)
        self.write_manifest("finished")
        if evaluation is not None:
            self.reporter.say(f"{self.recipe.name}: {test.name} accuracy {evaluation['student']['accuracy']:.2%}")

    def write_manifest(self, status: str, *, note: str | None = None) -> None:
        """Write the manifest as it stands now."""
        self.manifest["status"] = status
        self.manifest["duration_s"] = round(self.seconds_before + time.monotonic() - self.started, 1)
        self.manifest["data"]["sizes"] = self.run_inputs.splits.sizes()
        if note:
            self.manifest["notes"] = [*self.manifest["notes"], manifest.without_paths(note)]
        with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
            records.write_json(self.folder / records.MANIFEST, self.manifest)


def _epoch_line(epoch: records.Epoch, epochs: int, selection: Literal["validation", "test"]) -> str:
    held = epoch[selection]
    train = epoch["train"]
    parts = [f"epoch {epoch['epoch']}/{epochs}", f"loss {train['loss']:.4f}"]
    if held is not None and held["accuracy"] is not None:
        parts.append(f"{selection} accuracy {held['accuracy']:.2%}")
    parts.append(f"H(q) {train['entropy']:.3f} nats")
    if train["agreement"] is not None:
        parts.append(f"agreement {train['agreement']:.2%}")
    parts.append(f"{epoch['images_per_second']:.0f} images/s")
    if epoch["skipped_steps"]:
        parts.append(f"{epoch['skipped_steps']} steps skipped")
    return ", ".join(parts)
