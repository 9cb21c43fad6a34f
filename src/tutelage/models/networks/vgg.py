"""The VGG networks of the CIFAR-100 distillation benchmark, with the key names of its published checkpoints.

Five stages of 3x3 convolutions with a bias and batch normalisation, and one linear layer instead of VGG's three. A
stage ends before its last activation: ``block3`` gives the values before it, the tap ``relu3`` those after it.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from tutelage.errors import InvalidValueError
from tutelage.models.networks.layers import Entry, global_pool, he_normal_, small_head_

WIDTHS = (64, 128, 256, 512, 512)
HALVINGS = 3
SMALLEST = 2**HALVINGS


class VGG(nn.Sequential):
    """A VGG network for small images, from 8x8 pixels on.

    The first three stages are each followed by 2x2 max pooling, the last two are not: 32x32 images end as 4x4 maps,
    whose mean is the embedding. The number in the name counts VGG's three linear layers, of which only one is here.

    Initial weights: `he_normal_` for convolutions, whose biases are 0, and `small_head_` for the head.

    Args:
        depths: number of convolutions in each of the five stages, which have 64, 128, 256, 512 and 512 channels.

    Differs from: the benchmark's code, which pools after the fourth stage too if images are exactly 64 pixels high.
    """

    def __init__(self, depths: tuple[int, ...], *, classes: int, channels: int) -> None:
        super().__init__()
        for i, (inputs, outputs) in enumerate(pairwise((channels, *WIDTHS))):
            self.add_module(f"block{i}", _stage(inputs, outputs, depth=depths[i]))
            self.add_module(f"relu{i}", nn.ReLU())
            if i < HALVINGS:
                self.add_module(f"maxpool{i}", nn.MaxPool2d(2))
        self.pool = global_pool()
        self.classifier = nn.Linear(WIDTHS[-1], classes)
        he_normal_(self)
        small_head_(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``(batch, channels, height, width)`` to logits ``(batch, classes)``.

        Raises:
            ValueError: if the images have fewer than 8 pixels on a side.
        """
        height, width = x.shape[-2:]
        if min(height, width) < SMALLEST:
            expected = (
                f"images of at least {SMALLEST}x{SMALLEST} pixels for a VGG network, which halves them three times"
            )
            raise InvalidValueError("inputs", expected, f"{height}x{width}", "enlarge them, or take a residual network")
        return super().forward(x)


def _stage(inputs: int, outputs: int, *, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers[:-1])


ENTRIES = tuple(
    Entry(
        name=name,
        build=partial(VGG, depths),
        parameters=parameters,
        stages=("relu0", "relu1", "relu2", "relu3", "relu4", "pool"),
        stage_inputs=("relu0", "block1", "block2", "block3", "block4", "pool"),
        head="classifier",
        paper="Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, "
        "arXiv 1409.1556",
    )
    for name, depths, parameters in (
        ("vgg8", (1, 1, 1, 1, 1), 3_965_028),
        ("vgg11", (1, 1, 2, 2, 2), 9_277_284),
        ("vgg13", (2, 2, 2, 2, 2), 9_462_180),
        ("vgg16", (2, 2, 3, 3, 3), 14_774_436),
        ("vgg19", (2, 2, 4, 4, 4), 20_086_692),
    )
)
