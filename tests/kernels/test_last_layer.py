"""The last layers and their losses by chunks: the plain form's value and gradients, without its logits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from tests._helpers.refusals import refused
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tutelage import kernels, losses
from tutelage.errors import InvalidTypeError, InvalidValueError, RunError
from tutelage.kernels import cpu_sweeps, last_layer
from tutelage.kernels.divergence import KINDS

SETTINGS = {"gamma": 0.3, "beta": 1.7, "supervised": 0.6}
LEARNED = ("student_hidden", "student_weight", "student_bias")


def draw(tokens=(3, 7), classes=11, dtype=torch.float64, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = {
        "student_hidden": normal(*tokens, 4),
        "student_weight": normal(classes, 4),
        "teacher_hidden": normal(*tokens, 6),
        "teacher_weight": normal(classes, 6),
        "labels": torch.randint(classes, tokens, generator=generator),
    }
    if bias:
        inputs |= {"student_bias": normal(classes), "teacher_bias": normal(classes)}
    return inputs


def plain(
    student_hidden,
    student_weight,
    teacher_hidden,
    teacher_weight,
    labels,
    *,
    gamma,
    beta,
    supervised=1.0,
    student_bias=None,
    teacher_bias=None,
    sample_weight=None,
):
    z = F.linear(student_hidden, student_weight, student_bias)
    v = F.linear(teacher_hidden, teacher_weight, teacher_bias)
    w = torch.ones(labels.shape, dtype=torch.float64) if sample_weight is None else sample_weight
    labelled = w * (labels != -100)
    ce = (labelled * losses.cross_entropy(z, labels)).sum() / labelled.sum()
    wttm = (w * losses.wttm(z, v, gamma=gamma)).sum() / w.sum()
    return supervised * ce + beta * wttm, {"cross_entropy": ce, "matching": wttm}


def fused(*, gamma, beta, **arguments):
    return kernels.linear(partial(losses.wttm, gamma=gamma), weight=beta, **arguments)


def all_of(form, inputs, scale=1.0, learned=LEARNED, **settings):
    inputs = {
        name: x.detach().requires_grad_() if name in learned and x is not None else x for name, x in inputs.items()
    }
    total, parts = form(**inputs, **(SETTINGS | settings))
    (scale * total).backward()
    return (
        total.detach(),
        *(parts[name].detach() for name in ("cross_entropy", "matching")),
        *(inputs[name].grad for name in learned if name in inputs),
    )


def agree(inputs, tolerance=1e-11, scale=1.0, learned=LEARNED, chunk=None, **settings):
    ours = all_of(fused, inputs, scale, learned, chunk=chunk, **settings)
    theirs = all_of(plain, inputs, scale, learned, **settings)
    for our_value, their_value in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_value, their_value, rtol=tolerance, atol=tolerance, check_dtype=False)
    return ours


@pytest.mark.parametrize("chunk", [None, 1, 11, 44, 231, 1100])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_are_those_of_whole_logits(chunk, bias):
    agree(draw(bias=bias), chunk=chunk)
    agree(draw(bias=bias), chunk=chunk, scale=-2.5)


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"supervised": 0.0}, {"gamma": 1.0}])
def test_either_term_may_have_no_weight(settings):
    agree(draw(), chunk=4 * 11, **settings)


def test_float32():
    inputs = draw((32,), classes=300, dtype=torch.float32)
    values = agree(inputs, 1e-4, chunk=10 * 300)
    assert all(x.dtype == torch.float32 for x in values)
    exact = all_of(plain, {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()})
    for one, other in zip(values, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_bfloat16_sums_the_weights_gradient_up_in_float32():
    inputs = draw((512,), classes=40, dtype=torch.bfloat16)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    exact = all_of(plain, wide)
    values = all_of(fused, inputs, chunk=1)
    assert values[0].dtype == torch.float32
    assert all(x.dtype == torch.bfloat16 for x in values[3:])
    for i in (3, 4, 5):
        worst = (values[i].double() - exact[i]).abs().max() / exact[i].abs().max()
        assert worst < 0.02  # 512 chunks summed up in bfloat16 are 0.1 off.


def test_a_mean_over_many_tokens_does_not_vanish_in_float16():
    inputs = draw((4096,), classes=300, dtype=torch.float16, bias=False)
    inputs["student_hidden"] *= 0.1
    exact = all_of(plain, {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()})
    values = all_of(fused, inputs)
    for i in (3, 4):  # Of a mean over these tokens the gradient by a logit is 1e-6, of which float16 knows a digit.
        worst = (values[i].double() - exact[i]).abs().max() / exact[i].abs().max()
        assert worst < 2e-3


def test_a_large_gradient_is_finite_in_float16_as_it_is_plainly():
    inputs = draw((64,), classes=30, dtype=torch.float16, bias=False)
    inputs["student_hidden"] *= 100
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    expected = all_of(plain, wide, beta=200.0)[4]
    assert 2000 < expected.abs().max() < 60000
    torch.testing.assert_close(all_of(fused, inputs, beta=200.0)[4].double(), expected, rtol=5e-3, atol=20)


@dataclass
class Distance:
    """A loss as an object."""

    factor: float

    def __call__(self, z, v):
        return self.factor * (z - v).abs().mean(-1)


LOSSES = {
    "kd": partial(losses.kd, temperature=3.0),
    "ttm": partial(losses.ttm, gamma=0.3),
    "skew": partial(losses.divergence, kind="skew"),
    "one of one's own": lambda z, v: (z - v).square().mean(-1),
    "one that is not hashable": Distance(2.0),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("chunk", [None, 4 * 11])
def test_any_loss_of_logits(loss, chunk):
    inputs = draw()
    inputs["labels"][1] = -100
    inputs["sample_weight"] = torch.rand(3, 7, dtype=torch.float64)
    inputs["sample_weight"][0, :2] = 0
    for name in LEARNED:
        inputs[name].requires_grad_()
    arguments = {name: x for name, x in inputs.items() if name not in ("labels", "sample_weight")}
    z, v = (
        F.linear(*(arguments[f"{who}_{what}"] for what in ("hidden", "weight", "bias")))
        for who in ("student", "teacher")
    )
    w = inputs["sample_weight"]
    matching = (w * loss(z, v)).sum() / w.sum()
    labelled = w * (inputs["labels"] != -100)
    ce = (labelled * losses.cross_entropy(z, inputs["labels"])).sum() / labelled.sum()
    expected = torch.autograd.grad(0.5 * ce + 2 * matching, [inputs[name] for name in LEARNED])
    total, parts = kernels.linear(loss, **inputs, weight=2.0, supervised=0.5, chunk=chunk)
    torch.testing.assert_close(parts, {"cross_entropy": ce.detach(), "matching": matching.detach()})
    for got, gradient in zip(torch.autograd.grad(total, [inputs[name] for name in LEARNED]), expected, strict=True):
        torch.testing.assert_close(got, gradient)
    with torch.no_grad():
        torch.testing.assert_close(kernels.linear(loss, **inputs, weight=2.0, supervised=0.5).total, total.detach())


def test_parts_of_a_mean_add_up_with_the_divisors_of_the_whole():
    inputs = draw()
    inputs["labels"][0] = -100
    whole = fused(**inputs, **SETTINGS)
    divisors = (inputs["labels"] != -100).sum().float(), torch.tensor(21.0)
    tokens = ("student_hidden", "teacher_hidden", "labels")
    parts = [
        fused(**{k: x[i : i + 1] if k in tokens else x for k, x in inputs.items()}, **SETTINGS, divisors=divisors)
        for i in range(3)
    ]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert parts[0].parts["cross_entropy"] == 0  # no label


def test_a_token_without_weight_counts_nothing_where_its_loss_is_infinite():
    inputs = draw(bias=False)
    inputs["sample_weight"] = torch.ones(3, 7, dtype=torch.float64)
    inputs["sample_weight"][1, 2] = 0
    inputs["student_weight"].requires_grad_()

    def infinite(z, v):
        return losses.ttm(z, v, gamma=0.3) / (torch.arange(len(z)) != 9)

    total = kernels.linear(infinite, **inputs).total
    assert total.isfinite()
    assert torch.autograd.grad(total, inputs["student_weight"])[0].isfinite().all()


@pytest.mark.parametrize("row", [float("inf"), float("nan")])
def test_a_token_without_weight_counts_nothing_whatever_its_teacher_says(row):
    inputs = draw(bias=False)
    inputs["sample_weight"] = torch.ones(3, 7, dtype=torch.float64)
    inputs["sample_weight"][1, 2] = 0
    inputs["teacher_hidden"][1, 2] = row
    inputs["student_weight"].requires_grad_()
    total = fused(**inputs, **SETTINGS).total
    assert total.isfinite()
    assert torch.autograd.grad(total, inputs["student_weight"])[0].isfinite().all()


def test_a_term_without_weight_counts_nothing_where_it_is_infinite():
    inputs = draw()
    inputs["labels"][0, 0] = 3
    inputs["student_bias"][3] = inputs["teacher_bias"][3] = -torch.inf
    total, parts = fused(**inputs, **(SETTINGS | {"supervised": 0.0}))
    assert parts["cross_entropy"] == torch.inf
    assert total == SETTINGS["beta"] * parts["matching"]


def test_a_loss_must_return_a_value_a_token():
    with refused(InvalidValueError, "loss", got="()", suggests="tutelage.kernels.linear"):
        kernels.linear(lambda z, v: (z - v).square().mean(), **draw())
    with refused(InvalidTypeError, "loss", got="str"):
        kernels.linear("wttm", **draw())


@pytest.mark.parametrize(
    ("loss", "refusal"),
    [
        (losses.wttm, refused(InvalidTypeError, "loss", suggests="functools.partial(losses.wttm, gamma=...)")),
        (partial(losses.kd, gamma=2.0), refused(InvalidTypeError, "loss", got="gamma", suggests="temperature=...")),
        (partial(losses.divergence, kind="skew", gamma=1.0), refused(InvalidTypeError, "loss", got=["kind", "gamma"])),
        (partial(losses.divergence, kind="skew", beta=0.5), refused(InvalidValueError, "beta")),
        (partial(losses.kd, temperature=-1.0), refused(InvalidValueError, "temperature")),
        ("kd", refused(InvalidTypeError, "loss", got="str")),
    ],
)
def test_a_loss_that_is_not_bound_is_refused(loss, refusal):
    inputs = draw()
    with refusal:
        kernels.linear(loss, **inputs)
    with refusal:
        kernels.cross_entropy_and(loss, torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))


def test_one_dimension_of_tokens_and_none_at_all():
    agree(draw((5,)))
    values = all_of(fused, draw((0,)))
    assert values[0] == 0
    assert all((x == 0).all() for x in values[3:])


def test_unlabelled_tokens_take_part_in_the_matching_alone():
    inputs = draw()
    inputs["labels"][0] = -100
    agree(inputs, chunk=4 * 11)
    inputs["labels"][:] = -100
    total, ce, wttm, hidden, *_ = all_of(fused, inputs)
    assert ce == 0
    assert total == SETTINGS["beta"] * wttm
    assert hidden.abs().sum() > 0


def test_another_index_to_ignore():
    inputs = draw()
    inputs["labels"][0] = 3
    inputs["labels"][1:] = inputs["labels"][1:].masked_fill(inputs["labels"][1:] == 3, 4)
    reference = draw() | {"labels": inputs["labels"].clone()}
    reference["labels"][0] = -100
    theirs = all_of(plain, reference)
    ours = all_of(fused, inputs, ignore_index=3)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    with refused(InvalidValueError, "labels", got=-1):
        fused(**reference, **SETTINGS, ignore_index=3)


def test_sample_weights():
    inputs = draw()
    inputs["labels"][1] = -100
    inputs["sample_weight"] = torch.rand(3, 7, dtype=torch.float64)
    agree(inputs, chunk=4 * 11)
    # A token of weight 0 takes no part, whatever it says.
    inputs["sample_weight"][:, 2] = 0
    before = all_of(fused, inputs, chunk=4 * 11)
    inputs["teacher_hidden"][:, 2] *= 100
    after = all_of(fused, inputs, chunk=4 * 11)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)
    inputs["sample_weight"] = torch.zeros(3, 7)
    values = all_of(fused, inputs)
    assert all((x == 0).all() for x in values)


@pytest.mark.parametrize("learned", [("student_hidden",), ("student_weight",), ("student_bias",)])
def test_what_is_not_learned_gets_no_gradient(learned):
    agree(draw(), learned=learned, chunk=4 * 11)


def test_the_teacher_gets_no_gradient():
    inputs = {name: x.requires_grad_() if x.is_floating_point() else x for name, x in draw().items()}
    loss = fused(**inputs, **SETTINGS)
    loss.total.backward()
    assert all(inputs[name].grad is None for name in inputs if name.startswith("teacher"))
    assert not any(part.requires_grad for part in loss.parts.values())
    with torch.no_grad():
        assert not fused(**inputs, **SETTINGS).total.requires_grad


def test_a_second_backward_pass_and_a_second_derivative_are_refused():
    inputs = draw()
    inputs["student_weight"].requires_grad_()
    total = fused(**inputs, **SETTINGS).total
    total.backward(retain_graph=True)
    with refused(RunError, "kernels.linear"):
        total.backward()
    total = fused(**inputs, **SETTINGS).total
    (gradient,) = torch.autograd.grad(total, inputs["student_weight"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"type tutelage\.losses\.cross_entropy"):
        gradient.sum().backward()


def test_autocast_changes_nothing():
    inputs = draw(dtype=torch.float32)
    outside = all_of(fused, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = all_of(fused, inputs)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # PyTorch's own, wherever a graph breaks.
def test_a_caller_may_be_compiled():
    torch.compiler.reset()
    inputs = draw(dtype=torch.float32)

    def call(student_hidden, **others):
        total, parts = fused(student_hidden=2 * student_hidden, **others)
        return 3 * total, parts

    compiled = torch.compile(call, backend="aot_eager")
    for one, other in zip(all_of(compiled, inputs), all_of(call, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_no_gradient_is_made_where_none_is_asked_for(monkeypatch):
    inputs = {name: x.requires_grad_() if x.is_floating_point() else x for name, x in draw().items()}
    expected = fused(**inputs, **SETTINGS).total
    monkeypatch.delattr(cpu_sweeps, "backward")
    with torch.no_grad():
        assert torch.equal(fused(**inputs, **SETTINGS).total, expected)
    detached = {name: x.detach() for name, x in inputs.items()}
    assert torch.equal(fused(**detached, **SETTINGS).total, expected)


@pytest.mark.parametrize("bias", [torch.randn(30)[::2], torch.randn(1).expand(15), torch.randn(15, 2)[:, 1]])
def test_a_bias_of_any_strides(bias):
    inputs = draw((64,), classes=15, dtype=torch.float32) | {"student_bias": bias, "teacher_bias": bias}
    apart = inputs | {"student_bias": bias.clone().contiguous(), "teacher_bias": bias.clone().contiguous()}
    torch.testing.assert_close(all_of(fused, inputs), all_of(fused, apart), rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """The largest storage that any operation returned, in bytes."""

    size = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("kind", ["reverse", "forward"])
@pytest.mark.parametrize("swept", [True, False])
def test_a_term_without_weight_has_no_gradient_where_it_is_infinite(kind, swept):
    inputs = draw()
    inputs["teacher_bias"][3] = -torch.inf
    inputs["student_bias"][5] = -torch.inf if kind == "forward" else 0.0
    inputs["labels"] %= 3
    for name in LEARNED:
        inputs[name].requires_grad_()
    loss = partial(losses.divergence, kind=kind)
    total = kernels.linear(loss if swept else lambda z, v: loss(z, v), **inputs, weight=0.0).total
    hidden, weight, bias = torch.autograd.grad(total, [inputs[name] for name in LEARNED])
    z = F.linear(inputs["student_hidden"], inputs["student_weight"], inputs["student_bias"])
    plainly = torch.autograd.grad(losses.cross_entropy(z, inputs["labels"]).mean(), [inputs[name] for name in LEARNED])
    torch.testing.assert_close([hidden, weight, bias], [*plainly])
    neither = kernels.linear(loss, **inputs, weight=0.0, supervised=0.0).total
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(neither, [inputs[name] for name in LEARNED]))


FAMILY = {
    "kd": partial(losses.kd, temperature=3.0),
    "ttm": partial(losses.ttm, gamma=0.3),
    **{kind: partial(losses.divergence, kind=kind) for kind in KINDS},
}


@pytest.mark.parametrize("loss", FAMILY.values(), ids=FAMILY)
def test_the_family_is_swept_and_any_other_loss_differentiated(loss, monkeypatch):
    inputs = draw()
    swept = kernels.linear(loss, **inputs).total
    called = []
    monkeypatch.setattr(cpu_sweeps, "forward", lambda *given: called.append(given))
    with pytest.raises(TypeError):  # as it returns nothing
        kernels.linear(loss, **inputs)
    assert called
    torch.testing.assert_close(kernels.linear(lambda z, v: loss(z, v), **inputs).total, swept)


def test_products_of_float32_are_onednns_where_it_is_on(monkeypatch):
    inputs = draw((64,), classes=30, dtype=torch.float32)
    for name in LEARNED:
        inputs[name].requires_grad_()

    class Products(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            self.names.append(str(function))
            return function(*arguments, **(keywords or {}))

    results = {}
    for on in (True, False):
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", on)
        with Products() as seen:
            total = fused(**inputs, **SETTINGS).total
            results[on] = total, *torch.autograd.grad(total, [inputs[name] for name in LEARNED])
        taken = sum("mkldnn._linear_pointwise" in name for name in seen.names)
        assert taken == (3 if on and last_layer._ONE_DNN else 0)
    torch.testing.assert_close(results[True], results[False], rtol=1e-5, atol=1e-5)


def test_logits_are_never_whole():
    inputs = draw((64,), classes=1000, dtype=torch.float32)
    for name in LEARNED:
        inputs[name].requires_grad_()
    with Largest() as seen:
        fused(**inputs, **SETTINGS, chunk=4 * 1000).total.backward()
    assert seen.size < 64 * 1000 * 4 / 2
    with Largest() as seen:
        plain(**inputs, **SETTINGS)[0].backward()
    assert seen.size >= 64 * 1000 * 4


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"student_hidden": None}, refused(InvalidTypeError, "student_hidden")),
        ({"teacher_hidden": torch.zeros(3, 7, 6, dtype=torch.int64)}, refused(InvalidTypeError, "teacher_hidden")),
        ({"student_weight": torch.zeros(11, 5)}, refused(InvalidValueError, "student_weight")),
        ({"student_weight": torch.zeros(11, 4)}, refused(InvalidTypeError, "student_weight")),
        ({"teacher_bias": torch.zeros(11)}, refused(InvalidTypeError, "teacher_bias")),
        ({"teacher_bias": torch.zeros(9).double()}, refused(InvalidValueError, "teacher_bias")),
        ({"teacher_weight": torch.zeros(12, 6).double()}, refused(InvalidValueError, "teacher_weight")),
        ({"teacher_hidden": torch.zeros(3, 6, 6).double()}, refused(InvalidValueError, "teacher_hidden")),
        ({"labels": torch.zeros(3, 7, 11)}, refused(InvalidTypeError, "labels", got="torch.float32")),
        ({"labels": torch.zeros(3, 7, dtype=torch.int32)}, refused(InvalidTypeError, "labels", got="torch.int32")),
        ({"labels": torch.zeros(21, dtype=torch.int64)}, refused(InvalidValueError, "labels", got="(21,)")),
        ({"labels": torch.full((3, 7), 11)}, refused(InvalidValueError, "labels", got=11)),
        ({"sample_weight": torch.ones(3, 7, dtype=torch.int64)}, refused(InvalidTypeError, "sample_weight")),
        ({"sample_weight": torch.ones(7)}, refused(InvalidValueError, "sample_weight")),
        ({"gamma": 0}, refused(InvalidValueError, "gamma", suggests="gamma=0.1")),
        ({"beta": -1.0}, refused(InvalidValueError, "weight", suggests="weight=1.0")),
        ({"supervised": "a"}, refused(InvalidTypeError, "supervised")),
        ({"chunk": 0}, refused(InvalidValueError, "chunk")),
        ({"chunk": 2.5}, refused(InvalidTypeError, "chunk")),
    ],
)
def test_errors(change, refusal):
    inputs = draw() | SETTINGS | change
    if "teacher_bias" not in change:
        inputs |= {"teacher_bias": None, "student_bias": None}
    with refusal:
        fused(**inputs)
