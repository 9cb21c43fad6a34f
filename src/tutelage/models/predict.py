"""From raw images to classes: files, PIL images or 8-bit arrays, seen as the evaluation saw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

if TYPE_CHECKING:
    from tutelage.models.card import Card


class Prediction(NamedTuple):
    """What a classifier says about one image.

    Attributes:
        label: the likeliest class.
        name: of that class, where the card has names.
        probability: that the classifier gives it.
    """

    label: int
    name: str | None
    probability: float


@torch.no_grad()
def predict(classifier: nn.Module, card: Card, images: Any) -> list[Prediction]:
    """Classify raw images.

    Args:
        classifier: takes values in [0, 1]; its mode is as before afterwards.
        card: how it sees images, and its classes' names.
        images: one or a sequence of: a path, a PIL image, or a uint8 array ``(height, width[, channels])``.

    Returns:
        One prediction an image.

    Raises:
        TypeError: something is none of these.
        FileNotFoundError: a path is none.
        ValueError: an image is brighter than the card's white.
    """
    given = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not given:
        return []
    device = next(classifier.parameters()).device
    mode = classifier.training
    try:
        logits = classifier.eval()(torch.stack([_view(image, card) for image in given]).to(device))
    finally:
        classifier.train(mode)
    probability, index = logits.float().softmax(-1).max(-1)
    names = card.class_names
    return [
        Prediction(i, names[i] if names else None, p) for i, p in zip(index.tolist(), probability.tolist(), strict=True)
    ]


def _view(image: Any, card: Card) -> Tensor:
    """The evaluation view: resized to cover the card's size times its margin, centre cut, values in [0, 1]."""
    picture = _open(image)
    if picture.mode == "P":  # a palette may hold transparency, which is dropped as everywhere
        picture = picture.convert("RGBA")
    picture = picture.convert("RGB" if card.channels == 3 else "L")
    pixels, white = np.asarray(picture), card.divisor
    if pixels.max() > white:
        raise ValueError(
            f"images: expected values from 0 to {white:g}, as the images that {card.name} was trained on have, "
            f"got {pixels.max()}; multiply them by {white:g}/255 where 255 is their white"
        )
    if card.image_size is not None:
        height, width = card.image_size
        if card.margin != 1 or picture.size != (width, height):
            if white != 255:  # in all 8 bits before the resize rounds, as the data room does
                picture, white = Image.fromarray(np.rint(pixels * (255 / white)).astype(np.uint8)), 255.0
            scale = card.margin * max(width / picture.width, height / picture.height)
            size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
            picture = picture.resize(size, Image.Resampling[card.interpolation.upper()])
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(picture)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).copy()).permute(2, 0, 1).float() / white


def _open(image: Any) -> Image.Image:
    if isinstance(image, str | Path):
        with Image.open(image) as opened:
            return opened.copy()
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    got = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise TypeError(
        f"images: expected paths, PIL images or uint8 arrays (height, width, channels), got {got}; "
        "for a float tensor in [0, 1] call the classifier itself"
    )
