"""Commands that do one run: train, distill, record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.common import (
    USER,
    DryRun,
    Overrides,
    RecipePath,
    Runs,
    TrustCode,
    fail,
    print_dry_run,
    print_table,
    run_options,
    trusted,
)


def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    trust_code: TrustCode = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train a network from labels: a teacher."""
    _run(recipe, overrides or [], dry_run, trust_code, runs, teacher=False)


def distill(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    trust_code: TrustCode = False,
    runs: Runs = Path("runs"),
) -> None:
    """Distil a teacher into a student."""
    _run(recipe, overrides or [], dry_run, trust_code, runs, teacher=True)


def record(
    recipe: RecipePath,
    overrides: Overrides = None,
    limit_mb: Annotated[
        float | None, typer.Option("--limit-mb", help="Refuse to write more: short for outputs_limit_mb=...")
    ] = None,
    top: Annotated[
        int | None,
        typer.Option("--top", help="Where all logits are above the limit, keep so many: short for outputs_top=..."),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error", help="Refuse --top where p_gamma or U_gamma is further off: short for outputs_max_error=..."
        ),
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Record a teacher's outputs for every view of a run; runs with the same outputs=... then ask it no more."""
    from tutelage import api
    from tutelage.runs import record_teacher
    from tutelage.runs.terminal import TerminalReporter

    typed = overrides or []
    short = {"outputs_limit_mb": limit_mb, "outputs_top": top, "outputs_max_error": max_error}
    parsed = api.from_file(Path(recipe), [*typed, *(f"{key}={v}" for key, v in short.items() if v is not None)])
    with TerminalReporter() as reporter:
        folder = record_teacher.record(parsed, options=run_options(reporter, trusted(trust_code, typed)))
    typer.echo(f"\noutputs: {folder}")


def _run(source: str, overrides: list[str], dry_run: bool, trust_code: bool, runs: Path, *, teacher: bool) -> None:
    from tutelage import api
    from tutelage.runs.terminal import TerminalReporter

    trust, expected = trusted(trust_code, [source, *overrides]), None
    if "=" in source and not Path(source).exists():
        recipe = api.from_overrides([source, *overrides])
    elif Path(source).is_dir():
        recipe, expected = api.again(Path(source), overrides, runs)
    else:
        recipe = api.from_file(Path(source), overrides)
    if teacher and recipe.teacher is None:
        fail("teacher: expected one to distil, got none; add teacher=runs/NAME, or type tutelage train", USER)
    if not teacher and recipe.teacher is not None:
        fail("teacher: expected none to train from labels, got one; type tutelage distill", USER)
    if dry_run:
        print_dry_run(recipe, trust)
        return
    with TerminalReporter() as reporter:
        run = api.run(recipe, runs / recipe.name, options=run_options(reporter, trust), expected=expected)
    print_table(run.folder)
    typer.echo(f"\nreport: {run.folder / 'report.html'}")
