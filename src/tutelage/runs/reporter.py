"""Progress reporting for one or several runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tutelage.types import Batch, Batches


class Reporter:
    """Reports the progress of a job, which is one run or several; each method does nothing unless overridden."""

    def expect(self, steps: int) -> None:
        """Take the number of steps of the whole job; called again where another job follows, as after a search."""

    def begin(self, title: str, steps: int, done: int) -> None:
        """Begin a fit, with its number of steps and of those done before a resume; one before it is over."""

    def begin_apart(self, title: str, steps: int) -> None:
        """Begin what has steps of its own, none of the job's, such as a recording of the teacher's outputs."""
        self.begin(title, steps, 0)

    def tick(self) -> None:
        """Count a step; called after each."""

    def end(self) -> None:
        """End the fit, perhaps before its last step."""

    def track(self, batches: Batches, starts: Sequence[int] = (0,)) -> Batches:
        """Return batches that report each step that is taken on them, once per run.

        Args:
            batches: batches of one fit, or of several in lockstep.
            starts: step at which each run resumes the fit.
        """
        return _TrackedBatches(self, batches, starts)

    def note(self, text: str) -> None:
        """Take an epoch's metrics as a line; called after each epoch."""

    def say(self, text: str) -> None:
        """Show a message to the user."""

    def remark(self, text: str) -> None:
        """Take what is to be known of the job, which each of its runs may tell: shown once, if at all."""


class _TrackedBatches:
    """Batches that report each step; steps of a failed run are still reported."""

    def __init__(self, reporter: Reporter, batches: Batches, starts: Sequence[int]) -> None:
        self._reporter, self._batches, self._starts, self.samples = reporter, batches, starts, batches.samples

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        stream = self._batches.epoch(epoch, start=start, rank=rank, world=world)
        for step, batch in enumerate(stream, epoch * len(self) + start):
            yield batch
            for _ in filter(step.__ge__, self._starts):
                self._reporter.tick()
