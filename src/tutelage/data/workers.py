"""Processes that fetch for the splits of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.signal_handling import _remove_worker_pids  # type: ignore[attr-defined]

from tutelage.errors import TutelageError, reader_ended
from tutelage.types import View

Fetch = Callable[..., Any]
"""Function of indices and, by keyword, their view."""
Task = tuple[int, NDArray[np.int64], View | None]
"""Number of a function, and its arguments."""


class _Functions(Dataset[Any]):
    """Functions of tasks, as the data set that `DataLoader` expects."""

    def __init__(self, functions: list[Fetch]) -> None:
        self.functions = functions

    def __getitem__(self, task: Task) -> Any:
        number, index, view = task
        try:
            return self.functions[number](index, view=view)
        except TutelageError as error:
            return error  # As a value: an exception would arrive as a traceback in text.


class _Tasks:
    """The tasks of one pass, as the sampler that `DataLoader` expects."""

    def __init__(self, tasks: Iterable[Task] = ()) -> None:
        self.tasks = tasks

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)


class WorkerPool:
    """Worker processes that the splits of a data set share.

    They start when first needed and last from epoch to epoch, through evaluations, until `close`; afterwards they start
    again when needed. A function that is new to them restarts them.
    """

    def __init__(self) -> None:
        self._functions: list[Fetch] = []
        self._tasks = _Tasks()
        self._loader: DataLoader[Any] | None = None
        self._under_way: object | None = None  # current pass of the processes

    def __reduce__(self) -> tuple[type[WorkerPool], tuple[()]]:
        return WorkerPool, ()  # A copy in a worker, or in a file, has no processes.

    def map(
        self,
        function: Fetch,
        requests: Iterable[NDArray[np.int64]],
        *,
        view: View | None,
        workers: int,
        pin_memory: bool = False,
    ) -> Iterator[Any]:
        """Map a function over arrays of indices, in order, in this process (no workers) or in others.

        If a pass is already under way, a second one gets its own processes.
        """
        if workers == 0:
            yield from (function(index, view=view) for index in requests)
            return
        if self._under_way is not None:
            tasks = _Tasks((0, index, view) for index in requests)
            yield from _results(_loader([function], tasks, workers=workers, pin_memory=pin_memory, persistent=False))
            return
        loader = self._loader
        if function not in self._functions:
            self._functions.append(function)
            loader = None
        if loader is None or (loader.num_workers, loader.pin_memory) != (workers, pin_memory):
            self._end()
            # The processes have a copy of the current list.
            loader = _loader([*self._functions], self._tasks, workers=workers, pin_memory=pin_memory, persistent=True)
            self._loader = loader
        number = self._functions.index(function)
        self._tasks.tasks = ((number, index, view) for index in requests)
        this = self._under_way = object()
        try:
            yield from _results(loader)
        finally:
            if self._under_way is this:
                self._under_way = None

    def close(self) -> None:
        """End the processes."""
        self._end()
        self._functions.clear()

    def _end(self) -> None:
        # The iterator would end them only when nothing refers to it, and the traceback of an error may do so for long.
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            try:
                iterator._shutdown_workers()
            except RuntimeError:  # PyTorch's handler of signals, as one of them was killed, cut it short.
                with suppress(ValueError):
                    _remove_worker_pids(id(iterator))  # or the handler would raise again, in whatever comes later
                for worker in iterator._workers:
                    worker.terminate()
                    worker.join()
        self._loader = self._under_way = None


def _results(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        for result in loader:
            if isinstance(result, TutelageError):
                raise result
            yield result
    except (EOFError, ConnectionError) as error:  # from the pipe to a process that was killed
        raise reader_ended(f"one that ended ({type(error).__name__})") from error


def _unchanged(result: Any) -> Any:
    return result


def _loader(
    functions: list[Fetch], tasks: _Tasks, *, workers: int, pin_memory: bool, persistent: bool
) -> DataLoader[Any]:
    return DataLoader(
        _Functions(functions),
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        persistent_workers=persistent,
        # A separate one: each loader would advance the default one, and so change dropout after a resume.
        generator=torch.Generator(),
    )
