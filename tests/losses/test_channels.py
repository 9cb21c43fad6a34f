"""Losses on relations between channels, compared with NumPy, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused
from torch.nn import functional as F

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError

EVERY = {"nst": losses.nst, "inter_channel": losses.inter_channel, "affinity": losses.affinity}
every = pytest.mark.parametrize("name", EVERY)


def maps(channels=4, side=3, other=None, other_side=None, batch=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, channels, side, side, generator=generator, dtype=torch.float64)
    small = other_side or side
    teacher = torch.randn(batch, other or channels, small, small, generator=generator, dtype=torch.float64)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def vectors(tensor):
    return tensor.detach().double().flatten(2).numpy()


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_nst_matches_numpy_over_places_and_over_channels(side):
    student, teacher = maps(6, side, other=4)
    expected = []
    for s, t in zip(unit(vectors(student)), unit(vectors(teacher)), strict=True):
        expected.append(((t @ t.T) ** 2).mean() + ((s @ s.T) ** 2).mean() - 2 * ((s @ t.T) ** 2).mean())
    assert losses.nst(student, teacher).tolist() == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize(("side", "other"), [(8, 4), (4, 8), (7, 4), (5, 3)])
def test_nst_averages_the_larger_map_down_as_adaptive_pooling_does(side, other):
    student, teacher = maps(4, side, other=6, other_side=other)
    small = min(side, other)
    pooled = (F.adaptive_avg_pool2d(f, small) for f in (student, teacher))
    torch.testing.assert_close(losses.nst(student, teacher), losses.nst(*pooled))


def test_nst_averages_each_axis_where_neither_map_is_the_larger():
    student, teacher = torch.randn(2, 3, 6, 2), torch.randn(2, 3, 4, 5)
    pooled = (F.adaptive_avg_pool2d(f, (4, 2)) for f in (student, teacher))
    torch.testing.assert_close(losses.nst(student, teacher), losses.nst(*pooled))


def test_inter_channel_matches_numpy_where_sizes_differ():
    student, teacher = maps(4, 3, other_side=5)

    def gram(x):
        return unit(x @ x.transpose(0, 2, 1))

    s, t = gram(vectors(student)), gram(vectors(teacher))
    expected = ((s - t) ** 2).sum((1, 2)) / 4
    assert losses.inter_channel(student, teacher).tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_affinity_matches_numpy():
    student, teacher = maps()
    expected = np.zeros(3)
    for n, (s, t) in enumerate(zip(unit(vectors(student)), unit(vectors(teacher)), strict=True)):
        expected[n] = sum(np.linalg.norm(np.outer(a, a) - np.outer(b, b)) for a, b in zip(s, t, strict=True)) / 9
    assert losses.affinity(student, teacher).tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    torch.testing.assert_close(losses.affinity(-2 * student, teacher), losses.affinity(student, teacher))


@every
def test_a_channel_that_does_not_fire_is_finite_and_gets_no_gradient(name):
    student, teacher = maps()
    student = student.detach().clone()
    student[0, 1] = 0.0
    teacher[1, 2] = 0.0
    student.requires_grad_()
    value = EVERY[name](student, teacher)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()
    assert student.grad[0, 1].norm() < 100


def test_affinity_counts_a_channel_that_fires_in_one_network_alone():
    student, teacher = torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    teacher[0, 1] = 0.0
    assert losses.affinity(student, teacher).item() == pytest.approx(0.5)


@every
def test_equal_maps_cost_nothing_and_pull_nowhere(name):
    _, teacher = maps()
    student = teacher.clone().requires_grad_()
    value = EVERY[name](student, teacher)
    value.sum().backward()
    assert value.tolist() == pytest.approx([0] * 3, abs=1e-14)
    assert student.grad.norm() < 1e-7


@every
def test_a_sample_knows_nothing_of_the_others(name):
    student, teacher = maps()
    order = torch.tensor([2, 0, 1])
    whole = EVERY[name](student, teacher)
    torch.testing.assert_close(EVERY[name](student[order], teacher[order]), whole[order])
    torch.testing.assert_close(EVERY[name](student[1:2], teacher[1:2]), whole[1:2])


@every
def test_the_gradient_is_the_slope(name):
    student, teacher = maps(3, 3, batch=2)
    assert torch.autograd.gradcheck(lambda s: EVERY[name](s, teacher), (student,))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_they_compute_in_float32_and_teach_the_student_alone(name, dtype):
    student, teacher = maps(dtype=dtype)
    teacher.requires_grad_()
    value = EVERY[name](student, teacher)
    assert value.dtype == torch.float32
    assert value.shape == (3,)
    value.sum().backward()
    assert teacher.grad is None
    assert student.grad.dtype == dtype
    exact = EVERY[name](student.detach().double(), teacher.detach().double())
    assert value.tolist() == pytest.approx(exact.tolist(), rel=1e-4)


@every
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_extreme_maps_are_finite(name, scale):
    student, teacher = maps(dtype=torch.float32)
    student = (scale * student.detach()).requires_grad_()
    value = EVERY[name](student, scale * teacher)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda s, t: losses.nst(s, t[:2]), refused(InvalidValueError, "teacher_features", got=2)),
        (lambda s, t: losses.nst(s.flatten(2), t), refused(InvalidValueError, "student_features", got="(3, 4, 9)")),
        (lambda s, t: losses.inter_channel(s[:, :2], t), refused(InvalidValueError, "student_features", got=2)),
        (
            lambda s, t: losses.affinity(s, t[..., :2]),
            refused(InvalidValueError, "teacher_features", got="(3, 4, 3, 2)"),
        ),
        (lambda s, t: losses.affinity(s, t.long()), refused(InvalidTypeError, "teacher_features")),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call(*maps())
