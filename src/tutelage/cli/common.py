"""Options and printing that the commands share."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tutelage import launcher
from tutelage.cli import completion
from tutelage.errors import InvalidValueError, printable

if TYPE_CHECKING:
    from tutelage.config.schema import Recipe
    from tutelage.places.cluster import Cluster
    from tutelage.places.here import Here
    from tutelage.runs.reporter import Reporter
    from tutelage.runs.run import RunOptions

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML recipe, or a run's folder to repeat or resume it.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides, such as epochs=10 data.validation=0.1.",
        autocompletion=completion.overrides,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Resolve and load everything, try one batch, write nothing.")]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Allow what runs code: file: and export: models, file: objectives, modules of your own.",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Hand what is recorded to a tracker too: tensorboard, wandb, mlflow or trackio; repeatable.",
        autocompletion=completion.trackers,
    ),
]
Runs = Annotated[Path, typer.Option(help="The folder of all runs.")]

On = Annotated[
    Literal["ray"] | None,
    typer.Option(help="Deal the runs over a Ray cluster's nodes and GPUs, as --on ray --address 10.0.0.1:6379 does."),
]
Address = Annotated[
    str | None,
    typer.Option(help="The cluster's HOST:PORT; by default RAY_ADDRESS, or this machine's cluster."),
]

FAILED = 1
"""The exit code where the run or the machine failed, and not what was typed."""


_NETWORK = r"(?:pairs\.[^.]+\.)?(?:student|model|teacher(?:\.train\.model|(?:\.members)?\.[0-9]+)?)(?:\.name)?"
"""Pattern of a key whose value names a network."""


_ENTRY = r"(?:(?:stages\.[0-9]+|teacher\.train|methods\.[^.]+)\.)?objective|objectives\.[^.]+|methods\.[^.]+"
_OBJECTIVE = rf"(?:{_ENTRY})(?:\.[0-9]+)?"
"""Pattern of a key whose value is an objective, or an entry of one."""


def trusted(trust_code: bool, overrides: Iterable[str], models: Sequence[str] = ()) -> bool | frozenset[str]:
    """Return whether all that runs code is trusted, or the names of what was typed as a network or an objective.

    A name is consent to exactly that file, and function of it, as it is written. It is one only where it is the whole
    value of a key that names a network, a preset of an objective, or one of ``models``, which were typed as an
    argument; inside other text, such as a run's name or a folder, it is none.
    """
    from tutelage import config
    from tutelage.models import names as model_names

    typed = set(models)
    for text in overrides:
        values: list[tuple[str, Any]] = [("", config.override({}, [text]))]
        while values:
            key, value = values.pop()
            entries = value if isinstance(value, dict) else [value]
            if re.fullmatch(_OBJECTIVE, key):
                typed.update(entry for entry in entries if isinstance(entry, str))
            if isinstance(value, dict):
                values += [(f"{key}.{name}" if key else str(name), inner) for name, inner in value.items()]
            elif isinstance(value, list):
                values += [(f"{key}.{k}", inner) for k, inner in enumerate(value)]
            elif isinstance(value, str) and re.fullmatch(_NETWORK, key):
                typed.add(value)
    return trust_code or frozenset(name for name in typed if name.startswith(model_names.RUNS_CODE))


def echo(text: str = "", *, err: bool = False) -> None:
    """Print one line of what can be printed, in the first of several processes."""
    if launcher.rank() == 0:
        typer.echo(printable(text), err=err)


def command() -> str:
    """Return the command as it was typed, without the hidden options of worker processes."""
    typed = list(sys.argv[1:])
    for hidden in ("--worker", "--until"):
        if hidden in typed:
            at = typed.index(hidden)
            del typed[at : at + 2]
    return shlex.join(["tutelage", *typed])


@contextlib.contextmanager
def run_options(
    trust: bool | frozenset[str], track: tuple[Any, ...] = (), *, shares_machine: bool = False
) -> Iterator[RunOptions]:
    """Yield the options of a command's runs, with progress on the terminal."""
    from tutelage.runs.run import RunOptions
    from tutelage.runs.terminal import drawn_or_printed

    with drawn_or_printed("stdout") as reporter:
        yield RunOptions(
            reporter=reporter, trust_code=trust, command=command(), track=track, shares_machine=shares_machine
        )


def trackers(typed: list[str] | None) -> tuple[Any, ...]:
    """Return the trackers that were typed, and refuse those that are not known or not installed."""
    from tutelage.runs.trackers import check

    return check(typed, what="--track")


def remarks() -> Reporter:
    """Return what shows remarks beside a result, which alone is on standard output."""
    from tutelage.runs.reporter import Reporter

    class Remarks(Reporter):
        def remark(self, text: str) -> None:
            echo(f"note: {text}", err=True)

    return Remarks()


