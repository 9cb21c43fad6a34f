"""Weight gradients of convolutions as one matrix product, where that is measured to be faster.

A convolution on small images gives a library few pixels to work on: in bfloat16, oneDNN's weight gradient of 512 to 512
channels on 4x4 images runs at a fifth of the rate of the same sum as one product,
``dW = dY^T X`` with the ``(pixels, kernel * channels)`` patches ``X``. Only this gradient is replaced; the convolution
and the gradient by its input stay the library's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tutelage.training import clock

GAIN = 1.2
"""How many times faster the product must be."""


class Shape(NamedTuple):
    """A convolution's sizes, without the batch; all whole numbers, so that a record can hold it."""

    inputs: int
    height: int
    width: int
    outputs: int
    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    padding_height: int
    padding_width: int
    dilation_height: int
    dilation_width: int

    @property
    def stride(self) -> tuple[int, int]:
        """The step from window to window."""
        return self.stride_height, self.stride_width

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros on each side."""
        return self.padding_height, self.padding_width

    @property
    def dilation(self) -> tuple[int, int]:
        """The step from one pixel of a window to the next."""
        return self.dilation_height, self.dilation_width


class Products(TorchFunctionMode):
    """While it is entered, convolutions of some shapes take their weight gradient by a product.

    Args:
        shapes: of these convolutions; all others are as they were.

    Attributes:
        seen: every convolution that could be among them, with the batch and the dtype that it was called with.
    """

    def __init__(self, shapes: Collection[Shape] = ()) -> None:
        super().__init__()
        self.shapes = frozenset(shapes)
        self.seen: dict[Shape, tuple[int, torch.dtype]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and torch.is_grad_enabled():
            call = _call(*args, **kwargs)
            if call is not None:
                shape, inputs, weight, bias = call
                self.seen.setdefault(shape, (len(inputs), inputs.dtype))
                if shape in self.shapes:
                    return _Convolution.apply(inputs, weight, bias, shape)
        return func(*args, **kwargs)


def _call(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Shape, Tensor, Tensor, Tensor | None] | None:
    """Read a call as autocast would make it; none where a product cannot stand in for its gradient."""
    if groups != 1 or inputs.dim() != 4 or isinstance(padding, str):
        return None
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        inputs, weight = inputs.to(dtype), weight.to(dtype)
        bias = bias.to(dtype) if bias is not None else None
    sizes = (*inputs.shape[1:], weight.shape[0], *weight.shape[2:], *_two(stride), *_two(padding), *_two(dilation))
    return Shape(*sizes), inputs, weight, bias


def _two(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value if len(value) == 2 else (value[0], value[0])
    return int(first), int(second)


class _Convolution(torch.autograd.Function):
    """``torch.conv2d``, with the weight's gradient from one product."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.shape = shape
        return torch.conv2d(inputs, weight, bias, shape.stride, shape.padding, shape.dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        by_inputs, by_weight, by_bias, _ = ctx.needs_input_grad
        return (
            library(gradient, inputs, weight, ctx.shape, by_inputs=True)[0] if by_inputs else None,
            product(gradient, inputs, ctx.shape) if by_weight else None,
            gradient.sum((0, 2, 3)) if by_bias else None,
            None,
        )


def product(gradient: Tensor, inputs: Tensor, shape: Shape) -> Tensor:
    """Return a convolution's gradient by its weight, ``(outputs, inputs, height, width)`` of the kernel.

    Args:
        gradient: by the convolution's result, ``(batch, outputs, height, width)``.
        inputs: what it was called with, ``(batch, inputs, height, width)``.
        shape: its sizes.
    """
    up, left = shape.padding
    padded = F.pad(inputs.permute(0, 2, 3, 1), (0, 0, left, left, up, up))
    sample, row, column, channel = padded.stride()
    batch, _, high, wide = gradient.shape
    patches = padded.as_strided(
        (batch, high, wide, shape.kernel_height, shape.kernel_width, shape.inputs),
        (
            sample,
            row * shape.stride_height,
            column * shape.stride_width,
            row * shape.dilation_height,
            column * shape.dilation_width,
            channel,
        ),
    )
    of_each_pixel = gradient.permute(0, 2, 3, 1).reshape(-1, shape.outputs)
    found = of_each_pixel.t() @ patches.reshape(len(of_each_pixel), -1)
    return found.view(shape.outputs, shape.kernel_height, shape.kernel_width, shape.inputs).permute(0, 3, 1, 2)


def library(
    gradient: Tensor, inputs: Tensor, weight: Tensor, shape: Shape, *, by_inputs: bool = False, by_weight: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Return the library's own gradients by inputs and by weight, those that are asked for."""
    mask = [by_inputs, by_weight, False]
    found = torch.ops.aten.convolution_backward(
        gradient, inputs, weight, None, shape.stride, shape.padding, shape.dilation, False, [0, 0], 1, mask
    )
    return found[0], found[1]


def faster(seen: dict[Shape, tuple[int, torch.dtype]], device: torch.device) -> list[Shape]:
    """Measure which convolutions' weight gradients are faster as a product.

    Args:
        seen: convolutions, with batch and dtype.
        device: where.
    """
    return [shape for shape, (batch, dtype) in seen.items() if _ratio(shape, batch, dtype, device) >= GAIN]


def _ratio(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> float:
    """Time both forms in turn; return how many times faster the product is."""
    # Numbers of its own: the run's generators stay where they are.
    numbers = torch.Generator().manual_seed(0)

    def some(*size: int) -> Tensor:
        made = torch.randn(size, generator=numbers).to(device, dtype)
        return made.contiguous(memory_format=torch.channels_last)

    inputs = some(batch, shape.inputs, shape.height, shape.width)
    weight = some(shape.outputs, shape.inputs, shape.kernel_height, shape.kernel_width)
    with torch.no_grad():
        gradient = torch.conv2d(inputs, weight, None, shape.stride, shape.padding, shape.dilation)
        of_library, of_product = clock.least(
            [
                lambda: library(gradient, inputs, weight, shape, by_weight=True),
                lambda: product(gradient, inputs, shape),
            ],
            device,
        )
    return of_library / of_product
