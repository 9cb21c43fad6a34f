"""The command that writes a first recipe."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from tutelage import launcher
from tutelage.cli import common
from tutelage.errors import InvalidValueError, TutelageError

T = TypeVar("T")

QUESTIONS = {
    "data": "Data: a folder, a .csv or .jsonl file, hf:NAME, torchvision:NAME or digits",
    "teacher": "Teacher: a run's folder, or a model's name, which is trained on the data first",
    "student": "Student: a model's name",
    "epochs": "Epochs of the student",
}


def init(
    data: Annotated[
        str | None, typer.Option(help="A folder of images or Parquet files, a file of texts, a source.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A run's folder, or a model's name, which is trained on the data first.")
    ] = None,
    student: Annotated[str | None, typer.Option(help="A model's name.")] = None,
    epochs: Annotated[str | None, typer.Option(metavar="N", help="Passes of the student over the data.")] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Ask for data, teacher, student and epochs, or take them as options, and write a commented recipe."""
    if launcher.world_size() > 1:
        got, instead = f"{launcher.world_size()} processes", "type it without the launcher"
        raise InvalidValueError("init", "a single process", got, instead)
    _check_out(out, force)
    from tutelage.runs import starter

    facts = _answered("data", data, starter.example_source(), starter.read_source)
    proposed = starter.defaults(facts)
    checked = {
        "teacher": _answered(
            "teacher", teacher, proposed["teacher"], lambda name: starter.check_network("teacher", name)
        ),
        "student": _answered(
            "student", student, proposed["student"], lambda name: starter.check_network("student", name)
        ),
    }
    passes = _answered("epochs", epochs, proposed["epochs"], starter.check_epochs)
    starter.save(out, starter.write(out, facts, **checked, epochs=passes))
    path = shlex.quote(str(out))
    common.echo(f"{out} is written. Look at it, then type")
    common.echo(f"  tutelage distill {path} --dry-run    to try one batch, and see the time that it takes")
    common.echo(f"  tutelage distill {path}              to train; the same again resumes it")


def _check_out(out: Path, force: bool) -> None:
    if out.is_dir() or not out.parent.is_dir():
        got = f"{out}, {'which is a folder' if out.is_dir() else 'whose folder does not exist'}"
        raise InvalidValueError("--out", "a file in a folder that is there", got, "type --out recipe.yaml")
    if out.exists() and not force:
        instead = f"type --out {out.with_stem(f'{out.stem}-2')}, or --force to replace it"
        raise InvalidValueError("--out", "a new file", f"{out}, which is there", instead)


def _answered(key: str, typed: str | None, proposed: str, check: Callable[[str], T]) -> T:
    """Return what was typed as an option, or the answer to a question, which is asked again until it is good."""
    if typed is not None:
        return check(typed)
    if not sys.stdin.isatty():
        if key == "data":
            got = "none, and no terminal to ask at"
            instead = f"type --data {proposed or 'imagefolder:PATH'}, for example"
            raise InvalidValueError("--data", "a folder, a file or a source", got, instead)
        return check(proposed)
    while True:
        try:
            return check(typer.prompt(QUESTIONS[key], default=proposed or None))
        except TutelageError as error:
            common.echo(str(error), err=True)
        except typer.Abort as error:  # Ctrl-C, or the end of the terminal's input
            raise KeyboardInterrupt from error
