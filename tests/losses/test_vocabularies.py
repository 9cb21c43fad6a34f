"""Losses of unlike vocabularies, against loops in NumPy and SciPy and at their edges."""

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError

quick = settings(max_examples=15, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 10_000)


def drawn(seed, *, classes=(7, 9), positions=(6, 8), batch=3, scale=2.0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    z, v = (
        scale * torch.randn(batch, length, width, generator=random, dtype=torch.float64)
        for length, width in zip(positions, classes, strict=True)
    )
    masks = [torch.rand(batch, length, generator=random) < 0.6 for length in positions]
    return z.to(dtype).requires_grad_(), v.to(dtype), *masks


def rows(z, v, ours, theirs, temperature=1.0):
    """Yield the pairs of each sample's positions, as probabilities of NumPy."""
    for sample in range(len(z)):
        q, p = (
            scipy.special.softmax(x[sample][counted[sample]].detach().numpy() / temperature, -1)
            for x, counted in ((z, ours), (v, theirs))
        )
        yield list(zip(q, p, strict=False))


def sorted_distance(q, p):
    wide = max(len(q), len(p))
    q, p = (np.pad(np.sort(x)[::-1], (0, wide - len(x))) for x in (q, p))
    return np.abs(q - p).sum()


def jensen(q, p, beta):
    if beta in (0.0, 1.0):
        a, b = (p, q) if beta == 0 else (q, p)
        return (a * np.log(a / b)).sum()
    m = beta * p + (1 - beta) * q
    return (beta * p * np.log(p / m) + (1 - beta) * q * np.log(q / m)).sum()


@quick
@given(seeds, st.sampled_from([0.5, 1.0, 3.0]))
def test_uld_is_the_mean_of_sorted_distances_position_by_position(seed, temperature):
    drawing = drawn(seed)
    found = losses.uld(*drawing, temperature=temperature)
    wanted = [np.mean([sorted_distance(*pair) for pair in pairs]) if pairs else 0.0
              for pairs in rows(*drawing, temperature)]  # fmt: skip
    np.testing.assert_allclose(found.detach(), wanted, rtol=1e-12)


@quick
@given(seeds, st.sampled_from([0.0, 0.3, 1.0]))
def test_gold_is_a_divergence_of_the_matched_and_sorts_the_others(seed, beta):
    drawing = drawn(seed)
    same = torch.tensor([[1, 0], [0, 4], [6, 8]])
    mine, its = same.T.numpy()
    found = losses.gold(*drawing, same_tokens=same, beta=beta)
    share = 3 / 9
    wanted = []
    for pairs in rows(*drawing):
        each = [
            share * jensen(q[mine], p[its], beta) + (1 - share) * sorted_distance(np.delete(q, mine), np.delete(p, its))
            for q, p in pairs
        ]
        wanted.append(np.mean(each) if each else 0.0)
    np.testing.assert_allclose(found.detach(), wanted, rtol=1e-11, atol=1e-14)
    alone = losses.gold(*drawing, same_tokens=same, beta=beta, matched_weight=2.0, unmatched_weight=0.0)
    with_none = losses.gold(*drawing, same_tokens=same[:0], beta=beta)
    matched = [np.mean([2 * jensen(q[mine], p[its], beta) for q, p in pairs] or [0.0]) for pairs in rows(*drawing)]
    np.testing.assert_allclose(alone.detach(), matched, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(with_none, losses.uld(*drawing))


def test_gold_of_one_vocabulary_is_the_divergence():
    z, v, counted, _ = drawn(0, classes=(7, 7), positions=(6, 6))
    found = losses.gold(z, v, counted, counted, beta=0.3)
    each = losses.divergence(z, v, kind="jensen_shannon", beta=0.3)
    torch.testing.assert_close(found, (each * counted).sum(1) / counted.sum(1))


BOTH = [losses.uld, lambda *given: losses.gold(*given, same_tokens=torch.tensor([[0, 1], [2, 2]]))]


@pytest.mark.parametrize("loss", BOTH)
def test_nothing_but_counted_positions_and_no_order_of_the_others_matters(loss):
    z, v, ours, theirs = drawn(1)
    found = loss(z, v, ours, theirs)
    elsewhere = torch.where(theirs[..., None], v, 1e4)
    torch.testing.assert_close(loss(z, elsewhere, ours, theirs), found)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert not gradient[~ours].any()
    longer = torch.nn.functional.pad(v, (0, 0, 3, 2)), torch.nn.functional.pad(theirs, (3, 2))
    torch.testing.assert_close(loss(z, longer[0], ours, longer[1]), found)
    torch.testing.assert_close(loss(z + 3, v - 2, ours, theirs), found)
    none = torch.zeros_like(ours)
    assert loss(z, v, none, theirs).tolist() == [0, 0, 0]
    for sample in range(3):  # each by itself
        torch.testing.assert_close(loss(*(x[sample : sample + 1] for x in (z, v, ours, theirs)))[0], found[sample])


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extremes_are_finite(loss, dtype):
    z, v, ours, theirs = drawn(2, scale=300.0, dtype=dtype)
    v[..., 3] = -torch.inf
    v[0] = 0.0  # a constant row
    values = loss(z, v, ours, theirs)
    assert values.dtype == torch.float32
    (gradient,) = torch.autograd.grad(values.sum(), z)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()
    assert gradient.dtype == dtype


def test_two_classes_one_sample_and_one_position_each():
    z, v = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    assert losses.uld(z, v).tolist() == [0.0]  # Only the sorted probabilities are compared.
    gap = losses.gold(z, v)
    torch.testing.assert_close(gap, losses.divergence(z, v, kind="jensen_shannon"))
    assert gap.shape == (1,)


@pytest.mark.parametrize("shape", [(0, 3, 5), (0, 5), (2, 0, 5)])
def test_no_samples_and_no_positions(shape):
    z = torch.zeros(shape, requires_grad=True)
    for loss in (losses.uld, losses.gold):
        values = loss(z, torch.zeros(shape))
        assert torch.equal(values, torch.zeros(shape[0]))
        values.sum().backward()


def test_derivatives_are_those_of_differences():
    z, v, ours, theirs = drawn(3, classes=(4, 5), positions=(2, 3), batch=2)
    for loss in (losses.uld, BOTH[1]):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, v, ours, theirs), z)


