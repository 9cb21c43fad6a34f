"""Files below a folder, and their SHA-256, kept between runs: an unchanged file is read only once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutelage.data import cache

_CHUNK = 256
_THREADS = 8
_LENGTH = 32
_UNREADABLE = bytes(_LENGTH)  # stands for the SHA-256 of a file that cannot be read


class Files(NamedTuple):
    """Files below one folder, with what tells whether they changed."""

    root: Path
    names: NDArray[np.bytes_]  # paths below the folder, ``(files,)``, as the system encodes them
    stats: NDArray[np.int64]  # size, and times of file and entry in ns, ``(files, 3)``; -1, 0, 0 for what is not there


class _Known(NamedTuple):
    """SHA-256 of files as they were; the last row stands for all others, whose size no file has."""

    names: NDArray[np.bytes_]
    stats: NDArray[np.int64]
    digests: NDArray[np.uint8]  # ``(files, 32)``


_NOTHING = _Known(np.array([b""]), np.array([[-2, 0, 0]]), np.zeros((1, _LENGTH), np.uint8))


def scan(
    root: Path, folders: list[str], *, keep: Callable[[str], bool], enter: Callable[[str], bool] = bool
) -> tuple[Files, NDArray[np.int64]]:
    """List the files below some of a folder's folders, each folder's sorted by name before those of its own folders.

    Args:
        root: the folder.
        folders: paths below it, ``""`` for itself.
        keep: whether to list a file of this name.
        enter: whether to look into a folder of this name; links to folders are not followed.

    Returns:
        The files, and how many there are below each of the folders, ``(folders,)``.
    """
    with ThreadPoolExecutor(_THREADS) as pool:  # what a remote file system answers is waited for at the same time
        found = list(pool.map(lambda folder: _below(root, folder, keep, enter), folders))
    names = os.fsencode("\0".join(chain.from_iterable(names for names, _ in found))).split(b"\0")
    stats = list(chain.from_iterable(stats for _, stats in found))
    files = Files(root, np.array(names if stats else [], np.bytes_), np.array(stats, np.int64).reshape(-1, 3))
    return files, np.array([len(names) for names, _ in found])


def named(root: Path, names: Sequence[str]) -> Files:
    """Return files below a folder by their paths, whether they are there or not."""
    stats = [_stat(root / name) for name in names]
    encoded = np.array([os.fsencode(name) for name in names], np.bytes_)
    return Files(root, encoded, np.array(stats, np.int64).reshape(-1, 3))


def _below(
    root: Path, top: str, keep: Callable[[str], bool], enter: Callable[[str], bool]
) -> tuple[list[str], list[tuple[int, int, int]]]:
    names, stats, pending = [], [], [top]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(root / folder) as opened:
                entries = sorted(opened, key=attrgetter("name"))
        except OSError:
            continue
        prefix = folder and folder + os.sep
        folders = []
        for entry in entries:
            name = entry.name
            if _is_folder(entry):
                if enter(name) and not entry.is_symlink():
                    folders.append(prefix + name)
            elif keep(name):
                names.append(prefix + name)
                stats.append(_stat(entry))
        pending += reversed(folders)
    return names, stats


def listing(files: Files, *, max_bytes: int | None = None) -> bytes:
    """Return a line per file, in order: its name and its SHA-256.

    Zeros stand for a file that cannot be read, is no regular file, or has more than ``max_bytes``.
    A file with the same size and times as before is not read again.
    """
    path = cache.folder() / "digests" / cache.key_of(str(files.root.resolve()))
    known, names = _load(path), files.names.tolist()
    rows = dict(zip(known.names.tolist(), count()))
    places = np.array([rows.get(name, -1) for name in names], np.int64)
    digests = known.digests[places]
    missing = np.flatnonzero((known.stats[places] != files.stats).any(axis=1) | ~digests.any(axis=1))

    def work(start: int) -> list[bytes]:
        chosen = missing[start : start + _CHUNK]
        return [_hash(files.root / os.fsdecode(names[i]), max_bytes) for i in chosen]

    if missing.size:
        with ThreadPoolExecutor(_THREADS) as pool:
            fresh = b"".join(chain.from_iterable(pool.map(work, range(0, len(missing), _CHUNK))))
        digests[missing] = np.frombuffer(fresh, np.uint8).reshape(-1, _LENGTH)
        # Files not requested this time keep their rows.
        others = np.ones(len(known.names), bool)
        others[places], others[-1] = False, False
        with contextlib.suppress(OSError):
            together = _joined(_rows(known, others), _Known(files.names, files.stats, digests))
            cache.save_arrays(path, together._asdict())
    hexes = digests.tobytes().hex().encode()
    shown = names if os.sep == "/" else [name.replace(os.fsencode(os.sep), b"/") for name in names]
    return b"\n".join([b"%b %b" % (n, hexes[i : i + 2 * _LENGTH]) for n, i in zip(shown, count(0, 2 * _LENGTH))])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _stat(entry: os.DirEntry[str] | Path) -> tuple[int, int, int]:
    try:
        status = entry.stat()
    except OSError:
        return -1, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns  # tools that copy times cannot set the last


def _hash(path: Path, max_bytes: int | None) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or (max_bytes is not None and status.st_size > max_bytes):
            return _UNREADABLE  # A pipe would block, and a device never end.
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return _UNREADABLE


def _load(path: Path) -> _Known:
    """Return the saved hashes; none if they are absent or damaged."""
    arrays = cache.load_arrays(path)
    return _NOTHING if arrays is None else _joined(_Known(**arrays), _NOTHING)


def _rows(known: _Known, rows: NDArray[np.bool_]) -> _Known:
    return _Known(known.names[rows], known.stats[rows], known.digests[rows])


def _joined(first: _Known, second: _Known) -> _Known:
    return _Known(
        np.concatenate([first.names, second.names]),
        np.concatenate([first.stats, second.stats]),
        np.concatenate([first.digests, second.digests]),
    )
