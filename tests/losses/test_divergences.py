"""Properties of the divergences by name."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._helpers.cuda import no_host_wait
from tests._helpers.refusals import refused

from tutelage import losses, targets
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.losses.divergences import KINDS, PARAMETERS, parameters_of

INF, NAN = math.inf, math.nan
quick = settings(max_examples=10, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 10_000)

CASES = {
    "forward": {"kind": "forward"},
    "reverse": {"kind": "reverse"},
    "jensen_shannon": {"kind": "jensen_shannon"},
    "jensen_shannon 0.1": {"kind": "jensen_shannon", "beta": 0.1},
    "jensen_shannon 0.9": {"kind": "jensen_shannon", "beta": 0.9},
    "skew": {"kind": "skew"},
    "skew 0.7": {"kind": "skew", "alpha": 0.7},
    "total_variation": {"kind": "total_variation"},
    "skew_reverse": {"kind": "skew_reverse"},
    "skew_reverse 0.7": {"kind": "skew_reverse", "alpha": 0.7},
    "alpha_beta": {"kind": "alpha_beta"},
    "alpha_beta 0.8 0.3": {"kind": "alpha_beta", "alpha": 0.8, "beta": 0.3},
    "alpha_beta 0 0.5": {"kind": "alpha_beta", "alpha": 0.0, "beta": 0.5},
    "alpha_beta 0.5 0": {"kind": "alpha_beta", "alpha": 0.5, "beta": 0.0},
    "adaptive": {"kind": "adaptive"},
    "adaptive 0.9": {"kind": "adaptive", "mu": 0.9},
    "class_wise": {"kind": "class_wise"},
    "wasserstein": {"kind": "wasserstein", "sinkhorn_lambda": 0.1},
}
HELD = ("adaptive", "adaptive 0.9", "class_wise")  # their weights have no gradient
COST = torch.rand(100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
every = pytest.mark.parametrize("name", CASES)


def call(name, z, v):
    classes = z.shape[-1]
    cost = {"cost": COST[:classes, :classes]} if name == "wasserstein" else {}
    return losses.divergence(z, v, **CASES[name], **cost)


def draw_logits(seed, shape=(6, 9), scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return z.to(dtype).requires_grad_(), v.to(dtype)


def gradient(values, z):
    return torch.autograd.grad(values.sum(), z)[0]


def close(ours, expected, tolerance=1e-11):
    torch.testing.assert_close(ours.detach(), torch.as_tensor(expected).detach(), rtol=tolerance, atol=tolerance)


def kl(a, b):
    """With 0 * log(0 / b) = 0, and infinite where only ``b`` is 0."""
    return torch.where(a == 0, 0.0, a * (a / b).log()).sum(-1)


def by_formula(name, z, v):
    """Value and gradient by the logits from probabilities, as the docstring has them."""
    q, p = torch.softmax(z.detach(), -1), torch.softmax(v, -1)
    kind, beta, alpha = CASES[name]["kind"], CASES[name].get("beta", 0.5), CASES[name].get("alpha", 0.1)

    def against(r):
        """``q * (log(q / r) - KL(q || r))``."""
        return q * (torch.where(q == 0, 0.0, (q / r).log()) - kl(q, r)[..., None])

    if kind == "forward":
        return kl(p, q), q - p
    if kind == "reverse":
        return kl(q, p), against(p)
    if kind == "jensen_shannon":
        m = beta * p + (1 - beta) * q
        return beta * kl(p, m) + (1 - beta) * kl(q, m), (1 - beta) * against(m)
    if kind == "skew":
        m = alpha * p + (1 - alpha) * q
        share = torch.where(m == 0, 0.0, p / m)
        return kl(p, m), (1 - alpha) * q * ((q * share).sum(-1, keepdim=True) - share)
    if kind == "skew_reverse":
        m = alpha * q + (1 - alpha) * p
        r = torch.where(q == 0, 0.0, (q / m).log() - alpha * q / m)
        return kl(q, m), q * (r - (q * r).sum(-1, keepdim=True))
    if kind == "alpha_beta":
        return alpha_beta(p, q, CASES[name].get("alpha", 0.5), beta)
    if kind == "adaptive":
        w = head_share(p, q, CASES[name].get("mu", 0.5))
        value = torch.where(w == 0, 0.0, w * kl(p, q)) + torch.where(w == 1, 0.0, (1 - w) * kl(q, p))
        return value, w[..., None] * (q - p) + (1 - w)[..., None] * against(p)
    if kind == "class_wise":
        w = p / (p + q)
        g = (1 - w) * q * ((q / p).log() + 1) - w * p
        g = torch.where((q == 0) & (p == 0), 0.0, torch.where(q == 0, -p, g))
        return kl(p, q) + kl(q, p), g - q * g.sum(-1, keepdim=True)
    if kind == "wasserstein":
        z = z.detach().requires_grad_()
        value = sinkhorn(torch.softmax(z, -1), p, COST[: z.shape[-1], : z.shape[-1]], 0.1, 10)
        return value.detach(), gradient(value, z)
    sign = (q - p).sign()
    return 0.5 * (p - q).abs().sum(-1), 0.5 * q * (sign - (q * sign).sum(-1, keepdim=True))


def alpha_beta(p, q, a, b):
    both = (p == 0) & (q == 0)
    p, q = p.masked_fill(both, 1.0), q.masked_fill(both, 1.0)
    if a == 0:
        terms = (torch.where(q == 0, 0.0, q**b * b * (q / p).log()) - q**b + p**b) / b**2
        g = torch.where(q == 0, 0.0, q**b * (q / p).log())
    elif b == 0:
        terms = (torch.where(p == 0, 0.0, p**a * a * (p / q).log()) - p**a + q**a) / a**2
        g = (q**a - p**a) / a
    else:
        terms = -(p**a * q**b - (a * p ** (a + b) + b * q ** (a + b)) / (a + b)) / (a * b)
        g = (q ** (a + b) - p**a * q**b) / a
    terms, g = terms.masked_fill(both, 0.0), g.masked_fill(both, 0.0)
    return terms.sum(-1), g - q.masked_fill(both, 0.0) * g.sum(-1, keepdim=True)


def head_share(p, q, mu):
    """By walking down each row from the likeliest class."""
    shares = []
    for teacher, gaps in zip(p.reshape(-1, p.shape[-1]).tolist(), (p - q).abs().reshape(-1, p.shape[-1]), strict=True):
        order = sorted(range(len(teacher)), key=lambda i: -teacher[i])
        masses = itertools.accumulate(teacher[i] for i in order)
        head = [i for place, (i, mass) in enumerate(zip(order, masses, strict=True)) if place == 0 or mass <= mu]
        rest = [i for i in order if i not in head]
        total = gaps[head].sum() + gaps[rest].sum()
        shares.append(gaps[head].sum() / total if total else total)
    return torch.stack(shares).reshape(p.shape[:-1])


def plan(q, p, cost, weight, iterations):
    """Sinkhorn's iterations in probabilities, as they are written."""
    kernel, u = torch.exp(-cost / weight), (q > 0).to(q) / (q > 0).sum(-1, keepdim=True)
    for _ in range(iterations):
        v = p / (u @ kernel)
        u = q / (v @ kernel.T)
    return u[..., :, None] * kernel * v[..., None, :]


