"""What is trained on while steps are timed: random images, some batches of an epoch, answers from memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch

from tutelage import data, models
from tutelage.benchmark import turns
from tutelage.data import DataSettings
from tutelage.data.build import Pixels, from_pixels
from tutelage.models import Classifier
from tutelage.types import Batch, Outputs

CLASSES = 100
VIEWS = DataSettings(crop_padding=4, flip=True)
"""The augmentation of CIFAR."""


def random_images(count: int = 10_000) -> data.Splits:
    """Return random images of CIFAR-100's shape: what a step costs does not depend on what they show."""
    numbers = np.random.default_rng(0)

    def some(count: int) -> Pixels:
        return Pixels(numbers.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), numbers.integers(0, CLASSES, count))

    names = [f"class {k}" for k in range(CLASSES)]
    return from_pixels(some(count), some(CLASSES), class_names=names, settings=VIEWS, source="random")


def network(name: str, device: torch.device, seed: int = 0) -> Classifier:
    """Return a network for such images with random weights, which cost the same."""
    made = models.create(f"cifar:{name}", classes=CLASSES, channels=3, image_size=(32, 32), seed=seed)
    return made.to(device)


class Remembered:
    """A teacher that answers from memory, as recorded outputs do."""

    def __init__(self, device: torch.device) -> None:
        self._logits = 3 * torch.randn(50_000, CLASSES, generator=torch.Generator().manual_seed(0)).half().to(device)

    def __call__(self, batch: Batch) -> Outputs:
        """Return the answers to a batch."""
        return Outputs(self._logits[batch.index].float())


class Some:
    """The first steps of an epoch: one to warm up, and those that are timed, until the last of them has been taken.

    Attributes:
        samples: of the epoch that a fit is told of.
        seconds: that a timed step took.

    Args:
        batches: of the epochs.
        steps: that are timed.
        whole: tell a fit of a whole epoch, so that it chooses what it compiles as for a whole schedule.
        made: make the batches before; else each is made when it is asked for.
    """

    def __init__(self, batches: data.BatchLoader, steps: int, *, whole: bool = False, made: bool = False) -> None:
        self._batches, self._steps, self.seconds = batches, steps, 0.0
        self._length = len(batches) if whole else 1 + steps
        self.samples = batches.samples if whole else (1 + steps) * batches.batch_size
        self._made = list(itertools.islice(batches.epoch(0), 1 + steps)) if made else None

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield them."""
        stream = iter(self._made or self._batches.epoch(epoch, start=start, rank=rank, world=world))
        began = time.perf_counter()
        for i in range(1 + self._steps):
            if i == 1:
                turns.wait()
                began = time.perf_counter()
            yield next(stream)
        turns.wait()
        self.seconds = (time.perf_counter() - began) / self._steps
