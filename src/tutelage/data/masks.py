"""Masks of pictures: the class of each pixel, read beside the picture and brought to the same view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tutelage.data.datasets import MemorySplit, Split
from tutelage.data.streamed import StreamSplit
from tutelage.data.transforms import augment, draw_boxes
from tutelage.errors import InvalidValueError
from tutelage.images import (
    Encoded,
    Layout,
    Reader,
    Subset,
    UnreadableError,
    centre,
    cut,
    decode_mask,
    opened,
    upright_size,
)
from tutelage.settings.data import DataSettings
from tutelage.types import UNLABELLED, Inputs, View

UNCOUNTED = 255
"""Value of a pixel that has no class and takes part in nothing."""
_CHUNK = 16
_THREADS = 8


@dataclass(frozen=True)
class Masks:
    """Masks of pictures, not decoded.

    Attributes:
        reader: masks, in the order of the pictures.
        pictures: their pictures, whose size they must have.
        classes: number of classes; 0 while it is not known.
    """

    reader: Reader
    pictures: Reader
    classes: int = 0

    def __len__(self) -> int:
        return len(self.reader)

    def subset(self, positions: NDArray[np.int64]) -> Masks:
        """Return some of them."""
        return replace(self, reader=Subset(self.reader, positions), pictures=Subset(self.pictures, positions))

    def read(self, positions: Sequence[int]) -> list[Image.Image]:
        """Return masks of the size of their pictures.

        Raises:
            InvalidValueError: one cannot be read, has another size than its picture, or a class that there is not.
        """
        pairs = zip(self.reader.encoded(positions), self.pictures.encoded(positions), strict=True)
        return [self._read(position, *pair) for position, pair in zip(positions, pairs, strict=True)]

    def _read(self, position: int, encoded: Encoded, picture: Encoded) -> Image.Image:
        name = self.reader.name(position)
        try:
            with opened(encoded) as file:
                mask = decode_mask(file)
        except UnreadableError as error:
            got, instead = f"{name} ({error})", "save it as a PNG of the pixels' classes, or remove it and its picture"
            raise InvalidValueError("data.source", "a mask with a class in each pixel", got, instead) from error
        try:
            with opened(picture) as file:
                size = upright_size(file)
        except UnreadableError:  # Whoever reads the picture tells of it.
            return mask
        if mask.size != size:
            expected = f"a mask of {size[0]} x {size[1]} pixels, as {self.pictures.name(position)} has"
            got = f"{name} of {mask.width} x {mask.height}"
            instead = "resize it by the nearest pixel, or remove both"
            raise InvalidValueError("data.source", expected, got, instead)
        if self.classes:
            values = np.asarray(mask)
            wrong = values[(values >= self.classes) & (values != UNCOUNTED)]
            if wrong.size:
                expected = f"classes 0 to {self.classes - 1} in every mask, and {UNCOUNTED} where a pixel has none"
                instead = "add the name of each class to classes.txt, or mend the mask"
                raise InvalidValueError("data.source", expected, f"{int(wrong[0])} in {name}", instead)
        return mask

    def counted_classes(self) -> int:
        """Return the number of classes that the largest value tells, reading all masks."""

        def largest(mask: Image.Image) -> int:
            values = np.asarray(mask)
            return int(np.where(values == UNCOUNTED, 0, values).max(initial=0))

        return 1 + max(map(largest, self.all(np.arange(len(self)))), default=0)

    def decoded(self, positions: NDArray[np.int64], layout: Layout) -> NDArray[np.uint8]:
        """Return the evaluation views of masks, ``(masks, height, width)`` uint8."""
        values = np.empty((len(positions), layout.height, layout.width), np.uint8)
        for row, mask in enumerate(self.all(positions)):
            values[row] = centre(mask, layout, interpolation="nearest")[..., 0]
        return values

    def all(self, positions: NDArray[np.int64]) -> Iterator[Image.Image]:
        """Read masks in threads, a few ahead."""
        chunks = [positions[first : first + _CHUNK].tolist() for first in range(0, len(positions), _CHUNK)]
        with ThreadPoolExecutor(_THREADS) as pool:
            for first in range(0, len(chunks), _THREADS):
                yield from chain.from_iterable(pool.map(self.read, chunks[first : first + _THREADS]))


def targets_of(masks: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels of masks' views, and which pixels count, ``(batch, height, width)`` int64 and bool.

    Args:
        masks: ``(batch, height, width)`` uint8, `UNCOUNTED` where a pixel has no class.
        known: whether each mask is known, ``(batch,)`` bool; the pixels of others count, and have no label.
    """
    counted = masks != UNCOUNTED
    return masks.long().masked_fill(~(counted & known[:, None, None]), UNLABELLED), counted


