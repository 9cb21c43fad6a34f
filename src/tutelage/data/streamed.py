"""A split whose images are decoded as they are needed, in worker processes where asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tutelage.data.datasets import Split
from tutelage.data.transforms import PLAIN, Augmentation, boxes, to_float
from tutelage.images import UNREADABLE, Fault, Layout, Reader, centre, cut, decode, one_line, stop_on

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from tutelage.types import View

_SHOWN = 5


class Decoded(NamedTuple):
    """What a worker made of one request; faults travel as values, because an exception would arrive as a traceback.

    Attributes:
        readable: indices that could be read.
        images: of those.
        faults: the others.
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
    """Samples of a reader.

    Attributes:
        reader: of a whole source.
        positions: ``(len,)`` int64, this split's images of the reader.
        layout: the shape of every image.
        interpolation: of resizes, ``bilinear`` or ``bicubic``.
        random_resized_crop: of views.
        augmentation: of views, after that.
        workers: processes that decode; 0 decodes in this one.
        on_corrupt: ``"stop"`` or ``"skip"``.
    """

    reader: Reader
    positions: NDArray[np.int64]
    layout: Layout
    interpolation: str = "bilinear"
    random_resized_crop: bool = False
    augmentation: Augmentation = PLAIN
    workers: int = 0
    on_corrupt: Literal["stop", "skip"] = "stop"

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
        for index, images, faults in in_workers(partial(self._decode, view=view), requests, workers=self.workers):
            if faults and self.on_corrupt == "stop":
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
        positions = self.positions[index].tolist()
        images, kept, faults = [], [], []
        for row, (position, encoded) in enumerate(zip(positions, self.reader.encoded(positions), strict=True)):
            try:
                image = decode(encoded, channels=self.layout.channels)
                if view is not None and self.random_resized_crop:
                    box = boxes(index[row : row + 1], np.array([image.size]), view=view)[0]
                    images.append(cut(image, box, self.layout, interpolation=self.interpolation))
                else:
                    images.append(centre(image, self.layout, interpolation=self.interpolation))
                kept.append(row)
            except UNREADABLE as error:
                faults.append(Fault(self.reader.name(position), one_line(error)))
        readable = index[kept]
        if not images:
            shape = (0, self.layout.height, self.layout.width, self.layout.channels)
            return Decoded(readable, torch.empty(shape, dtype=torch.uint8), faults)
        batch = torch.from_numpy(np.stack(images))
        if view is not None:
            batch = self.augmentation.apply(batch, readable, view=view)
        return Decoded(readable, batch, faults)
