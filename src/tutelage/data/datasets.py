"""What other packages see of a data set: its splits. Also the split whose pixels are held in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.transforms import to_float, vary
from tutelage.settings.data import DataSettings
from tutelage.types import UNLABELLED, View


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How training samples are mixed."""

    mixup: float  # alpha of Mixup, at least 0; 0 is off
    cutmix: float  # alpha of CutMix, at least 0; 0 is off
    probability: float  # of a sample to be mixed at all
    switch: float  # probability of CutMix where both are on
    classes: int  # width of the labels
    image_size: tuple[int, int]  # height and width, pixels


@dataclass(frozen=True, kw_only=True)
class Split(ABC):
    """Samples with fixed indices ``0 .. len - 1``.

    Attributes:
        labels: ``(len,)`` int64 on the CPU, -100 where unlabelled.
        mixing: how training batches mix samples, whose labels are soft then, or None; `fetch` and `stream` never mix.
        corrupt: names of images met that could not be read, each once.
    """

    labels: Tensor
    mixing: Mixing | None = None
    corrupt: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Tensor:
        """Return float32 ``(batch, channels, height, width)`` in [0, 1]; without a view, not augmented."""

    def stream(
        self, requests: Iterable[NDArray[np.int64]], *, view: View | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Fetch batches in order; each comes with the indices that could be read."""
        for index in requests:
            yield index, self.fetch(index, view=view)


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
        """Return counts: samples per split, training samples with a label, and unreadable images met so far."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        present = {name: split for name, split in splits.items() if split is not None}
        return {
            **{name: len(split) for name, split in present.items()},
            "labelled": int((self.train.labels != UNLABELLED).sum()),
            "corrupt": len({name for split in present.values() for name in split.corrupt}),
        }
