"""Progress reporting for one or several runs."""

from __future__ import annotations


class Reporter:
    """Shows the progress of a job, which is one run or several; each method does nothing unless it is overridden."""

    def expect(self, steps: int) -> None:
        """Called once with the number of steps of the whole job."""

    def begin(self, title: str, steps: int, done: int) -> None:
        """Called when a fit begins, with its number of steps and of those done before a resume."""

    def tick(self) -> None:
        """Called after each step."""

    def note(self, text: str) -> None:
        """Called after each epoch with its metrics as a line."""

    def say(self, text: str) -> None:
        """Called with a message for the user."""
