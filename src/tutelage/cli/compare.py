"""The command that compares objectives."""

from __future__ import annotations

from pathlib import Path

import typer

from tutelage.cli.common import (
    DryRun,
    Overrides,
    RecipePath,
    Runs,
    TrustCode,
    print_dry_run,
    print_table,
    run_options,
    trusted,
)


def compare(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    trust_code: TrustCode = False,
    runs: Runs = Path("runs"),
) -> None:
    """Compare several objectives over several seeds on one task."""
    from tutelage import config
    from tutelage.config.schema import Comparison
    from tutelage.runs.setup import parse
    from tutelage.runs.terminal import TerminalReporter
    from tutelage.studies import compare as comparisons

    path = Path(recipe) / "recipe.yaml" if Path(recipe).is_dir() else Path(recipe)
    comparison = parse(Comparison, config.read(path, overrides or []), where=str(path))
    trust = trusted(trust_code, overrides or [])
    folder = runs / comparison.name
    if dry_run:
        for run in comparisons.dry_runs(comparison, folder):
            print_dry_run(run, trust)
        return
    with TerminalReporter() as reporter:
        report = comparisons.compare(comparison, folder, options=run_options(reporter, trust))
    print_table(folder)
    typer.echo(f"\nreport: {report}")
