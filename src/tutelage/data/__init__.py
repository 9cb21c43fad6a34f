"""Data: every source yields ``Batch(index, inputs, labels)``, seeded and replayable."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.data.datasets import Mixing as Mixing
    from tutelage.data.datasets import Split as Split
    from tutelage.data.datasets import Splits as Splits
    from tutelage.data.loader import BatchLoader as BatchLoader
    from tutelage.data.loader import split_evenly as split_evenly
    from tutelage.data.names import available as available
    from tutelage.data.on_device import describe_place as describe_place
    from tutelage.data.on_device import loader_on as loader_on
    from tutelage.data.registry import open_data as open_data
    from tutelage.data.sources.from_torch import from_datasets as from_datasets
    from tutelage.settings.data import DataSettings as DataSettings
    from tutelage.settings.data import RandAugment as RandAugment
    from tutelage.types import View as View

_MODULES = {
    **dict.fromkeys(("Mixing", "Split", "Splits"), "data.datasets"),
    **dict.fromkeys(("BatchLoader", "split_evenly"), "data.loader"),
    **dict.fromkeys(("describe_place", "loader_on"), "data.on_device"),
    "available": "data.names",
    "open_data": "data.registry",
    "from_datasets": "data.sources.from_torch",
    **dict.fromkeys(("DataSettings", "RandAugment"), "settings.data"),
    "View": "types",
}
__all__ = list(_MODULES)

if not TYPE_CHECKING:  # where a type checker saw it, a misspelt name would be one of any type

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        return getattr(importlib.import_module(f"tutelage.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
