"""Buffers that a forward pass moves, gathered so that a step which is not applied leaves them as they were."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class SavedBuffers:
    """A copy of a module's buffers, such as running means and variances: one tensor per dtype, however many they are.

    Args:
        module: its buffers are written in place, or given other memory, or replaced in a forward pass.
        but: submodules that guard their own.
    """

    def __init__(self, module: nn.Module, but: Iterable[nn.Module] = ()) -> None:
        guarded = {inner for guard in but for inner in guard.modules()}
        self._owners = [owner._buffers for owner in module.modules() if owner not in guarded]
        self._gather()

    def _gather(self) -> None:
        """Find the buffers, and those whose memory can be joined as rows; the others are copied one by one."""
        self._slots = [_Slot(owner, name, b) for owner in self._owners for name, b in owner.items() if b is not None]
        rows: dict[torch.dtype, list[Tensor]] = {}
        self._apart: list[Tensor] = []
        for slot in {id(slot.buffer): slot for slot in self._slots}.values():
            memory = slot.memory
            if slot.address is not None and _is_expanded(memory):
                continue  # Nothing can write to it in place.
            row = None if slot.address is None else _row(memory)
            if row is None:
                self._apart.append(slot.buffer)
            else:
                rows.setdefault(row.dtype, []).append(row)
        self._rows = list(rows.values())

    def save(self) -> None:
        """Copy the buffers as they are now."""
        if any(slot.replaced for slot in self._slots):
            self._gather()
        self._copies = [torch.cat(rows) for rows in self._rows]
        self._copies_apart = [memory.clone() for memory in self._apart]

    @torch.no_grad()
    def restore(self, unless: Tensor | None = None) -> None:
        """Write the copy back, without a condition or ``unless`` this ``()`` bool on their device is true.

        What has taken a buffer's place is dropped; with a condition, which the host does not know, its values are
        written into the buffer, unless it has another shape or dtype: then it stays.
        """
        for slot in self._slots:
            if not slot.replaced:
                continue
            if unless is not None:
                new = slot.owner.get(slot.name)
                if new is None or (new.shape, new.dtype) != (slot.memory.shape, slot.memory.dtype):
                    continue
                slot.memory.copy_(new)
            slot.buffer.data = slot.memory
            slot.owner[slot.name] = slot.buffer
        for rows, copy in zip(self._rows, self._copies, strict=True):
            kept = copy if unless is None else torch.where(unless, torch.cat(rows), copy)
            torch._foreach_copy_(rows, list(kept.split([len(row) for row in rows])))
        for memory, copy in zip(self._apart, self._copies_apart, strict=True):
            memory.copy_(copy if unless is None else torch.where(unless, memory, copy))


class _Slot:
    """A buffer, where a module has it, and its memory."""

    __slots__ = ("address", "buffer", "memory", "name", "owner")

    def __init__(self, owner: dict[str, Tensor | None], name: str, buffer: Tensor) -> None:
        self.owner, self.name, self.buffer, self.memory = owner, name, buffer, buffer.detach()
        # Sparse, nested and other special tensors have none.
        plain = type(buffer) is Tensor and buffer.layout is torch.strided and not buffer.is_nested
        self.address = buffer.data_ptr() if plain else None

    @property
    def replaced(self) -> bool:
        """Whether the module has another tensor there, or the buffer other memory."""
        if self.owner.get(self.name) is not self.buffer:
            return True
        return self.address is not None and self.buffer.data_ptr() != self.address


def _is_expanded(memory: Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(memory.shape, memory.stride(), strict=True))


def _row(memory: Tensor) -> Tensor | None:
    """Return a tensor's memory as a row; none where it is none, as a part of another tensor's is not."""
    if memory.is_conj() or memory.is_neg() or memory.is_quantized:
        return None
    order = sorted(range(memory.ndim), key=memory.stride, reverse=True)
    try:
        return memory.permute(order).view(-1)
    except RuntimeError:
        return None
