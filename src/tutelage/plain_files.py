"""Files of text that somebody hands in, with a limit on their size; JSON with one on its nesting, and its types."""

from __future__ import annotations

import json
import os
import stat
import sys
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NotRequired, Required

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


def misfit(value: object, kind: Any, where: str = "", *, partial: bool = False) -> str | None:
    """Say where a JSON value is not of a type: a `TypedDict`, list, dict, union, literal, number or text."""
    if kind is Any:
        return None
    if typing.is_typeddict(kind) and isinstance(value, dict):
        for key, hint in typing.get_type_hints(kind, include_extras=True).items():
            qualifier = typing.get_origin(hint)
            required = qualifier is Required or (kind.__total__ and qualifier is not NotRequired and not partial)
            if key not in value and required:
                return f"no {where}{key}"
            inner = typing.get_args(hint)[0] if qualifier in (Required, NotRequired) else hint
            if key in value and (wrong := misfit(value[key], inner, f"{where}{key}.", partial=partial)):
                return wrong
        return None
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        wrongs = [misfit(value, member, where, partial=partial) for member in arguments]
        return None if None in wrongs else max(wrongs, key=lambda wrong: len(wrong or ""))
    items: Iterable[tuple[object, object]] | None = None
    if origin in (list, tuple) and isinstance(value, list):  # A tuple of numbers is a list on disk.
        items = enumerate(value)
    elif origin is dict and isinstance(value, dict):
        items = value.items()
    if items is not None:
        inner = arguments[1 if origin is dict else 0]
        return next(filter(None, (misfit(item, inner, f"{where}{key}.", partial=partial) for key, item in items)), None)
    if origin is Literal:
        fits = value in arguments
    elif kind in (int, float):
        fits = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    else:
        fits = not typing.is_typeddict(kind) and isinstance(value, type(None) if kind is None else origin or kind)
    return None if fits else f"{where.removesuffix('.') or 'the whole'}: {json.dumps(value)[:60]}"
