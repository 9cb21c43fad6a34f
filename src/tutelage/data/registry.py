"""Data sets by name.

>>> from tutelage.data.loader import BatchLoader
>>> splits = open_data(DataSettings(source="digits"))
>>> batch = next(BatchLoader(splits.train, batch_size=4, train=True).epoch(0))
>>> batch.inputs.shape, splits.sizes()
(torch.Size([4, 1, 8, 8]), {'train': 1437, 'test': 360, 'labelled': 1437, 'corrupt': 0})
"""

from __future__ import annotations

import contextlib
import importlib

from tutelage.data.datasets import Splits
from tutelage.data.names import parse_source
from tutelage.data.sources.digits import open_digits
from tutelage.data.sources.hub import open_hub
from tutelage.data.sources.imagefolder import open_folder
from tutelage.data.sources.torchvision import open_vision
from tutelage.settings.data import DataSettings, check

_OPENERS = {"hf": open_hub, "imagefolder": open_folder, "torchvision": open_vision}


def import_library(settings: DataSettings) -> None:
    """Import the library that reads the source, if installed, so that opening it does not spend that time."""
    library = {"digits": "sklearn.datasets", "hf": "datasets", "torchvision": "torchvision"}
    with contextlib.suppress(KeyError, ImportError):
        importlib.import_module(library[settings.source.partition(":")[0]])


def open_data(settings: DataSettings) -> Splits:
    """Check the settings and open their data set.

    Raises:
        ValueError: if a setting is out of range, the source is unknown, or its content does not fit.
        FileNotFoundError: if there is no data set of that name.
        ImportError: if an optional library is missing.
    """
    check(settings)
    kind, name = parse_source(settings.source)
    return open_digits(settings) if kind == "digits" else _OPENERS[kind](name, settings)
