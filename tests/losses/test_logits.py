"""Properties of the losses on logits."""

from __future__ import annotations

import inspect
import math
from functools import partial

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._helpers.cuda import no_host_wait
from tests._helpers.refusals import refused
from torch.nn import functional as F

from tutelage import losses, targets
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.types import UNLABELLED

INF = math.inf
quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 10_000)
gammas = st.floats(0.05, 2.0)
temperatures = st.floats(0.5, 20.0)


def draw_logits(seed, shape=(6, 9), scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    v = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    y = torch.randint(shape[-1], shape[:-1], generator=generator)
    return z.to(dtype).requires_grad_(), v.to(dtype), y


def gradient(values, z, retain_graph=False):
    return torch.autograd.grad(values.sum(), z, retain_graph=retain_graph)[0]


def close(ours, expected, tolerance=1e-11):
    torch.testing.assert_close(ours.detach(), torch.as_tensor(expected).detach(), rtol=tolerance, atol=tolerance)


# Outside the functions that are compiled: dynamo before torch 2.12 cannot make a frozen dataclass while it traces.
LOGARITHM = targets.Pointwise("logarithm", gamma=0.01)
ENTROPY = targets.SampleWeight("entropy", transform=LOGARITHM, order=0.5)


def noise_of(v):
    """Make up noise that moves with the classes and samples, so that their laws can be tried: two perspectives."""
    p = torch.softmax(v.double(), -1)
    return torch.stack([torch.sin(40 * p), torch.cos(70 * p)])


# Every loss of two networks, and every loss of one: (student, teacher, labels) -> values.
MATCHING = {
    "kd": lambda z, v, y: losses.kd(z, v, temperature=4.0),
    "ttm": lambda z, v, y: losses.ttm(z, v, gamma=0.25),
    "wttm": lambda z, v, y: losses.wttm(z, v, gamma=0.25),
    "weighted_kd": lambda z, v, y: losses.weighted_kd(z, v, temperature=4.0),
    "transformed_matching": lambda z, v, y: losses.transformed_matching(z, v, transform=LOGARITHM),
    "transformed_matching weighted": lambda z, v, y: losses.transformed_matching(
        z, v, transform=LOGARITHM, sample_weight=ENTROPY
    ),
    "ldrld": lambda z, v, y: losses.ldrld(z, v, k=3, alpha=2.0, beta=3.0, temperature=2.0),
    "taid": lambda z, v, y: losses.taid(z, v, t=0.5),
    "skewed_kl": lambda z, v, y: losses.skewed_kl(z, v, share=0.3),
    "skewed_kl of the student": lambda z, v, y: losses.skewed_kl(z, v, share=0.3, of="student"),
    "top_k": lambda z, v, y: losses.top_k(z, v, top=4),
    "tekap": lambda z, v, y: losses.tekap(z, v, noise=noise_of(v), temperature=4.0, share=0.1, perturbed=0.8),
    "kl_divergence": lambda z, v, y: losses.kl_divergence(torch.log_softmax(z, -1), torch.log_softmax(v, -1)),
}
ALONE = {
    "cross_entropy": lambda z, v, y: losses.cross_entropy(z, y),
    "cross_entropy smoothed": lambda z, v, y: losses.cross_entropy(z, y, label_smoothing=0.1),
    "cross_entropy soft": lambda z, v, y: losses.cross_entropy(z, torch.softmax(v, -1)),
    "cross_entropy soft smoothed": lambda z, v, y: losses.cross_entropy(z, torch.softmax(v, -1), label_smoothing=0.1),
    "confidence_penalty": lambda z, v, y: losses.confidence_penalty(z),
    "renyi_penalty 0.25": lambda z, v, y: losses.renyi_penalty(z, order=0.25),
    "renyi_penalty 1": lambda z, v, y: losses.renyi_penalty(z, order=1.0),
    "renyi_penalty 2": lambda z, v, y: losses.renyi_penalty(z, order=2.0),
    "hard_label": lambda z, v, y: losses.hard_label(z, v),
}
EVERY = MATCHING | ALONE
# Their targets are made of the student's logits, as constants, which differences do not see.
CONSTANT = ("taid", "skewed_kl of the student")


# Independent references


@quick
@given(seeds, temperatures)
def test_kd_matches_scipy(seed, temperature):
    z, v, _ = draw_logits(seed)
    p, q = (scipy.special.softmax(x.detach().numpy() / temperature, axis=-1) for x in (v, z))
    close(losses.kd(z, v, temperature=temperature), temperature**2 * scipy.stats.entropy(p, q, axis=-1), 1e-10)


@quick
@given(seeds, gammas)
def test_ttm_and_wttm_match_numpy(seed, gamma):
    z, v, _ = draw_logits(seed)
    p, q = scipy.special.softmax(v.numpy(), axis=-1), scipy.special.softmax(z.detach().numpy(), axis=-1)
    u = (p**gamma).sum(axis=-1)
    kl = scipy.stats.entropy(p**gamma, q, axis=-1)
    close(losses.ttm(z, v, gamma=gamma), kl, 1e-10)
    close(losses.wttm(z, v, gamma=gamma), u * kl, 1e-10)


@quick
@given(seeds)
def test_kl_divergence_matches_scipy_and_torch(seed):
    z, v, _ = draw_logits(seed)
    log_q, log_p = torch.log_softmax(z, -1), torch.log_softmax(v, -1)
    ours = losses.kl_divergence(log_q, log_p)
    close(ours, scipy.stats.entropy(log_p.exp().numpy(), log_q.exp().detach().numpy(), axis=-1))
    close(ours, F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1))