def sinkhorn(q, p, cost, weight, iterations):
    return (plan(q, p, cost, weight, iterations) * cost).sum((-1, -2))


def least_cost(q, p, cost):
    """The exact transport of one pair of distributions, by linear programming."""
    rows, columns = np.kron(np.eye(len(q)), np.ones(len(p))), np.kron(np.ones(len(q)), np.eye(len(p)))
    solved = scipy.optimize.linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=np.concatenate([q, p]))
    assert solved.success
    return solved.fun


def test_every_kind_is_tested():
    assert {case["kind"] for case in CASES.values()} == KINDS.keys()


# Values and gradients


@every
@quick
@given(seed=seeds, scale=st.sampled_from([0.1, 1.0, 3.0, 10.0]))
def test_values_and_gradients_are_the_documented_ones(name, seed, scale):
    z, v = draw_logits(seed, scale=scale)
    values = call(name, z, v)
    expected, slope = by_formula(name, z, v)
    close(values, expected, 1e-10)
    close(gradient(values, z), slope, 1e-10)


@pytest.mark.parametrize("name", [name for name in CASES if name not in HELD])
def test_gradcheck(name):
    z, v = draw_logits(6, (3, 4), scale=1.5)
    assert torch.autograd.gradcheck(lambda z: call(name, z, v), z)


@quick
@given(seeds, st.floats(0.1, 10.0))
def test_forward_is_kd_ttm_and_wttm(seed, temperature):
    z, v = draw_logits(seed)
    gamma = 1 / temperature
    squared = temperature**2
    for known, ours in [
        (
            losses.kd(z, v, temperature=temperature),
            squared * losses.divergence(z / temperature, v / temperature, kind="forward"),
        ),
        (losses.ttm(z, v, gamma=gamma), losses.divergence(z, gamma * v, kind="forward")),
        (
            losses.wttm(z, v, gamma=gamma),
            targets.power_sum(torch.log_softmax(v, -1), gamma=gamma) * losses.divergence(z, gamma * v, kind="forward"),
        ),
    ]:
        close(ours, known)
        close(gradient(ours, z), gradient(known, z))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_forward_has_the_bits_of_ttm(dtype):
    z, v = draw_logits(3, dtype=dtype)
    ours, known = losses.divergence(z, v, kind="forward"), losses.ttm(z, v, gamma=1)
    assert torch.equal(ours, known)
    assert torch.equal(gradient(ours, z), gradient(known, z))


