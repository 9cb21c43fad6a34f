"""Buffers that a forward pass moves, gathered so that a step which is not applied leaves them as they were."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor


class SavedBuffers:
    """A copy of some buffers, such as running means and variances: one tensor per dtype, however many they are.

    Args:
        buffers: on one device; they are written in place from now on, not replaced.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        groups: dict[Hashable, list[Tensor]] = {}
        for buffer in buffers:
            if any(size > 1 and stride == 0 for size, stride in zip(buffer.shape, buffer.stride(), strict=True)):
                continue  # Expanded: nothing can write to it in place.
            order = sorted(range(buffer.ndim), key=buffer.stride, reverse=True)
            try:
                groups.setdefault(buffer.dtype, []).append(buffer.detach().permute(order).view(-1))
            except RuntimeError:  # A part of another tensor's memory, which is no row: it is copied by itself.
                groups[id(buffer)] = [buffer.detach()]
        self._groups = [group for group in groups.values() if group]
        self._copies: list[Tensor] = []

    def save(self) -> None:
        """Copy the buffers as they are now."""
        self._copies = [torch.cat(group) for group in self._groups]

    def restore(self, unless: Tensor | None = None) -> None:
        """Write the copy back, without a condition or ``unless`` this ``()`` bool on their device is true."""
        for group, copy in zip(self._groups, self._copies, strict=True):
            kept = copy if unless is None else torch.where(unless, torch.cat(group), copy)
            torch._foreach_copy_(group, list(kept.split([len(buffer) for buffer in group])))