def test_what_cannot_be_compared_is_refused():
    z, v, ours, theirs = drawn(0)
    with refused(InvalidValueError, "teacher_logits", got=2):
        losses.uld(z, v[:2])
    with refused(InvalidValueError, "student_counted", got=(3, 2)):
        losses.uld(z, v, ours[:, :2], theirs)
    with refused(InvalidTypeError, "teacher_counted", got=torch.int64):
        losses.uld(z, v, ours, theirs.long())
    with refused(InvalidValueError, "teacher_logits", got=9, suggests="same_tokens"):
        losses.gold(z, v, ours, theirs)
    with refused(InvalidValueError, "same_tokens", got="torch.float32"):
        losses.gold(z, v, ours, theirs, same_tokens=torch.zeros(2, 2))
    for pairs in ([[0, 7]], [[-1, 0]]):
        with refused(InvalidValueError, "same_tokens", got=str(pairs[0])[1:-1]):
            losses.gold(z, z, same_tokens=torch.tensor(pairs))
    with refused(InvalidTypeError, "same_tokens", got="list", suggests="torch.tensor"):
        losses.gold(z, v, ours, theirs, same_tokens=[[0, 1]])
    with refused(InvalidTypeError, "teacher_logits", got="NoneType"):
        losses.uld(z, None)
    with refused(InvalidTypeError, "student_counted", got="list"):
        losses.uld(z, v, [True])
    with refused(InvalidTypeError, "beta", got="bool"):
        losses.gold(z, v, ours, theirs, beta=True)
    with refused(InvalidValueError, "beta", got=1.5):
        losses.gold(z, v, ours, theirs, beta=1.5)
    with refused(InvalidValueError, "student_logits", got=(7,)):
        losses.uld(z[0, 0], v)
