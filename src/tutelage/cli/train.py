"""Commands that start runs: train, distill, compare, record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage import launcher
from tutelage.cli import common
from tutelage.errors import RecipeError


def train(
    recipe: common.RecipePath,
    overrides: common.Overrides = None,
    dry_run: common.DryRun = False,
    trust_code: common.TrustCode = False,
    track: common.Track = None,
    runs: common.Runs = Path("runs"),
) -> None:
    """Train a network from labels: a teacher."""
    _run(recipe, overrides or [], dry_run, trust_code, track, runs, teacher=False)


def distill(
    recipe: common.RecipePath,
    overrides: common.Overrides = None,
    dry_run: common.DryRun = False,
    trust_code: common.TrustCode = False,
    track: common.Track = None,
    runs: common.Runs = Path("runs"),
) -> None:
    """Distil a teacher into a student."""
    _run(recipe, overrides or [], dry_run, trust_code, track, runs, teacher=True)


def _run(
    source: str,
    overrides: list[str],
    dry_run: bool,
    trust_code: bool,
    track: list[str] | None,
    runs: Path,
    *,
    teacher: bool,
) -> None:
    from tutelage.runs import preflight, recipes, resume, start
    from tutelage.runs.run import finished

    trackers = common.trackers(track)

    where, expected = source, None
    if "=" in source and not Path(source).exists():
        where, overrides = "recipe", [source, *overrides]
        recipe = recipes.from_overrides(overrides)
    elif Path(source).is_dir():
        recipe, expected = recipes.again(Path(source), overrides, runs)
        if recipe.start is None and any("epochs=" in text for text in overrides) and finished(Path(source)):
            said = f"this begins anew; to go on from where {source} ended, type start={source} too"
            common.echo(f"note: {said}", err=True)
    else:
        recipe = recipes.from_file(Path(source), overrides)
    trust = common.trusted(trust_code, overrides)
    if teacher:
        preflight.require_teacher(recipe.teacher, "to distil", instead="type tutelage train")
    if not teacher and recipe.teacher is not None:
        raise RecipeError(
            "teacher", "none, as train learns from labels alone", "one", "type tutelage distill, or teacher=null"
        )
    preflight.check_names(recipe, trust_code=trust)
    if not dry_run and launcher.rank() == 0:
        resume.earlier_run(runs / recipe.name, recipe)  # again once nobody else writes there
    if launcher.rank() == 0:
        start.origin(recipe, runs / recipe.name)
    from tutelage import api  # and with it torch: what can be refused without is refused by now
    from tutelage.runs.setup import check_objectives

    check_objectives(recipe, where=where, overrides=overrides, trust_code=trust)
    if dry_run:
        common.print_dry_run(recipe, trust, runs, set())
        return
    folder = runs / recipe.name
    with (
        common.noting_result(folder, "finished", lambda: finished(folder)),
        common.run_options(trust, trackers) as options,
    ):
        run = api.run(recipe, folder, options=options, expected=expected)
    common.print_report(run.folder)


def compare(
    recipe: common.RecipePath,
    overrides: common.Overrides = None,
    dry_run: common.DryRun = False,
    trust_code: common.TrustCode = False,
    track: common.Track = None,
    runs: common.Runs = Path("runs"),
    on: common.On = None,
    address: common.Address = None,
) -> None:
    """Compare several objectives over several seeds on one task."""
    from tutelage import config
    from tutelage.config.schema import Comparison
    from tutelage.runs import preflight

    common.check_cluster(on, address)
    trackers = common.trackers(track)
    typed = overrides or []
    path = Path(recipe) / "recipe.yaml" if Path(recipe).is_dir() else Path(recipe)
    comparison = config.parse(Comparison, config.read(path, typed), where=str(path), overrides=typed)
    trust = common.trusted(trust_code, overrides or [])
    folder = runs / comparison.name
    if not folder.exists():  # a finished one is shown though its teacher be gone
        preflight.check_names(comparison, trust_code=trust)
    from tutelage.runs.setup import check_objectives
    from tutelage.studies import compare as comparisons

    check_objectives(comparison, where=str(path), overrides=typed, trust_code=trust)
    if dry_run:
        noted = set[str]()
        for run in comparisons.dry_runs(comparison, folder):
            common.print_dry_run(run, trust, runs, noted)
        planned = [(run, folder / entry["folder"]) for entry, run in comparisons.plan(comparison, folder)]
        common.print_disk(planned, trust, runs)
        return
    with (
        common.run_options(trust, trackers) as options,
        common.noting_runs(folder),
        common.place_of(on, address, runs, comparison, options) as place,
    ):
        comparisons.compare(comparison, folder, options=options, on=place)
    common.print_report(folder)


def record(
    recipe: common.RecipePath,
    overrides: common.Overrides = None,
    limit_mb: Annotated[float | None, typer.Option(help="Refuse to write more: short for outputs_limit_mb=...")] = None,
    top: Annotated[
        int | None, typer.Option(help="Where all logits are above the limit, keep so many: short for outputs_top=...")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(help="Refuse --top where p_gamma or U_gamma is further off: short for outputs_max_error=..."),
    ] = None,
    trust_code: common.TrustCode = False,
) -> None:
    """Record a teacher's outputs for every view of a run; runs with the same outputs=... then read them."""
    from tutelage.runs import preflight, recipes

    typed = overrides or []
    short = {"outputs_limit_mb": limit_mb, "outputs_top": top, "outputs_max_error": max_error}
    parsed = recipes.from_file(Path(recipe), [*typed, *(f"{key}={v}" for key, v in short.items() if v is not None)])
    trust = common.trusted(trust_code, typed)
    preflight.require_teacher(parsed.teacher, "whose outputs are recorded")
    outputs = preflight.require_outputs(parsed)
    preflight.check_names(parsed, trust_code=trust)
    from tutelage.report.table import plural
    from tutelage.runs import record_teacher
    from tutelage.runs.setup import check_objectives

    check_objectives(parsed, where=recipe, overrides=typed, trust_code=trust)
    with (
        common.run_options(trust) as options,
        common.noting(outputs, lambda: plural(len(list(outputs.rglob("*.safetensors"))), "file")),
    ):
        record_teacher.record(parsed, options=options)
    common.echo()
    common.echo(f"outputs: {outputs}")
