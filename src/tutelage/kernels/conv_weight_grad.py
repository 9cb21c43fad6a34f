"""Weight gradients of convolutions as one matrix product, for chosen shapes.

On small images a library has few pixels to work on: in bfloat16, oneDNN's weight gradient from 512 to 512 channels on
4x4 images runs at a fifth of the rate of the same sum as one product, ``dW = dY^T X`` with the
``(pixels, kernel * channels)`` patches ``X``. Only this gradient is replaced; the convolution and the gradient with
respect to its input stay the library's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Shape(NamedTuple):
    """A convolution's sizes, without the batch; all integers, so that records can hold it."""

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
        """Number of pixels from window to window."""
        return self.stride_height, self.stride_width

    @property
    def padding(self) -> tuple[int, int]:
        """Number of zeros on each side."""
        return self.padding_height, self.padding_width

    @property
    def dilation(self) -> tuple[int, int]:
        """Number of pixels from one entry of a window to the next."""
        return self.dilation_height, self.dilation_width


class Products(TorchFunctionMode):
    """While active, convolutions of some shapes compute their weight gradient as a product.

    Args:
        shapes: shapes of these convolutions; all others are unchanged.

    Attributes:
        seen: all convolutions that could be among them, with the batch size and the dtype of their call.
    """

    def __init__(self, shapes: Collection[Shape] = ()) -> None:
        super().__init__()
        self.shapes = frozenset(shapes)
        self.seen: dict[Shape, tuple[int, torch.dtype]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and torch.is_grad_enabled() and (call := _call(*args, **kwargs)) is not None:
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
    """Read a call as autocast would make it; ``None`` if a product cannot replace its gradient."""
    if groups != 1 or inputs.dim() != 4 or isinstance(padding, str):
        return None
    device = inputs.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
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
            library_gradient(gradient, inputs, weight, ctx.shape, by_weight=False) if by_inputs else None,
            weight_gradient(gradient, inputs, ctx.shape) if by_weight else None,
            gradient.sum((0, 2, 3)) if by_bias else None,
            None,
        )


def weight_gradient(gradient: Tensor, inputs: Tensor, shape: Shape) -> Tensor:
    """Return a convolution's weight gradient as one product, ``(outputs, inputs, height, width)`` of the kernel.

    ``gradient`` is that of the convolution's result, ``(batch, outputs, height, width)``; ``inputs`` are
    ``(batch, inputs, height, width)``.
    """
    up, left = shape.padding
    padded = F.pad(inputs.permute(0, 2, 3, 1), (0, 0, left, left, up, up))
    sample, row, column, channel = padded.stride()
    batch, _, high, wide = gradient.shape
    (down, right), (dilation_down, dilation_right) = shape.stride, shape.dilation
    patches = padded.as_strided(
        (batch, high, wide, shape.kernel_height, shape.kernel_width, shape.inputs),
        (sample, row * down, column * right, row * dilation_down, column * dilation_right, channel),
    )
    pixels = gradient.permute(0, 2, 3, 1).reshape(-1, shape.outputs)
    flat = pixels.t() @ patches.reshape(len(pixels), -1)
    return flat.view(shape.outputs, shape.kernel_height, shape.kernel_width, shape.inputs).permute(0, 3, 1, 2)


def library_gradient(gradient: Tensor, inputs: Tensor, weight: Tensor, shape: Shape, *, by_weight: bool) -> Tensor:
    """Return the library's gradient of the weight, or of the inputs."""
    mask, sizes = [not by_weight, by_weight, False], (shape.stride, shape.padding, shape.dilation)
    gradients = torch.ops.aten.convolution_backward(gradient, inputs, weight, None, *sizes, False, [0, 0], 1, mask)
    return cast(Tensor, gradients[1 if by_weight else 0])
