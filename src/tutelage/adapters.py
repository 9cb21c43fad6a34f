"""A user's own batches and networks in the forms that the library takes; nothing is guessed from names or types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.submodules import unwrapped
from tutelage.types import UNLABELLED, Batch, Inputs
from tutelage.views import view_of

Key: TypeAlias = "str | int"
"""Where a value is: the key of a mapping or the name of an attribute, or the position in a tuple."""


class Adapter(nn.Module):
    """A network that is called with keywords, or returns its logits as a field of something else.

    Args:
        network: network of the user's own.
        output: where the logits are in what it returns: ``"logits"`` for a key or an attribute, ``0`` for a position
            in a tuple; ``None`` if it returns the logits.
        inputs: keys of ``batch.inputs`` that it takes as keywords of the same names, or a mapping of its keywords to
            the keys, such as ``{"input_ids": "teacher_input_ids"}``; ``None`` if it takes its view as one argument.

    Example:
        >>> import torch, tutelage
        >>> class Net(torch.nn.Linear):
        ...     def forward(self, x, mask):
        ...         return {"logits": super().forward(x * mask)}
        >>> network = tutelage.Adapter(Net(4, 3), inputs=("x", "mask"), output="logits")
        >>> network({"x": torch.rand(2, 4), "mask": torch.ones(2, 4)}).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, network: nn.Module, *, output: Key | None = None, inputs: Sequence[str] | Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.output = output
        if isinstance(inputs, str):
            inputs = (inputs,)
        keywords = inputs if inputs is None or isinstance(inputs, Mapping) else {key: key for key in inputs}
        self.keywords = None if keywords is None else dict(keywords)

    @property
    def takes_keywords(self) -> bool:
        """Whether it names its keywords."""
        return self.keywords is not None

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the logits.

        Raises:
            TypeError: if what the output names is no tensor.
            ValueError: if the inputs lack a key, or the network's return value lacks the output.
        """
        if self.keywords is None:
            returned = self.network(inputs)
        else:
            returned = self.network(**{name: _entry(inputs, key, "inputs") for name, key in self.keywords.items()})
        logits = returned if self.output is None else _entry(returned, self.output, "output")
        if not isinstance(logits, Tensor):
            instead = 'name its field, for example tutelage.Adapter(network, output="logits")'
            raise InvalidTypeError("output", "logits as one tensor", type(logits).__name__, instead)
        return logits


def inputs_for(network: nn.Module, inputs: Inputs, name: str) -> Any:
    """Return what a network of this name is called with: all inputs, if it names its keys, or its view."""
    return inputs if takes_keywords(unwrapped(network)) else view_of(inputs, name)


def takes_keywords(network: nn.Module) -> bool:
    """Whether a network is an `Adapter` that names its keywords, or an ensemble with such a member."""
    return getattr(network, "takes_keywords", False) is True


def as_batch(
    values: Sequence[Tensor] | Mapping[str, Tensor],
    *,
    inputs: Key | Sequence[str] = 0,
    labels: Key | None = 1,
    index: Key | Tensor | None = None,
    counted: Key | Tensor | None = None,
) -> Batch:
    """Return a batch of a ``DataLoader`` as a `Batch`; tensors are not copied or moved, so move them before.

    Padding takes part in every matching term unless ``counted`` says otherwise: a label of -100 only takes a position
    out of the supervised terms.

    Args:
        values: what the loader yields: a tuple or list, or a mapping.
        inputs: where the inputs are; several keys, as ``("input_ids", "attention_mask")``, become a mapping, whose
            entries an `Adapter` with these ``inputs`` takes as keywords.
        labels: where the labels are: int64 ``(batch, *positions)``, or soft labels; ``None`` if there are none, for
            one position a sample.
        index: indices of the samples in their data set, ``(batch,)`` int64, or where they are. With ``None`` a
            `Distiller` refuses an objective that reads them.
        counted: positions that take part, ``(batch, *positions)``, bool or 0 and 1, or where they are; ``None`` for
            all. Class indices elsewhere become -100.

    Raises:
        TypeError: if a value is no tensor.
        ValueError: if a value is missing, or they differ in the number of samples.

    Example:
        >>> import torch, tutelage
        >>> tutelage.as_batch((torch.rand(2, 4), torch.tensor([0, 2]))).labels
        tensor([0, 2])
    """
    keys: Sequence[Key] = (inputs,) if isinstance(inputs, (str, int)) else inputs
    views = {key: _tensor(values, key, "inputs") for key in keys}
    if not views:
        raise InvalidValueError("inputs", "at least one key", "none", 'for example inputs="input_ids"')
    first = next(iter(views.values()))
    size = len(first)
    targets = first.new_full((size,), UNLABELLED, dtype=torch.int64)
    if labels is not None:
        targets = _tensor(values, labels, "labels")
    mask = None if counted is None else _tensor(values, counted, "counted").bool()
    if mask is not None:
        positions = targets.shape[:-1] if targets.is_floating_point() else targets.shape
        if mask.shape != positions:
            instead = "give one value for each position that has a label"
            raise InvalidValueError("counted", f"shape {tuple(positions)}", tuple(mask.shape), instead)
        if not targets.is_floating_point():
            targets = targets.masked_fill(~mask, UNLABELLED)
    # On the meta device there are no values: whatever would read made-up indices fails.
    where = torch.empty(size, dtype=torch.int64, device="meta")
    if index is not None:
        where = _tensor(values, index, "index")
    for name, tensor in {**views, "labels": targets, "index": where}.items():
        if tensor.dim() == 0 or len(tensor) != size:
            raise InvalidValueError(
                name, f"{size} samples, as the inputs have", tuple(tensor.shape), "give the same samples"
            )
    return Batch(
        where, {str(key): view for key, view in views.items()} if keys is inputs else first, targets, counted=mask
    )


def refuse_unknown_index(batch: Batch) -> None:
    """Refuse a batch whose indices `as_batch` had to leave out, for an objective that reads them."""
    if batch.index.is_meta and not batch.labels.is_meta:  # Of a dry pass without a device all are.
        instead = "let the data set yield (inputs, labels, index) and type tutelage.as_batch(values, index=2)"
        raise InvalidValueError("batch.index", "the samples' indices, which the objective reads", "none", instead)


def _tensor(values: object, key: Key | Tensor, what: str) -> Tensor:
    value = key if isinstance(key, Tensor) else _entry(values, key, what)
    if not isinstance(value, Tensor):
        instead = f"type {what}= with the key or the position of a tensor"
        raise InvalidTypeError(f"{what} {key!r}", "a torch.Tensor", type(value).__name__, instead)
    return value


def _entry(values: object, key: Key, what: str) -> Any:
    """Return what a mapping, a tuple or an object has at a key."""
    if isinstance(values, Mapping):
        if key in values:
            return values[key]
        there = "the keys " + ", ".join(map(repr, values))
    elif isinstance(key, int) and isinstance(values, (tuple, list)):
        if -len(values) <= key < len(values):
            return values[key]
        there = f"{len(values)} values"
    elif isinstance(key, str) and hasattr(values, key):
        return getattr(values, key)
    else:
        there = type(values).__name__
    raise InvalidValueError(what, f"something at {key!r}", there, f'name what is there, as {what}="..." or {what}=0')
