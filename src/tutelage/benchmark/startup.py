"""Timing of an import, of help and of a mistyped key against an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tutelage.benchmark import timing
from tutelage.errors import RunError

REFERENCE = "reference: python -c pass"
MISTYPED = "mistyped key"
RECIPE = "name: run\nstudent: cifar:resnet8\n"
COMMANDS = {
    "import": ["-c", "import tutelage"],
    "help": ["-m", "tutelage", "--help"],
    "distill help": ["-m", "tutelage", "distill", "--help"],
    MISTYPED: ["-m", "tutelage", "train", "recipe.yaml", "epohcs=3"],
    REFERENCE: ["-c", "pass"],
}
"""What Python is called with, in a folder that has a `RECIPE`."""


def _seconds(name: str, folder: str) -> float:
    began = time.perf_counter()
    command = [sys.executable, *COMMANDS[name]]
    process = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)  # noqa: S603  those above
    seconds = time.perf_counter() - began
    if process.returncode != (expected := 2 if name == MISTYPED else 0):
        last = (process.stderr.splitlines() or ["no reason"])[-1]
        instead = f"type {' '.join(['python', *COMMANDS[name]])} for its whole answer"
        raise RunError(name, f"exit code {expected}", f"{process.returncode}: {last}", instead)
    return seconds


def measure(rounds: int) -> dict[str, float]:
    """Return the median seconds of each command's whole process."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipe.yaml").write_text(RECIPE)
        forms = {name: partial(_seconds, name, folder) for name in COMMANDS}
        return timing.medians(timing.in_turn(forms, rounds))


def lines(rounds: int = 5) -> Iterator[str]:
    """Time the commands, and yield lines to print."""
    medians = measure(rounds)
    yield from (line(name, medians) for name in COMMANDS if name != REFERENCE)
    yield f"reference {medians[REFERENCE]:.3f} s  (medians of {rounds})"


def line(name: str, medians: dict[str, float]) -> str:
    """Show one command."""
    command = " ".join(COMMANDS[name]).replace("-m tutelage", "tutelage").removeprefix("-c ")
    return f"{command:<36} {medians[name]:.3f} s  {medians[name] / medians[REFERENCE]:.1f}x as long"
