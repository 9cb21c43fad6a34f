"""Training views: batches of 8-bit images in, batches of 8-bit images out, random only through `rng`.

Here and in `erasing` and `randaugment`, ``images`` are ``(batch, height, width, channels)`` uint8, ``index`` is
``(batch,)`` positions in the data set, ``view`` the data seed and epoch, and ``white`` the value of white; images are
returned in the shape and dtype in which they came.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tutelage import rng
from tutelage.data import custom_transforms
from tutelage.data.erasing import erase
from tutelage.settings.data import DataSettings
from tutelage.types import View

ATTEMPTS = 10
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)


def crops(index: NDArray[np.int64], *, view: View, padding: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each sample's crop offsets from the top and the left, in ``[0, 2 * padding]``."""
    span = 2 * padding + 1
    return rng.view_integers(view, index, rng.TOP, span), rng.view_integers(view, index, rng.LEFT, span)


def flips(index: NDArray[np.int64], *, view: View) -> NDArray[np.bool_]:
    """Return whether each sample is flipped."""
    return rng.view_integers(view, index, rng.FLIP, 2).astype(bool)


def augment(images: Tensor, index: NDArray[np.int64], *, view: View, padding: int, flip: bool) -> Tensor:
    """Crop out of a border of zeros, ``padding`` pixels on each side, then flip left to right with probability 1/2."""
    if not padding and not flip:
        return images
    batch, height, width, _ = images.shape
    rows = torch.arange(height).expand(batch, height)
    columns = torch.arange(width).expand(batch, width)
    if flip:
        columns = torch.where(torch.from_numpy(flips(index, view=view))[:, None], width - 1 - columns, columns)
    if padding:
        top, left = crops(index, view=view, padding=padding)
        rows = rows + torch.from_numpy(top)[:, None]
        columns = columns + torch.from_numpy(left)[:, None]
        images = F.pad(images, (0, 0, padding, padding, padding, padding))
    # Pixels as rows of one table: three to four times faster than indexing with three tensors.
    _, tall, wide, channels = images.shape
    lines = torch.arange(batch)[:, None] * tall + rows
    entries = lines[:, :, None] * wide + columns[:, None, :]
    return images.reshape(-1, channels).index_select(0, entries.reshape(-1)).reshape(batch, height, width, channels)


def boxes(index: NDArray[np.int64], sizes: NDArray[np.int64], *, view: View) -> list[tuple[int, int, int, int]]:
    """Return a random box per image of width and height ``sizes``, ``(batch, 2)``: left, top, right, bottom, pixels.

    The area is uniform in 8 to 100 %, the aspect ratio log-uniform in 3/4 to 4/3; the first of ten draws that lies
    inside the image is taken, else the largest centred box within those ratios.

    Source: "random-size crop" of Szegedy et al., "Going deeper with convolutions", 2015, with torchvision's details.
    """
    uniform = partial(rng.view_uniform, view, index)
    area = AREA[0] + (AREA[1] - AREA[0]) * np.stack([uniform(rng.BOX_AREA + k) for k in range(ATTEMPTS)])
    low, high = np.log(RATIO)
    ratio = np.exp(low + (high - low) * np.stack([uniform(rng.BOX_RATIO + k) for k in range(ATTEMPTS)]))
    pixels = area * sizes.prod(axis=1)
    widths = np.rint(np.sqrt(pixels * ratio)).astype(np.int64)
    heights = np.rint(np.sqrt(pixels / ratio)).astype(np.int64)
    fits = (widths > 0) & (heights > 0) & (widths <= sizes[:, 0]) & (heights <= sizes[:, 1])
    across, down = uniform(rng.BOX_LEFT), uniform(rng.BOX_TOP)
    drawn = []
    for i, (full_width, full_height) in enumerate(sizes.tolist()):
        inside = np.flatnonzero(fits[:, i])
        if inside.size:
            width, height = int(widths[inside[0], i]), int(heights[inside[0], i])
            left, top = int(across[i] * (full_width - width + 1)), int(down[i] * (full_height - height + 1))
        else:
            width = max(1, min(full_width, round(full_height * RATIO[1])))
            height = max(1, min(full_height, round(full_width / RATIO[0])))
            left, top = (full_width - width) // 2, (full_height - height) // 2
        drawn.append((left, top, left + width, top + height))
    return drawn


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
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(divisor)
