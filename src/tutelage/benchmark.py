"""Ratios of this machine: training and losses here against the published procedure, timed in turn in one process.

The reference is what papers of this field train with: float32, eager, channels first, a worker-fed loader with
transforms of one image at a time, the loss as arXiv:2402.11148 prints it in Algorithm 1, the teacher's forward pass and
``.item()`` in every step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage import data, models, objectives
from tutelage.contracts import Batch, Outputs, Teacher
from tutelage.data import DataSettings
from tutelage.data.assemble import Pixels, from_pixels
from tutelage.engine import FitSettings, accelerator_on, fit
from tutelage.lesson import FrozenTeacher, Lesson

PAIRS = (
    ("resnet56", "resnet20"),
    ("wrn_40_2", "wrn_16_2"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
)
"""Teachers and students of the ratios."""
BATCH, CLASSES = 64, 100
GAMMA, BETA = 0.25, 4.0


class Row(NamedTuple):
    """One pair on one machine.

    Attributes:
        pair: teacher and student.
        reference: seconds a step of the published procedure.
        live: of ours with the live teacher, choices by measurement included.
        recorded: of ours with recorded outputs.
    """

    pair: str
    reference: float
    live: float
    recorded: float


def steps(source: Any = None, *, device: str = "auto", n: int = 24, rounds: int = 3) -> Iterator[Row]:
    """Time steps of the published procedure and of ours, in turn.

    Args:
        source: settings of data with 32x32 images of 100 classes; none for random images, which cost the same.
        device: ``auto``, ``cpu`` or ``cuda``.
        n: steps that are timed at a time.
        rounds: how often; the median of the rounds is taken.
    """
    where = accelerator_on(device).device
    splits = _random() if source is None else data.open_data(source)
    for teacher_name, student_name in PAIRS:

        def new(name: str) -> nn.Module:
            return models.create(f"cifar:{name}", classes=CLASSES, seed=0).to(where)

        runs = [
            _Reference(new(teacher_name), new(student_name), splits, where).seconds,
            _Ours(FrozenTeacher(new(teacher_name)), new(student_name), splits, device, n).seconds,
            _Ours(_Said(where), new(student_name), splits, device, n).seconds,
        ]
        taken: list[list[float]] = [[], [], []]
        for _ in range(rounds):
            for run, seconds in zip(runs, taken, strict=True):
                seconds.append(run(n))
        yield Row(f"{teacher_name}/{student_name}", *(statistics.median(seconds) for seconds in taken))


def _random() -> data.Splits:
    """Random images of CIFAR-100's shape: what a step costs does not depend on what they show."""
    numbers = np.random.default_rng(0)

    def some(count: int) -> Pixels:
        return Pixels(numbers.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), numbers.integers(0, CLASSES, count))

    names, settings = [f"class {k}" for k in range(CLASSES)], DataSettings(crop_padding=4, flip=True)
    return from_pixels(some(10_000), some(CLASSES), class_names=names, settings=settings, source="random")


class _Said:
    """A teacher that answers from memory, as recorded outputs do."""

    def __init__(self, device: torch.device) -> None:
        self._logits = 3 * torch.randn(50_000, CLASSES, generator=torch.Generator().manual_seed(0)).half().to(device)

    def __call__(self, batch: Batch) -> Outputs:
        return Outputs(self._logits[batch.index].float())


class _Ours:
    """Our loop; what it compiles and measures in its first step does not count, as it is done once."""

    def __init__(self, teacher: Teacher, student: nn.Module, splits: data.Splits, device: str, n: int) -> None:
        lesson = Lesson(student, objectives.wttm(gamma=GAMMA, beta=BETA))
        self._batches = _Some(data.SplitBatches(splits.train, batch_size=BATCH, train=True), n)
        settings = FitSettings(epochs=240, precision="bf16")
        self._fitted = fit(lesson, teacher, self._batches, settings, accelerator=accelerator_on(device))

    def seconds(self, n: int) -> float:
        """Time n steps after one that warms up."""
        next(self._fitted)
        return self._batches.seconds


class _Some:
    """Some batches of an epoch, timed after the first; of as many as a whole schedule has, so that choices repay."""

    def __init__(self, batches: data.SplitBatches, n: int) -> None:
        self._batches, self._n, self.samples, self.seconds = batches, n, batches.samples, 0.0

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        stream = self._batches.epoch(epoch, start=start, rank=rank, world=world)
        began = time.perf_counter()
        for i in range(1 + self._n):
            if i == 1:
                _wait()
                began = time.perf_counter()
            yield next(stream)
        _wait()
        self.seconds = (time.perf_counter() - began) / self._n


class _Reference:
    """The published procedure."""

    def __init__(self, teacher: nn.Module, student: nn.Module, splits: data.Splits, device: torch.device) -> None:
        self._teacher, self._student, self._device = teacher.eval(), student.train(), device
        self._optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        whole = splits.train.fetch(np.arange(min(len(splits.train), 10_000)))
        self._images = (whole * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = splits.train.labels[: len(whole)]

    def seconds(self, n: int) -> float:
        """Time n steps after the first two, which start the loader's workers."""
        loader = torch.utils.data.DataLoader(
            cast(Any, _Images(self._images, self._labels)), batch_size=BATCH, shuffle=True, num_workers=2
        )
        began = 0.0
        stream = iter(loader)
        for i in range(2 + n):
            if i == 2:
                _wait()
                began = time.perf_counter()
            images, labels = (tensor.to(self._device) for tensor in next(stream))
            with torch.no_grad():
                v = self._teacher(images)
            z = self._student(images)
            cross_entropy, wttm = algorithm1(z, v, labels, gamma=GAMMA)
            loss = cross_entropy.mean() + BETA * wttm.mean()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            loss.item()
        _wait()
        seconds = (time.perf_counter() - began) / n
        del stream
        return seconds


def algorithm1(z: Tensor, v: Tensor, labels: Tensor, *, gamma: float) -> tuple[Tensor, Tensor]:
    """Return each sample's cross-entropy and WTTM as arXiv:2402.11148 prints them: powers of probabilities."""
    with torch.no_grad():
        powers = F.softmax(v, dim=-1) ** gamma
        sums = powers.sum(dim=-1, keepdim=True)
        transformed = powers / sums
    matching = F.kl_div(F.log_softmax(z, dim=-1), transformed, reduction="none").sum(dim=-1)
    return F.cross_entropy(z, labels, reduction="none"), sums[:, 0] * matching


class _Images:
    """Images in memory, one at a time through PIL and torchvision's transforms."""

    def __init__(self, images: np.ndarray, labels: Tensor) -> None:
        from torchvision import transforms

        self._images, self._labels = images, labels
        self._transform: Callable[[Any], Tensor] = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        return self._transform(Image.fromarray(self._images[place])), self._labels[place]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratios(rows: list[Row]) -> dict[str, float]:
    """Return geometric means over the pairs: how many times faster than the reference."""
    return {
        "live": statistics.geometric_mean(row.reference / row.live for row in rows),
        "recorded": statistics.geometric_mean(row.reference / row.recorded for row in rows),
    }


def line(row: Row) -> str:
    """Show one pair."""
    live, recorded = row.reference / row.live, row.reference / row.recorded
    return (
        f"{row.pair:<22} reference {row.reference * 1e3:6.1f}  live {row.live * 1e3:6.1f} ({live:.2f}x)  "
        f"recorded {row.recorded * 1e3:6.1f} ({recorded:.2f}x)"
    )
