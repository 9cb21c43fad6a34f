"""A teacher's largest logits and the level of the others give what its whole rows give."""

from functools import partial

import pytest
import torch
from tests._helpers.refusals import refused
from torch.utils._python_dispatch import TorchDispatchMode

from tutelage import kernels, losses, targets
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.teacher_cache.top_k import TopK
from tutelage.types import Sparse

LOSSES = {
    "ttm": partial(losses.ttm, gamma=0.5),
    "flat": partial(losses.ttm, gamma=0.1),
    "sharp": partial(losses.ttm, gamma=1.15),
    "wttm": partial(losses.wttm, gamma=0.75),
    "kd": partial(losses.kd, temperature=4.0),
    "weighted_kd": partial(losses.weighted_kd, temperature=4.0),
}
CLASSES = 300


def pair(dtype, top=16, shape=(2, 5), scale=4.0):
    """A student's logits, and what is read of a teacher's record at exponent 0.5."""
    generator = torch.Generator().manual_seed(1)
    z, v = (torch.randn(*shape, CLASSES, generator=generator, dtype=torch.float64) * scale for _ in range(2))
    form = TopK(kept=top, classes=CLASSES)
    kept = form.pack(v.flatten(0, -2))
    kept = {name: kept[name].unflatten(0, shape) for name in ("top", "values", "index", "tail")}
    sparse = form.as_sparse(kept, 0.5)
    torch.testing.assert_close(targets.dense(sparse), form.unpack(kept, 0.5), rtol=0, atol=0)
    return z.to(dtype), Sparse(sparse.values.to(dtype), sparse.index, sparse.level.to(dtype), CLASSES)


def value_and_gradient(loss, z, v):
    z = z.clone().requires_grad_()
    values = loss(z, v)
    return values.detach(), torch.autograd.grad(values.sum(), z)[0]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("top", [1, 16, CLASSES - 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_value_and_gradient_are_those_of_the_dense_rows(name, top, dtype, tolerance):
    z, v = pair(dtype, top)
    dense = targets.dense(v)
    value, gradient = value_and_gradient(LOSSES[name], z, v)
    # float64 of the same stored target: a float32 reference has an error of its own
    expected, slope = value_and_gradient(LOSSES[name], z.double(), dense.double())
    assert value.dtype == dtype
    assert value.shape == (2, 5)
    nat = 16 if "kd" in name else 1  # T**2
    assert ((value - expected).abs() <= tolerance * expected.abs().clamp(min=nat)).all()
    assert (gradient - slope).abs().max() <= tolerance * slope.abs().max().clamp(min=1)


def test_a_tail_of_probability_0_and_all_classes_kept():
    z, v = pair(torch.float64)
    without = v._replace(level=torch.full_like(v.level, -torch.inf))
    order = targets.dense(v).sort(-1, descending=True)
    whole = Sparse(order.values, order.indices, v.level, CLASSES)
    for each in (without, whole):
        for got, expected in zip(
            value_and_gradient(LOSSES["wttm"], z, each),
            value_and_gradient(LOSSES["wttm"], z, targets.dense(each)),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


class Sizes(TorchDispatchMode):
    """Counts the tensors with an axis of all classes that are made."""

    made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.made += isinstance(result, torch.Tensor) and result.shape[-1:] == (CLASSES,)
        return result


@pytest.mark.parametrize("name", ["ttm", "wttm"])
def test_no_row_of_all_classes_is_made_of_the_teacher(name):
    z, v = pair(torch.float32)
    with Sizes() as sizes:
        LOSSES[name](z, v)
    assert sizes.made == 0


def test_the_kernels_entry_takes_it_as_it_is():
    z, v = pair(torch.float32)
    labels = torch.zeros(2, 5, dtype=torch.int64)
    _, values = kernels.cross_entropy_and(LOSSES["wttm"], z, v, labels)
    torch.testing.assert_close(values, LOSSES["wttm"](z, v), rtol=0, atol=0)


def test_top_classes_of_another_shape_are_refused():
    z, v = pair(torch.float32)
    with pytest.raises(InvalidValueError, match="top classes of student_logits' shape"):
        losses.ttm(z[:1], v, gamma=0.5)


def test_an_index_that_does_not_belong_to_the_rows_is_refused():
    z = torch.zeros(4, 6)
    with refused(InvalidTypeError, "index", got="torch.int32", suggests="index.long()"):
        losses.with_rest(z, torch.zeros(4, 1, dtype=torch.int32))
    with refused(InvalidValueError, "index", got="(3, 1)"):
        losses.with_rest(z, torch.zeros(3, 1, dtype=torch.int64))
    with refused(InvalidTypeError, "index", got="list"):
        losses.sampled_cross_entropy(z, [[0]] * 4, torch.ones(4, 1))
