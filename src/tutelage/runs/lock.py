"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tutelage.errors import RecipeError


class BusyError(RecipeError):
    """Another process is executing the run."""


@contextlib.contextmanager
def folder_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder; the lock ends with the process, however it ends.

    Raises:
        BusyError: another process holds the lock, and this one does not wait.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise BusyError(
                "name",
                "a folder that no other process writes to",
                f"{folder}, where a run is in progress",
                "type name=... for another run, or wait",
            ) from None
        yield
