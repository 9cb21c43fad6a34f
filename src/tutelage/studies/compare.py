"""A comparison: several objectives over several seeds on one task, with one teacher."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage import config, data, records
from tutelage.config.schema import Comparison, Network, Recipe
from tutelage.errors import RecipeError, StorageError
from tutelage.objectives import from_spec
from tutelage.places.cluster import Cluster
from tutelage.places.here import Here, train
from tutelage.report import libraries, results, summary
from tutelage.report.table import Table
from tutelage.runs import autotune, disk, notes
from tutelage.runs.group import group_of
from tutelage.runs.lock import BusyError, folder_lock
from tutelage.runs.resume import begun, recipe_differences, run_differences
from tutelage.runs.run import DEFAULTS, Run, RunOptions, finished
from tutelage.runs.setup import (
    build_inputs,
    check_form,
    check_run,
    check_teacher,
    for_recipe,
    needs_teacher,
    steps_of,
    torch_settings,
)

if TYPE_CHECKING:
    from tutelage.report.figures import Figure


@dataclass(frozen=True)
class ComparedRuns:
    """A comparison's folder and what it holds; in a notebook it shows its table."""

    folder: Path

    @property
    def runs(self) -> dict[str, list[Run]]:
        """Each objective's runs by its name, in the order of the seeds."""
        runs: dict[str, list[Run]] = {}
        path, instead = self.folder / records.COMPARISON, "type the comparison's command again to write it again"
        for entry in records.read_json(path, records.Comparison, instead=instead)["entries"]:
            runs.setdefault(entry["objective"], []).append(Run(self.folder / entry["folder"]))
        return runs

    @property
    def results(self) -> list[results.Result]:
        """The rows of the table: the teacher, the baseline, then the other objectives, with means over the seeds."""
        return results.rows(self.folder)

    @property
    def table(self) -> Table:
        """The table; ``table.markdown()`` writes it."""
        return results.table(self.results)

    def plot(self) -> Figure:
        """Return loss and measure by epoch as a figure of plotly, a line for each objective.

        Raises:
            FileNotFoundError: if the folder holds no records.
            ImportError: if the extra ``report`` is not installed.
        """
        from tutelage.report.notebook import figure

        return figure(self.folder)

    def __repr__(self) -> str:
        """Say what the folder holds."""
        return f"ComparedRuns({str(self.folder)!r}, {summary.line(self.folder)})"

    def _repr_html_(self) -> str:
        from tutelage.report.notebook import comparison_html

        return comparison_html(self.folder)


def compare(
    comparison: Comparison, folder: Path, *, options: RunOptions = DEFAULTS, on: Here | Cluster | None = None
) -> None:
    """Run a comparison in a folder, or resume it: finished runs are not repeated; its report is written last.

    The students of one data seed are trained in lockstep, ``together`` at most, and each ends with the same bits as one
    trained alone. Several processes may run one comparison: each takes the next runs that no other process has. If
    ``outputs`` names a folder, the teacher runs once for all runs of a data seed.

    Seeds are the outer loop, so that an interrupted comparison has whole rows. From one seed to the next, both
    initialisation and order and views differ; with ``share_data_seed`` only the initialisation.

    ``on`` a cluster, the groups are trained on its nodes, each by one task; an error in a run does not stop the others.

    Raises:
        RecipeError: if the folder holds another comparison, or something in the recipe does not fit.
        Exception: if a run failed; those trained beside it are finished first.
    """
    on = on or Here()
    on.drive(partial(_compare, comparison, folder, options, on), comparison.device)


