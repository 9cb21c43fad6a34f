"""Cross-entropy and a loss of logits in two sweeps: values and gradients, and nothing of the logits' size is kept."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._helpers.refusals import refused

from tutelage import kernels, losses
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.kernels import compiled_sweeps, cpu_sweeps, logits
from tutelage.kernels.divergence import KINDS, divergence_of

INF = math.inf
LOSSES = {
    "kd": partial(losses.kd, temperature=4.0),
    "kd sharpened": partial(losses.kd, temperature=0.5),
    "weighted_kd": partial(losses.weighted_kd, temperature=4.0),
    "ttm": partial(losses.ttm, gamma=0.25),
    "wttm": partial(losses.wttm, gamma=0.25),
    **{kind: partial(losses.divergence, kind=kind) for kind in KINDS},
    "mostly teacher": partial(losses.divergence, kind="jensen_shannon", beta=0.9),
    "mostly student": partial(losses.divergence, kind="skew", alpha=0.01),
}
WTTM = divergence_of(LOSSES["wttm"])
FINITE = {name: loss for name, loss in LOSSES.items() if name != "reverse"}
"""Those that are finite where the teacher rules a class out."""
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.fixture(autouse=True)
def _however_few(monkeypatch):
    for name in ("BLOCKS_FROM", "BLOCKS_FROM_SCALED", "BLOCKS_FROM_OTHERS"):
        monkeypatch.setattr(logits, name, 0)


@pytest.fixture(params=[1, 7, 1 << 16], ids=["a row a block", "a few rows a block", "one block"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(cpu_sweeps, "BLOCK", request.param * 9 if request.param < 100 else request.param)


@pytest.fixture
def _traced(monkeypatch):
    """Compile what is to be compiled by a backend that is fast, as it generates no code."""
    real = torch.compile
    compiled_sweeps._form.cache_clear()
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", lambda function, **how: real(function, backend="aot_eager", **how))
    yield
    compiled_sweeps._form.cache_clear()


def draw(shape=(17, 9), scale=3.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    weights = torch.rand(2, *shape[:-1], generator=generator, dtype=torch.float64)
    return z.to(dtype), v.to(dtype), labels, weights


def plain(z, v, labels, *, gamma):
    return losses.cross_entropy(z, labels), losses.wttm(z, v, gamma=gamma)


def values_and_gradient(form, z, v, labels, weights, gamma):
    z = z.detach().requires_grad_()
    values = form(z, v, labels, gamma=gamma)
    total = sum((w.to(value.dtype) * value).sum() for w, value in zip(weights, values, strict=True) if w is not None)
    return *(value.detach() for value in values), torch.autograd.grad(total, z)[0]


def agree(z, v, labels, weights=None, gamma=0.25, tolerance=1e-11):
    weights = torch.ones(2, *labels.shape, dtype=torch.float64) if weights is None else weights
    ours = values_and_gradient(kernels.cross_entropy_and_wttm, z, v, labels, weights, gamma)
    theirs = values_and_gradient(plain, z, v, labels, weights, gamma)
    for our_value, their_value in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_value, their_value, rtol=tolerance, atol=tolerance, equal_nan=True)
    return ours


def of_loss(loss, *, compiled=False, at_once=True):
    """The two functions of `values_and_gradient` for any loss: at once, and one by one."""
    if at_once:
        return lambda z, v, labels, *, gamma: kernels.cross_entropy_and(loss, z, v, labels, compiled=compiled)
    return lambda z, v, labels, *, gamma: (losses.cross_entropy(z, labels), loss(z, v))


def agree_in(loss, z, v, labels, weights=None, *, tolerance=1e-11, compiled=False):
    weights = torch.ones(2, *labels.shape, dtype=torch.float64) if weights is None else weights
    ours = values_and_gradient(of_loss(loss, compiled=compiled), z, v, labels, weights, None)
    theirs = values_and_gradient(of_loss(loss, at_once=False), z, v, labels, weights, None)
    for our_value, their_value in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_value, their_value, rtol=tolerance, atol=tolerance, equal_nan=True)
    return ours


@pytest.mark.usefixtures("_blocks")
@every_loss
@pytest.mark.parametrize("offset", [0.0, 200.0])
def test_every_loss_of_the_family_has_its_values_and_gradients(loss, offset):
    z, v, labels, weights = draw()
    labels[3] = -100
    z[3:8] += offset  # Some rows need a shift and others do not.
    v[6:11] -= offset
    agree_in(loss, z, v, labels, weights)
    agree_in(loss, z, v, labels, weights - 0.5)  # Gradients of either sign.
    for used in range(2):
        only = [w if i == used else None for i, w in enumerate(weights)]
        forms = of_loss(loss), of_loss(loss, at_once=False)
        ours, theirs = (values_and_gradient(form, z, v, labels, only, None)[2] for form in forms)
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("loss", FINITE.values(), ids=FINITE)
def test_a_class_that_both_rule_out_counts_nothing_in_any_loss(loss):
    z, v, labels, _ = draw()
    labels %= 6
    v[:, 7] = z[:, 7] = -INF
    v[5, 8] = -INF
    assert agree_in(loss, z, v, labels)[2].isfinite().all()


@every_loss
def test_the_logits_may_be_replaced_by_their_gradient(loss):
    z, v, labels, (of_ce, of_value) = draw()
    divergence = divergence_of(loss)
    statistics = cpu_sweeps.forward(divergence, z, v, labels)[2]
    expected = cpu_sweeps.backward(divergence, z, v, labels, statistics, of_ce, of_value)
    assert cpu_sweeps.backward(divergence, z, v, labels, statistics, of_ce, of_value, out=z) is z
    torch.testing.assert_close(z, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.usefixtures("_traced")
@every_loss
def test_compiled_sweeps_have_the_values_and_gradients_with_one_form_for_all_numbers_of_rows(loss, monkeypatch):
    z, v, labels, weights = draw()
    labels[3] = -100
    z[4] += 900.0
    agree_in(loss, z, v, labels, weights - 0.5, compiled=True)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled again"))
    with torch.compiler.set_stance("fail_on_recompile"):
        agree_in(loss, z[:5], v[:5], labels[:5], weights[:, :5], compiled=True)
        agree_in(loss, z[:1], v[:1], labels[:1], weights[:, :1], compiled=True)  # A single row is not.
    z[:, 7] = v[:, 7] = -INF
    agree_in(loss, z, v, labels % 6, weights, compiled=True)


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=str
)
def test_compiled_sweeps_of_other_dtypes_layouts_and_shapes(dtype, tolerance):
    z, v, labels, weights = draw((17, 9), dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ce, _, gradient = agree_in(
            LOSSES["wttm"],
            z.T.contiguous().T,
            v[:1].expand_as(v),
            labels,
            weights.float(),
            tolerance=tolerance,
            compiled=True,
        )
    assert (ce.dtype, gradient.dtype) == (torch.float32, dtype)
    agree_in(LOSSES["wttm"], z.double(), v, labels, weights, compiled=True, tolerance=2e-2)
    for shape in [(9,), (3, 4, 9), (0, 9), (5, 1)]:
        agree_in(LOSSES["wttm"], *draw(shape), compiled=True)


@pytest.mark.usefixtures("_traced")
def test_compiled_sweeps_keep_nothing_large_and_refuse_a_second_derivative():
    z, v, labels, _ = draw((64, 100), dtype=torch.float32)
    z.requires_grad_()
    kept, (ce, _) = sizes_kept(partial(kernels.cross_entropy_and_wttm, compiled=True), z, v, labels)
    assert kept <= 7 * 64
    (gradient,) = torch.autograd.grad(ce.sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match=r"type tutelage\.losses\.cross_entropy"):
        gradient.sum().backward()


@pytest.mark.usefixtures("_traced")
def test_where_sweeps_cannot_be_compiled_they_are_computed_in_blocks_and_that_is_said_once(monkeypatch):
    def fails(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with pytest.warns(
        UserWarning, match=r"expected to compile their sweeps, got RuntimeError.*loss_form=fused"
    ) as said:
        agree_in(LOSSES["wttm"], *draw(), compiled=True)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agree_in(LOSSES["wttm"], *draw(), compiled=True)


@pytest.mark.parametrize(
    "name", ["wttm", *(pytest.param(name, marks=pytest.mark.slow) for name in LOSSES if name != "wttm")]
)
def test_sweeps_are_compiled_by_inductor(name):
    compiled_sweeps._form.cache_clear()
    torch.compiler.reset()
    z, v, labels, weights = draw((37, 100), dtype=torch.float32)
    labels[3] = -100
    z[4] += 900.0
    agree_in(LOSSES[name], z, v, labels, weights, compiled=True, tolerance=1e-5)
    z[:, 7] = v[:, 7] = -INF
    agree_in(LOSSES[name], z[:20], v[:20], labels[:20] % 6, weights[:, :20], compiled=True, tolerance=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10_000), st.floats(0.05, 2.0), st.sampled_from([0.1, 3.0, 30.0]))
def test_values_and_gradients_are_those_of_the_two_losses(seed, gamma, scale):
    z, v, labels, weights = draw(seed=seed, scale=scale)
    agree(z, v, labels, weights, gamma, 1e-10)
    agree(z, v, labels, weights - 0.5, gamma, 1e-10)  # Gradients of either sign.


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("offset", [0.0, 200.0, -200.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_blocks_and_shifts_change_nothing(offset, scale):
    z, v, labels, weights = draw(scale=scale)
    z[3:8] += offset  # Some rows need a shift and others do not.
    v[6:11] -= offset
    agree(z, v, labels, weights)


@pytest.mark.parametrize(
    ("dtype", "computed", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 2e-5),
        (torch.bfloat16, torch.float32, 2e-2),
        (torch.float16, torch.float32, 2e-3),
    ],
)
@pytest.mark.usefixtures("_blocks")
def test_it_computes_in_at_least_float32_and_the_gradient_has_the_students_dtype(dtype, computed, tolerance):
    z, v, labels, weights = draw((17, 9), dtype=dtype)
    ce, wttm, gradient = agree(z, v, labels, weights.float() if dtype != torch.float64 else weights, 0.25, tolerance)
    assert ce.dtype == wttm.dtype == computed
    assert gradient.dtype == dtype
    # Values are exact in the inputs' wide copies: nothing is rounded before they are widened.
    exact = plain(z.double(), v.double(), labels, gamma=0.25)
    torch.testing.assert_close(ce.double(), exact[0], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(wttm.double(), exact[1], rtol=1e-5, atol=1e-5)


def test_student_and_teacher_may_differ_in_dtype():
    z, v, labels, weights = draw(dtype=torch.float32)
    ours = values_and_gradient(kernels.cross_entropy_and_wttm, z, v.double(), labels, weights, 0.25)
    theirs = values_and_gradient(plain, z, v, labels, weights, 0.25)
    assert ours[2].dtype == torch.float32
    for our_value, their_value in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_value.float(), their_value, rtol=1e-5, atol=1e-5)


def test_it_is_near_zero_where_student_and_transformed_teacher_are_equal():
    v = draw((8, 1000), dtype=torch.float32)[1]
    wttm = kernels.cross_entropy_and_wttm(0.1 * v, v, torch.zeros(8, dtype=torch.int64), gamma=0.1)[1]
    power_sum = losses.wttm(torch.zeros_like(v), v, gamma=0.1) / losses.ttm(torch.zeros_like(v), v, gamma=0.1)
    assert (wttm / power_sum).abs().max() < 2e-6


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gaps_of_a_thousand(dtype):
    z, v, labels, _ = draw(dtype=dtype)
    z[::2] *= 0
    z[::2, 0] = 1000
    v[::3] *= 0
    v[::3, 1] = -1000
    v[1::3, 2] = 1000
    _, _, gradient = agree(z, v, labels, gamma=0.25, tolerance=1e-11 if dtype == torch.float64 else 3e-5)
    assert gradient.isfinite().all()


@pytest.mark.usefixtures("_blocks")
def test_classes_without_probability_count_nothing():
    z, v, labels, _ = draw()
    labels %= 6
    v[:, 7] = -INF
    z[::2, 7] = -INF
    z[5, 8] = v[5, 8] = -INF
    agree(z, v, labels)
    assert agree(z, v, labels)[2].isfinite().all()


def test_a_class_that_the_student_rules_out_and_the_teacher_does_not_is_infinite():
    z, v, labels, _ = draw()
    z[4, 8] = -INF
    labels[4] = 0
    assert agree(z, v, labels)[1][4] == INF


@pytest.mark.parametrize("network", ["student", "teacher"])
@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.usefixtures("_blocks")
def test_nan_stays_nan_in_its_row_alone(network, value):
    z, v, labels, _ = draw()
    (z if network == "student" else v)[4, 2] = value
    values = agree(z, v, labels)
    assert values[1][4].isnan()
    assert values[2][4].isnan().any()
    assert values[2][torch.arange(17) != 4].isfinite().all()


@pytest.mark.usefixtures("_blocks")
def test_unlabelled_rows_have_no_cross_entropy_and_keep_the_matching():
    z, v, labels, _ = draw()
    labels[::2] = -100
    ce, wttm, _ = agree(z, v, labels)
    assert (ce[::2] == 0).all()
    assert (wttm > 0).all()
    only = values_and_gradient(kernels.cross_entropy_and_wttm, z, v, labels, (torch.ones(17), None), 0.25)[2]
    assert (only[::2] == 0).all()


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_the_two_may_be_used_alone(used):
    z, v, labels, weights = draw()
    only = [w if i == used else None for i, w in enumerate(weights)]
    ours, theirs = (
        values_and_gradient(form, z, v, labels, only, 0.25)[2] for form in (kernels.cross_entropy_and_wttm, plain)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_soft_labels():
    z, v, _, _ = draw()
    z.requires_grad_()
    ce, wttm = kernels.cross_entropy_and_wttm(z, v, torch.softmax(v, -1), gamma=0.25)
    torch.testing.assert_close(ce, losses.cross_entropy(z, torch.softmax(v, -1)))
    torch.testing.assert_close(wttm, losses.wttm(z, v, gamma=0.25))
    assert torch.autograd.grad(ce.sum() + wttm.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(9,), (3, 4, 9), (0, 9), (2, 0, 9), (5, 1)])
def test_shapes(shape):
    z, v, labels, weights = draw(shape)
    ce, wttm, gradient = agree(z, v, labels, weights)
    assert ce.shape == wttm.shape == shape[:-1]
    assert gradient.shape == shape


@pytest.mark.usefixtures("_blocks")
def test_logits_need_not_be_contiguous():
    z, v, labels, weights = draw()
    agree(z.T.contiguous().T, torch.cat([v, v], -1)[:, :9], labels, weights)
    agree(z, v[:1].expand_as(v), labels, weights)


def test_the_teacher_gets_no_gradient():
    z, v, labels, _ = draw()
    z.requires_grad_(), v.requires_grad_()
    sum(kernels.cross_entropy_and_wttm(z, v, labels, gamma=0.25)).sum().backward()
    assert v.grad is None
    ce, wttm = kernels.cross_entropy_and_wttm(z.detach(), v, labels, gamma=0.25)
    assert not ce.requires_grad
    assert not wttm.requires_grad


def test_the_gradient_is_the_derivative():
    z, v, labels, _ = draw((4, 5))
    labels[1] = -100
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: kernels.cross_entropy_and_wttm(z, v, labels, gamma=0.4), z)


def test_a_second_derivative_is_refused():
    z, v, labels, _ = draw()
    z.requires_grad_()
    for power in (1, 2):  # The gradient that comes in has no graph, and has one.
        ce, _ = kernels.cross_entropy_and_wttm(z, v, labels, gamma=0.25)
        (gradient,) = torch.autograd.grad(ce.pow(power).sum(), z, create_graph=True)
        # A penalty on the gradient must not be lost where the rest of the loss has a derivative.
        with pytest.raises(RuntimeError, match=r"type tutelage\.losses\.cross_entropy"):
            (z.sum() + gradient.sum()).backward()


def test_autocast_changes_nothing():
    z, v, labels, weights = draw(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = values_and_gradient(kernels.cross_entropy_and_wttm, z, v, labels, weights, 0.25)
    outside = values_and_gradient(kernels.cross_entropy_and_wttm, z, v, labels, weights, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_caller_may_be_compiled_in_one_graph(dtype):
    torch.compiler.reset()
    z, v, labels, weights = draw(dtype=dtype)

    def call(z, v, labels, *, gamma):
        ce, wttm = kernels.cross_entropy_and_wttm(2 * z, v, labels, gamma=gamma)
        return ce, 3 * wttm

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    ours = values_and_gradient(compiled, z, v, labels, weights, 0.25)
    theirs = values_and_gradient(call, z, v, labels, weights, 0.25)
    for our_value, their_value in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_value, their_value)
    assert ours[2].dtype == dtype


@pytest.mark.parametrize("used", [0, 1])
def test_a_compiled_caller_may_use_one_of_the_two(used):
    torch.compiler.reset()
    z, v, labels, _ = draw(dtype=torch.float32)
    z.requires_grad_()

    def call(z):
        return kernels.cross_entropy_and_wttm(z, v, labels, gamma=0.25)[used].sum()

    (ours,) = torch.autograd.grad(torch.compile(call, fullgraph=True, backend="aot_eager")(z), z)
    torch.testing.assert_close(ours, torch.autograd.grad(call(z), z)[0])


@pytest.mark.parametrize("name", ["swept_on_cpu", "swept_on_cpu_backward"])
def test_what_a_compiler_is_told_of_the_operations_is_so(name):
    z, v, labels, _ = draw(dtype=torch.bfloat16)
    statistics = cpu_sweeps.forward(WTTM, z, v, labels)[2]
    row = torch.ones(17)
    inputs = (z, v, labels, *WTTM) if name.endswith("cpu") else (z, v, labels, statistics, row, row, *WTTM)
    torch.library.opcheck(getattr(torch.ops.tutelage, name).default, inputs)


def sizes_kept(form, z, v, labels):
    """The elements of every tensor kept for the backward pass that is not one of the inputs."""
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in {z.data_ptr(), v.data_ptr(), labels.data_ptr()}:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values = form(z, v, labels, gamma=0.25)
    return sum(kept.values()), values


def test_nothing_of_the_size_of_the_logits_is_kept():
    z, v, labels, _ = draw((64, 1000), dtype=torch.float32)
    z.requires_grad_()
    kept, _values = sizes_kept(kernels.cross_entropy_and_wttm, z, v, labels)
    assert kept <= 7 * 64
    kept, _values = sizes_kept(plain, z, v, labels)
    assert kept >= z.numel()


def test_nothing_of_the_size_of_the_logits_is_made_but_the_gradient():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.storages = {}

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    self.storages[storage.data_ptr()] = storage.nbytes()
            return result

    z, v, labels, _ = draw((2000, 1000), dtype=torch.float32)
    mode = Largest()
    with mode:
        statistics = cpu_sweeps.forward(WTTM, z, v, labels)[2]
    whole, inputs = z.untyped_storage().nbytes(), {z.data_ptr(), v.data_ptr(), labels.data_ptr()}
    threads = torch.get_num_threads()
    assert max(size for at, size in mode.storages.items() if at not in inputs) <= 4 * 4 * cpu_sweeps.BLOCK * threads
    mode = Largest()
    ones = torch.ones(2000)
    with mode:
        gradient = cpu_sweeps.backward(WTTM, z, v, labels, statistics, ones, ones)
    new_storages = {at: size for at, size in mode.storages.items() if at not in inputs and size >= whole / 2}
    assert new_storages == {gradient.data_ptr(): whole}


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (
            {"student_logits": torch.zeros(3, 4, dtype=torch.int64)},
            refused(InvalidTypeError, "student_logits", got="torch.int64"),
        ),
        ({"student_logits": None}, refused(InvalidTypeError, "student_logits", got="NoneType")),
        ({"student_logits": torch.tensor(1.0)}, refused(InvalidValueError, "student_logits", got="()")),
        ({"student_logits": torch.zeros(3, 0)}, refused(InvalidValueError, "student_logits", got="(3, 0)")),
        ({"teacher_logits": torch.zeros(3, 5)}, refused(InvalidValueError, "teacher_logits")),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, refused(InvalidTypeError, "labels")),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, refused(InvalidValueError, "labels", got="(2,)")),
        ({"labels": torch.tensor([0, 4, 1])}, refused(InvalidValueError, "labels", got=4)),
        ({"gamma": 0.0}, refused(InvalidValueError, "gamma")),
        ({"gamma": "a"}, refused(InvalidTypeError, "gamma")),
    ],
)
def test_errors(change, refusal):
    arguments = {
        "student_logits": torch.zeros(3, 4),
        "teacher_logits": torch.zeros(3, 4),
        "labels": torch.zeros(3, dtype=torch.int64),
        "gamma": 0.1,
    }
    with refusal:
        kernels.cross_entropy_and_wttm(**(arguments | change))


def test_logits_that_change_before_the_backward_pass_are_an_error():
    z, v, labels, _ = draw()
    z.requires_grad_()
    moved = 1 * z
    ce, _ = kernels.cross_entropy_and_wttm(moved, v, labels, gamma=0.25)
    with torch.no_grad():
        moved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        ce.sum().backward()


def test_few_logits_are_computed_by_the_plain_functions(monkeypatch):
    monkeypatch.undo()
    z, v, labels, weights = draw((10, 100), dtype=torch.float32)
    ours, theirs = (
        values_and_gradient(form, z, v, labels, weights, 0.25) for form in (kernels.cross_entropy_and_wttm, plain)
    )
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    many = draw((256, 1000), dtype=torch.float32)
    assert many[0].numel() >= logits.BLOCKS_FROM
    ours, theirs = (values_and_gradient(form, *many, 0.25) for form in (kernels.cross_entropy_and_wttm, plain))
    assert not torch.equal(ours[2], theirs[2])  # Another order of sums.
