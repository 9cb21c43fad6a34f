"""Buffers that a forward pass updates, saved so that a step that is not applied leaves them unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from operator import is_

import torch
from torch import Tensor, nn

Owner = dict[str, Tensor | None]
"""Own buffers of a module, by name."""


class SavedBuffers:
    """A copy of a module's buffers, such as running means and variances: one tensor per dtype, however many there are.

    Args:
        module: module whose buffers a forward pass may write in place, give other memory, replace, add or delete; it
            may add no submodule.
        but: submodules that guard their own buffers.
    """

    def __init__(self, module: nn.Module, but: Iterable[nn.Module] = ()) -> None:
        guarded = {inner for guard in but for inner in guard.modules()}
        self._owners: list[Owner] = [owner._buffers for owner in module.modules() if owner not in guarded]
        self._gather()

    def _gather(self) -> None:
        """Find the buffers, and those whose memory can be joined as rows; the others are copied one by one."""
        self._held = [(owner, dict(owner)) for owner in self._owners]
        counts = Counter(id(buffer) for _, held in self._held for buffer in held.values() if buffer is not None)
        self._shared = {key for key, count in counts.items() if count > 1}
        buffers = {id(b): b for _, held in self._held for b in held.values() if b is not None}
        self._memories = [(b, b.detach(), b.data_ptr()) for b in buffers.values() if _is_plain(b)]
        rows: dict[torch.dtype, list[Tensor]] = {}
        self._single = [b for b in buffers.values() if not _is_plain(b)]
        for _, memory, _ in self._memories:
            if _is_expanded(memory):
                continue  # Nothing can write to it in place.
            if (row := _row(memory)) is not None:
                rows.setdefault(row.dtype, []).append(row)
            else:
                self._single.append(memory)
        self._rows = list(rows.values())

    def save(self) -> None:
        """Copy the current buffers."""
        moved = any(buffer.data_ptr() != address for buffer, _, address in self._memories)
        if moved or any(_changed(owner, held) for owner, held in self._held):
            self._gather()
        self._copies = [torch.cat(rows) for rows in self._rows]
        self._copies_single = [buffer.clone() for buffer in self._single]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the saved buffers."""
        for owner, held in self._held:
            if _changed(owner, held):
                owner.clear()
                owner.update(held)
        for buffer, memory, address in self._memories:
            if buffer.data_ptr() != address:
                buffer.data = memory
        for rows, copy in zip(self._rows, self._copies, strict=True):
            _write(rows, copy)
        for buffer, copy in zip(self._single, self._copies_single, strict=True):
            buffer.copy_(copy)

    @torch.no_grad()
    def restore_unless(self, applied: Tensor) -> None:
        """Restore the buffers unless this ``()`` bool on their device is true; the host does not read it.

        So it only affects values. Those of a tensor that replaced a buffer of one module are written into the buffer; a
        tensor of another shape or kind stays, and so does any addition, deletion or change of memory.
        """
        replaced: list[tuple[Owner, str, Tensor, Tensor]] = []
        for owner, held in self._held:
            for name, buffer in held.items() if _changed(owner, held) else ():
                new = owner.get(name)
                if buffer is not None and new is not None and new is not buffer and self._can_take(buffer, new):
                    replaced.append((owner, name, buffer, new.clone()))
        for owner, name, buffer, value in replaced:
            owner[name] = buffer.copy_(value)
        for rows, copy in zip(self._rows, self._copies, strict=True):
            _write(rows, torch.where(applied, torch.cat(rows), copy))
        for buffer, copy in zip(self._single, self._copies_single, strict=True):
            if buffer.layout is torch.strided:
                buffer.copy_(torch.where(applied, buffer, copy))

    def _can_take(self, buffer: Tensor, new: Tensor) -> bool:
        """Whether a buffer that belongs to one module only can take the values of another tensor."""
        alike = _is_plain(new) and _is_plain(buffer) and (new.shape, new.dtype) == (buffer.shape, buffer.dtype)
        return alike and not _is_expanded(buffer) and id(buffer) not in self._shared


def _changed(owner: Owner, held: Owner) -> bool:
    """Whether a module's buffers are no longer the same."""
    return len(owner) != len(held) or not all(map(is_, owner.values(), held.values()))


def _is_plain(buffer: Tensor) -> bool:
    """Whether a tensor is strided values in memory, and not sparse, nested or of another class."""
    return type(buffer) is Tensor and buffer.layout is torch.strided and not buffer.is_nested


def _is_expanded(memory: Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(memory.shape, memory.stride(), strict=True))


def _row(memory: Tensor) -> Tensor | None:
    """Return a tensor's memory as a row; ``None`` if it is not one, such as part of another tensor's."""
    if memory.is_conj() or memory.is_neg() or memory.is_quantized:
        return None
    order = sorted(range(memory.ndim), key=memory.stride, reverse=True)
    try:
        return memory.permute(order).view(-1)
    except RuntimeError:
        return None


def _write(rows: list[Tensor], joined: Tensor) -> None:
    torch._foreach_copy_(rows, list(joined.split([len(row) for row in rows])))
