"""What an input may not do while it is read: start a program, connect, write elsewhere, take long or much memory."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

SECONDS = 5.0
"""Time of the processor for one input."""
WAIT = 4.0
"""Time of the clock for one input, which may wait for what never comes."""
MEGABYTES = 600
"""Memory for one input, above what the process has taken before."""
FORBIDDEN = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.startfile", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request", "ctypes.dlopen", "webbrowser.open"),
)
_PLACES = (os.path.realpath(tempfile.gettempdir()), "/dev/null", "/dev/shm")


class Forbidden(BaseException):
    """An input did what none may: no ``except Exception`` hides it."""


_active: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _active:
        return
    if event in FORBIDDEN:
        _active.append(f"{event} {arguments[:1]}")
    elif event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and not os.path.realpath(arguments[0]).startswith(_PLACES):
            _active.append(f"wrote {arguments[0]}")
    if len(_active) > 1:
        raise Forbidden(_active[-1])


sys.addaudithook(_audit)


def _too_long(*_: Any) -> None:
    raise Forbidden("took too long")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Raise `Forbidden` where what is done inside oversteps."""
    peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    before = signal.signal(signal.SIGVTALRM, _too_long)
    waited = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAIT)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":  # So that an input which fills the memory ends with a MemoryError.
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 3 * MEGABYTES * 2**20, limits[1]))
    _active[:] = ["active"]
    try:
        yield
        if len(_active) > 1:
            raise Forbidden(_active[-1])
    finally:
        _active.clear()
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, waited)
        signal.signal(signal.SIGVTALRM, before)
    if time.process_time() - began > SECONDS:
        raise Forbidden("took too long")
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024 > MEGABYTES:
        raise Forbidden("took too much memory")
