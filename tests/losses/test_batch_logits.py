"""Losses on logits that couple a batch, compared with NumPy, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError

LOSSES = {
    "dist": lambda z, v: losses.dist(z, v, beta=2.0, gamma=0.5, temperature=3.0),
    "dist clamped": lambda z, v: losses.dist(z, v, beta=2.0, gamma=0.5, temperature=3.0, guard="clamped"),
    "mlkd_batch": lambda z, v: losses.mlkd_batch(z, v, temperature=3.0),
    "mlkd_class": lambda z, v: losses.mlkd_class(z, v, temperature=3.0),
}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def drawn(shape=(6, 5), scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    z, v = (scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)).to(dtype).unbind()
    return z.clone().requires_grad_(), v


def rows(x, temperature=3.0):
    e = np.exp(x.detach().numpy() / temperature)
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("guard", ["added", "clamped"])
def test_dist_is_one_minus_the_mean_correlation(guard):
    z, v = drawn()
    q, p = rows(z), rows(v)
    between = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    within = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    ours = losses.dist(z, v, beta=2.0, gamma=0.5, temperature=3.0, guard=guard).item()
    assert ours == pytest.approx(9 * (2 * (1 - between) + 0.5 * (1 - within)), rel=1e-6)


def test_mlkd_matches_numpy():
    z, v = drawn()
    q, p = rows(z), rows(v)
    assert LOSSES["mlkd_batch"](z, v).item() == pytest.approx(((p @ p.T - q @ q.T) ** 2).sum() / 6, rel=1e-10)
    assert LOSSES["mlkd_class"](z, v).item() == pytest.approx(((p.T @ p - q.T @ q) ** 2).sum() / 5, rel=1e-10)


@every
def test_it_is_least_at_equality(loss):
    z, v = drawn()
    at_equality = loss(z, z.detach())
    at_equality.backward()
    # What keeps dist from dividing by 0 keeps it a little above 0.
    assert at_equality.item() == pytest.approx(0, abs=1e-4)
    assert z.grad.abs().max() < 1e-4
    assert loss(z, v) > 1e-3


@every
def test_the_order_of_samples_and_shifts_change_nothing(loss):
    z, v = drawn()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(loss(z[order], v[order]), loss(z, v))
    torch.testing.assert_close(loss(z + 2, v - 3), loss(z, v))


@every
def test_what_stands_before_the_classes_is_one_batch(loss):
    z, v = drawn()
    torch.testing.assert_close(loss(z.reshape(2, 3, 5), v.reshape(2, 3, 5)), loss(z, v))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32_and_the_student_alone_learns(loss, dtype):
    z, v = drawn(dtype=dtype)
    v.requires_grad_()
    value = loss(z, v)
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value.backward()
    assert v.grad is None
    assert z.grad.dtype == dtype


@every
@pytest.mark.parametrize("shape", [(6, 5), (1, 5), (4, 2)])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 300.0, 1e5])
def test_extreme_logits_are_finite(loss, shape, scale):
    z, v = drawn(shape, scale, torch.float32)
    value = loss(z, v)
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()


def test_one_sample_has_no_relation_within_a_class():
    z, v = drawn((1, 5))
    value = losses.dist(z, v, beta=0.0, gamma=2.0, temperature=1.0)
    value.backward()
    assert value.item() == 2.0
    assert torch.equal(z.grad, torch.zeros(1, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda z, v: losses.dist(z, v, beta=-1.0, gamma=1.0, temperature=1.0), refused(InvalidValueError, "beta")),
        (lambda z, v: losses.dist(z, v, beta=1.0, gamma=1.0, temperature=0), refused(InvalidValueError, "temperature")),
        (
            lambda z, v: losses.dist(z, v, beta=1, gamma=1, temperature=1, guard="none"),
            refused(InvalidValueError, "guard"),
        ),
        (lambda z, v: losses.mlkd_batch(z, v[:, :3], temperature=1.0), refused(InvalidValueError, "teacher_logits")),
        (lambda z, v: losses.mlkd_batch(z[:0], v[:0], temperature=1.0), refused(InvalidValueError, "student_logits")),
        (lambda z, v: losses.mlkd_class(z, v.long(), temperature=1.0), refused(InvalidTypeError, "teacher_logits")),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call(*drawn())
