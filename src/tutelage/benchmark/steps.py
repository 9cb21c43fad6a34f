"""Training here against the published procedure, timed in turn in one process.

The reference is the usual procedure of papers in this field: float32, eager, channels first, a worker-fed loader with
transforms of one image at a time, the loss as printed in Algorithm 1 of arXiv:2402.11148, the teacher's forward pass
and ``.item()`` in every step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tutelage import data, objectives
from tutelage.benchmark import timing
from tutelage.benchmark.batches import FirstBatches, cached_logits, network, random_images
from tutelage.benchmark.losses import algorithm1
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import FitSettings
from tutelage.training.distributed import accelerator_on
from tutelage.training.loop import fit
from tutelage.types import Teacher
from tutelage.views import view_of

PAIRS = ("resnet56", "resnet20"), ("wrn_40_2", "wrn_16_2"), ("resnet32x4", "resnet8x4"), ("vgg13", "vgg8")
"""Teachers and students for the ratios."""
BATCH = 64
GAMMA, BETA = 0.25, 4.0


class Row(NamedTuple):
    """Seconds per step of one pair."""

    pair: str
    reference: float  # seconds of the published procedure
    live: float  # seconds of ours with the live teacher, choices by measurement included
    recorded: float  # seconds of ours with recorded outputs


def measure_pair(pair: tuple[str, str], splits: data.Splits, *, batch: int = BATCH, n: int, rounds: int) -> Row:
    """Time ``n`` steps of one pair by the published procedure and by ours, in turn; return the medians of the rounds.

    The images are 32x32, of 100 classes.
    """
    device = accelerator_on("auto").device
    teacher, student = pair
    batches = data.BatchLoader(splits.train, batch_size=batch, train=True)
    forms = {
        "reference": published(network(teacher, device), network(student, device), splits.train, device, batch, n),
        "live": ours(FrozenTeacher(network(teacher, device)), network(student, device), batches, n),
        "recorded": ours(cached_logits(device), network(student, device), batches, n),
    }
    return Row("/".join(pair), **timing.medians(timing.in_turn(forms, rounds, warm_up=False)))


def ours(teacher: Teacher, student: nn.Module, loader: data.BatchLoader, n: int) -> Callable[[], float]:
    """Return a function that times our loop, without the compiling and measuring in its first step, done once."""
    distiller = Distiller(student, objectives.wttm(gamma=GAMMA, beta=BETA))
    batches, settings = FirstBatches(loader, n, whole=True), FitSettings(epochs=240, precision="bf16")
    epochs = fit(distiller, teacher, batches, settings, accelerator=accelerator_on("auto"))

    def seconds() -> float:
        next(epochs)
        return batches.seconds

    return seconds


def published(
    teacher: nn.Module,
    student: nn.Module,
    split: data.Split,
    device: torch.device,
    batch: int,
    n: int,
    *,
    workers: int = 2,
) -> Callable[[], float]:
    """Return a function that times the published procedure, without the first two steps, which start the workers."""
    teacher.eval()
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = torch.utils.data.DataLoader(_Images(split), batch_size=batch, shuffle=True, num_workers=workers)

    def seconds() -> float:
        stream = iter(loader)
        for i in range(2 + n):
            if i == 2:
                timing.synchronize()
                began = time.perf_counter()
            images, labels = (tensor.to(device) for tensor in next(stream))
            with torch.no_grad():
                v = teacher(images)
            z = student(images)
            cross_entropy, wttm = algorithm1(z, v, labels, gamma=GAMMA)
            loss = cross_entropy.mean() + BETA * wttm.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        timing.synchronize()
        return (time.perf_counter() - began) / n

    return seconds


class _Images(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Images in memory, one at a time through PIL and torchvision's transforms."""

    def __init__(self, split: data.Split) -> None:
        from torchvision import transforms

        images = view_of(split.fetch(np.arange(min(len(split), 10_000))), "student")
        self._images = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = split.labels[: len(images)]
        self._transform: Callable[[Any], Tensor] = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


def ratios(rows: list[Row]) -> dict[str, float]:
    """Return geometric means over the pairs of the speed-up over the reference."""
    forms = ("live", "recorded")
    return {form: statistics.geometric_mean(row.reference / getattr(row, form) for row in rows) for form in forms}


def line(row: Row, batch: int = BATCH) -> str:
    """Show one pair, in images per second."""
    reference, live, recorded = (batch / seconds for seconds in row[1:])
    return (
        f"{row.pair:<22} reference {reference:6.0f}  live {live:6.0f} ({live / reference:.2f}x)  "
        f"recorded {recorded:6.0f} ({recorded / reference:.2f}x)"
    )


def means(rows: list[Row]) -> str:
    """Show the geometric means over the pairs."""
    mean = ratios(rows)
    return f"geometric means of {len(rows)}: live {mean['live']:.2f}x, recorded {mean['recorded']:.2f}x as fast"


def lines(pairs: Sequence[tuple[str, str]] = PAIRS, *, n: int = 12, rounds: int = 1) -> Iterator[str]:
    """Time the pairs on random images, and yield lines to print."""
    rows, splits = [], random_images()
    for pair in pairs:
        rows.append(measure_pair(pair, splits, n=n, rounds=rounds))
        yield line(rows[-1])
    yield means(rows)
