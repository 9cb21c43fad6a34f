"""One run, from a recipe to its folder: build, check, fit, judge, record; resume and repeat."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import yaml
from torch import nn

from tutelage import config, data, models, records
from tutelage.config.schema import Recipe, RecipeError, TrainedTeacher
from tutelage.models import Classifier
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Objective
from tutelage.runs import autotune, manifest
from tutelage.runs.setup import (
    RunInputs,
    build_inputs,
    build_objectives,
    check_compatible,
    check_last_batch,
    describe_data,
    describe_network,
    fingerprints,
    held_out_sets,
    outputs_of,
    run_context,
    same_fingerprints,
    single_exponent,
)
from tutelage.teacher_cache.cache import CachedTeacher, TeacherCache
from tutelage.training.checkpoints import Checkpoint, CheckpointError, Checkpoints, CheckpointSink
from tutelage.training.deadline import Deadline, DeadlineExceeded
from tutelage.training.distributed import accelerator_on
from tutelage.training.evaluate import EvalOutputs, EvalSet, better_than_chance, collect_outputs, evaluate_outputs
from tutelage.training.lockstep import FitJob, Lockstep
from tutelage.training.state import RngState
from tutelage.types import UNLABELLED, Batch, Batches, Teacher

Verb = Literal["train", "distill"]


class BusyError(RecipeError):
    """Another process is doing the run."""


class Reporter(Protocol):
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


class NullReporter:
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


def execute(
    recipe: Recipe,
    folder: Path,
    *,
    verb: Verb,
    command: str,
    reporter: Reporter | None = None,
    run_inputs: RunInputs | None = None,
    trust_code: bool | frozenset[str] = False,
    expected: Mapping[str, str | None] | None = None,
    deadline: Deadline | None = None,
) -> Run:
    """Do a run, or go on with it where it stopped.

    Args:
        recipe: what to do.
        folder: of the run; made where it is not there.
        verb: what the manifest says was done.
        command: how it was asked for.
        reporter: shows it as it goes.
        run_inputs: the objects, where they are the caller's own.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.
        expected: fingerprints of the data and the teacher that a repeated run had; others are refused.
        deadline: the moment to stop by, with a checkpoint; none to do the whole run.

    Raises:
        RecipeError: the folder holds a finished run, or one of another recipe; or data, teacher and student do not fit.
        BusyError: another process is doing the run.
        DeadlineExceeded: the moment to stop has come; the same call goes on.
    """
    reporter = reporter or NullReporter()
    with folder_lock(folder), torch_settings(recipe):
        recipe = autotune.recorded_precision(recipe, folder)
        earlier = _earlier(folder, config.dump(recipe))
        own = run_inputs is not None
        run_inputs = run_inputs or build_inputs(autotune.with_untrained_teacher(recipe), trust_code=trust_code)
        recipe, why = autotune.resolve_precision(recipe, run_inputs)
        if why:
            reporter.say(f"{recipe.name}: {why}")
        training = recipe.training(f"{recipe.name}/teacher")
        if training is not None and not own:
            teacher_folder = folder / "teacher"
            if not finished(teacher_folder):
                execute(
                    training,
                    teacher_folder,
                    verb="train",
                    command=command,
                    reporter=reporter,
                    trust_code=trust_code,
                    deadline=deadline,
                )
            run_inputs = build_inputs(
                recipe, teacher=str(teacher_folder), trust_code=trust_code, splits=run_inputs.splits
            )
        same_fingerprints(run_inputs, expected or fingerprints(earlier))
        run = RunState(recipe, folder, verb, command, reporter, run_inputs, earlier, why=why)
        (failure,) = RunGroup([run], reporter, deadline).go()
        if failure is not None:
            raise failure
    return Run(folder)


def execute_group(
    planned: Sequence[tuple[Recipe, Path]],
    *,
    command: str,
    reporter: Reporter | None = None,
    trust_code: bool | frozenset[str] = False,
    deadline: Deadline | None = None,
) -> list[Run | Exception]:
    """Do several runs at once, each as `execute` does it alone and with the same bits: a class.

    The data are opened, a batch is made and the teacher is asked once for all of them. What fails one of them ends that
    run alone; what they share fails them all.

    Args:
        planned: recipes that `alike` takes for a class, with their runs' folders.
        command: how they were asked for.
        reporter: shows them as they go.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.
        deadline: the moment to stop by, with a checkpoint of each; none to do the whole runs.

    Returns:
        For each either the run, or why there is none: a `BusyError` where another process is doing it,
        an `DeadlineExceeded` where the moment to stop has come.

    Raises:
        ValueError: the recipes are none of one class.
    """
    reporter = reporter or NullReporter()
    planned = [(autotune.recorded_precision(recipe, folder), folder) for recipe, folder in planned]
    chosen: str | None = next((recipe.precision for recipe, _ in planned if recipe.precision != "auto"), None)
    planned = [(autotune.with_precision(recipe, chosen), folder) for recipe, folder in planned]
    recipes_, told = [recipe for recipe, _ in planned], dict[int, Run | Exception]()
    if any(not can_share_batches(one, other) for one, other in itertools.combinations(recipes_, 2)):
        raise ValueError("recipes: expected those of one class, got some that differ in more than a class's may")

    def attempt(k: int, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except Exception as error:  # noqa: BLE001  whatever it is, the other runs do not depend on it
            told[k] = error

    with contextlib.ExitStack() as stack, torch_settings(recipes_[0]):
        for k, (_, folder) in enumerate(planned):
            attempt(k, lambda folder=folder: stack.enter_context(folder_lock(folder)))  # type: ignore[misc]
        shared: RunInputs | None = None
        answers: dict[str, EvalOutputs] = {}
        runs: dict[int, RunState] = {}
        why: str | None = None
        for k, (recipe, folder) in enumerate(planned):
            if k in told:
                continue
            try:
                earlier = _earlier(folder, config.dump(recipe))
                run_inputs = build_inputs(recipe, beside=shared, trust_code=trust_code)
                shared = replace(shared, teacher=shared.teacher or run_inputs.teacher) if shared else run_inputs
                same_fingerprints(run_inputs, fingerprints(earlier))
                if chosen is None:
                    settled, why = autotune.resolve_precision(recipe, run_inputs)
                    chosen = settled.precision
                recipe = autotune.with_precision(recipe, chosen)
                verb: Verb = "distill" if recipe.teacher is not None else "train"
                runs[k] = RunState(recipe, folder, verb, command, reporter, run_inputs, earlier, answers, why)
            except Exception as error:  # noqa: BLE001  whatever it is, the other runs do not depend on it
                told[k] = error
            except BaseException as error:
                for run in runs.values():
                    run.stop(error)
                raise
        failures = RunGroup(list(runs.values()), reporter, deadline).go()
    told |= {k: failure or Run(planned[k][1]) for k, failure in zip(runs, failures, strict=True)}
    return [told[k] for k in range(len(planned))]


def can_share_batches(one: Recipe, other: Recipe) -> bool:
    """Whether two runs may be in one class: they see the same batches, and ask the same teacher if both ask one.

    Seeds, students, objectives, optimizers and their schedules may differ.
    """
    if any(isinstance(recipe.teacher, TrainedTeacher) for recipe in (one, other)):
        return False
    mine, others = (
        {name: getattr(recipe, name) for name in _SHARED}
        | {"fits": [(fit.settings.epochs, fit.batch_size) for fit in recipe.fits()]}
        for recipe in (one, other)
    )
    both_ask = all(any(objective.needs.teacher for objective in build_objectives(recipe)) for recipe in (one, other))
    teachers = [recipe.teacher for recipe in (one, other) if recipe.teacher is not None]
    same_answers = one.outputs == other.outputs and _exponents(one) == _exponents(other)
    return mine == others and teachers[1:] in ([], teachers[:1]) and (not both_ask or same_answers)


def _exponents(recipe: Recipe) -> list[Any] | None:
    """The exponents that each stage reads recorded top classes at; none where all classes are there, or the teacher."""
    path = Path(recipe.outputs or "") / records.OUTPUTS
    if recipe.outputs is None or not path.exists() or not records.read_json(path).get("form"):
        return None
    return [objective.read_at for objective in build_objectives(recipe)]


def group_of(planned: Sequence[Recipe], most: int) -> list[int]:
    """Return which runs may be done with the first, itself included: at most so many, in their order."""
    found: list[int] = []
    for k, recipe in enumerate(planned):
        if len(found) < most and all(can_share_batches(recipe, planned[other]) for other in found):
            found.append(k)
    return found


_SHARED = (
    *("data", "data_seed", "batch_size", "accumulate", "precision", "channels_last"),
    *("device", "threads", "deterministic", "compile_teacher"),
)
"""Keys that all runs of a class agree in, besides the teacher and each stage's epochs and batch size."""