@quick
@given(seeds, st.floats(0.01, 0.99))
def test_roles_exchanged(seed, beta):
    z, v = draw_logits(seed)

    def value(z, v, **how):
        return losses.divergence(z, v, **how)

    close(value(z, v, kind="reverse"), value(v, z, kind="forward"))
    close(value(z, v, kind="jensen_shannon", beta=beta), value(v, z, kind="jensen_shannon", beta=1 - beta))
    close(value(z, v, kind="total_variation"), value(v, z, kind="total_variation"))
    close(value(z, v, kind="skew_reverse", alpha=beta), value(v, z, kind="skew", alpha=beta))
    close(value(z, v, kind="class_wise"), value(v, z, kind="class_wise"))
    for a, b in ((0.8, 0.3), (1.2, -0.2), (0.0, 0.7), (0.4, -0.4)):
        exchanged = value(v, z, kind="alpha_beta", alpha=b, beta=a)
        close(value(z, v, kind="alpha_beta", alpha=a, beta=b), exchanged, 1e-9)


def test_towards_an_end_it_is_a_kl_divergence_times_the_distance_to_that_end():
    z, v = draw_logits(2, scale=1.0)
    forward, reverse = (losses.divergence(z, v, kind=kind) for kind in ("forward", "reverse"))
    close(losses.divergence(z, v, kind="jensen_shannon", beta=1e-7) / 1e-7, forward, 1e-5)
    close(losses.divergence(z, v, kind="jensen_shannon", beta=1 - 1e-7) / 1e-7, reverse, 1e-5)
    close(losses.divergence(z, v, kind="skew", alpha=1e-7), forward, 1e-5)


@pytest.mark.parametrize("share", [1e-7, 1e-3, 0.7, 1 - 1e-7])
@pytest.mark.parametrize(("kind", "number"), [("jensen_shannon", "beta"), ("skew", "alpha")])
def test_float32_is_as_exact_at_any_share(kind, number, share):
    z, v = draw_logits(2)
    narrow = losses.divergence(z.float(), v.float(), kind=kind, **{number: share})
    wide = losses.divergence(z, v, kind=kind, **{number: share})
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [5e-324, 1e-20, 1 - 2**-53])
def test_the_smallest_shares_have_values(share):
    z, v = draw_logits(2, dtype=torch.float32)
    for how in ({"kind": "jensen_shannon", "beta": share}, {"kind": "skew", "alpha": share}):
        values = losses.divergence(z, v, **how)
        assert torch.isfinite(values).all()
        assert torch.isfinite(gradient(values, z)).all()


