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
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tutelage.data import custom_transforms
from tutelage.data.balanced import balanced_classes
from tutelage.data.datasets import MemorySplit, Splits
from tutelage.data.names import of_unlabelled, parse_source
from tutelage.data.sources.digits import open_digits
from tutelage.data.sources.hub import open_hub, unlabelled_rows
from tutelage.data.sources.imagefolder import open_folder, unlabelled_images
from tutelage.data.sources.masks import open_masks
from tutelage.data.sources.parquet import open_parquet
from tutelage.data.sources.text_files import open_csv, open_jsonl, unlabelled_texts
from tutelage.data.sources.torchvision import open_vision
from tutelage.data.sources.webdataset import open_webdataset
from tutelage.data.streamed import StreamSplit
from tutelage.errors import TutelageError
from tutelage.settings.data import DataSettings, check

_OPENERS: dict[str, Callable[..., Splits]] = {
    "csv": open_csv,
    "hf": open_hub,
    "imagefolder": open_folder,
    "jsonl": open_jsonl,
    "masks": open_masks,
    "parquet": open_parquet,
    "torchvision": open_vision,
    "webdataset": open_webdataset,
}


def _open_unlabelled(settings: DataSettings) -> Any:
    """Open the source of samples without labels, if there is one: images, or texts."""
    if settings.unlabelled is None:
        return None
    kind, _, name = settings.unlabelled.source.partition(":")
    try:
        match kind:
            case "images":
                return unlabelled_images(name)
            case "hf":
                return unlabelled_rows(name, settings)
        return unlabelled_texts(kind, name, settings)
    except TutelageError as error:
        raise error.renamed(of_unlabelled) from error


def import_library(settings: DataSettings) -> None:
    """Import the library that reads the source, if installed, so that opening it does not spend that time."""
    library = {
        "digits": "sklearn.datasets",
        "hf": "datasets",
        "parquet": "pyarrow.parquet",
        "torchvision": "torchvision",
    }
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
        ValueError: if a setting is out of range, the source is unknown, or its content does not fit.
        FileNotFoundError: if there is no data set of that name.
        ImportError: if an optional library is missing.
        UserCodeError: if the transform that was passed raises an error.
    """
    if transform is not None:
        settings = replace(settings, transform=custom_transforms.name_of(transform))
    check(settings)
    kind, name = parse_source(settings.source)
    unlabelled = _open_unlabelled(settings)
    splits = open_digits(settings, unlabelled) if kind == "digits" else _OPENERS[kind](name, settings, unlabelled)
    if settings.embedding is not None:
        splits = replace(splits, task="embedding", classes=settings.embedding, class_names=())
    if settings.sampling == "balanced":
        splits = balanced_classes(splits)
    if settings.strongly.randaugment is not None:
        importlib.import_module(f"{__package__}.randaugment")  # Here, once, and not in each worker process.
    if settings.transform is None:
        return _with_strong_view(splits, settings)
    shape: dict[str, Any] = {"image_size": splits.image_size, "channels": splits.channels}
    if transform is None:
        varied = custom_transforms.find(settings.transform, interpolation=settings.interpolation, **shape)
    else:
        varied = custom_transforms.Transform(settings.transform, transform)
    custom_transforms.check_on_black(varied, **shape)
    fingerprint = None if varied.is_object else splits.fingerprint
    splits = replace(splits, train=replace(splits.train, transform=varied), fingerprint=fingerprint)
    return _with_strong_view(splits, settings)


def _with_strong_view(splits: Splits, settings: DataSettings) -> Splits:
    """Return a data set whose training samples have a second view, if the settings name one."""
    train = splits.train
    if settings.strong is None or not isinstance(train, MemorySplit | StreamSplit):
        return splits
    strong = replace(train, settings=settings.strongly)
    return replace(splits, train=replace(train, strong=strong, workers=settings.workers))
