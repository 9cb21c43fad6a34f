"""The residual networks of the CIFAR-100 distillation benchmark, with the key names of its published checkpoints.

Depth ``6 n + 2``: three stages of ``n`` basic blocks each at strides 1, 2, 2 behind one 3x3 convolution; and ResNet50.
A stage's values before its activation are the inputs of its last block's last ReLU, such as ``layer1.2.relu2``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from tutelage.errors import InvalidValueError
from tutelage.models.networks.layers import Entry, conv_bn, global_pool, he_normal_, stage
from tutelage.submodules import input_of

WIDTHS = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """``relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))``; the shortcut is a 1x1 convolution if the shape changes.

    The stride is that of the first convolution and of the shortcut. The activations are not in place: a recorded input
    of ``relu2`` is the block's value before its activation.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, 3, stride=stride)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = conv_bn(outputs, outputs, 3)
        self.relu2 = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + self.downsample(x))


class Bottleneck(nn.Module):
    """``relu(shortcut(x) + f(x))``, ``f`` being 1x1, 3x3 and 1x1 convolutions with batch normalisation.

    The stride is that of the 3x3 convolution, whose channels are a quarter of the outputs, and of the shortcut, which
    is a 1x1 convolution if the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1, self.bn1 = conv_bn(inputs, width, 1)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride=stride)
        self.relu2 = nn.ReLU()
        self.conv3, self.bn3 = conv_bn(width, outputs, 1)
        self.relu3 = nn.ReLU()
        self.shortcut = _shortcut(inputs, outputs, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.relu2(self.bn2(self.conv2(residual)))
        return self.relu3(self.bn3(self.conv3(residual)) + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*conv_bn(inputs, outputs, 1, stride=stride))


class ResNet(nn.Sequential):
    """A residual network for small images: a 3x3 convolution, then stages at strides 1, 2, 2 and so on.

    Initial weights: `he_normal_` for convolutions, torch's own for the head.

    Args:
        block: block of all stages.
        widths: numbers of channels of the first convolution and of each stage.
        blocks: number of blocks in each stage.
        head: name of the linear layer that gives the logits.
    """

    def __init__(
        self,
        block: type[nn.Module],
        widths: Sequence[int],
        blocks: Sequence[int],
        *,
        head: str,
        classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(channels, widths[0], 3)
        self.relu = nn.ReLU()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            self.add_module(f"layer{i + 1}", stage(block, inputs, outputs, blocks=blocks[i], stride=2 if i else 1))
        self.pool = global_pool()
        self.add_module(head, nn.Linear(widths[-1], classes))
        he_normal_(self)


def basic_blocks(depth: int) -> tuple[int, int, int]:
    """Return the number of basic blocks in each of the three stages of a network with ``depth`` layers with weights."""
    blocks, remainder = divmod(depth - 2, 6)
    if remainder or blocks < 1:
        raise InvalidValueError("depth", "6 n + 2 with n of at least 1", depth, "type depth=20")
    return (blocks,) * 3


def _entry(
    name: str,
    parameters: int,
    blocks: tuple[int, ...],
    *,
    block: type[nn.Module] = BasicBlock,
    widths: tuple[int, ...] = WIDTHS,
    head: str = "fc",
) -> Entry:
    ends = [f"layer{i}.{count - 1}" for i, count in enumerate(blocks, 1)]
    last = "relu2" if block is BasicBlock else "relu3"
    return Entry(
        name=name,
        build=partial(ResNet, block, widths, blocks, head=head),
        parameters=parameters,
        stages=("relu", *(f"layer{i + 1}" for i in range(len(blocks))), "pool"),
        stage_inputs=("relu", *(input_of(f"{end}.{last}") for end in ends), "pool"),
        head=head,
        paper="He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385",
    )


ENTRIES = (
    _entry("resnet8", 83_892, basic_blocks(8)),
    _entry("resnet14", 181_108, basic_blocks(14)),
    _entry("resnet20", 278_324, basic_blocks(20)),
    _entry("resnet32", 472_756, basic_blocks(32)),
    _entry("resnet44", 667_188, basic_blocks(44)),
    _entry("resnet56", 861_620, basic_blocks(56)),
    _entry("resnet110", 1_736_564, basic_blocks(110)),
    _entry("resnet8x4", 1_233_540, basic_blocks(8), widths=WIDE),
    _entry("resnet32x4", 7_433_860, basic_blocks(32), widths=WIDE),
    _entry("ResNet50", 23_705_252, (3, 4, 6, 3), block=Bottleneck, widths=(64, 256, 512, 1024, 2048), head="linear"),
)
