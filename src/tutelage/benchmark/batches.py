"""What is trained on while steps are timed: random images, the first batches of an epoch, cached teacher logits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch

from tutelage import data, models
from tutelage.benchmark import timing
from tutelage.data import DataSettings
from tutelage.data.build import Description, Pixels, from_pixels
from tutelage.models import Classifier
from tutelage.types import Batch, Outputs

CLASSES = 100


def random_images(count: int = 10_000) -> data.Splits:
    """Return random images of CIFAR-100's shape with its augmentation: their content does not change a step's cost."""
    numbers = np.random.default_rng(0)
    train, test = (
        Pixels(numbers.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), numbers.integers(0, CLASSES, n))
        for n in (count, CLASSES)
    )
    names = [f"class {k}" for k in range(CLASSES)]
    views = DataSettings(crop_padding=4, flip=True)
    return from_pixels(train, test, Description(class_names=names, settings=views, source="random"))


def network(name: str, device: torch.device, seed: int = 0) -> Classifier:
    """Return a network for such images with random weights, which cost the same."""
    return models.create(f"cifar:{name}", classes=CLASSES, channels=3, image_size=(32, 32), seed=seed).to(device)


class CachedLogits:
    """A teacher that answers from memory, as recorded outputs do."""

    def __init__(self, device: torch.device) -> None:
        self._logits = 3 * torch.randn(50_000, CLASSES, generator=torch.Generator().manual_seed(0)).half().to(device)

    def __call__(self, batch: Batch) -> Outputs:
        """Return the logits of a batch."""
        return Outputs(self._logits[batch.index].float())


class FirstBatches:
    """The first batches of an epoch: one to warm up, and ``steps`` that are timed.

    Args:
        batches: of the epochs.
        steps: that are timed.
        whole: report the length of the whole epoch, so that a fit chooses what it compiles as for a whole schedule.
        premade: make the batches before; else each is made when it is asked for.

    Attributes:
        samples: of the epoch as reported to a fit.
        seconds: per timed step.
    """

    def __init__(self, batches: data.BatchLoader, steps: int, *, whole: bool = False, premade: bool = False) -> None:
        self._batches, self._steps, self.seconds = batches, steps, 0.0
        self._length = len(batches) if whole else 1 + steps
        self.samples = batches.samples if whole else (1 + steps) * batches.batch_size
        self._premade = list(itertools.islice(batches.epoch(0), 1 + steps)) if premade else None

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield them."""
        stream = iter(self._premade or self._batches.epoch(epoch, start=start, rank=rank, world=world))
        yield next(stream)
        timing.synchronize()
        began = time.perf_counter()
        for _ in range(self._steps):
            yield next(stream)
        timing.synchronize()
        self.seconds = (time.perf_counter() - began) / self._steps
