"""Ctrl-C and SIGTERM: the first waits for the end of what must not be cut in two, a second one waits for nothing."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tutelage import launcher

SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
TWICE = 0.5
"""Seconds within which several signals are one: a terminal sends Ctrl-C to a program and to the one that started it,
which may pass it on."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a command as Ctrl-C does."""


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Let a signal wait for the end of the block; one that comes more than `TWICE` seconds later does not wait.

    This holds for signals that Python handles, and in the main thread, which alone gets them. It yields a list of
    the number of the signal that waits: one that is taken out of it does not come any more.
    """
    waiting: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield waiting
        return
    handlers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    first = 0.0

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not waiting:
            first = time.monotonic()
            waiting.append(number)
            if _command is not None:
                _command.watch()
        elif time.monotonic() - first > TWICE:
            waiting.clear()
            handlers[number](number, frame)

    for number in handlers:
        signal.signal(number, wait)
    try:
        yield waiting
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in waiting:
            handlers[number](number, None)


@contextmanager
def stop_on_signals(leave: Callable[[int], object]) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C and `Terminated` on SIGTERM, so that a command saves what it has.

    Args:
        leave: function that ends the process at once; called with the number of a second signal.
    """
    global _command
    if _command is not None:
        yield
        return
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as in the background
    _command = _Command(leave)
    if launcher.world_size() > 1:
        # One that waits for the others is in a library: no handler runs there, and the second signal has to end it.
        _command.watch()
        _command.began = None
    before = {number: signal.signal(number, _command.stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _command.end()
        _command = None


def stopping() -> bool:
    """Whether a signal has come to the command."""
    return _command is not None and _command.watched


def stop_with_others() -> None:
    """Let the command end as if a signal had come to it, because one came to another process that works with it.

    The next signal is passed over: whoever started the processes sends one to those left when the first has ended.
    """
    if _command is not None and threading.current_thread() is threading.main_thread():
        _command.raised = True
        _command.watch()
        _command.began = None


class _Command:
    """The handler of a command's signals."""

    def __init__(self, leave: Callable[[int], object]) -> None:
        self.leave, self.process = leave, os.getpid()
        self.raised = self.watched = False
        self.began: float | None = None  # moment of the first signal, or of the watch's beginning
        self.sender: socket.socket

    def stop(self, number: int, _: FrameType | None) -> None:
        """Raise, once."""
        if os.getpid() != self.process:  # a fork of this process ends as if there were no handler
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.raised:
            self.raised = True
            self.watch()
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def watch(self) -> None:
        """Watch for a second signal, in a thread: the main one may be in a library's code for long."""
        if self.watched:
            return
        self.watched, self.began = True, time.monotonic()
        receiver, self.sender = socket.socketpair()
        self.sender.setblocking(False)
        signal.set_wakeup_fd(self.sender.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._read, args=(receiver,), daemon=True).start()

    def _read(self, receiver: socket.socket) -> None:
        with receiver:
            while number := receiver.recv(1):
                if number[0] not in SIGNALS:
                    continue
                if self.began is None:
                    self.began = time.monotonic()
                elif time.monotonic() - self.began > TWICE:
                    self.leave(number[0])

    def end(self) -> None:
        """End the watch."""
        if self.watched:
            signal.set_wakeup_fd(-1)
            self.sender.close()  # The thread reads the end, and ends.


_command: _Command | None = None
