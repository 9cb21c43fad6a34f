"""The wide residual networks of the CIFAR-100 distillation benchmark, with the key names of its published checkpoints.

Depth ``6 n + 4``: three stages of ``n`` blocks each at strides 1, 2, 2, whose convolutions come after their activation.
The activation that follows a stage is therefore the next stage's: the stages, as the benchmark's features, are the sums
that leave a stage, and their values normalised but not yet activated are the outputs of ``block2.layer.0.bn1``,
``block3.layer.0.bn1`` and ``bn1``, which are the inputs of the ``relu1``, ``relu1`` and ``relu`` behind them.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from tutelage.errors import InvalidValueError
from tutelage.models.networks.layers import Entry, global_pool, he_normal_, stage

STEM = 16


class WideBlock(nn.Module):
    """``shortcut + conv(relu(bn(conv(a))))`` with ``a = relu(bn(x))``.

    The shortcut is ``x``, or a bare 1x1 convolution of ``a`` if the number of channels changes. The stride is that of
    the first convolution and of the shortcut; it is 1 if ``inputs`` and ``outputs`` are equal.

    Differs from: the paper's implementation may drop activations between the convolutions; the benchmark never does,
    so there is no dropout.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        active = self.relu1(self.bn1(x))
        residual = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + residual


class WideResNet(nn.Sequential):
    """A wide residual network for small images.

    Initial weights: `he_normal_` for convolutions, 0 for the head's bias, and torch's own for the head's weight.

    Args:
        depth: number of layers with weights, ``6 n + 4``.
        widening: factor on the stages' 16, 32 and 64 channels.

    Raises:
        ValueError: if the depth is not of that form.
    """

    def __init__(self, depth: int, widening: int, *, classes: int, channels: int) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 4, 6)
        if remainder or blocks < 1:
            raise InvalidValueError("depth", "6 n + 4 with n of at least 1", depth, "type depth=16")
        wide = STEM * widening
        self.conv1 = nn.Conv2d(channels, STEM, 3, padding=1, bias=False)
        self.block1 = nn.Sequential(OrderedDict(layer=stage(WideBlock, STEM, wide, blocks=blocks, stride=1)))
        self.block2 = nn.Sequential(OrderedDict(layer=stage(WideBlock, wide, 2 * wide, blocks=blocks, stride=2)))
        self.block3 = nn.Sequential(OrderedDict(layer=stage(WideBlock, 2 * wide, 4 * wide, blocks=blocks, stride=2)))
        self.bn1 = nn.BatchNorm2d(4 * wide)
        self.relu = nn.ReLU()
        self.pool = global_pool()
        self.fc = nn.Linear(4 * wide, classes)
        he_normal_(self)
        nn.init.zeros_(self.fc.bias)


ENTRIES = tuple(
    Entry(
        name=f"wrn_{depth}_{widening}",
        build=partial(WideResNet, depth, widening),
        parameters=parameters,
        stages=("conv1", "block1", "block2", "block3", "pool"),
        stage_inputs=("conv1", "block2.layer.0.bn1", "block3.layer.0.bn1", "bn1", "pool"),
        head="fc",
        paper="Zagoruyko and Komodakis, Wide Residual Networks, arXiv 1605.07146",
    )
    for depth, widening, parameters in ((16, 1, 180_916), (16, 2, 703_284), (40, 1, 569_780), (40, 2, 2_255_156))
)
