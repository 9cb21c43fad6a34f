"""One run, from a recipe to its folder: build, check, fit, judge, record; resume and repeat."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import yaml
from torch import nn

from tutelage import data, manifest, models, recipes, records
from tutelage.contracts import UNLABELLED, Batch, Batches, Teacher
from tutelage.engine import (
    Answers,
    CheckpointError,
    Checkpoints,
    FitSettings,
    HeldOut,
    Keep,
    Saved,
    accelerator_on,
    answer,
    better_than_chance,
    fit,
    judge,
)
from tutelage.lesson import FrozenTeacher, Lesson
from tutelage.material import (
    Material,
    check_fit,
    context,
    describe_data,
    describe_network,
    fingerprints,
    gather,
    held_out_sets,
    outputs_of,
    read_at,
    same_fingerprints,
)
from tutelage.models import Classifier
from tutelage.objectives import Objective
from tutelage.recipes import Recipe, RecipeError
from tutelage.store import Recorded, Store

Verb = Literal["train", "distill"]


class BusyError(RecipeError):
    """Another process is doing the run."""


class Display(Protocol):
    """Whoever shows a job, which is one run or several, as it goes."""

    def expect(self, steps: int) -> None:
        """The whole job has so many steps left."""

    def begin(self, title: str, steps: int, done: int) -> None:
        """A fit of so many steps begins, some of them done before a resume."""

    def tick(self) -> None:
        """One step is done."""

    def note(self, text: str) -> None:
        """An epoch is done."""

    def say(self, text: str) -> None:
        """Something that the user should read."""


class Silent:
    """A display that shows nothing."""

    def expect(self, steps: int) -> None:
        """Show nothing."""

    def begin(self, title: str, steps: int, done: int) -> None:
        """Show nothing."""

    def tick(self) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Run:
    """A run's folder and what stands in it.

    Attributes:
        folder: of the run.
    """

    folder: Path

    @property
    def manifest(self) -> records.Manifest:
        """The manifest."""
        return records.read_json(self.folder / records.MANIFEST)

    @property
    def epochs(self) -> list[records.Epoch]:
        """The metrics of every epoch."""
        return list(records.read_epochs(self.folder))

    @property
    def evaluation(self) -> records.Evaluation:
        """The last epoch's student, judged on the test set."""
        return records.read_json(self.folder / records.EVALUATION)

    @property
    def accuracy(self) -> float | None:
        """The student's accuracy after the last epoch, a fraction; none where the test set has no labels."""
        if not (self.folder / records.EVALUATION).exists():
            return None
        return self.evaluation["student"]["accuracy"]

    @property
    def student(self) -> Classifier:
        """The student, ready to predict."""
        return load(self.folder)


def perform(
    recipe: Recipe,
    folder: Path,
    *,
    verb: Verb,
    command: str,
    display: Display | None = None,
    material: Material | None = None,
    trust_code: bool | frozenset[str] = False,
    expected: Mapping[str, str | None] | None = None,
) -> Run:
    """Do a run, or go on with it where it stopped.

    Args:
        recipe: what to do.
        folder: of the run; made where it is not there.
        verb: what the manifest says was done.
        command: how it was asked for.
        display: shows it as it goes.
        material: the objects, where they are the caller's own.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.
        expected: fingerprints of the data and the teacher that a repeated run had; others are refused.

    Raises:
        RecipeError: the folder holds a finished run, or one of another recipe; or data, teacher and student do not fit.
        BusyError: another process is doing the run.
    """
    display = display or Silent()
    resolved = recipes.dump(recipe)
    with alone(folder), set_up(recipe):
        earlier = _earlier(folder, resolved)
        teacher_folder = None
        training = recipe.training(f"{recipe.name}/teacher")
        if training is not None and material is None:
            teacher_folder = folder / "teacher"
            if not finished(teacher_folder):
                perform(training, teacher_folder, verb="train", command=command, display=display, trust_code=trust_code)
        material = material or gather(
            recipe, teacher=str(teacher_folder) if teacher_folder else None, trust_code=trust_code
        )
        same_fingerprints(material, expected or fingerprints(earlier))
        return _Performance(recipe, folder, verb, command, display, material, earlier, resolved).go()