@quick
@given(seeds, st.sampled_from([0.0, 0.1, 0.7]))
def test_cross_entropy_matches_numpy_and_torch(seed, label_smoothing):
    z, v, y = draw_logits(seed)
    log_q = scipy.special.log_softmax(z.detach().numpy(), axis=-1)
    for labels, rows in [(y, np.eye(9)[y.numpy()]), (torch.softmax(v, -1), scipy.special.softmax(v.numpy(), axis=-1))]:
        ours = losses.cross_entropy(z, labels, label_smoothing=label_smoothing)
        close(ours, -(((1 - label_smoothing) * rows + label_smoothing / 9) * log_q).sum(-1))
        theirs = F.cross_entropy(z, labels, label_smoothing=label_smoothing, reduction="none")
        close(ours, theirs)
        close(gradient(ours, z), gradient(theirs, z))


@quick
@given(seeds, st.sampled_from([0.0, 0.1]))
def test_class_weights_are_those_of_torch(seed, label_smoothing):
    z, v, y = draw_logits(seed)
    weights = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y[:1] = UNLABELLED
    for labels in (y, torch.softmax(v, -1)):
        ours = losses.cross_entropy(z, labels, label_smoothing=label_smoothing, class_weights=weights)
        theirs = F.cross_entropy(z, labels, weight=weights, label_smoothing=label_smoothing, reduction="none")
        close(ours, theirs)
        close(gradient(ours, z), gradient(theirs, z))


def test_a_class_of_weight_0_counts_for_nothing():
    z, weights = torch.tensor([[0.0, -INF], [1.0, 0.0]]), torch.tensor([1.0, 0.0])
    values = losses.cross_entropy(z, torch.tensor([1, 1]), label_smoothing=0.1, class_weights=weights)
    close(values, 0.05 * F.cross_entropy(z, torch.tensor([0, 0]), reduction="none"))
    with pytest.raises(ValueError, match=r"class_weights: expected one number for each class, shape \(2,\)"):
        losses.cross_entropy(z, torch.tensor([1, 1]), class_weights=torch.ones(1))
    with pytest.raises(TypeError, match="class_weights"):
        losses.cross_entropy(z, torch.tensor([1, 1]), class_weights=torch.tensor([1, 1]))


@quick
@given(seeds)
def test_penalties_match_scipy(seed):
    z, _, _ = draw_logits(seed)
    q = scipy.special.softmax(z.detach().numpy(), axis=-1)
    close(losses.confidence_penalty(z), -scipy.stats.entropy(q, axis=-1))
    close(losses.renyi_penalty(z, order=2), np.log((q * q).sum(-1)))
    close(losses.renyi_penalty(z, order=1), losses.confidence_penalty(z))
    close(losses.renyi_penalty(z, order=INF), np.log(q.max(-1)))


# The identities that the method stands on


@quick
@given(seeds, temperatures)
def test_identity_of_transformed_matching(seed, temperature):
    """KL(p_g || q) = T KL(p_g || q_g) - (T - 1) H_{1/T}(q) + (T - 1) H(p_g): Rényi for the student, Shannon for p_g."""
    z, v, _ = draw_logits(seed)
    gamma = 1 / temperature
    log_p, log_q = torch.log_softmax(v, -1), torch.log_softmax(z, -1)
    log_p_gamma = targets.power(log_p, gamma=gamma)
    matched = losses.kl_divergence(targets.power(log_q, gamma=gamma), log_p_gamma)
    renyi, shannon = targets.renyi_entropy(log_q, order=gamma), targets.shannon_entropy(log_p_gamma)
    right = temperature * matched - (temperature - 1) * renyi + (temperature - 1) * shannon
    close(losses.kl_divergence(log_q, log_p_gamma), right, 1e-10)
    close(losses.ttm(z, v, gamma=gamma), right, 1e-10)
    close(losses.kd(z, v, temperature=temperature), temperature**2 * matched, 1e-10)


