"""Losses on maps of one stage or several, compared with NumPy, and their properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError


def maps(seed=0, shape=(4, 3, 6, 6), dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def stages(seed=0, **more):
    return [maps(seed + i, shape, **more) for i, shape in enumerate([(4, 3, 8, 8), (4, 5, 4, 4), (4, 6, 4, 4)])]


def onto(loss):
    """A loss of several stages as one of one map, the same at each."""
    return lambda s, t: loss([s, 2 * s], [t, 2 * t])


EACH = {
    "factor_transfer": losses.factor_transfer,
    "factor_difference": losses.factor_difference,
    "factor_difference_norm": lambda s, t: losses.factor_difference(s, t, p=2),
    "activation_boundary": losses.activation_boundary,
    "fsp": onto(losses.fsp),
    "fsp_norm": onto(lambda s, t: losses.fsp(s, t, pool="maximum", distance="norm")),
    "kd_svd": onto(lambda s, t: losses.kd_svd(s, t, k=2)),
}
each = pytest.mark.parametrize("loss", EACH.values(), ids=EACH.keys())


def attention(f, p=2):
    q = (f**p).mean(1).reshape(len(f), -1)
    return q / np.linalg.norm(q, axis=1, keepdims=True)


@pytest.mark.parametrize(("p", "norm"), [(2, 1), (1, 1), (2, 2), (4, 1.5)])
def test_factor_transfer_matches_numpy(p, norm):
    s, t = maps(0), maps(1, (4, 5, 6, 6))
    expected = (np.abs(attention(s.numpy(), p) - attention(t.numpy(), p)) ** norm).mean(1)
    np.testing.assert_allclose(losses.factor_transfer(s, t, p=p, norm=norm).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_factor_difference_matches_numpy(order):
    s, t = maps(0), maps(1)
    a, b = (f.numpy().reshape(4, -1) for f in (s, t))
    difference = a / np.linalg.norm(a, order, 1)[:, None] - b / np.linalg.norm(b, order, 1)[:, None]
    ours = [losses.factor_difference(s, t, p=p, length_by=order).numpy() for p in (1, 2)]
    np.testing.assert_allclose(ours[0], np.abs(difference).mean(1), rtol=1e-10)
    np.testing.assert_allclose(ours[1], np.linalg.norm(difference, axis=1), rtol=1e-10)


def test_activation_boundary_matches_numpy():
    s, t = maps(0), maps(1)
    a, b = s.numpy(), t.numpy()
    expected = np.where(b > 0, np.maximum(0, 0.7 - a), np.maximum(0, 0.7 + a)) ** 2
    ours = losses.activation_boundary(s, t, margin=0.7).numpy()
    np.testing.assert_allclose(ours, expected.sum((1, 2, 3)), rtol=1e-12)


def test_activation_boundary_is_zero_where_every_neuron_is_beyond_its_margin():
    t = maps(1)
    s = torch.where(t > 0, 1.5, -1.5)
    assert torch.equal(losses.activation_boundary(s, t), torch.zeros(4))


def flow(a, b, pool):
    by = a.shape[2] // b.shape[2]
    n, c, h, w = a.shape
    a = getattr(a.reshape(n, c, h // by, by, w // by, by), pool)((3, 5))
    return np.einsum("nchw,ndhw->ncd", a, b) / (b.shape[2] * b.shape[3])


def test_fsp_matches_numpy():
    s, t = stages(0), stages(9)
    both = [[f.numpy() for f in each] for each in (s, t)]
    means, norms = np.zeros(4), np.zeros(4)
    for i in range(2):
        ours, theirs = (flow(each[i], each[i + 1], "mean") for each in both)
        means += ((ours - theirs) ** 2).mean((1, 2))
        ours, theirs = (flow(each[i], each[i + 1], "max") for each in both)
        norms += np.linalg.norm(ours - theirs, axis=1).sum(1)
    np.testing.assert_allclose(losses.fsp(s, t).numpy(), means, rtol=1e-10)
    np.testing.assert_allclose(losses.fsp(s, t, pool="maximum", distance="norm").numpy(), norms, rtol=1e-10)


def vectors(ours, theirs, k):
    """One sample's vectors of one stage, by NumPy: the student's and the teacher's."""
    rows = [f.reshape(f.shape[0], -1).T for f in (ours, theirs)]
    _, values, v = np.linalg.svd(rows[1], full_matrices=False)
    v = v[:k].T
    v = v * np.sign(v[np.abs(v).argmax(0), range(k)])
    u = np.linalg.svd(rows[0], full_matrices=False)[2][: k + 3].T
    cosines = u.T @ v
    best = np.abs(cosines).argmax(0)
    u = u[:, best] * np.sign(cosines[best, range(k)])
    scale = values[:k] / np.linalg.norm(values[:k])
    return u * scale, v * scale


