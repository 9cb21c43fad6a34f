"""The half-width MobileNetV2 of the CIFAR-100 distillation benchmark, with the key names of its published checkpoints.

Its stages end linearly, without an activation: there the values before and after one are the same.
"""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.models.networks.entries import Entry
from tutelage.models.networks.layers import global_pool, he_normal_, stage

PAPER = "Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv 1801.04381"
STEM = 16
# expansion, output channels, blocks, stride of the first
BLOCKS = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
EMBEDDING = 1280
STAGES = ("conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6", "pool")


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by a 3x3 one, narrow by a linear 1x1 one; add the input.

    Args:
        inputs: input channels.
        outputs: output channels.
        stride: of the 3x3 convolution. The input is added where this is 1 and ``outputs`` are as many as ``inputs``.
        expansion: the wide part has this many times the input's channels; at 1 its 1x1 convolution remains.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * inputs
        self.adds = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 for small images; the pooling is global, so it takes images of any size.

    First weights: `he_normal_` for convolutions, ``N(0, 0.01**2)`` for the head, and 0 for its bias.

    Args:
        classes: size of the logits.
        channels: input channels.

    Differs from: the paper's network, as the benchmark's does: ReLU is not cut off at 6, the stage of 12 channels has
        stride 1, half widths are not rounded to multiples of 8 (12 channels, not 16), the embedding keeps its full
        width, the first block has a 1x1 convolution that widens nothing, and there is no dropout. The stem still
        halves the resolution: 32x32 images end as 2x2 maps.
    """

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(channels, STEM, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU()
        )
        stages: list[nn.Module] = []
        inputs = STEM
        for expansion, outputs, blocks, stride in BLOCKS:
            stages.append(stage(InvertedResidual, inputs, outputs, blocks=blocks, stride=stride, expansion=expansion))
            inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(nn.Conv2d(inputs, EMBEDDING, 1, bias=False), nn.BatchNorm2d(EMBEDDING), nn.ReLU())
        self.pool = global_pool()
        head = nn.Linear(EMBEDDING, classes)
        self.classifier = nn.Sequential(head)
        he_normal_(self)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        return self.classifier(self.pool(self.conv2(self.blocks(self.conv1(x)))))


ENTRIES = (
    Entry(
        name="MobileNetV2",
        build=MobileNetV2,
        parameters=812_836,
        stages=STAGES,
        stage_inputs=STAGES,
        head="classifier.0",
        paper=PAPER,
    ),
)
