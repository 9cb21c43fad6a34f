"""The command line: parse, call, print. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from tutelage.config.schema import Recipe
    from tutelage.studies.plan import StudyRequest

app = typer.Typer(
    name="tutelage",
    help="Knowledge distillation for PyTorch, built on transformed teacher matching (TTM, WTTM; arXiv:2402.11148).",
    epilog="Example: tutelage compare recipes/digits.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML recipe, or a run's folder to repeat it or go on with it.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as epochs=10 data.validation=0.1."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Resolve and load everything, try one batch, write nothing.")]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="Allow file:path.py:function in a recipe; it runs code.")]
Runs = Annotated[Path, typer.Option("--runs", help="The folder of all runs.")]

USER, OTHER = 2, 1


@app.command(epilog="Example: tutelage train recipes/digits-teacher.yaml epochs=30")
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    trust_code: TrustCode = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train a network from labels: a teacher."""
    _one("train", recipe, overrides, dry_run, trust_code, runs)


@app.command(epilog="Example: tutelage distill recipes/digits-wttm.yaml objective.wttm.gamma=0.3")
def distill(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    trust_code: TrustCode = False,
    runs: Runs = Path("runs"),
) -> None:
    """Distil a teacher into a student."""
    _one("distill", recipe, overrides, dry_run, trust_code, runs)


@app.command(epilog="Example: tutelage compare recipes/digits.yaml seeds=5")
def compare(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    trust_code: TrustCode = False,
    runs: Runs = Path("runs"),
) -> None:
    """Compare several objectives over several seeds on one task."""
    from tutelage import config
    from tutelage.config.schema import Comparison, Network
    from tutelage.runs.setup import parse
    from tutelage.studies.compare import compare as compare_objectives
    from tutelage.studies.compare import plan

    path = Path(recipe) / "recipe.yaml" if Path(recipe).is_dir() else Path(recipe)
    comparison = parse(Comparison, config.read(path, overrides or []), where=str(path))
    trust = trust_code or _typed_code(overrides or [])
    folder = runs / comparison.name
    if dry_run:
        for _, one in list(plan(comparison, folder))[: len(comparison.objectives)]:
            untrained = isinstance(one.teacher, Network) and one.teacher.name == str(folder / "teacher")
            given = one.model_copy(update={"teacher": comparison.teacher}) if untrained else one
            _print_rehearsal(given, trust)
        return
    with _screen() as screen:
        report = compare_objectives(comparison, folder, command=_command(), reporter=screen, trust_code=trust)
    _print_table(folder)
    typer.echo(f"\nreport: {report}")


