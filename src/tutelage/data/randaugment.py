"""RandAugment: random operations on a training image, by the image's own hash."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy.special import ndtri
from torch import Tensor

from tutelage.data import rng
from tutelage.images import MEAN, RESAMPLING, image_of, pixels_of, rescale
from tutelage.settings.data import RandAugment
from tutelage.types import View

HIGHEST = 10.0
"""Magnitude at which every operation is at the end of its range."""


class Strength(NamedTuple):
    """How an operation is applied."""

    level: float  # magnitude over the highest one, in [0, 1]
    sign: int  # 1 or -1: the direction, where an operation has one
    resample: Image.Resampling  # of operations that move pixels
    fill: tuple[int, ...]  # what they leave bare, a value per channel


Operation = Callable[[Image.Image, Strength], Image.Image]


def _moved(image: Image.Image, how: Strength, matrix: tuple[float, ...]) -> Image.Image:
    """Take each pixel from where the affine map leads."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, how.resample, fillcolor=how.fill)


def _along(how: Strength, most: float) -> float:
    return how.sign * most * how.level


def _factor(how: Strength) -> float:
    return max(0.1, 1 + _along(how, 0.9))


def _by_value(image: Image.Image, table: list[int]) -> Image.Image:
    return image.point(table * len(image.getbands()))


def _posterize(image: Image.Image, how: Strength) -> Image.Image:
    """Keep 4 bits to none; Pillow's own function refuses to keep none."""
    kept = 0xFF << (4 + int(how.level * 4))
    return _by_value(image, [v & kept for v in range(256)])


def _solarize_add(image: Image.Image, how: Strength) -> Image.Image:
    brighter = int(how.level * 110)
    return _by_value(image, [min(255, v + brighter) if v < 128 else v for v in range(256)])


OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda image, how: ImageOps.autocontrast(image),
    "equalize": lambda image, how: ImageOps.equalize(image),
    "invert": lambda image, how: ImageOps.invert(image),
    "rotate": lambda image, how: image.rotate(_along(how, 30), how.resample, fillcolor=how.fill),
    "posterize": _posterize,
    "solarize": lambda image, how: ImageOps.solarize(image, 256 - int(how.level * 256)),
    "solarize_add": _solarize_add,
    "color": lambda image, how: ImageEnhance.Color(image).enhance(_factor(how)),
    "contrast": lambda image, how: ImageEnhance.Contrast(image).enhance(_factor(how)),
    "brightness": lambda image, how: ImageEnhance.Brightness(image).enhance(_factor(how)),
    "sharpness": lambda image, how: ImageEnhance.Sharpness(image).enhance(_factor(how)),
    "shear_x": lambda image, how: _moved(image, how, (1, _along(how, 0.3), 0, 0, 1, 0)),
    "shear_y": lambda image, how: _moved(image, how, (1, 0, 0, _along(how, 0.3), 1, 0)),
    "translate_x": lambda image, how: _moved(image, how, (1, 0, _along(how, 0.45) * image.width, 0, 1, 0)),
    "translate_y": lambda image, how: _moved(image, how, (1, 0, 0, 0, 1, _along(how, 0.45) * image.height)),
}
_NAMES = tuple(OPERATIONS)


def draw_operations(
    index: NDArray[np.int64], *, view: View, settings: RandAugment
) -> list[list[tuple[str, float, int]]]:
    """Return what is done to each sample: names of operations with level and sign, in order."""
    drawn: list[list[tuple[str, float, int]]] = [[] for _ in index]
    for k in range(settings.operations):
        name = rng.view_integers(view, index, rng.RAND_NAME + k, len(_NAMES))
        applied = rng.view_uniform(view, index, rng.RAND_APPLY + k) < 0.5
        sign = np.where(rng.view_uniform(view, index, rng.RAND_SIGN + k) < 0.5, -1, 1)
        magnitude = np.full(len(index), float(settings.magnitude))
        if settings.magnitude_std:
            magnitude += settings.magnitude_std * ndtri(rng.view_uniform(view, index, rng.RAND_MAGNITUDE + k))
        level = magnitude.clip(0, HIGHEST) / HIGHEST
        for i in np.flatnonzero(applied).tolist():
            drawn[i].append((_NAMES[name[i]], float(level[i]), int(sign[i])))
    return drawn


def randaugment(
    images: Tensor,
    index: NDArray[np.int64],
    *,
    view: View,
    settings: RandAugment,
    interpolation: str = "bilinear",
    white: float = 255.0,
) -> Tensor:
    """Apply to each image ``operations`` of 15 operations, drawn with replacement, each with probability 1/2.

    The magnitude of each is normal about ``magnitude``, cut off to [0, 10]. At magnitude 10, and in proportion below:

    - autocontrast, equalize, invert: the same at every magnitude;
    - rotate: 30 degrees; shear_x, shear_y: 0.3; translate_x, translate_y: 0.45 of the side; either way;
    - color, contrast, brightness, sharpness: blended by a factor 0.1 or 1.9 (1 changes nothing);
    - posterize: keeps 4 bits at magnitude 0, none at 10, whole bits;
    - solarize: inverts values from 256 (none) at magnitude 0, from 0 (all) at 10;
    - solarize_add: adds 110 to values below 128.

    What is laid bare is filled with the mean of ImageNet's pixels. Images, of 1 or 3 channels, whose white is not 255
    are brought to it, and back to their own steps afterwards. Operations that move pixels resample by
    ``interpolation``, ``bilinear`` or ``bicubic``.

    Source: Cubuk et al., "RandAugment", arXiv 1909.13719; operations, ranges and the probability of 1/2 are those of
    timm's ``rand-m9-mstd0.5-inc1``, with which DeiT (arXiv 2012.12877) was trained.

    Differs from: the paper, whose 14 operations have the identity in place of invert and solarize_add, are always
    applied, and of which some weaken as the magnitude rises; timm, only in where randomness comes from.
    """
    fill = tuple(round(255 * m) for m in (MEAN if images.shape[-1] == 3 else (sum(MEAN) / 3,)))
    varied = images.clone()
    for row, operations in enumerate(draw_operations(index, view=view, settings=settings)):
        if not operations:
            continue
        image = image_of(rescale(images[row].numpy(), 255 / white))
        for name, level, sign in operations:
            image = OPERATIONS[name](image, Strength(level, sign, RESAMPLING[interpolation], fill))
        varied[row] = torch.from_numpy(rescale(pixels_of(image), white / 255).copy())
    return varied
