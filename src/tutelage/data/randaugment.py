"""RandAugment: random operations on a training image, by the image's own hash."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import ndtri
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tutelage import rng
from tutelage.images import MEAN, image_of, pixels_of, rescale
from tutelage.settings.data import RandAugment
from tutelage.types import View

HIGHEST = 10.0  # magnitude at which every operation is at the end of its range


class Strength(NamedTuple):
    """How an operation is applied."""

    level: float  # magnitude over the highest one, in [0, 1]
    sign: int  # 1 or -1: the direction, where an operation has one
    mode: InterpolationMode  # of operations that move pixels
    fill: tuple[int, ...]  # of the pixels that they expose, a value per channel


Operation = Callable[[Image.Image, Strength], Image.Image]


def _along(how: Strength, most: float) -> float:
    return how.sign * most * how.level


def _factor(how: Strength) -> float:
    return max(0.1, 1 + _along(how, 0.9))


def _posterize(image: Image.Image, how: Strength) -> Image.Image:
    bits = 4 - int(how.level * 4)
    # Pillow refuses to keep no bit.
    return F.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def _rotate(image: Image.Image, how: Strength) -> Image.Image:
    return F.rotate(image, _along(how, 30), how.mode, fill=list(how.fill))


def _shear(image: Image.Image, how: Strength, *, x: float = 0, y: float = 0) -> Image.Image:
    # By its slopes, as a map without perspective: `affine` makes them of angles, to within a rounding error.
    slopes = [1, _along(how, x), 0, _along(how, y), 1, 0, 0, 0]
    return F.perspective(image, None, None, how.mode, fill=list(how.fill), coefficients=slopes)


def _translate(image: Image.Image, how: Strength, *, x: float = 0, y: float = 0) -> Image.Image:
    # The centre changes nothing but its rounding error.
    to = [-_along(how, x) * image.width, -_along(how, y) * image.height]
    still: dict[str, Any] = {"angle": 0, "scale": 1, "shear": [0, 0], "center": [0, 0]}
    return F.affine(image, translate=to, **still, interpolation=how.mode, fill=list(how.fill))


OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda image, how: F.autocontrast(image),
    "equalize": lambda image, how: F.equalize(image),
    "invert": lambda image, how: F.invert(image),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": lambda image, how: F.solarize(image, 256 - int(how.level * 256)),
    "solarize_add": lambda image, how: image.point(lambda v: min(255, v + int(how.level * 110)) if v < 128 else v),
    "color": lambda image, how: F.adjust_saturation(image, _factor(how)),
    "contrast": lambda image, how: F.adjust_contrast(image, _factor(how)),
    "brightness": lambda image, how: F.adjust_brightness(image, _factor(how)),
    "sharpness": lambda image, how: F.adjust_sharpness(image, _factor(how)),
    "shear_x": partial(_shear, x=0.3),
    "shear_y": partial(_shear, y=0.3),
    "translate_x": partial(_translate, x=0.45),
    "translate_y": partial(_translate, y=0.45),
}
_NAMES = tuple(OPERATIONS)


def draw_operations(
    index: NDArray[np.int64], *, view: View, settings: RandAugment
) -> list[list[tuple[str, float, int]]]:
    """Return each sample's operations, in order: name, level and sign."""
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

    Exposed pixels get the mean of ImageNet's pixels. Images, of 1 or 3 channels, whose white is not 255 are rescaled
    to it, and back afterwards. Operations that move pixels resample by
    ``interpolation``, ``bilinear`` or ``bicubic``.

    The operations are torchvision's, of Pillow's images; solarize_add, which it has not, is a table of 256 values.

    Source: Cubuk et al., "RandAugment", arXiv 1909.13719; which operations, their ranges and the probability of 1/2 are
    those of timm's ``rand-m9-mstd0.5-inc1``, with which DeiT (arXiv 2012.12877) was trained.

    Differs from: the paper, whose 14 operations have the identity in place of invert and solarize_add, are always
    applied, and of which some weaken as the magnitude rises; torchvision's own RandAugment, which follows the paper;
    timm, only in where randomness comes from.
    """
    fill = tuple(round(255 * m) for m in (MEAN if images.shape[-1] == 3 else (sum(MEAN) / 3,)))
    mode = InterpolationMode(interpolation)
    varied = images.clone()
    for row, operations in enumerate(draw_operations(index, view=view, settings=settings)):
        if not operations:
            continue
        image = image_of(rescale(images[row].numpy(), 255 / white))
        for name, level, sign in operations:
            image = OPERATIONS[name](image, Strength(level, sign, mode, fill))
        varied[row] = torch.from_numpy(rescale(pixels_of(image), white / 255).copy())
    return varied
