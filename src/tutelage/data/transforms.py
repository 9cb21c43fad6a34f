"""Training views: batches of 8-bit images in, batches of 8-bit images out, random only through `rng`.

Here and in `erasing` and `randaugment`, ``images`` are ``(batch, height, width, channels)`` uint8, ``index`` is
``(batch,)`` positions in the data set, ``view`` the data seed and epoch, and ``white`` the value of white; images are
returned in the shape and dtype in which they came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tutelage import rng
from tutelage.data import custom_transforms
from tutelage.data.erasing import erase
from tutelage.images import Box
from tutelage.settings.data import DataSettings
from tutelage.types import View

ATTEMPTS = 10
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
_ALIGNMENT = 64
"""Alignment of PyTorch's tensors, bytes, on which the bits of what is computed from them depend."""
_LOG_RATIO = (math.log(RATIO[0]), math.log(RATIO[1]))


def crops(index: NDArray[np.int64], *, view: View, padding: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each sample's crop offsets from the top and the left, in ``[0, 2 * padding]``."""
    span = 2 * padding + 1
    return rng.view_integers(view, index, rng.TOP, span), rng.view_integers(view, index, rng.LEFT, span)


def flips(index: NDArray[np.int64], *, view: View) -> NDArray[np.bool_]:
    """Return whether each sample is flipped."""
    return rng.view_integers(view, index, rng.FLIP, 2).astype(bool)


def augment(
    images: Tensor, index: NDArray[np.int64], *, view: View, padding: int, flip: bool, border: int = 0
) -> Tensor:
    """Crop out of a border, ``padding`` pixels on each side, then flip left to right with probability 1/2."""
    flipped = flips(index, view=view) if flip else np.zeros(len(index), bool)
    if not padding:
        if not flipped.any():
            return images
        # Image by image: six times faster at 224 pixels than the table below, and as fast at 32.
        varied = torch.empty_like(images)
        for row, image in enumerate(images):
            varied[row] = image.flip(1) if flipped[row] else image
        return varied
    batch, height, width, _ = images.shape
    rows = torch.arange(height).expand(batch, height)
    columns = torch.arange(width).expand(batch, width)
    columns = torch.where(torch.from_numpy(flipped)[:, None], width - 1 - columns, columns)
    top, left = crops(index, view=view, padding=padding)
    rows = rows + torch.from_numpy(top)[:, None]
    columns = columns + torch.from_numpy(left)[:, None]
    images = F.pad(images, (0, 0, padding, padding, padding, padding), value=border)
    # Pixels as rows of one table: three to four times faster than indexing with three tensors.
    _, tall, wide, channels = images.shape
    lines = torch.arange(batch)[:, None] * tall + rows
    entries = lines[:, :, None] * wide + columns[:, None, :]
    return images.reshape(-1, channels).index_select(0, entries.reshape(-1)).reshape(batch, height, width, channels)


@dataclass(frozen=True, slots=True)
class BoxDraw:
    """What is drawn for the random box of a sample, before the size of its image is known; each in [0, 1)."""

    areas: list[float]  # for each attempt
    ratios: list[float]  # for each attempt
    across: float
    down: float

    def box(self, width: int, height: int) -> Box:
        """Return the box of an image of this size."""
        pixels = width * height
        for area, ratio in zip(self.areas, self.ratios, strict=True):
            # NumPy's own exponential differs in the last bit from one processor to the next.
            shape = math.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * ratio)
            size = pixels * (AREA[0] + (AREA[1] - AREA[0]) * area)
            wide, tall = round(math.sqrt(size * shape)), round(math.sqrt(size / shape))
            if 0 < wide <= width and 0 < tall <= height:
                left, top = int(self.across * (width - wide + 1)), int(self.down * (height - tall + 1))
                return left, top, left + wide, top + tall
        wide = max(1, min(width, round(height * RATIO[1])))
        tall = max(1, min(height, round(width / RATIO[0])))
        left, top = (width - wide) // 2, (height - tall) // 2
        return left, top, left + wide, top + tall


def draw_boxes(index: NDArray[np.int64], *, view: View) -> list[BoxDraw]:
    """Draw a random box per sample.

    The area is uniform in 8 to 100 %, the aspect ratio log-uniform in 3/4 to 4/3; the first of ten draws that lies
    inside the image is taken, else the largest centred box within those ratios.

    Source: "random-size crop" of Szegedy et al., "Going deeper with convolutions", 2015, with torchvision's details.
    """
    uniform = partial(rng.view_uniform, view, index)
    areas, ratios = (
        np.stack([uniform(stream + k) for k in range(ATTEMPTS)], axis=1).tolist()
        for stream in (rng.BOX_AREA, rng.BOX_RATIO)
    )
    places = (uniform(stream).tolist() for stream in (rng.BOX_LEFT, rng.BOX_TOP))
    return [BoxDraw(*drawn) for drawn in zip(areas, ratios, *places, strict=True)]


def resize(pixels: NDArray[np.uint8], size: tuple[int, int], *, interpolation: str) -> NDArray[np.uint8]:
    """Return ``(height, width, channels)`` uint8 resized (antialiased) to ``size``, its height and width.

    PyTorch's form of Pillow's algorithm, in integers, so that its bits do not depend on the processor.
    """
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    return F.interpolate(image, size, mode=interpolation, antialias=True)[0].permute(1, 2, 0).numpy()


def vary(
    images: Tensor,
    index: NDArray[np.int64],
    *,
    view: View,
    settings: DataSettings,
    transform: custom_transforms.Transform | None = None,
    white: float = 255.0,
) -> Tensor:
    """Augment images of the final shape, each by its own hash: crop, flip, RandAugment or another's, random erasing."""
    images = augment(images, index, view=view, padding=settings.crop_padding, flip=settings.flip)
    if settings.randaugment is not None:
        from tutelage.data.randaugment import randaugment  # of torchvision, which takes its time

        images = randaugment(
            images, index, view=view, settings=settings.randaugment, interpolation=settings.interpolation, white=white
        )
    if transform is not None:
        images = custom_transforms.apply(images, index, view=view, transform=transform, white=white)
    if settings.random_erasing:
        images = erase(images, index, view=view, probability=settings.random_erasing, white=white)
    return images


def to_float(images: Tensor, *, divisor: float) -> Tensor:
    """Return ``(batch, channels, height, width)`` float32 in [0, 1], strided as channels-last."""
    # NumPy takes large memory in large pages; in PyTorch's own, page faults would take most of the time.
    memory = np.empty(4 * images.numel() + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    values = torch.from_numpy(memory[first : first + 4 * images.numel()]).view(torch.float32).view(images.shape)
    return values.copy_(images).div_(divisor).permute(0, 3, 1, 2)
