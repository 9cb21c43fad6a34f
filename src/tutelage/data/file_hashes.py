"""SHA-256 of files, kept between runs: an unchanged file is read only once."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from tutelage.data import cache

_CHUNK = 256
_THREADS = 8
_LENGTH = 32
_UNREADABLE = bytes(_LENGTH)  # stands for the SHA-256 of a file that cannot be read
_Known = dict[tuple[bytes, int, int, int], bytes]  # SHA-256 by name, size, and times of file and entry


def listing(root: Path, names: Sequence[str], *, max_bytes: int | None = None) -> bytes:
    """Return a line per file below ``root``, in order: its name and its SHA-256.

    Zeros stand for a file that cannot be read, is no regular file, or has more than ``max_bytes``.
    A file with the same size and times as before is not read again.
    """
    path = cache.folder() / "digests" / cache.key_of(str(root.resolve()))
    known = _load(path)
    entries = [(os.fsencode(name), *_stat(root / name)) for name in names]
    missing = [i for i, entry in enumerate(entries) if entry not in known]

    def work(start: int) -> list[bytes]:
        return [_hash(root / names[i], max_bytes) for i in missing[start : start + _CHUNK]]

    if missing:
        with ThreadPoolExecutor(_THREADS) as pool:
            fresh = chain.from_iterable(pool.map(work, range(0, len(missing), _CHUNK)))
            hashes = {entries[i]: file_hash for i, file_hash in zip(missing, fresh, strict=True)}
        # Files not requested this time keep their entries; outdated entries of the others are dropped.
        asked, present = {name for name, *_ in entries}, set(entries)
        known = {entry: file_hash for entry, file_hash in known.items() if entry in present or entry[0] not in asked}
        known |= hashes
        with contextlib.suppress(OSError):
            _save(path, known)
    return b"\n".join(
        os.fsencode(Path(name).as_posix()) + b" " + known[entry].hex().encode()
        for name, entry in zip(names, entries, strict=True)
    )


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
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
    try:
        saved = path.read_bytes()
    except OSError:
        return {}
    # Checked as a whole first: NumPy raises all kinds of errors on damaged bytes.
    if hashlib.sha256(saved[_LENGTH:]).digest() != saved[:_LENGTH]:
        return {}
    with np.load(io.BytesIO(saved[_LENGTH:]), allow_pickle=False) as arrays:
        rows = zip(arrays["names"].tolist(), arrays["stats"].tolist(), arrays["digests"], strict=True)
        known = {(name, size, mtime, ctime): row.tobytes() for name, (size, mtime, ctime), row in rows}
    return {entry: file_hash for entry, file_hash in known.items() if file_hash != _UNREADABLE}


def _save(path: Path, known: _Known) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        names=np.array([name for name, *_ in known]),
        stats=np.array([stat for _, *stat in known], np.int64),
        digests=np.frombuffer(b"".join(known.values()), np.uint8).reshape(-1, _LENGTH),
    )
    content = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as temporary:
        new = Path(temporary) / path.name
        new.touch(mode=0o600)
        new.write_bytes(hashlib.sha256(content).digest() + content)
        new.replace(path)
