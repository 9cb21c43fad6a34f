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
    from .modules import Distiller as Distiller
    from .modules import FrozenTeacher as FrozenTeacher
    from .modules import network_context as network_context
    from .runs.run import Run as Run
    from .runs.run import load as load
    from .types import Batch as Batch
    from .types import Outputs as Outputs
    from .types import Progress as Progress

# Lazy, because `import tutelage` stands before every command, and `--help` shall not wait for torch.
_MODULE_OF = {
    "Batch": "types",
    "Outputs": "types",
    "Progress": "types",
    "FrozenTeacher": "modules",
    "Distiller": "modules",
    "Run": "runs.run",
    "distill": "api",
    "load": "runs.run",
    "network_context": "modules",
    "train": "api",
}
_MODULES = ("losses", "models", "objectives", "targets")

__all__ = ["__version__", *_MODULES, *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
