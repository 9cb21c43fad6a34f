"""The layers of a network, and the share of the learning rate that each has under a layer decay.

Layer ``k`` of the layers 0 to ``L`` has the rate times ``decay ** (L - k)``; the head is layer ``L``, as in BEiT (Bao
et al., ICLR 2022, arXiv 2106.08254). What a layer is, the first of these says that a network has:

- a method ``group_matcher``, as timm's networks have it: its groups, as ``timm.optim`` reads them;
- repeated blocks (`submodules.repeated_blocks`), in their order: a layer each. What is registered before them is layer
  0, what is between two of them belongs to the one before, and what is behind them is layer ``L``;
- else each module with a weight of two axes or more begins a layer, to which the norms behind it belong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from tutelage.settings.fit import FitSettings
from tutelage.submodules import find_head, repeated_blocks, unwrapped
from tutelage.training.library_optimizers import grouped


def layers_of(student: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter of a network, by the name that it has there; the head's is the largest."""
    network = unwrapped(student)
    matcher = getattr(network, "group_matcher", None)
    if callable(matcher):
        return grouped(network, matcher(coarse=False))
    blocks = repeated_blocks(network)
    numbers = _by_block(network, blocks) if blocks else _by_weight(network)
    head = find_head(network)
    if head is not None and head.path:
        last = max(numbers.values())
        numbers |= {name: last for name in numbers if name.startswith(f"{head.path}.")}
    return numbers


def _by_block(network: nn.Module, blocks: list[nn.Module]) -> dict[str, int]:
    inside = {id(p): k for k, block in enumerate(blocks, 1) for p in block.parameters()}
    numbers: dict[str, int] = {}
    number, left = 0, set(inside.values())
    for name, parameter in network.named_parameters():
        if (block := inside.get(id(parameter))) is not None:
            number = block
            left.discard(block)
        elif number and not left:
            number = len(blocks) + 1
        numbers[name] = number
    return numbers


def _by_weight(network: nn.Module) -> dict[str, int]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    numbers: dict[str, int] = {}
    number = -1
    for module in network.modules():
        own = [p for p in module.parameters(recurse=False) if names[id(p)] not in numbers]
        number += any(p.ndim > 1 for p in own)
        numbers |= {names[id(p)]: max(number, 0) for p in own}
    return numbers


class LayerRates(NamedTuple):
    """What a layer decay does to a network."""

    layers: int
    smallest_scale: float


def rates(student: nn.Module, fits: Iterable[FitSettings]) -> LayerRates | None:
    """Return how many layers a network has, and the smallest share of the learning rate in any of its fits.

    ``None`` if no fit has a layer decay.
    """
    decays = [settings.optimizer.layer_decay for settings in fits if settings.optimizer.layer_decay]
    if not decays:
        return None
    count = max(layers_of(student).values(), default=0) + 1
    return LayerRates(count, min(decays) ** (count - 1))


def scales(module: nn.Module, decay: float | None) -> dict[int, float]:
    """Return the share of the learning rate of each parameter of a module's student, by its id; empty if all have 1."""
    if decay in (None, 1):
        return {}
    student = getattr(module, "student", module)
    numbers = layers_of(student)
    last = max(numbers.values(), default=0)
    parameters = dict(unwrapped(student).named_parameters())
    return {id(parameters[name]): decay ** (last - number) for name, number in numbers.items()}
