"""A data set's splits, as other packages see them, and the split whose pixels are held in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tutelage.data.transforms import to_float, vary
from tutelage.settings.data import DataSettings
from tutelage.types import UNLABELLED, View


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How training samples are mixed.

    Attributes:
        mixup: alpha of Mixup, at least 0; 0 is off.
        cutmix: alpha of CutMix, at least 0; 0 is off.
        probability: that a sample is mixed.
        switch: probability of CutMix where both are on.
        classes: width of the labels.
        image_size: height and width, pixels.
    """

    mixup: float
    cutmix: float
    probability: float
    switch: float
    classes: int
    image_size: tuple[int, int]


class _Requests(Dataset[Any]):
    """A function of a request, as the data set that `DataLoader` wants: a request is what its sampler yields."""

    def __init__(self, function: Callable[[NDArray[np.int64]], Any]) -> None:
        self.function = function

    def __getitem__(self, request: NDArray[np.int64]) -> Any:
        return self.function(request)


def _unchanged(result: Any) -> Any:
    return result


def in_workers(
    function: Callable[[NDArray[np.int64]], Any], requests: Iterable[NDArray[np.int64]], *, workers: int
) -> Iterator[Any]:
    """Map a function over requests, in order, in this process (no workers) or in others."""
    if workers == 0:
        yield from map(function, requests)
        return
    yield from DataLoader(
        _Requests(function),
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        collate_fn=_unchanged,
        # Its own: the default one would be advanced by each loader, and with it dropout after a resume.
        generator=torch.Generator(),
    )


@dataclass(frozen=True, kw_only=True)
class Split(ABC):
    """Samples with fixed indices ``0 .. len - 1``.

    Attributes:
        labels: ``(len,)`` int64 on the CPU, -100 where unlabelled.
        mixing: how training batches mix samples, whose labels are soft then, or None; `fetch` and `stream` never mix.
        corrupt: names of the images so far that could not be read, each once.
        workers: processes that fetch what is streamed, at least 0.
    """

    labels: Tensor
    mixing: Mixing | None = None
    corrupt: list[str] = field(default_factory=list)
    workers: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Tensor:
        """Return float32 ``(batch, channels, height, width)`` in [0, 1]; without a view, not augmented."""

    def stream(
        self, requests: Iterable[NDArray[np.int64]], *, view: View | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Fetch batches in order; each comes with the indices that could be read."""
        return in_workers(partial(self._indexed, view=view), requests, workers=self.workers)

    def _indexed(self, index: NDArray[np.int64], *, view: View | None) -> tuple[NDArray[np.int64], Tensor]:
        return index, self.fetch(index, view=view)


@dataclass(frozen=True, kw_only=True)
class MemorySplit(Split):
    """Samples of an 8-bit tensor that several splits may share; batches are augmented as a whole."""

    pixels: Tensor  # ``(all, height, width, channels)`` uint8, CPU
    positions: Tensor  # ``(len,)`` int64, this split's rows of ``pixels``
    settings: DataSettings | None = None  # how views are augmented, or None
    divisor: float = 255.0  # the value of white

    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Tensor:
        """Return float32 ``(batch, channels, height, width)`` in [0, 1], strided as channels-last."""
        images = self.pixels[self.positions[torch.from_numpy(index)]]
        if view is not None and self.settings is not None:
            images = vary(images, index, view=view, settings=self.settings, white=self.divisor)
        return to_float(images, divisor=self.divisor)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set, divided.

    Attributes:
        train: the training samples.
        validation: held out of training, or None.
        test: held out by the source.
        classes: number of classes.
        class_names: one per class.
        channels: of an image.
        image_size: height and width, pixels.
        source: as typed, a local path reduced to its last component.
        fingerprint: 16 hexadecimal digits that change with the samples, their order or their division; None where
            the content is not known.
        notes: what was decided on the user's behalf, one sentence each.
        margin: the evaluation view is the centre of a copy this much larger.
        divisor: the value of white in the source's own images.
        interpolation: of resizes, ``bilinear`` or ``bicubic``.
    """

    train: Split
    validation: Split | None
    test: Split
    classes: int
    class_names: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    source: str
    fingerprint: str | None
    notes: tuple[str, ...] = ()
    margin: float = 1.0
    divisor: float = 255.0
    interpolation: str = "bilinear"

    def sizes(self) -> dict[str, int]:
        """Return counts: samples per split, training samples with a label, and unreadable images so far."""
        splits = [("train", self.train), ("validation", self.validation), ("test", self.test)]
        present = {name: split for name, split in splits if split is not None}
        sizes = {name: len(split) for name, split in present.items()}
        sizes["labelled"] = int((self.train.labels != UNLABELLED).sum())
        return sizes | {"corrupt": len({name for split in present.values() for name in split.corrupt})}
