"""The moment by which a fit stops, with a checkpoint to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tutelage.errors import InvalidValueError, RunError
from tutelage.types import Batch, Batches

AGAIN = "run the same command again to resume"


class DeadlineExceeded(RunError):
    """No time is left for the next piece of work; progress is saved, and the same command resumes it."""


class Deadline:
    """A moment after which no further piece of work is begun: a step, an evaluation, a chunk of recorded outputs.

    Whoever sets the moment must leave time for the last piece and its checkpoint.

    Args:
        moment: time on the clock, seconds.
        evaluation: seconds that an epoch's evaluations take, if known.
        clock: function that returns the seconds.
    """

    def __init__(self, moment: float, *, evaluation: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.moment, self.evaluation, self.clock = moment, evaluation, clock
        self._trained = 0.0

    @property
    def left(self) -> float:
        """Remaining seconds; below 0 after the moment."""
        return self.moment - self.clock()

    def over(self, work: float = 0.0) -> bool:
        """Whether there is no time for work that takes this many seconds."""
        return self.left <= work

    def end_training(self) -> None:
        """Note that an epoch's steps are done and its evaluations begin."""
        self._trained = time.monotonic()

    def end_evaluation(self) -> None:
        """Note that some or all of an epoch's evaluations are done, so that their duration is known."""
        self.evaluation = time.monotonic() - self._trained

    def check(self, what: str, work: float = 0.0) -> None:
        """Refuse to begin work for which there is no time.

        Raises:
            DeadlineExceeded: if fewer than ``work`` seconds are left.
        """
        if self.over(work):
            raise DeadlineExceeded(what, "time left for it", "none", AGAIN)


class TimedBatches:
    """Batches that end with `DeadlineExceeded` if no time is left for a step; a fit then saves.

    An epoch's last step is followed by the evaluations.
    """

    def __init__(self, batches: Batches, deadline: Deadline) -> None:
        self._batches, self._deadline, self.samples = batches, deadline, batches.samples

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield the batches of one epoch.

        Raises:
            ValueError: if there are several processes.
            DeadlineExceeded: if the time is up.
        """
        if world > 1:
            got = f"one for {world}: each would stop at a step of its own"
            raise InvalidValueError("deadline", "none where several processes train together", got, "leave it out")
        deadline = self._deadline
        for step, batch in enumerate(self._batches.epoch(epoch, start=start), start):
            if deadline.over(deadline.evaluation if step == len(self) - 1 else 0.0):
                raise DeadlineExceeded(f"step {step + 1} of epoch {epoch + 1}", "time left for it", "none", AGAIN)
            yield batch
        deadline.end_training()
