"""The ShuffleNets of the CIFAR-100 distillation benchmark, with the key names of its published checkpoints.

Their stem is one 1x1 convolution at stride 1 without pooling, so 32x32 images end as 4x4 maps. A stage's
values before its activation are the inputs of its last block's ``relu3`` in the first version, such as
``layer1.3.relu3``, and of its ``join`` in the second: both branches concatenated, not yet shuffled, of which it
activates only the second.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.models.networks.layers import Entry, conv_bn, global_pool, stage
from tutelage.submodules import input_of

PAPER_V1 = (
    "Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, arXiv 1707.01083"
)
PAPER_V2 = "Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, arXiv 1807.11164"
STEM = 24
GROUPS = 3
EMBEDDING = 1024


def shuffled(x: Tensor, *, groups: int) -> Tensor:
    """Interleave groups of ``n`` channels each: channel ``g * n + i`` moves to index ``i * groups + g``.

    >>> shuffled(torch.arange(6).reshape(1, 6, 1, 1), groups=2).flatten().tolist()
    [0, 3, 1, 4, 2, 5]
    """
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class GroupedBlock(nn.Module):
    """Grouped 1x1, shuffle, 3x3 per channel, grouped 1x1; at stride 1 the input is added, at 2 its mean is appended.

    The 1x1 convolutions have 3 groups, the one that reads the stem has 1. At stride 1 ``inputs`` and ``outputs`` are
    equal; at stride 2 the inputs are among the outputs.

    Differs from: the paper's block, as the benchmark's does: there is an activation after the 3x3 convolution, and the
        middle has a quarter of the channels that the convolutions add rather than of all outputs.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.groups = 1 if inputs == STEM else GROUPS
        width = outputs if stride == 1 else outputs - inputs
        middle = width // 4
        self.conv1, self.bn1 = conv_bn(inputs, middle, 1, groups=self.groups)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = conv_bn(middle, middle, 3, stride=stride, groups=middle)
        self.relu2 = nn.ReLU()
        self.conv3, self.bn3 = conv_bn(middle, width, 1, groups=GROUPS)
        self.pooled = None if stride == 1 else nn.AvgPool2d(3, stride=stride, padding=1)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        residual = shuffled(self.relu1(self.bn1(self.conv1(x))), groups=self.groups)
        residual = self.relu2(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return self.relu3(residual + x if self.pooled is None else torch.cat([residual, self.pooled(x)], 1))


class ShuffleV1(nn.Sequential):
    """ShuffleNet with three groups for small images.

    Initial weights: torch's own throughout, as the benchmark sets none.
    """

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(channels, STEM, 1)
        self.relu = nn.ReLU()
        self.layer1 = stage(GroupedBlock, STEM, 240, blocks=4, stride=2)
        self.layer2 = stage(GroupedBlock, 240, 480, blocks=8, stride=2)
        self.layer3 = stage(GroupedBlock, 480, 960, blocks=4, stride=2)
        self.pool = global_pool()
        self.linear = nn.Linear(960, classes)


class Join(nn.Module):
    """Activate the second of two branches and shuffle the two; its input is the block's value before activation."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, branches: Tensor) -> Tensor:
        """Map ``(batch, 2 c, h, w)``, two concatenated branches, to the same shape, interleaved."""
        first, second = branches.chunk(2, 1)
        return torch.stack([first, self.relu(second)], 2).flatten(1, 2)


class SplitBlock(nn.Module):
    """Half of the channels pass unchanged; the others go through 1x1, 3x3 per channel, 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = conv_bn(half, half, 1)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = conv_bn(half, half, 3, groups=half)
        self.conv3, self.bn3 = conv_bn(half, half, 1)
        self.join = Join()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, width, h, w)`` to the same shape."""
        identity, branch = x.chunk(2, 1)
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(branch)))))
        return self.join(torch.cat([identity, self.bn3(self.conv3(branch))], 1))


class DownBlock(nn.Module):
    """Two branches of the whole input at stride 2: 3x3 per channel and 1x1; and 1x1, 3x3 per channel and 1x1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1, self.bn1 = conv_bn(inputs, inputs, 3, stride=2, groups=inputs)
        self.conv2, self.bn2 = conv_bn(inputs, half, 1)
        self.relu2 = nn.ReLU()
        self.conv3, self.bn3 = conv_bn(inputs, half, 1)
        self.relu3 = nn.ReLU()
        self.conv4, self.bn4 = conv_bn(half, half, 3, stride=2, groups=half)
        self.conv5, self.bn5 = conv_bn(half, half, 1)
        self.join = Join()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h / 2, w / 2)``."""
        left = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(self.relu3(self.bn3(self.conv3(x)))))
        return self.join(torch.cat([left, self.bn5(self.conv5(right))], 1))


class ShuffleV2(nn.Sequential):
    """ShuffleNet V2 at full width for small images.

    Initial weights: torch's own throughout, as the benchmark sets none.
    """

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(channels, STEM, 1)
        self.relu = nn.ReLU()
        self.layer1 = _stage_v2(STEM, 116, blocks=4)
        self.layer2 = _stage_v2(116, 232, blocks=8)
        self.layer3 = _stage_v2(232, 464, blocks=4)
        self.conv2, self.bn2 = conv_bn(464, EMBEDDING, 1)
        self.relu2 = nn.ReLU()
        self.pool = global_pool()
        self.linear = nn.Linear(EMBEDDING, classes)


def _stage_v2(inputs: int, outputs: int, *, blocks: int) -> nn.Sequential:
    return nn.Sequential(DownBlock(inputs, outputs), *(SplitBlock(outputs) for _ in range(blocks - 1)))


ENTRIES = tuple(
    Entry(
        name=build.__name__,
        build=build,
        parameters=parameters,
        stages=("relu", "layer1", "layer2", "layer3", "pool"),
        stage_inputs=("relu", *(input_of(f"{end}.{last}") for end in ("layer1.3", "layer2.7", "layer3.3")), "pool"),
        head="linear",
        paper=paper,
    )
    for build, parameters, last, paper in (
        (ShuffleV1, 949_258, "relu3", PAPER_V1),
        (ShuffleV2, 1_355_528, "join", PAPER_V2),
    )
)
