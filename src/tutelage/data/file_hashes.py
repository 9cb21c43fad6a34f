"""The content of files by their SHA-256, kept between runs: a file that has not been touched is read once."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tutelage.data import cache

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 256
_THREADS = 8
_LENGTH = 32
_UNREADABLE = bytes(_LENGTH)


def listing(root: Path, names: Sequence[str]) -> bytes:
    """Return a line for each file, its name and its content's SHA-256.

    Args:
        root: the folder that the names are relative to.
        names: paths of the files.

    Returns:
        Lines in the order of the names. A file that cannot be read has a digest of zeros.
    """
    digests = file_digests(root, names)
    return b"\n".join(
        os.fsencode(Path(name).as_posix()) + b" " + digest.hex().encode()
        for name, digest in zip(names, digests, strict=True)
    )


def file_digests(root: Path, names: Sequence[str]) -> list[bytes]:
    """Return each file's SHA-256; a file of the size and times that it had before is not read again."""
    # The time of the last change of the entry is asked as well: tools that copy times cannot set that one.
    stats = np.array([_stat(root / name) for name in names], np.int64).reshape(len(names), 3)
    place = cache.folder() / "digests" / f"{cache.key_of(str(root.resolve()))}"
    known = _load(place)
    entries = zip(names, stats.tolist(), strict=True)
    found = [known.get((os.fsencode(name), size, mtime, ctime)) for name, (size, mtime, ctime) in entries]
    missing = [i for i, digest in enumerate(found) if digest is None]

    def work(start: int) -> list[bytes]:
        return [_hash(root / names[i]) for i in missing[start : start + _CHUNK]]

    with ThreadPoolExecutor(_THREADS) as pool:
        fresh = [digest for chunk in pool.map(work, range(0, len(missing), _CHUNK)) for digest in chunk]
    for i, digest in zip(missing, fresh, strict=True):
        found[i] = digest
    digests = [digest if digest is not None else _UNREADABLE for digest in found]
    if missing:
        _save(place, names, stats, digests, known)
    return digests


_Known = dict[tuple[bytes, int, int, int], bytes]


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return -1, 0, 0
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _hash(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return _UNREADABLE


def _load(place: Path) -> _Known:
    """Return what was saved; nothing where that is absent or damaged."""
    try:
        saved = place.read_bytes()
    except OSError:
        return {}
    # Checked as a whole first: what NumPy raises on damaged bytes has no end.
    if hashlib.sha256(saved[_LENGTH:]).digest() != saved[:_LENGTH]:
        return {}
    with np.load(io.BytesIO(saved[_LENGTH:]), allow_pickle=False) as arrays:
        rows = zip(arrays["names"].tolist(), arrays["stats"].tolist(), arrays["digests"], strict=True)
        known = {(name, size, mtime, ctime): digest.tobytes() for name, (size, mtime, ctime), digest in rows}
    return {entry: digest for entry, digest in known.items() if digest != _UNREADABLE}


def _save(place: Path, names: Sequence[str], stats: NDArray[np.int64], digests: Sequence[bytes], known: _Known) -> None:
    """Save as a whole or not at all; files that were not asked for this time keep their entries."""
    asked = {os.fsencode(name) for name in names}
    others = [(entry, digest) for entry, digest in known.items() if entry[0] not in asked]
    all_names = [os.fsencode(name) for name in names] + [entry[0] for entry, _ in others]
    all_stats = [*stats.tolist(), *(entry[1:] for entry, _ in others)]
    content = b"".join([*digests, *(digest for _, digest in others)])
    buffer = io.BytesIO()
    np.savez(
        buffer,
        names=np.array(all_names),
        stats=np.array(all_stats, np.int64),
        digests=np.frombuffer(content, np.uint8).reshape(-1, _LENGTH),
    )
    saved = buffer.getvalue()
    temporary: str | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".", dir=place.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(saved).digest())
            file.write(saved)
        os.replace(temporary, place)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
