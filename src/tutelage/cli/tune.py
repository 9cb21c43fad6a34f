"""The command that searches for settings."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from tutelage.cli import common
from tutelage.settings.run import TOGETHER


def tune(
    recipe: common.RecipePath,
    overrides: common.Overrides = None,
    trials: Annotated[int, typer.Option(help="Runs of the search; the first has the recipe's own settings.")] = 20,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=RANGE",
            help="What to search, such as optimizer.lr=1e-3..1e-1,log or batch_size=32,64,128; may be repeated.",
        ),
    ] = None,
    space: Annotated[
        Literal["recipe", "objective"],
        typer.Option(help="The recipe's exponent, weight and learning rate, or the parts of the matching term."),
    ] = "recipe",
    confirm: Annotated[
        int, typer.Option(help="New seeds over which what was found is tried again, beside the recipe; 0 for none.")
    ] = 3,
    together: Annotated[
        int, typer.Option(help="Trials that are chosen at a time, and share batches and the teacher's pass.")
    ] = TOGETHER,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="End trials that do worse than the median of earlier ones.")
    ] = True,
    budget: Annotated[
        str | None, typer.Option(help="Stop inside this time, such as 90s, 25m or 2h; the same command resumes.")
    ] = None,
    dry_run: common.DryRun = False,
    trust_code: common.TrustCode = False,
    runs: common.Runs = Path("runs"),
    on: common.On = None,
    address: common.Address = None,
) -> None:
    """Search for settings on the validation set, and say what of the gain is noise."""
    began = time.monotonic()
    common.check_cluster(on, address, budget=budget)
    from tutelage.places import time_limit
    from tutelage.runs import preflight, recipes
    from tutelage.tuning import request as requests

    limit = time_limit.begin(budget, began)
    typed = overrides or []
    path = Path(recipe) / "recipe.yaml" if Path(recipe).is_dir() else Path(recipe)
    parsed = recipes.from_file(path, typed)
    trust = common.trusted(trust_code, typed)
    asked = requests.request(
        parsed, trials=trials, search=search or [], space=space, confirm=confirm, together=together, prune=prune
    )
    preflight.check_names(parsed, trust_code=trust)
    from tutelage import records
    from tutelage.runs.setup import check_objectives  # and with it torch: what needs none is refused by now
    from tutelage.training.deadline import Deadline
    from tutelage.tuning import sampler, summary
    from tutelage.tuning import search as searches

    sampler.optuna()
    check_objectives(parsed, where=str(path), overrides=typed, trust_code=trust)
    for edge in requests.edges(asked):
        check_objectives(edge, where="--search", trust_code=trust)
    folder = runs / requests.folder_name(asked)
    if dry_run:
        for line in summary.space_lines(asked.space):
            common.echo(line)
        common.print_dry_run(parsed, trust, runs, set())
        common.print_disk([(parsed, folder / searches.trial_name(k)) for k in range(trials)], trust, runs)
        return
    with (
        common.run_options(trust) as options,
        common.noting_runs(folder),
        common.place_of(on, address, runs, parsed, options) as place,
    ):
        if limit is not None:
            options = replace(options, deadline=Deadline(limit.ends))
        searches.tune(asked, folder, options=options, on=place)
    begun = (folder / records.TUNE).exists()  # not where the time was up before the teacher was trained
    if begun:
        common.print_report(folder)
    if not begun or (
        limit is not None and any(trial["state"] == "running" for trial in summary.read(folder)["trials"])
    ):
        common.echo(f"to resume, here or where the folder {runs} was copied to: {common.command()}")
