"""``torchvision:``: torchvision's own data sets, downloaded if missing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage import connection, records
from tutelage.data.build import Description, Raw, UnlabelledImages, check_labels, from_images, refuse_train_as_test
from tutelage.data.datasets import Splits
from tutelage.data.names import is_url
from tutelage.errors import InvalidValueError, NotFoundError, nearest_name, one_line
from tutelage.images import Encoded, UnreadableError, reasoned
from tutelage.settings.data import DataSettings
from tutelage.types import UNLABELLED


@dataclass(frozen=True)
class VisionReader:
    """Images of a torchvision data set."""

    dataset: Any
    split: str

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, position: int) -> str:
        """Return the image's position."""
        return f"{self.split} sample {position}"

    def encoded(self, positions: Sequence[int]) -> list[Encoded]:
        """Return the images, decoded by torchvision, or its errors."""
        return [_sample(self.dataset, position)[0] for position in positions]


_LICENCES = {"FashionMNIST": "mit"}
"""Licences that authors state in their repositories: github.com/zalandoresearch/fashion-mnist. No guess is made."""


def open_vision(name: str, settings: DataSettings, unlabelled: UnlabelledImages | None = None) -> Splits:
    """Open a classification data set of torchvision's by the name of its class.

    Raises:
        ValueError: no such data set, or one without a training and a test half.
        FileNotFoundError: it is not in ``root`` and cannot be downloaded.
        StorageError: it cannot be written to ``root``.
    """
    import torchvision

    known = [n for n in torchvision.datasets.__all__ if _halves(getattr(torchvision.datasets, n)) is not None]
    if name not in known:
        expected = "a torchvision data set with a training and a test half"
        instead = f"type torchvision:{nearest_name(name, known)}, or another of {', '.join(known)}"
        raise InvalidValueError("data.source", expected, f"torchvision:{name}", instead)
    refuse_train_as_test(settings, f"torchvision:{name}")
    build: Callable[..., Any] = getattr(torchvision.datasets, name)
    halves = []
    for keywords in _halves(build) or ():
        try:
            halves.append(_opened(build, settings.root, keywords))
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in records.DISK:
                root = Path(settings.root)
                raise records.storage_error(
                    error, f"data.root '{root}'", folder=root, elsewhere="type data.root=<folder>"
                ) from error
            raise NotFoundError(
                "data.source",
                f"torchvision:{name} in data.root={settings.root} or a connection to download it",
                f"neither ({one_line(error)})",
                "download it elsewhere and type data.root=<folder>",
            ) from error
    labels = [_labels(half, name) for half in halves]
    classes = [str(c) for c in getattr(halves[0], "classes", range(int(labels[0].max(initial=0)) + 1))]
    raws = []
    for half, values, split in zip(halves, labels, ("train", "test"), strict=True):
        what = f"torchvision:{name} ({split})"
        check_labels(values[values != UNLABELLED], classes=len(classes), what=what, instead="choose another data set")
        raws.append(Raw(VisionReader(half, split), values, f"{name} {split}".encode))
    description = Description(
        class_names=classes, settings=settings, source=f"torchvision:{name}", unlabelled=unlabelled
    )
    return replace(from_images(raws[0], raws[1], description), licence=_LICENCES.get(name))


def _opened(build: Callable[..., Any], root: str, keywords: dict[str, Any]) -> Any:
    """Return a half of a data set, which is downloaded if it is not there and its server answers."""
    try:
        return build(root, download=False, **keywords)
    except (OSError, RuntimeError, ValueError):
        servers = [value for key in ("url", "_URL", "mirrors") for value in _texts(getattr(build, key, ()))]
        reasons = [connection.why_unreachable(url) for url in servers if is_url(url)]
        if reasons and all(reasons):
            raise ConnectionError(reasons[0]) from None
    with connection.no_endless_waits():
        return build(root, download=True, **keywords)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [each for each in value if isinstance(each, str)]


def _halves(build: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the arguments that select training and test, or ``None`` if there are none."""
    parameters = inspect.signature(build).parameters if inspect.isclass(build) else {}
    if "download" in parameters and "train" in parameters:
        return {"train": True}, {"train": False}
    if "download" in parameters and "split" in parameters and parameters["split"].default == "train":
        return {"split": "train"}, {"split": "test"}
    return None


def _sample(dataset: Any, position: int) -> tuple[Encoded, Any]:
    """Return an image and its class; an error and no label for what torchvision cannot read."""
    try:
        with reasoned():
            sample = dataset[position]
    except UnreadableError as error:
        return error, UNLABELLED
    return sample[0], sample[1]


def _labels(dataset: Any, name: str) -> np.ndarray:
    targets = getattr(dataset, "targets", None)
    if targets is None or len(targets) != len(dataset):
        targets = [_sample(dataset, position)[1] for position in range(len(dataset))]
    try:
        return np.asarray([int(target) for target in targets], np.int64)
    except (TypeError, ValueError) as error:
        expected = "one class for each image"
        instead = "choose a classification data set"
        raise InvalidValueError("data.source", expected, f"other targets from torchvision:{name}", instead) from error
