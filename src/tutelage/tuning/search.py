"""A search: round after round of trials on the validation set, then what it found over new seeds."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tutelage import config, data, records
from tutelage.config.schema import Network, Recipe
from tutelage.errors import (
    MissingExtraError,
    NetworkError,
    RecipeError,
    StorageError,
)
from tutelage.places.cluster import Cluster
from tutelage.places.here import Here, Runs, train_plainly
from tutelage.records import Found, Trial, Tune
from tutelage.report import libraries, statistics
from tutelage.report.table import plural
from tutelage.runs import autotune, disk, notes
from tutelage.runs.group import group_of
from tutelage.runs.lock import BusyError, folder_lock
from tutelage.runs.resume import recipe_differences, run_differences
from tutelage.runs.run import DEFAULTS, PrunedError, Run, RunOptions, finished
from tutelage.runs.setup import (
    build_inputs,
    check_run,
    measure_of,
    needs_teacher,
    steps_of,
    torch_settings,
)
from tutelage.teacher_cache.top_k import TeacherCacheError
from tutelage.training.deadline import DeadlineExceeded
from tutelage.training.early_stopping import kept_epoch
from tutelage.tuning import sampler
from tutelage.tuning import space as spaces
from tutelage.tuning.request import RECIPE, SAMPLED, SearchRequest
from tutelage.tuning.sampler import Pruning
from tutelage.tuning.summary import best_trial, lines, read, table
from tutelage.version import __version__

FATAL = (StorageError, MissingExtraError, NetworkError, TeacherCacheError)
"""Errors that every further trial would meet too, or all that recorded outputs do not serve."""


@dataclass(frozen=True)
class Search:
    """A search's folder and what it holds."""

    folder: Path

    @property
    def record(self) -> Tune:
        """What ``tune.json`` holds."""
        return read(self.folder)

    @property
    def best(self) -> Run:
        """The trial with the best value, the recipe's own where none is better."""
        return Run(self.folder / self.record["trials"][best_trial(self.record)["number"]]["folder"])

    @property
    def recipe_line(self) -> str:
        """What to type behind the recipe for the best trial's settings; empty if nothing better was found."""
        found = self.record["found"]
        return found["line"] if found else ""

    @property
    def trials(self) -> Any:
        """The trials: a pandas frame, a row for each, where pandas is installed; else a list of mappings."""
        rows = [
            {key: value for key, value in trial.items() if key != "values"} | trial["values"]
            for trial in self.record["trials"]
        ]
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows).set_index("number")

    def _repr_html_(self) -> str:
        from markupsafe import Markup

        record = self.record
        return table(record).html("trials") + Markup("").join(map(Markup("<p>{}</p>").format, lines(record)))


def tune(
    request: SearchRequest, folder: Path, *, options: RunOptions = DEFAULTS, on: Here | Cluster | None = None
) -> Search:
    """Search in a folder, or go on there: what is trained is not trained again.

    Trials are chosen in rounds of ``together``, and those that can share batches and a teacher pass are trained in
    lockstep: each ends with the same bits as one trained alone. What is chosen depends on earlier rounds and the seed
    alone, so a search that was stopped goes on as if it had not been. With ``deadline`` in the options it stops then.

    Raises:
        RecipeError: the folder holds another search, there is no validation set, or something in the recipe does not
            fit.
        BusyError: another process searches there.
        Exception: the recipe's own run failed, or every trial of a round.
    """
    on = on or Here()
    options = replace(options, shares_machine=True)  # nobody asks what a trial's student costs
    return on.drive(partial(_Driver(request, folder, options, on).go), request.recipe.device)


