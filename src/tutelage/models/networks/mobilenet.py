"""The half-width MobileNetV2 of the CIFAR-100 distillation benchmark, with the key names of its published checkpoints.

Its stages end linearly, without an activation: there the values before and after one are the same.
"""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.models.networks.layers import Entry, conv_bn, global_pool, he_normal_, small_head_, stage

STEM = 16
# expansion, output channels, blocks, stride of the first
BLOCKS = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
EMBEDDING = 1280
STAGES = ("conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6", "pool")


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by a 3x3 one, narrow by a linear 1x1 one; add the input.

    The input is added if the stride, of the 3x3 convolution, is 1 and the number of channels does not change. The
    wide part has ``expansion`` times the input's channels; at 1 its 1x1 convolution remains.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * inputs
        self.adds = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *conv_bn(inputs, wide, 1),
            nn.ReLU(),
            *conv_bn(wide, wide, 3, stride=stride, groups=wide),
            nn.ReLU(),
            *conv_bn(wide, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Sequential):
    """MobileNetV2 for small images.

    Initial weights: `he_normal_` for convolutions, `small_head_` for the head.

    Differs from: the paper's network, as the benchmark's does: ReLU is not cut off at 6, the stage of 12 channels has
        stride 1, half widths are not rounded to multiples of 8 (12 channels, not 16), the embedding keeps its full
        width, the first block has a 1x1 convolution that widens nothing, and there is no dropout. The stem still
        halves the resolution: 32x32 images end as 2x2 maps.
    """

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*conv_bn(channels, STEM, 3, stride=2), nn.ReLU())
        self.blocks = nn.Sequential()
        inputs = STEM
        for expansion, outputs, blocks, stride in BLOCKS:
            self.blocks.append(
                stage(InvertedResidual, inputs, outputs, blocks=blocks, stride=stride, expansion=expansion)
            )
            inputs = outputs
        self.conv2 = nn.Sequential(*conv_bn(inputs, EMBEDDING, 1), nn.ReLU())
        self.pool = global_pool()
        head = nn.Linear(EMBEDDING, classes)
        self.classifier = nn.Sequential(head)
        he_normal_(self)
        small_head_(head)


ENTRIES = (
    Entry(
        name="MobileNetV2",
        build=MobileNetV2,
        parameters=812_836,
        stages=STAGES,
        stage_inputs=STAGES,
        head="classifier.0",
        paper="Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv 1801.04381",
    ),
)
