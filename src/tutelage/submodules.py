"""Submodules of a network: how a tap names one, which is the head, the mode of each, and what is frozen.

A *tap* is the path of a submodule, such as ``layer3``, for its output, or that path and ``:input``, such as
``fc:input``, for its first input. A *pattern* has ``*`` in place of layers' numbers, ``encoder.layer.*``, and is the
end of their paths, or all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.jit import ScriptModule

INPUT = ":input"
LAYER = "*"
_TAP = re.compile(rf"[^\s:]+({INPUT})?")


def is_tap(text: str) -> bool:
    """Return whether a string is a path, or a path and ``:input``; a path has neither spaces nor colons."""
    return _TAP.fullmatch(text) is not None


def split_tap(tap: str) -> tuple[str, bool]:
    """Return a tap's path, and whether it takes the submodule's first input instead of its output."""
    return tap.removesuffix(INPUT), tap.endswith(INPUT)


def input_of(path: str) -> str:
    """Return the tap of a submodule's first input."""
    return f"{path}{INPUT}"


def layers_of(pattern: str, taps: Iterable[str]) -> dict[str, list[str]]:
    """Return the taps that a pattern stands for, by the whole pattern of their paths, in the order of their numbers.

    There are several whole patterns where the typed one is the end of several, and none where it is of no tap. If it is
    itself whole, the others do not count. A tap that is no pattern stands for itself.
    """
    if LAYER not in pattern:
        return {tap: [tap] for tap in taps if tap == pattern}
    number = re.escape(pattern).replace(re.escape(LAYER), r"(\d+)")
    ending = re.compile(rf"(?P<before>(?:.*\.)?){number}")
    layers: dict[str, dict[tuple[int, ...], str]] = {}
    for tap in taps:
        if match := ending.fullmatch(tap):
            before, *numbers = match.groups()
            layers.setdefault(f"{before}{pattern}", {})[tuple(map(int, numbers))] = tap
    if pattern in layers:
        layers = {pattern: layers[pattern]}
    return {whole: [taps[key] for key in sorted(taps)] for whole, taps in layers.items()}


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside a module that has a card; any other module unchanged."""
    inside: nn.Module = network if getattr(network, "card", None) is None else getattr(network, "network", network)
    return inside


def frozen_names(network: nn.Module) -> frozenset[str]:
    """Return what of the network inside a module that has a card is frozen and not saved, by its names there."""
    return frozenset() if unwrapped(network) is network else frozenset(getattr(network, "frozen", ()))


def trained_state(network: nn.Module) -> dict[str, Any]:
    """Return the state of the network inside a module that has a card, without what is frozen."""
    frozen = frozen_names(network)
    return {name: value for name, value in unwrapped(network).state_dict().items() if name not in frozen}


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's parameters, or else of its buffers; the CPU if it has neither."""
    return next((t.device for t in (*network.parameters(), *network.buffers())), torch.device("cpu"))


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode; afterwards every module of it has the mode that it had."""
    with restored_modes(network):
        network.eval()
        yield


@contextmanager
def restored_modes(network: nn.Module) -> Iterator[None]:
    """Give every module of a network the mode back that it has now: some may be in another mode than the whole."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        # A module's own train() may do more than set the mode, such as merge weights; it is called where that was.
        if any(module.training != mode for module, mode in modes):
            network.train(modes[0][1])
        for module, mode in modes:
            module.training = mode


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks that a network is made of, such as residual blocks or a transformer's layers; maybe none.

    A block is a child of an `nn.Sequential`, `nn.ModuleList` or `nn.ModuleDict` that has submodules, is no such
    container itself, and holds no further block.
    """
    candidates = {
        child
        for module in network.modules()
        if isinstance(module, _CONTAINERS)
        for child in module.children()
        if not isinstance(child, (*_CONTAINERS, ScriptModule)) and any(True for _ in child.children())
    }
    blocks = (module for module in network.modules() if module in candidates)
    return [block for block in blocks if len(candidates.intersection(block.modules())) == 1]


class Head(NamedTuple):
    """The layer that gives a network's logits."""

    path: str  # path of the submodule; empty if the layer is the whole network
    layer: nn.Module
    candidates: int = 1  # number of layers of which it is the last; 1 if a card or the network itself names it
    joint: bool = False  # whether the logits also use a second head's output

    @property
    def classes(self) -> int | None:
        """The number of the layer's outputs; ``None`` if it is neither linear nor a 1x1 convolution."""
        return _values(self.layer)


def find_head(network: nn.Module, *, classes: int | None = None) -> Head | None:
    """Find the head by the first of these that the network has.

    - a card: the layer that it names, or else the one whose input is its embedding; if it names neither, only the
      network itself, which has no name, can be the head;
    - timm's ``get_classifier``: its result, or the first of several;
    - else, in the order of the modules' registration, the last linear layer, or with ``classes`` the last linear layer
      or 1x1 convolution with that many outputs.

    Args:
        network: any module; it is neither called nor changed.
        classes: number of the head's outputs; ``None`` if unknown.

    Returns:
        The head, of whatever kind a card or timm names; ``None`` if there is none.
    """
    paths = {module: path for path, module in network.named_modules()}
    card = getattr(network, "card", None)
    if card is not None:
        embedding, is_read = split_tap(card.embedding or "")
        named = dict(unwrapped(network).named_modules()).get(card.head or (embedding if is_read else ""))
        return None if named is None else Head(paths[named], named)
    get_classifier = getattr(network, "get_classifier", None)
    if callable(get_classifier):
        classifier = get_classifier()
        several = isinstance(classifier, tuple | list)
        layer = classifier[0] if several else classifier
        # The outputs of a distilled transformer's two heads are averaged. VOLO's second has this name, and is added.
        joint = several or getattr(network, "aux_head", None) is not None
        return Head(paths[layer], layer, joint=joint) if paths.get(layer) else None
    layers = [m for m in paths if (isinstance(m, nn.Linear) if classes is None else _values(m) == classes)]
    return Head(paths[layers[-1]], layers[-1], candidates=len(layers)) if layers else None


def _values(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) else None
