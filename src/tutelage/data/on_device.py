"""Where a split's batches for a device are made: there, from pixels on the device, or on the host, one batch ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data import device_ops
from tutelage.data.datasets import MemorySplit, Split, Splits
from tutelage.data.loader import BatchLoader
from tutelage.data.mixup import mixed_images
from tutelage.data.pairs import PairedSplit
from tutelage.data.resident import Capture, ResidentLoader, lies_on
from tutelage.data.token_split import TokenSplit
from tutelage.errors import InvalidValueError
from tutelage.types import Batch, Inputs
from tutelage.views import map_views, views_of

SHARE = 1 / 4
"""Default share of a GPU's free memory that pixels may take."""


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
        device: device of the batches; `BatchLoader` itself makes the CPU's.
        split: split whose ``on_device`` says whether pixels are to lie there.
        batch_size: batch size, as for `BatchLoader`, like the next four.
        train: whether to shuffle and augment.
        data_seed: seed of order and views.
        first_epoch: number of epochs before this loader's first.
        world: number of processes that share a batch.
        capture: function that captures, as for `ResidentLoader`.

    Raises:
        ValueError: if the pixels are to lie there, but cannot.
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
    """Return why a split's pixels do not lie on a device that is not the CPU; ``None`` if they do.

    Raises:
        ValueError: if they are to, but cannot.
    """
    if split.on_device is False:
        return "data.on_device is false"
    if isinstance(split, TokenSplit | PairedSplit):
        reason = "each batch of texts is padded by itself"
    elif not isinstance(split, MemorySplit):
        reason = "they are decoded as they are needed"
    elif split.settings is not None and split.settings.randaugment is not None:
        reason = "RandAugment has no form there"
    elif split.transform is not None:
        reason = "data.transform has no form there"
    elif split.strong is not None:
        reason = "the strong view of data.strong has no form there"
    elif split.labels.ndim > 1:
        reason = "each has several labels"
    else:
        if split.on_device is True or lies_on(split.pixels, device):
            return None
        if device.type != "cuda":
            return f"data.on_device=auto is for CUDA, not {device.type}"
        size, free = split.pixels.nbytes, torch.cuda.mem_get_info(device)[0]
        few = f"they take {size / 2**20:,.0f} MiB, more than a quarter of the {free / 2**20:,.0f} MiB that are free"
        return few if size > SHARE * free else None
    if split.on_device is True:
        expected = "images that can lie on the device"
        raise InvalidValueError("data.on_device", expected, f"some that cannot: {reason}", "type data.on_device=auto")
    return reason


def describe_place(splits: Splits, device: torch.device) -> str:
    """Say where the pixels, or the token ids, of a data set lie, and why, for a user."""
    parts = [part for split in splits.by_name().values() for part in split.parts()]
    ids = sum(rows.ids.nbytes for split in parts if isinstance(split, TokenSplit) for rows in split.rows.values())
    tokens = f"{ids / 2**20:,.1f} MiB of token ids"
    if not splits.of_images and splits.text:
        return f"in memory, {tokens}"
    pixels = _place_of_pixels(splits, [split for split in parts if not isinstance(split, TokenSplit)], device)
    return f"{pixels}; {tokens} in memory" if splits.text else pixels


def _place_of_pixels(splits: Splits, parts: Sequence[Split], device: torch.device) -> str:
    held = {id(s.pixels): s.pixels for s in parts if isinstance(s, MemorySplit)}
    size = f", {sum(pixels.nbytes for pixels in held.values()) / 2**20:,.1f} MiB of 8-bit values" if held else ""
    if device.type == "cpu":
        return f"in memory{size}" if held else "decoded as they are needed"
    reasons = {name: reason_elsewhere(split, device) for name, split in splits.by_name().items()}
    there = [name for name, reason in reasons.items() if reason is None]
    lie = [f"{', '.join(there)} on {device.type}{size}"] if there else []
    return "; ".join([*lie, *(f"{name} on the host: {reason}" for name, reason in reasons.items() if reason)])


class UploadLoader(BatchLoader):
    """Batches like `BatchLoader`'s, to the bit: 8-bit images come from the host and become inputs on the device.

    On CUDA they come from page-locked memory on a separate stream, one batch ahead.
    """

    def __init__(self, split: Split, *, device: torch.device, **others: Any) -> None:
        super().__init__(split, **others)
        self._device = device
        self._table = device_ops.float_table(split.divisor).to(device)

    def at(self, epoch: int, requests: Iterable[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield a batch per array of indices, with the views that training uses in an epoch."""
        view = self.view(epoch)
        for sent in _sent_ahead(self._packed(epoch, requests), self._device):
            yield Batch(sent.index, map_views(partial(self._input, sent), sent.images), sent.labels, view, sent.counted)

    def _input(self, sent: _Sent, images: Tensor) -> Tensor:
        """Return images as the network reads them; what is not bytes is a text, or a user's, and never mixed."""
        if not self.split.is_bytes(images):
            return images
        values, count = device_ops.to_float(images, self._table), len(sent.index)
        if sent.mixes is not None:
            shares, box, partner = sent.mixes[:2].view(torch.float64), sent.mixes[2:6], sent.mixes[6]
            values = device_ops.mixed(values[:count], values.index_select(0, partner), shares, box)
        return device_ops.channels_first(values)

    def _packed(self, epoch: int, requests: Iterable[NDArray[np.int64]]) -> Iterator[_Sent]:
        """Yield the parts of each batch to be sent, on the host."""
        view, split, pin_memory = self.view(epoch), self.split, self._device.type == "cuda"
        if view is not None and split.mixing is not None:
            for rows, images in mixed_images(split, split.mixing, requests, view=view, pin_memory=pin_memory):
                shares = np.stack([rows.share, 1 - rows.share]).view(np.int64)
                mixes = np.concatenate([shares, rows.box.T, rows.partner[None]])
                yield _Sent(torch.from_numpy(rows.index), images, rows.labels, torch.from_numpy(mixes))
            return
        for positions, views in split.stream_images(requests, view=view, pin_memory=pin_memory):
            index = torch.from_numpy(positions)
            labels, counted = split.targets(index, views, view)
            yield _Sent(index, views, labels, None, counted)


class _Sent(NamedTuple):
    """The parts of a batch that are sent."""

    index: Tensor  # type: ignore[assignment]  # over tuple.index
    images: Inputs  # images as in `Split.stream_images`, of samples, and of partners if mixed
    labels: Tensor
    mixes: Tensor | None  # bits of two float64 shares, a box, and a partner's row, ``(7, batch)``
    counted: Tensor | None = None


def _sent_ahead(batches: Iterable[_Sent], device: torch.device) -> Iterator[_Sent]:
    """Yield batches on the device; on CUDA the next one is sent while one is used."""
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
    """Return the one stream for all copies to a device, as freed memory belongs to its stream."""
    return torch.cuda.Stream(device)


def _received(sent: _Sent, arrived: torch.cuda.Event) -> _Sent:
    """Make the current stream wait for data sent on another, whose memory is then not reused too early."""
    current = torch.cuda.current_stream(sent.index.device)
    current.wait_event(arrived)
    for tensor in (sent.index, *views_of(sent.images), sent.labels, sent.mixes, sent.counted):
        if tensor is not None:
            tensor.record_stream(current)
    return sent


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()


def _each(sent: _Sent, function: Callable[[Tensor], Tensor]) -> _Sent:
    mixes, counted = (None if tensor is None else function(tensor) for tensor in (sent.mixes, sent.counted))
    return _Sent(function(sent.index), map_views(function, sent.images), function(sent.labels), mixes, counted)
