"""The command that compares objectives."""

from __future__ import annotations

from pathlib import Path

import typer

from tutelage.cli import common


def compare(
    recipe: common.RecipePath,
    overrides: common.Overrides = None,
    dry_run: common.DryRun = False,
    trust_code: common.TrustCode = False,
    runs: common.Runs = Path("runs"),
) -> None:
    """Compare several objectives over several seeds on one task."""
    from tutelage import config
    from tutelage.config.schema import Comparison
    from tutelage.runs.setup import parse
    from tutelage.runs.terminal import TerminalReporter
    from tutelage.studies import compare as comparisons

    path = Path(recipe) / "recipe.yaml" if Path(recipe).is_dir() else Path(recipe)
    comparison = parse(Comparison, config.read(path, overrides or []), where=str(path))
    trust = common.trusted(trust_code, overrides or [])
    folder = runs / comparison.name
    if dry_run:
        for run in comparisons.dry_runs(comparison, folder):
            common.print_dry_run(run, trust)
        return
    with TerminalReporter() as reporter:
        report = comparisons.compare(comparison, folder, options=common.run_options(reporter, trust))
    common.print_table(folder)
    typer.echo(f"\nreport: {report}")
