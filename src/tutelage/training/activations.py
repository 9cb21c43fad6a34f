"""Activation checkpointing: what is inside a network's blocks is computed again in the backward pass, and not kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tutelage.errors import InvalidValueError
from tutelage.submodules import repeated_blocks, unwrapped
from tutelage.training.buffers import SavedBuffers


def checkpointed_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network that are computed again.

    Raises:
        ValueError: if it has none.
    """
    if blocks := repeated_blocks(network):
        return blocks
    containers = "nn.Sequential, nn.ModuleList or nn.ModuleDict"
    expected = f"a student made of blocks: modules with submodules, other than {containers}, in one of these"
    instead = "type checkpoint_activations=false"
    raise InvalidValueError("checkpoint_activations", expected, type(unwrapped(network)).__name__, instead)


@contextmanager
def recomputing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Enter this for a forward pass: for its backward pass, the blocks keep nothing but their inputs.

    Names, hooks and features are those of the blocks as they are. The backward pass computes a block from the
    generators and buffers that it had, so it draws the same dropout, and leaves both as they were: statistics such as
    batch norm's count a batch once.
    """
    own = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.__dict__["forward"] = partial(_checkpointed, block, block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.__dict__["forward"]
            else:
                block.__dict__["forward"] = forward


def _checkpointed(block: nn.Module, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    contexts = partial(_contexts, block)
    return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, context_fn=contexts)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a block's forward pass, which begins now, and of its recomputation."""
    buffers, generators = SavedBuffers(block), (random.getstate(), np.random.get_state())
    buffers.save()
    return nullcontext(), _recomputation(block, buffers, *generators)


@contextmanager
def _recomputation(block: nn.Module, buffers: SavedBuffers, python: Any, numpy: Any) -> Iterator[None]:
    """Have a block's buffers and the host's generators as they were, then as they are; torch sees to its own."""
    now, generators = SavedBuffers(block), (random.getstate(), np.random.get_state())
    now.save()
    try:
        buffers.restore()
        random.setstate(python)
        np.random.set_state(numpy)
        yield
    finally:
        now.restore()
        random.setstate(generators[0])
        np.random.set_state(generators[1])
