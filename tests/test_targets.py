"""Properties of the power transform, the power sum and the entropies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._helpers.refusals import refused

from tutelage import targets
from tutelage.errors import InvalidTypeError, InvalidValueError

INF = math.inf
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
gammas = st.floats(0.05, 3.0)
seeds = st.integers(0, 10_000)


def draw_log_probs(seed, shape=(5, 7), scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(scale * torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


@quick
@given(seeds, gammas)
def test_power_matches_numpy(seed, gamma):
    log_p = draw_log_probs(seed)
    p = log_p.exp().numpy()
    expected = p**gamma / (p**gamma).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(targets.power(log_p, gamma=gamma).exp(), expected, rtol=1e-12)


@quick
@given(seeds, gammas)
def test_power_is_temperature_scaling(seed, gamma):
    v = 3.0 * torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(
        targets.power(torch.log_softmax(v, -1), gamma=gamma),
        torch.log_softmax(v / (1 / gamma), -1),
        rtol=1e-12,
        atol=1e-12,
    )
    torch.testing.assert_close(targets.power(v, gamma=gamma), targets.power(v + 40.0, gamma=gamma), rtol=0, atol=1e-11)


@quick
@given(seeds, gammas, gammas)
def test_powers_compose_by_multiplying(seed, first, second):
    log_p = draw_log_probs(seed)
    twice = targets.power(targets.power(log_p, gamma=first), gamma=second)
    torch.testing.assert_close(twice, targets.power(log_p, gamma=first * second), rtol=1e-10, atol=1e-10)


def test_power_one_changes_nothing():
    log_p = draw_log_probs(0)
    torch.testing.assert_close(targets.power(log_p, gamma=1), log_p, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(targets.log_power_sum(log_p, gamma=1), torch.zeros(5).double(), rtol=0, atol=1e-14)


@quick
@given(seeds, st.floats(0.05, 0.95))
def test_power_sum_matches_numpy_and_its_bounds(seed, gamma):
    log_p = draw_log_probs(seed)
    u = targets.power_sum(log_p, gamma=gamma)
    np.testing.assert_allclose(u, (log_p.exp().numpy() ** gamma).sum(axis=-1), rtol=1e-12)
    np.testing.assert_allclose(targets.log_power_sum(log_p, gamma=gamma).exp(), u, rtol=1e-14)
    assert (u >= 1).all()
    assert (u <= 7 ** (1 - gamma) * (1 + 1e-12)).all()


def test_power_sum_meets_its_bounds_at_one_hot_and_uniform():
    one_hot, uniform = torch.tensor([0.0, -INF, -INF]), torch.full((3,), 1 / 3).log()
    assert targets.power_sum(one_hot, gamma=0.1).item() == 1.0
    assert targets.power_sum(uniform, gamma=0.1).item() == pytest.approx(3**0.9, rel=1e-6)
    thousand = torch.full((1000,), 1 / 1000).log()
    assert targets.power_sum(thousand, gamma=0.1).item() == pytest.approx(501.187, rel=1e-5)


@quick
@given(seeds, st.floats(0.05, 3.0).filter(lambda gamma: abs(gamma - 1) > 1e-3))
def test_log_power_sum_is_renyi_entropy_times_one_minus_gamma(seed, gamma):
    log_p = draw_log_probs(seed)
    torch.testing.assert_close(
        targets.log_power_sum(log_p, gamma=gamma), (1 - gamma) * targets.renyi_entropy(log_p, order=gamma),
        rtol=1e-10, atol=1e-12,
    )  # fmt: skip


def test_log_space_survives_where_pow_of_softmax_underflows():
    logits = torch.tensor([0.0, -25.0])
    printed = torch.softmax(logits.half(), -1) ** 0.1
    exact = 1 + math.exp(-2.5)
    assert abs(printed.sum().item() - exact) > 0.05
    assert targets.power_sum(torch.log_softmax(logits, -1), gamma=0.1).item() == pytest.approx(exact, rel=1e-6)
    far = torch.log_softmax(torch.tensor([0.0, -120.0]), -1)
    assert (far.exp() ** 0.1)[1].item() == 0.0
    assert targets.power(far, gamma=0.1)[1].exp().item() == pytest.approx(math.exp(-12) / (1 + math.exp(-12)), rel=1e-5)


@quick
@given(seeds)
def test_shannon_entropy_matches_scipy_and_its_bounds(seed):
    log_p = draw_log_probs(seed)
    h = targets.shannon_entropy(log_p)
    np.testing.assert_allclose(h, scipy.stats.entropy(log_p.exp().numpy(), axis=-1), rtol=1e-12)
    assert (h >= 0).all()
    assert (h <= math.log(7) + 1e-12).all()


@pytest.mark.parametrize("entropy", [targets.shannon_entropy, lambda x: targets.renyi_entropy(x, order=0.5)])
def test_entropy_is_log_k_at_uniform_and_zero_at_one_hot(entropy):
    assert entropy(torch.full((8,), 1 / 8, dtype=torch.float64).log()).item() == pytest.approx(math.log(8), rel=1e-14)
    assert entropy(torch.tensor([0.0, -INF, -INF])).item() == 0.0


@quick
@given(seeds, st.floats(0.01, 6.0).filter(lambda order: abs(order - 1) > 1e-2))
def test_renyi_entropy_matches_its_formula(seed, order):
    log_p = draw_log_probs(seed)
    expected = scipy.special.logsumexp(order * log_p.numpy(), axis=-1) / (1 - order)
    np.testing.assert_allclose(targets.renyi_entropy(log_p, order=order), expected, rtol=1e-11, atol=1e-12)


@quick
@given(seeds, st.lists(st.floats(0.0, 20.0), min_size=2, max_size=6))
def test_renyi_entropy_never_increases_with_the_order(seed, orders):
    log_p = draw_log_probs(seed)
    values = [targets.renyi_entropy(log_p, order=order) for order in [0, *sorted(orders), INF]]
    assert (values[0] <= math.log(7) + 1e-12).all()
    assert (values[-1] >= 0).all()
    for larger, smaller in itertools.pairwise(values):
        assert (smaller <= larger + 1e-11).all()


def test_renyi_limits():
    log_p = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64).log()
    assert targets.renyi_entropy(log_p, order=0).item() == pytest.approx(math.log(3))
    assert targets.renyi_entropy(log_p, order=1e-9).item() == pytest.approx(math.log(3), rel=1e-8)
    assert targets.renyi_entropy(log_p, order=INF).item() == pytest.approx(math.log(2))
    assert targets.renyi_entropy(log_p, order=500.0).item() == pytest.approx(math.log(2), rel=3e-3)
    assert targets.renyi_entropy(log_p, order=2).item() == pytest.approx(-math.log(0.375))
    assert targets.renyi_entropy(log_p, order=1).item() == targets.shannon_entropy(log_p).item()


def expansion(log_p, order):
    """The entropy near order 1 by its Taylor series: H - (a - 1) * Var(log p) / 2, in float64."""
    log_p = log_p.double()
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    return -mean - (order - 1) * (p * (log_p - mean[..., None]) ** 2).sum(-1) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-12, 2.3e-16])
@pytest.mark.parametrize("sign", [-1, 1])
def test_renyi_entropy_is_precise_near_order_one(dtype, shift, sign):
    log_p = torch.log_softmax(torch.tensor([[2.0, -1.0, 0.5, 0.0], [30.0, 0.0, 1.0, -20.0]], dtype=torch.float64), -1)
    order = 1 + sign * shift
    expected = expansion(log_p, order)
    tolerance = 2e-6 if dtype is torch.float32 else 1e-12
    z = log_p.to(dtype).requires_grad_()
    value = targets.renyi_entropy(z, order=order)
    torch.testing.assert_close(value.double(), expected, rtol=tolerance + 2 * shift * shift, atol=1e-14)
    (gradient,) = torch.autograd.grad(targets.renyi_entropy(torch.log_softmax(z, -1), order=order).sum(), z)
    reference = log_p.clone().requires_grad_()
    (at_one,) = torch.autograd.grad(targets.shannon_entropy(torch.log_softmax(reference, -1)).sum(), reference)
    torch.testing.assert_close(gradient.double(), at_one, rtol=0, atol=20 * tolerance + 5 * shift)


@pytest.mark.parametrize("classes", [2, 1000, 50_000])
@pytest.mark.parametrize("order", [1.2, 1.249, 1.251, 1.4, 3.0])
def test_both_forms_of_renyi_entropy_are_precise_where_they_meet(classes, order):
    v = torch.randn(3, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    log_p = torch.log_softmax(v, -1)
    expected = np.log((log_p.exp().numpy() ** order).sum(-1)) / (1 - order)
    np.testing.assert_allclose(targets.renyi_entropy(log_p, order=order), expected, rtol=1e-11)
    np.testing.assert_allclose(targets.renyi_entropy(log_p.float(), order=order), expected, rtol=2e-5)


# Other transforms and weights

NAMES = sorted(targets.TRANSFORMS)
dials = st.floats(math.log(1e-9), 0.0).map(math.exp)
FORMULAS = {
    "power": lambda x, gamma: x**gamma,
    "rational": lambda x, gamma: x / (gamma + (1 - gamma) * x),
    "logarithm": lambda x, gamma: np.log1p((1 / gamma - 1) * x) / -np.log(gamma),
    "complement": lambda x, gamma: -np.expm1(np.log1p(-x) / gamma),
}
SLOPES = {
    "rational": lambda gamma: 1 / gamma,
    "logarithm": lambda gamma: (1 - gamma) / gamma / -math.log(gamma),
    "complement": lambda gamma: 1 / gamma,
}


def pointwise(name, gamma=0.03):
    return targets.Pointwise(name, gamma=gamma)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(gamma=st.floats(1e-9, 0.999), x=st.floats(1e-12, 0.999))
def test_a_transform_is_its_formula(name, gamma, x):
    log_x = torch.tensor([math.log(x)], dtype=torch.float64)
    expected = np.log(FORMULAS[name](np.exp(log_x.numpy()), gamma))
    assert pointwise(name, gamma)(log_x).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", sorted(SLOPES))
@pytest.mark.parametrize("gamma", [1e-12, 1e-6, 0.01, 0.5, 0.999, 1 - 1e-12])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_small_probabilities_keep_their_precision(name, gamma, dtype, tolerance):
    """Far below 1 / slope a transform is a straight line; in float32 exp(-200) is 0."""
    log_x = torch.tensor([-60.0, -200.0, -5000.0, -1e4], dtype=dtype)
    expected = log_x.double() + math.log(SLOPES[name](gamma))
    torch.testing.assert_close(pointwise(name, gamma)(log_x).double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gamma", [1e-12, 1e-7, 0.003, 0.2, 0.9, 1 - 1e-7])
def test_transforms_are_as_precise_in_float32(name, gamma):
    log_x = -torch.logspace(-6, 3, 2000, dtype=torch.float64).float()
    exact, narrow = (pointwise(name, gamma)(x).double() for x in (log_x.double(), log_x))
    torch.testing.assert_close(narrow, exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(gamma=dials)
def test_a_transform_obeys_the_conditions(name, gamma):
    targets.check_transform(pointwise(name, gamma))


@pytest.mark.parametrize("name", NAMES)
@quick
@given(seed=seeds, first=dials, second=dials)
def test_a_smaller_gamma_is_flatter_and_keeps_the_order(name, seed, first, second):
    log_p = draw_log_probs(seed)
    flat, steep = (targets.transform(log_p, pointwise(name, gamma)) for gamma in sorted((first, second)))
    entropy = targets.shannon_entropy
    assert (entropy(flat) >= entropy(steep) - 1e-10).all()
    assert (entropy(steep) >= entropy(log_p) - 1e-10).all()
    assert (flat.take_along_dim(log_p.argsort(-1), -1).diff(dim=-1) >= -1e-10).all()


@pytest.mark.parametrize("name", NAMES)
def test_gamma_one_is_the_identity(name):
    log_p = draw_log_probs(1)
    f = pointwise(name, 1)
    assert torch.equal(f(log_p), log_p)
    torch.testing.assert_close(targets.transform(log_p, f), log_p, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(targets.log_sum(log_p, f), torch.zeros(5).double(), rtol=0, atol=1e-13)
    near = targets.transform(log_p, pointwise(name, 1 - 1e-9))
    torch.testing.assert_close(near, log_p, rtol=0, atol=1e-7)


@quick
@given(seeds, gammas)
def test_the_power_is_one_of_the_transforms(seed, gamma):
    log_p = draw_log_probs(seed)
    f = pointwise("power", gamma)
    assert torch.equal(targets.transform(log_p, f), targets.power(log_p, gamma=gamma))
    assert torch.equal(targets.log_sum(log_p, f), targets.log_power_sum(log_p, gamma=gamma))


@pytest.mark.parametrize("name", NAMES)
@quick
@given(seed=seeds, gamma=dials)
def test_the_sum_of_a_transform_matches_numpy_and_its_bounds(name, seed, gamma):
    log_p = draw_log_probs(seed)
    sums = targets.log_sum(log_p, pointwise(name, gamma))
    # At 1 itself the formula of the logarithm is 0 / 0.
    if gamma < 1:
        expected = np.log(FORMULAS[name](log_p.exp().numpy(), gamma).sum(-1))
        np.testing.assert_allclose(sums, expected, rtol=1e-8, atol=1e-9)
    assert (sums >= -1e-12).all()
    assert (sums <= math.log(7) + 1e-12).all()


@quick
@given(seeds, gammas, st.floats(0.05, 4.0))
def test_weights_are_what_they_are_named_after(seed, gamma, order):
    log_p, f = draw_log_probs(seed), pointwise("power", gamma)
    p, target = log_p.exp(), targets.power(log_p, gamma=gamma)

    def weight(name, **how):
        return targets.SampleWeight(name, transform=f, **how)(log_p)

    assert torch.equal(weight("constant"), torch.ones(5).double())
    assert torch.equal(weight("power_sum"), targets.power_sum(log_p, gamma=gamma))
    assert torch.equal(weight("entropy"), targets.shannon_entropy(log_p))
    assert torch.equal(weight("entropy", of="target"), targets.shannon_entropy(target))
    assert torch.equal(weight("entropy", order=order), targets.renyi_entropy(log_p, order=order))
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(weight("one_minus_top"), 1 - p.amax(-1), **close)
    torch.testing.assert_close(weight("one_minus_top", of="target"), 1 - target.exp().amax(-1), **close)


def test_a_weight_keeps_the_precision_of_a_small_doubt():
    log_p = torch.log_softmax(torch.tensor([20.0, 0.0]), -1)
    weight = targets.SampleWeight("one_minus_top", transform=pointwise("power"))(log_p)
    assert weight.item() == pytest.approx(math.exp(-20), rel=1e-5)


def test_named_transforms_and_weights_are_values():
    assert pointwise("rational") == pointwise("rational") != pointwise("logarithm")
    first, second = (targets.SampleWeight("entropy", transform=pointwise(name)) for name in ("rational", "rational"))
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda: pointwise("rationl"), refused(InvalidValueError, "transform", got="'rationl'", suggests="rational")),
        (lambda: pointwise("zzz"), refused(InvalidValueError, "transform", got="'zzz'", suggests="transform=power")),
        (lambda: pointwise("power", 0), refused(InvalidValueError, "gamma", got=0)),
        (lambda: pointwise("rational", 2), refused(InvalidValueError, "gamma", got=2)),
        (lambda: pointwise("complement", 1e-13), refused(InvalidValueError, "gamma", got=1e-13)),
        (
            lambda: weight_by("powersum"),
            refused(InvalidValueError, "weight_by", got="'powersum'", suggests="power_sum"),
        ),
        (lambda: weight_by("entropy", of="student"), refused(InvalidValueError, "weight_of", got="'student'")),
        (
            lambda: weight_by("power_sum", of="target"),
            refused(InvalidValueError, "weight_of", got="target"),
        ),
        (
            lambda: weight_by("constant", order=2),
            refused(InvalidValueError, "order", got=2, suggests="weight_by=entropy"),
        ),
        (lambda: weight_by("entropy", order=-1), refused(InvalidValueError, "order", got=-1)),
    ],
)
def test_bad_names_and_dials_are_refused(call, refusal):
    with refusal:
        call()


def weight_by(name, **how):
    return targets.SampleWeight(name, transform=pointwise("power"), **how)


@pytest.mark.parametrize(
    ("f", "got"),
    [
        (lambda x: 2 * x, "log x = -1"),
        (
            lambda x: (x.exp() + 0.1).log() - math.log(1.1),
            "log f(x) = -2.4 at log x = -inf",
        ),
        (lambda x: 0.5 * x + 0.1, "log f(x) = 0.1 at log x = 0"),
        (lambda x: torch.where((x > -3) & (x < -2), 0.0, 0.1 * x), "log x = -2"),
        (lambda x: targets.power(x, gamma=0.5), "log f(x)"),
        (lambda x: 0 * x, "log f(x) = nan at log x = -inf"),
        # The smallest float64 is exp(-745), the smallest float32 exp(-103): the second is wrong in float32 alone.
        (lambda x: (x.exp() ** 0.5).log(), "log f(x) = -inf"),
        (
            lambda x: torch.where(x > -700, x.exp().sqrt().log(), 0.5 * x),
            "log f(x) = -inf",
        ),
    ],
)
def test_a_mapping_that_is_no_transform_is_refused(f, got):
    with refused(InvalidValueError, "transform", got=got, suggests="Pointwise"):
        targets.check_transform(f)


EVERY = {
    "transform rational": lambda x: targets.transform(x, pointwise("rational")),
    "transform logarithm": lambda x: targets.transform(x, pointwise("logarithm")),
    "transform complement": lambda x: targets.transform(x, pointwise("complement")),
    "log_sum logarithm": lambda x: targets.log_sum(x, pointwise("logarithm")),
    "log_sum complement": lambda x: targets.log_sum(x, pointwise("complement")),
    "one_minus_top": lambda x: weight_by("one_minus_top", of="target")(x),
    "power": lambda x: targets.power(x, gamma=0.3),
    "log_power_sum": lambda x: targets.log_power_sum(x, gamma=0.3),
    "power_sum": lambda x: targets.power_sum(x, gamma=0.3),
    "shannon_entropy": targets.shannon_entropy,
    "renyi_entropy 0": lambda x: targets.renyi_entropy(x, order=0),
    "renyi_entropy 0.3": lambda x: targets.renyi_entropy(x, order=0.3),
    "renyi_entropy 1.1": lambda x: targets.renyi_entropy(x, order=1.1),
    "renyi_entropy 3": lambda x: targets.renyi_entropy(x, order=3),
    "renyi_entropy inf": lambda x: targets.renyi_entropy(x, order=INF),
}
DIFFERENTIABLE = [name for name in EVERY if name != "renyi_entropy 0"]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck(name):
    z = 2 * torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: EVERY[name](torch.log_softmax(z, -1)), z.requires_grad_())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (2, 0, 7)])
def test_any_leading_shape_equals_flattened(name, shape):
    log_p = draw_log_probs(4, shape)
    result = EVERY[name](log_p)
    assert result.shape == (shape if name.partition(" ")[0] in ("power", "transform") else shape[:-1])
    torch.testing.assert_close(result.reshape(-1), EVERY[name](log_p.reshape(-1, 7)).reshape(-1), rtol=0, atol=0)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_result_is_at_least_float32(name, dtype, result):
    log_p = draw_log_probs(5).to(dtype)
    assert EVERY[name](log_p).dtype == result
    torch.testing.assert_close(EVERY[name](log_p), EVERY[name](log_p.to(result)), rtol=0, atol=0)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_and_impossible_classes_stay_finite(name, dtype):
    z = torch.tensor([[1e4, -1e4, 0.0, 1e4], [0.0, -INF, 1.0, -INF]], dtype=dtype, requires_grad=True)
    value = EVERY[name](torch.log_softmax(z.float(), -1))
    kept = value[torch.isfinite(value)] if name.partition(" ")[0] in ("power", "transform") else value
    assert torch.isfinite(kept).all()
    kept.sum().backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", EVERY)
def test_nan_is_not_hidden(name):
    if name != "renyi_entropy 0":
        assert torch.isnan(EVERY[name](torch.tensor([[math.nan, 0.0]]))).all()


@pytest.mark.parametrize("call", [targets.power, targets.log_power_sum, targets.power_sum])
@pytest.mark.parametrize("gamma", [0, 0.0, -1.0, math.nan, INF, -INF])
def test_bad_gamma_is_refused(call, gamma):
    with refused(InvalidValueError, "gamma", got=gamma, suggests="gamma=0.1"):
        call(torch.zeros(3), gamma=gamma)


@pytest.mark.parametrize("gamma", ["0.1", None, True, torch.tensor(0.1)])
def test_gamma_of_another_type_is_refused(gamma):
    with refused(InvalidTypeError, "gamma", got=type(gamma).__name__, suggests="float(gamma)"):
        targets.power(torch.zeros(3), gamma=gamma)


@pytest.mark.parametrize("order", [-0.5, math.nan, -INF])
def test_bad_order_is_refused(order):
    with refused(InvalidValueError, "order", got=order, suggests="order=0.25"):
        targets.renyi_entropy(torch.zeros(3), order=order)


@pytest.mark.parametrize("name", EVERY)
def test_bad_log_probs_are_refused(name):
    with refused(InvalidTypeError, "log_probs", got="torch.int64", suggests="log_probs.float()"):
        EVERY[name](torch.zeros(3, dtype=torch.int64))
    with refused(InvalidTypeError, "log_probs", got="list", suggests="torch.as_tensor"):
        EVERY[name]([0.0, 1.0])
    for shape in [(), (2, 0)]:
        with refused(InvalidValueError, "log_probs"):
            EVERY[name](torch.zeros(shape))
