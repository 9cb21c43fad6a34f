"""A split whose images are decoded as they are needed, in worker processes where asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tutelage.data.datasets import Split
from tutelage.data.transforms import boxes, to_float, vary
from tutelage.images import UNREADABLE, Fault, Layout, Reader, centre, cut, decode, one_line, stop_on
from tutelage.settings.data import DataSettings
from tutelage.types import View

_SHOWN = 5


class Decoded(NamedTuple):
    """The indices of one request that could be read, their images, and the faults of the others.

    Faults travel from a worker as values, because an exception would arrive as a traceback.
    """

    readable: NDArray[np.int64]
    images: Tensor
    faults: list[Fault]


class _Requests(Dataset[Decoded]):
    """A function of a request, as the data set that `DataLoader` wants: a request is what its sampler yields."""

    def __init__(self, function: Callable[[NDArray[np.int64]], Decoded]) -> None:
        self.function = function

    def __getitem__(self, request: NDArray[np.int64]) -> Decoded:
        return self.function(request)


def _unchanged(decoded: Any) -> Any:
    return decoded


def in_workers(
    function: Callable[[NDArray[np.int64]], Decoded], requests: Iterable[NDArray[np.int64]], *, workers: int
) -> Iterator[Decoded]:
    """Map a function over requests, in order, in this process or in others."""
    if workers == 0:
        yield from map(function, requests)
        return
    # Its own generator: the default one would be advanced by each loader, and with it dropout after a resume.
    yield from DataLoader(
        _Requests(function),
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),
    )


@dataclass(frozen=True, kw_only=True)
class StreamSplit(Split):
    """Samples of a reader."""

    reader: Reader  # of a whole source
    positions: NDArray[np.int64]  # ``(len,)`` int64, this split's images of the reader
    layout: Layout  # the shape of every image
    settings: DataSettings  # how images are resized, augmented and decoded, and what becomes of corrupt ones
    augmented: bool = False  # whether views are

    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Tensor:
        """Return float32 ``(batch, channels, height, width)`` in [0, 1].

        Raises:
            ValueError: an image cannot be read; here always, since a result of another length would be a trap.
        """
        decoded = self._decode(index, view)
        for fault in decoded.faults:
            stop_on(fault)
        return to_float(decoded.images, divisor=255.0)

    def stream(
        self, requests: Iterable[NDArray[np.int64]], *, view: View | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Fetch batches in order; each comes with the indices that could be read.

        Raises:
            ValueError: an image cannot be read and ``on_corrupt`` is ``"stop"``, or none of a batch can be read.
        """
        work = partial(self._decode, view=view)
        for index, images, faults in in_workers(work, requests, workers=self.settings.workers):
            if faults and self.settings.on_corrupt == "stop":
                stop_on(faults[0])
            if faults and not len(index):
                # The number of steps is fixed, so an empty batch cannot be left out.
                shown = ", ".join(fault.name for fault in faults[:_SHOWN])
                more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
                raise ValueError(
                    f"data.source: expected at least 1 readable image in every batch, got {len(faults)} unreadable "
                    f"and no other: {shown}{more} ({faults[0].reason}); raise batch_size or remove these files"
                )
            self.corrupt.extend(dict.fromkeys(fault.name for fault in faults if fault.name not in self.corrupt))
            yield index, to_float(images, divisor=255.0)

    def _decode(self, index: NDArray[np.int64], view: View | None) -> Decoded:
        positions, interpolation = self.positions[index].tolist(), self.settings.interpolation
        images, kept, faults = [], [], []
        for row, (position, encoded) in enumerate(zip(positions, self.reader.encoded(positions), strict=True)):
            try:
                image = decode(encoded, channels=self.layout.channels)
                if view is not None and self.augmented and self.settings.random_resized_crop:
                    box = boxes(index[row : row + 1], np.array([image.size]), view=view)[0]
                    images.append(cut(image, box, self.layout, interpolation=interpolation))
                else:
                    images.append(centre(image, self.layout, interpolation=interpolation))
                kept.append(row)
            except UNREADABLE as error:
                faults.append(Fault(self.reader.name(position), one_line(error)))
        readable = index[kept]
        if not images:
            shape = (0, self.layout.height, self.layout.width, self.layout.channels)
            return Decoded(readable, torch.empty(shape, dtype=torch.uint8), faults)
        batch = torch.from_numpy(np.stack(images))
        if view is not None and self.augmented:
            batch = vary(batch, readable, view=view, settings=self.settings)
        return Decoded(readable, batch, faults)
