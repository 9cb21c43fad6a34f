"""Batches of a data set whose pixels lie on the device, made there from an epoch's random draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tutelage.data import device_ops
from tutelage.data.datasets import MemorySplit
from tutelage.data.erasing import erasing_noise, rectangles
from tutelage.data.loader import BatchLoader
from tutelage.data.masks import UNCOUNTED, MaskSplit, targets_of
from tutelage.data.mixup import draw_mix
from tutelage.data.transforms import crops, flips
from tutelage.types import UNLABELLED, Batch, View

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Function that turns work on a device's tensors into its replay; it may run the work meanwhile."""

_pixels: WeakIdKeyDictionary = WeakIdKeyDictionary()


def pixels_on(pixels: Tensor, device: torch.device) -> Tensor:
    """Return pixels on a device, where they stay as long as the given ones: splits and loaders share them."""
    copies = _pixels.setdefault(pixels, {})
    if device not in copies:
        copies[device] = pixels.to(device)
    return copies[device]


def lies_on(pixels: Tensor, device: torch.device) -> bool:
    """Return whether `pixels_on` was called for these pixels on this device."""
    return device in _pixels.get(pixels, {})


class Draws(NamedTuple):
    """The random draws for an epoch's batches of one size; on the host."""

    samples: NDArray[np.int64]  # samples, then their partners, by `_Form.fields`: ``(steps, fields, rows)``
    mixes: NDArray[np.int64]  # bits of two float64 shares, and a box: ``(steps, 6, batch)`` or ``(0, 6, batch)``
    noise: NDArray[np.uint8]  # noise of erased rectangles, ``(pixels, channels)``


