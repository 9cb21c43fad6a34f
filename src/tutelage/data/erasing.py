"""Random erasing: noise over a rectangle of a training image, from the image's own hash."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from tutelage import rng
from tutelage.images import MEAN, STD
from tutelage.types import View

ATTEMPTS = 10
AREA = (0.02, 1 / 3)
RATIO = (0.3, 1 / 0.3)

CHUNK = 64
"""Number of images whose noise is drawn at once: few enough that the values stay in the processor's cache."""


def rectangles(
    index: NDArray[np.int64], *, view: View, probability: float, height: int, width: int
) -> NDArray[np.int64]:
    """Return each sample's erased rectangle, ``(batch, 4)``: top, bottom, left, right; zeros if there is none.

    The area is uniform in 2 to 33.3 % of the image's, the ratio of height to width log-uniform in 0.3 to 3.33; the
    first of ten draws that is smaller than the image on both sides is taken, at a uniform position.

    Source: Zhong et al., "Random erasing data augmentation", arXiv 1708.04896, with the ranges of timm.
    """
    uniform = partial(rng.view_uniform, view)
    drawn = np.zeros((len(index), 4), np.int64)
    low, high = map(math.log, RATIO)
    left = np.flatnonzero(uniform(index, rng.ERASE) < probability)  # without a rectangle so far
    for attempt in range(ATTEMPTS):
        share = AREA[0] + (AREA[1] - AREA[0]) * uniform(index[left], rng.ERASE_AREA + attempt)
        exponents = low + (high - low) * uniform(index[left], rng.ERASE_RATIO + attempt)
        # NumPy's own exponential differs in the last bit from one processor to the next.
        ratio = np.array([math.exp(exponent) for exponent in exponents.tolist()])
        area = share * height * width
        tall, wide = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (tall > 0) & (tall < height) & (wide > 0) & (wide < width)
        rows, tall, wide = left[fits], tall[fits].astype(np.int64), wide[fits].astype(np.int64)
        down, across = (uniform(index[rows], stream) for stream in (rng.ERASE_TOP, rng.ERASE_LEFT))
        top = (down * (height - tall + 1)).astype(np.int64)
        first = (across * (width - wide + 1)).astype(np.int64)
        drawn[rows] = np.stack([top, top + tall, first, first + wide], axis=1)
        left = left[~fits]
        if not left.size:
            break
    return drawn


def erasing_noise(
    index: NDArray[np.int64], drawn: NDArray[np.int64], *, view: View, channels: int, white: float
) -> NDArray[np.uint8]:
    """Return the noise for the rectangles ``drawn``, flat and concatenated, each ``(height, width, channels)``.

    Each value is normal, with the mean and deviation of ImageNet's pixels, rounded and clipped to black and white.
    Grey images have the mean of the three channels' figures.
    """
    sizes = (drawn[:, 1] - drawn[:, 0]) * (drawn[:, 3] - drawn[:, 2]) * channels
    mean, std = (np.array(s) if channels == len(s) else np.mean(s, keepdims=True) for s in (MEAN, STD))
    keys = rng.draw(view.seed, view.epoch, index, rng.ERASE_NOISE)
    ends = np.cumsum(sizes)
    noise = np.empty(int(ends[-1]) if ends.size else 0, np.uint8)
    for chunk in np.split(np.flatnonzero(sizes), range(CHUNK, np.count_nonzero(sizes), CHUNK)):
        if chunk.size:
            bits = rng.draw_series(keys[chunk], sizes[chunk], rng.ERASE_NOISE)
            values = mean + std * ndtri(rng.uniform(bits)).reshape(-1, len(mean))
            first, last = ends[chunk[0]] - sizes[chunk[0]], ends[chunk[-1]]
            noise[first:last] = np.rint(white * values.clip(0, 1)).astype(np.uint8).reshape(-1)
    return noise


def erase(images: Tensor, index: NDArray[np.int64], *, view: View, probability: float, white: float = 255.0) -> Tensor:
    """Fill a rectangle of some images with `erasing_noise`.

    Differs from: timm's mode ``pixel``, which draws the noise on normalised inputs and does not clip it.
    """
    height, width, channels = images.shape[1:]
    drawn = rectangles(index, view=view, probability=probability, height=height, width=width)
    if not drawn.any():
        return images
    images, at = images.clone(), 0
    noise = torch.from_numpy(erasing_noise(index, drawn, view=view, channels=channels, white=white))
    for row in np.flatnonzero(drawn.any(axis=1)).tolist():
        top, bottom, left, right = drawn[row].tolist()
        shape = (bottom - top, right - left, channels)
        images[row, top:bottom, left:right] = noise[at : at + math.prod(shape)].view(shape)
        at += math.prod(shape)
    return images
