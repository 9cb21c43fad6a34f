"""The last linear layers with cross-entropy and WTTM, and their memory, against whole logits and Algorithm 1.

Timed in float32 on the processor, forward and backward to hidden states and weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

from tutelage import kernels
from tutelage import losses as plain_losses
from tutelage.benchmark import losses, timing
from tutelage.benchmark.losses import BETA, GAMMA, KERNELS, REFERENCE
from tutelage.kernels.divergence import LogitLoss

WIDTH, CLASSES = 1024, 128_256


class Measured(TypedDict):
    """The measurements of one form; MB are 10**6 bytes."""

    tokens: int
    n: int
    median_s: float  # median processor seconds of forward and backward, over n steps
    loss: float
    gradients_mb: float
    added_mb: float | None  # peak memory beyond inputs, weights and gradients; None if the system does not tell


Form = Callable[..., Tensor]
"""Function of the student's and teacher's hidden states and weights and the labels that returns the loss."""


def whole(loss: losses.Form) -> Form:
    """Return the form that computes all logits."""

    def form(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            v = teacher_hidden @ teacher_weight.T
        return losses.weighted(*loss(hidden @ weight.T, v, labels))

    return form


def chunked(loss: LogitLoss) -> Form:
    """Return the form of `kernels.linear`."""

    def form(*inputs: Tensor) -> Tensor:
        return kernels.linear(loss, *inputs, weight=BETA).total

    return form


FORMS: dict[str, Form] = {
    REFERENCE: whole(losses.FORMS[REFERENCE]),
    "losses": whole(losses.FORMS["losses"]),
    KERNELS: chunked(partial(plain_losses.wttm, gamma=GAMMA)),
}


def _draw(tokens: int, width: int, classes: int) -> list[Tensor]:
    """Return a form's inputs; the student's hidden states and weight require gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens, width), (classes, width)) * 2
    layers = [torch.randn(*shape, generator=generator) for shape in shapes]
    for weight in layers[1::2]:
        weight.mul_(3 / width**0.5)
    for tensor in layers[:2]:
        tensor.requires_grad_()
    return [*layers, torch.randint(classes, (tokens,), generator=generator)]


def _step(form: Form, inputs: list[Tensor]) -> tuple[float, float, float]:
    """Run forward and backward once; return the processor seconds, the loss and the size of the gradients in MB."""
    seconds, loss = timing.backward(partial(form, *inputs))
    size = sum(tensor.grad.nbytes / 1e6 for tensor in inputs[:2] if tensor.grad is not None)
    for tensor in inputs[:2]:
        tensor.grad = None
    return seconds, loss.item(), size


def measure(form: str | Form, tokens: int, *, width: int = WIDTH, classes: int = CLASSES, n: int = 3) -> Measured:
    """Measure a form, or one of `FORMS` by name, on one thread.

    Memory is only accurate in a fresh process, see `timing.in_fresh_process`.
    """
    form = FORMS[form] if isinstance(form, str) else form
    with timing.threads(1):
        _step(form, _draw(8, width, min(512, classes)))
        inputs = _draw(tokens, width, classes)
        steps: list[tuple[float, float, float]] = []
        added = losses.added_mb(lambda: steps.append(_step(form, inputs)))
        steps += [_step(form, inputs) for _ in range(n - 1)]
    seconds, values, sizes = zip(*steps, strict=True)
    return {
        "tokens": tokens,
        "n": n,
        "median_s": statistics.median(seconds),
        "loss": values[0],
        "gradients_mb": sizes[0],
        "added_mb": None if added is None else added - sizes[0],
    }


def lines(tokens: int = 1024, *, width: int = WIDTH, classes: int = CLASSES, n: int = 2) -> Iterator[str]:
    """Measure the kernels, and yield lines to print."""
    # The reference needs two weights and a gradient, and nine times the logits.
    if shortage := timing.lacking_memory(4e-6 * (3 * classes * width + 9 * tokens * classes)):
        yield shortage
        return
    ours, reference = (
        timing.in_fresh_process(partial(measure, name, tokens, width=width, classes=classes, n=n))
        for name in (KERNELS, REFERENCE)
    )
    yield (
        f"time    kernels {ours['median_s']:6.2f} s  reference {reference['median_s']:6.2f} s  "
        f"{ours['median_s'] / reference['median_s']:.2f}x as long  ({tokens} tokens, median of {n})"
    )
    if ours["added_mb"] is None or reference["added_mb"] is None:
        yield "memory  this system does not tell"
        return
    yield (
        f"memory  kernels {ours['added_mb']:5.0f} MB  reference {reference['added_mb']:5.0f} MB  "
        f"{ours['added_mb'] / reference['added_mb']:.3f}x as much  (beyond inputs, weights and gradients)"
    )
