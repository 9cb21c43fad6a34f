"""Buffers that a forward pass moves, gathered so that a step which is not applied leaves them as they were."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn


class SavedBuffers:
    """A copy of a module's buffers, such as running means and variances: one tensor per dtype, however many they are.

    Args:
        module: its buffers are written in place, or replaced in a forward pass.
        but: submodules that guard their own.
    """

    def __init__(self, module: nn.Module, but: Iterable[nn.Module] = ()) -> None:
        guarded = {inner for guard in but for inner in guard.modules()}
        self._owners = [owner._buffers for owner in module.modules() if owner not in guarded]
        self._copies: list[Tensor] = []
        self._gather()

    def _gather(self) -> None:
        """Find where the buffers are, and their memory as rows that can be joined."""
        self._slots = [(owner, name, b) for owner in self._owners for name, b in owner.items() if b is not None]
        groups: dict[Hashable, list[Tensor]] = {}
        for buffer in {id(buffer): buffer.detach() for _, _, buffer in self._slots}.values():
            if any(size > 1 and stride == 0 for size, stride in zip(buffer.shape, buffer.stride(), strict=True)):
                continue  # Expanded: nothing can write to it in place.
            order = sorted(range(buffer.ndim), key=buffer.stride, reverse=True)
            try:
                groups.setdefault(buffer.dtype, []).append(buffer.permute(order).view(-1))
            except RuntimeError:  # A part of another tensor's memory, which is no row: it is copied by itself.
                groups[id(buffer)] = [buffer]
        self._groups = [group for group in groups.values() if group]

    def save(self) -> None:
        """Copy the buffers as they are now."""
        if any(owner.get(name) is not buffer for owner, name, buffer in self._slots):
            self._gather()
        self._copies = [torch.cat(group) for group in self._groups]

    @torch.no_grad()
    def restore(self, unless: Tensor | None = None) -> None:
        """Write the copy back, without a condition or ``unless`` this ``()`` bool on their device is true.

        A tensor that has replaced a buffer is dropped; with a condition, which the host does not know, its values are
        taken into the buffer, unless it has another shape or dtype: then it stays.
        """
        for owner, name, buffer in self._slots:
            new = owner.get(name)
            if new is buffer:
                continue
            if unless is not None:
                if new is None or (new.shape, new.dtype) != (buffer.shape, buffer.dtype):
                    continue
                buffer.copy_(new)
            owner[name] = buffer
        for group, copy in zip(self._groups, self._copies, strict=True):
            kept = copy if unless is None else torch.where(unless, torch.cat(group), copy)
            torch._foreach_copy_(group, list(kept.split([len(buffer) for buffer in group])))
