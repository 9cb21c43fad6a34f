"""A classifier's last layer: which one it is, and a fresh one for another number of classes."""

from __future__ import annotations

from torch import Tensor, nn


def find(network: nn.Module, *, classes: int | None = None) -> str | None:
    """Name the head: the last linear layer, or 1x1 convolution, that gives ``classes`` values.

    Args:
        network: any module; for one of timm's, its own answer is taken.
        classes: how many values the head gives; none for the last linear layer of any size.

    Returns:
        The submodule's name, or none if there is no such layer.
    """
    own = getattr(network, "get_classifier", None)
    if callable(own):
        head = own()
        head = head[0] if isinstance(head, tuple | list) else head  # distilled transformers have two
        return next((name for name, module in network.named_modules() if module is head and name), None)
    names = [name for name, module in network.named_modules() if _gives(module, classes)]
    return names[-1] if names else None


def size(module: nn.Module) -> int | None:
    """Return how many values a layer gives, or none if it is neither linear nor a convolution."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def stored(state: dict[str, Tensor], network: nn.Module, *, classes: int) -> int | None:
    """Return how many classes a checkpoint's head has, or none if it lacks the head that the network has."""
    head = find(network, classes=classes)
    weight = None if head is None else state.get(f"{head}.weight")
    return None if weight is None or weight.dim() < 2 else weight.shape[0]


def replace(network: nn.Module, *, old: int, new: int) -> None:
    """Put a freshly initialised head for ``new`` classes in the place of one for ``old``.

    Raises:
        ValueError: if no head is found.
    """
    own = getattr(network, "reset_classifier", None)
    if callable(own):
        own(new)
        return
    name = find(network, classes=old)
    if name is None:
        raise ValueError(
            f"classes: expected {old}, as the network has and as no linear head was found to replace, got {new}; "
            f"type classes={old}, or change the head in a function of your own (file:path.py:function)"
        )
    parent, _, child = name.rpartition(".")
    head = network.get_submodule(name)
    if isinstance(head, nn.Linear):
        fresh: nn.Module = nn.Linear(head.in_features, new, bias=head.bias is not None)
    else:
        assert isinstance(head, nn.Conv2d)
        fresh = nn.Conv2d(head.in_channels, new, 1, bias=head.bias is not None)
    setattr(network.get_submodule(parent), child, fresh)


def _gives(module: nn.Module, classes: int | None) -> bool:
    if isinstance(module, nn.Linear):
        return classes is None or module.out_features == classes
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels == classes
