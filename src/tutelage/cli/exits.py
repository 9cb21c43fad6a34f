"""How the command line ends: done, stopped, or with an error; imports nothing that takes long."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import NoReturn

from tutelage.errors import printable
from tutelage.interruption import Terminated
from tutelage.launcher import rank

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and SIGTERM, as shells have them: 128 and the signal's number."""
ALONE = 15.0
"""Seconds after which a process of several whose launcher has not ended it has failed alone."""
SHOW_CURSOR = "\x1b[?25h"


def stop(error: KeyboardInterrupt) -> NoReturn:
    """End the command with what is saved, as the notes of the interruption say, and what to type.

    That is the same command again, unless the interruption has another in ``instead``.
    """
    if rank() > 0:  # The first process says it.
        raise SystemExit(TERMINATED if isinstance(error, Terminated) else INTERRUPTED)
    notes = getattr(error, "__notes__", [])
    saved = "; ".join(notes) or "nothing was saved yet"
    instead = getattr(error, "instead", f"run the same command again{' to resume' if notes else ''}")
    end(f"stopped: {saved}; {instead}", TERMINATED if isinstance(error, Terminated) else INTERRUPTED)


def end(message: str, code: int, trace: str = "") -> NoReturn:
    """End the command with a message, each line prefixed with the program's name, after a traceback if there is one.

    Of several processes the first one speaks: the launcher ends the others. One that it leaves alone failed by itself.
    """
    if rank() > 0:
        wait_for_launcher()
        message = f"process {rank()}: {message}"
    print(trace, end="", file=sys.stderr)  # noqa: T201
    for line in message.split("\n"):
        print(f"tutelage: {printable(line)}", file=sys.stderr, flush=True)  # noqa: T201
    raise SystemExit(code)


def wait_for_launcher() -> None:
    """Let the launcher end this process, one of several, once the first one has ended with an error."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(ALONE)


def leave_others(code: int | str) -> NoReturn:
    """End one of several processes without parting from the others, which may be anywhere.

    The interpreter's own end could take the threads that exchange by surprise, and abort with another exit code.
    """
    if not isinstance(code, int):  # a text, which the interpreter would print
        print(code, file=sys.stderr)  # noqa: T201
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # Its reader is gone, or it is closed.
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def leave(number: int) -> None:
    """End the process at once, after a second signal. What is on disk is whole: files are replaced, never changed."""
    cursor = SHOW_CURSOR if sys.stdout.isatty() else ""  # a progress bar hides it
    text = f"{cursor}tutelage: stopped at once, by a second signal; run the same command again to resume\n"
    os.write(2, text.encode())
    os._exit(128 + number)
