"""A comparison: several objectives over several seeds on one task, with one teacher."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from tutelage import config, data, records
from tutelage.config.schema import Comparison, Network, Recipe
from tutelage.errors import RecipeError
from tutelage.objectives import from_spec
from tutelage.report import results
from tutelage.report.table import Table
from tutelage.runs import autotune, disk
from tutelage.runs.execute import execute
from tutelage.runs.group import execute_group, group_of
from tutelage.runs.lock import BusyError, folder_lock
from tutelage.runs.record_teacher import record
from tutelage.runs.resume import begun, recipe_differences, run_differences
from tutelage.runs.run import DEFAULTS, Run, RunOptions, finished
from tutelage.runs.setup import build_inputs, check_run, check_teacher, needs_teacher, steps_of, torch_settings
from tutelage.studies.cluster import Cluster, sendable
from tutelage.training.distributed import accelerator_on, by_main, naming_process, together

LOST = 60.0
"""Seconds that a process may outlive its lost node."""


@dataclass(frozen=True)
class ComparedRuns:
    """A comparison's folder and what it holds."""

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


def compare(
    comparison: Comparison, folder: Path, *, options: RunOptions = DEFAULTS, cluster: Cluster | None = None
) -> Path:
    """Run a comparison in a folder, or resume it: finished runs are not repeated. Return the path of the report.

    The students of one data seed are trained in lockstep, ``together`` at most, and each ends with the same bits as one
    trained alone. Several processes may run one comparison: each takes the next runs that no other process has. If
    ``outputs`` names a folder, the teacher runs once for all runs of a data seed.

    Seeds are the outer loop, so that an interrupted comparison has whole rows. From one seed to the next, both
    initialisation and order and views differ; with ``share_data_seed`` only the initialisation.

    With a cluster, the groups are trained on its nodes, each by one task; an error in a run does not stop the others.

    Raises:
        RecipeError: if the folder holds another comparison, or something in the recipe does not fit.
        Exception: if a run failed; those trained beside it are finished first.
    """
    if cluster is not None:
        return _compare(comparison, folder, options, cluster)
    accelerator_on(comparison.device)
    with naming_process():
        return by_main(lambda: _compare(comparison, folder, options, None))


def _compare(comparison: Comparison, folder: Path, options: RunOptions, cluster: Cluster | None) -> Path:
    from tutelage.report.html import write_report

    reporter = options.reporter
    objectives = [from_spec(spec) for spec in comparison.objectives.values()]
    check_teacher(comparison.teacher, objectives)
    splits = data.open_data(comparison.data)
    if cluster is None:
        comparison = _prepare(comparison, folder, splits, options)
    else:  # where the runs are to be, as the driver may lack their device
        comparison = cluster.call(_prepare, comparison, folder, None, options=options, recipe=comparison)
    training = comparison.training(f"{comparison.name}/teacher")
    planned = list(plan(comparison, folder))
    left = [(recipe, folder / entry["folder"]) for entry, recipe in planned if not finished(folder / entry["folder"])]
    if finished(folder / "teacher"):
        training = None
    recipes = [recipe for recipe, _ in left] + ([training] if training else [])
    reporter.expect(sum(steps_of(recipe, len(splits.train)) for recipe in recipes))
    if left:
        size = disk.size_of_all(
            [*left, *([(training, folder / "teacher")] if training else [])], splits, options.trust_code
        )
        disk.require_room(f"comparison {comparison.name}", folder, size)
    if training is not None:
        reporter.say(f"{comparison.name}: the teacher, then {len(left)} students")
        if cluster is None:
            together(execute, training, folder / "teacher", options=with_reports(options))
        else:
            teacher = [(training, folder / "teacher")]
            (error,) = cluster.call(train_left, teacher, [], options=options, recipe=training)
            if error is not None:
                raise error
    taps = [tap for objective in objectives for tap in objective.needs.teacher_taps]
    if cluster is not None:
        _train_on(cluster, left, comparison, folder, taps, options)
        with folder_lock(folder, wait=True):
            return write_report(folder)
    count = len(left)
    while left := [(recipe, path) for recipe, path in left if not finished(path)]:
        chosen = group_of([recipe for recipe, _ in left], comparison.together)
        group = [left[k] for k in chosen]
        first, last = count - len(left) + 1, count - len(left) + len(group)
        which = f"student {first} of {count}" if first == last else f"students {first} to {last} of {count}, together"
        reporter.say(f"{which}: {', '.join(recipe.name for recipe, _ in group)}")
        left = [run for k, run in enumerate(left) if k not in chosen]
        results = together(train, group, taps, options)
        with folder_lock(folder, wait=True):
            write_report(folder)
        for (recipe, path), result in zip(group, results, strict=True):
            if isinstance(result, BusyError):
                reporter.say(f"{recipe.name} is running in another process: left to it")
            elif isinstance(result, Exception) and not finished(path):  # another process may have finished it
                raise result
    with folder_lock(folder, wait=True):
        return write_report(folder)


