"""Losses of two views and of hard labels, compared with SciPy, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.losses.views import weak_views

HOW = {"temperature": 3.0, "within": 2.0, "across": 0.5, "tau_w": 0.6, "tau_s": 0.45}


def drawn(samples=40, classes=5, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    z, v = (scale * torch.randn(2, 2 * samples, classes, generator=generator, dtype=torch.float64)).to(dtype).unbind()
    return z.clone().requires_grad_(), v


@pytest.mark.parametrize("masked_by", ["target", "pair"])
def test_crld_sample_by_sample(masked_by):
    z, v = drawn()
    expected, kept = [], np.zeros(2)
    for n in range(0, len(z), 2):
        total, sure = 0.0, [v[n + k].softmax(0).max().item() >= (0.6, 0.45)[k] for k in range(2)]
        kept += sure
        for target in range(2):
            for reader in range(2):
                rows = (z[n + reader].detach().numpy() / 3, v[n + target].numpy() / 3)
                q, p = (scipy.special.softmax(row) for row in rows)
                within = reader == target
                own = target if masked_by == "target" else int(not within)
                total += (2.0 if within else 0.5) * sure[own] * 9 * scipy.stats.entropy(p, q)
        expected.append(total)
    assert (kept > 5).all()
    assert (kept < 35).all()
    np.testing.assert_allclose(losses.crld(z, v, **HOW, masked_by=masked_by).detach(), expected, rtol=1e-10)


def test_crld_of_a_sure_teacher_is_zero_within_views_where_the_networks_agree():
    z, v = drawn()
    everyone = HOW | {"tau_w": 0.0, "tau_s": 0.0}
    assert torch.equal(losses.crld(v, v, **everyone | {"across": 0.0}), torch.zeros(40).double())
    assert (losses.crld(v, v, **everyone) > 0).all()
    twice = v[0::2].repeat_interleave(2, 0)  # two equal views
    torch.testing.assert_close(losses.crld(twice, twice, **everyone), torch.zeros(40).double(), rtol=0, atol=1e-12)
    nobody = losses.crld(z, v, **HOW | {"tau_w": 1.0, "tau_s": 1.0})
    assert torch.equal(nobody, torch.zeros(40).double())
    swapped = [x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for x in (z, v)]  # no view is the first where all count
    torch.testing.assert_close(losses.crld(*swapped, **everyone), losses.crld(z, v, **everyone))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
@pytest.mark.parametrize("loss", [lambda z, v: losses.crld(z, v, **HOW), losses.hard_label], ids=["crld", "hard_label"])
def test_value_and_gradient_are_finite(loss, scale, dtype):
    z, v = drawn(scale=scale, dtype=dtype)
    values = loss(z, v.requires_grad_())
    assert values.dtype == torch.promote_types(dtype, torch.float32)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(z.grad).all()
    assert v.grad is None


def test_a_class_that_neither_network_gives_a_chance_changes_nothing():
    z, v = drawn()
    wider = [torch.cat((x.detach(), torch.full((80, 1), -torch.inf).double()), 1).requires_grad_() for x in (z, v)]
    values = losses.crld(*wider, **HOW)
    torch.testing.assert_close(values, losses.crld(z, v, **HOW))
    values.sum().backward()
    assert torch.isfinite(wider[0].grad).all()


def test_a_hard_label_is_the_cross_entropy_with_the_teachers_class():
    z, v = drawn()
    expected = torch.nn.functional.cross_entropy(z, v.argmax(1), reduction="none")
    torch.testing.assert_close(losses.hard_label(z, v), expected)
    assert losses.hard_label(z.reshape(8, 10, 5), v.reshape(8, 10, 5)).shape == (8, 10)
    # What soft labels of a teacher tend to that is sure of its classes.
    torch.testing.assert_close(losses.cross_entropy(z, (1e4 * v).softmax(1)), expected)


@pytest.mark.parametrize("loss", [lambda z, v: losses.crld(z, v, **HOW), losses.hard_label])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_number_is_noticed(loss, which):
    logits = [x.detach().clone() for x in drawn()]
    logits[which][3, 1] = float("nan")
    assert loss(*logits).isnan().any()


def test_hard_labels_can_be_mapped_over():
    z, v = drawn()
    mapped = torch.func.vmap(torch.func.grad(lambda z, v: losses.hard_label(z, v).sum()))(z[:, None], v[:, None])
    expected = torch.autograd.grad(losses.hard_label(z.requires_grad_(), v).sum(), z)[0]
    torch.testing.assert_close(mapped[:, 0], expected)


def test_weak_views_are_every_other_row():
    assert torch.equal(weak_views(torch.arange(8.0).reshape(4, 2)), torch.tensor([[0.0, 1.0], [4.0, 5.0]]))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda z, v: losses.crld(z[1:], v[1:], **HOW), refused(InvalidValueError, "logits", suggests="data.strong")),
        (lambda z, v: weak_views(z[:, None]), refused(InvalidValueError, "logits", got="(80, 1, 5)")),
        (lambda z, v: losses.crld(z, v[:, 1:], **HOW), refused(InvalidValueError, "teacher_logits")),
        (lambda z, v: losses.crld(z, v, **HOW | {"tau_w": 1.1}), refused(InvalidValueError, "tau_w", got=1.1)),
        (lambda z, v: losses.crld(z, v, **HOW | {"tau_s": "0.2"}), refused(InvalidTypeError, "tau_s", got="str")),
        (lambda z, v: losses.crld(z, v, **HOW | {"tau_s": True}), refused(InvalidTypeError, "tau_s", got="bool")),
        (lambda z, v: losses.crld(z, v, **HOW | {"across": -1.0}), refused(InvalidValueError, "across", got=-1.0)),
        (lambda z, v: losses.crld(z, v, **HOW | {"temperature": 0}), refused(InvalidValueError, "temperature", got=0)),
        (lambda z, v: losses.crld(z, v, **HOW, masked_by="x"), refused(InvalidValueError, "masked_by", got="'x'")),
        (lambda z, v: losses.hard_label(z, v.long()), refused(InvalidTypeError, "teacher_logits")),
    ],
)
def test_refusals(call, expected):
    with expected:
        call(*drawn())


def test_a_teacher_that_is_nan_is_noticed_in_its_row():
    student, teacher = torch.zeros(4, 3), torch.zeros(4, 3)
    teacher[1, 2] = torch.nan
    assert losses.hard_label(student, teacher).isnan().tolist() == [False, True, False, False]
    for masked_by in ("target", "pair"):
        assert losses.crld(student, teacher, **HOW, masked_by=masked_by).isnan().tolist() == [True, False]
