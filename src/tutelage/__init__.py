"""Knowledge distillation for PyTorch, built on transformed teacher matching (arXiv:2402.11148)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import losses as losses
    from . import models as models
    from . import objectives as objectives
    from . import targets as targets
    from .api import distill as distill
    from .api import train as train
    from .contracts import Batch as Batch
    from .contracts import Outputs as Outputs
    from .contracts import Progress as Progress
    from .lesson import FrozenTeacher as FrozenTeacher
    from .lesson import Lesson as Lesson
    from .lesson import survey as survey
    from .runs.execute import Run as Run
    from .runs.execute import load as load

# Lazy, because `import tutelage` stands before every command, and `--help` shall not wait for torch.
_PLACES = {
    "Batch": "types",
    "Outputs": "types",
    "Progress": "types",
    "FrozenTeacher": "modules",
    "Lesson": "modules",
    "Run": "runs.execute",
    "distill": "api",
    "load": "runs.execute",
    "survey": "modules",
    "train": "api",
}
_MODULES = ("losses", "models", "objectives", "targets")

__all__ = ["__version__", *_MODULES, *_PLACES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _PLACES:
        return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
