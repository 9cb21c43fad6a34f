"""Cross-entropy and WTTM with their gradient, and the memory they add, against the paper's Algorithm 1.

float32, on the processor, the teacher's logits given.
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
from tutelage.benchmark import turns
from tutelage.training import memory

GAMMA, BETA = 0.1, 3.0
TARGET = (256, 1000), (1024, 32_000), (512, 128_256)
"""Batches and classes: ImageNet's, and those of two vocabularies."""
REFERENCE, KERNELS = "reference: Algorithm 1", "kernels"
NEEDED = 13
"""Times the memory of a batch's logits that both forms need together: inputs, what is kept, gradients compared."""

Form = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes the student's and the teacher's logits and the labels; returns each sample's cross-entropy and WTTM."""


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
}


class Times(NamedTuple):
    """What the forms took for one shape.

    Attributes:
        median_s: processor seconds of forward and backward, by form.
        first_s: seconds of each form's first call, compiling included, on the wall's clock.
        n: calls that the medians are of.
    """

    median_s: dict[str, float]
    first_s: dict[str, float]
    n: int

    def faster(self, name: str) -> float:
        """Return how many times as fast as the reference a form is."""
        return self.median_s[REFERENCE] / self.median_s[name]


def draw(batch: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits of a student, which take a gradient, and of a teacher, and labels."""
    drawn = torch.Generator().manual_seed(0)
    return (
        (3 * torch.randn(batch, classes, generator=drawn)).requires_grad_(),
        5 * torch.randn(batch, classes, generator=drawn),
        torch.randint(classes, (batch,), generator=drawn),
    )


def step(form: Form, z: Tensor, v: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Run forward and backward once; return the processor seconds and the gradient."""
    began = time.process_time()
    ce, wttm = form(z, v, labels)
    (ce.mean() + BETA * wttm.mean()).backward()
    taken = time.process_time() - began
    assert z.grad is not None
    gradient, z.grad = z.grad, None
    return taken, gradient


def rounds(batch: int, classes: int) -> int:
    """Return how often to time a shape: less often what takes long."""
    sizes = {10**6: 51, 10**7: 7, 5 * 10**7: 5}
    return next((n for below, n in sizes.items() if batch * classes < below), 3)


def times(forms: Mapping[str, Form], batch: int, classes: int, *, threads: int = 1) -> Times:
    """Time forms in turn on one shape, after a first round that warms up and compares their gradients.

    Raises:
        AssertionError: a form's gradient is not the first form's.
    """
    with turns.threads(threads):
        inputs, first, expected = draw(batch, classes), {}, None
        for name, form in forms.items():
            began = time.perf_counter()
            _, gradient = step(form, *inputs)
            first[name] = time.perf_counter() - began
            expected = gradient if expected is None else expected
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=2e-5 * expected.abs().max().item())
            del gradient
        n = rounds(batch, classes)
        taken = turns.in_turn({name: partial(_seconds, form, inputs) for name, form in forms.items()}, n, warm_up=False)
    return Times({name: statistics.median(values) for name, values in taken.items()}, first, n)


def _seconds(form: Form, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    return step(form, *inputs)[0]


def added_mb(run: Callable[[], Any]) -> float | None:
    """Return by how many MB the process's peak memory during a call is over what it had; none where no system tells."""
    cpu = torch.device("cpu")
    memory.restart(cpu)
    before = memory.peak(cpu)
    run()
    after = memory.peak(cpu)
    return None if before is None or after is None else after - before


def memory_mb(form: Form, batch: int, classes: int, *, compiled: bool = False, threads: int = 1) -> float | None:
    """Return the memory that forward and backward add in this process, MB; best called in a `turns.fresh` one."""
    with turns.threads(threads):
        inputs = draw(batch, classes)
        z, v, labels = (tensor.detach()[:2].clone() for tensor in inputs)
        step(form, z.requires_grad_(), v, labels)  # libraries and threads
        if compiled:  # for its own shape as well
            step(form, *inputs)
        return added_mb(partial(step, form, *inputs))


def lines(shapes: Sequence[tuple[int, int]] = TARGET) -> Iterator[str]:
    """Time the kernels, and yield lines to print."""
    compared, faster = {name: FORMS[name] for name in (KERNELS, REFERENCE)}, []
    for batch, classes in shapes:
        shape = f"{batch} x {classes}"
        if lack := turns.lacking(NEEDED * batch * classes * 4e-6):
            yield f"{shape:<14} {lack}"
            continue
        found = turns.fresh(times, compared, batch, classes)
        faster.append(found.faster(KERNELS))
        yield (
            f"{shape:<14} kernels {found.median_s[KERNELS] * 1e3:8.2f} ms  reference "
            f"{found.median_s[REFERENCE] * 1e3:8.2f} ms  {faster[-1]:.2f}x as fast  (median of {found.n})"
        )
    if faster:
        yield f"geometric mean of {len(faster)} of {len(shapes)}: {statistics.geometric_mean(faster):.2f}x as fast"
