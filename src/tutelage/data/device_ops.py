"""Views of training images as functions of tensors on a device, with the same bits as on the CPU but without its help.

Nothing here makes a tensor from numbers on the host, or reads a value from the device, so that a CUDA graph can hold
it. Images are ``(batch, height, width, channels)`` uint8; per-sample tensors are ``(batch,)`` int64 unless stated
otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor


def float_table(divisor: float) -> Tensor:
    """Return the float32 values of the 256 bytes, on the CPU, as not every device divides the same way."""
    return torch.arange(256, dtype=torch.uint8).to(torch.float32).div_(divisor)


def to_float(images: Tensor, table: Tensor) -> Tensor:
    """Return the table's float32 values of images, in their shape."""
    return table.index_select(0, images.reshape(-1).int()).view(images.shape)


def channels_first(images: Tensor) -> Tensor:
    """Return ``(batch, channels, height, width)`` in the same memory, so strided as channels-last."""
    return images.permute(0, 3, 1, 2)


def shifted(pixels: Tensor, image: Tensor, y: Tensor, x: Tensor, dx: Tensor, *, border: int = 0) -> Tensor:
    """Return images from ``pixels``, ``(all, height, width, channels)``, ``border`` where a view lies outside.

    The pixel at row i and column j of a view is the one at ``(y + i, x + dx * j)`` of the image.
    """
    _, height, width, channels = pixels.shape
    rows = y[:, None] + torch.arange(height, device=pixels.device)
    columns = x[:, None] + dx[:, None] * torch.arange(width, device=pixels.device)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    lines = image[:, None] * height + rows.clamp(0, height - 1)
    entries = lines[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    images = pixels.view(-1, channels).index_select(0, entries.view(-1)).view(*entries.shape, channels)
    return images.masked_fill(~inside[..., None], border) if border else images * inside[..., None]


def within(box: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels are in boxes ``(4, batch)``, top, bottom, left and right: bool ``(batch, height, width)``."""
    top, bottom, left, right = box[:, :, None].unbind()
    rows, columns = torch.arange(height, device=box.device), torch.arange(width, device=box.device)
    return ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]


def erased(images: Tensor, box: Tensor, first: Tensor, noise: Tensor) -> Tensor:
    """Fill boxes ``(4, batch)`` with noise ``(pixels, channels)`` uint8; a box's begins at ``first``."""
    _, height, width, channels = images.shape
    inside = within(box, height, width)
    top, _, left, right = box
    rows = torch.arange(height, device=images.device) - top[:, None]
    columns = torch.arange(width, device=images.device) - left[:, None]
    lines = first[:, None] + rows * (right - left)[:, None]
    entries = (lines[:, :, None] + columns[:, None, :]).masked_fill(~inside, 0)
    filled = noise.index_select(0, entries.view(-1)).view(*entries.shape, channels)
    return torch.where(inside[..., None], filled, images)


def mixed(images: Tensor, partners: Tensor, shares: Tensor, box: Tensor) -> Tensor:
    """Mix float32 images with their partners: by CutMix if the box ``(4, batch)`` is not empty, else by Mixup.

    ``shares`` are each sample's own and its partner's, ``(2, batch)`` float64.
    """
    inside = within(box, *images.shape[1:3])
    cut = (box[1] > box[0]) & (box[3] > box[2])
    own, other = shares
    own, other = own.masked_fill(cut, 1.0).float(), other.masked_fill(cut, 0.0).float()
    # Two products and a sum, each rounded separately: no fused form, such as `torch.lerp` or `torch.addcmul`.
    images = images * own[:, None, None, None] + partners * other[:, None, None, None]
    return torch.where(inside[..., None], partners, images)


def soft_labels(labels: Tensor, partners: Tensor, shares: Tensor, classes: int) -> Tensor:
    """Return ``share * onehot(label) + (1 - share) * onehot(partner's label)``, float32 ``(batch, classes)``."""
    numbers = torch.arange(classes, device=labels.device)
    own, other = ((each[:, None] == numbers).double() for each in (labels, partners))
    return (own * shares[0][:, None] + other * shares[1][:, None]).float()
