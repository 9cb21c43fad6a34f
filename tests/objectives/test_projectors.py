import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage.errors import InvalidValueError
from tutelage.objectives.projectors import build, name
from tutelage.types import Projection


def test_a_linear_map_has_the_widths_of_both_sides():
    projector = build(Projection("a", "b", "linear"), (3,), (5,))
    assert projector(torch.randn(2, 3)).shape == (2, 5)
    assert {key: tuple(value.shape) for key, value in projector.state_dict().items()} == {
        "weight": (5, 3),
        "bias": (5,),
    }


def test_two_builds_share_nothing():
    first, second = (build(Projection("a", "b", "linear"), (3,), (5,)) for _ in range(2))
    assert first.weight.data_ptr() != second.weight.data_ptr()


def test_faults():
    with refused(InvalidValueError, "projection", suggests="card:embedding"):
        build(Projection("a", "b", "linear"), (3, 8, 8), (5,))
    with refused(InvalidValueError, "projection", got="'convolution'"):
        build(Projection("a", "b", "convolution"), (3,), (5,))


def test_names_tell_maps_apart():
    names = [
        name(Projection("a", "b", "linear")),
        name(Projection("a", "b", "linear", always=False)),
        name(Projection("a", "c", "linear")),
    ]
    assert len(set(names)) == 3


def kinds(module):
    return [type(layer).__name__ for layer in module] if isinstance(module, nn.Sequential) else [type(module).__name__]


@pytest.mark.parametrize(
    ("kind", "student", "layers"),
    [
        ("conv", (3, 8, 6), ["Conv2d"]),
        ("connector", (3, 8, 6), ["Conv2d", "BatchNorm2d"]),
        ("regressor", (3, 8, 6), ["Conv2d", "BatchNorm2d", "ReLU"]),
        ("connector", (3, 16, 12), ["Conv2d", "BatchNorm2d"]),
        ("connector", (3, 4, 3), ["ConvTranspose2d", "BatchNorm2d"]),
        ("regressor", (3, 16, 12), ["Conv2d", "BatchNorm2d", "ReLU"]),
        ("regressor", (3, 4, 3), ["ConvTranspose2d", "BatchNorm2d", "ReLU"]),
        ("regressor", (3, 10, 7), ["Conv2d", "BatchNorm2d", "ReLU"]),
        ("regressor", (3, 16, 6), ["Conv2d", "BatchNorm2d", "ReLU"]),
    ],
)
def test_maps_have_the_shape_of_the_teachers(kind, student, layers):
    projector = build(Projection("a", "b", kind), student, (5, 8, 6))
    assert projector(torch.randn(2, *student)).shape == (2, 5, 8, 6)
    assert kinds(projector) == layers


@pytest.mark.parametrize(
    ("student", "kernel", "stride"),
    [
        ((3, 8, 8), (1, 1), (1, 1)),
        ((3, 16, 16), (3, 3), (2, 2)),
        ((3, 4, 4), (4, 4), (2, 2)),
        ((3, 11, 8), (4, 1), (1, 1)),
    ],
)
def test_the_convolution_of_a_regressor_follows_the_sizes(student, kernel, stride):
    layer = build(Projection("a", "b", "regressor"), student, (5, 8, 8))[0]
    assert (layer.kernel_size, layer.stride, layer.bias is not None) == (kernel, stride, True)


@pytest.mark.parametrize(
    ("kind", "student", "teacher", "refusal"),
    [
        ("conv", (3, 8, 8), (5, 4, 4), refused(InvalidValueError, "projection", got="(5, 4, 4)")),
        ("connector", (3, 8, 8), (5, 16, 8), refused(InvalidValueError, "projection", got="(5, 16, 8)")),
        ("conv", (3,), (5,), refused(InvalidValueError, "projection", got="(3,)")),
        ("regressor", (16, 3), (5, 8, 8), refused(InvalidValueError, "projection", got="(16, 3)")),
        ("regressor", (3, 6, 6), (5, 8, 8), refused(InvalidValueError, "projection", got="(3, 6, 6)")),
        ("regressor", (3, 10, 7), (5, 8, 8), refused(InvalidValueError, "projection", got="(3, 10, 7)")),
    ],
)
def test_shapes_that_no_map_leads_between(kind, student, teacher, refusal):
    with refusal:
        build(Projection("a", "b", kind), student, teacher)


def test_a_1x1_convolution_keeps_the_students_size():
    projector = build(Projection("a", "b", "conv1x1"), (3, 8, 6), (5, 4, 3))
    assert projector(torch.randn(2, 3, 8, 6)).shape == (2, 5, 8, 6)
    with refused(InvalidValueError, "projection"):
        build(Projection("a", "b", "conv1x1"), (3,), (5, 4, 3))
