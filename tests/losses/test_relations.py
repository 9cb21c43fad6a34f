"""Losses on relations within a batch, compared with NumPy, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError


def pair(batch=8, width=5, other=None, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, width, generator=generator, dtype=torch.float64).to(dtype)
    teacher = torch.randn(batch, other or width, generator=generator, dtype=torch.float64).to(dtype)
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("alpha", [1.01, 1.5])
def test_itrd_correlation_matches_numpy(alpha):
    student, teacher = pair()
    s, t = ((x - x.mean(0)) / x.std(0, ddof=1) for x in (student.detach().numpy(), teacher.numpy()))
    expected = np.log2((np.abs((s * t).sum(0) / 8 - 1) ** (2 * alpha)).sum())
    assert losses.itrd_correlation(student, teacher, alpha=alpha).item() == pytest.approx(expected, rel=1e-12)


def test_itrd_correlation_is_least_at_equality_up_to_shift_and_scale():
    _, teacher = pair()
    ours = losses.itrd_correlation(3 * teacher + 2, teacher, alpha=1.01)
    assert ours.item() == pytest.approx(math.log2(5) - 2.02 * math.log2(8), rel=1e-9)


def test_a_constant_column_has_no_correlation_and_no_gradient():
    student, teacher = pair()
    student = student.detach().clone()
    student[:, 1] = 0.0
    teacher[:, 3] = 7.0
    student.requires_grad_()
    value = losses.itrd_correlation(student, teacher, alpha=1.5)
    value.backward()
    varying = [0, 2, 4]
    s, t = ((x - x.mean(0)) / x.std(0) for x in (student.detach()[:, varying], teacher[:, varying]))
    assert value.item() == pytest.approx(math.log2(2 + ((s * t).mean(0) - 1).abs().pow(3).sum().item()))
    assert torch.isfinite(student.grad).all()
    assert torch.equal(student.grad[:, [1, 3]], torch.zeros(8, 2, dtype=torch.float64))


@pytest.mark.parametrize("other", [5, 9])
def test_itrd_mutual_matches_numpy(other):
    student, teacher = pair(other=other)
    s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (student.detach().numpy(), teacher.numpy()))
    ours, theirs = s @ s.T, t @ t.T

    def purity(gram):
        return ((gram / np.trace(gram)) ** 2).sum()

    expected = purity(ours) - purity(ours * theirs)
    assert losses.itrd_mutual(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    assert 0 <= expected <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_they_compute_in_float32_and_teach_the_student_alone(dtype):
    student, teacher = pair(dtype=dtype)
    teacher.requires_grad_()
    values = losses.itrd_correlation(student, teacher, alpha=1.01) + losses.itrd_mutual(student, teacher)
    assert values.dtype == torch.float32
    assert values.shape == ()
    values.backward()
    assert teacher.grad is None
    assert student.grad.dtype == dtype


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (
            lambda s, t: losses.itrd_correlation(s[:1], t[:1], alpha=1),
            refused(InvalidValueError, "student_features", got=1),
        ),
        (
            lambda s, t: losses.itrd_correlation(s, t[:, :3], alpha=1),
            refused(InvalidValueError, "teacher_features", got="(8, 3)"),
        ),
        (lambda s, t: losses.itrd_correlation(s, t, alpha=0), refused(InvalidValueError, "alpha")),
        (
            lambda s, t: losses.itrd_correlation(s[0], t[0], alpha=1),
            refused(InvalidValueError, "student_features", got="(5,)"),
        ),
        (lambda s, t: losses.itrd_mutual(s, t[:4]), refused(InvalidValueError, "teacher_features", got=4)),
        (lambda s, t: losses.itrd_mutual(s, t.long()), refused(InvalidTypeError, "teacher_features")),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call(*pair())


def test_log_sum_is_that_of_normalised_differences():
    rng = np.random.default_rng(3)
    s, t = rng.standard_normal((2, 6, 3)) * 5 + 2
    normal = [(f - f.mean(0)) / np.sqrt(f.var(0) + 1e-5) for f in (s, t)]
    expected = np.log((np.abs(normal[0] - normal[1]) ** 3).sum())
    value = losses.log_sum(torch.from_numpy(s), torch.from_numpy(t), exponent=3.0)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_log_power_neither_overflows_nor_loses_its_gradient():
    x = torch.tensor([1e12, -2e12], requires_grad=True)
    value = losses.log_power(x, exponent=4.0)
    assert value.item() == pytest.approx(math.log(17) + 48 * math.log(10), rel=1e-6)
    value.backward()
    assert x.grad.isfinite().all()
    same = torch.ones(3, 2, requires_grad=True)
    losses.log_sum(same, same.detach(), exponent=4.0).backward()
    assert same.grad.tolist() == [[0.0, 0.0]] * 3
    with refused(InvalidValueError, "exponent", got=0.0):
        losses.log_power(x, exponent=0.0)
    with refused(InvalidValueError, "student_features", got=1):
        losses.log_sum(torch.ones(1, 2), torch.ones(1, 2), exponent=4.0)