@pytest.mark.parametrize("name", [name for name in CASES if name != "wasserstein"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_equal_networks_are_at_zero(name, dtype):
    z, _ = draw_logits(3, dtype=dtype)
    tolerance = 1e-15 if dtype is torch.float64 else 3e-7
    values = call(name, z, z)
    close(values, torch.zeros_like(values), tolerance)
    close(gradient(values, z), torch.zeros_like(z), tolerance)


@every
@quick
@given(seed=seeds, scale=st.sampled_from([0.1, 3.0, 50.0, 1000.0]))
def test_bounds(name, seed, scale):
    z, v = draw_logits(seed, scale=scale, dtype=torch.float32)
    values = call(name, z, v)
    most = {
        "jensen_shannon": lambda beta: -beta * math.log(beta) - (1 - beta) * math.log(1 - beta),
        "skew": lambda alpha: -math.log(alpha),
        "skew_reverse": lambda alpha: -math.log(alpha),
        "total_variation": lambda: 1.0,
        "alpha_beta": lambda alpha, beta: 1 / (alpha * beta) if min(alpha, beta) > 0 else INF,
        "wasserstein": lambda **_: COST.max(),
    }.get(CASES[name]["kind"], lambda **_: INF)(
        **parameters_of(**CASES[name] | {"cost": {"wasserstein": COST}.get(name)})
    )
    assert (values >= -1e-6).all()
    assert (values <= most + 1e-6).all()


def test_opposite_networks_are_at_the_bounds():
    z = torch.tensor([1000.0, -1000.0])
    v = z.flip(0)
    expected = {"jensen_shannon": math.log(2), "skew": math.log(10), "total_variation": 1.0, "forward": 2000.0}
    for kind, value in expected.items():
        assert losses.divergence(z, v, kind=kind).item() == pytest.approx(value, rel=1e-6)
    assert losses.divergence(z, v, kind="reverse").item() == pytest.approx(2000.0)


# Probabilities of 0, NaN and gaps

# Logits of student and teacher; whether forward and reverse are finite.
RULED_OUT = {
    "both": ([2.0, 0.0, -INF, 1.0], [0.0, 2.0, -INF, 0.5], True, True),
    "teacher": ([2.0, 0.0, 1.0, 1.0], [0.0, 2.0, -INF, 0.5], True, False),
    "student": ([2.0, 0.0, -INF, 1.0], [0.0, 2.0, 1.0, 0.5], False, True),
    "each another": ([2.0, 0.0, -INF, 1.0], [0.0, -INF, 1.0, 0.5], False, False),
    "each another and both": ([2.0, -INF, -INF, 1.0], [-INF, 0.0, -INF, 0.5], False, False),
    "nothing in common": ([2.0, -INF, 0.0, -INF], [-INF, 2.0, -INF, 0.5], False, False),
    "one-hot": ([-INF, 0.0, -INF, -INF], [-INF, 0.0, -INF, -INF], True, True),
}


@every
@pytest.mark.parametrize("where", RULED_OUT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_classes_that_are_ruled_out(name, where, dtype):
    z, v, forward, reverse = RULED_OUT[where]
    # The row beside it must come through untouched.
    z = torch.tensor([z, [0.0, 1.0, 2.0, 3.0]], dtype=dtype).requires_grad_()
    v = torch.tensor([v, [1.0, 0.5, 0.0, -1.0]], dtype=dtype)
    values = call(name, z, v)
    back = gradient(values, z)
    expected, slope = by_formula(name, z.double(), v.double())
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    torch.testing.assert_close(values.double(), expected, rtol=tolerance, atol=tolerance)
    ends = {"forward": forward, "reverse": reverse, "class_wise": forward and reverse}
    ends |= {name: bool(torch.isfinite(expected[0])) for name in ("alpha_beta", "adaptive")}
    finite = ends.get(CASES[name]["kind"], True)
    assert torch.isfinite(values).tolist() == [finite, True]
    if not finite:
        assert values[0] == INF
    wrong = {torch.float16: 1e-3, torch.bfloat16: 1e-2}.get(dtype, tolerance)  # the gradient is rounded to it
    rows = slice(None) if finite else slice(1, None)
    torch.testing.assert_close(back[rows].double(), slope[rows], rtol=wrong, atol=1e-6)


@every
def test_a_class_that_both_rule_out_may_as_well_not_be_there(name):
    z, v = draw_logits(10)
    impossible = torch.full((6, 1), -INF, dtype=torch.float64)
    wide = torch.cat([z.detach(), impossible], -1).requires_grad_()
    values = call(name, wide, torch.cat([v, impossible], -1))
    close(values, call(name, z, v))
    back = gradient(values, wide)
    close(back[:, :-1], gradient(call(name, z, v), z))
    assert torch.equal(back[:, -1], torch.zeros(6).double())


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_gaps_stay_finite(name, dtype):
    z = torch.tensor([[1e3, -1e3, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [0.0, 0.0, -1e4]], dtype=dtype)
    v = z.flip(0, 1)
    z.requires_grad_()
    values = call(name, z, v)
    exact = z.detach().double().requires_grad_()
    reference = call(name, exact, v.double())
    assert torch.isfinite(reference).all()
    torch.testing.assert_close(values.double(), reference, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient(values, z).double(), gradient(reference, exact), rtol=1e-2, atol=1e-3)


@every
def test_gaps_at_which_probabilities_underflow_in_float32(name):
    """Float64 has these probabilities still, and says what float32 must give."""
    z, v = draw_logits(4, (64, 9), scale=60.0)
    narrow = z.detach().float().requires_grad_()
    values, expected = call(name, narrow, v.float()), call(name, z, v)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(values, narrow).double(), gradient(expected, z), rtol=1e-4, atol=1e-4)


@every
@pytest.mark.parametrize("other", [1.0, -INF, NAN])
def test_nan_is_not_hidden_and_stays_in_its_row(name, other):
    for broken in ("student", "teacher"):
        z, v = draw_logits(12)
        z = z.detach()
        first, second = (z, v) if broken == "student" else (v, z)
        first[0, 0], second[0, 0] = NAN, other
        values = call(name, z.requires_grad_(), v)
        assert torch.isnan(values[0])
        assert torch.isfinite(values[1:]).all()
        assert torch.isfinite(gradient(values[1:], z)[1:]).all()


# Dtypes, shapes, the teacher


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_inputs_are_computed_in_float32(name, dtype):
    z, v = draw_logits(8, dtype=dtype)
    values = call(name, z, v)
    assert values.dtype == torch.float32
    wide = z.detach().float().requires_grad_()
    expected = call(name, wide, v.float())
    assert torch.equal(values, expected)
    back = gradient(values, z)
    assert back.dtype == dtype
    assert torch.equal(back, gradient(expected, wide).to(dtype))
    exact = call(name, z.detach().double(), v.double())
    torch.testing.assert_close(values.double(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("sinkhorn_lambda", [0.1, 0.01, 0.001, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_that_has_to_move_moves_however_small_the_weight_of_entropy(sinkhorn_lambda, dtype):
    z, v = 20 * torch.eye(3, dtype=dtype), 20 * torch.eye(3, dtype=dtype).roll(1, 0)
    values = losses.divergence(
        z.requires_grad_(), v, kind="wasserstein", cost=1 - torch.eye(3), sinkhorn_lambda=sinkhorn_lambda
    )
    torch.testing.assert_close(values.detach(), torch.ones(3, dtype=dtype), rtol=1e-4, atol=0)
    assert gradient(values, z).any()


@every
def test_derivatives_can_be_mapped_over_and_taken_twice(name):
    z, v = draw_logits(11, (3, 2, 5))
    mapped = torch.func.vmap(torch.func.grad(lambda z, v: call(name, z, v).sum()))(z.detach(), v)
    torch.testing.assert_close(mapped, gradient(call(name, z, v), z))
    if name not in HELD:
        assert torch.autograd.gradgradcheck(lambda x: call(name, x, v), z)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_autocast_changes_nothing(name, dtype):
    z, v = draw_logits(9, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = call(name, z, v)
    assert torch.equal(inside, call(name, z, v))


@every
@pytest.mark.parametrize("shape", [(9,), (1, 9), (2, 3, 9), (2, 1, 3, 9), (0, 9), (6, 2), (6, 1)])
def test_positions_are_samples(name, shape):
    z, v = draw_logits(5, shape)
    values = call(name, z, v)
    assert values.shape == shape[:-1]
    close(values.reshape(-1), call(name, z.reshape(-1, shape[-1]), v.reshape(-1, shape[-1])), 1e-14)


@every
def test_no_gradient_reaches_the_teacher(name):
    z, v = draw_logits(7)
    v.requires_grad_()
    call(name, z, v).sum().backward()
    assert v.grad is None
    assert z.grad.abs().sum() > 0
    assert not call(name, z.detach(), v).requires_grad


@every
@quick
@given(seed=seeds, shift=st.floats(-50, 50))
def test_a_common_shift_changes_nothing(name, seed, shift):
    z, v = draw_logits(seed)
    close(call(name, z + shift, v), call(name, z, v), 1e-10)
    close(call(name, z, v + shift), call(name, z, v), 1e-10)


@pytest.mark.slow  # losses of logits compile in every change
def test_compiles_into_one_graph_and_shapes_and_numbers_may_change():
    torch._dynamo.reset()

    def compute(z, v, share):
        numbers = {kind: dict.fromkeys(own, share) for kind, own in PARAMETERS.items()}
        numbers["wasserstein"] = {"cost": COST[:9, :9], "sinkhorn_lambda": share}
        return torch.stack([losses.divergence(z, v, kind=kind, **numbers.get(kind, {})) for kind in KINDS])

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    for shape, share in [((6, 9), 0.1), ((4, 9), 0.25), ((4, 9), 0.9)]:
        z, v = draw_logits(1, shape)
        plain, traced = compute(z, v, share), compiled(z, v, share)
        close(traced, plain, 1e-13)
        close(gradient(traced, z), gradient(plain, z), 1e-13)


@pytest.mark.cuda
@every
def test_cuda_equals_cpu_and_never_makes_the_host_wait(name):
    z, v = draw_logits(1, (64, 100), dtype=torch.float32)
    expected = call(name, z, v)
    on_device, teacher = z.detach().cuda().requires_grad_(), v.cuda()
    with no_host_wait():
        values = call(name, on_device, teacher)
        back = gradient(values, on_device)
    torch.testing.assert_close(values.cpu(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back.cpu(), gradient(expected, z), rtol=1e-5, atol=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("how", "refusal"),
    [
        ({"kind": "revers"}, refused(InvalidValueError, "kind", got="'revers'", suggests="reverse")),
        ({"kind": "?"}, refused(InvalidValueError, "kind", got="'?'", suggests='kind="forward"')),
        ({"kind": None}, refused(InvalidValueError, "kind", got="None")),
        (
            {"kind": "forward", "alpha": 0.1},
            refused(InvalidValueError, "alpha", got=0.1, suggests='kind="skew"'),
        ),
        (
            {"kind": "reverse", "beta": 0.0},
            refused(InvalidValueError, "beta", got=0.0, suggests='kind="jensen_shannon"'),
        ),
        ({"kind": "total_variation", "beta": 0.5}, refused(InvalidValueError, "beta")),
        ({"kind": "skew", "beta": 0.5}, refused(InvalidValueError, "beta", got=0.5)),
        ({"kind": "jensen_shannon", "alpha": 0.5, "beta": 0.5}, refused(InvalidValueError, "alpha")),
        *(
            (
                {"kind": kind, name: value},
                refused(InvalidValueError, name, got=value, suggests=f"{name}={PARAMETERS[kind][name].default}"),
            )
            for kind, name in (("jensen_shannon", "beta"), ("skew", "alpha"), ("skew_reverse", "alpha"))
            for value in (0, 1, 0.0, 1.0, -0.1, 1.5, NAN, INF)
        ),
        *(
            ({"kind": "alpha_beta", name: value}, refused(InvalidValueError, name, got=value, suggests=f"{name}=0.5"))
            for name in ("alpha", "beta")
            for value in (NAN, INF, -INF)
        ),
        ({"kind": "alpha_beta", "mu": 0.5}, refused(InvalidValueError, "mu", got=0.5, suggests='kind="adaptive"')),
        *(({"kind": "adaptive", "mu": value}, refused(InvalidValueError, "mu", got=value)) for value in (-0.1, 1.0)),
        ({"kind": "wasserstein"}, refused(InvalidTypeError, "cost", got="none", suggests="losses.class_cost")),
        ({"kind": "wasserstein", "cost": COST[:9]}, refused(InvalidValueError, "cost", got="(9, 100)")),
        ({"kind": "wasserstein", "cost": COST}, refused(InvalidValueError, "cost", got="(100, 100)")),
        ({"kind": "wasserstein", "cost": COST.long()}, refused(InvalidTypeError, "cost", suggests="cost.float()")),
        ({"kind": "forward", "cost": COST}, refused(InvalidValueError, "cost", got="(100, 100)")),
        (
            {"kind": "wasserstein", "cost": COST[:9, :9], "sinkhorn_lambda": 0.0},
            refused(InvalidValueError, "sinkhorn_lambda", got=0.0, suggests="sinkhorn_lambda=0.05"),
        ),
        (
            {"kind": "wasserstein", "cost": COST[:9, :9], "sinkhorn_iter": 0},
            refused(InvalidValueError, "sinkhorn_iter", got="0", suggests="sinkhorn_iter=10"),
        ),
        ({"kind": "forward", "temperature": 0.0}, refused(InvalidValueError, "temperature", got=0.0)),
        *(
            ({"kind": "skew", "alpha": value}, refused(InvalidTypeError, "alpha", got=kind))
            for value, kind in [("0.1", "str"), (True, "bool"), (torch.tensor(0.1), "Tensor")]
        ),
    ],
)
def test_kinds_and_numbers_that_are_refused(how, refusal):
    z, v = draw_logits(0)
    with refusal:
        losses.divergence(z, v, **how)


def test_logits_that_are_refused():
    z, v = draw_logits(0)
    with refused(InvalidValueError, "teacher_logits", got="(6, 8)"):
        losses.divergence(z, v[:, :8], kind="reverse")
    with refused(InvalidTypeError, "student_logits", got="torch.int64"):
        losses.divergence(z.long(), v, kind="reverse")


def test_the_parameters_of_a_kind():
    assert {kind: parameters_of(kind) for kind in KINDS if kind != "wasserstein"} == {
        "jensen_shannon": {"beta": 0.5},
        "skew": {"alpha": 0.1},
        "skew_reverse": {"alpha": 0.1},
        "alpha_beta": {"alpha": 0.5, "beta": 0.5},
        "adaptive": {"mu": 0.5},
    } | {kind: {} for kind in ("forward", "reverse", "total_variation", "class_wise")}
    assert parameters_of("skew", alpha=0.3, beta=None) == {"alpha": 0.3}
    z, v = draw_logits(0)
    for kind in PARAMETERS:
        given = {"cost": COST[:9, :9]} if kind == "wasserstein" else {}
        stated = losses.divergence(z, v, kind=kind, **parameters_of(kind, **given))
        assert torch.equal(losses.divergence(z, v, kind=kind, **given), stated)


def test_a_temperature_divides_both_and_multiplies_nothing():
    z, v = draw_logits(0)
    for name in CASES:
        tempered = losses.divergence(
            z, v, **CASES[name], temperature=4.0, **({"cost": COST[:9, :9]} if name == "wasserstein" else {})
        )
        assert torch.equal(tempered, call(name, z / 4, v / 4))


# Alpha and beta


def test_it_is_the_kl_divergences_and_the_square_of_logarithms_at_the_ends():
    z, v = draw_logits(1)
    for (a, b), kind in (((1, 0), "forward"), ((0, 1), "reverse")):
        ours, known = (
            losses.divergence(z, v, **how) for how in ({"kind": "alpha_beta", "alpha": a, "beta": b}, {"kind": kind})
        )
        close(ours, known)
        close(gradient(ours, z), gradient(known, z))
    log_q, log_p = z.log_softmax(-1), v.log_softmax(-1)
    close(losses.divergence(z, v, kind="alpha_beta", alpha=0, beta=0), 0.5 * (log_q - log_p).square().sum(-1))


@pytest.mark.parametrize("ends", [(0.0, 0.5), (0.5, 0.0), (0.5, -0.5), (-0.3, 0.3), (0.0, 0.0), (0.0, -0.4)])
def test_exponents_of_0_and_sums_of_0_are_limits(ends):
    """The published code has half the value at (0, 0.5)."""
    z, v = draw_logits(1)
    at = losses.divergence(z, v, kind="alpha_beta", alpha=ends[0], beta=ends[1])
    slope = gradient(at, z)
    for step in (1e-3, 1e-8, 1e-14, 1e-30):
        near = losses.divergence(z, v, kind="alpha_beta", alpha=ends[0] + step, beta=ends[1] + step)
        close(near, at, max(50 * step, 1e-12))
        close(gradient(near, z), slope, max(50 * step, 1e-12))


@pytest.mark.parametrize("exponents", [(0.8, 0.3), (1.2, -0.2), (0.0, 0.5), (0.5, -0.5), (-1.0, 0.3), (0.0, 0.0)])
def test_near_equality_float32_keeps_sign_and_digits(exponents):
    """Three sums that cancel would leave noise of 1e-7: here the values are below that."""
    z, _ = draw_logits(5, (64, 9), scale=2.0, dtype=torch.float32)
    numbers = dict(zip(("alpha", "beta"), exponents, strict=True))
    for scale in (1.0001, 1.01, 1.3):
        v = scale * z.detach()
        ours = losses.divergence(z, v, kind="alpha_beta", **numbers)
        log_q, log_p = (x.detach().double().log_softmax(-1) for x in (z, v))
        # What float32 rounds is the logarithms: the terms are exact for those.
        q, p = (x.detach().log_softmax(-1).double() for x in (z, v))
        truth = losses.divergences._alpha_beta(q, p, **numbers)
        assert (ours >= 0).all()
        torch.testing.assert_close(ours.double(), truth, rtol=2e-5, atol=0)
        if scale > 1.1:
            torch.testing.assert_close(
                truth, losses.divergences._alpha_beta(log_q, log_p, **numbers), rtol=1e-4, atol=0
            )


def test_a_series_and_a_quotient_meet():
    """On both sides of the gap at which the one takes over from the other, and against quadrature."""
    u = torch.zeros(1, 1, dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    t, weights = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    for (a, b), gap in itertools.product(
        [(0.8, 0.3), (1.2, -0.2), (0.5, -0.5), (0.3, 0.9)], [0.01, 0.2, 0.24, 0.26, 1.0]
    ):
        for d in (gap / max(abs(a), abs(b), abs(a + b)), -gap / max(abs(a), abs(b), abs(a + b))):
            ours = losses.divergences._alpha_beta(u + d, u, alpha=a, beta=b)
            # The integral of the slope, (exp((a + b) x) - exp(b x)) / a, over x from 0 to d.
            slope = (b * d * t).exp() * torch.expm1(a * d * t) / a
            close(ours, (d * (weights * slope).sum())[None], 1e-14)


def test_a_student_that_underflows_has_a_gradient():
    """``pow(softmax, b)`` has NaN there in float32."""
    z = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    v = torch.tensor([[0.0, 200.0, 1.0]])
    for numbers in ({"alpha": 0.8, "beta": 0.3}, {"alpha": 0.5, "beta": 0.5}):
        values = losses.divergence(z, v, kind="alpha_beta", **numbers)
        exact = losses.divergence(z.double(), v.double(), kind="alpha_beta", **numbers)
        torch.testing.assert_close(values.double(), exact)
        torch.testing.assert_close(gradient(values, z), gradient(exact, z))


@pytest.mark.parametrize("exponents", [(0.8, 0.3), (1.2, -0.2), (0.0, 0.5), (0.5, 0.0), (0.5, -0.5)])
def test_second_derivatives(exponents):
    z, v = draw_logits(6, (3, 4), scale=1.5)
    z.data[0] = v[0]
    numbers = dict(zip(("alpha", "beta"), exponents, strict=True))
    assert torch.autograd.gradgradcheck(lambda z: losses.divergence(z, v, kind="alpha_beta", **numbers), z)


# Weights by head and by class


@quick
@given(seed=seeds)
def test_weights_by_class_leave_the_sum_of_both_kl_divergences_but_not_its_gradient(seed):
    z, v = draw_logits(seed)
    values = losses.divergence(z, v, kind="class_wise")
    p, q = (torch.softmax(x, -1).detach().numpy() for x in (v, z))
    close(values, scipy.stats.entropy(p, q, axis=-1) + scipy.stats.entropy(q, p, axis=-1), 1e-10)
    both = sum(losses.divergence(z, v, kind=kind) for kind in ("forward", "reverse"))
    assert (gradient(values, z) - gradient(both, z)).abs().max() > 1e-3


def test_a_head_of_everything_is_forward_and_of_what_agrees_reverse():
    z, v = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[3.0, 1.0, -1.0]])
    forward, reverse = (losses.divergence(z, v, kind=kind) for kind in ("forward", "reverse"))
    whole = losses.divergence(z, v, kind="adaptive", mu=0.9999999)
    assert torch.equal(whole, forward) or forward < whole < reverse
    v = torch.tensor([[3.0, 1.0, -50.0]]).log_softmax(-1)
    z = v.clone()
    z[0, 1:] = z[0, 1:].exp().sum().div(2).log()  # the head agrees, the rest does not
    torch.testing.assert_close(
        losses.divergence(z, v, kind="adaptive"), losses.divergence(z, v, kind="reverse"), rtol=1e-5, atol=1e-6
    )


# Transport


def classifier(seed, classes=20, width=8):
    weight = torch.randn(classes, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return losses.class_cost(weight)


def test_a_cost_between_classes_is_that_of_their_angles():
    weight = np.random.default_rng(0).standard_normal((5, 3))
    directions = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    expected = 1 - np.exp(-2 * (1 - directions @ directions.T))
    ours = losses.class_cost(torch.tensor(weight), sharpen=2.0)
    close(ours, expected)
    assert (ours.diagonal() >= 0).all()
    assert losses.class_cost(torch.tensor(weight).half()).dtype == torch.float32


@pytest.mark.parametrize("seed", range(3))
def test_many_iterations_leave_the_least_cost_and_the_entropy_s_price(seed):
    z, v = draw_logits(seed, (4, 6), scale=2.0)
    cost = classifier(seed, 6)
    q, p = torch.softmax(z.detach(), -1), torch.softmax(v, -1)
    least = torch.tensor([least_cost(*pair, cost.numpy()) for pair in zip(q.numpy(), p.numpy(), strict=True)]).double()
    for weight, iterations in ((0.05, 2000), (0.01, 4000)):
        values = losses.divergence(
            z, v, kind="wasserstein", cost=cost, sinkhorn_lambda=weight, sinkhorn_iter=iterations
        )
        assert (values.detach() >= least - 1e-6).all()
        assert (values.detach() <= least + weight * math.log(6)).all()
    torch.testing.assert_close(values.detach(), least, rtol=0.03, atol=1e-3)


@pytest.mark.parametrize(
    ("temperature", "ten", "hundred", "misplaced"),
    [(8.0, (-0.71, -0.13), (0.04, 0.1), (0.09, 0.18)), (2.0, (-0.11, 0.03), (0.01, 0.05), (0.003, 0.1))],
)
def test_how_far_the_published_iterations_are_from_the_least_cost(temperature, ten, hundred, misplaced):
    """Relative to the exact cost; the docstring has these bounds. A thousand iterations change little more."""
    found = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        z, v = (scale * torch.randn(20, dtype=torch.float64, generator=generator) for scale in (1.0, 3.0))
        q, p, cost = (z / temperature).softmax(-1), (v / temperature).softmax(-1), classifier(seed)
        least, how = least_cost(q.numpy(), p.numpy(), cost.numpy()), {"kind": "wasserstein", "temperature": temperature}
        after = [losses.divergence(z, v, cost=cost, sinkhorn_iter=n, **how).item() / least - 1 for n in (10, 100, 1000)]
        assert after[2] == pytest.approx(after[1], abs=0.015)
        found.append([*after[:2], (plan(q, p, cost, 0.05, 10).sum(-2) - p).abs().sum().item()])
    for values, (low, high) in zip(zip(*found, strict=True), (ten, hundred, misplaced), strict=True):
        assert low <= min(values) < max(values) <= high
        assert max(values) - min(values) > 0.5 * (high - low)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plans_whose_factors_would_overflow(dtype):
    """Sure networks that disagree, at costs of 60 times the entropy's weight."""
    z, v = (
        torch.tensor([[300.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype),
        torch.tensor([[0.0, 300.0, 0.0]] * 2, dtype=dtype),
    )
    z.requires_grad_()
    cost = torch.ones(3, 3, dtype=dtype) - torch.eye(3, dtype=dtype)
    values = losses.divergence(z, v, kind="wasserstein", cost=cost, sinkhorn_lambda=1 / 60)
    torch.testing.assert_close(values.detach(), torch.tensor([1.0, 2 / 3], dtype=dtype))
    assert torch.isfinite(gradient(values, z)).all()


def test_a_guard_in_the_denominators_loses_mass_where_networks_are_sure_of_far_classes():
    z, v = torch.tensor([[300.0, 0.0]]).log_softmax(-1), torch.tensor([[0.0, 300.0]]).log_softmax(-1)
    cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(losses.transport(z, v, cost=cost), torch.ones(1))
    assert losses.transport(z, v, cost=cost, guard=1e-8) < 0.95
