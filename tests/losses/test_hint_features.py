"""Losses on one stage's features, compared with NumPy, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError


def maps(seed=0, shape=(4, 3, 6, 6), dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


VARIANCE = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)

EACH = {
    "hint": losses.hint,
    "attention_transfer": losses.attention_transfer,
    "attention_transfer_norm": lambda s, t: losses.attention_transfer(s, t, distance="norm"),
    "vid": lambda s, t: losses.vid(s, t, variance=VARIANCE.float()),
    "prime_aware": lambda s, t: losses.prime_aware(s, t, log_variance=torch.zeros_like(s)),
}
each = pytest.mark.parametrize("loss", EACH.values(), ids=EACH.keys())


def attention(f, p=2):
    q = (f**p).mean(1).reshape(len(f), -1)
    return q / np.linalg.norm(q, axis=1, keepdims=True)


def pooled(f, by):
    n, c, h, w = f.shape
    return f.reshape(n, c, h // by, by, w // by, by).mean((3, 5))


@pytest.mark.parametrize("shape", [(4, 3, 6, 6), (4, 5), (4, 7, 2)])
def test_hint_is_the_mean_square(shape):
    s, t = maps(0, shape), maps(1, shape)
    expected = ((s - t).numpy() ** 2).reshape(4, -1).mean(1)
    np.testing.assert_allclose(losses.hint(s, t).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_attention_transfer_matches_numpy(p):
    s, t = maps(0), maps(1, (4, 8, 6, 6))
    difference = attention(s.numpy(), p) - attention(t.numpy(), p)
    np.testing.assert_allclose(losses.attention_transfer(s, t, p=p).numpy(), (difference**2).mean(1), rtol=1e-10)
    ours = losses.attention_transfer(s, t, p=p, distance="norm").numpy()
    np.testing.assert_allclose(ours, np.linalg.norm(difference, axis=1), rtol=1e-10)


@pytest.mark.parametrize(("mine", "theirs"), [(6, 3), (3, 6)])
def test_the_larger_map_is_averaged_down(mine, theirs):
    s, t = maps(0, (4, 3, mine, mine)), maps(1, (4, 3, theirs, theirs))
    small = [pooled(f.numpy(), f.shape[2] // 3) for f in (s, t)]
    expected = ((attention(small[0]) - attention(small[1])) ** 2).mean(1)
    np.testing.assert_allclose(losses.attention_transfer(s, t).numpy(), expected, rtol=1e-10)
    squares = ((small[0] - small[1]) ** 2).mean((2, 3))
    expected = (0.5 * (squares / VARIANCE.numpy() + np.log(VARIANCE.numpy()))).mean(1)
    np.testing.assert_allclose(losses.vid(s, t, variance=VARIANCE).numpy(), expected, rtol=1e-10)


def test_sizes_are_made_equal_side_by_side():
    s, t = losses.same_size(maps(0, (2, 3, 8, 2)), maps(1, (2, 4, 4, 4)))
    assert (s.shape, t.shape) == ((2, 3, 4, 2), (2, 4, 4, 2))


def test_attention_does_not_change_with_scale():
    s, t = maps(0), maps(1)
    torch.testing.assert_close(losses.attention_transfer(7 * s, t), losses.attention_transfer(s, t / 3))


def test_vid_is_least_at_the_variance_of_the_errors():
    s, t = maps(0), maps(1)
    variance = (s - t).square().mean((0, 2, 3)).requires_grad_()
    losses.vid(s, t, variance=variance).mean().backward()
    assert variance.grad.abs().max() < 1e-12


def test_prime_aware_matches_numpy():
    s, t, v = maps(0, (4, 5)), maps(1, (4, 5)), maps(2, (4, 5))
    expected = ((t - s).numpy() ** 2 / (1e-6 + np.exp(v.numpy())) + v.numpy()).mean(1)
    np.testing.assert_allclose(losses.prime_aware(s, t, log_variance=v).numpy(), expected, rtol=1e-12)


def test_prime_aware_keeps_its_gradient_at_extreme_variances():
    v = torch.tensor([[-500.0, 500.0]]).requires_grad_()
    s = torch.ones(1, 2, requires_grad=True)
    value = losses.prime_aware(s, torch.zeros(1, 2), log_variance=v)
    value.backward()
    assert value.item() == pytest.approx(0.5e6, rel=1e-5)
    assert torch.isfinite(v.grad).all()
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("loss", [losses.hint, losses.attention_transfer, EACH["attention_transfer_norm"]])
def test_equal_features_give_zero_and_no_gradient(loss):
    s = maps().requires_grad_()
    values = loss(s, s.detach())
    values.sum().backward()
    assert torch.equal(values, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(s.grad, torch.zeros_like(s))


@each
def test_a_permutation_of_the_batch_permutes_the_values(loss):
    s, t, order = maps(0), maps(1), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(loss(s[order], t[order]), loss(s, t)[order])


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_they_compute_in_float32_and_teach_the_student_alone(loss, dtype):
    s, t = maps(0, dtype=dtype).requires_grad_(), maps(1, dtype=dtype).requires_grad_()
    values = loss(s, t)
    assert values.dtype == torch.float32
    assert values.shape == (4,)
    values.sum().backward()
    assert t.grad is None
    assert s.grad.dtype == dtype


@each
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e8])
def test_gradients_are_finite_at_extreme_features(loss, scale):
    s, t = maps(0, dtype=torch.float32, scale=scale).requires_grad_(), maps(1, dtype=torch.float32, scale=scale)
    values = loss(s, t)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(s.grad).all()


def test_attention_of_features_whose_squares_overflow():
    s, t = maps(0, dtype=torch.float32), maps(1, dtype=torch.float32)
    torch.testing.assert_close(losses.attention_transfer(1e25 * s, 1e25 * t), losses.attention_transfer(s, t))


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda s, t: losses.hint(s, t[:, :2]), refused(InvalidValueError, "teacher_features", got="(4, 2, 6, 6)")),
        (lambda s, t: losses.hint(s, t.long()), refused(InvalidTypeError, "teacher_features")),
        (lambda s, t: losses.hint(s[0, 0, 0], t), refused(InvalidValueError, "student_features", got="(6,)")),
        (lambda s, t: losses.hint(s.tolist(), t), refused(InvalidTypeError, "student_features", got="list")),
        (lambda s, t: losses.attention_transfer(s[:2], t), refused(InvalidValueError, "teacher_features", got=4)),
        (
            lambda s, t: losses.attention_transfer(s[0], t),
            refused(InvalidValueError, "student_features", got="(3, 6, 6)"),
        ),
        (lambda s, t: losses.attention_transfer(s, t, p=1.5), refused(InvalidValueError, "p", got=1.5)),
        (lambda s, t: losses.attention_transfer(s, t, p=0), refused(InvalidValueError, "p", got=0)),
        (lambda s, t: losses.attention_transfer(s, t, distance="l2"), refused(InvalidValueError, "distance")),
        (
            lambda s, t: losses.vid(s, t[:, :2], variance=VARIANCE),
            refused(InvalidValueError, "teacher_features", got="(4, 2, 6, 6)"),
        ),
        (
            lambda s, t: losses.vid(s, t, variance=VARIANCE[:2]),
            refused(InvalidValueError, "variance"),
        ),
        (lambda s, t: losses.vid(s, t, variance=math.pi), refused(InvalidTypeError, "variance", got="float")),
        (lambda s, t: losses.prime_aware(s, t, log_variance=s[:, :1]), refused(InvalidValueError, "log_variance")),
        (lambda s, t: losses.prime_aware(s, t, log_variance=s, epsilon=0), refused(InvalidValueError, "epsilon")),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call(maps(0), maps(1))
