"""Progress reporting for one or several runs."""

from __future__ import annotations


class Reporter:
    """Shows the progress of a job, which is one run or several; each method does nothing unless it is overridden."""

    def expect(self, steps: int) -> None:
        """The whole job has so many steps left."""

    def begin(self, title: str, steps: int, done: int) -> None:
        """A fit of so many steps begins, some of them done before a resume."""

    def tick(self) -> None:
        """One step is done."""

    def note(self, text: str) -> None:
        """An epoch is done."""

    def say(self, text: str) -> None:
        """Something that the user should read."""