class ResidentLoader(BatchLoader):
    """Batches like `BatchLoader`'s, to the bit, made on a device from draws on the host for a whole epoch.

    The tensors of a batch are the same from step to step, and the next step overwrites them; only one epoch can be
    iterated at a time.

    Args:
        split: split without RandAugment and `Split.transform`, which have no form on a device.
        device: device where the pixels lie and batches are made.
        capture: function that captures the making of a batch; without it each operation is launched separately.
        others: arguments of `BatchLoader`.
    """

    split: MemorySplit

    def __init__(
        self, split: MemorySplit, *, device: torch.device, capture: Capture | None = None, **others: Any
    ) -> None:
        super().__init__(split, **others)
        self._form = _Form(split, train=self.train)
        self._pixels = pixels_on(split.pixels, device)
        self._table = device_ops.float_table(split.divisor).to(device)
        self._capture = capture or (lambda function: function)
        self._batches: dict[int, _FixedBatch] = {}
        # An epoch is drawn during the steps of the previous one.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="draws")
        self._next: tuple[tuple[int, ...], Future[tuple[list[int], dict[int, Draws]]]] | None = None

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield this process's share of the batches of one epoch, from step ``start`` on."""
        self.check_rank(rank, world)
        wanted = (epoch + self.first_epoch, start, rank, world)
        ready, self._next = self._next, None
        sizes, draws = ready[1].result() if ready is not None and ready[0] == wanted else self._draw(*wanted)
        if self.train:
            then = (wanted[0] + 1, 0, rank, world)
            self._next = (then, self._executor.submit(self._draw, *then))
        yield from self._make(sizes, draws, self.view(wanted[0]))

    def at(self, epoch: int, requests: Iterable[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield a batch per array of indices, with the views that training uses in an epoch."""
        view = self.view(epoch)
        yield from self._make(*self._form.draw(requests, view), view)

    def _draw(self, epoch: int, start: int, rank: int, world: int) -> tuple[list[int], dict[int, Draws]]:
        requests = self._requests(epoch, start=start, rank=rank, world=world)
        return self._form.draw(requests, self.view(epoch))

    def _make(self, sizes: Sequence[int], draws: dict[int, Draws], view: View | None) -> Iterator[Batch]:
        for size, drawn in draws.items():
            if size not in self._batches:
                self._batches[size] = _FixedBatch(self._form, self._pixels, self._table, size, self._capture)
            self._batches[size].begin(drawn)
        for size in sizes:
            yield self._batches[size].next()._replace(view=view)


class _Form:
    """The composition of a split's batches."""

    def __init__(self, split: MemorySplit, *, train: bool) -> None:
        self.split = split
        self.mixing = split.mixing if train else None
        settings = split.settings if train else None
        self.padding, self.flip = (settings.crop_padding, settings.flip) if settings else (0, False)
        self.erasing = settings.random_erasing if settings else 0.0
        self.fields = ["index", "label", "image"]
        self.fields += ["y", "x", "dx"] if self.padding or self.flip else []
        self.fields += ["top", "bottom", "left", "right", "first"] if self.erasing else []
        masked = split if isinstance(split, MaskSplit) else None
        self.masks, self.all_counted = None if masked is None else masked.masks, masked is None or masked.all_counted
        self.soft = self.mixing is not None and bool((split.labels != UNLABELLED).any())

    def draw(self, requests: Iterable[NDArray[np.int64]], view: View | None) -> tuple[list[int], dict[int, Draws]]:
        """Return the size of each batch in turn, and the draws for batches of each size."""
        by_size: dict[int, list[NDArray[np.int64]]] = {}
        sizes = []
        for index in requests:
            sizes.append(len(index))
            by_size.setdefault(len(index), []).append(index)
        return sizes, {size: self._draw(np.stack(indices), view) for size, indices in by_size.items()}

    def _draw(self, index: NDArray[np.int64], view: View | None) -> Draws:
        """Draw ``(steps, batch)`` samples."""
        split, (steps, batch), samples = self.split, index.shape, index
        _, height, width, channels = split.pixels.shape
        mixes, noise = np.empty((0, 6, batch), np.int64), np.empty((0, channels), np.uint8)
        if self.mixing is not None and view is not None:
            mix = draw_mix(index.reshape(-1), mixing=self.mixing, samples=len(split), view=view)
            shares = np.stack([mix.share, 1 - mix.share])
            mixes = _by_step(np.concatenate([shares.view(np.int64), mix.box.T]), steps)
            samples = np.concatenate([index, mix.partner.reshape(index.shape)], axis=1)
        flat = samples.reshape(-1)
        labels = split.known.long() - 1 if isinstance(split, MaskSplit) else split.labels  # 0, or -1 without a mask
        columns = [flat, labels.numpy()[flat], split.positions.numpy()[flat]]
        if view is not None and (self.padding or self.flip):
            flipped = flips(flat, view=view) if self.flip else np.zeros(len(flat), bool)
            top, left = crops(flat, view=view, padding=self.padding)
            columns += [
                top - self.padding,
                left - self.padding + np.where(flipped, width - 1, 0),
                np.where(flipped, -1, 1),
            ]
        if view is not None and self.erasing:
            drawn = rectangles(flat, view=view, probability=self.erasing, height=height, width=width)
            noise = erasing_noise(flat, drawn, view=view, channels=channels, white=split.divisor)
            noise = noise.reshape(-1, channels)
            areas = (drawn[:, 1] - drawn[:, 0]) * (drawn[:, 3] - drawn[:, 2])
            columns += [*drawn.T, np.cumsum(areas) - areas]
        return Draws(_by_step(np.stack(columns), steps), mixes, noise)


def _by_step(columns: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Return ``(columns, steps * rows)`` as ``(steps, columns, rows)``."""
    return np.ascontiguousarray(columns.reshape(len(columns), steps, -1).swapaxes(0, 1))


class _FixedBatch:
    """Batches of one size, in tensors that keep their memory, as do their inputs."""

    def __init__(self, form: _Form, pixels: Tensor, table: Tensor, size: int, capture: Capture) -> None:
        self._form, self._pixels, self._table, self._capture = form, pixels, table, capture
        device, (_, height, width, channels) = pixels.device, pixels.shape
        inputs = device_ops.channels_first(torch.zeros(size, height, width, channels, device=device))
        index, labels = torch.zeros(2, size, dtype=torch.int64, device=device)
        if form.soft and form.mixing is not None:
            labels = torch.zeros(size, form.mixing.classes, device=device)
        self._masks, counted = None, None
        if form.masks is not None:
            self._masks = pixels_on(form.masks, device)[..., None]
            labels = torch.zeros(size, height, width, dtype=torch.int64, device=device)
            counted = None if form.all_counted else labels == 0
        self._inputs, self._batch = inputs, Batch(index, inputs, labels, counted=counted)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._draws: list[Tensor] = []
        self._captured: Callable[[], None] = self._assemble

    def begin(self, draws: Draws) -> None:
        """Send draws; the next step is the first."""
        values = [torch.from_numpy(array) for array in (draws.samples, draws.mixes, draws.noise)]
        outgrown = not self._draws or any(len(new) > len(room) for new, room in zip(values, self._draws, strict=True))
        if outgrown:
            # The amount of noise differs from epoch to epoch.
            rooms = (len(draws.samples), len(draws.mixes), len(draws.noise) * 5 // 4 + 1)
            self._draws = [
                torch.zeros(room, *new.shape[1:], dtype=new.dtype, device=self._step.device)
                for room, new in zip(rooms, values, strict=True)
            ]
        for new, room in zip(values, self._draws, strict=True):
            if len(new):
                new = new.pin_memory() if room.device.type == "cuda" else new
                room[: len(new)].copy_(new, non_blocking=True)
        if outgrown:
            self._captured = self._capture(self._assemble)
        self._step.zero_()  # also after a capture, which may take steps

    def next(self) -> Batch:
        """Make the next step's batch."""
        self._captured()
        return self._batch

    def _assemble(self) -> None:
        """Make the batch of a step from tensors on the device alone, and count the step."""
        samples, mixes, noise = self._draws
        form, inputs, (index, _, labels, *_) = self._form, self._inputs, self._batch
        rows = samples.index_select(0, self._step)[0]
        field = dict(zip(form.fields, rows, strict=True))
        if "y" in field:
            images = device_ops.shifted(self._pixels, field["image"], field["y"], field["x"], field["dx"])
        else:
            images = self._pixels.index_select(0, field["image"])
        if "first" in field:
            at = form.fields.index("top")
            images = device_ops.erased(images, rows[at : at + 4], field["first"], noise)
        values, size = device_ops.to_float(images, self._table), len(index)
        index.copy_(field["index"][:size])
        if form.mixing is None:
            inputs.copy_(device_ops.channels_first(values))
            if self._masks is None:
                labels.copy_(field["label"])
            else:
                self._label_pixels(self._masks, field)
        else:
            mix = mixes.index_select(0, self._step)[0]
            shares, box = mix[:2].view(torch.float64), mix[2:]
            inputs.copy_(device_ops.channels_first(device_ops.mixed(values[:size], values[size:], shares, box)))
            own, partners = field["label"][:size], field["label"][size:]
            labels.copy_(device_ops.soft_labels(own, partners, shares, form.mixing.classes) if form.soft else own)
        self._step.add_(1).remainder_(len(samples))

    def _label_pixels(self, all_masks: Tensor, field: Mapping[str, Tensor]) -> None:
        """Make the labels of a step's pixels, and which of them count."""
        known = field["label"] == 0
        if "y" in field:
            masks = device_ops.shifted(all_masks, field["image"], field["y"], field["x"], field["dx"], border=UNCOUNTED)
        else:
            masks = all_masks.index_select(0, field["image"])
        targets, counted = targets_of(masks[..., 0], known)
        self._batch.labels.copy_(targets)
        if self._batch.counted is not None:
            self._batch.counted.copy_(counted)
