"""Losses that single out the labelled class, and those on standardised, learned and virtual teachers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests._helpers.logits import drawn, softmax
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.types import UNLABELLED

LOSSES = {
    "dkd": lambda z, v, y: losses.dkd(z, v, y, alpha=0.5, beta=3.0, temperature=2.0),
    "nkd": lambda z, v, y: losses.nkd(z, v, y, gamma=1.5, temperature=2.0),
    "rld": lambda z, v, y: losses.rld(z, v, y, alpha=0.5, beta=3.0, temperature=2.0, alpha_temperature=1.5),
    "wsld": lambda z, v, y: losses.wsld(z, v, y, temperature=2.0),
    "teacher_free_kd": lambda z, v, y: losses.teacher_free_kd(z, y, correct=0.9, temperature=2.0),
    "abdkd": lambda z, v, y: losses.abdkd(z, v, y, alpha=0.5, beta=3.0, ab_alpha=0.8, ab_beta=0.3, temperature=2.0),
    "wkd_l": lambda z, v, y: losses.wkd_l(z, v, y, cost=COST[: z.shape[-1], : z.shape[-1]], temperature=2.0),
}
COST = torch.rand(100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
of_a_teacher = pytest.mark.parametrize(
    "loss", [LOSSES[name] for name in ("dkd", "nkd", "rld", "wsld", "abdkd", "wkd_l")]
)
about_the_index = pytest.mark.parametrize(
    "loss", [LOSSES[name] for name in ("dkd", "rld", "teacher_free_kd", "abdkd", "wkd_l")]
)


def kl(p, q):
    return (p * np.log(p / q)).sum()


def dkd(z, v, y):
    q, p = softmax(z / 2), softmax(v / 2)
    others = np.arange(len(z)) != y
    label = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
    return 4 * (0.5 * label + 3 * kl(p[others] / p[others].sum(), q[others] / q[others].sum()))


def nkd(z, v, y):
    q, p = softmax(z), softmax(v)
    others = np.arange(len(z)) != y
    a, b = softmax(z[others] / 2), softmax(v[others] / 2)
    return -p[y] * np.log(q[y]) - 1.5 * 4 * (b * np.log(a)).sum()


def rld(z, v, y):
    sure, teacher_sure = softmax(z / 1.5)[y], softmax(v / 1.5).max()
    value = 0.5 * 1.5**2 * kl(np.array([teacher_sure, 1 - teacher_sure]), np.array([sure, 1 - sure]))
    below = v < v[y]
    return value + (3 * 4 * kl(softmax(v[below] / 2), softmax(z[below] / 2)) if below.any() else 0.0)


def wsld(z, v, y):
    w = 1 - np.exp(-np.log(softmax(z)[y]) / (np.log(softmax(v)[y]) - 1e-7))
    return 4 * w * -(softmax(v / 2) * np.log(softmax(z / 2))).sum()


def teacher_free_kd(z, v, y):
    u = np.full(len(z), 0.1 / (len(z) - 1))
    u[y] = 0.9
    return kl(softmax(u / 2), softmax(z))


def abdkd(z, v, y):
    q, p = softmax(z / 2), softmax(v / 2)
    others = np.arange(len(z)) != y
    label = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
    a, b = q[others] / q[others].sum(), p[others] / p[others].sum()
    terms = b**0.8 * a**0.3 - 0.8 / 1.1 * b**1.1 - 0.3 / 1.1 * a**1.1
    return 4 * (0.5 * label - 3 / (0.8 * 0.3) * terms.sum())


def wkd_l(z, v, y):
    others = np.arange(len(z)) != y
    a, b = softmax(z[others] / 2), softmax(v[others] / 2)
    cost = COST.numpy()[: len(z), : len(z)][np.ix_(others, others)]
    kernel, u = np.exp(-cost / 0.05), np.ones(len(a)) / len(a)
    for _ in range(10):
        w = b / (kernel.T @ u)
        u = a / (kernel @ w)
    return u @ (kernel * cost) @ w


TRUTH = {
    "dkd": dkd,
    "nkd": nkd,
    "rld": rld,
    "wsld": wsld,
    "teacher_free_kd": teacher_free_kd,
    "abdkd": abdkd,
    "wkd_l": wkd_l,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 5, 100])
def test_it_is_its_formula(name, classes):
    z, v, y = drawn((6, classes))
    each = zip(z.detach().numpy(), v.numpy(), y.numpy(), strict=True)
    expected = torch.tensor([TRUTH[name](*sample) for sample in each] if classes > 2 or name != "nkd" else [])
    if name == "nkd" and classes == 2:  # one other class: its softmax is 1, and its logarithm 0
        q, p = z.softmax(-1), v.softmax(-1)
        expected = -(p * q.log()).gather(-1, y[:, None]).squeeze(-1).detach()
    torch.testing.assert_close(LOSSES[name](z, v, y).detach(), expected, rtol=1e-10, atol=1e-12)


@every
def test_an_unlabelled_sample_has_value_and_gradient_zero(loss):
    z, v, y = drawn()
    full = loss(z, v, y)
    part = loss(z, v, torch.where(torch.arange(6) % 2 == 0, y, -100))
    assert torch.equal(part[::2], full[::2])
    assert torch.equal(part[1::2], torch.zeros(3, dtype=torch.float64))
    part.sum().backward()
    assert torch.equal(z.grad[1::2], torch.zeros(3, 5, dtype=torch.float64))
    assert z.grad[::2].abs().sum() > 0


@every
def test_shifts_change_nothing_and_samples_are_apart(loss):
    z, v, y = drawn()
    values = loss(z, v, y)
    torch.testing.assert_close(loss(z + 3, v - 2, y), values)
    order = torch.randperm(6)
    torch.testing.assert_close(loss(z[order], v[order], y[order]), values[order])
    deep = loss(z.reshape(2, 3, 5), v.reshape(2, 3, 5), y.reshape(2, 3))
    torch.testing.assert_close(deep, values.reshape(2, 3))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32_and_the_student_alone_learns(loss, dtype):
    z, v, y = drawn(dtype=dtype)
    v.requires_grad_()
    values = loss(z, v, y)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    values.sum().backward()
    assert v.grad is None
    assert z.grad.dtype == dtype


@every
@pytest.mark.parametrize("scale", [0.0, 300.0, 1e5])
def test_extreme_logits_are_finite(loss, scale):
    z, v, y = drawn(scale=scale, dtype=torch.float32)
    values = loss(z, v, y)
    values.sum().backward()
    assert values.isfinite().all()
    assert z.grad.isfinite().all()


INF = float("inf")


@pytest.mark.parametrize("name", ["dkd", "nkd", "rld", "abdkd", "wkd_l"])
@pytest.mark.parametrize("who", ["teacher", "both"])
@pytest.mark.parametrize("label", [1, 0, -100])
def test_where_one_class_alone_is_possible_nothing_is_nan(name, who, label):
    z, v, _ = drawn()
    alone = torch.full((6, 5), -INF, dtype=torch.float64).index_fill(1, torch.tensor([1]), 2.0)
    z, v = (alone.clone() if who == "both" else z.detach()).requires_grad_(), alone
    values = LOSSES[name](z, v, torch.full((6,), label))
    certain = label == 0 and name == "rld" and who == "both"  # of class 1, not of the label
    assert torch.equal(values.isposinf(), torch.full((6,), certain))
    values.masked_fill(values.isinf(), 0.0).sum().backward()
    assert z.grad.isfinite().all()
    assert label != UNLABELLED or not (values.any() or z.grad.any())


def test_abdkd_is_finite_where_the_student_rules_a_class_out():
    z, v, _ = drawn()
    y, z = torch.zeros(6, dtype=torch.long), z.detach().index_fill(1, torch.tensor([2]), -INF).requires_grad_()
    values = LOSSES["abdkd"](z, v, y)
    near = LOSSES["abdkd"](z.detach().clamp(min=-300.0), v, y)
    torch.testing.assert_close(values.detach(), near)
    values.sum().backward()
    assert z.grad.isfinite().all()


def test_the_labels_term_of_nkd_reads_nothing_else():
    z, v, y = drawn()
    z = z.detach().scatter(1, ((y + 1) % 5)[:, None], -INF)
    values = losses.nkd(z, v, y, gamma=0.0, temperature=1.0)
    torch.testing.assert_close(values, v.softmax(-1).gather(1, y[:, None])[:, 0] * losses.cross_entropy(z, y))


def test_a_transport_of_unlike_precisions_is_in_the_wider():
    z, v, y = drawn()
    close = {"rtol": 1e-6, "atol": 1e-6}
    for mixed in ((z.float(), v), (z, v.float())):
        values = LOSSES["wkd_l"](*mixed, y)
        assert values.dtype == torch.float64
        torch.testing.assert_close(values, LOSSES["wkd_l"](z, v, y), **close)


@every
def test_gradients_are_those_of_differences(loss):
    z, v, y = drawn()
    if loss is LOSSES["wsld"]:  # its weight has no gradient
        return
    assert torch.autograd.gradcheck(lambda x: loss(x, v, y), (z,))


def test_the_weight_of_wsld_has_no_gradient():
    z, v, y = drawn()
    losses.wsld(z, v, y, temperature=2.0).sum().backward()
    w = -torch.expm1(-losses.cross_entropy(z.detach(), y) / (losses.cross_entropy(v, y) + 1e-7))
    expected = 2 * w[:, None] * ((z / 2).softmax(-1) - (v / 2).softmax(-1))
    torch.testing.assert_close(z.grad, expected.detach())


@pytest.mark.parametrize("name", ["dkd", "abdkd"])
def test_dkd_is_0_at_equality_and_least_there(name):
    z, _, y = drawn()
    values = LOSSES[name](z, z.detach(), y)
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.grad, torch.zeros_like(z), rtol=0, atol=1e-12)


def test_rld_is_0_at_equality_where_the_label_is_the_teachers_own():
    z, _, _ = drawn()
    values = LOSSES["rld"](z, z.detach(), z.argmax(-1))
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.grad, torch.zeros_like(z), rtol=0, atol=1e-12)


def test_rld_reads_no_class_that_the_teacher_puts_above_the_label():
    """Of these the student moves, and so does its certainty of the label, but not the second divergence."""
    v = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    z = torch.tensor([[0.5, -1.0, 2.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    losses.rld(z, v, torch.tensor([2]), alpha=0.0, beta=1.0, temperature=1.0, alpha_temperature=1.0).backward()
    assert not z.grad[0, :3].any()
    assert z.grad[0, 3:].all()


@pytest.mark.parametrize("lowest", [-1.0, -torch.inf])
def test_rld_with_nothing_below_the_label_teaches_certainty_alone(lowest):
    z, v, _ = drawn((1, 4))
    v[0, 1:] = torch.tensor([5.0, lowest, lowest])
    for label in (2, 3):  # equal to the other: not below it
        y = torch.tensor([label])
        whole, certainty = (
            losses.rld(z, v, y, alpha=1.0, beta=beta, temperature=2.0, alpha_temperature=1.0) for beta in (8.0, 0.0)
        )
        assert torch.equal(whole, certainty)
        gradient = torch.autograd.grad(whole.sum(), z)[0]
        assert gradient.isfinite().all()
        assert gradient[0, label] != 0


def test_rld_where_all_below_are_ruled_out():
    z, v, _ = drawn((2, 4))
    v[:, 2:] = -torch.inf
    v[:, 1], v[:, 0] = 0.0, 3.0
    values = losses.rld(z, v, torch.tensor([1, 1]), alpha=0.0, beta=1.0, temperature=2.0, alpha_temperature=1.0)
    values.sum().backward()
    assert not values.any()
    assert not z.grad.any()


def test_dkd_weighted_by_what_the_teacher_leaves_to_the_others_is_kd():
    z, v, y = drawn()
    others = 1 - (v / 2).softmax(-1).gather(-1, y[:, None]).squeeze(-1)
    each = [
        losses.dkd(z[k : k + 1], v[k : k + 1], y[k : k + 1], alpha=1.0, beta=others[k].item(), temperature=2.0)
        for k in range(6)
    ]
    torch.testing.assert_close(torch.cat(each), losses.kd(z, v, temperature=2.0))


def test_abdkd_at_exponents_1_and_0_is_dkd():
    z, v, y = drawn()
    numbers = {"alpha": 0.5, "beta": 3.0, "temperature": 2.0}
    torch.testing.assert_close(
        losses.abdkd(z, v, y, ab_alpha=1.0, ab_beta=0.0, **numbers),
        losses.dkd(z, v, y, **numbers),
        rtol=1e-12,
        atol=1e-12,
    )


def test_the_transport_of_others_leaves_the_label_out():
    z, v, y = drawn()
    ours = LOSSES["wkd_l"](z, v, y)
    moved = [x + torch.nn.functional.one_hot(y, 5) * shift for x, shift in ((z, 3.0), (v, -2.0))]
    torch.testing.assert_close(LOSSES["wkd_l"](*moved, y), ours)
    assert (LOSSES["wkd_l"](z, z, y) > 1e-3).all()  # the plan's entropy has a price


def test_the_others_of_two_classes_say_nothing():
    z, v, y = drawn((6, 2))
    assert torch.equal(
        losses.abdkd(z, v, y, alpha=0.0, beta=9.0, ab_alpha=0.5, ab_beta=0.6, temperature=1.0), torch.zeros(6).double()
    )
    values = losses.wkd_l(z, v, y, cost=1 - torch.eye(2), temperature=1.0)
    assert torch.equal(values, torch.zeros(6).double())
    assert torch.equal(losses.dkd(z, v, y, alpha=0.0, beta=9.0, temperature=1.0), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(
        losses.dkd(z, v, y, alpha=1.0, beta=9.0, temperature=2.0), losses.kd(z, v, temperature=2.0)
    )


def test_dkd_of_a_sure_student_in_float32_is_that_in_float64():
    z = torch.tensor([[400.0, 0.0, 1.0], [-400.0, 0.0, 1.0]])
    v, y = torch.tensor([[3.0, 0.0, 1.0], [390.0, 2.0, 0.0]]), torch.tensor([0, 0])
    ours = losses.dkd(z, v, y, alpha=1.0, beta=8.0, temperature=1.0)
    exact = losses.dkd(z.double(), v.double(), y, alpha=1.0, beta=8.0, temperature=1.0)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    assert exact[1] > 390


@about_the_index
def test_soft_labels_are_refused_where_no_class_is_labelled(loss):
    z, v, _ = drawn()
    with refused(InvalidValueError, "labels", got="torch.float64"):
        loss(z, v, v.softmax(-1))


def test_soft_labels_of_nkd_are_their_likeliest_class():
    z, v, _ = drawn()
    soft = torch.rand(6, 5).softmax(-1)
    assert torch.equal(LOSSES["nkd"](z, v, soft), LOSSES["nkd"](z, v, soft.argmax(-1)))


def test_soft_labels_of_wsld_that_are_hard_are_the_index():
    z, v, y = drawn()
    torch.testing.assert_close(LOSSES["wsld"](z, v, torch.eye(5, dtype=torch.float64)[y]), LOSSES["wsld"](z, v, y))


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (
            lambda z, v, y: losses.dkd(z, v, y, alpha=-1.0, beta=1.0, temperature=1.0),
            refused(InvalidValueError, "alpha"),
        ),
        (lambda z, v, y: losses.dkd(z, v, y, alpha=1.0, beta="1", temperature=1.0), refused(InvalidTypeError, "beta")),
        (
            lambda z, v, y: losses.dkd(z, v, y, alpha=1.0, beta=1.0, temperature=0),
            refused(InvalidValueError, "temperature", got=0),
        ),
        (
            lambda z, v, y: losses.dkd(z, v[:3], y, alpha=1.0, beta=1.0, temperature=1.0),
            refused(InvalidValueError, "teacher_logits"),
        ),
        (
            lambda z, v, y: losses.dkd(z, v, y[:3], alpha=1.0, beta=1.0, temperature=1.0),
            refused(InvalidValueError, "labels", got="(3,)"),
        ),
        (
            lambda z, v, y: losses.dkd(z, v, y + 9, alpha=1.0, beta=1.0, temperature=1.0),
            refused(InvalidValueError, "labels", got=11),
        ),
        (
            lambda z, v, y: losses.nkd(z[:, :1], v[:, :1], 0 * y, gamma=1.0, temperature=1.0),
            refused(InvalidValueError, "student_logits", got=1),
        ),
        (
            lambda z, v, y: losses.abdkd(z, v, y, alpha=1.0, beta=1.0, ab_alpha=np.nan, ab_beta=0.3, temperature=1.0),
            refused(InvalidValueError, "ab_alpha", got="nan", suggests="ab_alpha=0.5"),
        ),
        (
            lambda z, v, y: losses.wkd_l(z, v, y, cost=COST, temperature=1.0),
            refused(InvalidValueError, "cost", got="(100, 100)"),
        ),
        (lambda z, v, y: losses.nkd(z, v, y, gamma=-0.1, temperature=1.0), refused(InvalidValueError, "gamma")),
        (lambda z, v, y: losses.nkd(z, v, y.int(), gamma=1.0, temperature=1.0), refused(InvalidTypeError, "labels")),
        (lambda z, v, y: losses.wsld(z, v, y, temperature=-1.0), refused(InvalidValueError, "temperature", got=-1.0)),
        (
            lambda z, v, y: losses.teacher_free_kd(z, y, correct=1.0, temperature=20.0),
            refused(InvalidValueError, "correct", got=1.0),
        ),
        (
            lambda z, v, y: losses.teacher_free_kd(z, y, correct=0.0, temperature=20.0),
            refused(InvalidValueError, "correct", got=0.0),
        ),
        (
            lambda z, v, y: losses.teacher_free_kd(z[:, :1], 0 * y, correct=0.9, temperature=1.0),
            refused(InvalidValueError, "student_logits", got=1),
        ),
        (lambda z, v, y: losses.standardise(z[:, :1]), refused(InvalidValueError, "logits", got=1)),
        (lambda z, v, y: losses.ctkd(z, v, temperature=4.0), refused(InvalidTypeError, "temperature", got="float")),
        (
            lambda z, v, y: losses.ctkd(z, v, temperature=torch.ones(2)),
            refused(InvalidValueError, "temperature", got="(2,)"),
        ),
        (lambda z, v, y: losses.scaled_gradient(y, factor=1.0), refused(InvalidTypeError, "values", got="torch.int64")),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call(*drawn())


# ----------------------------------------------------------------------------------------------------------- transforms


def test_standardised_logits_have_mean_0_and_deviation_1_whatever_their_size():
    z, _, _ = drawn()
    ours = losses.standardise(z).detach().numpy()
    x = z.detach().numpy()
    expected = (x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    torch.testing.assert_close(losses.standardise(7 * z - 2), losses.standardise(z), rtol=1e-6, atol=1e-8)


def test_a_constant_row_standardises_to_0_with_a_finite_gradient():
    z = torch.full((1, 4), 3.0, requires_grad=True)
    ours = losses.standardise(z)
    losses.kd(ours, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), temperature=1.0).sum().backward()
    assert torch.equal(ours, torch.zeros(1, 4))
    assert z.grad.isfinite().all()
    assert losses.standardise(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_learned_temperature_is_that_of_kd_and_is_differentiated_everywhere():
    z, v, _ = drawn()
    t = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(losses.ctkd(z, v, temperature=t), losses.kd(z, v, temperature=3.0))
    assert torch.autograd.gradcheck(lambda x: losses.ctkd(z.detach(), v, temperature=x), (t,))
    v.requires_grad_()
    losses.ctkd(z, v, temperature=t).sum().backward()
    assert v.grad is None


def test_a_virtual_teacher_as_the_paper_writes_it_is_kd_with_its_logarithm():
    z, _, y = drawn()
    u = torch.full((6, 5), 0.1 / 4, dtype=torch.float64).scatter(1, y[:, None], 0.9)
    assert losses.kd(z, u.log(), temperature=20.0).isfinite().all()
    nearly_uniform = losses.teacher_free_kd(z, y, correct=0.9, temperature=1e6)
    expected = losses.kl_divergence(z.log_softmax(-1), torch.full_like(z, 0.2).log().detach())
    torch.testing.assert_close(nearly_uniform, expected, rtol=1e-5, atol=1e-6)


def test_abdkd_is_finite_where_a_student_excludes_a_class():
    student = torch.tensor([[1.0, -math.inf, 0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher, numbers = torch.tensor([[0.0, 1.0, 2.0, 0.5]], dtype=torch.float64), {"ab_alpha": 0.5, "ab_beta": 0.6}
    values = losses.abdkd(student, teacher, torch.tensor([0]), alpha=1.0, beta=8.0, temperature=2.0, **numbers)
    values.sum().backward()
    nearly = torch.tensor([[1.0, -1e3, 0.5, 0.0]], dtype=torch.float64)
    wanted = losses.abdkd(nearly, teacher, torch.tensor([0]), alpha=1.0, beta=8.0, temperature=2.0, **numbers)
    torch.testing.assert_close(values.detach(), wanted)
    assert student.grad.isfinite().all()
