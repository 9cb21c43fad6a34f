"""A comparison: several objectives over several seeds on one task, with one teacher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tutelage import config, data, records
from tutelage.config.schema import Comparison, Network, Recipe, RecipeError
from tutelage.objectives import from_spec
from tutelage.runs import autotune
from tutelage.runs.execute import (
    FREE,
    BusyError,
    NullReporter,
    Reporter,
    execute,
    execute_group,
    finished,
    folder_lock,
    group_of,
    steps_of,
    torch_settings,
)
from tutelage.runs.record_teacher import record
from tutelage.runs.setup import build_inputs, build_objectives


def compare(
    comparison: Comparison,
    folder: Path,
    *,
    command: str,
    reporter: Reporter | None = None,
    trust_code: bool | frozenset[str] = False,
) -> Path:
    """Do a comparison, or go on with it: finished runs are not done again.

    The students of one data seed are trained in lockstep, ``together`` at most: a batch is made and the teacher is
    asked once for all of them, and each ends in the bits of one trained alone. Several processes may do one comparison:
    each takes the next runs that no other is at. Where ``outputs`` names a folder, the teacher is asked once for all
    the runs of a data seed, whenever they are done.

    Seeds are the outer loop, so that a comparison that was stopped has whole rows. From one seed to the next both seeds
    differ: initialisation, and order and views; with ``share_data_seed`` the initialisation alone.

    Args:
        comparison: what to compare.
        folder: of the comparison; its runs' folders lie in it.
        command: how it was asked for.
        reporter: shows it as it goes.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.

    Returns:
        The path of the report.

    Raises:
        RecipeError: the folder holds another comparison, or something in the recipe does not fit.
        Exception: a run failed; those trained beside it are done first.
    """
    from tutelage.report.html import write_report

    reporter = reporter or NullReporter()
    folder.mkdir(parents=True, exist_ok=True)
    baseline = comparison.baseline or next(iter(comparison.objectives))
    splits = data.open_data(comparison.data)
    with folder_lock(folder, wait=True):
        comparison = _settled(comparison, folder, splits, reporter, trust_code)
        training = comparison.training(f"{comparison.name}/teacher")
        planned = list(plan(comparison, folder))
        _same(comparison, folder)
        records.write_json(
            folder / records.COMPARISON,
            records.Comparison(
                name=comparison.name,
                baseline=baseline,
                teacher="teacher" if training else None,
                share_data_seed=comparison.share_data_seed,
                entries=[entry for entry, _ in planned],
            ),
        )
    todo = [(folder / entry["folder"], recipe) for entry, recipe in planned if not finished(folder / entry["folder"])]
    taught = training is None or finished(folder / "teacher")
    samples = len(splits.train)
    ahead = [recipe for _, recipe in todo] + ([] if taught or training is None else [training])
    reporter.expect(sum(steps_of(recipe, samples) for recipe in ahead))
    if training is not None and not taught:
        reporter.say(f"{comparison.name}: the teacher, then {len(todo)} students")
        execute(training, folder / "teacher", verb="train", command=command, reporter=reporter, trust_code=trust_code)
    taps = [tap for spec in comparison.objectives.values() for tap in from_spec(spec).needs.teacher_taps]
    count = len(todo)
    while todo := [(place, recipe) for place, recipe in todo if not finished(place)]:
        chosen = group_of([recipe for _, recipe in todo], comparison.together)
        together = [todo[k] for k in chosen]
        reporter.say(_announced([recipe for _, recipe in together], left=len(todo), count=count))
        todo = [one for k, one in enumerate(todo) if k not in chosen]
        recorded = [recipe for _, recipe in together if recipe.outputs is not None]
        if recorded:
            record(recorded[0], taps=taps, reporter=reporter, trust_code=trust_code)
        done = execute_group(
            [(recipe, place) for place, recipe in together], command=command, reporter=reporter, trust_code=trust_code
        )
        with folder_lock(folder, wait=True):
            write_report(folder)
        for (place, recipe), run in zip(together, done, strict=True):
            if isinstance(run, BusyError):
                reporter.say(f"{recipe.name} is going on in another process: left to it")
            elif isinstance(run, Exception) and not finished(place):  # another process may have finished it
                raise run
    with folder_lock(folder, wait=True):
        return write_report(folder)


def _settled(
    comparison: Comparison, folder: Path, splits: data.Splits, reporter: Reporter, trust_code: bool | frozenset[str]
) -> Comparison:
    """Choose the precision that all runs have, by the first of them that asks a teacher, where it is left open."""
    comparison = autotune.recorded_precision(comparison, folder)
    if comparison.precision != "auto":
        return comparison
    planned = [recipe for _, recipe in plan(comparison, folder)]
    run = next(
        (one for one in planned if any(objective.needs.teacher for objective in build_objectives(one))), planned[0]
    )
    run = autotune.with_untrained_teacher(run.model_copy(update={"teacher": comparison.teacher}))
    with torch_settings(run):
        comparison, why = autotune.resolve_precision(
            comparison, build_inputs(run, trust_code=trust_code, splits=splits), run
        )
    if why:
        reporter.say(f"{comparison.name}: {why}")
    return comparison


def _announced(together: list[Recipe], *, left: int, count: int) -> str:
    """Say which students are trained next."""
    first = count - left + 1
    names = ", ".join(recipe.name for recipe in together)
    if len(together) == 1:
        return f"student {first} of {count}: {names}"
    return f"students {first} to {first + len(together) - 1} of {count}, together: {names}"


def plan(comparison: Comparison, folder: Path) -> Iterator[tuple[records.Entry, Recipe]]:
    """Yield each run's entry and recipe, in the order they are done in."""
    own = {name: getattr(comparison, name) for name in Recipe.model_fields}
    if comparison.training("teacher") is not None:
        own["teacher"] = Network(name=str(folder / "teacher"))
    for k in range(comparison.seeds):
        for name, objective in comparison.objectives.items():
            place = f"{name}-seed{k}"
            data_seed = comparison.data_seed + (0 if comparison.share_data_seed else k)
            seeds = {"seed": comparison.seed + k, "data_seed": data_seed}
            recipe = Recipe.model_construct(
                **{**own, "name": f"{comparison.name}/{place}", "objective": objective, **seeds}
            )
            if recipe.outputs is not None:
                asked = any(objective.needs.teacher for objective in build_objectives(recipe))
                recipe = recipe.model_copy(
                    update={"outputs": f"{recipe.outputs}/data{recipe.data_seed}" if asked else None}
                )
            yield {"folder": place, "objective": name, "seed": comparison.seed + k}, recipe


def _same(comparison: Comparison, folder: Path) -> None:
    """Refuse a folder that holds another comparison; more seeds or objectives of the same one are welcome."""
    path = folder / records.RECIPE
    resolved = config.dump(comparison)
    if (folder / records.MANIFEST).exists():
        raise RecipeError(f"name: expected a folder for a comparison, got {folder}, which holds a run; type name=...")
    if path.exists():
        then = config.parse(Comparison, config.read(path), where=str(path))
        free = {"objectives", "seeds", "baseline", "together"} | FREE
        differs = [
            name
            for name in Comparison.model_fields
            if name not in free and getattr(then, name) != getattr(comparison, name)
        ]
        differs += [
            f"objectives.{name}" for name, o in then.objectives.items() if comparison.objectives.get(name, o) != o
        ]
        if differs:
            raise RecipeError(
                f"name: expected the comparison that {folder} holds, got one with another {', '.join(differs)}; "
                "type name=... for a new one, or remove the folder"
            )
    records.write_bytes(path, resolved.encode())