def _varied(masks: Tensor, index: Tensor, view: View, settings: DataSettings) -> Tensor:
    """Return masks cropped and flipped as `transforms.vary` does their pictures, by the same draw."""
    padding, flip = settings.crop_padding, settings.flip
    return augment(masks[..., None], index.numpy(), view=view, padding=padding, flip=flip, border=UNCOUNTED)[..., 0]


@dataclass(frozen=True, kw_only=True)
class _OfMasks(Split):
    """Pictures of which each pixel has a label.

    Attributes:
        known: whether each sample's mask is known, ``(len,)`` bool.
    """

    known: Tensor

    @property
    def per_position(self) -> bool:
        """True: each pixel has a label."""
        return True

    @property
    def labelled(self) -> int:
        """Number of samples whose mask is known."""
        return int(self.known.sum())


@dataclass(frozen=True, kw_only=True)
class MaskSplit(_OfMasks, MemorySplit):
    """Pictures and masks in memory.

    Attributes:
        masks: masks beside the pixels, ``(all, height, width)`` uint8, CPU; 0 where one is not known.
        all_counted: whether every pixel of every view counts.
    """

    masks: Tensor
    all_counted: bool = False

    def pixels_of_classes(self) -> Tensor:
        """Return the number of pixels of each class in the known masks, ``(256,)``."""
        return torch.bincount(self.masks[self.positions[self.known]].flatten(), minlength=256)

    def targets(self, index: Tensor, inputs: Inputs, view: View | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the labels of samples, and which of their pixels count, as in `types.Batch`."""
        known = self.known[index]
        masks = self.masks[self.positions[index]]
        if view is not None and self.settings is not None:
            masks = _varied(masks, index, view, self.settings)
        labels, counted = targets_of(masks, known)
        return labels, None if self.all_counted else counted


@dataclass(frozen=True, kw_only=True)
class MaskStreamSplit(_OfMasks, StreamSplit):
    """Pictures and masks that are decoded on demand: pictures as in `StreamSplit`, masks in this process, in threads.

    Attributes:
        masks: masks of the reader's pictures.
    """

    masks: Masks

    def targets(self, index: Tensor, inputs: Inputs, view: View | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the labels of samples, and which of their pixels count, as in `types.Batch`."""
        view, known = view if self.augmented else None, self.known[index]
        rows = known.numpy().nonzero()[0]
        boxed = view is not None and self.settings.random_resized_crop
        draws = draw_boxes(index.numpy()[rows], view=view) if view is not None and boxed else None
        values = np.zeros((len(index), self.layout.height, self.layout.width), np.uint8)
        for k, mask in enumerate(self.masks.all(self.positions[index.numpy()[rows]])):
            if draws is None:
                pixels = centre(mask, self.layout, interpolation="nearest")
            else:
                pixels = cut(mask, draws[k].box(*mask.size), self.layout, interpolation="nearest")
            values[rows[k]] = pixels[..., 0]
        masks = torch.from_numpy(values)
        if view is not None:
            masks = _varied(masks, index, view, self.settings)
        return targets_of(masks, known)