@pytest.mark.parametrize("k", [1, 2, 3])
def test_kd_svd_matches_numpy(k):
    s, t = stages(0), stages(9)
    expected = np.zeros(4)
    for n in range(4):
        pairs = [vectors(a[n].numpy(), b[n].numpy(), k) for a, b in zip(s, t, strict=True)]
        for here, there in itertools.pairwise(pairs):
            ours, theirs = (np.exp(-((a[:, None] - b[None]) ** 2) / 8) for a, b in zip(here, there, strict=True))
            expected[n] += ((ours - theirs) ** 2).sum()
    np.testing.assert_allclose(losses.kd_svd(s, t, k=k).numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 6, 2, 2)])
def test_the_gradient_of_kd_svd_is_that_of_differences(shape):
    s = [maps(i, shape).requires_grad_() for i in range(2)]
    t = [maps(5 + i, shape) for i in range(2)]
    assert torch.autograd.gradcheck(lambda *given: losses.kd_svd(list(given), t, k=1), s, eps=1e-7, atol=1e-6)


def test_the_sign_of_a_teachers_vectors_does_not_matter_to_kd_svd():
    """Minus a map has the same singular vectors, up to signs that a library chooses."""
    s, t = stages(0), stages(9)
    expected = losses.kd_svd(s, t, k=2)
    torch.testing.assert_close(losses.kd_svd([-s[0], s[1], -s[2]], [t[0], -t[1], t[2]], k=2), expected)
    flipped = losses.kd_svd(s, t, k=2, first_signs=[torch.ones(4, 2), -torch.ones(4, 2), torch.ones(4, 2)])
    assert not torch.allclose(flipped, expected)


def test_kd_svd_has_a_gradient_where_singular_values_are_equal():
    """Channels that never fire have singular values of 0, all equal."""
    s = maps(0, (2, 6, 3, 3))
    s[:, 3:] = 0
    s[1] = 0
    s.requires_grad_()
    losses.kd_svd([s, 2 * s], [maps(1, (2, 6, 3, 3)), maps(2, (2, 6, 3, 3))], k=2).sum().backward()
    assert torch.isfinite(s.grad).all()
    assert s.grad[0].abs().sum() > 0


def test_kd_svd_of_what_is_not_finite_is_not_a_number_in_that_sample_alone():
    s, t = stages(0), stages(9)
    s[1][2, 0, 0, 0] = torch.inf
    assert losses.kd_svd(s, t).isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("name", [name for name in EACH if name != "activation_boundary"])
def test_equal_features_give_zero_and_no_gradient(name):
    s = maps().requires_grad_()
    values = EACH[name](s, s.detach())
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


TWO = [maps(0), maps(1)]


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda s, t: losses.factor_transfer(s, t, norm=0.5), refused(InvalidValueError, "norm", got=0.5)),
        (lambda s, t: losses.factor_transfer(s, t[:2]), refused(InvalidValueError, "teacher_features", got=2)),
        (lambda s, t: losses.factor_transfer(s, t, p=2.5), refused(InvalidValueError, "p")),
        (lambda s, t: losses.factor_difference(s, t, p=3), refused(InvalidValueError, "p", got=3)),
        (lambda s, t: losses.factor_difference(s, t, length_by=0), refused(InvalidValueError, "length_by")),
        (
            lambda s, t: losses.factor_difference(s, t[..., :2]),
            refused(InvalidValueError, "teacher_features", got="(4, 3, 6, 2)"),
        ),
        (lambda s, t: losses.activation_boundary(s, t, margin=0), refused(InvalidValueError, "margin")),
        (
            lambda s, t: losses.activation_boundary(s, t[:, :1]),
            refused(InvalidValueError, "teacher_features", got="(4, 1, 6, 6)"),
        ),
        (lambda s, t: losses.fsp(s, [t, t]), refused(InvalidTypeError, "student_features", got="Tensor")),
        (lambda s, t: losses.fsp([s], [t]), refused(InvalidValueError, "student_features")),
        (lambda s, t: losses.fsp([s, s, s], [t, t]), refused(InvalidValueError, "teacher_features", got=2)),
        (lambda s, t: losses.fsp([s, s[:, :2]], [t, t]), refused(InvalidValueError, "teacher_features[1]")),
        (lambda s, t: losses.fsp([s, s[0]], [t, t]), refused(InvalidValueError, "student_features[1]")),
        (lambda s, t: losses.fsp([s, s], [t, t], pool="max"), refused(InvalidValueError, "pool", got="'max'")),
        (lambda s, t: losses.fsp([s, s], [t, t], distance="l2"), refused(InvalidValueError, "distance", got="'l2'")),
        (lambda s, t: losses.kd_svd([s, s], [t, t], k=4), refused(InvalidValueError, "k", got=4)),
        (lambda s, t: losses.kd_svd([s, s], [t, t], k=0), refused(InvalidValueError, "k", got=0)),
        (lambda s, t: losses.kd_svd([s, s], [t, t], k=1.0), refused(InvalidTypeError, "k", got="float")),
        (lambda s, t: losses.kd_svd([s, s], [t, t], first_signs=[]), refused(InvalidValueError, "first_signs", got=0)),
        (
            lambda s, t: losses.kd_svd([s, s], [t, t], first_signs=[s[:, 0, 0]] * 2),
            refused(InvalidValueError, "first_signs", got="(4, 6)"),
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call(*TWO)