def check_cluster(on: str | None, address: str | None, **others: object) -> None:
    """Refuse options that do not go with a cluster, or need one. ``others`` are options that exclude it, as typed."""
    if on is None:
        if address is not None:
            raise InvalidValueError("--address", "--on ray with it", address, "type --on ray, or leave it out")
        return
    if launcher.world_size() > 1:
        got = f"{launcher.world_size()} processes of a launcher"
        raise InvalidValueError("--on", "one process, as the cluster has the others", got, "type it without a launcher")
    for name, value in others.items():
        if value:
            got, instead = f"--on {on} with --{name} {value}", "leave out one of the two"
            raise InvalidValueError(f"--{name}", "none with --on ray", got, instead)


def place_of(
    on: str | None, address: str | None, runs: Path, recipe: Recipe, options: RunOptions, *, jobs: int = 1
) -> contextlib.AbstractContextManager[Here | Cluster]:
    """Connect to the cluster that was typed, if any; else the runs are trained here, in one of so many processes."""
    from tutelage.places.cluster import connected
    from tutelage.places.here import Here

    if on is None:
        return contextlib.nullcontext(Here(jobs))
    return connected(address or "auto", runs, recipe, options.reporter)


@contextlib.contextmanager
def noting(folder: Path, saved: Callable[[], str]) -> Iterator[None]:
    """Where a command is stopped, note what of what it makes is saved in a folder."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(f"{folder}: {saved()}")
        raise


@contextlib.contextmanager
def noting_result(folder: Path, what: str, there: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Where a command is stopped that has nothing left to do but to show a result, note so, and what to type to see it.

    Args:
        folder: folder of the run, the comparison or the study.
        what: what is there, for the note.
        there: whether it is.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if there():
            if not getattr(error, "__notes__", []):
                error.add_note(f"{folder}: {what}")
            vars(error)["instead"] = f"type {shlex.join(['tutelage', 'report', str(folder)])} to see it"
        raise


def noting_runs(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Where a command of several runs is stopped, note how many in a folder are finished, and how many are begun."""
    from tutelage import records
    from tutelage.report.table import plural
    from tutelage.runs.run import finished

    def saved() -> str:
        runs = [path.parent for path in folder.rglob(records.MANIFEST)]
        done = [run for run in runs if finished(run)]
        begun = sum(run not in done and bool(records.checkpoint_names(run / records.CHECKPOINTS)) for run in runs)
        return plural(len(done), "finished run") + (f" and {begun} with a checkpoint" if begun else "")

    return noting(folder, saved)


def print_dry_run(recipe: Recipe, trust: bool | frozenset[str], runs: Path, noted: set[str]) -> None:
    """Do a dry run, and print its summary without the notes in ``noted``, to which the others are added."""
    from tutelage.runs.dry_run import dry_run

    echo(f"{recipe.name} (dry run, nothing is written)")
    for name, value in dry_run(recipe, trust_code=trust, runs=runs):
        if name != "note" or value not in noted:
            echo(f"  {name:<20} {value}")
        if name == "note":
            noted.add(value)


def print_disk(planned: Sequence[tuple[Recipe, Path]], trust: bool | frozenset[str], runs: Path) -> None:
    """Print the disk that several runs need together."""
    from tutelage import data
    from tutelage.runs.disk import free_bytes, size_of_all

    if planned:
        size = size_of_all(planned, data.open_data(planned[0][0].data), trust)
        free = free_bytes(runs)
        echo(f"estimated disk of {len(planned)} runs: {size / 1e6:.1f} MB, {free / 1e6:.0f} MB free")


def print_table(folder: Path) -> None:
    """Print the table of a run, a comparison, a study or a search."""
    from rich.console import Console

    from tutelage import records
    from tutelage.report import results
    from tutelage.studies import study_table
    from tutelage.tuning import summary

    if (folder / records.TUNE).exists():
        summary.print_search(folder, Console(emoji=False))
    elif study_table.is_study(folder):
        study_table.print_study(folder, Console(emoji=False))
    else:
        results.print_table(results.rows(folder), Console(emoji=False))


def print_report(folder: Path) -> None:
    """Print the table of a run, a comparison, a study or a search, and where its report is, or why there is none."""
    with noting_result(folder, "its results are written"):
        print_table(folder)
        if line := report_line(folder):
            echo()
            echo(line)


def report_line(folder: Path) -> str:
    """Say where a folder's report is, or what to type for one where its libraries are missing; empty for neither."""
    from tutelage import records
    from tutelage.report import libraries

    if not libraries.installed():
        return libraries.why_not_written(folder)
    path = folder / records.REPORT
    return f"report: {path}" if path.exists() else ""  # a search writes none before a trial has finished