@quick
@given(seeds, st.floats(1.0, 20.0), st.floats(0.05, 0.95))
def test_ttm_is_kd_plus_a_renyi_penalty_plus_a_constant(seed, temperature, lam):
    v = draw_logits(seed)[1]
    beta = lam / (1 - lam) * temperature

    def both(z, y):
        cross_entropy = losses.cross_entropy(z, y)
        ttm = cross_entropy + beta * losses.ttm(z, v, gamma=1 / temperature)
        kd = (1 - lam) * cross_entropy + lam * losses.kd(z, v, temperature=temperature)
        penalty = losses.renyi_penalty(z, order=1 / temperature)
        return ttm, kd / (1 - lam) + beta * (temperature - 1) * penalty

    scale = 1 + beta * temperature
    constants = []
    for student_seed in (seed + 1, seed + 2):
        z, _, y = draw_logits(student_seed)
        ttm, split = both(z, y)
        close(gradient(ttm, z, retain_graph=True) / scale, gradient(split, z) / scale, 1e-11)
        constants.append((ttm - split).detach())
    close(constants[0] / scale, constants[1] / scale, 1e-11)
    entropy = targets.shannon_entropy(targets.power(v, gamma=1 / temperature))
    close(constants[0] / scale, beta * (temperature - 1) * entropy / scale, 1e-11)


@quick
@given(seeds)
def test_gamma_one_makes_all_three_one(seed):
    z, v, _ = draw_logits(seed)
    plain = losses.kd(z, v, temperature=1)
    for other in (losses.ttm(z, v, gamma=1), losses.wttm(z, v, gamma=1)):
        close(other, plain)
        close(gradient(other, z), gradient(losses.kd(z, v, temperature=1), z))


@quick
@given(seeds, gammas)
def test_wttm_is_ttm_weighted_by_the_power_sum(seed, gamma):
    z, v, _ = draw_logits(seed)
    u = targets.power_sum(torch.log_softmax(v, -1), gamma=gamma)
    close(losses.wttm(z, v, gamma=gamma), u * losses.ttm(z, v, gamma=gamma))


@quick
@given(seeds, temperatures)
def test_wttm_is_the_weighted_kd_less_weighted_entropies(seed, temperature):
    z, v, _ = draw_logits(seed)
    gamma = 1 / temperature
    log_p, log_q = torch.log_softmax(v, -1), torch.log_softmax(z, -1)
    u = targets.power_sum(log_p, gamma=gamma)
    weighted_kd = losses.weighted_kd(z, v, temperature=temperature)
    close(weighted_kd, u * losses.kd(z, v, temperature=temperature), 1e-10)
    renyi = targets.renyi_entropy(log_q, order=gamma)
    constant = targets.shannon_entropy(targets.power(log_p, gamma=gamma))
    wttm, split = losses.wttm(z, v, gamma=gamma), weighted_kd / temperature + (temperature - 1) * u * (constant - renyi)
    close(wttm, split, 1e-10)
    close(gradient(wttm, z), gradient(split, z), 1e-10)


@quick
@given(seeds, gammas)
def test_ttm_and_wttm_are_cases_of_transformed_matching(seed, gamma):
    z, v, _ = draw_logits(seed)
    f = targets.Pointwise("power", gamma=gamma)
    by_sum = targets.SampleWeight("power_sum", transform=f)
    for special, general in [
        (losses.ttm(z, v, gamma=gamma), losses.transformed_matching(z, v, transform=f)),
        (losses.wttm(z, v, gamma=gamma), losses.transformed_matching(z, v, transform=f, sample_weight=by_sum)),
    ]:
        close(special, general)
        close(gradient(special, z), gradient(general, z))


@quick
@given(
    seeds, st.sampled_from(sorted(targets.TRANSFORMS)), st.floats(1e-6, 1.0), st.sampled_from(sorted(targets.WEIGHTS))
)
def test_gradient_of_transformed_matching_is_the_documented_one(seed, name, gamma, by):
    z, v, _ = draw_logits(seed)
    f = targets.Pointwise(name, gamma=gamma)
    weigh = targets.SampleWeight(by, transform=f)
    log_p, q = torch.log_softmax(v, -1), torch.softmax(z, -1).detach()
    values = losses.transformed_matching(z, v, transform=f, sample_weight=weigh)
    close(gradient(values, z), weigh(log_p)[:, None] * (q - targets.transform(log_p, f).exp()), 1e-10)


