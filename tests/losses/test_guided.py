"""Losses that read the teacher's head, batch norms or class means, compared with NumPy, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError


def drawn(*shape, seed=0, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


MARGINS = -drawn(5, seed=9).abs()
LABELS = torch.tensor([0, 2, 1, 2])
MEANS = drawn(3, 5, seed=8)
HEAD = {"weight": drawn(7, 5, seed=6), "bias": drawn(7, seed=7)}
EACH = {
    "statistics": lambda s, t: losses.srrl_statistics(s, t),
    "regression": lambda s, t: losses.srrl_regression(s, t, **HEAD),
    "ofd": lambda s, t: losses.ofd(s, t, margins=MARGINS),
    "norm_direction": lambda s, t: losses.norm_direction(s.mean((2, 3)), t.mean((2, 3)), LABELS, class_means=MEANS),
}


def pair(**more):
    return drawn(4, 5, 3, 2, seed=1, **more), drawn(4, 5, 3, 2, seed=2, **more)


def test_srrl_matches_numpy():
    s, t = pair()
    ours, theirs = (x.numpy().mean((2, 3)) for x in (s, t))
    np.testing.assert_allclose(losses.srrl_statistics(s, t), ((ours - theirs) ** 2).mean(1), rtol=1e-12)
    weight = HEAD["weight"].numpy()
    np.testing.assert_allclose(
        losses.srrl_regression(s, t, **HEAD), ((ours @ weight.T - theirs @ weight.T) ** 2).mean(1), rtol=1e-10
    )


def test_srrl_takes_pooled_features_and_maps_of_other_sizes():
    s, t = pair()
    torch.testing.assert_close(losses.srrl_statistics(s, t.mean((2, 3))), losses.srrl_statistics(s, t))
    wider = t.repeat_interleave(2, dim=2)
    without = {"weight": HEAD["weight"]}
    torch.testing.assert_close(
        losses.srrl_regression(s, wider, **without), losses.srrl_regression(s, t, **HEAD), rtol=1e-9, atol=0
    )


def test_ofd_matches_its_three_cases():
    s, t = pair()
    expected = np.zeros(4)
    for index in np.ndindex(*s.shape):
        ours, theirs, margin = s[index].item(), t[index].item(), MARGINS[index[1]].item()
        if theirs > 0 or (margin < theirs and ours > theirs):
            expected[index[0]] += (ours - theirs) ** 2
        elif theirs <= margin and ours > margin:
            expected[index[0]] += (ours - margin) ** 2
    np.testing.assert_allclose(losses.ofd(s, t, margins=MARGINS), expected, rtol=1e-12)


def test_ofd_asks_nothing_of_a_student_below_a_teacher_that_is_silent():
    s = torch.full((1, 1, 1, 1), -torch.inf, requires_grad=True)
    value = losses.ofd(s, torch.full((1, 1, 1, 1), -0.5), margins=torch.tensor([-1.0]))
    value.sum().backward()
    assert value.item() == 0
    assert s.grad.item() == 0


@pytest.mark.parametrize(("weight", "bias"), [(1.0, 0.0), (-0.7, 0.4), (2.0, -3.0), (0.5, 1.5), (1.0, 3.0)])
def test_margins_are_means_below_zero(weight, bias):
    normal = stats.norm(bias, abs(weight))
    mass = integrate.quad(lambda x: x * normal.pdf(x), -40, 0, points=[bias, -1.0])[0]
    margin = losses.ofd_margins(*(torch.tensor([x], dtype=torch.float64) for x in (weight, bias)))
    assert margin.item() == pytest.approx(mass / normal.cdf(0), rel=1e-6)


def test_margins_at_the_ends():
    weight = torch.tensor([0.5, 1.0, 0.0, 0.0, 0.0, 1e-30, -1e-30])
    bias = torch.tensor([9.0, 3.5, -2.0, 2.0, 0.0, -1.0, 1.0])
    expected = torch.tensor([-1.5, -3.0, -2.0, 0.0, 0.0, -1.0, 0.0])
    torch.testing.assert_close(losses.ofd_margins(weight, bias), expected)
    assert losses.ofd_margins(weight.half(), bias.half()).dtype == torch.float32


def test_norm_direction_matches_numpy():
    s, t = drawn(4, 5, seed=1), drawn(4, 5, seed=2)
    s[0] *= 10
    s[1] *= 0.1
    centres = MEANS.numpy()[LABELS.numpy()]
    directions = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    longest = np.maximum(*(np.linalg.norm(x.numpy(), axis=1) for x in (s, t)))
    expected = 1 - (s.numpy() * directions).sum(1) / longest
    np.testing.assert_allclose(losses.norm_direction(s, t, LABELS, class_means=MEANS), expected, rtol=1e-12)


def test_norm_direction_is_zero_along_the_class_and_does_not_lengthen_a_long_embedding():
    s = (3 * MEANS[LABELS]).requires_grad_()
    value = losses.norm_direction(s, MEANS[LABELS], LABELS, class_means=MEANS)
    torch.testing.assert_close(value, torch.zeros_like(value))
    turned = drawn(4, 5, seed=3, scale=9.0).requires_grad_()
    losses.norm_direction(turned, MEANS[LABELS], LABELS, class_means=MEANS).sum().backward()
    torch.testing.assert_close((turned * turned.grad).sum(1), torch.zeros(4, dtype=torch.float64))


def test_norm_direction_leaves_out_the_unlabelled_and_stands_zero_features():
    s = drawn(4, 5, seed=1)
    s[2] = 0
    s.requires_grad_()
    t = drawn(4, 5, seed=2)
    t[2] = 0
    value = losses.norm_direction(s, t, torch.tensor([0, -100, 1, 2]), class_means=MEANS)
    value.sum().backward()
    assert value[1] == 0
    assert torch.equal(s.grad[1], torch.zeros(5, dtype=torch.float64))
    assert value[2] == 1
    assert s.grad.norm(dim=1).max() < 10


@pytest.mark.parametrize("name", ["statistics", "regression", "ofd"])
def test_nothing_is_lost_at_equality(name):
    s, _ = pair()
    s = s.abs() if name == "ofd" else s
    assert EACH[name](s, s).abs().max() == 0


@pytest.mark.parametrize("name", EACH)
def test_teachers_get_no_gradient_and_students_a_finite_one(name):
    s, t = pair(scale=1e4)
    s.requires_grad_()
    t.requires_grad_()
    EACH[name](s, t).sum().backward()
    assert t.grad is None
    assert torch.isfinite(s.grad).all()
    assert s.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["statistics", "regression", "ofd"])
def test_samples_do_not_see_each_other(name):
    s, t = pair()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(EACH[name](s[order], t[order]), EACH[name](s, t)[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", EACH)
def test_narrow_features_are_computed_wide(name, dtype):
    s, t = (x.to(dtype) for x in pair())
    value = EACH[name](s, t)
    assert value.shape == (4,)
    assert value.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(value.double(), EACH[name](s.double(), t.double()), rtol=2e-2, atol=2e-2)


def test_errors_say_what_does_not_fit():
    s, t = pair()
    with refused(InvalidValueError, "teacher_features", got="(4, 3)"):
        losses.srrl_statistics(s, t[:, :3])
    with refused(InvalidValueError, "weight"):
        losses.srrl_regression(s, t, weight=torch.ones(2, 3))
    with refused(InvalidValueError, "bias", got=3):
        losses.srrl_regression(s, t, weight=HEAD["weight"], bias=torch.ones(3))
    with refused(InvalidValueError, "margins", got=2):
        losses.ofd(s, t, margins=torch.zeros(2))
    with refused(InvalidValueError, "bias", got="(3,)"):
        losses.ofd_margins(torch.ones(2), torch.ones(3))
    with refused(InvalidTypeError, "labels", got="torch.float32"):
        losses.norm_direction(MEANS, MEANS, torch.eye(3), class_means=MEANS)
    with refused(InvalidValueError, "class_means"):
        losses.norm_direction(MEANS, MEANS, torch.arange(3), class_means=torch.ones(3, 2))
    with refused(InvalidValueError, "labels", got=3):
        losses.norm_direction(MEANS, MEANS, torch.tensor([0, 1, 3]), class_means=MEANS)
