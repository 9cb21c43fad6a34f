"""How time and memory are measured: in turn in one process, or each in a separate process."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor

K = TypeVar("K")
T = TypeVar("T")


def in_turn(forms: Mapping[K, Callable[[], T]], rounds: int, *, warm_up: bool = True) -> dict[K, list[T]]:
    """Call each form once per round, so that changes in the machine's speed affect all; return the results by name.

    With ``warm_up``, the first round does not count.
    """
    results: dict[K, list[T]] = {name: [] for name in forms}
    for _ in range(rounds + warm_up):
        for name, form in forms.items():
            results[name].append(form())
    return {name: values[warm_up:] for name, values in results.items()}


def medians(seconds: Mapping[K, Sequence[float]]) -> dict[K, float]:
    """Return the median of each form's rounds."""
    return {name: statistics.median(rounds) for name, rounds in seconds.items()}


def backward(compute: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Compute a loss and its gradients; return the processor seconds and the loss."""
    began = time.process_time()
    loss = compute()
    loss.backward()
    return time.process_time() - began, loss


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a module's function in a separate process, whose memory nothing else has used.

    Raises:
        RuntimeError: if the process ended before it answered.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise RuntimeError("the process ended before it answered, as where memory runs out") from None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on this many threads, and restore their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize() -> None:
    """Wait until a GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def lacking_memory(needed_mb: float) -> str | None:
    """Return a line to print if less memory is available, MB of 10**6 bytes; ``None`` if there is enough."""
    available = psutil.virtual_memory().available / 1e6
    if available >= needed_mb:
        return None
    return f"skipped: expected {needed_mb:.0f} MB of available memory, got {available:.0f}"
