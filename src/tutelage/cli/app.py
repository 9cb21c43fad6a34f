"""The command line: parse, call, print. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from tutelage.cli import inspect, study, train
from tutelage.cli.common import OTHER, USER, fail

app = typer.Typer(
    name="tutelage",
    help="Knowledge distillation for PyTorch, built on transformed teacher matching (TTM, WTTM; arXiv:2402.11148).",
    epilog="Example: tutelage compare recipes/digits.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, command, example in (
    ("train", train.train, "recipes/digits-teacher.yaml epochs=30"),
    ("distill", train.distill, "recipes/digits-wttm.yaml objective.wttm.gamma=0.3"),
    ("compare", train.compare, "recipes/digits.yaml seeds=5"),
    ("study", study.study, "table1 --pairs resnet56/resnet20 --methods kd,wttm --seeds 2 --budget 25m"),
    ("record", train.record, "recipes/digits-wttm.yaml outputs=runs/outputs/digits"),
    ("evaluate", inspect.evaluate, "runs/digits/wttm-seed0"),
    ("report", inspect.report, "runs/digits"),
    ("list", inspect.list_, "objectives"),
    ("doctor", inspect.doctor, "--bench"),
):
    app.command(name, epilog=f"Example: tutelage {name} {example}")(command)

USER_ERRORS = ValueError, TypeError, FileNotFoundError, NotADirectoryError, ConnectionError, ImportError
"""Errors of a wrong value, file or extra in the user's input; all others are not the user's fault."""


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
    if isinstance(sys.stdout, io.TextIOWrapper):  # A letter that its encoding lacks, as on Windows, is printed as "?".
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except KeyboardInterrupt:
        fail("stopped; type the same command again to resume", OTHER)
    except Exception as error:
        if os.environ.get("TUTELAGE_DEBUG"):
            raise
        fail(str(error) or type(error).__name__, USER if isinstance(error, USER_ERRORS) else OTHER)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # A user of the command line can do nothing about other packages' warnings.
    if category is UserWarning:
        typer.echo(f"warning: {message}", err=True)