def steps_of(recipe: Recipe, samples: int) -> int:
    """Return how many steps a run takes over so many training samples."""
    return sum(fit.steps(samples) for fit in recipe.fits())


def finished(folder: Path) -> bool:
    """Whether a folder holds a finished run."""
    path = folder / records.MANIFEST
    return path.exists() and records.read_json(path).get("status") == "finished"


class RunState:
    """One run while it goes."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        verb: Verb,
        command: str,
        reporter: Reporter,
        run_inputs: RunInputs,
        earlier: records.Manifest | None,
        told: dict[str, EvalOutputs] | None = None,
        why: str | None = None,
    ) -> None:
        """Prepare a run; ``told`` holds what the teacher said about held-out sets, and is filled where it is empty.

        ``why`` says what its precision was chosen by, where it was measured now.
        """
        self.recipe, self.folder, self.reporter, self.run_inputs = recipe, folder, reporter, run_inputs
        self.told = {} if told is None else told
        self.accelerator = accelerator_on(recipe.device)
        self.device = self.accelerator.device
        self.chance: RngState | None = None
        self.how: dict[str, Any] = {
            "device": self.device,
            "precision": recipe.precision,
            "channels_last": recipe.channels_last,
        }
        self.target_gamma: float | None = None
        self.started = time.monotonic()
        self.before = (earlier or {}).get("duration_s", 0.0)
        self.fits, self.objectives = recipe.fits(), run_inputs.objectives
        splits = run_inputs.splits
        check_compatible(run_inputs)
        check_last_batch(len(splits.train), self.objectives, self.fits, world=self.accelerator.num_processes)
        self.outputs: TeacherCache | None = None
        self.check_outputs()
        self.teacher = FrozenTeacher(run_inputs.teacher).to(self.device) if run_inputs.teacher else None
        self.first = not self.told
        self.held_out = [
            EvalSet(name, batches, self.ask_teacher(name, batches)) for name, batches in held_out_sets(splits, recipe)
        ]
        self.check_student()
        self.manifest: records.Manifest = {
            "schema": 1,
            "name": recipe.name,
            "verb": verb,
            "status": "running",
            "repeatable": run_inputs.repeatable,
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
            "student": describe_network(run_inputs.student),
            "objective": [o.to_recipe() if run_inputs.repeatable else o.weights() for o in self.objectives],
            "objective_terms": [o.weights() for o in self.objectives],
            "precision": {"value": recipe.precision, "why": why or (earlier or {}).get("precision", {}).get("why")},
            "speed": (earlier or {}).get("speed") or [{} for _ in self.fits],
            "objective_resolved": (earlier or {}).get("objective_resolved") or [{} for _ in self.fits],
            "class": (earlier or {}).get("class") or [],
            "selection": {"set": self.held_out[0].name, "metric": "accuracy", "reported": "last epoch"},
            "recipe": manifest.without_paths(recipe.model_dump(mode="json")) if run_inputs.repeatable else None,
            "notes": list(splits.notes),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        records.write_bytes(folder / records.RECIPE, config.dump(recipe).encode())
        records.write_json(folder / records.MANIFEST, self.manifest)

    def ask(self, who: str, network: nn.Module, batches: Batches) -> EvalOutputs:
        """Ask a network about a held-out set."""
        return collect_outputs(network, batches, who=who, **self.how)

    def ask_teacher(self, name: str, batches: Batches) -> EvalOutputs | None:
        """Ask the teacher about a held-out set, once for all runs of a class."""
        if self.teacher is None:
            return None
        if name not in self.told:
            self.told[name] = self.ask("teacher", self.teacher.network, batches)
        return self.told[name]

    def check_outputs(self) -> None:
        """Refuse recorded outputs that lack what a later epoch or stage will read."""
        if self.recipe.outputs is None or self.run_inputs.teacher is None:
            return
        self.outputs, epoch = outputs_of(self.recipe, self.run_inputs), 0
        for objective, fit in zip(self.objectives, self.fits, strict=True):
            gamma = single_exponent(objective) if self.outputs.form and objective.needs.teacher else None
            for _ in range(fit.settings.epochs):
                if objective.needs.teacher:
                    gammas = [] if gamma is None else [gamma]
                    self.outputs.require(epoch, objective.needs.teacher_taps, gammas=gammas)
                epoch += 1

    def beside(self, names: Sequence[str]) -> None:
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

    def describe_teacher(self) -> dict[str, Any] | None:
        """Measure the teacher before the first step, say how good it is, and stop where it is no better than chance."""
        if self.teacher is None or self.run_inputs.teacher is None:
            return None
        test = self.held_out[-1]
        assert test.teacher is not None
        name, classes = self.run_inputs.teacher.card.name, self.run_inputs.splits.classes
        if (given := test.teacher.logits.shape[-1]) != classes:
            raise RecipeError(
                f"teacher {name}: expected logits for the {classes} classes of the data, got {given}; "
                "name a teacher that was trained on these classes"
            )
        better = better_than_chance(test.teacher)
        accuracy = evaluate_outputs(test.teacher)["accuracy"] if better is not None else None
        if accuracy is not None and self.first:
            self.reporter.say(
                f"teacher {name}: accuracy {accuracy:.2%} on {len(test.teacher.labels)} {test.name} samples"
            )
        if better is False and not self.recipe.weak_teacher:
            raise RecipeError(
                f"teacher: expected one better than chance (1 in {test.teacher.logits.shape[-1]}), got an accuracy of "
                f"{accuracy:.2%}; check its weights and the order of its classes, or type weak_teacher=true to go on"
            )
        return {
            **describe_network(self.run_inputs.teacher),
            "accuracy": accuracy,
            "set": test.name,
            "mode": "eval",
            "answers": self.answers(),
        }

    def begin(self) -> None:
        """Read the checkpoint, if there is one, and seed."""
        checkpoints = Checkpoints(self.folder / records.CHECKPOINTS)
        self.saved = checkpoints.load()
        choices = {
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "torch": torch.__version__,
            "deterministic": self.recipe.deterministic,
            "teacher": self.answers(),
        }
        self.keep = CheckpointSink(checkpoints, self.folder / records.BEST, choices)
        self.stage = 0
        self.epochs = list(records.read_epochs(self.folder)) if self.saved else []
        if self.saved:
            _same_choices(self.saved, choices)
            self.stage, history = self.saved.state["stage"], self.saved.state["history"]
            self.epochs = [e for e in self.epochs if e["stage"] < self.stage] + history
            self.say(f"going on after epoch {self.saved.state['epoch']}, step {self.saved.state['step']}")
        records.rewrite_epochs(self.folder, self.epochs)
        # A student of the user's own may draw from any of the three; a checkpoint keeps all of them.
        torch.manual_seed(self.recipe.seed)
        random.seed(self.recipe.seed)
        np.random.seed(self.recipe.seed % 2**32)

    def pupil(self, stage: int) -> FitJob:
        """Return what the engine needs to fit a stage, from the checkpoint on if it is of this one."""
        objective, settings = self.objectives[stage], self.fits[stage].settings
        distiller = Distiller(self.run_inputs.student, objective, run_context(objective, self.run_inputs))
        self.target_gamma = distiller.objective.target_gamma
        self.manifest["objective_resolved"][stage] = distiller.objective.resolved
        best = records.best_epoch([e for e in self.epochs if e["stage"] < stage], self.selection)
        saved = self.saved if stage == self.stage else None
        return FitJob(
            distiller=distiller,
            settings=settings,
            asks=objective.needs.teacher,
            held_out=self.held_out,
            keep=self.keep._replace(announce=partial(self.manifest["speed"].__setitem__, stage)),
            to_beat=best["accuracy"] if best else None,
            resume=saved,
            rng=self.chance,
        )

    def note(self, stage: int, epoch: records.Epoch) -> None:
        """Record an epoch of a stage."""
        self.epochs.append(epoch)
        records.append_epoch(self.folder, epoch)
        self.write_manifest("running")
        self.reporter.note(self.named(_line(epoch, self.fits[stage].settings.epochs, self.selection)))

    def say(self, text: str) -> None:
        """Say something of this run."""
        self.reporter.say(self.named(text))

    def named(self, text: str) -> str:
        """Say whose a line is, where there are several."""
        return f"{self.recipe.name}: {text}" if self.chance else text

    def stop(self, error: BaseException) -> BaseException:
        """Record why the run ends here, and return what is to be told of it."""
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

    def answers(self) -> str:
        """Say how the teacher takes part in training."""
        if not any(objective.needs.teacher for objective in self.objectives):
            return "not asked"
        if self.outputs is None:
            return "live"
        form = self.outputs.form
        return "recorded in float16" + (f", the top {form.kept} of {form.classes}" if form else "")

    def answering(self, objective: Objective, taps: tuple[str, ...]) -> Teacher:
        """Return whoever answers for the teacher while training: the network, or what was recorded of it."""
        assert self.run_inputs.teacher is not None
        if self.outputs is None:
            return FrozenTeacher(self.run_inputs.teacher, taps)
        gamma = single_exponent(objective) if self.outputs.form else None
        return CachedTeacher(self.outputs, taps, gamma=1.0 if gamma is None else gamma, device=self.device)

    @property
    def selection(self) -> Literal["validation", "test"]:
        """The set that ``best`` is chosen by."""
        return "validation" if self.held_out[0].name == "validation" else "test"

    def finish(self) -> None:
        """Write the student, its judgement, the manifest and the report."""
        splits, student = self.run_inputs.splits, self.run_inputs.student
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
                "student": evaluate_outputs(answers, test.teacher, gamma=self.target_gamma),
                "teacher": evaluate_outputs(test.teacher) if test.teacher else None,
                "best": records.best_epoch(list(records.read_epochs(self.folder)), self.selection),
            }
            records.write_json(self.folder / records.EVALUATION, evaluation)
        self.write_manifest("finished")
        if evaluation is not None:
            self.reporter.say(f"{self.recipe.name}: {test.name} accuracy {evaluation['student']['accuracy']:.2%}")
        from tutelage.report.html import write_report  # plotly takes a while to import, and no step needs it

        write_report(self.folder)

    def write_manifest(self, status: str, *, note: str | None = None) -> None:
        """Write the manifest as it stands now."""
        self.manifest["status"] = status
        self.manifest["duration_s"] = round(self.before + time.monotonic() - self.started, 1)
        self.manifest["data"]["sizes"] = self.run_inputs.splits.sizes()
        if note:
            self.manifest["notes"] = [*self.manifest["notes"], manifest.without_paths(note)]
        with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
            records.write_json(self.folder / records.MANIFEST, self.manifest)


class RunGroup:
    """Runs that go on in lockstep, stage by stage; one run is a class of one."""

    def __init__(self, runs: Sequence[RunState], reporter: Reporter, deadline: Deadline | None = None) -> None:
        self.runs, self.reporter, self.deadline = runs, reporter, deadline
        self.failures: dict[int, Exception] = {}
        self.finished: set[int] = set()
        if len(runs) > 1:
            for run in runs:
                run.chance = RngState(run.device)
                run.beside([other.recipe.name for other in runs if other is not run])

    def go(self) -> list[Exception | None]:
        """Fit every stage, then judge and record; return for each run what made it fail, or none."""
        try:
            for k in self.left():
                self.attempt(k, self.runs[k].begin)
            stages = max((len(run.fits) for run in self.runs), default=0)
            for stage in range(stages):
                self.fit_stage(stage)
            if self.deadline is not None and self.left():
                self.deadline.check(f"{self.runs[0].recipe.name}: the last evaluation", self.deadline.evaluation)
            for k in self.left():
                self.attempt(k, self.runs[k].finish)
                self.finished.add(k)
        except BaseException as error:
            for k in set(self.left()) - self.finished:
                told = self.runs[k].stop(error)
                if isinstance(told, Exception):
                    self.failures[k] = told
            if not isinstance(error, Exception):
                raise
        return [self.failures.get(k) for k in range(len(self.runs))]

    def left(self) -> list[int]:
        """The runs that have not failed."""
        return [k for k in range(len(self.runs)) if k not in self.failures]

    def attempt(self, k: int, do: Callable[[], Any]) -> Any:
        """Do something for one run, with its own generators; what goes wrong ends that run alone."""
        try:
            with self.runs[k].chance or contextlib.nullcontext():
                return do()
        except Exception as error:  # noqa: BLE001  whatever it is, the other runs do not depend on it
            self.fail(k, error)

    def fail(self, k: int, error: Exception) -> None:
        """Record that a run has failed."""
        told = self.runs[k].stop(error)
        assert isinstance(told, Exception)
        self.failures[k] = told
        if len(self.runs) > 1:
            self.reporter.say(f"failed: {self.runs[k].recipe.name}: {told}")

    def fit_stage(self, stage: int) -> None:
        """Fit one stage of every run that is not beyond it."""
        present = [k for k in self.left() if self.runs[k].stage <= stage]
        pupils = {k: made for k in present if (made := self.attempt(k, partial(self.runs[k].pupil, stage)))}
        if not pupils:
            return
        places, one = list(pupils), self.runs[next(iter(pupils))]
        batches = data.BatchLoader(
            one.run_inputs.splits.train,
            batch_size=one.fits[stage].batch_size,
            data_seed=one.recipe.data_seed,
            train=True,
        )
        teacher = self.answering(pupils, stage)
        steps = len(batches) * one.fits[stage].settings.epochs
        starts = [pupil.resume.state["step"] if pupil.resume else 0 for pupil in pupils.values()]
        title = one.recipe.name + (f" and {len(pupils) - 1} more" if len(pupils) > 1 else "")
        title += f" stage {stage + 1} of {len(one.fits)}" if len(one.fits) > 1 else ""
        self.reporter.begin(title, steps * len(pupils), sum(starts))
        before = sum(fit.settings.epochs for fit in one.fits[:stage])
        together = Lockstep(
            list(pupils.values()),
            teacher,
            _Followed(batches, self.reporter, before, teacher, starts),
            accelerator=one.accelerator,
            stage=stage,
            deadline=self.deadline,
        )
        for place, told in together.run():
            k = places[place]
            if isinstance(told, Exception):
                self.fail(k, told)
                continue
            self.attempt(k, partial(self.runs[k].note, stage, told))
            if k in self.failures:
                together.drop(place)

    def answering(self, pupils: Mapping[int, FitJob], stage: int) -> Teacher | None:
        """Return whoever answers for the teacher in a stage, with all features that are read."""
        asking = {k: pupil.distiller.objective.needs.teacher_taps for k, pupil in pupils.items() if pupil.asks}
        if not asking:
            return None
        first = next(iter(asking))
        taps = tuple(dict.fromkeys(itertools.chain(*asking.values())))
        return self.runs[first].answering(self.runs[first].objectives[stage], taps)


class _Followed:
    """Batches that tell a display of each step taken, and a recorded teacher of the epoch whose views they are.

    ``before`` is the number of epochs of earlier stages: a later one goes on with order and views, not over them again.
    ``starts`` has for each run the step of the stage that it goes on from; steps of one that failed pass with the rest.
    """

    def __init__(
        self, batches: Batches, reporter: Reporter, before: int, teacher: Teacher | None, starts: Sequence[int]
    ) -> None:
        self.samples, self._batches, self._display, self._before = batches.samples, batches, reporter, before
        self._teacher, self._starts = teacher, starts

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        if isinstance(self._teacher, CachedTeacher):
            self._teacher.open(epoch + self._before)
        stream = self._batches.epoch(epoch + self._before, start=start, rank=rank, world=world)
        for step, batch in enumerate(stream, epoch * len(self) + start):
            yield batch
            for begun in self._starts:
                if begun <= step:
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
    *("outputs_limit_mb", "outputs_top", "outputs_max_error"),
    *("data.workers", "data.root", "data.memory_limit_mb", "data.on_corrupt"),
}
"""Keys that may be changed when a run is gone on with: they say how it is done, not what."""


WHERE = {"data.source", "data.image", "data.label", "outputs"}
"""Keys that say where data and outputs lie: what they are is checked by their fingerprints, as the teacher is."""


@contextlib.contextmanager
def torch_settings(recipe: Recipe) -> Iterator[None]:
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
        value = yaml.safe_load(config.dump(config.parse(Recipe, value)))
    flat = {**value, **{f"data.{key}": inner for key, inner in value.pop("data").items()}}
    if isinstance(teacher := flat.get("teacher"), dict) and isinstance(teacher.get("name"), str):
        flat["teacher"] = {**teacher, "name": Path(teacher["name"]).name}
    return {key: inner for key, inner in flat.items() if key not in FREE | WHERE | {"data"}}


@contextlib.contextmanager
def folder_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
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


def _same_choices(saved: Checkpoint, choices: Mapping[str, Any]) -> None:
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
