"""The command that runs a study."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage import launcher
from tutelage.cli import common, completion
from tutelage.cli.exits import wait_for_launcher
from tutelage.errors import InvalidValueError, TutelageError, raise_all

if TYPE_CHECKING:
    from tutelage.studies.plan import StudyRequest


def study(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY]",
            help="A study of the package, or a YAML file; none to list them.",
            autocompletion=completion.studies,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Overrides of the protocol, such as data.source=hf:path.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    pairs: Annotated[str, typer.Option(help="Only these pairs, separated by commas.")] = "",
    methods: Annotated[str, typer.Option(help="Only these methods, separated by commas.")] = "",
    seeds: Annotated[int | None, typer.Option(max=10_000, help="Runs of each method.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the protocol; decays and warm-up are scaled with them.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=256, help="Processes that share the work, and this machine's GPUs.")
    ] = 1,
    together: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="Students at most that share a batch and a teacher's pass; 8, or 1 to time them."
        ),
    ] = None,
    pool: Annotated[str | None, typer.Option(help="The folder of the runs, shared by several studies.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Stop inside this time, such as 90s, 25m or 2h; the same command resumes.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Short for the override device=...: auto, cpu, cuda or cuda:N.")
    ] = None,
    list_studies: Annotated[bool, typer.Option("--list", help="List the studies of the package.")] = False,
    dry_run: common.DryRun = False,
    trust_code: common.TrustCode = False,
    track: common.Track = None,
    runs: common.Runs = Path("runs"),
    on: common.On = None,
    address: common.Address = None,
    worker: Annotated[Path | None, typer.Option("--worker", hidden=True)] = None,
    until: Annotated[float | None, typer.Option("--until", hidden=True)] = None,
) -> None:
    """Do a grid of runs, pairs by methods by seeds, and compare it with published values."""
    began = time.monotonic()
    if jobs > 1 and launcher.world_size() > 1:
        got = f"--jobs {jobs} in each of {launcher.world_size()} processes"
        raise InvalidValueError("--jobs", "1 under a launcher of several processes", got, "leave out one of the two")
    common.check_cluster(on, address, jobs=jobs if jobs > 1 else None, budget=budget)
    trackers = common.trackers(track)
    from tutelage.places import time_limit
    from tutelage.studies import plan, study_file

    if name is None or list_studies:
        width = max(map(len, study_file.names()))
        for known, title in study_file.titles():
            common.echo(f"{known:<{width}}  {title}")
        return
    limit = time_limit.begin(budget, began, until)
    typed = _with_device(overrides or [], device)
    plain, changed = study_file.read(name, typed)
    request = plan.assign(
        plain, changed, runs=runs, pairs=_listed(pairs), methods=_listed(methods), seeds=seeds, epochs=epochs, pool=pool
    )
    trust = common.trusted(trust_code, overrides or [])
    plan.check_names(request)
    from tutelage import records
    from tutelage.objectives import from_spec  # and with it torch: what can be refused without is refused by now
    from tutelage.studies import budget as budgets
    from tutelage.studies import run_study, trials, workers

    study_file.read(name, typed, check=partial(from_spec, trust_code=trust))
    if device is not None and on is None:
        _require(device)
    if dry_run:
        if limit is not None:
            next_runs = trials.next_runs(request)
            for line in budgets.prepare(next_runs, limit, workers=jobs, trust_code=trust, keep=False).lines():
                common.echo(line)
        _dry_run(request, trust)
        return
    if worker is None:
        _print_deviations(request)
    else:
        workers.end_with_parent()
    if jobs > 1 and worker is None:
        with common.noting_runs(request.runs / request.pool):
            failed = workers.share_study(sys.argv[1:], request, jobs, budget=limit, trust_code=trust, say=common.echo)
    else:
        show_plan = worker is None
        with (
            common.run_options(trust, trackers, shares_machine=worker is not None) as options,
            common.noting_runs(request.runs / request.pool),
            common.place_of(on, address, runs, request.study.recipe, options, jobs=jobs) as place,
        ):
            failed = run_study.run_study(
                request, options=options, budget=limit, together=together, show_plan=show_plan, on=place
            )
    if worker is not None:
        records.write_json(worker, failed)
        return
    if (request.folder / "study.json").exists():
        with common.noting_result(
            request.folder, "finished", lambda: limit is None
        ):  # else some runs may be left to do
            common.print_table(request.folder)
            common.echo()
            common.echo(f"table: {request.folder / 'table.md'}")
            common.echo(common.report_line(request.folder))
    if limit is not None:
        left = budgets.prepare(trials.next_runs(request), limit, workers=jobs, measure=False)
        common.echo()
        common.echo(budgets.progress(left))
        if left.left:
            common.echo(f"to resume, here or where the folder {runs} was copied to: {common.command()}")
    for run, reason in failed.items():
        common.echo(f"tutelage: {run}: {' '.join(reason.split())}", err=True)
    if failed:
        if launcher.rank() > 0:
            wait_for_launcher()
        raise typer.Exit(common.FAILED)


def _listed(typed: str) -> list[str]:
    return [name.strip() for name in typed.split(",") if name.strip()]


def _dry_run(request: StudyRequest, trust: bool | frozenset[str]) -> None:
    """Try each method once on each pair, or each candidate that is still to try, and report the errors of all."""
    from tutelage.studies import plan, trials

    runs, coming, tried = plan.jobs(request), trials.next_runs(request), []
    first = ""
    if coming.trial is not None:
        tried = [job for job in plan.jobs(coming) if job.method != "teacher"]
        first = f", after {len(tried)} trials of {tried[0].recipe.epochs} epochs"
    common.echo(f"{request.study.name}: {len(runs)} runs in {request.runs / request.pool}{first}")
    _print_deviations(request)
    for method, reason in request.missing.items():
        if method in request.methods:
            common.echo(f"{method}: {reason}")
    errors, noted = [], set[str]()
    for recipe in plan.dry_run_recipes(coming):
        try:
            common.print_dry_run(recipe, trust, request.runs, noted)
        except TutelageError as error:
            common.echo(f"  does not fit: {error}")
            errors.append(error.within(recipe.name))
    raise_all(errors)
    common.print_disk([(job.recipe, request.runs / job.name) for job in [*runs, *tried]], trust, request.runs)


def _print_deviations(request: StudyRequest) -> None:
    from tutelage.studies import plan

    for deviation in plan.deviations(request, plan.cells(request)):
        common.echo(f"deviates from the study: {deviation}")


def _with_device(overrides: list[str], device: str | None) -> list[str]:
    """Return the overrides with ``--device`` among them."""
    if device is None:
        return overrides
    for text in overrides:
        key, _, value = text.partition("=")
        if key in ("device", "protocol.device") and value != device:
            raise InvalidValueError("--device", "one device", f"--device {device} and {text}", "leave one of them out")
    return [*overrides, f"device={device}"]


def _require(device: str) -> None:
    from tutelage.training.distributed import require_device

    try:
        require_device(device)
    except InvalidValueError as error:
        raise error.renamed(lambda _: "--device") from None
