"""The last linear layers with cross-entropy and WTTM, and their memory, against whole logits and Algorithm 1.

float32, on the processor; forward and backward to hidden states and weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

from tutelage import kernels
from tutelage.benchmark import losses, turns
from tutelage.benchmark.losses import BETA, GAMMA, KERNELS, REFERENCE

WIDTH, CLASSES, TOKENS = 1024, 128_256, 4096


class Measured(TypedDict):
    """What one form took.

    Attributes:
        tokens: in the batch.
        n: steps that the median is of.
        median_s: processor seconds of forward and backward.
        loss: of the first step.
        gradients_mb: the size of the gradients, MB of 10**6 bytes.
        added_mb: peak memory beyond inputs, weights and gradients, MB; none where the system does not tell.
    """

    tokens: int
    n: int
    median_s: float
    loss: float
    gradients_mb: float
    added_mb: float | None


Form = Callable[..., Tensor]
"""Takes hidden states and weights of student and teacher and the labels; returns the loss."""


def _whole(loss: losses.Form) -> Form:
    def form(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            v = teacher_hidden @ teacher_weight.T
        ce, wttm = loss(hidden @ weight.T, v, labels)
        return ce.mean() + BETA * wttm.mean()

    return form


def _chunked(*given: Tensor) -> Tensor:
    return kernels.linear_cross_entropy_and_wttm(*given, gamma=GAMMA, beta=BETA).total


FORMS: dict[str, Form] = {
    REFERENCE: _whole(losses.FORMS[REFERENCE]),
    "losses": _whole(losses.FORMS["losses"]),
    KERNELS: _chunked,
}


def draw(tokens: int, width: int, classes: int) -> list[Tensor]:
    """Return what a form takes; the student's hidden states and weight take gradients."""
    drawn = torch.Generator().manual_seed(0)
    layers = [torch.randn(*shape, generator=drawn) for _ in range(2) for shape in ((tokens, width), (classes, width))]
    for weight in layers[1::2]:
        weight.mul_(3 / width**0.5)
    for learned in layers[:2]:
        learned.requires_grad_()
    return [*layers, torch.randint(classes, (tokens,), generator=drawn)]


def step(form: Form, inputs: list[Tensor]) -> tuple[float, float, float]:
    """Run forward and backward once; return the processor seconds, the loss and the size of the gradients in MB."""
    began = time.process_time()
    total = form(*inputs)
    total.backward()
    taken = time.process_time() - began
    size = 0.0
    for learned in inputs[:2]:
        assert learned.grad is not None
        size += learned.grad.nbytes / 1e6
        learned.grad = None
    return taken, total.item(), size


def measure(
    name: str, tokens: int = TOKENS, *, width: int = WIDTH, classes: int = CLASSES, n: int = 3, threads: int = 1
) -> Measured:
    """Measure one form; its memory is told right in a process where nothing ran before, as `turns.fresh` makes."""
    form = FORMS[name]
    with turns.threads(threads):
        step(form, draw(8, width, min(512, classes)))
        inputs = draw(tokens, width, classes)
        found: list[tuple[float, float, float]] = []
        added = losses.added_mb(lambda: found.append(step(form, inputs)))
        found += [step(form, inputs) for _ in range(n - 1)]
    seconds, values, sizes = zip(*found, strict=True)
    return {
        "tokens": tokens,
        "n": n,
        "median_s": statistics.median(seconds),
        "loss": values[0],
        "gradients_mb": sizes[0],
        "added_mb": None if added is None else added - sizes[0],
    }


def needed_mb(tokens: int, width: int, classes: int) -> float:
    """Return the memory of the reference, MB: two weights and a gradient, and nine times the logits."""
    return 4e-6 * (3 * classes * width + 9 * tokens * classes)


def lines(tokens: int = 1024, *, width: int = WIDTH, classes: int = CLASSES, n: int = 2) -> Iterator[str]:
    """Measure the kernels, and yield lines to print."""
    if lack := turns.lacking(needed_mb(tokens, width, classes)):
        yield lack
        return
    found = {
        name: turns.fresh(partial(measure, name, tokens, width=width, classes=classes, n=n))
        for name in (KERNELS, REFERENCE)
    }
    own, reference = found.values()
    yield (
        f"time    kernels {own['median_s']:6.2f} s  reference {reference['median_s']:6.2f} s  "
        f"{own['median_s'] / reference['median_s']:.2f}x as long  ({tokens} tokens, median of {n})"
    )
    if own["added_mb"] is None or reference["added_mb"] is None:
        yield "memory  this system does not tell"
        return
    yield (
        f"memory  kernels {own['added_mb']:5.0f} MB  reference {reference['added_mb']:5.0f} MB  "
        f"{own['added_mb'] / reference['added_mb']:.3f}x as much  (beyond inputs, weights and gradients)"
    )
