"""A package's names that are imported when they are first read."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def forward(package: str, module_of: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``; ``module_of`` has each name's module, relative to it."""

    def read(name: str) -> Any:
        if name not in module_of:
            known = sys.modules[package]  # Python names the nearest of its attributes
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=known)
        module = importlib.import_module(module_of[name], package)
        return module if module.__name__ == f"{package}.{name}" else getattr(module, name)

    return read, lambda: sorted(module_of)
