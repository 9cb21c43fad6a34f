"""Where a split's batches for a device are made: there, of pixels that lie there, or on the host, one batch ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data import device_ops
from tutelage.data.datasets import MemorySplit, Split, Splits
from tutelage.data.loader import BatchLoader
from tutelage.data.mixup import mixed_images
from tutelage.data.resident import Capture, ResidentLoader, lies_on
from tutelage.types import Batch

SHARE = 1 / 4
"""Of a GPU's free memory that pixels may take where nothing else is said."""


def loader_on(
    device: torch.device,
    split: Split,
    *,
    batch_size: int,
    train: bool,
    data_seed: int = 0,
    first_epoch: int = 0,
    world: int = 1,
    capture: Capture | None = None,
) -> BatchLoader:
    """Return a split's batches for a device: those of `BatchLoader`, to the bit.

    Args:
        device: the CPU's are made by `BatchLoader` itself.
        split: whose ``on_device`` says whether pixels are to lie there.
        batch_size: as of `BatchLoader`, and so are the next four.
        train: shuffle and augment.
        data_seed: of order and views.
        first_epoch: epochs before this loader's first.
        world: processes that share a batch.
        capture: as of `ResidentLoader`.

    Raises:
        ValueError: the pixels are to lie there, and cannot.
    """
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "train": train,
        "data_seed": data_seed,
        "first_epoch": first_epoch,
        "world": world,
    }
    if device.type == "cpu":
        return BatchLoader(split, **settings)
    if reason_elsewhere(split, device) is None:
        assert isinstance(split, MemorySplit)
        return ResidentLoader(split, device=device, capture=capture, **settings)
    return UploadLoader(split, device=device, **settings)


def reason_elsewhere(split: Split, device: torch.device) -> str | None:
    """Return why a split's pixels do not lie on a device that is not the CPU; none where they do.

    Raises:
        ValueError: they are to, and cannot.
    """
    if split.on_device is False:
        return "data.on_device is false"
    if not isinstance(split, MemorySplit):
        reason = "they are decoded as they are needed"
    elif split.settings is not None and split.settings.randaugment is not None:
        reason = "RandAugment has no form there"
    elif split.transform is not None:
        reason = "data.transform has no form there"
    else:
        if split.on_device is True or lies_on(split.pixels, device):
            return None
        if device.type != "cuda":
            return f"data.on_device=auto is for CUDA, not {device.type}"
        size, free = split.pixels.nbytes, torch.cuda.mem_get_info(device)[0]
        few = f"they take {size / 2**20:,.0f} MiB, more than a quarter of the {free / 2**20:,.0f} MiB that are free"
        return few if size > SHARE * free else None
    if split.on_device is True:
        raise ValueError(
            f"data.on_device: expected images that can lie on the device, got some that cannot: {reason}; type "
            "data.on_device=auto"
        )
    return reason


def describe_place(splits: Splits, device: torch.device) -> str:
    """Say where the pixels of a data set lie, and why, for a user."""
    held = {id(s.pixels): s.pixels for s in splits.by_name().values() if isinstance(s, MemorySplit)}
    size = f", {sum(pixels.nbytes for pixels in held.values()) / 2**20:,.1f} MiB of 8-bit values" if held else ""
    if device.type == "cpu":
        return f"in memory{size}" if held else "decoded as they are needed"
    reasons = {name: reason_elsewhere(split, device) for name, split in splits.by_name().items()}
    there = [name for name, reason in reasons.items() if reason is None]
    parts = [f"{', '.join(there)} on {device.type}{size}"] if there else []
    return "; ".join([*parts, *(f"{name} on the host: {reason}" for name, reason in reasons.items() if reason)])


class UploadLoader(BatchLoader):
    """Batches like `BatchLoader`'s, to the bit: 8-bit images come from the host, and become inputs on the device.

    On CUDA they come from page-locked memory on a stream of their own, one batch ahead.
    """

    def __init__(self, split: Split, *, device: torch.device, **others: Any) -> None:
        super().__init__(split, **others)
        self._device = device
        self._table = device_ops.float_table(split.divisor).to(device)

    def at(self, epoch: int, requests: Iterable[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield a batch per array of indices, with the views that training has of them in an epoch."""
        view = self.view(epoch)
        for sent in _sent_ahead(self._packed(epoch, requests), self._device):
            images, count = sent.images, len(sent.index)
            # Images that are no bytes are a user's own, and never mixed.
            inputs = images
            if images.dtype == torch.uint8:
                values = device_ops.to_float(images, self._table)
                if sent.mixes is not None:
                    shares, box, partner = sent.mixes[:2].view(torch.float64), sent.mixes[2:6], sent.mixes[6]
                    values = device_ops.mixed(values[:count], values.index_select(0, partner), shares, box)
                inputs = device_ops.channels_first(values)
            yield Batch(sent.index, inputs, sent.labels, view)

    def _packed(self, epoch: int, requests: Iterable[NDArray[np.int64]]) -> Iterator[_Sent]:
        """Yield what is sent of each batch, on the host."""
        view, split, pin_memory = self.view(epoch), self.split, self._device.type == "cuda"
        if view is not None and split.mixing is not None:
            for rows, images in mixed_images(split, split.mixing, requests, view=view, pin_memory=pin_memory):
                shares = np.stack([rows.share, 1 - rows.share]).view(np.int64)
                mixes = np.concatenate([shares, rows.box.T, rows.partner[None]])
                yield _Sent(torch.from_numpy(rows.index), images, rows.labels, torch.from_numpy(mixes))
            return
        for positions, images in split.stream_images(requests, view=view, pin_memory=pin_memory):
            index = torch.from_numpy(positions)
            yield _Sent(index, images, split.labels[index], None)


class _Sent(NamedTuple):
    """What is sent of a batch."""

    index: Tensor  # type: ignore[assignment]  # over tuple.index
    images: Tensor  # as of `Split.stream_images`; of samples, and of their partners where they mix
    labels: Tensor
    mixes: Tensor | None  # ``(7, batch)``: the bits of two float64 shares, a box, and a partner's row


def _sent_ahead(batches: Iterable[_Sent], device: torch.device) -> Iterator[_Sent]:
    """Yield batches on the device; on CUDA the next one is on its way while one is used."""
    if device.type != "cuda":
        yield from (_each(batch, lambda tensor: tensor.to(device)) for batch in batches)
        return
    copies, before = _copy_stream(device), None
    for batch in batches:
        with torch.cuda.stream(copies):
            sent = _each(batch, lambda tensor: _pinned(tensor).to(device, non_blocking=True))
            arrived = copies.record_event()
        if before is not None:
            yield _received(*before)
        before = (sent, arrived)
    if before is not None:
        yield _received(*before)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream that all copies to a device are on: memory that is free again belongs to its stream."""
    return torch.cuda.Stream(device)


def _received(sent: _Sent, arrived: torch.cuda.Event) -> _Sent:
    """Let the current stream wait for what was sent on another, whose memory is then not reused too early."""
    current = torch.cuda.current_stream(sent.index.device)
    current.wait_event(arrived)
    for tensor in sent:
        if tensor is not None:
            tensor.record_stream(current)
    return sent


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()


def _each(sent: _Sent, function: Callable[[Tensor], Tensor]) -> _Sent:
    mixes = None if sent.mixes is None else function(sent.mixes)
    return _Sent(function(sent.index), function(sent.images), function(sent.labels), mixes)
