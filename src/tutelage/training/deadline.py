"""The moment by which a fit stops, with a checkpoint to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tutelage.errors import InvalidValueError
from tutelage.types import Batch, Batches


class DeadlineExceeded(RuntimeError):
    """No time is left for the next piece of work; what was done is saved, and the same command resumes it."""


class Deadline:
    """A moment after which no further piece of work is begun: a step, an evaluation, a chunk of recorded outputs.

    What the last piece and its checkpoint take has to be kept back by whoever sets the moment.

    Args:
        moment: on the clock, seconds.
        evaluation: seconds that an epoch's evaluations take, as far as is known.
        clock: returns the seconds.
    """

    def __init__(self, moment: float, *, evaluation: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.moment, self.evaluation, self.clock = moment, evaluation, clock
        self._trained = 0.0

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 after the moment."""
        return self.moment - self.clock()

    def over(self, work: float = 0.0) -> bool:
        """Whether there is no time for work of so many seconds."""
        return self.left <= work

    def end_training(self) -> None:
        """Take note that an epoch's steps are done, and its evaluations begin."""
        self._trained = time.monotonic()

    def end_evaluation(self) -> None:
        """Take note that an epoch's evaluations, or some of them, are done: how long they take is known now."""
        self.evaluation = time.monotonic() - self._trained

    def check(self, what: str, work: float = 0.0) -> None:
        """Refuse to begin work that there is no time for.

        Raises:
            DeadlineExceeded: less than ``work`` seconds are left.
        """
        if self.over(work):
            raise DeadlineExceeded(f"{what}: no time is left for it; type the same command again to resume")


class TimedBatches:
    """Batches that end by `DeadlineExceeded` where no time is left for a step; a fit saves when they do.

    An epoch's last step has the evaluations after it.
    """

    def __init__(self, batches: Batches, deadline: Deadline) -> None:
        self._batches, self._deadline, self.samples = batches, deadline, batches.samples

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield the batches of one epoch.

        Raises:
            ValueError: there are several processes.
            DeadlineExceeded: the time is up.
        """
        if world > 1:
            raise InvalidValueError(
                "deadline",
                "none where several processes train together",
                f"one for {world}: each would stop at a step of its own",
                "leave it out",
            )
        deadline = self._deadline
        for step, batch in enumerate(self._batches.epoch(epoch, start=start), start):
            if deadline.over(deadline.evaluation if step == len(self) - 1 else 0.0):
                raise DeadlineExceeded(f"stopped in time before step {step + 1} of epoch {epoch + 1}")
            yield batch
        deadline.end_training()