def test_normalised_weights_have_mean_one_over_all_that_is_given():
    z, v, _ = draw_logits(4, (2, 3, 9))
    weigh = targets.SampleWeight("power_sum", transform=LOGARITHM)
    plain = losses.transformed_matching(z, v, transform=LOGARITHM)
    weighted = losses.transformed_matching(z, v, transform=LOGARITHM, sample_weight=weigh)
    normalised = losses.transformed_matching(z, v, transform=LOGARITHM, sample_weight=weigh, normalise=True)
    close((normalised / plain).mean(), torch.tensor(1.0).double())
    close(normalised / weighted, (weighted / plain).mean().reciprocal().expand(2, 3))
    sure = torch.full((4, 9), -INF).index_fill_(1, torch.tensor([2]), 0.0)
    doubt = targets.SampleWeight("one_minus_top", transform=LOGARITHM)
    values = losses.transformed_matching(
        torch.zeros(4, 9), sure, transform=LOGARITHM, sample_weight=doubt, normalise=True
    )
    assert torch.equal(values, torch.zeros(4))


def test_a_weight_of_ones_own_gets_log_probabilities_and_no_gradient():
    z, v, _ = draw_logits(4)
    v.requires_grad_()
    seen = []

    def weigh(log_probs):
        seen.append(log_probs)
        return 1 + log_probs.exp().amax(-1)

    values = losses.transformed_matching(z, v, transform=lambda log_x: 0.5 * log_x, sample_weight=weigh)
    assert torch.equal(seen[0], torch.log_softmax(v.detach(), -1))
    close(values, (1 + torch.softmax(v, -1).amax(-1)) * losses.ttm(z, v, gamma=0.5))
    values.sum().backward()
    assert v.grad is None


@pytest.mark.parametrize(
    ("how", "refusal"),
    [
        ({"transform": lambda x: x.sum(-1)}, refused(InvalidValueError, "transform", got="(6,)")),
        ({"transform": lambda x: x.argsort()}, refused(InvalidTypeError, "transform", got="torch.int64")),
        ({"transform": lambda x: None}, refused(InvalidTypeError, "transform", got="NoneType")),
        (
            {"transform": LOGARITHM, "sample_weight": lambda x: x},
            refused(InvalidValueError, "sample_weight", got="(6, 9)"),
        ),
    ],
)
def test_transforms_and_weights_of_another_shape_are_refused(how, refusal):
    z, v, _ = draw_logits(0)
    with refusal:
        losses.transformed_matching(z, v, **how)


@quick
@given(seeds, gammas, st.floats(0.1, 9.0))
def test_gradients_are_the_documented_ones(seed, gamma, beta):
    z, v, y = draw_logits(seed)
    p_gamma, q = torch.softmax(gamma * v, -1), torch.softmax(z, -1).detach()
    log_p = torch.log_softmax(v, -1)
    u = targets.power_sum(log_p, gamma=gamma)[:, None]
    close(gradient(losses.ttm(z, v, gamma=gamma), z), q - p_gamma)
    close(gradient(losses.wttm(z, v, gamma=gamma), z), u * (q - p_gamma))
    together = losses.cross_entropy(z, y) + beta * losses.wttm(z, v, gamma=gamma)
    close(gradient(together, z), (1 + beta * u) * q - F.one_hot(y, 9) - beta * u * p_gamma, 1e-10)
    temperature = 1 / gamma
    q_t = torch.softmax(z / temperature, -1).detach()
    close(gradient(losses.kd(z, v, temperature=temperature), z), temperature * (q_t - p_gamma), 1e-10)
    log_q, h = q.log(), targets.shannon_entropy(q.log())[:, None]
    close(gradient(losses.confidence_penalty(z), z), q * (log_q + h))
    order = gamma / 2.5
    q_order = torch.softmax(order * z, -1).detach()
    close(gradient(losses.renyi_penalty(z, order=order), z), order / (1 - order) * (q - q_order))


@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_weight_of_wttm_stays_within_its_bounds(gamma):
    """The weight is read off as WTTM over TTM, at a one-hot teacher, at a uniform one, between, and in float32."""
    v = torch.tensor([[0.0, -INF, -INF, -INF], [0.0] * 4, [3.0, 1.0, 0.0, -2.0], [1000.0, 1000.0, 0.0, 0.0]])
    z = torch.tensor([[0.5, -1.0, 0.0, 2.0]]).expand_as(v)
    u = losses.wttm(z, v, gamma=gamma) / losses.ttm(z, v, gamma=gamma)
    assert u[0].item() == pytest.approx(1.0, rel=1e-6)
    assert u[1].item() == pytest.approx(4 ** (1 - gamma), rel=1e-6)
    assert 1 < u[2].item() < 4 ** (1 - gamma)
    assert u[3].item() == pytest.approx(2 ** (1 - gamma), rel=1e-6)


