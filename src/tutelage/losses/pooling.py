"""Averages of maps with a deterministic gradient, which adaptive pooling lacks on CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def common_size(first: Tensor, second: Tensor) -> list[int]:
    """Return the smaller height and the smaller width of two maps."""
    return [min(sides) for sides in zip(first.shape[2:], second.shape[2:], strict=True)]


def averaged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Average maps ``(..., height, width)`` down to a size, over the cells of adaptive pooling."""
    height, width = maps.shape[-2:]
    if (height, width) == tuple(size):
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(maps, (height // size[0], width // size[1]))
    return averaging(size[0], height, maps) @ maps @ averaging(size[1], width, maps).mT


def averaging(cells: int, length: int, like: Tensor) -> Tensor:
    """Return the matrix ``(cells, length)`` that averages a side over its cells, which may overlap.

    Cell ``i`` reaches from ``floor(i * length / cells)`` to ``ceil((i + 1) * length / cells)``.
    """
    position = torch.arange(length, device=like.device)
    cell = torch.arange(cells, device=like.device)[:, None]
    inside = (position >= cell * length // cells) & (position * cells < (cell + 1) * length)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)
