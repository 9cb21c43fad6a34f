"""Batches of which the network that is trained makes some anew, with the weights that it has by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tutelage.settings.fit import Precision
from tutelage.training.precision import mixed_precision
from tutelage.types import Batch, Batches


class OnPolicyBatches:
    """Batches that are changed one by one, each when it is asked for: after the step on the one before, and no earlier.

    So what changes them may call the network that is trained. Nothing that reads ahead may be put around them.

    Args:
        batches: training set.
        change: function that returns what is trained on in place of a batch, such as `models.CompletionSampler`.
        device: device of the network.
        precision: precision in which the network is called, as it is in the steps.
    """

    def __init__(
        self, batches: Batches, change: Callable[[Batch], Batch], *, device: torch.device, precision: Precision = "fp32"
    ) -> None:
        self._batches, self._change, self.samples = batches, change, batches.samples
        self._device, self._precision = device, precision

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        for batch in self._batches.epoch(epoch, start=start, rank=rank, world=world):
            with mixed_precision(self._device, self._precision):
                changed = self._change(batch)
            yield changed
