"""How long calls take, compared fairly."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

ROUNDS = 5
"""How often each call is timed."""


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Time one call."""
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def least(calls: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """Time calls in turn, so that a change of the machine's speed meets all; return the least of each, in seconds.

    The first round warms up, or compiles, and does not count. The least: whatever else the machine does only adds.
    """
    rounds = [[seconds(call, device) for call in calls] for _ in range(1 + ROUNDS)]
    return [min(taken) for taken in zip(*rounds[1:], strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
