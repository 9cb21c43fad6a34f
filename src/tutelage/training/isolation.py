"""Work of several students or runs side by side, in which an error ends only the one that caused it."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import ParamSpec, TypeVar

from tutelage.errors import explained
from tutelage.training.distributed import require_of_all
from tutelage.training.generators import RngState

P = ParamSpec("P")
R = TypeVar("R")


_numbers = itertools.count()


class Isolation:
    """Keeps the work of several students or runs apart.

    With several processes, an error ends the one that caused it if all processes have an error in its work; an error
    in only some of them ends everything, as those would no longer work on the same ones.

    Args:
        on_error: callback for the number of each one that an error ends, and the error.

    Attributes:
        generators: random generators that each one's work draws from, by number; by default the process's.
        errors: errors that ended them, by number.
        number: its own among all of this process, the same in every process.
    """

    def __init__(self, on_error: Callable[[int, Exception], None] | None = None) -> None:
        self.generators: dict[int, RngState] = {}
        self.errors: dict[int, Exception] = {}
        self._on_error = on_error
        self.number = next(_numbers)

    def attempt(self, k: int, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Do some work of the ``k``-th and return its result, or ``None`` if it fails."""
        with self.generators.get(k) or nullcontext():
            return self.attempt_without_generators(k, work, *args, **kwargs)

    def attempt_without_generators(self, k: int, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Do as `attempt` for work that draws nothing on the host: swapping the generators takes as long as a step."""
        try:
            return work(*args, **kwargs)
        except Exception as raised:  # noqa: BLE001  whatever it is, the others do not depend on it
            require_of_all(raised, f"isolation/{self.number}/{k}")
            error = explained(raised)  # while the frames tell whose code it was
            if error is not raised:
                error.__cause__ = raised
            traceback.clear_frames(raised.__traceback__)  # Its tensors are freed while the others continue.
            self.errors[k] = error
            if self._on_error is not None:
                self._on_error(k, error)
            return None
