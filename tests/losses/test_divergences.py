"""Properties of the divergences by name."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._helpers.cuda import no_host_wait
from tests._helpers.refusals import refused

from tutelage import losses, targets
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.losses.divergences import KINDS, PARAMETERS, parameter_of

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
}
every = pytest.mark.parametrize("name", CASES)


def call(name, z, v):
    return losses.divergence(z, v, **CASES[name])


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
    sign = (q - p).sign()
    return 0.5 * (p - q).abs().sum(-1), 0.5 * q * (sign - (q * sign).sum(-1, keepdim=True))


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


@every
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


@every
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
    kind, number = CASES[name]["kind"], parameter_of(**{"alpha": None, "beta": None} | CASES[name])
    most = {
        "jensen_shannon": lambda b: -b * math.log(b) - (1 - b) * math.log(1 - b),
        "skew": lambda a: -math.log(a),
        "total_variation": lambda _: 1.0,
    }.get(kind, lambda _: INF)(number)
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
    finite = {"forward": forward, "reverse": reverse}.get(CASES[name]["kind"], True)
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
        numbers = {kind: {name: share} for kind, (name, _) in PARAMETERS.items()}
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
                refused(InvalidValueError, name, got=value, suggests=f"{name}={default}"),
            )
            for kind, (name, default) in PARAMETERS.items()
            for value in (0, 1, 0.0, 1.0, -0.1, 1.5, NAN, INF)
        ),
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


def test_the_number_of_a_kind():
    assert [parameter_of(kind, None, None) for kind in KINDS] == [0.0, 0.0, 0.5, 0.1, 0.0]
    assert parameter_of("skew", 0.3, None) == 0.3
    assert parameter_of("jensen_shannon", None, 0.3) == 0.3
    z, v = draw_logits(0)
    for kind, (name, default) in PARAMETERS.items():
        stated = losses.divergence(z, v, kind=kind, **{name: default})
        assert torch.equal(losses.divergence(z, v, kind=kind), stated)
