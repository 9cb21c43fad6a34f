"""Kernels in Triton: the plain functions' values and gradients, in Triton's interpreter and on a device.

Memory that a kernel is to fill is NaN beforehand: what it leaves out is seen.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from tests._helpers.stand_in import META, waits_of
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tutelage import kernels, losses, targets
from tutelage.kernels import logits
from tutelage.types import UNLABELLED, Sparse

pytest.importorskip("triton")
from tutelage.kernels import triton_sweeps

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Without it products warn where all is deterministic.
pytestmark = [pytest.mark.triton, *([pytest.mark.cuda] if DEVICE == "cuda" else [])]

INF = math.inf
LOSSES = {
    "kd": partial(losses.kd, temperature=4.0),
    "kd, sharp": partial(losses.kd, temperature=0.5),
    "weighted_kd": partial(losses.weighted_kd, temperature=4.0),
    "ttm": partial(losses.ttm, gamma=0.25),
    "wttm": partial(losses.wttm, gamma=0.25),
    "wttm, sharp": partial(losses.wttm, gamma=2.0),
    "forward": partial(losses.divergence, kind="forward"),
    "reverse": partial(losses.divergence, kind="reverse"),
    "jensen_shannon": partial(losses.divergence, kind="jensen_shannon"),
    "jensen_shannon, 0.9": partial(losses.divergence, kind="jensen_shannon", beta=0.9),
    "skew": partial(losses.divergence, kind="skew"),
    "total_variation": partial(losses.divergence, kind="total_variation"),
}
ONE_OF_EACH = ("kd", "wttm", "reverse", "jensen_shannon", "skew", "total_variation")
# The interpreter cuts float32 down to bfloat16, where a device rounds.
GRADIENT = {torch.float32: 3e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
of_each = pytest.mark.parametrize("loss", [LOSSES[name] for name in ONE_OF_EACH], ids=ONE_OF_EACH)
of_all = pytest.mark.parametrize(
    "loss",
    [pytest.param(loss, marks=[] if name in ONE_OF_EACH else pytest.mark.slow) for name, loss in LOSSES.items()],
    ids=LOSSES,
)


@pytest.fixture(autouse=True)
def device(monkeypatch):
    monkeypatch.setattr(logits, "TRITON_DEVICES", frozenset({DEVICE}))
    torch.use_deterministic_algorithms(True, warn_only=True)  # New memory is NaN.
    with warnings.catch_warnings():  # The interpreter computes with NumPy, which warns of inf - inf.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"triton\.")
        yield torch.device(DEVICE)
    torch.use_deterministic_algorithms(False)


def draw(shape=(5, 9), dtype=torch.float32, *, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z, v = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    if labels.numel() > 1:
        labels.view(-1)[1] = UNLABELLED
    weights = torch.rand(2, *shape[:-1], generator=generator, dtype=torch.float64) - 0.3
    return z.to(dtype), v.to(dtype), labels, weights


def plain(loss, z, v, labels):
    dense = targets.dense(v) if isinstance(v, Sparse) else v
    return losses.cross_entropy(z, labels), loss(z, dense)


def outcome(form, loss, z, v, labels, weights):
    """Both values and the gradient."""
    z = z.detach().requires_grad_()
    values = form(loss, z, v, labels)
    total = sum((w.to(value) * value).sum() for w, value in zip(weights, values, strict=True) if w is not None)
    return *(value.detach() for value in values), torch.autograd.grad(total, z)[0]


def wide(v):
    return Sparse(v.values.double(), v.index, v.level.double(), v.classes) if isinstance(v, Sparse) else v.double()


def on(device, *tensors):
    return [
        Sparse(*(x.to(device) for x in t[:3]), t.classes) if isinstance(t, Sparse) else t.to(device) for t in tensors
    ]


def agree(device, loss, z, v, labels, weights=None, *, rounding=1.0):
    """Compare with float64 on the CPU: values relatively, gradients by the largest; return values and gradient.

    The logarithms that a divergence is the difference of are known to 1e-7, and it is multiplied by ``T**2`` or the
    power sum: ``rounding`` says how much larger they are than usual.
    """
    weights = torch.ones(2, *labels.shape) if weights is None else weights
    ours = [x.cpu() for x in outcome(kernels.cross_entropy_and, loss, *on(device, z, v, labels), weights)]
    exact = outcome(plain, loss, z.double(), wide(v), labels, weights)
    assert ours[2].dtype == z.dtype
    for i, (got, expected) in enumerate(zip(ours, exact, strict=True)):
        gradient = i == 2
        within = GRADIENT[z.dtype] * rounding if gradient else 2e-6 * rounding
        largest = expected.abs().amax().item() if gradient and expected.numel() else 1.0
        rtol = 0 if gradient else within
        torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=within * max(largest, 1e-3))
        assert got.dtype == (z.dtype if gradient else torch.float32)
    return ours


@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@of_all
def test_values_and_gradients_are_the_plain_functions(device, loss, dtype):
    agree(device, loss, *draw((3, 5), dtype))
    agree(device, loss, *draw((2, 2100), dtype, seed=1))  # More than a block, and no whole number of them.


@of_each
@pytest.mark.parametrize("scale", [0.01, 30.0, 300.0])
def test_scales(device, loss, scale):
    agree(device, loss, *draw(scale=scale), rounding=10 if scale > 1 else 1)


@of_each
def test_a_small_block_follows_another_whatever_their_maxima(device, loss, monkeypatch):
    monkeypatch.setattr(triton_sweeps, "BLOCK", 4)
    z, v, labels, weights = draw((6, 19))
    z[0], v[1] = z[0].sort().values, v[1].sort().values  # Every block has a larger maximum,
    z[2], v[3] = z[2].sort(descending=True).values, v[3].sort(descending=True).values
    z[4, 17] += 200  # and what went before vanishes beside it.
    v[4, 18] += 200
    agree(device, loss, z, v, labels, weights, rounding=10)


@pytest.mark.parametrize("shape", [(9,), (2, 3, 9), (0, 9), (2, 0, 9), (4, 1), (4, 2)])
def test_shapes(device, shape):
    z, v, labels, weights = draw(shape)
    ce, values, gradient = agree(device, LOSSES["wttm"], z, v, labels, weights)
    assert ce.shape == values.shape == shape[:-1]
    assert gradient.shape == shape


@of_each
def test_equal_networks_are_at_no_distance(device, loss):
    v = draw((4, 1000), scale=5.0)[1]
    labels = torch.zeros(4, dtype=torch.int64)
    _, values, _ = outcome(kernels.cross_entropy_and, loss, *on(device, v, v, labels), torch.ones(2, 4))
    if loss.func is not losses.wttm:
        assert values.abs().max() < 1e-5


@of_each
@pytest.mark.parametrize("block", [4, 2048])
def test_classes_without_probability(device, loss, block, monkeypatch):
    monkeypatch.setattr(triton_sweeps, "BLOCK", block)
    z, v, labels, weights = draw((6, 12))
    labels %= 4
    z[:, 4:8] = v[:, 4:8] = -INF  # A whole block of them.
    z[1, :4] = v[1, :4] = -INF  # The first block too.
    labels[1] = UNLABELLED
    agree(device, loss, z, v, labels, weights)
    v[2, 8] = -INF  # The teacher alone rules one out, or the student.
    z[3, 9] = -INF
    reverse, forward = loss.keywords.get("kind") == "reverse", "kind" not in loss.keywords
    weights[1, 2:4] = 1.0
    for rows in ([0, 1, 2], [0, 1, 3]):
        infinite = (reverse and 2 in rows) or (forward and 3 in rows)
        if infinite:
            values = kernels.cross_entropy_and(loss, *on(device, z[rows], v[rows], labels[rows]))[1].cpu()
            assert values[2] == INF
            assert values[:2].isfinite().all()
        else:
            agree(device, loss, z[rows], v[rows], labels[rows], weights[:, rows])


@of_each
@pytest.mark.parametrize("network", ["student", "teacher"])
@pytest.mark.parametrize("value", [math.nan, INF])
def test_nan_stays_nan_in_its_row_alone(device, loss, network, value):
    z, v, labels, _ = draw((4, 9))
    (z if network == "student" else v)[2, 3] = value
    _, values, gradient = outcome(kernels.cross_entropy_and, loss, *on(device, z, v, labels), torch.ones(2, 4))
    assert values[2].isnan()
    assert gradient[2].isnan().any()
    others = torch.arange(4) != 2
    assert values.cpu()[others].isfinite().all()
    assert gradient.cpu()[others].isfinite().all()


@pytest.mark.parametrize("used", [0, 1])
@of_each
def test_one_of_the_two_may_be_used_alone(device, loss, used):
    z, v, labels, weights = draw()
    agree(device, loss, z, v, labels, [w if i == used else None for i, w in enumerate(weights)])


def test_a_weight_of_zero_counts_nothing_where_the_value_is_infinite(device):
    z, v, labels, weights = draw()
    z[3, 4] = -INF
    weights[1, 3] = 0
    labels[3] = 0
    gradient = outcome(kernels.cross_entropy_and, LOSSES["ttm"], *on(device, z, v, labels), weights)[2]
    assert gradient.isfinite().all()


def test_unlabelled_rows_have_no_cross_entropy(device):
    z, v, labels, _ = draw()
    labels[::2] = UNLABELLED
    ce, values, gradient = outcome(
        kernels.cross_entropy_and, LOSSES["ttm"], *on(device, z, v, labels), (torch.ones(5), None)
    )
    assert (ce[::2] == 0).all()
    assert (values > 0).all()
    assert (gradient[::2] == 0).all()


def test_a_label_that_is_no_class_is_seen(device):
    from tutelage.kernels import divergence

    z, v, labels, _ = on(device, *draw())
    labels[0], labels[2] = 9, -1
    z.requires_grad_()
    ce, _ = triton_sweeps.cross_entropy_and(divergence.Divergence(), z, [v], labels)
    assert ce.isnan().tolist() == [True, False, True, False, False]
    assert torch.autograd.grad(ce.sum(), z)[0].isnan().any(-1).tolist() == [True, False, True, False, False]


def test_logits_need_not_be_contiguous(device):
    z, v, labels, weights = draw()
    agree(device, LOSSES["wttm"], z.T.contiguous().T, torch.cat([v, v], -1)[:, :9], labels, weights)
    agree(device, LOSSES["wttm"], z, v[:1].expand_as(v), labels, weights)
    agree(device, LOSSES["wttm"], z, v, torch.stack([labels, labels], -1)[:, 0], weights)


def test_student_and_teacher_may_differ_in_dtype(device):
    z, v, labels, weights = draw()
    agree(device, LOSSES["wttm"], z.bfloat16(), v, labels, weights)
    agree(device, LOSSES["wttm"], z, v.half(), labels, weights)


def test_a_kind_without_a_kernel_is_computed_by_the_plain_function(device, monkeypatch):
    from tutelage.losses import divergences

    squared = {"squared": lambda log_q, log_p: (log_q.exp() - log_p.exp()).square().sum(-1)}
    monkeypatch.setattr(divergences, "KINDS", {**divergences.KINDS, **squared})
    agree(device, partial(losses.divergence, kind="squared"), *draw())


def test_float64_is_computed_by_the_plain_functions(device):
    z, v, labels, weights = on(device, *draw(dtype=torch.float64))
    ours = outcome(kernels.cross_entropy_and, LOSSES["wttm"], z, v, labels, weights)
    theirs = outcome(plain, LOSSES["wttm"], z, v, labels, weights)
    assert all(x.dtype == torch.float64 for x in ours)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def sparse(v, top, level):
    values, index = v.topk(top)
    return Sparse(values, index, torch.full(v.shape[:-1], level), v.shape[-1])


@of_each
@pytest.mark.parametrize(
    ("shape", "top"), [((4, 9), 3), pytest.param((2, 3, 9), 8, marks=pytest.mark.slow), ((3, 9), 9), ((2, 2100), 5)]
)
def test_top_classes_and_a_level(device, loss, shape, top):
    z, v, labels, weights = draw(shape)
    agree(device, loss, z, sparse(v, top, -2.5), labels, weights)
    agree(device, loss, z.bfloat16(), sparse(v.bfloat16(), top, -4.0), labels, weights)


@of_each
def test_top_classes_alone(device, loss):
    z, v, labels, weights = draw()
    others = sparse(v, 3, -INF)
    if loss.keywords.get("kind") == "reverse":
        assert kernels.cross_entropy_and(loss, *on(device, z, others, labels))[1].tolist() == [INF] * 5
    else:
        agree(device, loss, z, others, labels, weights)


@of_each
@pytest.mark.parametrize("level", [0.0, 1e4, -INF, math.nan])
def test_where_all_classes_are_known_the_level_is_nobodys(device, loss, level):
    z, v, labels, weights = draw()
    agree(device, loss, z, sparse(v - 20, 9, level), labels, weights)


@of_each
def test_top_classes_that_are_masked(device, loss):
    z, v, labels, weights = draw()
    labels %= 5
    others = sparse(v, 3, -2.0)
    others.values[:, 1] = -INF  # Both networks rule out a top class,
    z.scatter_(1, others.index[:, 1:2], -INF)
    labels.copy_(others.index[:, 0])
    agree(device, loss, z, others, labels, weights)
    z[:] = -INF  # or all but the top ones, which then are a distribution.
    z.scatter_(1, others.index, v.gather(1, others.index) / 2)
    agree(device, loss, z, Sparse(v.gather(1, others.index), others.index, others.level - INF, 9), labels, weights)


@of_each
def test_a_row_without_weight_counts_nothing_whatever_its_teacher_says(device, loss):
    z, v, labels, weights = draw()
    v[3, 2] = INF
    weights[1, 3] = 0
    gradient = outcome(kernels.cross_entropy_and, loss, *on(device, z, v, labels), weights)[2]
    assert gradient.isfinite().all()


@of_each
def test_a_top_class_that_is_none_is_neither_read_nor_written_and_seen(device, loss):
    z, v, labels, _ = draw()
    others = sparse(v, 3, -2.0)
    others.index[1, 0], others.index[3, 2] = 9, -1
    _, values, gradient = outcome(kernels.cross_entropy_and, loss, *on(device, z, others, labels), torch.ones(2, 5))
    assert values.isnan().tolist() == [False, True, False, True, False]
    assert gradient.isnan().any(-1).tolist() == [False, True, False, True, False]


def test_a_caller_may_be_compiled_in_one_graph(device):
    torch.compiler.reset()
    loss = LOSSES["jensen_shannon"]

    def call(loss, z, v, labels):
        ce, values = kernels.cross_entropy_and(loss, 2 * z, v, labels)
        return ce, 3 * values

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    z, v, labels, weights = on(device, *draw(dtype=torch.bfloat16))
    ours = outcome(compiled, loss, z, v, labels, weights)
    for one, other in zip(ours, outcome(call, loss, z, v, labels, weights), strict=True):
        torch.testing.assert_close(one, other)


def test_what_a_compiler_is_told_of_the_operations_is_so(device):
    z, v, labels, _ = on(device, *draw(dtype=torch.float16))
    row, numbers = torch.ones(5, device=device), ("forward", 0.0, 1.0, 0.5, 1.0, True)
    torch.library.opcheck(torch.ops.tutelage.cross_entropy_and.default, (z, [v], labels, *numbers))
    statistics = torch.ops.tutelage.cross_entropy_and(z, [v], labels, *numbers)[2]
    inputs = (z, [v], labels, statistics, row, None, *numbers)
    torch.library.opcheck(torch.ops.tutelage.cross_entropy_and_backward.default, inputs)


def test_a_second_derivative_is_refused(device):
    z, v, labels, _ = on(device, *draw())
    z.requires_grad_()
    ce, _ = kernels.cross_entropy_and(LOSSES["ttm"], z, v, labels)
    (gradient,) = torch.autograd.grad(ce.pow(2).sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match=r"type tutelage\.losses\.cross_entropy"):
        gradient.sum().backward()


def test_nothing_of_the_size_of_the_logits_is_kept(device):
    z, v, labels, _ = on(device, *draw((8, 300)))
    z.requires_grad_()
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in {z.data_ptr(), v.data_ptr(), labels.data_ptr()}:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kernels.cross_entropy_and(LOSSES["wttm"], z, v, labels)
    assert sum(kept.values()) <= 8 * 8


@of_all
def test_the_host_waits_for_nothing(loss, monkeypatch):
    """On a device that stands in for a GPU, where what is to be started is left out."""
    monkeypatch.setattr(logits, "TRITON_DEVICES", frozenset({META.type}))
    monkeypatch.setattr(triton_sweeps.Sweeps, "_launch", lambda *_, **__: None)

    def call():
        z, v = (torch.empty(6, 50, device=META, dtype=torch.bfloat16) for _ in range(2))
        labels = torch.empty(6, device=META, dtype=torch.int64)
        z.requires_grad_()
        for teacher in (v, Sparse(v[:, :3], labels[:, None].expand(6, 3), v[:, 0], 50)):
            ce, values = kernels.cross_entropy_and(loss, z, teacher, labels)
            (ce + values).sum().backward()
        weight = torch.empty(50, 4, device=META, dtype=torch.bfloat16, requires_grad=True)
        hidden = torch.empty(6, 4, device=META, dtype=torch.bfloat16, requires_grad=True)
        layers = hidden, weight, hidden.detach(), weight.detach(), labels
        kernels.linear(loss, *layers, sample_weight=labels.float(), student_bias=weight[:, 0]).total.backward()

    assert not waits_of(call)


SOURCE = Path(kernels.__file__).parents[2]


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["few", "all"])
def test_the_compiler_takes_them_for_a_device_that_is_not_there(few, tmp_path):
    script = [sys.executable, str(Path(__file__).with_name("compile_for_device.py")), *(["--few"] if few else [])]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(SOURCE)}
    result = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert result.stdout.endswith("compiled\n")


def draw_layers(tokens=7, classes=23, dtype=torch.float32, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"student_hidden": (tokens, 4), "student_weight": (classes, 4), "student_bias": (classes,)}
    shapes |= {"teacher_hidden": (tokens, 6), "teacher_weight": (classes, 6), "teacher_bias": (classes,)}
    layers = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    labels = torch.randint(classes, (tokens,), generator=generator)
    labels[1 : tokens // 2] = UNLABELLED
    return layers | {"labels": labels, "sample_weight": torch.rand(tokens, generator=generator)}


LEARNED = ("student_hidden", "student_weight", "student_bias")


def of_layers(form, loss, inputs, learned=LEARNED, **settings):
    """Total, both means and the gradients."""
    inputs = {name: x.detach().requires_grad_() if name in learned else x for name, x in inputs.items()}
    total, parts = form(loss, **inputs, weight=1.7, supervised=0.6, **settings)
    total.backward()
    return total.detach(), *parts.values(), *(inputs[name].grad for name in learned)


def plain_layers(loss, *, labels, sample_weight, weight, supervised, **layers):
    z, v = (
        F.linear(*(layers[f"{who}_{what}"] for what in ("hidden", "weight", "bias"))) for who in ("student", "teacher")
    )
    labelled = sample_weight * (labels != UNLABELLED)
    ce = (labelled * losses.cross_entropy(z, labels)).sum() / labelled.sum()
    matching = (sample_weight * loss(z, v)).sum() / sample_weight.sum()
    return supervised * ce + weight * matching, {"cross_entropy": ce.detach(), "matching": matching.detach()}


def layers_agree(device, loss, inputs, tolerance=3e-6, learned=LEARNED, **settings):
    there = dict(zip(inputs, on(device, *inputs.values()), strict=True))
    ours = of_layers(kernels.linear, loss, there, learned, **settings)
    exact = of_layers(
        plain_layers, loss, {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}, learned
    )
    for got, expected in zip(ours, exact, strict=True):
        atol = tolerance * expected.abs().max().item()
        torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=atol)
    assert [x.dtype for x in ours[3:]] == [inputs[name].dtype for name in learned]


@of_all
def test_the_last_layer_by_classes(device, loss):
    layers_agree(device, loss, draw_layers(), chunk=7 * 5)


@pytest.mark.parametrize("chunk", [None, 7, *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in (7 * 11, 1))])
@pytest.mark.parametrize(
    "loss", [LOSSES["wttm"], pytest.param(LOSSES["skew"], marks=pytest.mark.slow)], ids=["wttm", "skew"]
)
def test_the_last_layer_by_any_number_of_classes(device, loss, chunk):
    layers_agree(device, loss, draw_layers(classes=11), chunk=chunk)


@of_each
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_the_last_layer_in_narrow_dtypes(device, loss, dtype):
    layers_agree(device, loss, draw_layers(dtype=dtype), 3e-2 if dtype == torch.bfloat16 else 4e-3, chunk=7 * 10)


@pytest.mark.parametrize("learned", [(name,) for name in LEARNED])
def test_what_is_not_learned_gets_no_gradient(device, learned):
    layers_agree(device, LOSSES["wttm"], draw_layers(), learned=learned, chunk=7 * 10)


def test_tokens_without_weight_take_no_part(device):
    inputs = draw_layers()
    inputs["sample_weight"][2:4] = 0
    layers_agree(device, LOSSES["jensen_shannon"], inputs, chunk=7 * 10)
    inputs["sample_weight"][:] = 0
    there = dict(zip(inputs, on(device, *inputs.values()), strict=True))
    assert all((x == 0).all() for x in of_layers(kernels.linear, LOSSES["ttm"], there))
    none = {name: x[:0] if "hidden" in name or name in ("labels", "sample_weight") else x for name, x in there.items()}
    assert all((x == 0).all() for x in of_layers(kernels.linear, LOSSES["ttm"], none))


def test_neither_logits_nor_a_wide_sum_of_the_weights_gradient_is_ever_whole(device):
    inputs = draw_layers(8, 500, torch.bfloat16)
    there = dict(zip(inputs, on(device, *inputs.values()), strict=True))

    class Sizes(TorchDispatchMode):
        largest = 0
        given = frozenset(x.untyped_storage().data_ptr() for x in there.values())

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.given:
                    self.largest = max(self.largest, tensor.untyped_storage().nbytes())
            return result

    there["student_weight"].requires_grad_()
    with Sizes() as seen:
        kernels.linear(LOSSES["wttm"], **there, chunk=8 * 100).total.backward()
    assert seen.largest == 500 * 4 * 2  # The weight's gradient itself; logits take 500 * 8 * 2.