# Laws that hold for many


@pytest.mark.parametrize("name", ["kd", "kl_divergence", "ldrld"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_zero_at_equality(name, dtype):
    z, _, y = draw_logits(3, dtype=dtype)
    values = MATCHING[name](z, z, y)
    assert torch.equal(values, torch.zeros_like(values))
    if dtype is not torch.bfloat16:  # there the gradient of the caller's own softmax is rounded
        close(gradient(values, z), torch.zeros_like(z), 1e-15 if dtype is torch.float64 else 1e-6)


def test_ttm_is_zero_where_the_student_is_the_transformed_teacher():
    _, v, _ = draw_logits(3)
    close(losses.ttm(0.25 * v, v, gamma=0.25), torch.zeros(6).double(), 1e-14)
    assert (losses.ttm(v, v, gamma=0.25) > 1e-3).all()


@pytest.mark.parametrize("name", MATCHING)
@quick
@given(seed=seeds)
def test_divergences_are_not_negative(name, seed):
    z, v, y = draw_logits(seed)
    assert (MATCHING[name](z, v, y) >= -1e-14).all()


@pytest.mark.parametrize("name", EVERY)
@quick
@given(seed=seeds, shift=st.floats(-50, 50))
def test_a_common_shift_changes_nothing(name, seed, shift):
    z, v, y = draw_logits(seed)
    close(EVERY[name](z + shift, v, y), EVERY[name](z, v, y), 1e-10)
    close(EVERY[name](z, v + shift, y), EVERY[name](z, v, y), 1e-10)


@pytest.mark.parametrize("name", EVERY)
@quick
@given(seed=seeds)
def test_permutations_of_batch_and_classes(name, seed):
    z, v, y = draw_logits(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(6, generator=generator), torch.randperm(9, generator=generator)
    close(EVERY[name](z[rows], v[rows], y[rows]), EVERY[name](z, v, y)[rows])
    inverse = torch.empty_like(columns)
    inverse[columns] = torch.arange(9)
    close(EVERY[name](z[:, columns], v[:, columns], inverse[y]), EVERY[name](z, v, y))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(9,), (1, 9), (6, 9), (2, 3, 9), (2, 1, 3, 9), (0, 9), (6, 2), (4, 1000)])
def test_any_leading_shape_equals_flattened(name, shape):
    z, v, y = draw_logits(5, shape)
    values = EVERY[name](z, v, y)
    assert values.shape == shape[:-1]
    flat = EVERY[name](z.reshape(-1, shape[-1]), v.reshape(-1, shape[-1]), y.reshape(-1))
    close(values.reshape(-1), flat, 1e-14)


@pytest.mark.parametrize("name", EVERY)
def test_layout_does_not_matter(name):
    z, v, y = draw_logits(5, (2, 9, 3))
    z, v, y = z.transpose(1, 2), v.transpose(1, 2), y[:, ::3]
    close(EVERY[name](z, v, y), EVERY[name](z.contiguous(), v.contiguous(), y.contiguous()), 1e-14)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in CONSTANT])
def test_gradcheck(name):
    z, v, y = draw_logits(6, (3, 4), scale=1.5)
    assert torch.autograd.gradcheck(lambda z: EVERY[name](z, v, y), z)


@pytest.mark.parametrize("name", [*MATCHING, "cross_entropy soft"])
def test_no_gradient_reaches_teacher_or_labels(name):
    z, v, y = draw_logits(7)
    v.requires_grad_()
    target = torch.softmax(v, -1)
    values = losses.cross_entropy(z, target) if name == "cross_entropy soft" else MATCHING[name](z, v, y)
    values.sum().backward()
    assert v.grad is None
    assert z.grad.abs().sum() > 0
    assert not MATCHING["kd"](z.detach(), v, y).requires_grad


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_inputs_are_computed_in_float32(name, dtype):
    z, v, y = draw_logits(8, dtype=dtype)
    values = EVERY[name](z, v, y)
    assert values.dtype == torch.float32
    wide = z.detach().float().requires_grad_()
    expected = EVERY[name](wide, v.float(), y)
    if name not in (
        "kl_divergence",
        "cross_entropy soft",
        "cross_entropy soft smoothed",
    ):  # these get rounded softmaxes
        close(values, expected, 1e-7)
        exact = z.detach().double().requires_grad_()
        reference = EVERY[name](exact, v.double(), y)
        torch.testing.assert_close(values.double(), reference, rtol=2e-5, atol=2e-6)
        back = gradient(values, z)
        assert back.dtype == dtype
        torch.testing.assert_close(back, gradient(expected, wide).to(dtype), rtol=0, atol=0)


