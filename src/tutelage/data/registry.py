"""Data sets by name.

>>> from tutelage.data.loader import BatchLoader
>>> splits = open_data(DataSettings(source="digits"))
>>> batch = next(BatchLoader(splits.train, batch_size=4, train=True).epoch(0))
>>> batch.inputs.shape, splits.sizes()
(torch.Size([4, 1, 8, 8]), {'train': 1437, 'test': 360, 'labelled': 1437, 'corrupt': 0})
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
from dataclasses import replace
from typing import Any

from tutelage.data import custom_transforms
from tutelage.data.datasets import Splits
from tutelage.data.sources.digits import open_digits
from tutelage.data.sources.hub import open_hub
from tutelage.data.sources.imagefolder import open_folder
from tutelage.data.sources.torchvision import open_vision
from tutelage.settings.data import DataSettings, check

_SOURCES = {
    "digits": "1797 handwritten digits of 8x8 pixels, inside scikit-learn: no download",
    "hf:<hub id or folder>": "a data set of the Hugging Face Hub, or a local folder of Parquet files or images",
    "imagefolder:<path>": "a folder of images for each class, below train and test or alone",
    "torchvision:<name>": "a classification data set of torchvision's, downloaded into data.root",
}
_OPENERS = {"hf": open_hub, "imagefolder": open_folder, "torchvision": open_vision}


def available() -> list[tuple[str, str]]:
    """Return each kind of source: its pattern, and a description."""
    return list(_SOURCES.items())


def import_library(settings: DataSettings) -> None:
    """Import what reads the source, if it is there: else the first to open such a source spends that time."""
    library = {"digits": "sklearn.datasets", "hf": "datasets", "torchvision": "torchvision"}
    with contextlib.suppress(KeyError, ImportError):
        importlib.import_module(library[settings.source.partition(":")[0]])


def open_data(settings: DataSettings, *, transform: custom_transforms.Function | None = None) -> Splits:
    """Check the settings and open their data set.

    Args:
        settings: of the data.
        transform: of each training image, in place of the settings' ``transform``: a Pillow image of 8 bits in, one of
            the same size and mode out, or its pixels as a uint8 tensor ``(channels, height, width)``. It may draw from
            the global generators of Python, NumPy and torch, which are seeded for each image, and from no other.

    Returns:
        Splits; without a fingerprint where a transform was passed, as what it does is not known.

    Raises:
        ValueError: a setting is out of range, the source is unknown, or its content does not fit.
        FileNotFoundError: there is no data set of that name.
        ImportError: an optional library is missing.
        UserCodeError: the transform that was passed raises an error of its own.
    """
    if transform is not None:
        settings = replace(settings, transform=custom_transforms.name_of(transform))
    check(settings)
    splits = _open(settings)
    if settings.randaugment is not None:
        importlib.import_module("tutelage.data.randaugment")  # Here, once, and not in each worker process.
    if settings.transform is None:
        return splits
    shape: dict[str, Any] = {"image_size": splits.image_size, "channels": splits.channels}
    if transform is None:
        varied = custom_transforms.find(settings.transform, interpolation=settings.interpolation, **shape)
    else:
        varied = custom_transforms.Transform(settings.transform, transform)
    custom_transforms.check_on_black(varied, **shape)
    fingerprint = None if varied.is_object else splits.fingerprint
    return replace(splits, train=replace(splits.train, transform=varied), fingerprint=fingerprint)


def _open(settings: DataSettings) -> Splits:
    if settings.source == "digits":
        return open_digits(settings)
    kind, _, name = settings.source.partition(":")
    if kind in _OPENERS and name:
        return _OPENERS[kind](name, settings)
    kinds = {pattern.partition(":")[0]: pattern for pattern in _SOURCES}
    nearest = kinds[difflib.get_close_matches(kind, kinds, n=1, cutoff=0.0)[0]]
    raise ValueError(
        f"data.source: expected one of {', '.join(_SOURCES)}, got {settings.source!r}; type data.source={nearest}"
    )