def steps_of(recipe: Recipe, samples: int) -> int:
    """Return how many steps a run takes over so many training samples."""
    return sum(-(-samples // batch_size) * settings.epochs for _, settings, batch_size in recipe.fits())


def finished(folder: Path) -> bool:
    """Whether a folder holds a finished run."""
    path = folder / records.MANIFEST
    return path.exists() and records.read_json(path).get("status") == "finished"


class _Performance:
    """One run while it goes."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        verb: Verb,
        command: str,
        display: Display,
        material: Material,
        earlier: records.Manifest | None,
        resolved: str,
    ) -> None:
        self.recipe, self.folder, self.display, self.material = recipe, folder, display, material
        self.accelerator = accelerator_on(recipe.device)
        self.device = self.accelerator.device
        self.how: dict[str, Any] = {
            "device": self.device,
            "precision": recipe.precision,
            "channels_last": recipe.channels_last,
        }
        self.target_gamma: float | None = None
        self.started = time.monotonic()
        self.before = (earlier or {}).get("duration_s", 0.0)
        self.fits = recipe.fits()
        splits = material.splits
        check_fit(material, [objective for objective, _, _ in self.fits])
        self.outputs: Store | None = None
        self.check_outputs()
        self.teacher = FrozenTeacher(material.teacher).to(self.device) if material.teacher else None
        self.held_out = [
            HeldOut(name, batches, self.ask("teacher", self.teacher.network, batches) if self.teacher else None)
            for name, batches in held_out_sets(splits, recipe)
        ]
        self.check_student()
        self.manifest: records.Manifest = {
            "schema": 1,
            "name": recipe.name,
            "verb": verb,
            "status": "running",
            "repeatable": material.repeatable,
            "started": (earlier or {}).get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
            "duration_s": self.before,
            "resumed": (earlier or {}).get("resumed", -1) + 1,
            "command": manifest.without_paths(command),
            **manifest.version(),
            "hardware": manifest.hardware(self.device),
            "software": manifest.software(),
            "seeds": {
                "seed": recipe.seed,
                "data_seed": recipe.data_seed,
                "split_seed": recipe.data.split_seed,
            },
            "data": describe_data(splits),
            "teacher": self.describe_teacher(),
            "student": describe_network(material.student),
            "objective": [o.to_recipe() if material.repeatable else o.weights() for o, _, _ in self.fits],
            "objective_terms": [o.weights() for o, _, _ in self.fits],
            "objective_resolved": (earlier or {}).get("objective_resolved") or [{} for _ in self.fits],
            "selection": {"set": self.held_out[0].name, "metric": "accuracy", "reported": "last epoch"},
            "recipe": manifest.without_paths(recipe.model_dump(mode="json")) if material.repeatable else None,
            "notes": list(splits.notes),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        records.write_bytes(folder / records.RECIPE, resolved.encode())
        records.write_json(folder / records.MANIFEST, self.manifest)

    def ask(self, who: str, network: nn.Module, batches: Batches) -> Answers:
        """Ask a network about a held-out set."""
        return answer(network, batches, who=who, **self.how)

    def check_outputs(self) -> None:
        """Refuse recorded outputs that lack what a later epoch or stage will read."""
        if self.recipe.outputs is None or self.material.teacher is None:
            return
        self.outputs, epoch = outputs_of(self.recipe, self.material), 0
        for objective, settings, _ in self.fits:
            gamma = read_at(objective) if self.outputs.form and objective.needs.teacher else None
            for _ in range(settings.epochs):
                if objective.needs.teacher:
                    gammas = [] if gamma is None else [gamma]
                    self.outputs.require(epoch, objective.needs.teacher_taps, gammas=gammas)
                epoch += 1

    def check_student(self) -> None:
        """Refuse a student, perhaps the caller's own module, whose logits are not for the data's classes."""
        student, classes = self.material.student.to(self.device), self.material.splits.classes
        mode = student.training
        with torch.no_grad():
            logits = student.eval()(next(self.held_out[-1].batches.epoch(0)).inputs[:2].to(self.device))
        student.train(mode)
        if logits.shape[-1] != classes:
            raise RecipeError(
                f"student {student.card.name}: expected logits for the {classes} classes of the data, got "
                f"{logits.shape[-1]}; change its last layer"
            )

    def describe_teacher(self) -> dict[str, Any] | None:
        """Measure the teacher before the first step, say how good it is, and stop where it is no better than chance."""
        if self.teacher is None or self.material.teacher is None:
            return None
        test = self.held_out[-1]
        assert test.teacher is not None
        name, classes = self.material.teacher.card.name, self.material.splits.classes
        if (given := test.teacher.logits.shape[-1]) != classes:
            raise RecipeError(
                f"teacher {name}: expected logits for the {classes} classes of the data, got {given}; "
                "name a teacher that was trained on these classes"
            )
        better = better_than_chance(test.teacher)
        accuracy = judge(test.teacher)["accuracy"] if better is not None else None
        if accuracy is not None:
            self.display.say(
                f"teacher {name}: accuracy {accuracy:.2%} on {len(test.teacher.labels)} {test.name} samples"
            )
        if better is False and not self.recipe.weak_teacher:
            raise RecipeError(
                f"teacher: expected one better than chance (1 in {test.teacher.logits.shape[-1]}), got an accuracy of "
                f"{accuracy:.2%}; check its weights and the order of its classes, or type weak_teacher=true to go on"
            )
        return {
            **describe_network(self.material.teacher),
            "accuracy": accuracy,
            "set": test.name,
            "mode": "eval",
            "answers": self.answers(),
        }

    def go(self) -> Run:
        """Fit every stage, then judge and record."""
        try:
            self.fit_all()
            self.finish()
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            self.write_manifest("interrupted" if interrupted else "failed", note=None if interrupted else str(error))
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise CheckpointError(
                    f"{self.recipe.name}: expected room on the disk for the run's records, got none; "
                    "free some space and type the same command again to resume"
                ) from error
            raise
        return Run(self.folder)

    def fit_all(self) -> None:
        """Fit the stages that are not done."""
        checkpoints = Checkpoints(self.folder / records.CHECKPOINTS)
        saved = checkpoints.load()
        choices = {
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "torch": torch.__version__,
            "deterministic": self.recipe.deterministic,
            "teacher": self.answers(),
        }
        epochs = list(records.read_epochs(self.folder)) if saved else []
        if saved:
            _same_choices(saved, choices)
            epochs = [e for e in epochs if e["stage"] < saved.state["stage"]] + saved.state["history"]
            self.display.say(f"going on after epoch {saved.state['epoch']}, step {saved.state['step']}")
        records.rewrite_epochs(self.folder, epochs)
        # A student of the user's own may draw from any of the three; a checkpoint keeps all of them.
        torch.manual_seed(self.recipe.seed)
        random.seed(self.recipe.seed)
        np.random.seed(self.recipe.seed % 2**32)
        for stage, (objective, settings, batch_size) in enumerate(self.fits):
            if saved and stage < saved.state["stage"]:
                continue
            self.fit_stage(
                stage,
                objective,
                settings,
                batch_size,
                epochs,
                Keep(checkpoints, self.folder / records.BEST, choices),
                saved,
            )
            saved = None

    def fit_stage(
        self,
        stage: int,
        objective: Objective,
        settings: FitSettings,
        batch_size: int,
        epochs: list[records.Epoch],
        keep: Keep,
        saved: Saved | None,
    ) -> None:
        """Fit one stage, appending its epochs to the metrics."""
        splits = self.material.splits
        lesson = Lesson(self.material.student, objective, context(objective, self.material))
        self.target_gamma = lesson.objective.target_gamma
        self.manifest["objective_resolved"][stage] = lesson.objective.resolved
        batches = data.SplitBatches(splits.train, batch_size=batch_size, data_seed=self.recipe.data_seed, train=True)
        teacher = self.answering(objective) if objective.needs.teacher else None
        best = records.best_epoch([e for e in epochs if e["stage"] < stage], self.selection)
        title = self.recipe.name + (f" stage {stage + 1} of {len(self.fits)}" if len(self.fits) > 1 else "")
        self.display.begin(title, len(batches) * settings.epochs, saved.state["step"] if saved else 0)
        for epoch in fit(
            lesson,
            teacher,
            _Followed(batches, self.display, sum(settings.epochs for _, settings, _ in self.fits[:stage]), teacher),
            settings,
            accelerator=self.accelerator,
            held_out=self.held_out,
            keep=keep,
            stage=stage,
            to_beat=best["accuracy"] if best else None,
            resume=saved,
        ):
            epochs.append(epoch)
            records.append_epoch(self.folder, epoch)
            self.write_manifest("running")
            self.display.note(_line(epoch, settings.epochs, self.selection))

    def answers(self) -> str:
        """Say how the teacher takes part in training."""
        if not any(objective.needs.teacher for objective, _, _ in self.fits):
            return "not asked"
        if self.outputs is None:
            return "live"
        form = self.outputs.form
        return "recorded in float16" + (f", the top {form.kept} of {form.classes}" if form else "")

    def answering(self, objective: Objective) -> Teacher:
        """Return whoever answers for the teacher while training: the network, or what was recorded of it."""
        assert self.material.teacher is not None
        taps = objective.needs.teacher_taps
        if self.outputs is None:
            return FrozenTeacher(self.material.teacher, taps)
        gamma = read_at(objective) if self.outputs.form else None
        return Recorded(self.outputs, taps, gamma=1.0 if gamma is None else gamma, device=self.device)

    @property
    def selection(self) -> Literal["validation", "test"]:
        """The set that ``best`` is chosen by."""
        return "validation" if self.held_out[0].name == "validation" else "test"

    def finish(self) -> None:
        """Write the student, its judgement, the manifest and the report."""
        splits, student = self.material.splits, self.material.student
        test = self.held_out[-1]
        self.folder.mkdir(parents=True, exist_ok=True)
        models.save(student, self.folder)
        answers = self.ask("student", student, test.batches)
        evaluation: records.Evaluation | None = None
        if bool((answers.labels != UNLABELLED).any()):
            evaluation = {
                "set": test.name,
                "samples": len(splits.test),
                "class_names": list(splits.class_names),
                "student": judge(answers, test.teacher, gamma=self.target_gamma),
                "teacher": judge(test.teacher) if test.teacher else None,
                "best": records.best_epoch(list(records.read_epochs(self.folder)), self.selection),
            }
            records.write_json(self.folder / records.EVALUATION, evaluation)
        self.write_manifest("finished")
        if evaluation is not None:
            self.display.say(f"{self.recipe.name}: {test.name} accuracy {evaluation['student']['accuracy']:.2%}")
        from tutelage.report.html import write_report  # plotly takes a while to import, and no step needs it

        write_report(self.folder)

    def write_manifest(self, status: str, *, note: str | None = None) -> None:
        """Write the manifest as it stands now."""
        self.manifest["status"] = status
        self.manifest["duration_s"] = round(self.before + time.monotonic() - self.started, 1)
        self.manifest["data"]["sizes"] = self.material.splits.sizes()
        if note:
            self.manifest["notes"] = [*self.manifest["notes"], manifest.without_paths(note)]
        with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
            records.write_json(self.folder / records.MANIFEST, self.manifest)


class _Followed:
    """Batches that tell a display of each one taken, and a recorded teacher of the epoch whose views they are.

    ``before`` is the number of epochs of earlier stages: a later one goes on with order and views, not over them again.
    """

    def __init__(self, batches: Batches, display: Display, before: int, teacher: Teacher | None) -> None:
        self.samples, self._batches, self._display, self._before = batches.samples, batches, display, before
        self._teacher = teacher

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        if isinstance(self._teacher, Recorded):
            self._teacher.open(epoch + self._before)
        for batch in self._batches.epoch(epoch + self._before, start=start, rank=rank, world=world):
            yield batch
            self._display.tick()


def load(folder: str | Path, *, best: bool = False, trust_code: bool | frozenset[str] = False) -> Classifier:
    """Load the student of a run, in evaluation mode, ready to predict: it takes images in [0, 1] as they are.

    Args:
        folder: the run's.
        best: the weights that did best on the selection set, instead of the last ones.
        trust_code: allow a student that was made by a ``file:`` model, which runs code.
    """
    weights = Path(folder) / records.BEST if best else None
    return models.create(str(folder), weights=weights, trust_code=trust_code).eval()


def _earlier(folder: Path, resolved: str) -> records.Manifest | None:
    """The manifest of an unfinished run of the same recipe in the folder, if there is one."""
    path = folder / records.MANIFEST
    if (folder / records.COMPARISON).exists():
        raise RecipeError(f"name: expected a folder for a run, got {folder}, which holds a comparison; type name=...")
    if not path.exists():
        return None
    found = records.read_json(path)
    if found.get("status") == "finished":
        raise RecipeError(
            f"name: expected a new run, got {folder}, which is finished; "
            "type name=... for another, or remove the folder"
        )
    if _essence((folder / records.RECIPE).read_text()) != _essence(resolved):
        raise RecipeError(
            f"name: expected the recipe of the unfinished run {folder} to go on with it, got another one; "
            "type name=... for a new run, or remove the folder"
        )
    return found


FREE = {
    *("nonfinite", "checkpoint_steps", "checkpoint_seconds", "log_steps", "threads", "device", "weak_teacher"),
    *("data.workers", "data.root", "data.memory_limit_mb", "data.on_corrupt"),
}
"""Keys that may be changed when a run is gone on with: they say how it is done, not what."""


WHERE = {"data.source", "data.image", "data.label", "outputs"}
"""Keys that say where data and outputs lie: what they are is checked by their fingerprints, as the teacher is."""


@contextlib.contextmanager
def set_up(recipe: Recipe) -> Iterator[None]:
    """Set threads and determinism as the recipe says, and put them back: the process may be a notebook's."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        torch.set_num_threads(recipe.threads or threads)
        if recipe.deterministic:
            # What torch asks of cuBLAS before its first matrix product.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(recipe.deterministic)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _essence(resolved: str) -> dict[str, Any]:
    """A recipe without the keys that may differ between parts of a run; keys that came later have their defaults."""
    value = yaml.safe_load(resolved)
    with contextlib.suppress(RecipeError):
        value = yaml.safe_load(recipes.dump(recipes.parse(Recipe, value)))
    flat = {**value, **{f"data.{key}": inner for key, inner in value.pop("data").items()}}
    if isinstance(teacher := flat.get("teacher"), dict) and isinstance(teacher.get("name"), str):
        flat["teacher"] = {**teacher, "name": Path(teacher["name"]).name}
    return {key: inner for key, inner in flat.items() if key not in FREE | WHERE | {"data"}}


@contextlib.contextmanager
def alone(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder; the lock goes with the process, however it ends.

    Raises:
        BusyError: another process is in it, and this one does not wait.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise BusyError(
                f"name: expected a folder that no one else writes to, got {folder}, where a run is going on; "
                "type name=... for another run, or wait"
            ) from None
        yield


def _same_choices(saved: Saved, choices: Mapping[str, Any]) -> None:
    """Warn where a resumed run cannot have the bits of one that was never stopped."""
    then = saved.state["choices"]
    differs = [f"{key} was {then.get(key)}, is {now}" for key, now in choices.items() if then.get(key) != now]
    if differs:
        warnings.warn(f"resume: expected the same set-up for the same bits, got {'; '.join(differs)}", stacklevel=2)


def _line(epoch: records.Epoch, epochs: int, selection: Literal["validation", "test"]) -> str:
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
