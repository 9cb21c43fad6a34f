"""Temperature scaling: the one number by which a network's logits are divided so that it is as sure as it is right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from tutelage import losses
from tutelage.records import Calibration
from tutelage.training.distributed import of_all
from tutelage.training.evaluate import KeptLogits, evaluation_of
from tutelage.types import UNLABELLED

LOWEST, HIGHEST = 0.01, 100.0
"""Ends of the temperatures that are searched. A network that is right about every sample is best at the lowest."""
FEWEST = 16
"""Number of labelled samples below which no temperature is fitted."""
_PRECISION = 1e-4  # of a temperature's logarithm


class Answered(NamedTuple):
    """A network's logits on a held-out set, of which each process has those of its batches.

    Attributes:
        logits: logits by the batch's number.
        labels: labels of all samples of the set, ``(samples,)`` int64, -100 if unlabelled.
    """

    logits: KeptLogits
    labels: Tensor

    @property
    def is_enough(self) -> bool:
        """Whether it has enough labels to fit a temperature."""
        return int((self.labels != UNLABELLED).sum()) >= FEWEST

    def half(self, number: int) -> Answered:
        """Return the samples whose index is even (0) or odd (1): the others have no label."""
        others = torch.arange(len(self.labels)) % 2 != number
        return self._replace(labels=self.labels.masked_fill(others, UNLABELLED))

    def rows(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield each batch's number, indices, logits and labels."""
        for number, index in self.logits.index.items():
            yield number, index, self.logits(number), self.labels[index]


def fit_temperature(answered: Answered) -> float:
    """Return the temperature at which the mean cross-entropy is lowest: ``argmin_T mean(CE(y, softmax(z / T)))``.

    The cross-entropy is convex in ``1 / T``, so it has one minimum in ``log T``, which is searched between `LOWEST` and
    `HIGHEST` in float64. Where no temperature is better than 1 it is 1. All processes take part, and the sums are those
    of one process, to the bit.

    Args:
        answered: at least one labelled sample's logits, finite.

    Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
        arXiv:1706.04599.
    """

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)

        def sums() -> list[float]:
            found = []
            for _, _, logits, labels in answered.rows():
                known = labels != UNLABELLED
                found.append(float(losses.cross_entropy(logits[known].double() / temperature, labels[known]).sum()))
            return found

        return math.fsum(each for own in of_all(sums) for each in own)

    ends = math.log(LOWEST), math.log(HIGHEST)
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": _PRECISION})
    return float(math.exp(found.x)) if found.fun < loss(0.0) else 1.0


def calibrate(test: Answered, validation: Answered | None = None) -> Calibration | None:
    """Return what a network is on a test set after temperature scaling; ``None`` with too few labels.

    The temperature is fitted on the validation set where that has `FEWEST` labels. Otherwise each half of the test set,
    the samples with even and those with odd indices, is scaled by the temperature that is fitted on the other half, and
    the one that is returned is the geometric mean of both.

    Raises:
        StorageError: logits that are in a temporary file cannot be read.
    """
    halves = [test.half(0), test.half(1)]
    if validation is not None and validation.is_enough and bool((test.labels != UNLABELLED).any()):
        fitted_on, of_half = "validation", [fit_temperature(validation)] * 2
    elif all(half.is_enough for half in halves):
        fitted_on, of_half = "test", [fit_temperature(half) for half in reversed(halves)]
    else:
        return None
    temperatures = torch.tensor(of_half, dtype=torch.float64)

    def scaled() -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        for number, index, logits, labels in test.rows():
            yield number, index, logits.double() / temperatures[index % 2, None], labels

    judgement = evaluation_of(scaled).judgement()
    loss, ece = judgement["loss"], judgement["ece"]
    assert loss is not None
    assert ece is not None
    return {
        "temperature": math.sqrt(math.prod(of_half)),
        "fitted_on": fitted_on,
        "loss": loss,
        "ece": ece,
        "reliability": judgement["reliability"],
    }