@app.command(epilog="Example: tutelage study table1 --pairs resnet56/resnet20 --methods kd,wttm --seeds 2 --budget 25m")
def study(
    name: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study of the package, or a YAML file; none to list them.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the protocol, such as data.source=hf:path."),
    ] = None,
    pairs: Annotated[str, typer.Option("--pairs", help="Only these pairs, separated by commas.")] = "",
    methods: Annotated[str, typer.Option("--methods", help="Only these methods, separated by commas.")] = "",
    seeds: Annotated[int | None, typer.Option("--seeds", help="Runs of each method.")] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Epochs of the protocol; decays and warm-up are scaled with them.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes that share the work.")] = 1,
    together: Annotated[
        int | None,
        typer.Option(
            "--together", min=1, help="Students at most that share a batch and a teacher's pass; 8, or 1 to time them."
        ),
    ] = None,
    pool: Annotated[
        str | None, typer.Option("--pool", help="The folder of the runs, shared by several studies.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Stop inside this time, such as 90s, 25m or 2h; the same command goes on."),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, typer.Option("--device", help="Short for the override device=...")
    ] = None,
    list_studies: Annotated[bool, typer.Option("--list", help="List the studies of the package.")] = False,
    dry_run: DryRun = False,
    trust_code: TrustCode = False,
    runs: Runs = Path("runs"),
    worker: Annotated[Path | None, typer.Option("--worker", hidden=True)] = None,
    deadline: Annotated[float | None, typer.Option("--until", hidden=True)] = None,
) -> None:
    """Do a grid of runs, pairs by methods by seeds, and hold it against published values."""
    import time

    began = time.monotonic()
    from tutelage.studies import budget as budgets
    from tutelage.studies import plan, run_study, study_file, workers

    if name is None or list_studies:
        width = max(map(len, study_file.names()))
        for known, title in study_file.titles():
            typer.echo(f"{known:<{width}}  {title}")
        return
    seconds = budgets.read(budget) if budget is not None else None
    plain, given = study_file.read(name, _with_device(overrides or [], device))
    assignment = plan.assign(
        plain,
        given,
        runs=runs,
        pairs=_listed(pairs),
        methods=_listed(methods),
        seeds=seeds,
        epochs=epochs,
        pool=pool,
    )
    trust = trust_code or _typed_code([name, *(overrides or [])])
    # The clock of a process counts from anywhere, so that a worker is told by the time of day.
    ends = began + (seconds or 0.0) if deadline is None else time.monotonic() + deadline - time.time()
    allowed = budgets.Budget(seconds, ends) if seconds else None
    if dry_run:
        if allowed is not None:
            for line in budgets.prepare(assignment, allowed, workers=jobs, trust_code=trust, keep=False).lines():
                typer.echo(line)
        _rehearse_study(assignment, trust)
        return
    for departure in _departures(assignment) if worker is None else ():
        typer.echo(f"departs from the study: {departure}")
    do = partial(
        run_study.run_study, assignment, command=_command(), trust_code=trust, budget=allowed, together=together
    )
    if worker is not None:
        from tutelage import records

        workers.end_with_parent()
        with _screen() as screen:
            failed = do(reporter=screen, show_plan=False, workers=jobs)
        records.write_json(worker, failed)
        return
    if jobs > 1:
        from tutelage import data

        # What is wrong with all runs is told once, before there are workers.
        plan.jobs(assignment)
        data.open_data(assignment.study.recipe.data)
        typed = sys.argv[1:]
        if allowed is not None:
            for line in budgets.prepare(assignment, allowed, workers=jobs, trust_code=trust).lines():
                typer.echo(line)
            typed = [*typed, "--until", str(time.time() + allowed.left)]
        failed = workers.share(typed, jobs, say=typer.echo)
    else:
        with _screen() as screen:
            failed = do(reporter=screen)
    if (assignment.folder / "study.json").exists():
        _print_table(assignment.folder)
        typer.echo(f"\ntable: {assignment.folder / 'table.md'}\nreport: {assignment.folder / 'report.html'}")
    if allowed is not None:
        left = budgets.prepare(assignment, allowed, workers=jobs, measure=False)
        typer.echo(f"\n{budgets.progress(left)}")
        if left.left:
            typer.echo(f"to go on, here or where the folder {runs} was copied to: {_command()}")
    for run, why in failed.items():
        typer.echo(f"tutelage: {run}: {' '.join(why.split())}", err=True)
    if failed:
        raise typer.Exit(OTHER)


@app.command(epilog="Example: tutelage record recipes/digits-wttm.yaml outputs=runs/outputs/digits")
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

    short = {"outputs_limit_mb": limit_mb, "outputs_top": top, "outputs_max_error": max_error}
    typed = [*(overrides or []), *(f"{key}={value}" for key, value in short.items() if value is not None)]
    given = api.from_file(Path(recipe), typed)
    trust = trust_code or _typed_code(overrides or [])
    with _screen() as screen:
        folder = record_teacher.record(given, reporter=screen, trust_code=trust)
    typer.echo(f"\noutputs: {folder}")


@app.command(epilog="Example: tutelage evaluate runs/digits/wttm-seed0")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run's folder, or a model's name.")],
    overrides: Overrides = None,
    best: Annotated[bool, typer.Option("--best", help="The run's best weights instead of its last.")] = False,
    trust_code: TrustCode = False,
) -> None:
    """Evaluate a model on the test set: accuracy, loss, calibration, entropy."""
    from tutelage.api import evaluate as judge

    judgement, name = judge(
        model, overrides or [], best=best, trust_code=trust_code or _typed_code([model, *(overrides or [])])
    )
    typer.echo(name)
    for key, unit in (("accuracy", "%"), ("loss", "nats"), ("entropy", "nats"), ("ece", "%")):
        value = judgement[key]  # type: ignore[literal-required]
        typer.echo(f"  {key:<10}{value * 100:.2f} %" if unit == "%" else f"  {key:<10}{value:.4f} {unit}")


