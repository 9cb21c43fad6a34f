"""The ResNet50 of the CIFAR-100 distillation benchmark, with the key names of its published checkpoints.

It is ImageNet's behind one 3x3 convolution at stride 1 without pooling, so 32x32 images end as 4x4 maps. A stage's
values before its activation are the inputs of its last block's ``relu3``, such as ``layer1.2.relu3``.
"""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.models.networks.entries import Entry
from tutelage.models.networks.layers import global_pool, he_normal_

PAPER = "He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385"
STEM = 64
EXPANSION = 4


class Bottleneck(nn.Module):
    """``relu(shortcut(x) + f(x))``, ``f`` being 1x1, 3x3 and 1x1 convolutions with batch normalisation.

    The stride is that of the 3x3 convolution; the shortcut is a 1x1 convolution where the shape changes.

    Args:
        inputs: input channels.
        width: channels of the 3x3 convolution; the outputs are four times as many.
        stride: of the 3x3 convolution and of the shortcut.
    """

    def __init__(self, inputs: int, width: int, *, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
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
        """Map ``(batch, inputs, h, w)`` to ``(batch, 4 * width, h / stride, w / stride)``."""
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.relu2(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.relu3(residual + shortcut)


class ResNet50(nn.Module):
    """Stages of 3, 4, 6 and 3 bottlenecks; the pooling is global, so it takes images of any size.

    First weights: `he_normal_` for convolutions, torch's own for the head.

    Args:
        classes: size of the logits.
        channels: input channels.
    """

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, STEM, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        self.layer1 = _stage(STEM, 64, blocks=3, stride=1)
        self.layer2 = _stage(256, 128, blocks=4, stride=2)
        self.layer3 = _stage(512, 256, blocks=6, stride=2)
        self.layer4 = _stage(1024, 512, blocks=3, stride=2)
        self.pool = global_pool()
        self.linear = nn.Linear(2048, classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.pool(x))


def _stage(inputs: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride=stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * width, width, stride=1) for _ in range(blocks - 1)))


ENTRIES = (
    Entry(
        name="ResNet50",
        build=ResNet50,
        parameters=23_705_252,
        stages=("relu", "layer1", "layer2", "layer3", "layer4", "pool"),
        stage_inputs=(
            "relu",
            "layer1.2.relu3:input",
            "layer2.3.relu3:input",
            "layer3.5.relu3:input",
            "layer4.2.relu3:input",
            "pool",
        ),
        head="linear",
        paper=PAPER,
    ),
)
