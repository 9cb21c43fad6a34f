"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tutelage import records
from tutelage.errors import RecipeError


class BusyError(RecipeError):
    """Another process is executing the run."""


@contextlib.contextmanager
def folder_lock(folder: Path, *, wait: bool | float = False) -> Iterator[None]:
    """Keep other processes out of a folder; the lock ends with the process, however it ends.

    Args:
        folder: folder; created if missing.
        wait: whether to wait for another process, or seconds to do so at most.

    Raises:
        BusyError: another process holds the lock, and this one does not wait, or not any longer.
        StorageError: nothing can be written there, or its file system has no locks.
    """
    path = folder / ".lock"
    with records.writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        # Of the call and not of its thread; and never a mere marker file, which would outlive a process that is killed.
        lock = FileLock(path, timeout=-1 if wait is True else float(wait), thread_local=False, fallback_to_soft=False)
        try:
            held = lock.acquire()
        except Timeout:
            expected = "a folder that no other process writes to"
            instead = "type name=... for another run, or wait"
            raise BusyError("name", expected, f"{folder}, where a run is in progress", instead) from None
    with held:
        yield
