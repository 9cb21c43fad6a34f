"""A study's budget of time: read as it is typed, and what is left of it. No torch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import NamedTuple

from tutelage.config import messages
from tutelage.errors import RecipeError

LONGEST = 10**8
"""Seconds, three years."""


class Budget(NamedTuple):
    """Time for a study: seconds in all, and the moment on the clock at which they are used up."""

    seconds: float
    ends: float
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.ends - self.clock()


def begin(typed: str | None, began: float, until: float | None = None) -> Budget | None:
    """Return the budget that is typed for a command, as `read` takes it; none where it has no limit.

    ``began`` is a moment of the monotonic clock; ``until`` a worker's end by the time of day, as monotonic clocks
    differ between processes.
    """
    if typed is None:
        return None
    seconds = read(typed)
    return Budget(seconds, began + seconds if until is None else time.monotonic() + until - time.time())


def read(typed: str) -> float:
    """Read a budget as it is typed; return seconds.

    Raises:
        RecipeError: it is no time, has no unit, or is 0.

    Example:
        >>> read("25m"), read("1.5h"), read("1h30m"), read("90s")
        (1500.0, 5400.0, 5400.0, 90.0)
    """
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", typed.strip())
    if re.fullmatch(r"\d+(?:\.\d+)?", typed.strip()):
        instead = f"for example --budget {typed}m for minutes, or --budget {typed}s for seconds"
        raise RecipeError("--budget", "a time with its unit (s, m or h)", typed, instead)
    if parts is None or not any(parts.groups()):
        raise RecipeError("--budget", "a time such as 90s, 25m, 2h or 1h30m", repr(typed), "for example --budget 25m")
    seconds = sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True))
    if not 0 < seconds <= LONGEST:
        raise RecipeError(
            "--budget", f"a time above 0 and up to {LONGEST} s", messages.shown(typed), "for example --budget 25m"
        )
    return seconds
