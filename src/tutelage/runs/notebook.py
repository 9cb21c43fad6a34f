"""A job in a notebook: one block of HTML that is replaced as the job goes on, without JavaScript or widgets."""

from __future__ import annotations

import html
import sys
import time
from typing import Any

from tutelage.errors import printable
from tutelage.runs.terminal import CountingReporter, rough_time

OFTEN = 0.3
"""Seconds between two states of the block."""
WIDTH = "width:100%;max-width:32em;display:block"


def in_notebook() -> bool:
    """Whether this is a kernel whose front end shows HTML, such as Jupyter's; IPython in a terminal is not."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class NotebookReporter(CountingReporter):
    """Shows the current fit and the whole job as bars, with the last epoch's line; messages are printed.

    Args:
        transient: whether the block is emptied in the end.
    """

    def __init__(self, *, transient: bool = False) -> None:
        super().__init__()
        self.transient = transient
        self.started = self.drawn = time.monotonic()
        self.handle: Any = None

    def __enter__(self) -> NotebookReporter:
        """Begin; the block appears with the first fit."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Show the last state."""
        if self.handle is not None:
            self._draw(f"stopped after {self._time()}" if kind else f"done in {self._time()}", empty=self.transient)

    def begin(self, title: str, steps: int, done: int) -> None:
        """Show a new fit."""
        super().begin(printable(title), steps, done)
        self._draw()

    def begin_apart(self, title: str, steps: int) -> None:
        """Show it in the place of a fit."""
        super().begin_apart(printable(title), steps)
        self._draw()

    def tick(self) -> None:
        """Move the bars by a step."""
        super().tick()
        if time.monotonic() - self.drawn >= OFTEN:
            self._draw()

    def note(self, text: str) -> None:
        """Show an epoch's line."""
        self.line = printable(text)
        if time.monotonic() - self.drawn >= OFTEN:
            self._draw()

    def say(self, text: str) -> None:
        """Print a message, which stays."""
        print(printable(text))  # noqa: T201  what it is for

    def _time(self) -> str:
        return rough_time(time.monotonic() - self.started)

    def _draw(self, state: str = "", *, empty: bool = False) -> None:
        from IPython.display import display

        self.drawn = time.monotonic()
        when = state or f"{self._time()}{self.left}"
        lines = [f"<b>{html.escape(self.title)}</b> {self.place}, {when}", _bar(self.done, self.steps)]
        if self.all_steps is not None:
            lines += ["all runs", _bar(self.all_done, self.all_steps)]
        if self.line:
            lines.append(f"<code>{html.escape(self.line)}</code>")
        block = "" if empty else f"<div>{''.join(f'<div>{line}</div>' for line in lines)}</div>"
        plain = "" if empty else f"{self.title} {self.place}, {when}"
        shown = {"text/html": block, "text/plain": plain}
        if self.handle is None:
            self.handle = display(shown, raw=True, display_id=True)
        else:
            self.handle.update(shown, raw=True)


def _bar(done: int, steps: int) -> str:
    percent = 100 * done // steps if steps else 100
    return f'<progress value="{done}" max="{max(1, steps)}" style="{WIDTH}">{percent} %</progress>'
