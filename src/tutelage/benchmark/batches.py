"""Training data for timed steps: random images, the first batches of an epoch, cached teacher logits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from tutelage import data, models
from tutelage.benchmark import timing
from tutelage.data import DataSettings
from tutelage.data.build import Description, Pixels, from_pixels
from tutelage.models import Classifier
from tutelage.modules import FrozenTeacher
from tutelage.settings.fit import Precision
from tutelage.training.distributed import to_device
from tutelage.training.precision import mixed_precision
from tutelage.types import Batch, Outputs, Teacher

CLASSES = 100


def random_images(count: int = 10_000) -> data.Splits:
    """Return random images of CIFAR-100's shape with its augmentation: their content does not affect a step's cost."""
    numbers = np.random.default_rng(0)
    train, test = (
        Pixels(numbers.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), numbers.integers(0, CLASSES, n))
        for n in (count, CLASSES)
    )
    names = [f"class {k}" for k in range(CLASSES)]
    views = DataSettings(crop_padding=4, flip=True)
    return from_pixels(train, test, Description(class_names=names, settings=views, source="random"))


def network(name: str, device: torch.device, seed: int = 0) -> Classifier:
    """Return a network for such images with random weights, which cost the same as trained ones."""
    return models.create(f"cifar:{name}", classes=CLASSES, channels=3, image_size=(32, 32), seed=seed).to(device)


def cached_logits(device: torch.device) -> Teacher:
    """Return a teacher that answers from memory, as recorded outputs do."""
    logits = 3 * torch.randn(50_000, CLASSES, generator=torch.Generator().manual_seed(0)).half().to(device)
    return lambda batch: Outputs(logits[batch.index].float())


@torch.no_grad()
def forward(teacher: FrozenTeacher, batches: Iterable[Batch], device: torch.device, *, precision: Precision) -> None:
    """Move each batch and run the teacher on it, channels last."""
    for batch in batches:
        moved = to_device(batch, device, channels_last=True)
        with mixed_precision(device, precision):
            teacher(moved)


class FirstBatches:
    """The first batches of an epoch: some to warm up, and ``steps`` that are timed, in ``seconds`` per step.

    ``whole`` reports the length of the whole epoch, so that a fit chooses what to compile as for a whole schedule; with
    ``premade`` the batches are made beforehand, else each one when needed.
    """

    def __init__(
        self, batches: data.BatchLoader, steps: int, *, whole: bool = False, premade: bool = False, warm_up: int = 1
    ) -> None:
        self._batches, self._steps, self._warm_up, self.seconds = batches, steps, warm_up, 0.0
        self._length = len(batches) if whole else warm_up + steps
        self.samples = batches.samples if whole else (warm_up + steps) * batches.batch_size
        self._premade = list(itertools.islice(batches.epoch(0), warm_up + steps)) if premade else None

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield the batches."""
        stream = iter(self._premade or self._batches.epoch(epoch, start=start, rank=rank, world=world))
        for _ in range(self._warm_up):
            yield next(stream)
        timing.synchronize()
        began = time.perf_counter()
        for _ in range(self._steps):
            yield next(stream)
        timing.synchronize()
        self.seconds = (time.perf_counter() - began) / self._steps
