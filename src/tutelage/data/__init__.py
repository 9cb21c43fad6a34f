"""Data: every source yields ``Batch(index, inputs, labels)``, seeded and replayable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage.lazy import forward

if TYPE_CHECKING:
    from tutelage.data.balanced import balanced_classes as balanced_classes
    from tutelage.data.datasets import Mixing as Mixing
    from tutelage.data.datasets import Split as Split
    from tutelage.data.datasets import Splits as Splits
    from tutelage.data.datasets import UnlabelledSamples as UnlabelledSamples
    from tutelage.data.loader import BatchLoader as BatchLoader
    from tutelage.data.loader import split_evenly as split_evenly
    from tutelage.data.names import available as available
    from tutelage.data.on_device import describe_place as describe_place
    from tutelage.data.on_device import loader_on as loader_on
    from tutelage.data.pairs import read_by as read_by
    from tutelage.data.registry import open_data as open_data
    from tutelage.data.sources.from_torch import from_datasets as from_datasets
    from tutelage.settings.data import DataSettings as DataSettings
    from tutelage.settings.data import RandAugment as RandAugment
    from tutelage.settings.data import StrongView as StrongView
    from tutelage.settings.data import Unlabelled as Unlabelled
    from tutelage.types import View as View

_MODULES = {
    "balanced_classes": ".balanced",
    **dict.fromkeys(("Mixing", "Split", "Splits", "UnlabelledSamples"), ".datasets"),
    **dict.fromkeys(("BatchLoader", "split_evenly"), ".loader"),
    **dict.fromkeys(("describe_place", "loader_on"), ".on_device"),
    "available": ".names",
    "read_by": ".pairs",
    "open_data": ".registry",
    "from_datasets": ".sources.from_torch",
    **dict.fromkeys(("DataSettings", "RandAugment", "StrongView", "Unlabelled"), "..settings.data"),
    "View": "..types",
}
__all__ = list(_MODULES)

if not TYPE_CHECKING:  # where a type checker saw it, a misspelt name would be one of any type
    __getattr__, __dir__ = forward(__name__, _MODULES)