@app.command(epilog="Example: tutelage report runs/digits")
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run's, a comparison's or a study's folder.")],
) -> None:
    """Write the report of a run, a comparison or a study anew, and print its table."""
    from tutelage.studies.report import write_report

    if not folder.is_dir():
        _fail(f"report: expected a run's folder, got {folder}, which is none; type tutelage report runs/NAME", USER)
    path = write_report(folder)
    _print_table(folder)
    typer.echo(f"\nreport: {path}")


@app.command("list", epilog="Example: tutelage list objectives")
def list_(
    what: Annotated[Literal["models", "data", "objectives"], typer.Argument(help="What to list.")],
) -> None:
    """List models, data sources, or objectives with their parameters and papers."""
    if what == "objectives":
        import inspect

        from tutelage.objectives import PRESETS
        from tutelage.studies import overview

        for row in overview.rows():
            parameters = inspect.signature(PRESETS[row.name].build).parameters.values()
            arguments = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters)
            typer.echo(f"{row.name}({arguments})")
            typer.echo(f"    {row.formula}")
            typer.echo(f"    {row.paper}" + (f"; tables {row.tables} of arXiv:2402.11148" if row.tables else ""))
            cost = (
                f"; a step takes {row.time} times KD's time and keeps {row.memory} times its memory" if row.time else ""
            )
            typer.echo(f"    needs {row.needs or 'nothing but the student'}{cost}")
        return
    from tutelage import data, models

    rows = models.available() if what == "models" else data.available()
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        typer.echo(f"{name:<{width}}  {summary}")


@app.command(epilog="Example: tutelage doctor --bench")
def doctor(
    bench: Annotated[
        bool,
        typer.Option(
            "--bench", help="Time what is made faster here against its references: about 5 minutes on two cores."
        ),
    ] = False,
) -> None:
    """Look at versions, devices and extras, and take one real training step."""
    from tutelage.doctor import examine, measure

    bad = 0
    for finding in examine():
        typer.echo(f"{'ok ' if finding.good else 'BAD'}  {finding.what:<22} {finding.value}")
        bad += not finding.good
    if bad:
        raise typer.Exit(OTHER)
    for finding in measure() if bench else ():
        typer.echo(finding.value)
        bad += not finding.good
    if bad:
        raise typer.Exit(OTHER)


@app.callback()
def main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback for every error.")] = False,
) -> None:
    """Options of every command."""
    if debug:
        os.environ["TUTELAGE_DEBUG"] = "1"


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 the user's input is wrong, 1 anything else."""
    warnings.showwarning = _warn
    try:
        app()
    except KeyboardInterrupt:
        _fail("stopped; type the same command again to go on", OTHER)
    except Exception as error:
        if os.environ.get("TUTELAGE_DEBUG"):
            raise
        _fail(str(error) or type(error).__name__, _code(error))


def _code(error: Exception) -> int:
    """The user's input is wrong where a value, a file or an extra that was named is; all else is not the user's."""
    return (
        USER
        if isinstance(
            error, ValueError | TypeError | FileNotFoundError | NotADirectoryError | ConnectionError | ImportError
        )
        else OTHER
    )


