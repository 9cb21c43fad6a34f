"""Decoded pixels kept between runs; a cache that is damaged or cannot be written costs time, nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tutelage.images import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VERSION = 1


def folder() -> Path:
    """Return where caches lie: ``TUTELAGE_CACHE``, else ``XDG_CACHE_HOME/tutelage``, else ``~/.cache/tutelage``."""
    chosen = os.environ.get("TUTELAGE_CACHE")
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tutelage"


def key_of(parts: object) -> str:
    """Return 32 hexadecimal digits of what JSON can say about a source."""
    return hashlib.sha256(json.dumps([_VERSION, parts], sort_keys=True).encode()).hexdigest()[:32]


def digest(array: NDArray[np.generic]) -> str:
    """Return the SHA-256 of an array's shape, dtype and values."""
    content = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def load(key: str) -> tuple[Layout, dict[str, NDArray[np.uint8]]] | None:
    """Return a layout and arrays as they were saved, or none: absent, damaged, or not readable."""
    place = folder() / "pixels" / key
    try:
        meta = json.loads((place / "meta.json").read_text())
        layout = Layout(*meta["layout"])
        arrays = {name: np.load(place / f"{name}.npy", allow_pickle=False) for name in meta["digests"]}
        whole = all(digest(array) == meta["digests"][name] for name, array in arrays.items())
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return (layout, arrays) if whole else None


def save(key: str, layout: Layout, arrays: dict[str, NDArray[np.uint8]]) -> bool:
    """Save arrays as a whole or not at all; return whether that went well."""
    parent = folder() / "pixels"
    temporary: Path | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=parent))
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        meta = {"layout": list(layout), "digests": {name: digest(array) for name, array in arrays.items()}}
        (temporary / "meta.json").write_text(json.dumps(meta))
        if (parent / key).exists():
            shutil.rmtree(parent / key)
        temporary.rename(parent / key)
    except OSError:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        return False
    return True
