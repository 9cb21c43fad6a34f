"""Losses of a teacher of which some classes are known: a bucket for the rest, and classes that were drawn."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from tests._helpers.refusals import refused

from tutelage import kernels, losses, targets
from tutelage.errors import InvalidValueError
from tutelage.losses.sparse import RESTS, likeliest
from tutelage.types import Sparse

INF = math.inf
EXTREMES = {
    "one class holds all": ([[300.0, 0.0, 0.0, 0.0]], [[0.0, 300.0, 0.0, 0.0]]),
    "float16's largest": ([[6e4, -6e4, 0.0, 0.0]], [[-6e4, 6e4, 0.0, 0.0]]),
    "constant": ([[1.0, 1.0, 1.0, 1.0]], [[2.0, 2.0, 2.0, 2.0]]),
    "of probability 0 in both": ([[1.0, 0.0, -INF, -INF]], [[0.0, 1.0, -INF, -INF]]),
    "of probability 0 in the teacher": ([[1.0, 0.0, 2.0, 3.0]], [[0.0, 1.0, -INF, -INF]]),
    "two classes": ([[3.0, -2.0]], [[-100.0, 100.0]]),
}


def drawn(shape=(5, 9), seed=0, scale=3.0):
    z, v = scale * torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z.requires_grad_(), v


def gradient(values, z):
    return torch.autograd.grad(values.sum(), z)[0]


def sampled(v, index, log_weights):
    entropy = targets.shannon_entropy(v.double().log_softmax(-1))
    return Sparse(log_weights, index, -entropy, v.shape[-1], "sampled")


def pooled(logits, index):
    """Probabilities of some classes and of the rest, in NumPy."""
    p = scipy.special.softmax(logits.detach().numpy(), -1)
    top = np.take_along_axis(p, index.numpy(), -1)
    rest = p.sum(-1, keepdims=True) - top.sum(-1, keepdims=True)
    return np.concatenate([top, rest], -1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_top_matches_scipy(temperature):
    z, v = drawn()
    index = v.topk(3).indices
    q, p = (pooled(x / temperature, index) for x in (z, v))
    expected = {
        "bucket": scipy.stats.entropy(p, q, axis=-1),
        "renormalised": scipy.stats.entropy(p[:, :-1], q[:, :-1], axis=-1),
    }
    kept = p[:, :-1] / p[:, :-1].sum(-1, keepdims=True)
    expected["dropped"] = (kept * np.log(kept / q[:, :-1])).sum(-1)
    for rest in RESTS:
        got = losses.top_k(z, v, top=3, rest=rest, temperature=temperature)
        np.testing.assert_allclose(got.detach(), temperature**2 * expected[rest], rtol=1e-10)


def test_a_bucket_is_a_lower_bound_and_exact_where_the_rest_is_divided_alike():
    z, v = drawn()
    assert (losses.top_k(z, v, top=3) <= losses.kd(z, v, temperature=1) + 1e-12).all()
    for rest in RESTS:
        torch.testing.assert_close(losses.top_k(z, v, top=9, rest=rest), losses.kd(z, v, temperature=1))
        torch.testing.assert_close(losses.top_k(z, v, top=50, rest=rest), losses.kd(z, v, temperature=1))
    index = v.topk(3).indices
    flat = torch.zeros_like(v)
    alike = [flat.scatter(-1, index, x.detach().gather(-1, index)) for x in (z, v)]
    torch.testing.assert_close(losses.top_k(*alike, top=3), losses.kd(*alike, temperature=1))


def test_only_the_bucket_leaves_a_student_that_agrees_alone():
    """The gradient at equality: what is dropped pulls the student off the teacher."""
    v = drawn()[1]
    z = v.clone().requires_grad_()
    slopes = {rest: gradient(losses.top_k(z, v, top=3, rest=rest), z).abs().max() for rest in RESTS}
    assert slopes["bucket"] < 1e-12
    assert slopes["renormalised"] < 1e-12  # which says nothing of how much the top has
    assert slopes["dropped"] > 1e-3


def test_a_tiny_rest_is_one():
    logits = torch.tensor([[70.0, 0.0, 0.0]])
    rest = losses.with_rest(logits, torch.tensor([[0]]))[0, 1]
    torch.testing.assert_close(rest, torch.tensor(math.log(2) - 70.0))
    torch.testing.assert_close(losses.with_rest(logits, torch.tensor([[0, 1, 2]]))[0, 3], torch.tensor(-INF))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("rest", RESTS)
def test_it_is_finite_where_the_top_holds_all(rest, case, dtype):
    z, v = (torch.tensor(x, dtype=dtype) for x in EXTREMES[case])
    z.requires_grad_()
    for top in (1, 2):
        values = losses.top_k(z, v, top=top, rest=rest)
        assert values.isfinite().all()
        assert (values >= 0).all()
        assert gradient(values, z).isfinite().all()


def test_the_rest_of_a_teacher_that_has_none_pulls_nothing():
    z = torch.tensor([[2.0, 1.0, -INF, -INF]], requires_grad=True)
    v = Sparse(torch.tensor([[0.0, -1.0]]).log_softmax(-1), torch.tensor([[0, 1]]), torch.tensor([-INF]), 4, "bucket")
    values = losses.ttm(z, v, gamma=1)
    slope = gradient(values, z)
    assert values.isfinite().all()
    torch.testing.assert_close(slope[:, :2], z[:, :2].softmax(-1) - v.values.exp())
    assert not slope[:, 2:].any()


def test_a_recorded_bucket_is_the_loss_on_whole_rows():
    z, v = drawn((2, 4, 30))
    log_p = losses.with_rest(v, v.topk(6).indices)
    kept = Sparse(log_p[..., :-1], v.topk(6).indices, log_p[..., -1], 30, "bucket")
    expected, labels = losses.top_k(z, v, top=6), torch.zeros(2, 4, dtype=torch.int64)
    for loss in (
        lambda: losses.ttm(z, kept, gamma=1),
        lambda: losses.kd(z, kept, temperature=1),
        lambda: losses.wttm(z, kept, gamma=1),
        lambda: losses.weighted_kd(z, kept, temperature=1),
        lambda: kernels.cross_entropy_and(partial(losses.ttm, gamma=1), z, kept, labels)[1],
    ):
        torch.testing.assert_close(loss(), expected)
    assert torch.equal(likeliest(kept), v.argmax(-1))


CLASSES = torch.tensor([[1.2, -0.4, 0.1]], dtype=torch.float64)


def every_draw(proposal, draws):
    """Yield each sequence of draws by uniform numbers, with its probability."""
    r = (proposal * CLASSES).softmax(-1)[0]
    ends = torch.cat([r.new_zeros(1), r.cumsum(-1)])
    middles = (ends[1:] + ends[:-1]) / 2
    for classes in itertools.product(range(3), repeat=draws):
        yield middles[list(classes)][None], float(r[list(classes)].prod())


@pytest.mark.parametrize("draws", [1, 2, 4])
@pytest.mark.parametrize("proposal", [1.0, 0.6, 1.4])
def test_the_mean_over_all_draws_is_the_teacher(proposal, draws):
    """Histogram, value and gradient: an exact expectation, with no drawing."""
    z = torch.tensor([[0.3, 0.9, -1.1]], dtype=torch.float64, requires_grad=True)
    histogram, value, slope, divergence, whole = torch.zeros(1, 3, dtype=torch.float64), 0.0, 0.0, 0.0, 0.0
    for uniform, probability in every_draw(proposal, draws):
        index, log_weights = targets.draw(CLASSES, uniform, proposal=proposal)
        histogram = histogram + probability * torch.zeros_like(histogram).scatter_add(-1, index, log_weights.exp())
        loss = losses.sampled_cross_entropy(z, index, log_weights.exp())
        value, slope = value + probability * loss.detach(), slope + probability * gradient(loss, z)
        divergence = divergence + probability * losses.ttm(z, sampled(CLASSES, index, log_weights), gamma=1).detach()
        whole += probability
    p = CLASSES.softmax(-1)
    assert whole == pytest.approx(1)
    torch.testing.assert_close(histogram, p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(value, losses.cross_entropy(z, p).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, z.detach().softmax(-1) - p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(divergence, losses.ttm(z, CLASSES, gamma=1).detach(), rtol=1e-12, atol=1e-12)


def test_weights_divided_by_their_sum_are_biased_unless_the_proposal_is_the_teacher():
    for proposal, biased in ((1.0, False), (0.6, True)):
        histogram = torch.zeros(1, 3, dtype=torch.float64)
        for uniform, probability in every_draw(proposal, 2):
            index, log_weights = targets.draw(CLASSES, uniform, proposal=proposal)
            histogram.scatter_add_(-1, index, probability * log_weights.softmax(-1))
        assert bool((histogram - CLASSES.softmax(-1)).abs().max() > 1e-3) is biased


def test_draws_follow_the_teacher_and_come_likeliest_first():
    v = drawn((1, 50))[1]
    uniform = (torch.arange(20_000, dtype=torch.float64)[None] + 0.5) / 20_000
    index, log_weights = targets.draw(v, uniform)
    counts = torch.zeros(50, dtype=torch.float64).index_add_(0, index[0], log_weights[0].exp())
    torch.testing.assert_close(counts, v[0].softmax(-1), rtol=0, atol=1e-4)
    drawn_p = v.softmax(-1).gather(-1, index)
    assert (drawn_p.diff(dim=-1) <= 0).all()
    assert torch.equal(likeliest(sampled(v, index, log_weights)), v.argmax(-1))


def test_no_class_of_probability_0_is_drawn():
    v = torch.tensor([[-INF, 0.0, -INF, 1.0, -INF]])
    ends = torch.tensor([[0.0, 0.5, math.nextafter(1, 0)]], dtype=torch.float64)
    for proposal in (0.5, 1.0):
        index, log_weights = targets.draw(v, ends, proposal=proposal)
        assert set(index.flatten().tolist()) <= {1, 3}
        assert log_weights.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("case", EXTREMES)
def test_sampled_classes_are_finite_at_extremes(case, dtype):
    z, v = (torch.tensor(x, dtype=dtype) for x in EXTREMES[case])
    z.requires_grad_()
    uniform = torch.tensor([[0.0, 0.3, 0.9]], dtype=torch.float64)
    for proposal in (0.5, 1.0):  # above 1 a weight of e**300 is right, where a class of probability e**-600 is drawn
        index, log_weights = targets.draw(v, uniform, proposal=proposal)
        values = losses.ttm(z, sampled(v, index, log_weights), gamma=1)
        assert values.isfinite().all()
        assert gradient(values, z).isfinite().all()


FORMS = ("bucket", "sampled")


@pytest.mark.parametrize("form", FORMS)
def test_other_exponents_and_whole_rows_are_refused(form):
    z = torch.zeros(1, 3)
    teacher = Sparse(torch.zeros(1, 1), torch.tensor([[0]]), torch.zeros(1), 3, form)
    for loss in (
        lambda: losses.ttm(z, teacher, gamma=0.5),
        lambda: losses.kd(z, teacher, temperature=4),
        lambda: losses.wttm(z, teacher, gamma=0.9),
        lambda: losses.weighted_kd(z, teacher, temperature=2),
    ):
        with refused(InvalidValueError, "gamma", suggests=["gamma=1", "temperature=1"]):
            loss()
    with refused(InvalidValueError, "teacher_logits", got=form, suggests="gamma=1"):
        targets.dense(teacher)


def test_faults():
    z, v = drawn((2, 4))
    with refused(InvalidValueError, "rest", got="tail", suggests="bucket"):
        losses.top_k(z, v, top=1, rest="tail")
    with refused(InvalidValueError, "top", got=1.5):
        losses.top_k(z, v, top=1.5)
    with refused(InvalidValueError, "index", suggests="tutelage.targets.draw"):
        losses.sampled_cross_entropy(z, torch.zeros(2, 3, dtype=torch.int32), torch.ones(2, 3))
    with refused(InvalidValueError, "index"):
        losses.sampled_cross_entropy(z, torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 2))
    with refused(InvalidValueError, "uniform", got="torch.float32"):
        targets.draw(v, torch.rand(2, 3))
    with refused(InvalidValueError, "proposal", got=0):
        targets.draw(v, torch.rand(2, 3, dtype=torch.float64), proposal=0)
