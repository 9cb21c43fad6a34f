"""The views of a batch's samples: one for every network, or one for each by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, overload

from tutelage.errors import InvalidValueError

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.types import Batch, Inputs


def view_of(inputs: Inputs, name: str) -> Tensor:
    """Return the view that a network of this name reads, ``student`` or ``teacher``: the only one, or its own.

    Raises:
        InvalidValueError: if there are several and none has its name.
    """
    if not isinstance(inputs, Mapping):
        return inputs
    if name not in inputs:
        got = f"views named {', '.join(map(repr, inputs))}"
        instead = f"name one so in the data set, or type tutelage.Adapter(network, inputs={tuple(inputs)}) for keywords"
        raise InvalidValueError("inputs", f"a view named {name!r} for the {name}", got, instead)
    return inputs[name]


def views_of(inputs: Inputs) -> list[Tensor]:
    """Return every view, in order."""
    return list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]


def as_views(tensors: Sequence[Tensor], inputs: Inputs) -> Inputs:
    """Return tensors in place of the views of inputs, in the order of `views_of`."""
    return dict(zip(inputs, tensors, strict=True)) if isinstance(inputs, Mapping) else tensors[0]


@overload
def map_views(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor: ...
@overload
def map_views(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs: ...
def map_views(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Apply a function to every view."""
    return {k: function(view) for k, view in inputs.items()} if isinstance(inputs, Mapping) else function(inputs)


def positions_of(batch: Batch, name: str, which: str = "counted") -> Tensor | None:
    """Return which positions count, or are aligned, of the view that a network of this name reads.

    They are those beside the views, as ``teacher_counted``, or else the batch's.
    """
    mask = batch.inputs.get(f"{name}_{which}") if isinstance(batch.inputs, Mapping) else None
    return batch.counted if mask is None else mask


def with_own_inputs(batch: Batch) -> Batch:
    """Return a batch with copies of its inputs, which a network may write into."""
    return batch._replace(inputs=map_views(lambda view: view.clone(), batch.inputs))