def _train_on(
    cluster: Cluster,
    left: Sequence[tuple[Recipe, Path]],
    comparison: Comparison,
    folder: Path,
    taps: Sequence[str],
    options: RunOptions,
) -> None:
    """Train a comparison's runs on a cluster.

    Raises:
        Exception: the first error of a run, when all others are done.
    """
    from tutelage.report.html import write_report

    reporter, errors = options.reporter, dict[str, Exception]()
    most, rest = min(comparison.together, -(-len(left) // cluster.slots)), list(left)
    while rest:
        chosen = group_of([recipe for recipe, _ in rest], most)
        group = [rest[k] for k in chosen]
        rest = [run for k, run in enumerate(rest) if k not in chosen]
        cluster.submit(group, train_left, group, taps, options=options, recipe=group[0][0], planned=group)
    while cluster.busy:
        group, outcome = cluster.next(reporter)
        with folder_lock(folder, wait=True):
            write_report(folder)
        for (recipe, path), error in zip(group, outcome.value or [outcome.error] * len(group), strict=True):
            if isinstance(error, BusyError):
                reporter.say(f"{recipe.name} is running in another process: left to it")
            elif error is None or finished(path):
                reporter.say(f"finished: {recipe.name}")
            else:
                reporter.say(f"failed: {recipe.name}: {error}")
                errors[recipe.name] = error
    for recipe, _ in left:
        if recipe.name in errors:
            raise errors[recipe.name]


def train_left(
    group: Sequence[tuple[Recipe, Path]], taps: Iterable[str], options: RunOptions
) -> list[Exception | None]:
    """Train, in a task of a cluster, what of a group is not finished; return each run's error.

    The task may be done again after its node was lost: then some runs may be finished, and a process of that node may
    take a while to end.
    """
    left = [k for k, (_, path) in enumerate(group) if not finished(path)]
    for k in left:
        with contextlib.suppress(BusyError), folder_lock(group[k][1], wait=LOST):
            pass
    results = dict(zip(left, train([group[k] for k in left], taps, options), strict=True)) if left else {}
    return [sendable(error) if isinstance(error := results.get(k), Exception) else None for k in range(len(group))]


def train(group: Sequence[tuple[Recipe, Path]], taps: Iterable[str], options: RunOptions) -> list[Run | Exception]:
    """Train runs in lockstep; return each run, or the error why there is none.

    The teacher's outputs are recorded first if they are read; ``taps`` are features that other runs read from them.
    """
    recorded = next((recipe for recipe, _ in group if recipe.outputs is not None), None)
    if recorded is not None:
        record(recorded, taps=list(taps), options=options)
    return execute_group(group, options=with_reports(options))


def with_reports(options: RunOptions) -> RunOptions:
    """Return options by which each finished run gets its report at once; a failing report costs no run."""

    def write(folder: Path) -> None:
        from tutelage.report.html import write_report  # plotly takes a while to import

        try:
            write_report(folder)
        except Exception as error:  # noqa: BLE001  the run is finished, and nothing else depends on its report
            options.reporter.say(f"{folder.name}: no report: {str(error) or type(error).__name__}")
        except KeyboardInterrupt as error:
            error.add_note(f"{folder}: finished, without its report, which tutelage report {folder} writes")
            raise

    return replace(options, when_finished=write)


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
    if comparison.training("teacher") is not None:
        settings["teacher"] = Network(name=(folder / "teacher").as_posix())
    for k in range(comparison.seeds):
        seed = comparison.seed + k
        data_seed = comparison.data_seed + (0 if comparison.share_data_seed else k)
        settings |= {"seed": seed, "data_seed": data_seed}
        for name, objective in comparison.objectives.items():
            path = f"{name}-seed{k}"
            settings |= {"name": f"{comparison.name}/{path}", "objective": objective}
            recipe = Recipe.model_construct(**settings)
            if recipe.outputs is not None:
                outputs = f"{recipe.outputs}/data{data_seed}" if needs_teacher(recipe) else None
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
