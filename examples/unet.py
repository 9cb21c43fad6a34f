"""A small U-Net, with a function for a teacher and one for a student: ``file:examples/unet.py:student``."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """Convolutions at full, half and quarter resolution, and back.

    Source: Ronneberger, Fischer and Brox, "U-Net", arXiv 1505.04597, with batch norms and a third of its depth.

    Args:
        classes: number of classes.
        channels: number of channels of the images.
        width: number of channels at full resolution.
    """

    def __init__(self, classes: int, channels: int, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(_block(i, o) for i, o in zip([channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(_block(i + o, i) for i, o in pairwise(widths))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, classes, height, width)``."""
        x, kept = images, []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for block, beside in zip(reversed(self.up), reversed(kept[:-1]), strict=True):
            x = block(torch.cat([beside, F.interpolate(x, beside.shape[-2:])], 1))
        return self.head(x)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def teacher(classes: int, channels: int) -> nn.Module:
    """Return a network of 266,000 parameters."""
    return UNet(classes, channels, 24)


def student(classes: int, channels: int) -> nn.Module:
    """Return a network of 47,000 parameters."""
    return UNet(classes, channels, 10)
