"""Weight gradients as products: the gradient of the library's own convolution, and only where it is asked for."""

import itertools

import pytest
import torch
from torch import nn

from tutelage.kernels.conv_weight_grad import Products

CASES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "1x1": {"kernel_size": 1},
    "uneven": {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)},
    "no bias": {"kernel_size": 3, "padding": 1, "bias": False},
}


def gradients(convolution, inputs, context):
    """Outputs, and the gradients by inputs, weight and bias of a sum that weighs every output differently."""
    inputs = inputs.clone().requires_grad_()
    convolution.zero_grad()
    with context:
        outputs = convolution(inputs)
    (outputs * torch.arange(outputs.numel()).reshape(outputs.shape).sin()).sum().backward()
    return [outputs.detach(), inputs.grad, *(p.grad.clone() for p in convolution.parameters())]


def shapes_of(convolution, inputs):
    with Products() as look:
        convolution(inputs)
    return set(look.seen)


@pytest.mark.parametrize("how", CASES.values(), ids=CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_the_library(how, layout):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, **how).double().to(memory_format=layout)
    inputs = torch.randn(4, 3, 7, 6, dtype=torch.float64).contiguous(memory_format=layout)
    shapes = shapes_of(convolution, inputs)
    assert len(shapes) == 1
    plain = gradients(convolution, inputs, Products())
    product = gradients(convolution, inputs, Products(shapes))
    assert torch.equal(plain[0], product[0])
    assert torch.equal(plain[1], product[1])
    for library, by_product in itertools.zip_longest(plain[2:], product[2:]):
        torch.testing.assert_close(library, by_product)


def test_only_the_shapes_that_are_named_are_products():
    convolution, inputs = nn.Conv2d(3, 5, 3), torch.rand(2, 3, 8, 8)
    (shape,) = shapes_of(convolution, inputs)
    named, unnamed = Products([shape]), Products([shape._replace(height=9)])
    for context, is_product in ((named, True), (unnamed, False)):
        with context:
            outputs = convolution(inputs)
        assert ("_Convolution" in type(outputs.grad_fn).__name__) == is_product


@pytest.mark.parametrize("how", [{"groups": 3}, {"padding": "same"}], ids=["groups", "named padding"])
def test_what_a_product_cannot_stand_in_for_is_left_alone(how):
    assert not shapes_of(nn.Conv2d(3, 6, 3, **how), torch.rand(2, 3, 8, 8))


def test_under_autocast_the_product_is_of_its_precision_and_the_weights_gradient_of_the_weights():
    convolution, inputs = nn.Conv2d(8, 16, 3, padding=1), torch.rand(4, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        shapes = shapes_of(convolution, inputs)
        with Products(shapes):
            outputs = convolution(inputs)
    outputs.float().sum().backward()
    half = convolution.weight.grad.clone()
    convolution.zero_grad()
    convolution(inputs).sum().backward()
    assert outputs.dtype == torch.bfloat16
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, convolution.weight.grad, rtol=0.02, atol=0.02)