def test_student_and_teacher_may_differ_in_dtype():
    z, v, _ = draw_logits(8)
    assert losses.ttm(z.bfloat16(), v.half(), gamma=0.5).dtype == torch.float32
    close(losses.ttm(z.bfloat16(), v.float(), gamma=0.5), losses.ttm(z.bfloat16().float(), v.float(), gamma=0.5), 0)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_autocast_changes_nothing(name, dtype):
    z, v, y = draw_logits(9, dtype=dtype)
    log_q, log_p = (torch.log_softmax(x, -1) for x in (z, v))
    soft = torch.softmax(v, -1)

    def call():
        if name == "kl_divergence":
            return losses.kl_divergence(log_q, log_p)
        if name.startswith("cross_entropy soft"):
            return losses.cross_entropy(z, soft, label_smoothing=0.1 if name.endswith("smoothed") else 0.0)
        return EVERY[name](z, v, y)

    plain = call()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = call()
    assert inside.dtype == plain.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert torch.equal(inside, plain)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(name, dtype):
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [0.0, 0.0, -1e4]], dtype=dtype)
    v = z.flip(0, 1)
    z.requires_grad_()
    values = EVERY[name](z, v, torch.tensor([1, 0, 2, 2]))
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient(values, z)).all()


@pytest.mark.parametrize("name", EVERY)
def test_impossible_classes_contribute_nothing(name):
    """A class that both rule out may as well not be there."""
    z, v, y = draw_logits(10)
    impossible = torch.full((6, 1), -INF, dtype=torch.float64)
    values = EVERY[name](
        wide := torch.cat([z.detach(), impossible], -1).requires_grad_(), torch.cat([v, impossible], -1), y
    )
    if "smoothed" in name:
        assert torch.equal(values, torch.full((6,), INF).double())  # smoothing asks for the impossible class
        return
    close(values, EVERY[name](z, v, y))
    back = gradient(values, wide)
    close(back[:, :-1], gradient(EVERY[name](z, v, y), z))
    assert torch.equal(back[:, -1], torch.zeros(6).double())


@pytest.mark.parametrize("name", MATCHING)
def test_class_that_only_the_teacher_rules_out(name):
    z, v, y = draw_logits(11)
    v[:, 2] = -INF
    values = MATCHING[name](z, v, y)
    near = v.masked_fill(torch.isinf(v), -1e5)
    close(values, MATCHING[name](z, near, y))
    close(gradient(values, z), gradient(MATCHING[name](z, near, y), z))


def test_class_that_only_the_student_rules_out_makes_the_divergence_infinite():
    q, p = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    assert losses.kl_divergence(q.log(), p.log()).item() == INF


@pytest.mark.parametrize("name", MATCHING)
def test_nan_is_not_hidden(name):
    z, v, y = draw_logits(12)
    broken = v.clone()
    broken[0, 0] = math.nan
    values = MATCHING[name](z, broken, y)
    assert torch.isnan(values[0])
    assert torch.isfinite(values[1:]).all()
    assert torch.isnan(MATCHING[name](broken, v, y)[0])


# Labels


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_unlabelled_samples_take_no_part(label_smoothing):
    z, _, y = draw_logits(13)
    some = y.clone()
    some[[1, 4]] = -100
    values = losses.cross_entropy(z, some, label_smoothing=label_smoothing)
    full = losses.cross_entropy(z, y, label_smoothing=label_smoothing)
    kept = torch.tensor([0, 2, 3, 5])
    assert torch.equal(values[[1, 4]], torch.zeros(2).double())
    close(values[kept], full[kept])
    back = gradient(values, z)
    assert torch.equal(back[[1, 4]], torch.zeros(2, 9).double())
    close(back[kept], gradient(full, z)[kept])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_batch_without_labels_is_exactly_zero(label_smoothing):
    z, _, y = draw_logits(13, dtype=torch.float32)
    values = losses.cross_entropy(z, torch.full_like(y, -100), label_smoothing=label_smoothing)
    assert torch.equal(values, torch.zeros(6))
    assert torch.equal(gradient(values, z), torch.zeros(6, 9))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_soft_labels_equal_one_hot(label_smoothing):
    z, _, y = draw_logits(14, (2, 3, 9))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        hot = F.one_hot(y, 9).to(dtype)
        soft = losses.cross_entropy(z, hot, label_smoothing=label_smoothing)
        index = losses.cross_entropy(z, y, label_smoothing=label_smoothing)
        assert soft.dtype == torch.float64
        close(soft, index)
        close(gradient(soft, z), gradient(index, z))


