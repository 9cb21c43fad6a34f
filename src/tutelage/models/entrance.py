"""The view of an image that a network takes: its own size and channels, from the view that the data yield."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.models.card import Card

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, of ITU-R BT.601, as Pillow's mode ``L`` has them."""


def entrance(inputs: Tensor, card: Card) -> Tensor:
    """Bring images to a card's size and channels; images that have both are returned unchanged.

    The resize is antialiased, by the card's interpolation, and its values stay in [0, 1]. Grey becomes three equal
    channels, and colour becomes grey by `LUMA`; other numbers of channels stay.

    Args:
        inputs: ``(batch, channels, height, width)``, floating point, values in [0, 1].
        card: card of the network.

    Returns:
        ``(batch, channels, height, width)`` in the dtype of the inputs, computed in at least float32.
    """
    images = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    if (images.shape[1], card.channels) == (3, 1):
        red, green, blue = (weight * images[:, k : k + 1] for k, weight in enumerate(LUMA))
        images = red + green + blue
    if card.image_size not in (None, tuple(images.shape[2:])):
        images = F.interpolate(images, card.image_size, mode=card.interpolation, antialias=True).clamp(0, 1)
    if (images.shape[1], card.channels) == (1, 3):
        images = images.expand(-1, 3, -1, -1)
    return images.to(inputs.dtype)
