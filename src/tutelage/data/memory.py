"""A split whose pixels lie in memory as one 8-bit tensor; batches are augmented as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from tutelage.data.transforms import PLAIN, Augmentation, to_float

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from tutelage.data.datasets import View
    from tutelage.data.mixup import Mixing


@dataclass(frozen=True, kw_only=True)
class MemorySplit:
    """Samples of a tensor that several splits may share.

    Attributes:
        pixels: ``(all, height, width, channels)`` uint8, CPU.
        positions: ``(len,)`` int64, this split's rows of ``pixels``.
        labels: ``(len,)`` int64, -100 where unlabelled.
        divisor: the value of white.
        augmentation: of views.
        mixing: of samples in training batches, if any.
        corrupt: images that were left out when the tensor was made.
    """

    pixels: Tensor
    positions: Tensor
    labels: Tensor
    divisor: float = 255.0
    augmentation: Augmentation = PLAIN
    mixing: Mixing | None = None
    corrupt: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.positions)

    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Tensor:
        """Return float32 ``(batch, channels, height, width)`` in [0, 1], strided as channels-last."""
        images = self.pixels[self.positions[torch.from_numpy(index)]]
        if view is not None:
            images = self.augmentation.apply(images, index, view=view, white=self.divisor)
        return to_float(images, divisor=self.divisor)

    def stream(
        self, requests: Iterable[NDArray[np.int64]], *, view: View | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Fetch batches in order; all samples can be read."""
        for index in requests:
            yield index, self.fetch(index, view=view)
