"""Files of text that somebody hands in: read with a limit on their size, and JSON with one on its nesting."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from tutelage.errors import InvalidValueError

DEPTH = 64
"""Deepest nesting of JSON that is read."""


UNLIMITED = sys.maxsize - 1


def read(path: Path, limit: int = UNLIMITED) -> bytes:
    """Return a file's content; nothing is waited for, and no more than the limit is read.

    Raises:
        InvalidValueError: it is no regular file (a pipe, a device, a file of ``/proc``), or it is larger.
        OSError: it cannot be opened.
    """
    # Without waiting: a pipe that nobody writes to would be waited for at the opening.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InvalidValueError(path, "a regular file", _KINDS.get(stat.S_IFMT(status.st_mode), "none"), _COPY)
    with open(descriptor, "rb") as file:
        if status.st_size > limit:
            raise InvalidValueError(path, f"at most {limit} bytes", f"{status.st_size} bytes", "name another file")
        content = file.read(status.st_size + 1)
    if content and not status.st_size:
        raise InvalidValueError(path, "a regular file", "a file that has more in it than its size", _COPY)
    return content[: status.st_size]  # what was appended meanwhile may be half a line


_COPY = "copy its content into a file"
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def parse_json(text: bytes | str) -> Any:
    """Return a JSON value without infinities, equal keys and deep nesting, which parsers disagree about.

    Raises:
        ValueError: the text is another.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH:
            raise ValueError(_TOO_DEEP)
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
    return value


_TOO_DEEP = f"nested deeper than {DEPTH} levels"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} twice")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name}, which is no JSON")
