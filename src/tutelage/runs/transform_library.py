"""The library of a recipe's ``data.transform``, and its version, which the views depend on. No torch."""

from __future__ import annotations

import contextlib
import importlib.metadata

from tutelage.settings.data import DataSettings


def transform_library(settings: DataSettings) -> tuple[str, str] | None:
    """Return the library of the views' transform, if one is named and installed, and its version."""
    library = (settings.transform or "").partition(":")[0]
    if library in ("torchvision", "timm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return library, release(importlib.metadata.version(library))
    return None


def release(version: str) -> str:
    """Return a version without what names its build, such as ``+cu128``: images are transformed on the CPU."""
    return version.partition("+")[0]
