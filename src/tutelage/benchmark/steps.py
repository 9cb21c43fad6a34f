"""Training here against the published procedure, timed in turn in one process.

The reference is what papers of this field train with: float32, eager, channels first, a worker-fed loader with
transforms of one image at a time, the loss as arXiv:2402.11148 prints it in Algorithm 1, the teacher's forward pass and
``.item()`` in every step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from tutelage import data, objectives
from tutelage.benchmark import turns
from tutelage.benchmark.batches import Remembered, Some, network, random_images
from tutelage.benchmark.losses import algorithm1
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import FitSettings
from tutelage.training.distributed import accelerator_on
from tutelage.training.loop import fit
from tutelage.types import Teacher

PAIRS = (
    ("resnet56", "resnet20"),
    ("wrn_40_2", "wrn_16_2"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
)
"""Teachers and students of the ratios."""
BATCH = 64
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


def one(
    pair: tuple[str, str], splits: data.Splits, *, batch: int = BATCH, device: str = "auto", n: int, rounds: int
) -> Row:
    """Time steps of one pair by the published procedure and by ours, in turn.

    Args:
        pair: names of teacher and student.
        splits: 32x32 images of 100 classes.
        batch: images a step.
        device: ``auto``, ``cpu`` or ``cuda``.
        n: steps that are timed at a time.
        rounds: how often; the median of the rounds is taken.
    """
    where = accelerator_on(device).device
    teacher, student = pair
    live, recorded = FrozenTeacher(network(teacher, where)), Remembered(where)
    forms = {
        "reference": _Reference(network(teacher, where), network(student, where), splits, where, batch, n).seconds,
        "live": _Ours(live, network(student, where), splits, device, batch, n).seconds,
        "recorded": _Ours(recorded, network(student, where), splits, device, batch, n).seconds,
    }
    taken = turns.in_turn(forms, rounds, warm_up=False)
    return Row("/".join(pair), *(statistics.median(seconds) for seconds in taken.values()))


def measure(
    splits: data.Splits,
    *,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    device: str = "auto",
    n: int = 24,
    rounds: int = 3,
) -> Iterator[Row]:
    """Time `one` pair after the other."""
    for pair in pairs:
        yield one(pair, splits, device=device, n=n, rounds=rounds)


class _Ours:
    """Our loop; what it compiles and measures in its first step does not count, as it is done once."""

    def __init__(
        self, teacher: Teacher, student: nn.Module, splits: data.Splits, device: str, batch: int, n: int
    ) -> None:
        distiller = Distiller(student, objectives.wttm(gamma=GAMMA, beta=BETA))
        self._batches = Some(data.BatchLoader(splits.train, batch_size=batch, train=True), n, whole=True)
        settings = FitSettings(epochs=240, precision="bf16")
        self._fitted = fit(distiller, teacher, self._batches, settings, accelerator=accelerator_on(device))

    def seconds(self) -> float:
        """Time the steps after one that warms up."""
        next(self._fitted)
        return self._batches.seconds


class _Reference:
    """The published procedure."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, splits: data.Splits, device: torch.device, batch: int, n: int
    ) -> None:
        self._teacher, self._student = teacher.eval(), student.train()
        self._device, self._batch, self._n = device, batch, n
        self._optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        whole = splits.train.fetch(np.arange(min(len(splits.train), 10_000)))
        self._images = (whole * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = splits.train.labels[: len(whole)]

    def seconds(self) -> float:
        """Time the steps after the first two, which start the loader's workers."""
        n = self._n
        loader = torch.utils.data.DataLoader(
            cast(Any, _Images(self._images, self._labels)), batch_size=self._batch, shuffle=True, num_workers=2
        )
        began = 0.0
        stream = iter(loader)
        for i in range(2 + n):
            if i == 2:
                turns.wait()
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
        turns.wait()
        seconds = (time.perf_counter() - began) / n
        del stream
        return seconds


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


def ratios(rows: list[Row]) -> dict[str, float]:
    """Return geometric means over the pairs: how many times faster than the reference."""
    return {
        "live": statistics.geometric_mean(row.reference / row.live for row in rows),
        "recorded": statistics.geometric_mean(row.reference / row.recorded for row in rows),
    }


def line(row: Row, batch: int = BATCH) -> str:
    """Show one pair, in images a second."""
    reference, live, recorded = (batch / seconds for seconds in (row.reference, row.live, row.recorded))
    return (
        f"{row.pair:<22} reference {reference:6.0f}  live {live:6.0f} ({live / reference:.2f}x)  "
        f"recorded {recorded:6.0f} ({recorded / reference:.2f}x)"
    )


def means(rows: list[Row]) -> str:
    """Show the geometric means over the pairs."""
    found = ratios(rows)
    return f"geometric means of {len(rows)}: live {found['live']:.2f}x, recorded {found['recorded']:.2f}x as fast"


def lines(
    pairs: Sequence[tuple[str, str]] = PAIRS, *, device: str = "auto", n: int = 12, rounds: int = 1
) -> Iterator[str]:
    """Time the pairs on random images, and yield lines to print."""
    rows = []
    for row in measure(random_images(), pairs=pairs, device=device, n=n, rounds=rounds):
        rows.append(row)
        yield line(row)
    yield means(rows)
