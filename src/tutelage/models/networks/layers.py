"""What several of the benchmark's networks share: first weights, pooling, and stages of residual blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def he_normal_(network: nn.Module) -> None:
    """Draw the weights of every convolution from ``N(0, 2 / (kernel area * output channels))``; its bias becomes 0.

    A grouped convolution counts all its output channels too, not those of one group.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def global_pool() -> nn.Sequential:
    """Return the mean over all pixels: ``(batch, channels, height, width)`` to ``(batch, channels)``."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def stage(
    block: Callable[..., nn.Module], inputs: int, outputs: int, *, blocks: int, stride: int, **options: Any
) -> nn.Sequential:
    """Return so many blocks in turn, of which the first changes the channels and has the stride."""
    first = block(inputs, outputs, stride=stride, **options)
    return nn.Sequential(first, *(block(outputs, outputs, stride=1, **options) for _ in range(blocks - 1)))
