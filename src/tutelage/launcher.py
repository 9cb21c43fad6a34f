"""What a process was started with: by a launcher, such as torchrun, or without one, which is a single process."""

from __future__ import annotations

import os

from tutelage.errors import InvalidValueError

_NUMBERS = "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"
_OTHERS = "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"
"""What launchers of MPI say of the number of processes, which accelerate would take up too."""


def rank() -> int:
    """Return this process's number among all, from 0."""
    return _number("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """Return this process's number among those of its machine, from 0."""
    return _number("LOCAL_RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes that were started, on all machines."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """Return the number of processes that were started on this machine."""
    return _number("LOCAL_WORLD_SIZE", world_size())


def launched() -> bool:
    """Whether a launcher started this process: one that was asked for several may have started one."""
    return "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def check() -> None:
    """Refuse a process that could not meet the others that its environment tells of.

    Raises:
        ValueError: a variable is missing, or is no number; or a launcher of MPI started it.
    """
    instead = "start it with torchrun, or unset it to run a single process"
    for name in _NUMBERS:
        if not (text := os.environ.get(name, "0")).isdecimal():
            raise InvalidValueError(name, "a whole number, as torchrun sets it", repr(text), instead)
    needed = (*_NUMBERS, "MASTER_ADDR")
    if "WORLD_SIZE" in os.environ and (missing := [name for name in needed if name not in os.environ]):
        raise InvalidValueError(missing[0], f"a value, as WORLD_SIZE={world_size()} is set", "none", instead)
    for name in _OTHERS:
        if "WORLD_SIZE" not in os.environ and _number(name, 1) > 1:
            got, instead = f"{name}={os.environ[name]} without it", f"set {', '.join(needed)} for each process"
            raise InvalidValueError("WORLD_SIZE", "the number of processes", got, f"{instead}, or type torchrun")
