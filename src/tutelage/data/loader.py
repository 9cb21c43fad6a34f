"""A split as a seeded, replayable stream of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.datasets import Split
from tutelage.data.mixup import mixed_batches
from tutelage.errors import InvalidValueError
from tutelage.settings.fit import steps_per_epoch
from tutelage.types import Batch, View


class BatchLoader:
    """Batches of one split, on the CPU: implements `types.Batches`.

    A step is a global batch of ``batch_size`` samples, the last of an epoch possibly smaller; each of ``world``
    processes takes every ``world``-th sample. Training batches are in the order of `Split.order`, and augmented by
    (data seed, epoch, sample), with soft labels if the split mixes samples; others come in order, without augmentation.
    A last batch with fewer samples than processes is left out in training; in evaluation it joins the previous batch.
    Inputs held in memory are strided as channels-last. Of samples with a strong view a training batch has two rows
    each, neighbours of one index and label.

    Attributes:
        split: split with the samples.
        batch_size: batch size of all processes together.
        data_seed: seed of order and views.
        train: whether to shuffle and augment.
        first_epoch: number of epochs of earlier stages, whose order and views are not repeated.
        samples: number of rows of an epoch's batches: of samples, times the views that training has of each.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        data_seed: int = 0,
        train: bool,
        first_epoch: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1:
            raise InvalidValueError("batch_size", "at least 1 sample", batch_size, "type a number such as 64")
        if not len(split):
            raise InvalidValueError("split", "at least 1 sample", "0", "lower data.validation or choose other data")
        self.split = split
        self.batch_size = batch_size
        self.data_seed = data_seed
        self.train = train
        self.first_epoch = first_epoch
        self.world = world
        self._drawn = split.per_epoch if train else len(split)
        self.samples = self._drawn * (split.views_per_sample if train else 1)

    @property
    def corrupt(self) -> list[str]:
        """Names of the images that were skipped so far, each once."""
        return self.split.corrupt

    def __len__(self) -> int:
        return self.steps(world=self.world)

    def steps(self, *, world: int = 1) -> int:
        """Return the number of steps per epoch with ``world`` processes.

        Raises:
            ValueError: if there are fewer samples, or a smaller batch, than processes.
        """
        return steps_per_epoch(self._drawn, self.batch_size, world=world)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield this process's share of the batches of one epoch, from step ``start`` on."""
        self.check_rank(rank, world)
        epoch += self.first_epoch
        yield from self.at(epoch, self._requests(epoch, start=start, rank=rank, world=world))

    def dealt(self, *, rank: int, world: int) -> Iterator[Batch]:
        """Yield every ``world``-th whole batch of the first epoch, from number ``rank`` on."""
        self.check_rank(rank, world)
        requests = self._requests(self.first_epoch, start=0, rank=0, world=1)
        yield from self.at(self.first_epoch, islice(requests, rank, None, world))

    def at(self, epoch: int, requests: Iterable[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield a batch per array of indices, with the views that training uses in an epoch."""
        view = self.view(epoch)
        if view is not None and self.split.mixing is not None:
            yield from mixed_batches(self.split, self.split.mixing, requests, view=view)
            return
        for positions, inputs in self.split.stream(requests, view=view):
            index = torch.from_numpy(positions)
            labels, counted = self.split.targets(index, inputs, view)
            yield Batch(index, inputs, labels, view, counted)

    def view(self, epoch: int) -> View | None:
        """Return the view of an epoch, counted from the first stage's first; ``None`` without augmentation."""
        return View(self.data_seed, epoch) if self.train else None

    @staticmethod
    def check_rank(rank: int, world: int) -> None:
        """Refuse a process number that is out of range."""
        if not 0 <= rank < world:
            raise InvalidValueError("rank", f"a number in [0, {world})", rank, "pass the process's own")

    def _requests(self, epoch: int, *, start: int, rank: int, world: int) -> Iterator[NDArray[np.int64]]:
        order = np.arange(self._drawn)
        if self.train:
            order = self.split.order(self.data_seed, epoch, batch_size=self.batch_size)
        steps = self.steps(world=world)
        for step in range(start, steps):
            end = self._drawn if step == steps - 1 and not self.train else (step + 1) * self.batch_size
            yield order[step * self.batch_size : end][rank::world]


def split_evenly(indices: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    """Split indices into batches of nearly equal size, of at most ``most`` samples."""
    return np.array_split(indices, steps_per_epoch(len(indices), most))