def _one(
    verb: Literal["train", "distill"],
    given: str,
    overrides: list[str] | None,
    dry_run: bool,
    trust_code: bool,
    runs: Path,
) -> None:
    from tutelage import api
    from tutelage.runs.execute import execute

    trust = trust_code or _typed_code([given, *(overrides or [])])
    if "=" in given and not Path(given).exists():
        recipe, expected = api.from_overrides([given, *(overrides or [])]), None
    elif Path(given).is_dir():
        recipe, expected = api.again(Path(given), overrides or [], runs)
    else:
        recipe, expected = api.from_file(Path(given), overrides or []), None
    if verb == "distill" and recipe.teacher is None:
        _fail("teacher: expected one to distil, got none; add teacher=runs/NAME, or type tutelage train", USER)
    if verb == "train" and recipe.teacher is not None:
        _fail("teacher: expected none to train from labels, got one; type tutelage distill", USER)
    if dry_run:
        _print_rehearsal(recipe, trust)
        return
    with _screen() as screen:
        run = execute(
            recipe,
            runs / recipe.name,
            verb=verb,
            command=_command(),
            reporter=screen,
            trust_code=trust,
            expected=expected,
        )
    _print_table(run.folder)
    typer.echo(f"\nreport: {run.folder / 'report.html'}")


def _typed_code(typed: list[str]) -> frozenset[str]:
    """The ``file:`` models typed on the command line: these alone are trusted, not what a recipe or a folder names."""
    import re

    return frozenset(name for text in typed for name in re.findall(r"file:[^\s,}\]'\"]+", text))


def _print_rehearsal(recipe: Recipe, trust: bool | frozenset[str]) -> None:
    from tutelage.runs.dry_run import dry_run

    typer.echo(f"{recipe.name} (dry run, nothing is written)")
    for what, value in dry_run(recipe, trust_code=trust):
        typer.echo(f"  {what:<20} {value}")


def _print_table(folder: Path) -> None:
    from rich.console import Console

    from tutelage.report import results
    from tutelage.studies import study_table as study

    if study.is_study(folder):
        study.print_study(folder, Console())
    else:
        results.print_table(results.rows(folder), Console())


def _listed(typed: str) -> list[str]:
    return [name.strip() for name in typed.split(",") if name.strip()]


def _rehearse_study(assignment: StudyRequest, trust: bool | frozenset[str]) -> None:
    """Try each method once on each pair; what is wrong with one does not hide what is wrong with another."""
    from tutelage.studies import plan

    typer.echo(f"{assignment.study.name}: {len(plan.jobs(assignment))} runs in {assignment.runs / assignment.pool}")
    for departure in _departures(assignment):
        typer.echo(f"departs from the study: {departure}")
    for method, why in assignment.missing.items():
        if method in assignment.methods:
            typer.echo(f"{method}: {why}")
    wrong = []
    for recipe in plan.dry_run_recipes(assignment):
        try:
            _print_rehearsal(recipe, trust)
        except (ValueError, TypeError, OSError, ImportError) as error:
            typer.echo(f"  does not fit: {error}")
            wrong.append(f"{recipe.name}: {error}")
    if wrong:
        _fail("\n".join(wrong), USER)


def _with_device(overrides: list[str], device: str | None) -> list[str]:
    """Overrides with ``--device`` among them."""
    typed = [text for text in overrides if text.partition("=")[0] in ("device", "protocol.device")]
    if device is None:
        return overrides
    if any(text.partition("=")[2] != device for text in typed):
        _fail(f"--device: expected one device, got --device {device} and {typed[-1]}; leave one of them out", USER)
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            _fail("--device: expected a CUDA device, got none that torch can see; type --device cpu", USER)
    return [*overrides, f"device={device}"]


def _departures(assignment: StudyRequest) -> list[str]:
    from tutelage.studies import plan

    return plan.deviations(assignment, plan.cells(assignment))


def _command() -> str:
    """The command as it was typed: which worker of several does its part is no part of it."""
    typed = list(sys.argv[1:])
    for hidden in ("--worker", "--until"):
        if hidden in typed:
            place = typed.index(hidden)
            del typed[place : place + 2]
    return shlex.join(["tutelage", *typed])


def _screen() -> Any:
    from tutelage.runs.terminal import TerminalReporter

    return TerminalReporter()


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # Of other packages' warnings a user of the command line can do nothing.
    if category is UserWarning:
        typer.echo(f"warning: {message}", err=True)


def _fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines() or [""]:
        typer.echo(f"tutelage: {line}", err=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
