"""What is kept between runs, such as the decoded pixels of data sets; a damaged or unwritable cache costs only time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage import plain_files
from tutelage.images import Layout

_VERSION = 1
_LENGTH = 32  # bytes of a SHA-256


def folder() -> Path:
    """Return the folder of caches: ``TUTELAGE_CACHE``, else ``XDG_CACHE_HOME/tutelage``, else ``~/.cache/tutelage``."""
    if chosen := os.environ.get("TUTELAGE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tutelage"


def key_of(description: object) -> str:
    """Return 32 hexadecimal digits that identify a source by its JSON description."""
    return hashlib.sha256(json.dumps([_VERSION, description], sort_keys=True).encode()).hexdigest()[:32]


def digest(array: NDArray[np.generic]) -> str:
    """Return the SHA-256 of an array's shape, dtype and values."""
    content = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def load_layout(key: str) -> Layout | None:
    """Return a saved layout without its arrays, or ``None`` if absent, damaged or not readable."""
    try:
        meta = _meta(key)
        return Layout(*meta["layout"]) if meta["check"] == key_of([meta["layout"], meta["digests"]]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load(key: str) -> tuple[Layout, dict[str, NDArray[np.uint8]]] | None:
    """Return a saved layout and arrays, or ``None`` if absent, damaged or not readable."""
    path = _path(key)
    try:
        meta = _meta(key)
        layout = Layout(*meta["layout"])
        arrays = {name: np.load(path / f"{name}.npy", allow_pickle=False) for name in meta["digests"]}
        intact = all(digest(array) == meta["digests"][name] for name, array in arrays.items())
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return (layout, arrays) if arrays and intact else None


def _path(key: str) -> Path:
    return folder() / "pixels" / key


def _meta(key: str) -> Any:
    return plain_files.parse_json(plain_files.read(_path(key) / "meta.json"))


def source_of(key: str) -> str | None:
    """Return the name of the source that saved pixels are of; ``None`` if an earlier version saved them."""
    try:
        source = _meta(key)["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return source if isinstance(source, str) else None


def notes_of(key: str) -> list[str]:
    """Return what was to be said of the pictures when a layout was saved; nothing if an earlier version saved it."""
    try:
        return [str(note) for note in _meta(key)["notes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def save(
    key: str, layout: Layout, arrays: dict[str, NDArray[np.uint8]], *, source: str = "", notes: Sequence[str] = ()
) -> bool:
    """Save a layout, and arrays if there are any, of a source, atomically; return whether that succeeded."""
    parent = _path(key).parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{key}.", dir=parent) as temporary:
            new = Path(temporary) / key
            new.mkdir(mode=0o700)
            for name, array in arrays.items():
                np.save(new / f"{name}.npy", array, allow_pickle=False)
            digests = {name: digest(array) for name, array in arrays.items()}
            check = key_of([list(layout), digests])
            meta = {"layout": list(layout), "digests": digests, "check": check, "source": source, "notes": [*notes]}
            (new / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
            if (parent / key).exists():
                shutil.rmtree(parent / key)
            new.rename(parent / key)
    except OSError:
        return False
    return True


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return what `save_arrays` saved; ``None`` if it is absent or damaged."""
    try:
        saved = path.read_bytes()
    except OSError:
        return None
    # Checked as a whole first: NumPy raises all kinds of errors on damaged bytes.
    content = memoryview(saved)[_LENGTH:]
    if hashlib.sha256(content).digest() != saved[:_LENGTH]:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Save arrays atomically, for this user alone.

    Raises:
        OSError: the system refuses.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as temporary:
        new = Path(temporary) / path.name
        new.touch(mode=0o600)
        new.write_bytes(hashlib.sha256(content).digest() + content)
        new.replace(path)
