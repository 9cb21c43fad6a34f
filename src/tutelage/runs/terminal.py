"""A job on the terminal, or in a file of lines: what is running, its progress, and the time left."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Literal

from rich import progress
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column
from rich.text import Text

from tutelage.errors import printable
from tutelage.runs.reporter import Reporter
from tutelage.types import Batches

Stream = Literal["stdout", "stderr"]
QUIET = 10.0
"""Seconds between lines where nothing is drawn."""
SHARE = 0.01
"""Share of the time so far between lines, where that is longer: of a job of days a log has a few hundred lines."""
NARROW = 80
"""Columns of a terminal below which a bar leaves out what is not progress."""

ALL = "all runs"


def rough_time(seconds: float) -> str:
    """Write a time roughly.

    Example:
        >>> rough_time(9.6), rough_time(200), rough_time(9000)
        ('10 s', '3 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class CountingReporter(Reporter):
    """Counts the steps of a job and of its current fit, and tells from them how long the rest will take."""

    def __init__(self) -> None:
        self.title = self.line = ""
        self.steps = self.done = self.runs = self.per_epoch = 0
        self.all_steps: int | None = None
        self.all_done = self.taken = 0
        self.began: float | None = None
        self.aside: tuple[float, float | None, int] | None = None
        """While something apart goes on: when it began, and the job's beginning and steps taken."""
        self.remarks = set[str]()

    def expect(self, steps: int) -> None:
        """Take the steps of the whole job."""
        self.all_steps, self.all_done = steps, 0

    def begin(self, title: str, steps: int, done: int) -> None:
        """Begin to count a fit."""
        self.end()
        now = time.monotonic()
        if self.aside is not None:  # The job's clock stood.
            since, began, self.taken = self.aside
            self.began, self.aside = None if began is None else began + now - since, None
        if self.all_steps is None or self.began is None:  # else the job goes on
            self.began, self.taken = now, 0
        self.title, self.steps, self.done, self.runs, self.per_epoch, self.line = title, steps, done, 1, 0, ""
        self.all_done += done

    def begin_apart(self, title: str, steps: int) -> None:
        """Begin to count what is none of the job's steps."""
        self.end()
        now = time.monotonic()
        self.aside = self.aside or (now, self.began, self.taken)
        self.began, self.taken = now, 0
        self.title, self.steps, self.done, self.runs, self.per_epoch, self.line = title, steps, 0, 1, 0, ""

    def track(self, batches: Batches, starts: Sequence[int] = (0,)) -> Batches:
        """Note how long an epoch is."""
        self.runs, self.per_epoch = len(starts), len(batches)
        return super().track(batches, starts)

    def tick(self) -> None:
        """Count a step."""
        self.done += 1
        self.taken += 1
        self.all_done += self.aside is None

    def end(self) -> None:
        """Take the steps that the fit does not need out of the job's."""
        if self.all_steps is not None and self.aside is None:
            self.all_steps -= self.steps - self.done
        self.steps = self.done

    def remark(self, text: str) -> None:
        """Say it, unless it was said before."""
        if text not in self.remarks:
            self.remarks.add(text)
            self.say(f"note: {text}")

    @property
    def place(self) -> str:
        """Epoch and step of the current fit, in words."""
        step, steps = self.done // self.runs, self.steps // self.runs
        words = f"step {min(step, steps)}/{steps}"
        if self.per_epoch:
            words = f"epoch {max(1, -(-step // self.per_epoch))}/{steps // self.per_epoch}, {words}"
        return words

    @property
    def left(self) -> str:
        """The time left of the job, or of the fit, with a comma before it; empty where it is not known or over."""
        whole = self.all_steps if self.aside is None else None
        left = self.steps - self.done if whole is None else whole - self.all_done
        if self.began is None or not self.taken or left <= 0:
            return ""
        return f", {rough_time(left * (time.monotonic() - self.began) / self.taken)} left"


class LineReporter(CountingReporter):
    """Prints lines, one in `QUIET` seconds at most besides messages, within long epochs too, and each last epoch's.

    Args:
        stream: which of the standard streams is written to.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        self.started = self.printed = time.monotonic()
        self.waiting = ""

    def __enter__(self) -> LineReporter:
        """Begin; nothing is printed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Print the last epoch's line, if it was not printed."""
        self._flush()

    def begin(self, title: str, steps: int, done: int) -> None:
        """Begin a fit."""
        self._flush()
        super().begin(printable(title), steps, done)

    def begin_apart(self, title: str, steps: int) -> None:
        """Begin what is none of the job's steps."""
        self._flush()
        super().begin_apart(printable(title), steps)

    def tick(self) -> None:
        """Print a line within an epoch, if none was printed for long."""
        super().tick()
        if self._is_due():
            self._print(f"{self.title}: {self.place}{self.left}{self.line and f' ({self.line})'}")

    def note(self, text: str) -> None:
        """Print an epoch's line: the last one's, and others unless a line was printed just now."""
        self.line, self.waiting = printable(text), f"{self.title}: {printable(text)}{self.left}"
        if self.done >= self.steps or self._is_due():
            self._flush()

    def say(self, text: str) -> None:
        """Print a message."""
        self._flush()
        print(printable(text), file=getattr(sys, self.stream), flush=True)

    def _is_due(self) -> bool:
        now = time.monotonic()
        return now - self.printed >= max(QUIET, SHARE * (now - self.started))

    def _flush(self) -> None:
        if self.waiting:
            self._print(self.waiting)

    def _print(self, line: str) -> None:
        self.printed, self.waiting = time.monotonic(), ""
        print(line, file=getattr(sys, self.stream), flush=True)


class TerminalReporter(Reporter):
    """Draws two bars, for the whole job and the current run, while it is entered.

    Args:
        stream: the standard stream that is a terminal.
        transient: whether the bars are removed in the end.
    """

    def __init__(self, stream: Stream = "stdout", *, transient: bool = False) -> None:
        # A name may have :package: in it.
        self.console = Console(stderr=stream == "stderr", highlight=False, soft_wrap=True, emoji=False)
        wide = self.console.width >= NARROW
        bar = 24 if wide else 8
        times: list[progress.ProgressColumn | str] = [progress.TimeElapsedColumn(), "left"] if wide else []
        self.room = self.console.width - bar - (30 if wide else 16)  # beside bar, share, times and spaces
        self.notes = _Shortened("note", 0)
        self.progress = progress.Progress(
            _Shortened("title", self.room // (2 if wide else 1)),
            progress.BarColumn(bar_width=bar),
            progress.TaskProgressColumn(),
            *times,
            progress.TimeRemainingColumn(),
            *([self.notes] if wide else []),
            console=self.console,
            transient=transient,
            # What the caller prints stays above the bars, and goes where it went: into a file, if stdout is one.
            redirect_stdout=is_terminal("stdout"),
            redirect_stderr=is_terminal("stderr"),
        )
        self.job: progress.TaskID | None = None
        self.run: progress.TaskID | None = None
        self.apart = False
        self.remarks = set[str]()

    def __enter__(self) -> TerminalReporter:
        """Draw the bars."""
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was, below the last state of the bars."""
        self.progress.stop()

    def expect(self, steps: int) -> None:
        """Show a bar for the whole job."""
        if self.job is not None:
            self.progress.remove_task(self.job)
        self.job = self.progress.add_task("", total=steps, title=ALL, note="")

    def begin(self, title: str, steps: int, done: int) -> None:
        """Show a new fit."""
        self._show(printable(title), steps, done)
        self.apart = False
        if self.job is not None:
            self.progress.advance(self.job, done)

    def begin_apart(self, title: str, steps: int) -> None:
        """Show it in the place of a fit."""
        self._show(printable(title), steps, 0)
        self.apart = True

    def _show(self, title: str, steps: int, done: int) -> None:
        self.end()
        if self.run is not None:
            self.progress.remove_task(self.run)
        self.run = self.progress.add_task("", total=steps, completed=done, title=title, note="")
        self.notes.room = self.room - min(self.room // 2, max(cell_len(title), len(ALL)))

    def tick(self) -> None:
        """Move the bars by a step; the job's stays where a fit apart from it is shown."""
        for task in (None if self.apart else self.job, self.run):
            if task is not None:
                self.progress.advance(task)

    def end(self) -> None:
        """Take the steps that the fit does not need out of both bars, so that neither waits for them."""
        if self.run is None:
            return
        fit = self.progress.tasks[self.progress.task_ids.index(self.run)]
        left = (fit.total or 0) - fit.completed
        self.progress.update(self.run, total=fit.completed)
        if self.job is not None and left and not self.apart:
            job = self.progress.tasks[self.progress.task_ids.index(self.job)]
            self.progress.update(self.job, total=(job.total or 0) - left)

    def note(self, text: str) -> None:
        """Show an epoch's line beside the bar."""
        if self.run is not None:
            self.progress.update(self.run, note=printable(", ".join(text.split(", ")[:3])))

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(printable(text), markup=False)

    def remark(self, text: str) -> None:
        """Print a line above the bars, unless it was printed before."""
        if text not in self.remarks:
            self.remarks.add(text)
            self.say(f"note: {text}")


class _Shortened(progress.ProgressColumn):
    """A text of a task, shortened to the columns that are left for it: the bar must not give way to it."""

    def __init__(self, field: str, room: int) -> None:
        super().__init__(Column(no_wrap=True))
        self.field, self.room = field, room

    def render(self, task: progress.Task) -> Text:
        """Return the text."""
        text = Text(task.fields[self.field])
        text.truncate(max(1, self.room), overflow="ellipsis")
        return text


@contextlib.contextmanager
def drawn_or_printed(stream: Stream, *, transient: bool = False) -> Iterator[Reporter]:
    """Yield what draws bars on a standard stream that is a terminal, or else prints lines.

    A second job beside or within one that is drawn prints lines above the bars of the first.
    """
    if not is_terminal(stream) or not _DRAWING.acquire(blocking=False):
        with LineReporter(stream) as lines:
            yield lines
        return
    try:
        with TerminalReporter(stream, transient=transient) as bars:
            yield bars
    finally:
        _DRAWING.release()


_DRAWING = threading.Lock()


def is_terminal(stream: Stream) -> bool:
    """Whether a standard stream is a terminal on which something can be drawn again; a log file with colours is not."""
    file = getattr(sys, stream)
    file = getattr(file, "rich_proxied_file", file)  # of a job that is drawn
    return file is not None and file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
