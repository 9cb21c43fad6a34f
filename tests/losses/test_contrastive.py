"""Contrast with banks, compared with NumPy and with the form that gathers rows first."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused
from torch.nn import functional as F

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError


def drawn(batch=6, samples=40, dimension=8, negatives=16, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(batch, dimension, generator=generator, dtype=dtype), dim=1)
    bank = F.normalize(torch.randn(samples, dimension, generator=generator, dtype=dtype), dim=1)
    columns = torch.randint(samples, (batch, 1 + negatives), generator=generator)
    return embeddings.requires_grad_(), bank, columns


def gathered(embeddings, bank, columns, *, temperature):
    """The scores as the public code computes them: the bank's rows first."""
    return torch.einsum("bkd,bd->bk", bank[columns], embeddings) / temperature


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_dense_product_equals_gathering_the_rows(dtype, tolerance):
    embeddings, bank, columns = drawn(batch=9, samples=300, negatives=128, dtype=dtype)
    ours = losses.bank_scores(embeddings, bank, columns, temperature=0.07)
    theirs = gathered(embeddings, bank, columns, temperature=0.07)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=10 * tolerance)
    weights = torch.randn_like(ours)
    (by_ours,) = torch.autograd.grad((ours * weights).sum(), embeddings)
    (by_theirs,) = torch.autograd.grad((theirs * weights).sum(), embeddings)
    torch.testing.assert_close(by_ours, by_theirs, rtol=tolerance, atol=100 * tolerance)


def test_a_bank_gets_no_gradient():
    embeddings, bank, columns = drawn()
    bank.requires_grad_()
    losses.bank_scores(embeddings, bank, columns, temperature=0.07).sum().backward()
    assert bank.grad is None
    assert embeddings.grad is not None


def test_contrast_matches_numpy():
    ratios = torch.randn(5, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, prior = np.exp(ratios.numpy()), 8 / 50
    positive = -np.log(x[:, 0] / (x[:, 0] + prior + 1e-7))
    negative = -np.log(prior / (x[:, 1:] + prior + 1e-7)).sum(1)
    ours = losses.contrast(ratios, samples=50)
    np.testing.assert_allclose(ours.numpy(), positive + negative, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_contrast_is_finite_where_the_ratios_overflow(dtype):
    ratios = torch.tensor([[-200.0, 200.0, 0.0]], dtype=dtype, requires_grad=True)
    values = losses.contrast(ratios, samples=50)
    assert values.dtype == torch.float32
    assert values.item() == pytest.approx(400 + math.log1p(1 / 0.04), rel=1e-5)
    values.sum().backward()
    torch.testing.assert_close(ratios.grad[0, :2], torch.tensor([-1.0, 1.0], dtype=dtype))


def test_contrast_sums_over_negatives_and_keeps_samples_apart():
    ratios = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    values = losses.contrast(ratios, samples=30)
    assert values.shape == (4,)
    torch.testing.assert_close(losses.contrast(ratios[1:2], samples=30), values[1:2])
    torch.testing.assert_close(losses.contrast(ratios[:, [0, 3, 5, 1, 2, 4]], samples=30), values)


def test_the_normaliser_is_the_mean_times_the_samples():
    scores = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours = losses.log_normaliser(scores.requires_grad_(), samples=70)
    assert ours.exp().item() == pytest.approx(scores.exp().mean().item() * 70)
    assert not ours.requires_grad
    assert torch.isfinite(losses.log_normaliser(torch.full((2, 2), 300.0), samples=70))


def test_both_sides_are_in_the_loss_and_teach_both_maps():
    student, bank, columns = drawn(seed=4)
    teacher, other, _ = drawn(seed=5)
    scores = [
        losses.bank_scores(student, other, columns, temperature=0.5),
        losses.bank_scores(teacher, bank, columns, temperature=0.5),
    ]
    constants = torch.stack([losses.log_normaliser(each, samples=40) for each in scores])
    values = losses.crd(*scores, constants, samples=40)
    halves = [losses.contrast(each - z, samples=40) for each, z in zip(scores, constants, strict=True)]
    torch.testing.assert_close(values, halves[0] + halves[1])
    values.sum().backward()
    assert student.grad.norm() > 0
    assert teacher.grad.norm() > 0


def test_rows_move_by_the_momentum_and_stay_on_the_sphere():
    new, rows, _ = drawn(batch=5, samples=5)
    ours = losses.moved(rows, new, momentum=0.25)
    mixed = 0.25 * rows.numpy() + 0.75 * new.detach().numpy()
    np.testing.assert_allclose(ours.numpy(), mixed / np.linalg.norm(mixed, axis=1, keepdims=True), rtol=1e-12)
    torch.testing.assert_close(losses.moved(rows, new, momentum=0), new.detach())
    assert not ours.requires_grad


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda e, b, c: losses.bank_scores(e, b[:, :5], c, temperature=1), refused(InvalidValueError, "bank")),
        (lambda e, b, c: losses.bank_scores(e, b, c[:3], temperature=1), refused(InvalidValueError, "columns")),
        (lambda e, b, c: losses.bank_scores(e, b, c.int(), temperature=1), refused(InvalidTypeError, "columns")),
        (lambda e, b, c: losses.bank_scores(e, b, c, temperature=0), refused(InvalidValueError, "temperature")),
        (
            lambda e, b, c: losses.bank_scores(e[0], b, c, temperature=1),
            refused(InvalidValueError, "embeddings", got="(8,)"),
        ),
        (lambda e, b, c: losses.contrast(e[:, :1], samples=3), refused(InvalidValueError, "log_ratios")),
        (lambda e, b, c: losses.contrast(e, samples=0), refused(InvalidValueError, "samples", got=0)),
        (lambda e, b, c: losses.contrast(e, samples=3.0), refused(InvalidTypeError, "samples", got=3.0)),
        (lambda e, b, c: losses.contrast(c, samples=3), refused(InvalidTypeError, "log_ratios", got="torch.int64")),
        (
            lambda e, b, c: losses.crd(e, e[:, :3], torch.zeros(2), samples=3),
            refused(InvalidValueError, "teacher_scores"),
        ),
        (lambda e, b, c: losses.crd(e, e, torch.zeros(3), samples=3), refused(InvalidValueError, "log_normalisers")),
        (lambda e, b, c: losses.moved(b, e, momentum=0.5), refused(InvalidValueError, "embeddings", got="(6, 8)")),
        (lambda e, b, c: losses.moved(e, e, momentum=1), refused(InvalidValueError, "momentum")),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call(*drawn())
