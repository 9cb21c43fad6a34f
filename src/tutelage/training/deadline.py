"""The moment by which a fit stops, with a checkpoint to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tutelage.errors import RunError
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
            raise exceeded(what)


def exceeded(what: str) -> DeadlineExceeded:
    """Return the error that says that no time is left for something."""
    return DeadlineExceeded(what, "time left for it", "none", AGAIN)


class TimedBatches:
    """Batches that end with `DeadlineExceeded` if no time is left for a step; a fit then saves.

    An epoch's last step is followed by the evaluations. Several processes stop together, as their `Agreement` says, not
    each by its own clock.
    """

    def __init__(self, batches: Batches, deadline: Deadline) -> None:
        self._batches, self.deadline, self.samples = batches, deadline, batches.samples

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield the batches of one epoch.

        Raises:
            DeadlineExceeded: if the time is up and there is one process.
        """
        deadline = self.deadline
        for step, batch in enumerate(self._batches.epoch(epoch, start=start, rank=rank, world=world), start):
            if world == 1 and deadline.over(deadline.evaluation if step == len(self) - 1 else 0.0):
                raise exceeded(f"step {step + 1} of epoch {epoch + 1}")
            yield batch
        deadline.end_training()
