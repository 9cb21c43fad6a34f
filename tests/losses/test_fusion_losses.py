"""Losses on maps that a learned module made, compared with NumPy, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError

BOTH = [losses.review, losses.mgd]


def pair(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return student.requires_grad_(), teacher


def pooled(maps, grid):
    """Adaptive average pooling, field by field."""
    height, width = maps.shape[2:]
    out = np.empty((*maps.shape[:2], grid, grid))
    for i in range(grid):
        for j in range(grid):
            rows = slice(i * height // grid, math.ceil((i + 1) * height / grid))
            columns = slice(j * width // grid, math.ceil((j + 1) * width / grid))
            out[:, :, i, j] = maps[:, :, rows, columns].mean((2, 3))
    return out


def by_hand(student, teacher, grids):
    def distance(a, b):
        return ((a - b) ** 2).mean((1, 2, 3))

    total, weights = distance(student, teacher), 1.0
    for k, grid in enumerate(grids, 1):
        total = total + 2.0**-k * distance(pooled(student, grid), pooled(teacher, grid))
        weights += 2.0**-k
    return total / weights


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((8, 8), (4, 2, 1)),
        ((7, 7), (4, 2, 1)),
        ((5, 9), (4, 2, 1)),
        ((9, 3), (2, 1)),
        ((4, 4), (2, 1)),
        ((2, 2), (1,)),
        ((1, 1), ()),
    ],
)
def test_review_matches_numpy(size, grids):
    student, teacher = pair(3, 2, *size)
    expected = by_hand(student.detach().numpy(), teacher.numpy(), grids)
    np.testing.assert_allclose(losses.review(student, teacher).detach().numpy(), expected, rtol=1e-12)


def test_review_of_a_constant_difference_is_its_square():
    _, teacher = pair(2, 3, 7, 7)
    torch.testing.assert_close(losses.review(teacher + 3, teacher), torch.full((2,), 9.0, dtype=torch.float64))


def test_mgd_matches_numpy():
    student, teacher = pair(3, 2, 5, 4)
    expected = ((student.detach().numpy() - teacher.numpy()) ** 2).reshape(3, -1).sum(1)
    np.testing.assert_allclose(losses.mgd(student, teacher).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("loss", BOTH)
def test_they_are_zero_at_equality_and_their_gradient_too(loss):
    _, teacher = pair(2, 3, 5, 5)
    student = teacher.clone().requires_grad_()
    values = loss(student, teacher)
    values.sum().backward()
    assert torch.equal(values, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("loss", BOTH)
def test_each_sample_stands_alone(loss):
    student, teacher = pair(5, 3, 8, 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher)[order])
    torch.testing.assert_close(loss(student[:1], teacher[:1]), loss(student, teacher)[:1])


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_they_compute_in_float32_and_teach_the_student_alone(loss, dtype):
    student, teacher = pair(2, 3, 6, 6, dtype=dtype)
    teacher.requires_grad_()
    values = loss(student, teacher)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, loss(student.double(), teacher.double()).float())
    values.sum().backward()
    assert teacher.grad is None
    assert student.grad.dtype == dtype


@pytest.mark.parametrize("loss", BOTH)
def test_large_features_in_half_precision_stay_finite(loss):
    student, teacher = pair(2, 3, 6, 6)
    student, teacher = (60000 * student.detach().sign()).half().requires_grad_(), (60000 * teacher.sign()).half()
    values = loss(student, teacher)
    values.mean().backward()
    assert torch.isfinite(values).all()
    student, teacher = student.detach().float().requires_grad_(), teacher.float()
    loss(student, teacher).mean().backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("loss", BOTH)
def test_gradients_are_right(loss):
    student, teacher = pair(2, 2, 5, 6)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda s, t: (s[0], t), refused(InvalidValueError, "student_features", got="(3, 4, 4)")),
        (lambda s, t: (s, t[:, :2]), refused(InvalidValueError, "teacher_features", got="(2, 2, 4, 4)")),
        (lambda s, t: (s, t[:, :, :, :0]), refused(InvalidValueError, "teacher_features", got="(2, 3, 4, 0)")),
        (lambda s, t: (s, t.long()), refused(InvalidTypeError, "teacher_features", got="torch.int64")),
    ],
)
def test_features_that_do_not_fit_are_refused(loss, change, refusal):
    with refusal:
        loss(*change(*pair(2, 3, 4, 4)))
