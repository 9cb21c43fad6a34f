"""What a launcher, such as torchrun, says of the process that it started. Without one there is a single process."""

from __future__ import annotations

import os


def rank() -> int:
    """Return this process's number among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return this process's number among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes that were started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched() -> bool:
    """Whether a launcher started this process: one that was asked for several may have started one."""
    return "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
