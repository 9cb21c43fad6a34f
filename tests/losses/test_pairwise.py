"""Losses on relations between samples, compared with NumPy, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.losses import pairwise

EVERY = {
    "rkd_distance": losses.rkd_distance,
    "rkd_distance squared": lambda s, t: losses.rkd_distance(s, t, squared=True),
    "rkd_angle": losses.rkd_angle,
    "pkt": losses.pkt,
    "similarity": losses.similarity,
    "similarity of sums": lambda s, t: losses.similarity(s, t, row_norm=1),
    "correlation": losses.correlation,
    "correlation_kernel": losses.correlation_kernel,
    "bilinear": lambda s, t: losses.correlation_kernel(s, t, kernel="bilinear", normalise=False, squared=False),
}
every = pytest.mark.parametrize("name", EVERY)


def pair(batch=6, width=5, other=None, seed=0, dtype=torch.float64, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, width, generator=generator, dtype=torch.float64) + offset
    teacher = torch.randn(batch, other or width, generator=generator, dtype=torch.float64) + offset
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def arrays(*tensors):
    return (tensor.detach().double().numpy() for tensor in tensors)


def huber(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def mean_distances(x, squared):
    d = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
    d = d**2 if squared else d
    return d / d[~np.eye(len(x), dtype=bool)].mean()


@pytest.mark.parametrize("squared", [False, True])
def test_rkd_distance_matches_numpy(squared):
    student, teacher = pair(other=9)
    s, t = (mean_distances(x, squared) for x in arrays(student, teacher))
    ours = losses.rkd_distance(student, teacher, squared=squared)
    assert ours.item() == pytest.approx(huber(s - t).mean(), rel=1e-12)


def angles(x):
    n = len(x)
    cosines = np.zeros((n, n, n))
    for i, j, k in np.ndindex(n, n, n):
        if i not in (j, k):
            a, b = x[j] - x[i], x[k] - x[i]
            cosines[i, j, k] = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    return cosines


@pytest.mark.parametrize("entries", [2**24, 6 * 9 * 2, 1])
def test_rkd_angle_matches_numpy_whole_and_in_pieces(monkeypatch, entries):
    student, teacher = pair(other=9)
    s, t = (angles(x) for x in arrays(student, teacher))
    whole = losses.rkd_angle(student, teacher)
    (gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(pairwise, "_ENTRIES", entries)
    ours = losses.rkd_angle(student, teacher)
    assert ours.item() == pytest.approx(huber(s - t).mean(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, student)[0], gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_distance squared", "rkd_angle"])
def test_rkd_does_not_see_a_shift_or_a_scale(name):
    student, teacher = pair()
    moved = (7 * teacher + 3).requires_grad_()
    assert EVERY[name](moved, teacher).item() == pytest.approx(0, abs=1e-20)
    turned = torch.linalg.qr(student.detach()[:5])[0]
    assert EVERY[name](teacher @ turned, teacher).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_distance squared", "rkd_angle"])
def test_an_offset_of_a_hundred_deviations_costs_rkd_no_digits_in_float32(name):
    student, teacher = pair(32, 64, 128, dtype=torch.float32, offset=100.0)
    value = EVERY[name](student, teacher)
    value.backward()
    exact_student = student.detach().double().requires_grad_()
    exact = EVERY[name](exact_student, teacher.double())
    exact.backward()
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    assert (student.grad - exact_student.grad).norm() < 2e-6 * exact_student.grad.norm()


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_distance squared", "rkd_angle"])
def test_equal_samples_of_both_networks_are_finite_and_repel_nobody(name):
    student, teacher = pair()
    student = torch.cat([student.detach(), student.detach()[:1]]).requires_grad_()
    teacher = torch.cat([teacher, teacher[:1]])
    value = EVERY[name](student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert student.grad.norm() < 10


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_distance squared"])
def test_a_student_of_one_point_is_finite(name):
    student = torch.ones(6, 5, requires_grad=True)
    value = EVERY[name](student, pair()[1].float())
    value.backward()
    assert torch.isfinite(value)
    assert torch.equal(student.grad, torch.zeros(6, 5))


def test_pkt_matches_numpy():
    student, teacher = pair(other=9)

    def likeness(x):
        x = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-7)
        c = (x @ x.T + 1) / 2
        return c / c.sum(1, keepdims=True)

    q, p = (likeness(x) for x in arrays(student, teacher))
    expected = (p * np.log((p + 1e-7) / (q + 1e-7))).sum() / 36
    assert losses.pkt(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_pkt_of_embeddings_that_point_nearly_the_same_way_keeps_its_digits():
    generator = torch.Generator().manual_seed(0)
    middle = torch.randn(64, generator=generator, dtype=torch.float64)
    student, teacher = (middle + 0.05 * torch.randn(64, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = losses.pkt(student, teacher).item()
    assert losses.pkt(student.float(), teacher.float()).item() == pytest.approx(exact, rel=2e-3)


def test_pkt_of_embeddings_that_point_in_opposite_ways_keeps_its_digits():
    student, teacher = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [1.0]])
    q, p = (torch.tensor(row) for row in ([1.0, 2**-23], [0.5, 0.5]))  # as float32 has them
    exact = (p * ((p + 1e-7).double() / (q + 1e-7).double()).log()).sum().item() / 2
    assert losses.pkt(student, teacher).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_similarity_matches_numpy_on_features_of_any_shape(order):
    student, teacher = pair(width=12, other=8)

    def gram(x):
        g = x @ x.T
        return g / np.linalg.norm(g, ord=order, axis=1, keepdims=True)

    s, t = (gram(x) for x in arrays(student, teacher))
    ours = losses.similarity(student.reshape(6, 3, 2, 2), teacher.reshape(6, 2, 4), row_norm=order)
    assert ours.item() == pytest.approx(((s - t) ** 2).sum() / 36, rel=1e-12)


@pytest.mark.parametrize("name", ["similarity", "similarity of sums", "pkt", "correlation_kernel"])
def test_a_sample_that_is_zero_everywhere_is_finite(name):
    student, teacher = pair()
    student = student.detach().clone()
    student[2] = 0.0
    student.requires_grad_()
    value = EVERY[name](student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    if name.startswith("similarity"):
        assert student.grad.norm() < 100


def test_correlation_matches_numpy_and_depends_on_the_order():
    student, teacher = pair()
    s, t = arrays(student, teacher)
    d = np.abs(s - t)
    expected = sum(d[n] @ d[n + 1] for n in range(5)) / 5
    assert losses.correlation(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    assert losses.correlation(student[order], teacher[order]).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kernel", ["gaussian", "bilinear"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("squared", [True, False])
def test_correlation_kernel_matches_numpy(kernel, normalise, squared):
    student, teacher = pair(other=9)

    def gram(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True) if normalise else x
        g = x @ x.T
        if kernel == "bilinear":
            return g
        return math.exp(-1.4) * sum(1.4**p / math.factorial(p) * g**p for p in range(4))

    s, t = (gram(x) for x in arrays(student, teacher))
    ours = losses.correlation_kernel(
        student, teacher, kernel=kernel, gamma=0.7, order=3, normalise=normalise, squared=squared
    )
    norm = np.linalg.norm(s - t)
    assert ours.item() == pytest.approx((norm**2 if squared else norm) / 36, rel=1e-10)


def test_correlation_kernel_tends_to_the_gaussian():
    rows = torch.nn.functional.normalize(pair()[1], dim=1)
    series = losses.correlation_kernel(rows, torch.ones(6, 1, dtype=torch.float64), gamma=0.4, order=30)
    gaussian = torch.exp(-0.4 * torch.cdist(rows, rows).square())
    torch.testing.assert_close(series, (gaussian - 1).square().mean())


@every
def test_equal_features_cost_nothing_and_pull_nowhere(name):
    _, teacher = pair()
    student = teacher.clone().requires_grad_()
    value = EVERY[name](student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.norm() < 1e-6


@pytest.mark.parametrize("name", [name for name in EVERY if name != "correlation"])
def test_the_order_of_a_batch_does_not_matter(name):
    student, teacher = pair()
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    torch.testing.assert_close(EVERY[name](student, teacher), EVERY[name](student[order], teacher[order]))


@every
def test_the_gradient_is_the_slope(name):
    student, teacher = pair(4, 3)
    assert torch.autograd.gradcheck(lambda s: EVERY[name](s, teacher), (student,))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_they_compute_in_float32_and_teach_the_student_alone(name, dtype):
    student, teacher = pair(dtype=dtype)
    teacher.requires_grad_()
    value = EVERY[name](student, teacher)
    assert value.dtype == torch.float32
    assert value.shape == ()
    value.backward()
    assert teacher.grad is None
    assert student.grad.dtype == dtype
    exact = EVERY[name](student.detach().double(), teacher.detach().double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)


@every
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_extreme_features_are_finite(name, scale):
    student, teacher = pair(dtype=torch.float32)
    student = (scale * student.detach()).requires_grad_()
    value = EVERY[name](student, scale * teacher)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_distance squared", "rkd_angle", "correlation"])
def test_one_sample_has_no_relation(name):
    student, teacher = pair(1)
    with refused(InvalidValueError, "student_features", got=1):
        EVERY[name](student, teacher)


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda s, t: losses.rkd_distance(s, t[:4]), refused(InvalidValueError, "teacher_features", got=4)),
        (lambda s, t: losses.rkd_angle(s, t.long()), refused(InvalidTypeError, "teacher_features", got="torch.int64")),
        (lambda s, t: losses.pkt(s[0], t[0]), refused(InvalidValueError, "student_features", got="(5,)")),
        (lambda s, t: losses.similarity(s[:, 0], t), refused(InvalidValueError, "student_features", got="(6,)")),
        (lambda s, t: losses.similarity(s, t.tolist()), refused(InvalidTypeError, "teacher_features", got="list")),
        (lambda s, t: losses.similarity(s, t, row_norm=3), refused(InvalidValueError, "row_norm", got=3)),
        (lambda s, t: losses.correlation(s, t[:, :3]), refused(InvalidValueError, "teacher_features", got="(6, 3)")),
        (lambda s, t: losses.correlation_kernel(s, t, kernel="rbf"), refused(InvalidValueError, "kernel")),
        (lambda s, t: losses.correlation_kernel(s, t, gamma=0), refused(InvalidValueError, "gamma")),
        (lambda s, t: losses.correlation_kernel(s, t, order=0), refused(InvalidValueError, "order", got=0)),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call(*pair())
