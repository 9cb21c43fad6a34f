"""One run in progress: its checks, its records, and each stage's job for the training loop."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tutelage import config, data, models, records
from tutelage.config.schema import SERVED, Recipe
from tutelage.errors import RecipeError, explained, one_line
from tutelage.interruption import uninterrupted
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import BindContext
from tutelage.objectives.registry import papers
from tutelage.runs import costs, disk, manifest, notes, resume, sanity_checks, setup
from tutelage.runs.disputed import disputed
from tutelage.runs.evaluation import calibrate_teacher, evaluate_in_detail, predictions_of
from tutelage.runs.networks import describe_fit
from tutelage.runs.run import PrunedError, RunOptions
from tutelage.runs.start import Origin
from tutelage.runs.trackers import Trackers
from tutelage.settings.outputs import words
from tutelage.taps import find_all
from tutelage.teacher_cache.cache import CachedTeacher, TeacherCache
from tutelage.teacher_cache.served import ServedTeacher
from tutelage.training import layers
from tutelage.training.batch_norm import statistics_of
from tutelage.training.checkpoints import DAMAGED, Checkpoint, Checkpoints, CheckpointSink, read
from tutelage.training.deadline import DeadlineExceeded, TimedBatches
from tutelage.training.distributed import accelerator_on, by_main, gathered_objects, is_main, world
from tutelage.training.early_stopping import reason_to_stop
from tutelage.training.evaluate import EvalSet, TeacherOutputs
from tutelage.training.graphs import capturing
from tutelage.training.job import FitJob
from tutelage.training.precision import computed_precision, fallback
from tutelage.training.state import check_restorable
from tutelage.types import Batches, Teacher


class RunState:
    """One run in progress; its inputs passed `setup.check_run`, and its recipe's precision is already chosen.

    ``recorded`` is what the folder says of an interrupted run that is resumed; ``precision_reason`` and
    ``pieces_reason`` say why the precision and the number of micro-batches were chosen, if they just were;
    ``teacher_outputs`` caches the teacher's outputs on the evaluation sets and is filled on first use; ``origin`` is
    where the run begins, if not at its first step or a checkpoint of its own.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        run_inputs: setup.RunInputs,
        options: RunOptions,
        *,
        recorded: resume.Recorded | None,
        precision_reason: str | None,
        pieces_reason: str | None = None,
        teacher_outputs: dict[str, TeacherOutputs],
        origin: Origin | None = None,
    ) -> None:
        self.recipe, self.folder, self.reporter, self.run_inputs = recipe, folder, options.reporter, run_inputs
        self.deadline, self.shares_machine = options.deadline, options.shares_machine
        self.when_epoch = options.when_epoch
        self.trackers = Trackers(options.track if is_main() else (), folder, recipe.name)
        self.accelerator = accelerator_on(recipe.device)
        self.device = self.accelerator.device
        self.grouped, self.origin = False, origin
        self.target_gamma: float | None = None
        self.failure: Exception | None = None
        self.finished = False
        self.started = time.monotonic()
        self.epochs: list[records.Epoch] = []
        previous = recorded.manifest if recorded else {}
        rebuilt = recorded.rebuilt if recorded else ()
        for made_again in rebuilt:
            warnings.warn(made_again, stacklevel=2)
        self.seconds_before = previous.get("duration_s", 0.0)
        self.fits, self.objectives, splits = recipe.fits(), run_inputs.objectives, run_inputs.splits
        if not rebuilt:  # A checkpoint does not know the sizes of inputs, only the recipe that they come of.
            resume.same_inputs(run_inputs, previous or (origin and origin.manifest))
        self.outputs: TeacherCache | None = None
        self.check_outputs()
        precision = self.fits[0].settings.precision
        first_of_group = not teacher_outputs
        if (line := fallback(self.device, precision)) and first_of_group:
            self.reporter.say(f"{recipe.name}: {line}")
        self.remark(notes.of_run(recipe, run_inputs))
        self.cast_teacher = run_inputs.teacher and setup.in_precision(recipe, run_inputs.teacher)
        teacher = self.cast_teacher and setup.on_device(recipe, FrozenTeacher(self.cast_teacher).network, "teacher")
        self.teacher = teacher
        self.held_out: list[EvalSet] = []
        self.teacher_outputs = teacher_outputs
        metric = setup.metric_of(splits)
        for name, batches in setup.held_out_sets(splits, recipe):
            if teacher is not None and name not in teacher_outputs:
                teacher_outputs[name] = setup.ask_teacher(recipe, teacher, batches, splits.by_name()[name], metric)
            given = None if teacher is None else teacher_outputs[name]
            self.held_out.append(EvalSet(name, batches, given, splits.by_name()[name].text_bytes, metric))
        # The set by which ``best`` is chosen.
        self.selection: Literal["validation", "test"] = "test" if splits.validation is None else "validation"
        by_main(
            lambda: disk.require_room(f"run {recipe.name}", folder, disk.size_left(recipe, run_inputs.student, folder))
        )
        teacher_description = self.describe_teacher(announce=first_of_group)
        warned = sanity_checks.warn(self.doubts())
        reason = precision_reason or previous.get("precision", {}).get("why")
        pieces = {"value": recipe.accumulate, "why": pieces_reason} if pieces_reason else previous.get("accumulate")
        self.manifest: records.Manifest = {
            "schema": records.SCHEMA,
            "name": recipe.name,
            "verb": "distill" if recipe.teacher is not None else "train",
            "status": "running",
            "repeatable": run_inputs.repeatable,
            "started": previous.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
            "duration_s": self.seconds_before,
            "resumed": previous.get("resumed", -1) + 1,
            **self._started_from(previous),
            "command": manifest.without_paths(options.command),
            **manifest.version(),
            "hardware": manifest.hardware(self.device),
            "processes": world(),
            "samples_by_rank": [],
            "batch_norm": None,
            "software": manifest.software(),
            "seeds": {"seed": recipe.seed, "data_seed": recipe.data_seed, "split_seed": recipe.data.split_seed},
            "data": manifest.describe_data(splits, self.device),
            "teacher": teacher_description,
            "student": manifest.describe_network(run_inputs.student) | self._layers(),
            "objective": [o.to_recipe() if run_inputs.repeatable else o.weights() for o in self.objectives],
            "objective_terms": [o.weights() for o in self.objectives],
            "papers": [*dict.fromkeys(paper for o in self.objectives for paper in papers(o))],
            "precision": {
                "value": precision,
                "computed": computed_precision(self.device, precision),
                "why": reason,
            },
            **({"accumulate": pieces} if pieces else {}),
            "speed": previous.get("speed") or [{} for _ in self.fits],
            "objective_resolved": previous.get("objective_resolved") or [{} for _ in self.fits],
            "class": previous.get("class") or [],
            "selection": self.describe_selection(),
            "recipe": manifest.without_paths(recipe.model_dump(mode="json")) if run_inputs.repeatable else None,
            "files": {},  # digests of what does not change any more
            "notes": [*splits.notes, *map(manifest.without_paths, rebuilt), *warned],
        }
        for key in ("speed", "objective_resolved"):
            if len(self.manifest[key]) != len(self.fits):
                self.manifest[key] = [{} for _ in self.fits]
        self.distillers: dict[int, Distiller] = {}
        self.contexts: dict[int, BindContext] = {}
        by_main(self._write_first_records)

    def describe_selection(self) -> dict[str, Any]:
        """Describe for the manifest how the epoch is chosen whose student the run ends with, and what is judged."""
        last = self.fits[-1].settings
        best = last.early_stopping is not None and last.early_stopping.keep == "best"
        described = {
            "set": self.selection,
            "metric": setup.measure_of(self.run_inputs.splits).key,
            "reported": "best epoch" if best else "last epoch",
        }
        return described if last.ema is None else {**described, "weights": "average"}

    def reasons_to_stop(self) -> dict[str, Any]:
        """Return for the manifest where and why each stage ended early; nothing without a stage that may."""
        if not any(fit.settings.early_stopping for fit in self.fits):
            return {}
        ends: list[dict[str, Any] | None] = []
        for stage, fit in enumerate(self.fits):
            epochs = [epoch for epoch in self.epochs if epoch["stage"] == stage]
            stopping = fit.settings.early_stopping if len(epochs) < fit.settings.epochs else None
            why = None if stopping is None else reason_to_stop(epochs, stopping)
            ends.append(None if why is None else {"epoch": len(epochs), "why": why})
        return {"stopped": ends}

    def end_stage(self, stage: int) -> None:
        """Say why a stage ended, if it did so before its last epoch."""
        ends = self.reasons_to_stop().get("stopped")
        if ends is not None and (end := ends[stage]) is not None:
            self.reporter.say(f"{self.recipe.name}: stopped after epoch {end['epoch']}: {end['why']}")

    def _layers(self) -> dict[str, Any]:
        """Describe what a layer decay does to the student; nothing if there is none."""
        found = layers.rates(self.run_inputs.student, [fit.settings for fit in self.fits])
        return {} if found is None else {"layer_decay": found._asdict()}

    def remark(self, lines: Iterable[str]) -> None:
        """Tell what is to be known of the run."""
        for line in lines:
            self.reporter.remark(line)

    def _write_first_records(self) -> None:
        records.write_bytes(self.folder / records.RECIPE, config.dump(self.recipe).encode())
        self.manifest["files"] = records.digests(self.folder, [records.RECIPE])
        records.write_json(self.folder / records.MANIFEST, self.manifest)

    def check_outputs(self) -> None:
        """Refuse recorded outputs that lack anything that an epoch of a stage reads."""
        if self.recipe.outputs is None or self.run_inputs.teacher is None:
            return
        self.outputs = setup.outputs_of(self.recipe, self.run_inputs)
        setup.check_typed_form(self.recipe, self.outputs)
        form = getattr(self.outputs.form, "settings", None)
        for stage, objective in enumerate(self.objectives):
            if objective.needs.teacher:
                if form is not None:
                    setup.check_form(objective, form.name)
                gamma = setup.single_exponent(objective) if self.outputs.form else None
                first, end = (self.first_epoch(each) for each in (stage, stage + 1))
                for epoch in range(first, end) if self.outputs.varies else [0]:
                    taps = tuple(find_all(self.run_inputs.teacher, objective.needs.teacher_taps))
                    self.outputs.require(epoch, taps, gammas=[] if gamma is None else [gamma])

    def describe_teacher(self, *, announce: bool) -> dict[str, Any] | None:
        """Evaluate the teacher before the first step, report it, and refuse one that is no better than chance."""
        teacher, classes, test = self.run_inputs.teacher, self.run_inputs.splits.classes, self.held_out[-1]
        if (served := self.run_inputs.served) is not None:
            return {"name": SERVED, **manifest.describe_served(served), "answers": self.teacher_mode()}
        if teacher is None or test.teacher is None:
            return None
        evaluation = test.teacher.evaluation
        better, means = evaluation.better_than_chance, evaluation.means(test.name)
        by, accuracy = records.measure(means), means["accuracy"]
        if announce:
            for line in describe_fit(teacher, self.run_inputs.splits.input_shape("teacher")):
                self.reporter.say(f"teacher {teacher.card.name}: {line}")
        if records.merit(means) is not None and announce:
            counted = f"{evaluation.samples} {test.name} {by.counted}"
            self.reporter.say(f"teacher {teacher.card.name}: {by.describe(means)} on {counted}")
        if better is False and not self.recipe.weak_teacher:
            chance = f" (1 in {classes})" if by is records.ACCURACY else ""
            raise RecipeError(
                "teacher",
                f"one better than chance{chance}",
                f"an accuracy of {accuracy:.2%}" if by is records.ACCURACY else f"a {by.describe(means)}",
                "type teacher=... for one that is trained, check the order of its classes, or type weak_teacher=true",
            )
        measured = {"accuracy": accuracy, **evaluation.of_task(), "set": test.name, "mode": "eval"}
        described = {**manifest.describe_network(teacher), **measured, "answers": self.teacher_mode()}
        return described | self.recorded_form()

    def doubts(self) -> Iterator[str]:
        """Yield what is to be told of the run before its first step."""
        outputs = self.held_out[-1].teacher
        evaluation = outputs and outputs.evaluation
        yield from sanity_checks.of_labels(self.run_inputs.splits, self.objectives)
        yield from sanity_checks.before_training(
            self.recipe, self.objectives, None if evaluation is None else evaluation.sample
        )
        if evaluation is not None:
            yield from sanity_checks.of_accuracy(self.recipe, evaluation, self.run_inputs.splits.fingerprint)

    def begin(self) -> None:
        """Read the checkpoint, if there is one, and seed the generators."""
        checkpoints = Checkpoints(self.folder / records.CHECKPOINTS)
        # All processes share this work, while the main one checks checkpoints alone.
        stages = by_main(checkpoints.stages) if world() > 1 else []
        if self.origin is not None:
            stages = [self.origin.stage]
        self.contexts = {stage: self.context(stage) for stage in stages if stage < len(self.fits)}
        self.seed_generators()
        self.checkpoint = by_main(lambda: checkpoints.load(self.check_checkpoint) or self._first_checkpoint())
        if self.checkpoint and not is_main():  # as the main process did to check it
            self.distillers = {}
            self.seed_generators()
            self.distiller(self.checkpoint.state["stage"])
        choices = {
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "torch": torch.__version__,
            "deterministic": self.recipe.deterministic,
            "teacher": self.teacher_mode(),
            "processes": self.accelerator.num_processes,
        }
        recipe = self.recipe.model_dump(mode="json")
        self.kept: records.KeptRun = {"recipe": recipe, "manifest": self.manifest, "epochs": [], "best": None}
        self.sink = CheckpointSink(checkpoints, self.folder / records.BEST, choices)
        self.stage = 0
        source = self.folder if self.origin is None else self.origin.folder
        metrics = by_main(lambda: records.read_metrics(source))
        if self.checkpoint:
            resume.same_choices(self.checkpoint, choices)
            state = self.checkpoint.state
            self.stage = state["stage"]
            kept: records.KeptRun | None = state.get("run")
            self.kept["best"] = kept["best"] if kept else None
            if self.origin is not None:
                self.kept["best"] = by_main(self._bring_best)
            before = kept["epochs"] if kept else [e for e in metrics.epochs if e["stage"] < self.stage]
            self.epochs = [*before, *state["history"]]
            goes_on = "resuming" if self.origin is None else f"starts from {self.origin.folder}"
            self.reporter.say(self.named(f"{goes_on} after epoch {state['epoch']}, step {state['step']}"))
        elif metrics.epochs or metrics.damage:
            warnings.warn(
                f"{self.folder / records.CHECKPOINTS}: expected a checkpoint of the run that {records.METRICS} tells "
                "of, got none; it begins anew",
                stacklevel=2,
            )
        by_main(lambda: records.rewrite_epochs(self.folder, self.epochs))
        self.trackers.begin(recipe, self.epochs)

    def seed_generators(self) -> None:
        """Seed all three, as a user's student may draw from any; a checkpoint keeps all of them."""
        torch.manual_seed(self.recipe.seed)
        random.seed(self.recipe.seed)
        np.random.seed(self.recipe.seed % 2**32)

    def check_checkpoint(self, saved: Checkpoint) -> None:
        """Refuse a checkpoint of another run, or one that cannot be restored; build what it is restored into.

        Raises:
            ValueError: so; or anything else that reading damaged content raises.
        """
        resume.same_run(saved, self.recipe, self.manifest)
        self._check_state(saved)

    def _check_state(self, saved: Checkpoint) -> None:
        stage = saved.state.get("stage")
        if not isinstance(stage, int) or not 0 <= stage < len(self.fits):
            raise ValueError(f"stage {stage} of {len(self.fits)}")
        self.distillers = {}
        self.seed_generators()
        check_restorable(saved, self.distiller(stage), self.fits[stage].settings)

    def _first_checkpoint(self) -> Checkpoint | None:
        """Read the checkpoint of another run that this one begins with, if there is such."""
        if self.origin is None:
            return None
        try:
            saved = read(self.origin.checkpoint)
            self._check_state(saved)
        except DAMAGED as error:
            got = f"{self.origin.checkpoint}, which does not fit or is damaged: {one_line(error)}"
            instead = f"begin with its weights alone: student.weights={self.origin.folder / records.STUDENT}"
            raise RecipeError("start", "a checkpoint of the same student and objective", got, instead) from error
        return saved

    def _bring_best(self) -> str | None:
        """Copy the best weights of the run that this one begins with, and return their digest; ``None`` without any."""
        assert self.origin is not None
        path = self.origin.folder / records.BEST
        if not path.is_file():
            return None
        self.sink.checkpoints.write(self.sink.best, records.read_bytes(path))
        return records.digest(self.sink.best)

    def _started_from(self, previous: records.Manifest) -> dict[str, Any]:
        """Return what the manifest says of the run that this one began with; empty if there is none.

        Raises:
            RecipeError: if that is another one than the run has already begun with.
        """
        known: records.StartedFrom | None = previous.get("started_from")
        if self.origin is not None:
            now = self.origin.describe()
            if known is not None and known["fingerprint"] != now["fingerprint"]:
                expected = f"the run that this one began with, of the fingerprint {known['fingerprint']}"
                instead = "put it back, or type name=... for a new run"
                raise RecipeError("start", expected, f"{self.origin.folder}, of {now['fingerprint']}", instead)
            return {"started_from": now}
        return {} if known is None else {"started_from": known}

    def distiller(self, stage: int) -> Distiller:
        """Return a stage's student with its objective, made on first use."""
        if stage not in self.distillers:
            context = replace(self.contexts.get(stage) or self.context(stage), seed=self.recipe.seed)
            self.distillers = {stage: Distiller(self.run_inputs.student, self.objectives[stage], context)}
        return self.distillers[stage]

    def context(self, stage: int) -> BindContext:
        """Return what a stage's objective binds to."""
        return setup.run_context(self.objectives[stage], self.run_inputs, self.teacher)

    def fit_job(self, stage: int) -> FitJob:
        """Return a stage's job for the training loop, resumed from the checkpoint if that is of this stage."""
        objective = self.objectives[stage]
        distiller = self.distiller(stage)
        self.target_gamma = distiller.objective.target_gamma
        self.manifest["objective_resolved"][stage] = distiller.objective.resolved
        self.manifest["batch_norm"] = statistics_of(distiller, self.fits[stage].settings.sync_bn)
        before = [e for e in self.epochs if e["stage"] < stage]
        best = records.best_epoch(before, self.selection)
        self.kept["epochs"] = [dict(epoch) for epoch in before]
        return FitJob(
            distiller=distiller,
            settings=self.fits[stage].settings,
            uses_teacher=objective.needs.teacher,
            held_out=self.held_out,
            keep=self.sink._replace(announce=partial(self.manifest["speed"].__setitem__, stage), run=self.kept),
            to_beat=records.merit(best) if best else None,
            resume=self.checkpoint if stage == self.stage else None,
        )

    def first_epoch(self, stage: int) -> int:
        """Return the number of epochs before a stage."""
        return sum(fit.settings.epochs for fit in self.fits[:stage])

    def tracked_batches(self, stage: int, starts: Sequence[int]) -> Batches:
        """Begin a stage for the reporter; return its batches, which report their steps from ``starts``, one per run.

        Order and views continue after the epochs of earlier stages.
        """
        loader = data.loader_on(
            self.device,
            self.run_inputs.splits.train,
            batch_size=self.fits[stage].batch_size,
            data_seed=self.recipe.data_seed,
            train=True,
            first_epoch=self.first_epoch(stage),
            world=self.accelerator.num_processes,
            capture=capturing(self.device, wanted=self.fits[stage].settings.graphs),
        )
        title = self.recipe.name + (f" and {len(starts) - 1} more" if len(starts) > 1 else "")
        title += f" stage {stage + 1} of {len(self.fits)}" if len(self.fits) > 1 else ""
        steps = len(loader) * self.fits[stage].settings.epochs
        self.reporter.begin(title, steps * len(starts), sum(starts))
        student = self.run_inputs.student
        made = setup.with_sampled(loader, self.fits[stage], self.run_inputs, student, device=self.device)
        batches = self.reporter.track(made, starts)
        return batches if self.deadline is None else TimedBatches(batches, self.deadline)

    def record_epoch(self, stage: int, epoch: records.Epoch) -> None:
        """Record an epoch of a stage."""
        if self.deadline is not None:
            self.deadline.end_evaluation()
        self.epochs.append(epoch)
        for split in self.run_inputs.splits.by_name().values():  # Each process knows of its own share.
            skipped = dict.fromkeys(name for names in gathered_objects(split.corrupt) for name in names)
            split.corrupt[:] = skipped
        self.manifest["samples_by_rank"] = epoch.get("samples_by_rank", [epoch["train"]["samples"]])
        by_main(self._write_epoch)
        self.trackers.log(self.epochs)
        what = "images" if self.run_inputs.splits.of_images else "samples"
        self.reporter.note(self.named(_epoch_line(epoch, self.fits[stage].settings.epochs, self.selection, what)))
        # Options that were sent to the other processes have no callback: the main one's ends the run in all.
        by_main(lambda: None if self.when_epoch is None else self.when_epoch(self.folder, epoch))

    def _write_epoch(self) -> None:
        if (self.folder / records.METRICS).exists():
            records.append_epoch(self.folder, self.epochs[-1])
        else:  # Someone has removed it.
            records.rewrite_epochs(self.folder, self.epochs)
        self.manifest["files"] |= records.digests(self.folder, [records.METRICS])
        self.write_manifest("running")

    def named(self, text: str) -> str:
        """Prefix a line with the run's name in a group of several runs."""
        return f"{self.recipe.name}: {text}" if self.grouped else text

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Enter this while the run goes on: what ends it is recorded."""
        try:
            yield
        except BaseException as error:
            self.stop(error)
            raise
        finally:
            self.run_inputs.splits.close()

    def stop(self, error: BaseException) -> None:
        """Record why the run ends here; its ``failure`` is the exception."""
        interrupted = isinstance(error, KeyboardInterrupt | DeadlineExceeded)
        if not self.finished:
            status = "interrupted" if interrupted else "pruned" if isinstance(error, PrunedError) else "failed"
            self.write_manifest(status, note=None if interrupted else str(error))
        if interrupted and not self.finished:
            error.add_note(f"{self.folder}: {Checkpoints(self.folder / records.CHECKPOINTS).describe_newest()}")
        if isinstance(error, Exception):
            self.failure = explained(error)
            if self.failure is not error:
                self.failure.__cause__ = error
        self.trackers.close()

    def teacher_mode(self) -> str:
        """Return how the teacher takes part in training."""
        if not setup.needs_teacher(self.objectives):
            return "not asked"
        if (served := self.run_inputs.served) is not None:
            return f"served, the top {served.logits.values.shape[1]} of {served.logits.classes}"
        if self.outputs is None:
            return "live"
        form = self.outputs.form
        return f"recorded in float16, {words(form.to_json())}" if form else "recorded in float16"

    def recorded_form(self) -> dict[str, Any]:
        """Return what the manifest says of recorded outputs that do not hold all logits; empty for others."""
        if self.outputs is None or self.outputs.form is None:
            return {}
        return {"form": self.outputs.form.to_json(), "errors": self.outputs.errors}

    def training_teacher(self, stage: int, taps: tuple[str, ...]) -> Teacher:
        """Return a stage's teacher: the network, its recorded outputs, or a served one's answers."""
        if self.run_inputs.served is not None:
            return ServedTeacher(self.run_inputs.served, self.device)
        assert self.teacher is not None
        if self.outputs is None:
            return FrozenTeacher(self.teacher, taps)
        gamma = setup.single_exponent(self.objectives[stage]) if self.outputs.form else None
        # Top classes of images stay whole rows, whose bits unfinished runs began with.
        return CachedTeacher(
            self.outputs,
            taps,
            gamma=1.0 if gamma is None else gamma,
            device=self.device,
            sparse=self.outputs.ragged,
        )

    def check_time(self) -> None:
        """Refuse to begin the last evaluation if there is no time for it."""

        def check() -> None:
            if self.deadline is not None:
                self.deadline.check(f"{self.recipe.name}: the last evaluation", self.deadline.evaluation)

        by_main(check)

    def finish(self) -> None:
        """Write the student, its evaluation and the manifest."""
        splits, student, test = self.run_inputs.splits, self.run_inputs.student, self.held_out[-1]
        by_main(lambda: models.save(student, self.folder))
        result = evaluate_in_detail(self.recipe, student, splits, self.held_out, "student", gamma=self.target_gamma)
        teacher = calibrate_teacher(self.teacher_outputs, splits) if test.teacher else None
        evaluation: records.Evaluation | None = None
        if result.is_judged:
            evaluation = {
                "set": test.name,
                "samples": len(splits.test),
                "class_names": list(splits.class_names),
                "student": result.judgement(),
                "teacher": teacher.judgement() if teacher else None,
                "best": records.best_epoch(self.epochs, self.selection),
            }
        by_main(lambda: self._write_result(evaluation, predictions_of(result, teacher)))
        self.finished = True
        self.trackers.finish(self.epochs, evaluation)
        self.remark(notes.left_out(splits))  # now that all were read
        if evaluation is not None:
            judged = evaluation["student"]
            self.reporter.say(f"{self.recipe.name}: {test.name} {records.measure(judged).describe(judged)}")

    def _write_result(self, evaluation: records.Evaluation | None, predictions: records.Predictions | None) -> None:
        written = [records.STUDENT, records.CARD, records.BEST, records.METRICS]
        if evaluation is not None:
            records.write_json(self.folder / records.EVALUATION, evaluation)
            written.append(records.EVALUATION)
        # The result stands without these, so a run that loses them is still whole.
        if predictions is not None:
            records.write_predictions(self.folder, predictions)
            records.write_json(self.folder / records.DISPUTED, disputed(predictions, self.run_inputs.splits))
        self._measure_costs()
        self.check_best()
        self.manifest["files"] |= records.digests(self.folder, written)
        with uninterrupted():
            self.write_manifest("finished")
            self.finished = True

    def _measure_costs(self) -> None:
        """Write what the networks cost, unless that was done before the run was interrupted here."""
        if (self.folder / records.COSTS).exists():
            return
        so_far = self.seconds_before + time.monotonic() - self.started
        seconds = costs.time_for(so_far / (1 + len(self.manifest["class"])), self.deadline)
        student, teacher = self.run_inputs.student, self.cast_teacher
        measured = costs.measure(
            self.recipe,
            self.run_inputs.splits,
            student,
            teacher,
            seconds=None if self.shares_machine else seconds,
            say=self.reporter.say,
        )
        records.write_json(self.folder / records.COSTS, measured)

    def check_best(self) -> None:
        """Put weights aside that are not the best ones that the run wrote, and warn."""
        best, known = self.folder / records.BEST, self.kept["best"]
        if known is not None and records.digest(best) != known:
            aside = best.with_name(f"unfit-{best.name}")
            if best.exists():
                shutil.rmtree(aside, ignore_errors=True)
                best.replace(aside)
            warnings.warn(
                f"{best}: expected the weights that the run wrote, got others or none; to have them again, remove the "
                "folder and run the same command",
                stacklevel=2,
            )

    def write_manifest(self, status: str, *, note: str | None = None) -> None:
        """Write the manifest, in the main process, with a status and the time so far."""
        if not is_main():
            return
        self.manifest["status"] = status
        self.manifest["duration_s"] = round(self.seconds_before + time.monotonic() - self.started, 1)
        self.manifest["data"]["sizes"] = self.run_inputs.splits.sizes()
        self.manifest |= self.reasons_to_stop()
        if note:
            self.manifest["notes"] = [*self.manifest["notes"], manifest.without_paths(note)]
        with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
            records.write_json(self.folder / records.MANIFEST, self.manifest)


def _epoch_line(epoch: records.Epoch, epochs: int, selection: Literal["validation", "test"], what: str) -> str:
    held, train = epoch[selection], epoch["train"]
    parts = [f"epoch {epoch['epoch']}/{epochs}", f"loss {train['loss']:.4f}"]
    if held is not None and records.merit(held) is not None:
        parts.append(f"{selection} {records.measure(held).describe(held)}")
    if train["entropy"] is not None:
        parts.append(f"H(q) {train['entropy']:.3f} nats")
    if train["agreement"] is not None:
        parts.append(f"agreement {train['agreement']:.2%}")
    parts.append(f"{epoch['images_per_second']:.0f} {what}/s")
    if epoch["skipped_steps"]:
        parts.append(f"{epoch['skipped_steps']} steps skipped")
    if epoch.get("overflowed_steps"):
        parts.append(f"{epoch['overflowed_steps']} steps overflowed")
    return ", ".join(parts)
