"""A network's head and stages, read from its modules alone, without a forward pass.

What is read:

- the head: if `find_head` finds a linear layer with as many outputs as there are classes;
- the embedding: the head's input;
- the stages, from the first of these that the network has: timm's ``feature_info``; children ``layer1``, ``layer2``,
  ... or ``stage2``, ``stage3``, ... that are sequences, after a stem's ``relu`` if there is one; a sequence
  ``features``, cut where the resolution changes; a sequence of blocks of tokens ``encoder.layers``. Any other network,
  or one whose maps have their channels last, has no stages;
- a stage's value before its activation: if its last module is an activation, or a block in `LAST`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from tutelage.errors import InvalidValueError
from tutelage.submodules import find_head, input_of

STAGE = re.compile(r"(layer|stage)\d+")
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish)
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
LAST = {
    "torchvision.models.resnet.BasicBlock": "relu",
    "torchvision.models.resnet.Bottleneck": "relu",
    "timm.models.resnet.BasicBlock": "act2",
    "timm.models.resnet.Bottleneck": "act3",
}
"""Blocks whose output is that activation's; if a block uses it several times, its last use is the output."""


class Structure(NamedTuple):
    """The card's fields that name submodules; see `Card`."""

    stages: tuple[str, ...] = ()
    stage_inputs: tuple[str, ...] = ()
    embedding: str | None = None
    head: str | None = None


def read(network: nn.Module, *, classes: int) -> Structure:
    """Read a network's structure.

    Args:
        network: any module; it is neither called nor changed.
        classes: number of outputs of its head.

    Returns:
        The submodules; none at all if no head is found, as the last stage is then unknown.
    """
    found = find_head(network, classes=classes)
    if found is None or found.joint or not isinstance(found.layer, nn.Linear) or found.classes != classes:
        return Structure()
    if not (head := found.path):  # the whole network is one layer, which has no name
        return Structure()
    modules = {name: module for name, module in network.named_modules() if name}  # some name the whole as a stage
    stages = [name for name in _stages(network) if name in modules and name != head]
    stage_inputs = [_before(name, modules[name]) for name in stages]
    embedding = input_of(head)
    return Structure((*stages, embedding), (*stage_inputs, embedding), embedding, head)


def _stages(network: nn.Module) -> Iterator[str]:
    info = getattr(network, "feature_info", None)
    if info is not None:
        if getattr(network, "output_fmt", None) != "NHWC":
            yield from dict.fromkeys(str(stage["module"]) for stage in info)
        return
    children = dict(network.named_children())
    numbered = [n for n, child in children.items() if STAGE.fullmatch(n) and isinstance(child, nn.Sequential)]
    if numbered:
        yield from (["relu"] if isinstance(children.get("relu"), ACTIVATIONS) else []) + numbered
        return
    features = children.get("features")
    if isinstance(features, nn.Sequential):
        yield from (f"features.{name}" for name in _cut(features))
        return
    encoder = children.get("encoder")
    layers = getattr(encoder, "layers", None)
    if isinstance(layers, nn.Sequential):
        yield from (f"encoder.layers.{name}" for name, _ in layers.named_children())


def _cut(sequence: nn.Sequential) -> list[str]:
    """Name the last child at each resolution; none if only the first child changes it."""
    children = list(sequence.named_children())
    # Trailing pooling is the head's, and a later module may write over a trailing normalisation's output.
    while children and isinstance(children[-1][1], (*POOLS, nn.BatchNorm2d)):
        children.pop()
    pairs = zip(children, [*children[1:], None], strict=True)
    ends = [name for (name, _), following in pairs if following is None or _reduces(following[1])]
    return ends if len(ends) > 1 else []


def _reduces(module: nn.Module) -> bool:
    return any(
        isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and layer.stride not in (1, (1, 1))
        for layer in module.modules()
    )


def _before(name: str, module: nn.Module) -> str:
    if isinstance(module, ACTIVATIONS):
        return input_of(name)
    if isinstance(module, nn.Sequential) and len(module):
        child, block = list(module.named_children())[-1]
        kind = type(block)
        if last := LAST.get(f"{kind.__module__}.{kind.__qualname__}"):
            return input_of(f"{name}.{child}.{last}")
    return name


def head_classes(network: nn.Module) -> int | None:
    """Return the number of outputs of a network's last linear layer, or ``None`` if it has none."""
    head = find_head(network)
    return None if head is None else head.classes


def stored_classes(state: dict[str, Tensor], network: nn.Module, *, classes: int) -> int | None:
    """Return the number of classes of a checkpoint's head, or ``None`` if it lacks the network's head."""
    head = find_head(network, classes=classes)
    weight = None if head is None else state.get(f"{head.path}.weight")
    return None if weight is None or weight.dim() < 2 else weight.shape[0]


def head_names(network: nn.Module, *, classes: int) -> list[str]:
    """Return the names of the head's tensors in a network's state; none if no head is found."""
    head = find_head(network, classes=classes)
    return [] if head is None or not head.path else [f"{head.path}.{name}" for name in head.layer.state_dict()]


def replace_head(network: nn.Module, *, old: int, new: int) -> None:
    """Replace the head for ``old`` classes by a freshly initialised one for ``new``.

    Raises:
        ValueError: if no head is found.
    """
    reset = getattr(network, "reset_classifier", None)
    if callable(reset):
        reset(new)
        return
    head = find_head(network, classes=old)
    if head is None or not head.path or not isinstance(head.layer, nn.Linear | nn.Conv2d):
        expected = f"{old}, as the network has and as no linear head was found to replace"
        instead = f"type classes={old}, or change the head in a function of your own (file:path.py:function)"
        raise InvalidValueError("classes", expected, new, instead)
    layer, biased = head.layer, head.layer.bias is not None
    if isinstance(layer, nn.Linear):
        fresh: nn.Module = nn.Linear(layer.in_features, new, bias=biased)
    else:
        fresh = nn.Conv2d(layer.in_channels, new, 1, bias=biased)
    parent, _, child = head.path.rpartition(".")
    setattr(network.get_submodule(parent), child, fresh)
