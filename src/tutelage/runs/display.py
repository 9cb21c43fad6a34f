"""What shows the progress of a call of Python: a bar in a terminal or a notebook, lines elsewhere, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, TypeAlias

from tutelage import launcher
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.runs.notebook import NotebookReporter, in_notebook
from tutelage.runs.reporter import Reporter
from tutelage.runs.terminal import drawn_or_printed

Display: TypeAlias = Literal["auto"] | Reporter | None
"""``"auto"``: bars in a terminal and in Jupyter, lines elsewhere; ``None``: nothing; or a reporter of the caller's."""


@contextlib.contextmanager
def shown(display: Display, *, transient: bool = False) -> Iterator[Reporter]:
    """Yield the reporter of a call, which shows until the block ends; of several processes the first one shows.

    Args:
        display: what to show.
        transient: whether what was drawn is removed in the end, beside a result that says the same.

    Raises:
        TypeError, ValueError: ``display`` is something else.
    """
    if not isinstance(display, Reporter) and display not in ("auto", None):
        expected, instead = (
            '"auto", None, or a tutelage.Reporter',
            "leave display out, or type display=None for silence",
        )
        if isinstance(display, str):
            raise InvalidValueError("display", expected, repr(display), instead)
        raise InvalidTypeError("display", expected, f"an object of type {type(display).__name__}", instead)
    if isinstance(display, Reporter):
        yield display
    elif display is None or launcher.rank() > 0:
        yield Reporter()
    elif in_notebook():
        with NotebookReporter(transient=transient) as block:
            yield block
    else:
        with drawn_or_printed("stderr", transient=transient) as reporter:
            yield reporter
