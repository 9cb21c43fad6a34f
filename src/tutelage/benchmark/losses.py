"""Cross-entropy and WTTM with their gradient, and the memory they add, against the paper's Algorithm 1.

Timed in float32 on the processor, with given teacher logits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import kernels, losses
from tutelage.benchmark import timing
from tutelage.training import memory

GAMMA, BETA = 0.1, 3.0
TARGET = (256, 1000), (1024, 32_000), (512, 128_256)
"""Batch sizes and numbers of classes: ImageNet's, and those of two vocabularies."""
REFERENCE, KERNELS, COMPILED = "reference: Algorithm 1", "kernels", "kernels, compiled"
NEEDED = 13
"""Memory that both forms need together, as a multiple of a batch's logits: inputs, saved and compared tensors."""

Form = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function of the student's and teacher's logits and the labels that returns cross-entropy and WTTM per sample."""


def algorithm1(z: Tensor, v: Tensor, labels: Tensor, *, gamma: float) -> tuple[Tensor, Tensor]:
    """Return each sample's cross-entropy and WTTM as arXiv:2402.11148 prints them: powers of probabilities."""
    with torch.no_grad():
        powers = F.softmax(v, dim=-1) ** gamma
        sums = powers.sum(dim=-1, keepdim=True)
        transformed = powers / sums
    matching = F.kl_div(F.log_softmax(z, dim=-1), transformed, reduction="none").sum(dim=-1)
    return F.cross_entropy(z, labels, reduction="none"), sums[:, 0] * matching


def plain(z: Tensor, v: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the two losses, one after the other."""
    return losses.cross_entropy(z, labels), losses.wttm(z, v, gamma=GAMMA)


FORMS: dict[str, Form] = {
    REFERENCE: partial(algorithm1, gamma=GAMMA),
    "losses": plain,
    KERNELS: partial(kernels.cross_entropy_and_wttm, gamma=GAMMA),
    COMPILED: partial(kernels.cross_entropy_and_wttm, gamma=GAMMA, compiled=True),
}


class Times(NamedTuple):
    """The times of the forms for one shape."""

    median_s: dict[str, float]  # median processor seconds of forward and backward, over n calls
    first_s: dict[str, float]  # wall-clock seconds of each form's first call, compiling included
    n: int

    def faster(self, name: str) -> float:
        """Return a form's speed relative to the first one."""
        return next(iter(self.median_s.values())) / self.median_s[name]


def draw(batch: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits of a student, which require a gradient, and of a teacher, and labels."""
    generator = torch.Generator().manual_seed(0)
    return (
        (3 * torch.randn(batch, classes, generator=generator)).requires_grad_(),
        5 * torch.randn(batch, classes, generator=generator),
        torch.randint(classes, (batch,), generator=generator),
    )


def weighted(ce: Tensor, wttm: Tensor) -> Tensor:
    """Return the loss that is trained on."""
    return ce.mean() + BETA * wttm.mean()


def step(form: Form, z: Tensor, v: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Run forward and backward once; return the processor seconds and the gradient."""
    seconds, _ = timing.backward(lambda: weighted(*form(z, v, labels)))
    assert z.grad is not None
    gradient, z.grad = z.grad, None
    return seconds, gradient


def times(forms: Mapping[str, Form], batch: int, classes: int) -> Times:
    """Time forms in turn on one shape and one thread, after a first round that warms up and compares their gradients.

    Raises:
        AssertionError: if a form's gradient differs from the first form's.
    """
    with timing.threads(1):
        inputs, first, expected = draw(batch, classes), {}, None
        for name, form in forms.items():
            began = time.perf_counter()
            _, gradient = step(form, *inputs)
            first[name] = time.perf_counter() - began
            expected = gradient if expected is None else expected
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=2e-5 * expected.abs().max().item())
            del gradient
        n = next((n for below, n in {10**6: 51, 10**7: 7, 5 * 10**7: 5}.items() if batch * classes < below), 3)
        steps = {name: partial(_seconds, form, *inputs) for name, form in forms.items()}
        return Times(timing.medians(timing.in_turn(steps, n, warm_up=False)), first, n)


def _seconds(form: Form, *inputs: Tensor) -> float:
    return step(form, *inputs)[0]


def added_mb(run: Callable[[], Any]) -> float | None:
    """Return the MB that a call's peak memory adds to the process's; ``None`` if the system does not tell."""
    cpu = torch.device("cpu")
    memory.restart(cpu)
    before = memory.peak(cpu)
    run()
    after = memory.peak(cpu)
    return None if before is None or after is None else after - before


def memory_mb(form: Form, batch: int, classes: int, *, compiled: bool = False) -> float | None:
    """Return the MB that forward and backward add on one thread, accurate only in a fresh process."""
    with timing.threads(1):
        inputs = draw(batch, classes)
        z, v, labels = (tensor.detach()[:2].clone() for tensor in inputs)
        step(form, z.requires_grad_(), v, labels)  # load libraries and start threads
        if compiled:  # compile for the real shape too
            step(form, *inputs)
        return added_mb(partial(step, form, *inputs))


def lines(shapes: Sequence[tuple[int, int]] = TARGET) -> Iterator[str]:
    """Time the kernels, and yield lines to print."""
    compared = {name: FORMS[name] for name in (REFERENCE, KERNELS, COMPILED)}
    faster: dict[str, list[float]] = {KERNELS: [], COMPILED: []}
    for batch, classes in shapes:
        shape = f"{batch} x {classes}"
        if shortage := timing.lacking_memory(NEEDED * batch * classes * 4e-6):
            yield f"{shape:<14} {shortage}"
            continue
        measured = timing.in_fresh_process(times, compared, batch, classes)
        times_of = []
        for name, ratios in faster.items():
            ratios.append(measured.faster(name))
            times_of.append(f"{name} {measured.median_s[name] * 1e3:.2f} ms ({ratios[-1]:.2f}x as fast)")
        yield (
            f"{shape:<14} {'  '.join(times_of)}  reference {measured.median_s[REFERENCE] * 1e3:.2f} ms  "
            f"(medians of {measured.n}; compiled in {measured.first_s[COMPILED]:.0f} s)"
        )
    for name, ratios in faster.items():
        if ratios:
            mean = statistics.geometric_mean(ratios)
            yield f"geometric mean of {len(ratios)} of {len(shapes)}: {name} {mean:.2f}x as fast"
