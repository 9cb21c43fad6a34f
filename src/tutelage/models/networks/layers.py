"""What several of the benchmark's networks have in common: their first weights and their pooling."""

from __future__ import annotations

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
