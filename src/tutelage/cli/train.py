"""Commands that start runs: train, distill, compare, record."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli import common


def _command(run: Callable[[str, list[str], bool, bool, Path], None], summary: str) -> Callable[..., None]:
    """Return a command that runs a recipe."""

    def command(
        recipe: common.RecipePath,
        overrides: common.Overrides = None,
        dry_run: common.DryRun = False,
        trust_code: common.TrustCode = False,
        runs: common.Runs = Path("runs"),
    ) -> None:
        run(recipe, overrides or [], dry_run, trust_code, runs)

    command.__doc__ = summary
    return command


def _run(source: str, overrides: list[str], dry_run: bool, trust_code: bool, runs: Path, *, teacher: bool) -> None:
    from tutelage import api

    trust, expected = common.trusted(trust_code, [source, *overrides]), None
    if "=" in source and not Path(source).exists():
        recipe = api.from_overrides([source, *overrides])
    elif Path(source).is_dir():
        recipe, expected = api.again(Path(source), overrides, runs)
    else:
        recipe = api.from_file(Path(source), overrides)
    if teacher and recipe.teacher is None:
        common.fail("teacher: expected one to distil, got none; add teacher=runs/NAME, or type tutelage train")
    if not teacher and recipe.teacher is not None:
        common.fail("teacher: expected none to train from labels, got one; type tutelage distill")
    if dry_run:
        common.print_dry_run(recipe, trust)
        return
    with common.run_options(trust) as options:
        run = api.run(recipe, runs / recipe.name, options=options, expected=expected)
    common.print_report(run.folder)


def _compare(source: str, overrides: list[str], dry_run: bool, trust_code: bool, runs: Path) -> None:
    from tutelage import config
    from tutelage.config.schema import Comparison
    from tutelage.runs.setup import parse
    from tutelage.studies import compare as comparisons

    path = Path(source) / "recipe.yaml" if Path(source).is_dir() else Path(source)
    comparison = parse(Comparison, config.read(path, overrides), where=str(path))
    trust, folder = common.trusted(trust_code, overrides), runs / comparison.name
    if dry_run:
        for run in comparisons.dry_runs(comparison, folder):
            common.print_dry_run(run, trust)
        return
    with common.run_options(trust) as options:
        comparisons.compare(comparison, folder, options=options)
    common.print_report(folder)


train = _command(partial(_run, teacher=False), "Train a network from labels: a teacher.")
distill = _command(partial(_run, teacher=True), "Distil a teacher into a student.")
compare = _command(_compare, "Compare several objectives over several seeds on one task.")


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
    from tutelage import api
    from tutelage.runs import record_teacher

    typed = overrides or []
    short = {"outputs_limit_mb": limit_mb, "outputs_top": top, "outputs_max_error": max_error}
    parsed = api.from_file(Path(recipe), [*typed, *(f"{key}={v}" for key, v in short.items() if v is not None)])
    with common.run_options(common.trusted(trust_code, typed)) as options:
        folder = record_teacher.record(parsed, options=options)
    typer.echo(f"\noutputs: {folder}")
