"""The command line: parse, call, print. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tutelage import errors, interruption, launcher
from tutelage.cli import cache, export, init, inspect, predict, study, train, tune
from tutelage.cli.common import FAILED, echo
from tutelage.cli.exits import end, leave, stop, wait_for_launcher
from tutelage.errors import TutelageError
from tutelage.version import __version__

app = typer.Typer(
    name="tutelage",
    help="Knowledge distillation for PyTorch, built on transformed teacher matching (TTM, WTTM; arXiv:2402.11148).",
    epilog="Example: tutelage compare recipes/digits.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that says, when it is stopped, what is saved and what to type. Typer would say "Aborted"."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        if launcher.rank() > 0:
            sys.stderr = sys.__stderr__
        try:
            command(*arguments, **options)
            if launcher.world_size() > 1 and "torch" in sys.modules:
                from tutelage.training.distributed import part

                part()
        except KeyboardInterrupt as error:
            stop(error)

    return run


for name, command, example in (
    ("init", init.init, "--data flowers --teacher timm:resnet50.a1_in1k --out flowers.yaml"),
    ("train", train.train, "recipes/digits-teacher.yaml epochs=30"),
    ("distill", train.distill, "recipes/digits-wttm.yaml objective.wttm.gamma=0.3"),
    ("compare", train.compare, "recipes/digits.yaml seeds=5"),
    ("tune", tune.tune, "recipes/digits-wttm.yaml --trials 20 --search objective.wttm.gamma=0.1..1"),
    ("study", study.study, "table1 --pairs resnet56/resnet20 --methods kd,wttm --seeds 2 --budget 25m"),
    ("record", train.record, "recipes/digits-wttm.yaml outputs=runs/outputs/digits"),
    ("evaluate", inspect.evaluate, "runs/digits/wttm-seed0"),
    ("predict", predict.predict, "runs/flowers-student photos --top-k 3 --format csv"),
    ("export", export.export, "runs/digits/wttm-seed0 --to onnx"),
    ("report", inspect.report, "runs/digits"),
    ("watch", inspect.watch, "runs/digits --open"),
    ("list", inspect.list_, "models 'timm:mobilenetv3*'"),
    ("cache", cache.cache, "list"),
    ("doctor", inspect.doctor, "--bench"),
):
    app.command(name, epilog=f"Example: tutelage {name} {example}")(stoppable(command))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback for every error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""
    if debug:
        os.environ["TUTELAGE_DEBUG"] = "1"


def main() -> None:
    """Run the command that was typed; see `entry.main`."""
    warnings.showwarning = _warn
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # of torchao, which transformers imports
    if "--debug" in sys.argv[2:]:  # an option of every command, wherever it is typed
        sys.argv.remove("--debug")
        sys.argv.insert(1, "--debug")
    if isinstance(sys.stdout, io.TextIOWrapper):  # A letter that its encoding lacks, as on Windows, is printed as "?".
        sys.stdout.reconfigure(errors="replace")
    held = io.StringIO()
    if launcher.rank() > 0:  # The first of several processes shows what all of them do, and what is typed wrongly.
        sys.stdout, sys.stderr = open(os.devnull, "w", encoding="utf-8"), held  # noqa: SIM115  until the process ends
    try:
        with interruption.stop_on_signals(leave):
            app()
    except SystemExit as error:
        if user := errors.of_user_code(error):
            end(str(user), user.exit_code)
        if error.code == TutelageError.exit_code and launcher.rank() > 0:
            wait_for_launcher()  # which ends this process, if the first one found the same
            print(held.getvalue(), end="", file=sys.__stderr__)
        raise
    except KeyboardInterrupt as error:
        stop(error)
    except Exception as error:  # noqa: BLE001  the place that says what any error is
        if interrupt := _interruption(error):
            stop(interrupt)
        if launcher.rank() > 0:
            sys.stderr = sys.__stderr__
        end(*_message_and_code(error), traceback.format_exc() if os.environ.get("TUTELAGE_DEBUG") else "")


def _interruption(error: BaseException) -> KeyboardInterrupt | None:
    """Return the Ctrl-C or SIGTERM that an error came of: within a library's import, some cleanup may fail."""
    below: BaseException | None = error
    seen: list[BaseException] = []  # The chain of an error that was raised again within another may be a ring.
    while below is not None and below not in seen and not isinstance(below, KeyboardInterrupt):
        seen.append(below)
        below = below.__cause__ or below.__context__
    return below if isinstance(below, KeyboardInterrupt) else None


def _message_and_code(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, and the exit code."""
    error = errors.explained(error)
    text = str(error)
    if isinstance(error, TutelageError):
        return text, error.exit_code
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("tutelage"):
        instead = "type pip check, and install what it names"
        return errors.message(error.name, "a library that is installed", "none", instead), FAILED
    what = f"{type(error).__name__}: {' '.join(text.split())}".rstrip(": ")
    see = "please report it; run the command again with --debug to see where"
    return f"{what}: this is a bug in tutelage: {see}", FAILED


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # A user of the command line can do nothing about other packages' warnings.
    # Of too many workers there is a note.
    if category is UserWarning and launcher.rank() == 0 and not str(message).startswith("This DataLoader will create"):
        echo(f"warning: {message}", err=True)
