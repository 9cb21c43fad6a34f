"""A job on the terminal: what is running, its progress, and the time left."""

from __future__ import annotations

import time

from rich import progress
from rich.console import Console

from tutelage.errors import printable
from tutelage.runs.reporter import Reporter

QUIET = 10.0
"""Seconds between lines about epochs when there is no terminal."""


class TerminalReporter(Reporter):
    """Draws two bars in its ``progress``, for the whole job and the current run; without a terminal it prints lines."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True, emoji=False)  # A name may have :package: in it.
        self.progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.job: progress.TaskID | None = None
        self.run: progress.TaskID | None = None
        self.title = ""
        self.printed = float("-inf")
        self.remarks = set[str]()

    def expect(self, steps: int) -> None:
        """Show a bar for the whole job."""
        self.job = self.progress.add_task("all runs", total=steps, note="")

    def begin(self, title: str, steps: int, done: int) -> None:
        """Show a new fit."""
        if self.run is not None:
            self.progress.remove_task(self.run)
        self.title = title = printable(title)
        self.run = self.progress.add_task(title, total=steps, completed=done, note="")
        if self.job is not None:
            self.progress.advance(self.job, done)

    def tick(self) -> None:
        """Move the bars by a step."""
        for task in (self.job, self.run):
            if task is not None:
                self.progress.advance(task)

    def end(self) -> None:
        """Take the steps that the fit does not need out of both bars, so that neither waits for them."""
        if self.run is None:
            return
        fit = self.progress.tasks[self.progress.task_ids.index(self.run)]
        left = (fit.total or 0) - fit.completed
        self.progress.update(self.run, total=fit.completed)
        if self.job is not None and left:
            job = self.progress.tasks[self.progress.task_ids.index(self.job)]
            self.progress.update(self.job, total=(job.total or 0) - left)

    def note(self, text: str) -> None:
        """Show an epoch's line beside the bar; without a terminal print it, unless one was printed just now."""
        if self.run is not None:
            self.progress.update(self.run, note=", ".join(text.split(", ")[:3]))
        if not self.console.is_terminal and time.monotonic() - self.printed > QUIET:
            self.console.print(printable(f"{self.title}: {text}"), markup=False)
            self.printed = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(printable(text), markup=False)

    def remark(self, text: str) -> None:
        """Print a line above the bars, unless it was printed before."""
        if text not in self.remarks:
            self.remarks.add(text)
            self.say(f"note: {text}")
