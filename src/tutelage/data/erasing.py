"""Random erasing: noise over a rectangle of a training image, by the image's own hash."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from tutelage.data import rng
from tutelage.images import MEAN, STD
from tutelage.types import View

ATTEMPTS = 10
AREA = (0.02, 1 / 3)
RATIO = (0.3, 1 / 0.3)

Rectangle = tuple[int, int, int, int]  # top, bottom, left, right; pixels


def rectangles(
    index: NDArray[np.int64], *, view: View, probability: float, height: int, width: int
) -> list[Rectangle | None]:
    """Return the rectangle erased of each sample, or None.

    The area is uniform in 2 to 33.3 % of the image's, the ratio of height to width log-uniform in 0.3 to 3.33; the
    first of ten draws that is smaller than the image on both sides is taken, its position uniform.

    Source: Zhong et al., "Random erasing data augmentation", arXiv 1708.04896, with the ranges of timm.
    """
    uniform = partial(rng.view_uniform, view)
    down, across = uniform(index, rng.ERASE_TOP), uniform(index, rng.ERASE_LEFT)
    drawn: list[Rectangle | None] = [None] * len(index)
    low, high = map(math.log, RATIO)
    for i in np.flatnonzero(uniform(index, rng.ERASE) < probability).tolist():
        for attempt in range(ATTEMPTS):
            share = AREA[0] + (AREA[1] - AREA[0]) * uniform(index[i], rng.ERASE_AREA + attempt).item()
            ratio = math.exp(low + (high - low) * uniform(index[i], rng.ERASE_RATIO + attempt).item())
            area = share * height * width
            tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < tall < height and 0 < wide < width:
                top, left = int(down[i] * (height - tall + 1)), int(across[i] * (width - wide + 1))
                drawn[i] = (top, top + tall, left, left + wide)
                break
    return drawn


def erase(images: Tensor, index: NDArray[np.int64], *, view: View, probability: float, white: float = 255.0) -> Tensor:
    """Fill a rectangle of some images with noise: each value normal, with the mean and deviation of ImageNet's pixels.

    Grey images have the mean of the three channels' figures. Values are rounded, and cut off at black and white.

    Differs from: timm's mode ``pixel``, which draws the noise on normalised inputs and does not cut it off.
    """
    height, width, channels = images.shape[1:]
    drawn = rectangles(index, view=view, probability=probability, height=height, width=width)
    if not any(drawn):
        return images
    images = images.clone()
    mean, std = (np.array(s) if channels == len(s) else np.mean(s) for s in (MEAN, STD))
    keys = rng.draw(view.seed, view.epoch, index, rng.ERASE_NOISE).tolist()
    for row, rectangle in enumerate(drawn):
        if rectangle is not None:
            top, bottom, left, right = rectangle
            shape = (bottom - top, right - left, channels)
            bits = rng.draw(keys[row], 0, np.arange(math.prod(shape)), rng.ERASE_NOISE)
            noise = mean + std * ndtri(rng.uniform(bits)).reshape(shape)
            filled = np.rint(white * noise.clip(0, 1)).astype(np.uint8)
            images[row, top:bottom, left:right] = torch.from_numpy(filled)
    return images
