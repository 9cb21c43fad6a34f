"""The moment by which a fit stops, with a checkpoint to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable


class DeadlineExceeded(RuntimeError):
    """No time is left for the next piece of work; what was done is saved, and the same command resumes it."""


class Deadline:
    """A moment after which no further piece of work is begun: a step, an evaluation, a chunk of recorded outputs.

    What the last piece and its checkpoint take has to be kept back by whoever sets the moment.

    Args:
        moment: on the clock, seconds.
        evaluation: seconds that an epoch's evaluations take, as far as is known; a fit measures them anew.
        clock: returns the seconds.
    """

    def __init__(self, moment: float, *, evaluation: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.moment, self.evaluation, self.clock = moment, evaluation, clock

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 after the moment."""
        return self.moment - self.clock()

    def over(self, work: float = 0.0) -> bool:
        """Whether there is no time for work of so many seconds."""
        return self.left <= work

    def check(self, what: str, work: float = 0.0) -> None:
        """Refuse to begin work that there is no time for.

        Raises:
            DeadlineExceeded: less than ``work`` seconds are left.
        """
        if self.over(work):
            raise DeadlineExceeded(f"{what}: no time is left for it; type the same command again to resume")
