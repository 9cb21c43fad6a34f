"""Where a fault can be put: operations on files below the working folder, optimizer steps, forward passes, samples.

`watching` counts how often each place is reached, and lets an action run at one of those times.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import pathlib
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

FILES = ("open to write", "open to read", "write", "sync", "rename", "make folder", "remove folder", "open folder")
"""Places that are operations on files."""


@dataclass
class Watch:
    """How often each place was reached, with the path of each operation on a file; and what happens at one time."""

    folder: str
    place: str = ""
    time: int = 0  # counted from 1
    action: Callable[[str, Any], Any] | None = None
    lasting: bool = False  # whether the action happens at every further time, and at every place like it
    counts: Counter[str] = field(default_factory=Counter)
    paths: dict[str, list[str]] = field(default_factory=dict)
    path: str = ""  # where the action happened

    @property
    def reached(self) -> bool:
        """Whether the action has happened."""
        return bool(self.place) and self.counts[self.place] >= self.time

    def reach(self, place: str, path: str = "", value: Any = None) -> Any:
        """Count a place; return the value, or what the action makes of it."""
        if self.lasting and self.reached and place in FILES and place != "open to read":
            return self.action(path, value) if self.action else value
        self.counts[place] += 1
        self.paths.setdefault(place, []).append(path)
        if self.action is not None and place == self.place and self.counts[place] == self.time:
            self.path = path
            return self.action(path, value)
        return value

    def below(self, path: Any) -> str | None:
        """Return a path relative to the watched folder; none for one elsewhere."""
        if isinstance(path, int):
            return None
        absolute = os.path.abspath(os.fspath(path))
        return os.path.relpath(absolute, self.folder) if absolute.startswith(self.folder + os.sep) else None


_watch: Watch | None = None


def reach(place: str, value: Any) -> Any:
    """Pass a value by a place of a network or a data set."""
    return value if _watch is None else _watch.reach(place, value=value)


class _Torn:
    """A file whose writes are watched; one that fails may have written half of it."""

    def __init__(self, file: Any, path: str, watch: Watch) -> None:
        self._file, self._path, self._watch = file, path, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Torn:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def write(self, content: Any) -> int:
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._watch.reach("write", self._path, half)
        return self._file.write(content)


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[Watch]:
    """Watch all places while the context lasts. Files are not synced to the disk: no machine goes down here."""
    global _watch
    plain = {
        (pathlib.Path, "open"): pathlib.Path.open,
        (os, "fsync"): os.fsync,
        (os, "replace"): os.replace,
        (os, "mkdir"): os.mkdir,
        (os, "open"): os.open,
        (shutil, "rmtree"): shutil.rmtree,
    }

    def opened(self: pathlib.Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        path = watch.below(self)
        if path is None:
            return plain[pathlib.Path, "open"](self, mode, *arguments, **keywords)
        writes = any(letter in mode for letter in "wax+")
        watch.reach("open to write" if writes else "open to read", path)
        file = plain[pathlib.Path, "open"](self, mode, *arguments, **keywords)
        return _Torn(file, path, watch) if writes else file

    def synced(descriptor: int) -> None:
        path = watch.below(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path is not None:
            watch.reach("sync", path)

    def replaced(source: Any, target: Any, **keywords: Any) -> None:
        if (path := watch.below(target)) is not None:
            watch.reach("rename", path)
        plain[os, "replace"](source, target, **keywords)

    def made(path: Any, *arguments: Any, **keywords: Any) -> None:
        if (below := watch.below(path)) is not None and not os.path.isdir(path):
            watch.reach("make folder", below)
        plain[os, "mkdir"](path, *arguments, **keywords)

    def opened_low(path: Any, *arguments: Any, **keywords: Any) -> int:
        if "dir_fd" not in keywords and (below := watch.below(path)) is not None:
            watch.reach("open folder" if os.path.isdir(path) else "open lock", below)
        return plain[os, "open"](path, *arguments, **keywords)

    def removed(path: Any, *arguments: Any, **keywords: Any) -> None:
        if (below := watch.below(path)) is not None and os.path.isdir(path):
            watch.reach("remove folder", below)
        plain[shutil, "rmtree"](path, *arguments, **keywords)

    changed = (opened, synced, replaced, made, opened_low, removed)
    hook = register_optimizer_step_post_hook(lambda *_: watch.reach("step"))
    try:
        for (module, name), function in zip(plain, changed, strict=True):
            setattr(module, name, function)
        _watch = watch
        yield watch
    finally:
        _watch = None
        hook.remove()
        for (module, name), function in plain.items():
            setattr(module, name, function)


def refuse(number: int, *, torn: bool = False) -> Callable[[str, Any], Any]:
    """Return an action by which the system refuses an operation; a torn write has written half."""

    def action(path: str, value: Any) -> Any:
        if torn and builtins.callable(value):
            value()
        raise OSError(number, os.strerror(number), path)

    return action


def kill(path: str, value: Any) -> Any:
    """End the process at once, a write after half of it."""
    if callable(value):
        value()
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(number: int) -> Callable[[str, Any], Any]:
    """Return an action that sends this process a signal."""

    def action(path: str, value: Any) -> Any:
        signal.raise_signal(number)
        return value

    return action


def throw(error: Callable[[], BaseException]) -> Callable[[str, Any], Any]:
    """Return an action that raises an error."""

    def action(path: str, value: Any) -> Any:
        raise error()

    return action


ERRNOS = {
    name: getattr(errno, name)
    for name in ("ENOSPC", "EIO", "EACCES", "EROFS", "EDQUOT", "EMFILE")
    if hasattr(errno, name)
}