def test_labels_are_not_changed():
    z, v, y = draw_logits(15)
    y[0] = -100
    before, soft = y.clone(), torch.softmax(v, -1)
    kept = soft.clone()
    losses.cross_entropy(z, y, label_smoothing=0.1)
    losses.cross_entropy(z, soft, label_smoothing=0.1)
    assert torch.equal(y, before)
    assert torch.equal(soft, kept)


# What is refused


@pytest.mark.parametrize("value", [0, -1.0, math.nan, INF])
@pytest.mark.parametrize(
    ("call", "name", "example"),
    [
        (losses.kd, "temperature", "4.0"),
        (losses.weighted_kd, "temperature", "4.0"),
        (losses.ttm, "gamma", "0.1"),
        (losses.wttm, "gamma", "0.1"),
        (partial(losses.ldrld, k=7, alpha=10.5, beta=7.0), "temperature", "4.0"),
    ],
)
def test_bad_hyperparameter(call, name, example, value):
    z, v, _ = draw_logits(0)
    with refused(InvalidValueError, name, got=value, suggests=f"{name}={example}"):
        call(z, v, **{name: value})
    for other in ("4", None, True, torch.tensor(4.0)):
        with refused(InvalidTypeError, name, got=type(other).__name__, suggests=f"float({name})"):
            call(z, v, **{name: other})


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, math.nan, INF])
def test_bad_label_smoothing(value):
    z, _, y = draw_logits(0)
    with refused(InvalidValueError, "label_smoothing", got=value, suggests="label_smoothing=0.1"):
        losses.cross_entropy(z, y, label_smoothing=value)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, -INF])
def test_bad_order(value):
    with refused(InvalidValueError, "order", got=value, suggests="order=0.25"):
        losses.renyi_penalty(draw_logits(0)[0], order=value)


@pytest.mark.parametrize("name", MATCHING)
def test_shapes_that_differ(name):
    z, v, _ = draw_logits(0)
    call = losses.kl_divergence if name == "kl_divergence" else lambda z, v: MATCHING[name](z, v, None)
    what = "teacher_log_probs" if name == "kl_divergence" else "teacher_logits"
    for other, suggests in (
        (v[:, :8], "the same classes"),
        (v[:5], "the same batch"),
        (v[None], "the same batch"),
        (v[:1], f"{what}.expand_as"),
    ):
        with refused(InvalidValueError, what, got=tuple(other.shape), suggests=suggests):
            call(z, other)


@pytest.mark.parametrize("name", EVERY)
def test_logits_that_are_no_logits(name):
    z, v, y = draw_logits(0)
    if name == "kl_divergence":
        with refused(InvalidTypeError, "student_log_probs", got="torch.int64", suggests="student_log_probs.float()"):
            losses.kl_divergence(z.long(), v)
        return
    for bad in (z.long(), z > 0, torch.complex(z, z)):
        with refused(InvalidTypeError, "student_logits", got=bad.dtype, suggests="student_logits.float()"):
            EVERY[name](bad, v, y)
    with refused(InvalidTypeError, "student_logits", got="list", suggests="torch.as_tensor"):
        EVERY[name](z.tolist(), v, y)
    for shape in ((), (6, 0)):
        with refused(InvalidValueError, "student_logits", got=shape):
            EVERY[name](torch.zeros(shape), v, y)


@pytest.mark.parametrize("name", ["kd", "weighted_kd", "ttm", "wttm"])
def test_teacher_that_is_no_logits(name):
    z, v, y = draw_logits(0)
    with refused(InvalidTypeError, "teacher_logits", got="torch.int64", suggests="teacher_logits.float()"):
        MATCHING[name](z, v.long(), y)


@pytest.mark.parametrize(
    ("labels", "refusal"),
    [
        (
            torch.zeros(6, dtype=torch.int32),
            refused(InvalidTypeError, "labels", got="torch.int32", suggests="labels.long()"),
        ),
        (
            torch.zeros(6, dtype=torch.bool),
            refused(InvalidTypeError, "labels", got="torch.bool", suggests="labels.long()"),
        ),
        ([0] * 6, refused(InvalidTypeError, "labels", got="list", suggests="torch.as_tensor(labels)")),
        (
            torch.zeros(5).long(),
            refused(InvalidValueError, "labels", got="(5,)"),
        ),
        (torch.zeros(6, 9).long(), refused(InvalidValueError, "labels", got="(6, 9)", suggests="labels.float()")),
        (torch.zeros(6), refused(InvalidValueError, "labels", got="(6,)", suggests="labels.long()")),
        (torch.zeros(6, 8), refused(InvalidValueError, "labels", got="(6, 8)")),
        (
            torch.tensor([0, 1, 9, 3, 4, 5]),
            refused(InvalidValueError, "labels", got=9),
        ),
        (torch.tensor([0, 1, -1, 3, 4, 5]), refused(InvalidValueError, "labels", got=-1)),
        (torch.eye(6, 9) + torch.eye(9)[3], refused(InvalidValueError, "labels", got="sum 2: 1, 0, 0, 1")),
        (torch.eye(6, 9) - torch.eye(9)[3], refused(InvalidValueError, "labels", got="sum 0: 1, 0, 0, -1")),
        (torch.eye(6, 9, dtype=torch.bfloat16) / 2, refused(InvalidValueError, "labels", suggests="int64 1 and 0")),
        (torch.eye(6, 9) * math.nan, refused(InvalidValueError, "labels", got="sum nan")),
    ],
    ids=[
        "int32",
        "bool",
        "list",
        "short",
        "one-hot",
        "float",
        "classes",
        "above",
        "below",
        "multi-hot",
        "negative",
        "half",
        "nan",
    ],
)
def test_bad_labels(labels, refusal):
    with refusal:
        losses.cross_entropy(draw_logits(0)[0], labels)


