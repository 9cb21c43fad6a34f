"""From raw images to classes: files, PIL images or 8-bit arrays, preprocessed as in the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.errors import InvalidValueError
from tutelage.images import Layout, as_image, centre, convert, image_of, pixels_of, rescale
from tutelage.submodules import evaluation_mode

if TYPE_CHECKING:
    from tutelage.models.card import Card


class Prediction(NamedTuple):
    """A classifier's prediction for one image.

    Attributes:
        label: likeliest class.
        name: name of that class, if the card has names.
        probability: probability that the classifier gives it.
    """

    label: int
    name: str | None
    probability: float


@torch.no_grad()
def predict(classifier: nn.Module, card: Card, images: Any) -> list[Prediction]:
    """Classify raw images.

    Args:
        classifier: classifier that takes values in [0, 1]; its mode is restored.
        card: card that says how it sees images and what its classes are called.
        images: one image or a sequence: paths, PIL images, or uint8 arrays ``(height, width[, channels])``.

    Returns:
        One prediction per image.

    Raises:
        TypeError: if something is none of these.
        FileNotFoundError: if a path does not exist.
        ValueError: if an image is brighter than the card's white.
    """
    sequence = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not sequence:
        return []
    device = next(classifier.parameters()).device
    with evaluation_mode(classifier):
        logits = classifier(torch.stack([_view(image, card) for image in sequence]).to(device))
    probability, index = logits.float().softmax(-1).max(-1)
    names = card.class_names
    return [
        Prediction(i, names[i] if names else None, p) for i, p in zip(index.tolist(), probability.tolist(), strict=True)
    ]


def _view(image: Any, card: Card) -> Tensor:
    """Return the evaluation view: resized to cover the card's size times its margin, centre crop, values in [0, 1]."""
    decoded = convert(as_image(image), channels=card.channels)
    pixels, white = pixels_of(decoded), card.divisor
    if pixels.max() > white:
        expected = f"values from 0 to {white:g}, as the images that {card.name} was trained on have"
        instead = f"multiply them by {white:g}/255 where 255 is their white"
        raise InvalidValueError("images", expected, pixels.max(), instead)
    if card.image_size is not None:
        height, width = card.image_size
        if card.margin != 1 or decoded.size != (width, height):  # 8 bits before the resize rounds, as in data
            decoded, white = image_of(rescale(pixels, 255 / white)), 255.0
        layout = Layout(height, width, card.channels, card.margin)
        pixels = centre(decoded, layout, interpolation=card.interpolation)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / white
