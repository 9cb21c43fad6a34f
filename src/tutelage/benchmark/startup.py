"""Timing of ``tutelage --help`` against an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

from tutelage.benchmark import timing

REFERENCE = "reference: python -c pass"
COMMANDS = {
    "help": [sys.executable, "-m", "tutelage", "--help"],
    "distill help": [sys.executable, "-m", "tutelage", "distill", "--help"],
    REFERENCE: [sys.executable, "-c", "pass"],
}


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603  the commands are those above
    return time.perf_counter() - began


def measure(rounds: int) -> dict[str, float]:
    """Return the median seconds of each command's whole process."""
    forms = {name: partial(_seconds, command) for name, command in COMMANDS.items()}
    return timing.medians(timing.in_turn(forms, rounds))


def lines(rounds: int = 5) -> Iterator[str]:
    """Time the commands, and yield lines to print."""
    medians = measure(rounds)
    yield from (line(name, medians) for name in COMMANDS if name != REFERENCE)
    yield f"reference {medians[REFERENCE]:.3f} s  (medians of {rounds})"


def line(name: str, medians: dict[str, float]) -> str:
    """Show one command."""
    command = " ".join(["tutelage", *COMMANDS[name][3:]])
    return f"{command:<26} {medians[name]:.3f} s  {medians[name] / medians[REFERENCE]:.1f}x as long"
