"""How things are timed and weighed: in turn in one process, or each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil
import torch

T = TypeVar("T")


def in_turn(forms: Mapping[str, Callable[[], T]], rounds: int, *, warm_up: bool = True) -> dict[str, list[T]]:
    """Call each form once a round, so that a change of the machine's speed meets all; return what each said.

    Args:
        forms: to call, by name.
        rounds: that count.
        warm_up: make a first round that does not count.
    """
    said: dict[str, list[T]] = {name: [] for name in forms}
    for i in range(rounds + warm_up):
        for name, form in forms.items():
            value = form()
            if i >= warm_up:
                said[name].append(value)
    return said


def fresh(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a process of its own, whose memory nothing else has used.

    Args:
        function: of a module, so that the process finds it.
        arguments: what it is called with; they and what it returns are pickled.

    Raises:
        RuntimeError: the process ended before it answered.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise RuntimeError("the process ended before it answered, as where memory runs out") from None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on so many threads, and put their number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wait() -> None:
    """Wait until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def lacking(needed_mb: float) -> str | None:
    """Say how much memory is lacking, MB of 10**6 bytes; none where what is needed is available."""
    available = psutil.virtual_memory().available / 1e6
    if available >= needed_mb:
        return None
    return f"skipped: expected {needed_mb:.0f} MB of available memory, got {available:.0f}"
