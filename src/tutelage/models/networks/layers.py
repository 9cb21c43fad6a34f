"""Shared parts of the benchmark's networks: table entries, initial weights, pooling, and stages of blocks.

A network is the sequence of its children and maps normalised images ``(batch, channels, height, width)`` to logits
``(batch, classes)``; the numbers of channels and classes are arguments. The pooling is global, so images may have any
size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

from torch import nn

from tutelage.errors import InvalidValueError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One network of a table."""

    name: str  # name without the source's prefix
    build: Callable[..., nn.Module]  # maker with random weights; called with ``classes=`` and ``channels=``
    parameters: int  # number of parameters at 100 classes and 3 channels
    stages: tuple[str, ...]  # stages' names, after their activation, and last the pooled embedding; see `Card`
    # the same before their activation. The benchmark's first feature is activated on both lists.
    stage_inputs: tuple[str, ...]
    head: str  # name of the linear layer that gives the logits
    paper: str  # reference that describes it


def table(*families: Iterable[Entry]) -> Mapping[str, Entry]:
    """Merge families into one table, in order; two entries of the same name are a ValueError."""
    merged: dict[str, Entry] = {}
    for entry in chain.from_iterable(families):
        if entry.name in merged:
            twice = f"{entry.name!r} twice, of {merged[entry.name].paper} and of {entry.paper}"
            raise InvalidValueError("entries", "each name once", twice, "rename one of them")
        merged[entry.name] = entry
    return MappingProxyType(merged)


def he_normal_(network: nn.Module) -> None:
    """Draw the weights of every convolution from ``N(0, 2 / (kernel area * output channels))``; its bias becomes 0.

    For a grouped convolution too, all output channels count, not those of one group.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_head_(head: nn.Linear) -> None:
    """Draw a head's weights from ``N(0, 0.01**2)``; its bias becomes 0."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)


def conv_bn(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a convolution without bias, padded to keep the resolution at stride 1, and its batch normalisation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(outputs)


def global_pool() -> nn.Sequential:
    """Return the mean over all pixels: ``(batch, channels, height, width)`` to ``(batch, channels)``."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def stage(
    block: Callable[..., nn.Module], inputs: int, outputs: int, *, blocks: int, stride: int, **options: int
) -> nn.Sequential:
    """Return a sequence of this many blocks, of which the first changes the channels and has the stride."""
    first = block(inputs, outputs, stride=stride, **options)
    return nn.Sequential(first, *(block(outputs, outputs, stride=1, **options) for _ in range(blocks - 1)))
