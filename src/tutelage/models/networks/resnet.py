"""The residual networks of the CIFAR-100 distillation benchmark, with the key names of its published checkpoints.

Depth ``6 n + 2``: three stages of ``n`` basic blocks each at strides 1, 2, 2 behind one 3x3 convolution; and ResNet50.
A stage's values before its activation are the inputs of its last block's last ReLU, such as ``layer1.2.relu2``.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from tutelage.models.networks.entries import Builder, Entry
from tutelage.models.networks.layers import global_pool, he_normal_, stage

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


class Bottleneck(nn.Module):
    """``relu(shortcut(x) + f(x))``, ``f`` being 1x1, 3x3 and 1x1 convolutions with batch normalisation.

    The stride is that of the 3x3 convolution; the shortcut is a 1x1 convolution where the shape changes.

    Args:
        inputs: input channels.
        outputs: output channels; the 3x3 convolution has a quarter of them.
        stride: of the 3x3 convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu3 = nn.ReLU()
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.relu2(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.relu3(residual + shortcut)


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
        self.layer1 = stage(BasicBlock, widths[0], widths[1], blocks=blocks, stride=1)
        self.layer2 = stage(BasicBlock, widths[1], widths[2], blocks=blocks, stride=2)
        self.layer3 = stage(BasicBlock, widths[2], widths[3], blocks=blocks, stride=2)
        self.pool = global_pool()
        self.fc = nn.Linear(widths[3], classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.pool(self.layer3(self.layer2(self.layer1(x)))))


class ResNet50(nn.Module):
    """ImageNet's ResNet50 behind one 3x3 convolution at stride 1 without pooling: 32x32 images end as 4x4 maps.

    The pooling is global, so it takes images of any size.

    First weights: `he_normal_` for convolutions, torch's own for the head.

    Args:
        classes: size of the logits.
        channels: input channels.
    """

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = stage(Bottleneck, 64, 256, blocks=3, stride=1)
        self.layer2 = stage(Bottleneck, 256, 512, blocks=4, stride=2)
        self.layer3 = stage(Bottleneck, 512, 1024, blocks=6, stride=2)
        self.layer4 = stage(Bottleneck, 1024, 2048, blocks=3, stride=2)
        self.pool = global_pool()
        self.linear = nn.Linear(2048, classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.pool(x))


def _entry(
    name: str, build: Builder, parameters: int, *, blocks: tuple[int, ...], relu: str = "relu2", head: str = "fc"
) -> Entry:
    numbered = tuple(enumerate(blocks, 1))
    return Entry(
        name=name,
        build=build,
        parameters=parameters,
        stages=("relu", *(f"layer{i}" for i, _ in numbered), "pool"),
        stage_inputs=("relu", *(f"layer{i}.{n - 1}.{relu}:input" for i, n in numbered), "pool"),
        head=head,
        paper=PAPER,
    )


def _basic(name: str, depth: int, widths: tuple[int, int, int, int], parameters: int) -> Entry:
    return _entry(name, partial(ResNet, depth, widths), parameters, blocks=((depth - 2) // 6,) * 3)


ENTRIES = (
    _basic("resnet8", 8, WIDTHS, 83_892),
    _basic("resnet14", 14, WIDTHS, 181_108),
    _basic("resnet20", 20, WIDTHS, 278_324),
    _basic("resnet32", 32, WIDTHS, 472_756),
    _basic("resnet44", 44, WIDTHS, 667_188),
    _basic("resnet56", 56, WIDTHS, 861_620),
    _basic("resnet110", 110, WIDTHS, 1_736_564),
    _basic("resnet8x4", 8, WIDE, 1_233_540),
    _basic("resnet32x4", 32, WIDE, 7_433_860),
    _entry("ResNet50", ResNet50, 23_705_252, blocks=(3, 4, 6, 3), relu="relu3", head="linear"),
)