class _Driver:
    def __init__(self, request: SearchRequest, folder: Path, options: RunOptions, on: Here | Cluster) -> None:
        self.request, self.folder, self.options, self.on = request, folder, options, on
        self.reporter = options.reporter

    def go(self) -> Search:
        """Do what is left of the search."""
        with folder_lock(self.folder):
            splits = data.open_data(self.request.recipe.data)
            for line in notes.of_data(splits):
                self.reporter.remark(line)
            self.record = self._begin(splits)
            self.by = records.measure_named(self.record["measure"])
            with contextlib.suppress(_Stopped):
                self._train_teacher()
                self._expect(splits)
                while round_ := self._round():
                    self._train_round(round_)
                self._confirm()
            any_finished = any(trial["state"] == "finished" for trial in self.record["trials"])
            if any_finished and libraries.installed():
                from tutelage.tuning.report import write_report

                write_report(self.folder)
            return Search(self.folder)

    def _begin(self, splits: data.Splits) -> Tune:
        """Check the recipe and what the folder holds; return the record, a new one if there is none."""
        local = splits if self.on.local else None
        recipe = self.on.call(
            _prepare, self.request, self.folder, local, options=self.options, recipe=self.request.recipe
        )
        training = recipe.training(f"{recipe.name}/teacher")
        self.training = training
        update: dict[str, Any] = {"precision": recipe.precision}
        if training is not None:
            path = (self.folder / "teacher").as_posix()
            update["teacher"] = Network(name=path, reads=training.student.reads)
        self.recipe = recipe.model_copy(update=update)
        self.base = self.request.base.model_copy(update=update)
        if (self.folder / records.TUNE).exists():
            record = read(self.folder)
            for trial in record["trials"][:1]:
                first = self.folder / trial["folder"]
                if (first / records.MANIFEST).exists():
                    _refuse(self.folder, run_differences(first, self._recipe_of(trial), data=splits.fingerprint))
            return record
        return {
            "schema": records.SCHEMA,
            "name": recipe.name,
            "space": self.request.space,
            "measure": measure_of(splits).key,
            "prune": self.request.prune,
            "version": __version__,
            "sampler": sampler.version(),
            "trials": [],
            "confirmations": [],
            "found": None,
        }

    def _write(self) -> None:
        records.write_json(self.folder / records.TUNE, self.record)

    def _expect(self, splits: data.Splits) -> None:
        left = self.request.trials - sum(trial["state"] != "running" for trial in self.record["trials"])
        planned = [(self.recipe, self.folder / trial_name(k)) for k in range(max(left, 0))]
        size = disk.size_of_all(planned, splits, self.options.trust_code)
        disk.require_room(f"search {self.folder.name}", self.folder, size)
        if self.on.local and left > 0:
            self.reporter.expect(left * steps_of(self.recipe, splits.train.per_epoch))

    def _train_teacher(self) -> None:
        if self.training is None or finished(self.folder / "teacher"):
            return
        self.reporter.say(f"{self.folder.name}: the teacher first")
        self.on.submit(None, [(self.training, self.folder / "teacher")], [], self.options, train_plainly)
        _, (error,) = self.on.next(self.reporter)
        if isinstance(error, DeadlineExceeded):
            self._stop(error)
        if isinstance(error, Exception):
            raise error

    def _stop(self, error: DeadlineExceeded) -> None:
        self.reporter.say(f"the budget is used up: {error}")
        raise _Stopped

    def _round(self) -> list[Trial]:
        """Return the trials that are to be trained next: those of a round that was stopped, or of a new one."""
        trials = self.record["trials"]
        if left := [trial for trial in trials if trial["state"] == "running"]:
            return left
        count = min(max(self.request.together, self.on.slots), self.request.trials - len(trials))
        number = 1 + max((trial["round"] for trial in trials), default=-1)
        new: list[Trial] = []

        def add(origin: str, values: Mapping[str, Any]) -> None:
            k = len(trials) + len(new)
            new.append(
                {
                    "number": k,
                    "folder": trial_name(k),
                    "round": number,
                    "origin": origin,
                    "values": dict(values),
                    "state": "running",
                    "value": None,
                    "epochs": 0,
                    "reason": None,
                }
            )

        for origin, values in [*self.request.known][len(trials) : len(trials) + max(count, 0)]:
            add(origin, values or {})
        numbers = range(len(trials) + len(new), len(trials) + count)
        if numbers:
            seed, known = self.request.recipe.seed, [*trials, *new]
            for drawn in sampler.ask(self.record["space"], known, numbers, seed=seed, measure=self.by):
                add(SAMPLED, drawn)
        if new:
            trials += new
            self._write()
        elif count > 0:
            self.reporter.say(f"{self.folder.name}: every setting of the space was tried")
        return new

    def _recipe_of(self, trial: Trial, *, seed: int = 0) -> Recipe:
        """Return a trial's recipe, of its own seeds or later ones."""
        own = trial["origin"] == RECIPE
        recipe = self.recipe if own else spaces.apply(self.base, trial["values"])
        name = trial["folder"] + (f"-seed{seed}" if seed else "")
        outputs = recipe.outputs if needs_teacher(recipe) else None
        if outputs is not None and seed and not recipe.teacher_reads_text:
            outputs = f"{outputs}/data{recipe.data_seed + seed}"
        return recipe.model_copy(
            update={
                "name": f"{self.request.recipe.name}/{name}",
                "seed": recipe.seed + seed,
                "data_seed": recipe.data_seed + seed,
                "outputs": outputs,
            }
        )

    def _rule(self, round_: int) -> Pruning | None:
        """Return by what trials of a round are pruned."""
        if not self.record["prune"]:
            return None
        earlier = [t for t in self.record["trials"] if t["round"] < round_ and t["state"] == "finished"]
        courses = (sampler.course(records.read_epochs(self.folder / trial["folder"])) for trial in earlier)
        epochs = sum(fit.settings.epochs for fit in self.recipe.fits())
        return Pruning(tuple(filter(None, courses)), epochs)

    def _train_round(self, round_: Sequence[Trial]) -> None:
        """Train a round, or what is left of it, and note what became of each trial."""
        trials = {trial["folder"]: trial for trial in round_}
        rule = self._rule(round_[0]["round"])
        planned = [(self._recipe_of(trial), self.folder / name) for name, trial in trials.items()]
        first, last = round_[0]["number"] + 1, round_[-1]["number"] + 1
        which = f"trial {first}" if first == last else f"trials {first} to {last}"
        self.reporter.say(f"{self.folder.name}: {which} of {self.request.trials}")
        errors = self._train(planned, partial(_train_trials, rule))
        for name, trial in trials.items():
            path, error = self.folder / name, errors.get(name)
            if finished(path):
                trial["state"] = "finished"
            elif isinstance(error, PrunedError) or _status(path) == "pruned":
                trial["state"] = "pruned"
                _drop_weights(path)
            elif isinstance(error, FATAL) or (error is not None and trial["origin"] == RECIPE):
                raise error
            else:
                trial["state"] = "failed"
            trial["reason"] = None if error is None else str(error)
            self._judge(trial, rule)
        if all(trial["state"] == "failed" for trial in round_):
            raise next(iter(errors.values()))
        self._write()
        self._tell()

    def _judge(self, trial: Trial, rule: Pruning | None) -> None:
        """Note a trial's value on the validation set."""
        epochs = [*records.read_epochs(self.folder / trial["folder"])]
        if trial["state"] == "pruned" and rule is not None:
            # A run that was killed between its checkpoint and the rule may have an epoch more.
            epochs = epochs[: rule.stops(sampler.course(epochs)) or len(epochs)]
        trial["epochs"] = len(epochs)
        stopping = None if trial["state"] == "pruned" else self._recipe_of(trial).fits()[-1].settings.early_stopping
        held = kept_epoch(epochs, stopping)["validation"] if epochs else None
        value = None if held is None else held.get(self.by.key)
        trial["value"] = value if isinstance(value, int | float) else None
        if trial["state"] == "finished" and trial["value"] is None:
            raise RecipeError(
                "data.validation", "labels in the validation set, to choose by", "none", "name data with labels"
            )

    def _tell(self) -> None:
        best, own = best_trial(self.record), self.record["trials"][0]
        count = sum(trial["state"] != "running" for trial in self.record["trials"])
        line = f"{count} of {self.request.trials} trials: best validation {self._written(best)} ({best['folder']})"
        self.reporter.say(f"{line}, the recipe's own {self._written(own)}")

    def _written(self, trial: Trial) -> str:
        return f"{self.by.name} {self.by.write(trial['value'] or 0.0)}{self.by.unit}"

    def _train(self, planned: Runs, how: Callable[..., Any]) -> dict[str, Exception]:
        """Train what is not finished of some runs, in groups; return the errors by the folders' names."""
        left = [(recipe, path) for recipe, path in planned if not finished(path) and _status(path) != "pruned"]
        readers = [recipe for recipe, _ in left if recipe.outputs is not None]
        errors: dict[str, Exception] = {}
        most, dealt = min(self.request.together, max(1, -(-len(left) // self.on.slots))), 0
        while left or dealt:
            while left and dealt < self.on.most_dealt:
                chosen = group_of([recipe for recipe, _ in left], most)
                group = [left[k] for k in chosen]
                left = [run for k, run in enumerate(left) if k not in chosen]
                self.on.submit(group, group, readers, self.options, how)
                dealt += 1
            group, results = self.on.next(self.reporter)
            dealt -= 1
            for (_, path), result in zip(group, results, strict=True):
                if isinstance(result, BusyError):
                    raise result
                if isinstance(result, Exception):
                    errors[path.name] = result
        stopped = [error for error in errors.values() if isinstance(error, DeadlineExceeded)]
        if stopped:
            self._stop(stopped[0])
        return errors

    def _confirm(self) -> None:
        """Train the best settings and the recipe's own over new seeds, and note what was found."""
        best, own = best_trial(self.record), self.record["trials"][0]
        self.record["confirmations"] = []
        self.record["found"] = None
        if best is not own:
            gain = self.by.merit(best["value"] or 0.0) - self.by.merit(own["value"] or 0.0)
            found: Found = {
                "trial": best["number"],
                "values": best["values"],
                "line": spaces.line(self.request.base, best["values"]),
                "gain": gain,
            }
            self.record["found"] = found
            self._write()
            if self.request.confirm:
                self._try_new_seeds(best, own, found)
        self._write()

    def _try_new_seeds(self, best: Trial, own: Trial, found: Found) -> None:
        count = self.request.confirm
        self.reporter.say(f"{self.folder.name}: {best['folder']} and the recipe over {plural(count, 'new seed')}")
        planned = [
            (recipe := self._recipe_of(trial, seed=seed), self.folder / Path(recipe.name).name)
            for seed in range(1, count + 1)
            for trial in (best, own)
        ]
        errors = self._train(planned, partial(_train_trials, None))
        if errors:
            raise next(iter(errors.values()))
        for (recipe, path), trial in zip(planned, (best, own) * count, strict=True):
            stopping = recipe.fits()[-1].settings.early_stopping
            held = kept_epoch([*records.read_epochs(path)], stopping)["validation"]
            evaluation = path / records.EVALUATION
            test = Run(path).evaluation["student"].get(self.by.key) if evaluation.exists() else None
            self.record["confirmations"].append(
                {
                    "folder": path.name,
                    "trial": trial["number"],
                    "seed": recipe.seed,
                    "data_seed": recipe.data_seed,
                    "validation": held[self.by.key],  # type: ignore[index,literal-required]
                    "test": test if isinstance(test, int | float) else None,
                }
            )
        held_out = {}
        for name in ("validation", "test"):
            pairs = [
                tuple(each[name] for each in self.record["confirmations"] if each["trial"] == trial["number"])
                for trial in (best, own)
            ]
            if None in pairs[0] or None in pairs[1]:
                continue
            gains = [self.by.merit(a) - self.by.merit(b) for a, b in zip(*pairs, strict=True)]
            mean = sum(gains) / count
            low, high = statistics.mean_interval(gains) or (None, None)
            held_out[name] = records.HeldOutGain(mean=mean, low=low, high=high, n=count)
        found["held_out"] = held_out
        found["selection_noise"] = found["gain"] - held_out["validation"]["mean"]


class _Stopped(Exception):
    """The time is up."""


def _refuse(folder: Path, differs: Sequence[str]) -> None:
    if differs:
        expected = f"the search that {folder} holds"
        instead = "type name=... for a new one, or remove the folder"
        raise RecipeError("name", expected, f"another one: {', '.join(differs)}", instead)


def trial_name(number: int) -> str:
    """Return the name of a trial's folder."""
    return f"trial-{number:04}"


def _status(path: Path) -> str | None:
    with contextlib.suppress(records.DamagedError):
        if (path / records.MANIFEST).exists():
            return str(records.read_manifest(path).get("status"))
    return None


def _drop_weights(path: Path) -> None:
    """Remove what a pruned run would be resumed from: nobody will."""
    shutil.rmtree(path / records.CHECKPOINTS, ignore_errors=True)
    (path / records.BEST).unlink(missing_ok=True)


def _train_trials(
    rule: Pruning | None, group: Runs, beside: Sequence[Recipe], options: RunOptions
) -> list[Run | Exception]:
    return train_plainly(group, beside, replace(options, when_epoch=rule or options.when_epoch, shares_machine=True))


def _prepare(request: SearchRequest, folder: Path, splits: data.Splits | None, options: RunOptions) -> Recipe:
    """Check a search where its runs are trained; write its recipe, and return that with its precision."""
    recipe, path = request.recipe, folder / records.RECIPE
    splits = splits or data.open_data(recipe.data)
    if (folder / records.MANIFEST).exists() or (folder / records.COMPARISON).exists():
        raise RecipeError(
            "name", "a folder for a search", f"{folder}, which holds runs of another kind", "type name=..."
        )
    begun = config.read(path) if path.exists() else None
    if begun is not None:
        differs = recipe_differences(begun, recipe)
        if (folder / records.TUNE).exists():
            differs += request.differences(read(folder))
        _refuse(folder, differs)
    checked = autotune.with_untrained_teacher(recipe)
    with torch_settings(recipe):
        run_inputs = build_inputs(checked, splits=splits, trust_code=options.trust_code)
        check_run(checked, run_inputs)
        if begun is not None and recipe.precision == "auto":
            recipe = recipe.model_copy(update={"precision": begun["precision"]})
        recipe, why = autotune.resolve_precision(recipe, lambda: run_inputs, run=checked)
    if why:
        options.reporter.say(f"{folder.name}: {why}")
    if begun is None:
        records.write_bytes(path, config.dump(recipe).encode())
    return recipe