def _compare(comparison: Comparison, folder: Path, options: RunOptions, on: Here | Cluster) -> None:
    reporter = options.reporter
    objectives = [
        for_recipe(comparison, from_spec(spec), per_token=comparison.data.per_token)
        for spec in comparison.objectives.values()
    ]
    check_teacher(comparison.teacher, objectives)
    if comparison.outputs is not None and comparison.outputs_form is not None:
        for objective in objectives:
            check_form(objective, comparison.outputs_form.name)
    splits = data.open_data(comparison.data)
    for line in notes.of_data(splits):
        reporter.remark(line)
    # Where the runs are to be, as this process may lack their device.
    comparison = on.call(_prepare, comparison, folder, splits if on.local else None, options=options, recipe=comparison)
    training = comparison.training(f"{comparison.name}/teacher")
    planned = [(recipe, folder / entry["folder"]) for entry, recipe in plan(comparison, folder)]
    left = [(recipe, path) for recipe, path in planned if not finished(path)]
    teacher = [(training, folder / "teacher")] if training and not finished(folder / "teacher") else []
    if on.local:
        part, samples = splits.train.unlabelled, splits.train.per_epoch
        labelled = samples if part is None else part.first  # which the teacher is trained on
        steps = [steps_of(recipe, samples) for recipe, _ in left]
        reporter.expect(sum(steps) + sum(steps_of(recipe, labelled) for recipe, _ in teacher))
    if left:
        size = disk.size_of_all([*left, *teacher], splits, options.trust_code)
        disk.require_room(f"comparison {comparison.name}", folder, size)
    if teacher:
        reporter.say(f"{comparison.name}: the teacher, then {len(left)} students")
        on.submit(None, teacher, [], options)
        _, (error,) = on.next(reporter)
        if isinstance(error, Exception):
            raise error
    readers = [recipe for recipe, _ in left if recipe.outputs is not None]
    count, most, dealt = len(left), min(comparison.together, -(-len(left) // on.slots)), 0
    errors: dict[str, Exception] = {}
    while (left := [(recipe, path) for recipe, path in left if not finished(path)]) or dealt:
        while left and dealt < on.most_dealt:
            chosen = group_of([recipe for recipe, _ in left], most)
            group = [left[k] for k in chosen]
            first, last = count - len(left) + 1, count - len(left) + len(group)
            which = f"student {first}" if first == last else f"students {first} to {last}"
            together = ", together" if len(group) > 1 else ""
            reporter.say(f"{which} of {count}{together}: {', '.join(recipe.name for recipe, _ in group)}")
            left = [run for k, run in enumerate(left) if k not in chosen]
            on.submit(group, group, readers, options, partial(train, all_or_none=True))
            dealt += 1
        group, results = on.next(reporter)
        dealt -= 1
        for (recipe, path), result in zip(group, results, strict=True):
            said = f"finished: {recipe.name}"
            if isinstance(result, BusyError):
                reporter.say(f"{recipe.name} is running in another process: left to it")
                continue
            if isinstance(result, Exception) and not finished(path):  # another process may have finished it
                errors[recipe.name], said = result, f"failed: {recipe.name}: {result}"
            if not on.local:
                reporter.say(said)
        # On a full disk there is no report either: the run's error says more.
        with contextlib.suppress(StorageError) if errors else contextlib.nullcontext(), folder_lock(folder, wait=True):
            _write_report(folder)
        if errors and not dealt:
            raise next(errors[recipe.name] for recipe, _ in planned if recipe.name in errors)
    with folder_lock(folder, wait=True):
        _write_report(folder)


def _write_report(folder: Path) -> None:
    if libraries.installed():
        from tutelage.report.html import write_report

        write_report(folder)


def _prepare(comparison: Comparison, folder: Path, splits: data.Splits | None, options: RunOptions) -> Comparison:
    """Check a comparison and write its records; return it with the precision of its runs."""
    splits = splits or data.open_data(comparison.data)
    _check_runs(comparison, folder, splits, options)
    with folder_lock(folder, wait=True):
        comparison = _with_precision(comparison, folder, splits, options)
        planned = list(plan(comparison, folder))
        _refuse_another(comparison, planned, folder, splits)
        records.write_json(
            folder / records.COMPARISON,
            records.Comparison(
                schema=records.SCHEMA,
                name=comparison.name,
                baseline=comparison.baseline or next(iter(comparison.objectives)),
                teacher="teacher" if comparison.training("teacher") else None,
                share_data_seed=comparison.share_data_seed,
                entries=[entry for entry, _ in planned],
            ),
        )
    return comparison


def _with_precision(comparison: Comparison, folder: Path, splits: data.Splits, options: RunOptions) -> Comparison:
    """Choose the precision of all runs, from the first that uses a teacher, if it is ``auto``."""
    planned = [recipe for _, recipe in plan(comparison, folder)]
    run = max(planned, key=needs_teacher)
    run = autotune.with_untrained_teacher(run.model_copy(update={"teacher": comparison.teacher}))
    run_inputs = partial(build_inputs, run, trust_code=options.trust_code, splits=splits)
    with torch_settings(run):
        comparison, why = autotune.resolve_precision(comparison, run_inputs, folder=folder, run=run)
    if why:
        options.reporter.say(f"{comparison.name}: {why}")
    return comparison


def plan(comparison: Comparison, folder: Path) -> Iterator[tuple[records.Entry, Recipe]]:
    """Yield each run's entry and recipe, in the order of their execution."""
    settings = {name: getattr(comparison, name) for name in Recipe.model_fields}
    if (training := comparison.training("teacher")) is not None:
        settings["teacher"] = Network(name=(folder / "teacher").as_posix(), reads=training.student.reads)
    for k in range(comparison.seeds):
        seed = comparison.seed + k
        data_seed = comparison.data_seed + (0 if comparison.share_data_seed else k)
        settings |= {"seed": seed, "data_seed": data_seed}
        for name, objective in comparison.objectives.items():
            path = f"{name}-seed{k}"
            settings |= {"name": f"{comparison.name}/{path}", "objective": objective}
            recipe = Recipe.model_construct(**settings)
            if not needs_teacher(recipe):  # of what the student writes it would learn nothing
                stages = tuple(stage.model_copy(update={"on_policy": None}) for stage in recipe.stages)
                recipe = recipe.model_copy(update={"on_policy": None, "stages": stages})
            if recipe.outputs is not None:
                of_seed = recipe.outputs if recipe.teacher_reads_text else f"{recipe.outputs}/data{data_seed}"
                outputs = of_seed if needs_teacher(recipe) else None
                recipe = recipe.model_copy(update={"outputs": outputs})
            yield {"folder": path, "objective": name, "seed": seed}, recipe


def dry_runs(comparison: Comparison, folder: Path) -> Iterator[Recipe]:
    """Yield one run per objective for a dry run; a teacher that the comparison trains counts as still to be trained."""
    for _, recipe in islice(plan(comparison, folder), len(comparison.objectives)):
        trained = isinstance(recipe.teacher, Network) and recipe.teacher.name == (folder / "teacher").as_posix()
        yield recipe.model_copy(update={"teacher": comparison.teacher}) if trained else recipe


def _check_runs(comparison: Comparison, folder: Path, splits: data.Splits, options: RunOptions) -> None:
    """Refuse objectives and networks that cannot be trained, before a teacher or another objective's student is."""
    teacher = None
    for recipe in dry_runs(comparison, folder):
        recipe = autotune.with_untrained_teacher(recipe)
        with torch_settings(recipe):
            run_inputs = build_inputs(recipe, splits=splits, teacher=teacher, trust_code=options.trust_code)
            check_run(recipe, run_inputs)
        teacher = teacher or run_inputs.teacher


def _refuse_another(
    comparison: Comparison, planned: Iterable[tuple[records.Entry, Recipe]], folder: Path, splits: data.Splits
) -> None:
    """Refuse a folder that holds another comparison; seeds and objectives may be added to the same one."""
    path = folder / records.RECIPE
    if (folder / records.MANIFEST).exists():
        raise RecipeError("name", "a folder for a comparison", f"{folder}, which holds a run", "type name=...")
    differs: list[str] = []
    if path.exists():
        try:
            records.read_bytes(path)
            differs = recipe_differences(config.read(path), comparison)
        except (RecipeError, records.DamagedError) as error:
            warnings.warn(f"{path} is damaged ({error.got}): written again", stacklevel=2)
    differs = differs or [
        f"{entry['folder']}: {line}"
        for entry, recipe in planned
        if begun(folder / entry["folder"])
        for line in run_differences(folder / entry["folder"], recipe, data=splits.fingerprint)
    ]
    if differs:
        expected = f"the comparison that {folder / records.RECIPE} holds"
        instead = "type name=... for a new one, or remove the folder"
        raise RecipeError("name", expected, f"another one: {', '.join(differs)}", instead)
    records.write_bytes(path, config.dump(comparison).encode())
