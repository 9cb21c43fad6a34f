"""The residual networks of the CIFAR-100 distillation benchmark, with the key names of its published checkpoints.

Depth ``6 n + 2``: three stages of ``n`` basic blocks each at strides 1, 2, 2 behind one 3x3 convolution.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from tutelage.models.networks.entries import Entry
from tutelage.models.networks.layers import global_pool, he_normal_

PAPER = "He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385"
WIDTHS = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """``relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))``; the shortcut is a 1x1 convolution where the shape changes.

    The activations are not in place: a recorded input of ``relu2`` is the block's value before its activation.

    Args:
        inputs: input channels.
        outputs: output channels.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu2(residual + shortcut)


class ResNet(nn.Module):
    """A residual network for small images; the pooling is global, so it takes any size from 4x4 on.

    Args:
        depth: layers with weights, ``6 n + 2``.
        widths: channels of the first convolution and of the three stages.
        classes: size of the logits.
        channels: input channels.

    Raises:
        ValueError: if the depth is not of that form.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int] = WIDTHS, *, classes: int, channels: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth: expected 6 n + 2 with n of at least 1, got {depth}; type depth=20")
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(widths[0], widths[1], blocks=blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks=blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks=blocks, stride=2)
        self.pool = global_pool()
        self.fc = nn.Linear(widths[3], classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.pool(self.layer3(self.layer2(self.layer1(x)))))


def _stage(inputs: int, outputs: int, *, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride=stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, stride=1) for _ in range(blocks - 1)))


def _entry(name: str, depth: int, widths: tuple[int, int, int, int], parameters: int) -> Entry:
    return Entry(
        name=name,
        build=partial(ResNet, depth, widths),
        parameters=parameters,
        stages=("relu", "layer1", "layer2", "layer3", "pool"),
        stage_inputs=("relu", *(f"layer{stage}.{(depth - 2) // 6 - 1}.relu2:input" for stage in (1, 2, 3)), "pool"),
        head="fc",
        paper=PAPER,
    )


ENTRIES = (
    _entry("resnet8", 8, WIDTHS, 83_892),
    _entry("resnet14", 14, WIDTHS, 181_108),
    _entry("resnet20", 20, WIDTHS, 278_324),
    _entry("resnet32", 32, WIDTHS, 472_756),
    _entry("resnet44", 44, WIDTHS, 667_188),
    _entry("resnet56", 56, WIDTHS, 861_620),
    _entry("resnet110", 110, WIDTHS, 1_736_564),
    _entry("resnet8x4", 8, WIDE, 1_233_540),
    _entry("resnet32x4", 32, WIDE, 7_433_860),
)