@pytest.mark.parametrize("classes", [2, 100, 32000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_labels_that_were_rounded_are_distributions(dtype, classes):
    hot = F.one_hot(torch.arange(4) % classes, classes).to(dtype)
    share = torch.rand(4, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    mixed = share * hot + (1 - share) * hot.roll(1, 0)
    for labels in (hot * 0.9 + 0.1 / classes, mixed, mixed * 0.9 + 0.1 / classes, torch.softmax(3 * hot, -1)):
        losses.cross_entropy(torch.zeros(4, classes), labels)


def test_a_row_of_zeros_says_nothing():
    z, v, _ = draw_logits(0)
    rows = torch.softmax(v, -1)
    rows[2] = 0
    values = losses.cross_entropy(z, rows)
    assert values[2] == 0
    assert not gradient(values, z)[2].any()


def test_arguments_after_the_tensors_are_by_keyword_only():
    z, v, y = draw_logits(0)
    for call in (losses.kd, losses.ttm, losses.wttm):
        with pytest.raises(TypeError, match="positional"):
            call(z, v, 0.5)
    with pytest.raises(TypeError, match="positional"):
        losses.cross_entropy(z, y, 0.1)
    with pytest.raises(TypeError, match="positional"):
        losses.renyi_penalty(z, 0.5)


# Compiled and on an accelerator


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("cross_entropy", "kd", "wttm") else pytest.mark.slow) for name in EVERY],
)
def test_compiles_into_one_graph(name):
    torch._dynamo.reset()
    compiled = torch.compile(EVERY[name], fullgraph=True, backend="aot_eager")
    for seed, shape in ((1, (6, 9)), (2, (4, 9))):
        z, v, y = draw_logits(seed, shape)
        y[0] = -100
        plain, traced = EVERY[name](z, v, y), compiled(z, v, y)
        close(traced, plain, 1e-13)
        close(gradient(traced, z), gradient(plain, z), 1e-13)


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (lambda z, v, y, value: losses.kd(z, v, temperature=value), (4.0, 2.5, 7.25)),
        (lambda z, v, y, value: losses.wttm(z, v, gamma=value), (0.1, 0.2, 0.9)),
        (lambda z, v, y, value: losses.renyi_penalty(z, order=value), (0.1, 0.2, 1.1, 3.0)),
        (lambda z, v, y, value: losses.cross_entropy(z, y, label_smoothing=value), (0.1, 0.2, 0.3)),
    ],
    ids=["temperature", "gamma", "order", "label_smoothing"],
)
def test_compiled_hyperparameters_may_change(call, values):
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    z, v, y = draw_logits(1)
    for value in values:
        close(compiled(z, v, y, value), call(z, v, y, value), 1e-13)


@pytest.mark.cuda
@pytest.mark.parametrize("name", EVERY)
def test_cuda_equals_cpu_and_never_makes_the_host_wait(name):
    z, v, y = draw_logits(1, (64, 100), dtype=torch.float32)
    y[0] = -100
    expected = EVERY[name](z, v, y)
    on_device, teacher, labels = z.detach().cuda().requires_grad_(), v.cuda(), y.cuda()
    with no_host_wait():
        values = EVERY[name](on_device, teacher, labels)
        back = gradient(values, on_device)
    torch.testing.assert_close(values.cpu(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back.cpu(), gradient(expected, z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, value in vars(losses).items() if inspect.isfunction(value)])
def test_everything_public_is_exported_and_documented(name):
    documented = getattr(losses, name).__doc__
    for part in ("Args:", "Returns:", "Raises:", "Source:", "Example:"):
        assert part in documented
