"""Tables of networks by name: a family's file lists its entries, one line merges them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from torch import nn


class Builder(Protocol):
    """Makes a network with random weights."""

    def __call__(self, *, classes: int, channels: int) -> nn.Module:
        """Return the network."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One network of a table."""

    name: str  # without the source's prefix
    build: Builder  # makes it
    parameters: int  # their number at 100 classes and 3 channels
    stages: tuple[str, ...]  # places of its stages, after their activation, and last the pooled embedding; see `Card`
    # the same before their activation. The benchmark's first feature is activated on both lists.
    stage_inputs: tuple[str, ...]
    head: str  # name of the linear layer that gives the logits
    paper: str  # what describes it


def table(*families: Iterable[Entry]) -> Mapping[str, Entry]:
    """Merge families into one table, in their order.

    Raises:
        ValueError: if two entries have one name.
    """
    merged: dict[str, Entry] = {}
    for entry in (entry for family in families for entry in family):
        if entry.name in merged:
            raise ValueError(
                f"entries: expected each name once, got {entry.name!r} twice "
                f"({merged[entry.name].paper}; {entry.paper}); rename one of them"
            )
        merged[entry.name] = entry
    return MappingProxyType(merged)
