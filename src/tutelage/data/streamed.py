"""A split whose images are decoded on demand, in worker processes if requested."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tutelage.data.datasets import Split, neighbours
from tutelage.data.shards import CopyAhead
from tutelage.data.transforms import draw_boxes, resize, vary
from tutelage.errors import InvalidValueError
from tutelage.images import (
    Fault,
    Layout,
    Reader,
    UnreadableError,
    centre,
    cut,
    decode,
    decode_box,
    frames_note,
    has_more_frames,
    opened,
    stop_on,
)
from tutelage.rng import next_unit, strong_view
from tutelage.settings.data import DataSettings
from tutelage.types import View

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class StreamSplit(Split):
    """Samples of a reader."""

    reader: Reader  # reader of a whole source
    positions: NDArray[np.int64]  # positions in the reader of this split's images, ``(len,)`` int64
    layout: Layout  # shape of every image
    settings: DataSettings  # settings of resizing, augmenting, decoding and handling corrupt images
    augmented: bool = False  # whether views are augmented
    noted: list[str] = field(default_factory=list)  # first image with several frames, in a list that the splits share
    ahead: CopyAhead | None = None  # what copies the shard that is read next

    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Tensor:
        """Return float32 ``(batch, channels, height, width)`` in [0, 1].

        Raises:
            ValueError: if an image cannot be read; it is never skipped here, as the caller relies on the length.
        """
        _, images, faults, with_frames = self._decode(index, view=view)
        self._note(with_frames)
        if faults:
            stop_on(faults[0])
        return self.to_inputs(images)

    def stream_images(
        self, requests: Iterable[NDArray[np.int64]], *, view: View | None = None, pin_memory: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Fetch batches in order, with the indices that could be read.

        Raises:
            ValueError: if an image cannot be read and ``on_corrupt`` is ``"stop"``, or none of a batch can be read.
        """
        decoded = self.pool.map(self._decode, requests, view=view, workers=self.workers, pin_memory=pin_memory)
        for index, images, faults, with_frames in decoded:
            self._note(with_frames)
            if faults and self.settings.on_corrupt == "stop":
                stop_on(faults[0])
            if faults and not len(index):
                # The number of steps is fixed, so an empty batch cannot be skipped.
                shown = ", ".join(fault.name for fault in faults[:_SHOWN])
                more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
                expected = "at least 1 readable image in every batch"
                got = f"{len(faults)} unreadable and no other: {shown}{more} ({faults[0].reason})"
                raise InvalidValueError("data.source", expected, got, "raise batch_size or remove these files")
            self.corrupt.extend(dict.fromkeys(fault.name for fault in faults if fault.name not in self.corrupt))
            yield index, images

    def _note(self, with_frames: str | None) -> None:
        if with_frames is not None and not self.noted:
            self.noted.append(with_frames)
            warnings.warn(f"data: {frames_note(with_frames)}", stacklevel=2)

    def _decode(
        self, index: NDArray[np.int64], *, view: View | None
    ) -> tuple[NDArray[np.int64], Tensor, list[Fault], str | None]:
        """Return the indices that could be read, their images, the faults of the others, and a name for `frames_note`.

        Faults are values, because an exception from a worker would arrive as a traceback.
        """
        view = view if self.augmented else None
        if self.ahead is not None and self.units is not None and self.shuffle_buffer is not None:
            shards = len(self.ahead.shards)
            read = self.units[index, 0]
            if len(read := read[read < shards]):  # Unlabelled images have units behind the shards'.
                self.ahead.begin(next_unit(view, read, shards))
        positions, interpolation = self.positions[index].tolist(), self.settings.interpolation
        boxed = view is not None and self.settings.random_resized_crop
        draws = draw_boxes(index, view=view) if view is not None and boxed else None
        height, width, channels, _ = self.layout
        images = np.empty((len(index), height, width, channels), np.uint8)
        kept: list[int] = []
        faults, with_frames = [], None
        for row, (position, encoded) in enumerate(zip(positions, self.reader.encoded(positions), strict=True)):
            try:
                with opened(encoded) as file:
                    if draws is not None and not isinstance(encoded, Image.Image):
                        pixels = decode_box(file, draws[row].box, self.layout)
                        image = resize(pixels, (height, width), interpolation=interpolation)
                    else:
                        decoded = decode(file, channels=channels)
                        if draws is None:
                            image = centre(decoded, self.layout, interpolation=interpolation)
                        else:  # Of pixels that were never a file, views keep the bits that they had from the first.
                            box = draws[row].box(*decoded.size)
                            image = cut(decoded, box, self.layout, interpolation=interpolation)
                    if with_frames is None and has_more_frames(file):
                        with_frames = self.reader.name(position)
                images[len(kept)] = image
                kept.append(row)
            except UnreadableError as error:
                faults.append(Fault(self.reader.name(position), str(error)))
        batch, readable = torch.from_numpy(images[: len(kept)]), index[kept]
        if view is not None and kept:
            batch = vary(batch, readable, view=view, settings=self.settings, transform=self.transform)
        if view is not None and isinstance(self.strong, StreamSplit):
            again, others, more, _ = self.strong._decode(readable, view=strong_view(view))
            readable, batch = neighbours(readable, batch, again, others)
            faults += more
        return readable, batch, faults, with_frames
