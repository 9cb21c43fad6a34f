"""Losses that rank the classes, and those of regions."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from tests._helpers.logits import drawn, softmax
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidValueError

T = 2.0
SHAPE = (6, 9)


def kl(v, z):
    p, q = softmax(v / T), softmax(z / T)
    return T**2 * (p * np.log(p / q)).sum()


# Pairs of the likeliest classes


def ldrld(z, v, k):
    """Pair by pair, class by class; 2.0 times the ranked ones and 3.0 times the rest."""
    k = min(k, len(z))
    order = np.argsort(-z)
    top, rest = order[:k], order[k:]
    weights = {
        (i, j): 2 * np.exp(-0.05 * (i + j)) / (1.5 + j - i) for i, j in itertools.combinations(range(1, k + 1), 2)
    }
    pairs = sum(w * kl(v[top[[i - 1, j - 1]]], z[top[[i - 1, j - 1]]]) for (i, j), w in weights.items())
    of_top = kl(v[top], z[top]) * (weights[1, 2] if k == 2 else 1)
    return 2 * (pairs + of_top) / (len(weights) + 1) + (3 * kl(v[rest], z[rest]) if len(rest) else 0.0)


@pytest.mark.parametrize("k", [2, 3, 7, 9, 20])
@pytest.mark.parametrize("classes", [2, 3, 9, 100])
def test_ldrld_is_its_formula(classes, k):
    z, v, _ = drawn((6, classes))
    values = losses.ldrld(z, v, k=k, alpha=2.0, beta=3.0, temperature=T)
    each = zip(z.detach().numpy(), v.numpy(), strict=True)
    torch.testing.assert_close(
        values.detach(), torch.tensor([ldrld(*pair, k) for pair in each]), rtol=1e-10, atol=1e-12
    )


def test_ldrld_of_every_class_has_no_rest():
    z, v, _ = drawn(SHAPE)
    with_rest, without = (losses.ldrld(z, v, k=9, alpha=1.0, beta=beta, temperature=T) for beta in (5.0, 0.0))
    assert torch.equal(with_rest, without)
    assert torch.equal(losses.ldrld(z, v, k=50, alpha=1.0, beta=5.0, temperature=T), with_rest)


def test_ldrld_is_0_and_least_at_equality():
    z, _, _ = drawn(SHAPE)
    values = losses.ldrld(z, z.detach(), k=4, alpha=10.5, beta=7.0, temperature=4.0)
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.grad, torch.zeros_like(z), rtol=0, atol=1e-12)


def test_ldrld_of_classes_that_both_networks_rule_out():
    z, v, _ = drawn((6, 4))
    ruled_out = torch.full((6, 3), -torch.inf, dtype=torch.float64)
    wide = torch.cat((z.detach(), ruled_out), 1).requires_grad_()
    kwargs = {"alpha": 2.0, "beta": 3.0, "temperature": T}
    values = losses.ldrld(wide, torch.cat((v, ruled_out), 1), k=4, **kwargs)
    torch.testing.assert_close(values, losses.ldrld(z, v, k=4, **kwargs))
    more = losses.ldrld(wide, torch.cat((v, ruled_out), 1), k=7, **kwargs)  # pairs of them are as alike as can be
    (more + values).sum().backward()
    assert more.isfinite().all()
    assert wide.grad.isfinite().all()
    assert losses.ldrld(wide, torch.cat((v, ruled_out.exp()), 1), k=7, **kwargs).isposinf().all()


def test_ldrld_ranks_the_students_classes():
    """A teacher's own order does not matter: classes far down the student's ranks are in the rest alone."""
    z, v, _ = drawn((1, 5))
    z = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    losses.ldrld(z, v, k=3, alpha=1.0, beta=0.0, temperature=T).backward()
    assert z.grad[0, :3].all()
    assert not z.grad[0, 3:].any()


def test_ldrld_of_fewer_than_two_classes_is_refused():
    z, v, _ = drawn(SHAPE)
    for k in (1, 2.0, True):
        with refused(InvalidValueError, "k", got=repr(k), suggests="k=7"):
            losses.ldrld(z, v, k=k, alpha=1.0, beta=1.0, temperature=T)
    for name in ("alpha", "beta"):
        with refused(InvalidValueError, name, got=-1):
            losses.ldrld(z, v, **{"k": 2, "alpha": 1.0, "beta": 1.0, "temperature": T, name: -1})


# Regions

BASES = {
    "kd": lambda z, v, y: losses.kd(z, v, temperature=T),
    "dkd": partial(losses.dkd, alpha=1.0, beta=8.0, temperature=T),
    "nkd": partial(losses.nkd, gamma=1.5, temperature=T),
}
every = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


@every
def test_sdd_is_its_formula_region_by_region(base):
    z, v, _ = drawn((40, 5, 3))
    y = torch.arange(40) % 3
    values, weights = losses.sdd(z, v, y, base=base), set()
    for n in range(40):
        whole = int(v[n, 0].argmax()) == int(y[n])
        total = 0.0
        for r in range(5):
            weight = 2 if (int(v[n, r].argmax()) == int(y[n])) != whole else 1
            weights.add((whole, weight))
            total += weight * base(z[n : n + 1, r], v[n : n + 1, r], y[n : n + 1]).item()
        assert values[n].item() == pytest.approx(total / 5, rel=1e-10)
    assert len(weights) == 4  # both kinds of disagreement occurred


@every
def test_sdd_of_the_whole_alone_is_its_base(base):
    z, v, y = drawn((6, 5))
    torch.testing.assert_close(losses.sdd(z[:, None], v[:, None], y, base=base), base(z, v, y))


@every
def test_sdd_of_a_region_is_not_shifted_and_regions_have_no_order(base):
    z, v, y = drawn((6, 5, 4))
    y = y[:, 0]
    values = losses.sdd(z, v, y, base=base)
    by = torch.randn(6, 5, 1, dtype=torch.float64)
    torch.testing.assert_close(losses.sdd(z + by, v - by, y, base=base), values)
    order = [0, 3, 1, 4, 2]  # behind the whole
    torch.testing.assert_close(losses.sdd(z[:, order], v[:, order], y, base=base), values)
    deep = losses.sdd(z.reshape(2, 3, 5, 4), v.reshape(2, 3, 5, 4), y.reshape(2, 3), base=base)
    torch.testing.assert_close(deep.flatten(), values)


@every
def test_sdd_of_an_unlabelled_sample_is_0(base):
    z, v, y = drawn((6, 5, 4))
    y = y[:, 0]
    part = losses.sdd(z, v, torch.where(torch.arange(6) % 2 == 0, y, -100), base=base)
    assert torch.equal(part[::2], losses.sdd(z, v, y, base=base)[::2])
    assert not part[1::2].any()
    part.sum().backward()
    assert not z.grad[1::2].any()
    assert z.grad[::2].any()


@every
@pytest.mark.parametrize("scale", [0.0, 300.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sdd_is_finite_at_extremes_and_the_student_alone_learns(base, scale, dtype):
    z, v, y = drawn((6, 5, 4), scale=scale, dtype=dtype)
    v.requires_grad_()
    values = losses.sdd(z, v, y[:, 0], base=base)
    values.sum().backward()
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert z.grad.isfinite().all()
    assert z.grad.dtype == dtype
    assert v.grad is None


@every
def test_gradients_of_sdd_are_those_of_differences(base):
    z, v, y = drawn((3, 5, 4))
    assert torch.autograd.gradcheck(lambda x: losses.sdd(x, v, y[:, 0], base=base), (z,))


def test_sdd_refuses_a_loss_of_one_value_for_all_regions():
    z, v, y = drawn((4, 5, 3))
    with refused(InvalidValueError, "base", got="()"):
        losses.sdd(z, v, y[:, 0], base=lambda z, v, y: (z - v).mean())


def test_sdd_refuses_what_has_no_regions_and_soft_labels():
    z, v, y = drawn((6, 5, 4))
    for bad in ((4,), (6, 0, 4)):
        with refused(InvalidValueError, "student_logits", got=bad):
            losses.sdd(torch.zeros(bad), torch.zeros(bad), y[:, 0], base=BASES["kd"])
    with refused(InvalidValueError, "labels", suggests="labels.argmax(-1)"):
        losses.sdd(z, v, torch.full((6, 4), 0.25), base=BASES["kd"])
