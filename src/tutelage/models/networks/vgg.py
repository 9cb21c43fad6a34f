"""The VGG networks of the CIFAR-100 distillation benchmark, with the key names of its published checkpoints.

Five stages of 3x3 convolutions with a bias and batch normalisation, and one linear layer instead of VGG's three. A
stage ends before its last activation: ``block3`` gives the values before it, the tap ``relu3`` those after it.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.models.networks.entries import Entry
from tutelage.models.networks.layers import global_pool, he_normal_

PAPER = "Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv 1409.1556"
WIDTHS = (64, 128, 256, 512, 512)
SMALLEST = 8


class VGG(nn.Module):
    """A VGG network for small images, from 8x8 pixels on.

    The first three stages are each followed by 2x2 max pooling, the last two are not: 32x32 images end as 4x4 maps,
    whose mean is the embedding. The name's number counts VGG's three linear layers, of which one is here.

    First weights: `he_normal_` for convolutions, ``N(0, 0.01**2)`` for the head, and 0 for every bias.

    Args:
        depths: convolutions in each of the five stages, which have 64, 128, 256, 512 and 512 channels.
        classes: size of the logits.
        channels: input channels.

    Differs from: the benchmark's code, which pools after the fourth stage too where images are exactly 64 pixels high.
    """

    def __init__(self, depths: tuple[int, int, int, int, int], *, classes: int, channels: int) -> None:
        super().__init__()
        self.block0 = _stage(channels, WIDTHS[0], depth=depths[0])
        self.relu0 = nn.ReLU()
        self.block1 = _stage(WIDTHS[0], WIDTHS[1], depth=depths[1])
        self.relu1 = nn.ReLU()
        self.block2 = _stage(WIDTHS[1], WIDTHS[2], depth=depths[2])
        self.relu2 = nn.ReLU()
        self.block3 = _stage(WIDTHS[2], WIDTHS[3], depth=depths[3])
        self.relu3 = nn.ReLU()
        self.block4 = _stage(WIDTHS[3], WIDTHS[4], depth=depths[4])
        self.relu4 = nn.ReLU()
        self.pool = global_pool()
        self.classifier = nn.Linear(WIDTHS[4], classes)
        he_normal_(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``(batch, channels, height, width)`` to logits ``(batch, classes)``.

        Raises:
            ValueError: if the images have fewer than 8 pixels on a side.
        """
        height, width = x.shape[-2:]
        if min(height, width) < SMALLEST:
            raise ValueError(
                f"inputs: expected images of at least {SMALLEST}x{SMALLEST} pixels for a VGG network, which halves "
                f"them three times, got {height}x{width}; enlarge them, or take a residual network"
            )
        x = F.max_pool2d(self.relu0(self.block0(x)), 2)
        x = F.max_pool2d(self.relu1(self.block1(x)), 2)
        x = F.max_pool2d(self.relu2(self.block2(x)), 2)
        x = self.relu3(self.block3(x))
        x = self.relu4(self.block4(x))
        return self.classifier(self.pool(x))


def _stage(inputs: int, outputs: int, *, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers[:-1])


def _entry(name: str, depths: tuple[int, int, int, int, int], parameters: int) -> Entry:
    return Entry(
        name=name,
        build=partial(VGG, depths),
        parameters=parameters,
        stages=("relu0", "relu1", "relu2", "relu3", "relu4", "pool"),
        stage_inputs=("relu0", "block1", "block2", "block3", "block4", "pool"),
        head="classifier",
        paper=PAPER,
    )


ENTRIES = (
    _entry("vgg8", (1, 1, 1, 1, 1), 3_965_028),
    _entry("vgg11", (1, 1, 2, 2, 2), 9_277_284),
    _entry("vgg13", (2, 2, 2, 2, 2), 9_462_180),
    _entry("vgg16", (2, 2, 3, 3, 3), 14_774_436),
    _entry("vgg19", (2, 2, 4, 4, 4), 20_086_692),
)
