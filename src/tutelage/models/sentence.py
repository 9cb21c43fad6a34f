"""A sentence encoder with a linear head: tokens' states are pooled into one vector, which is classified."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1)


def _largest(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask == 0, -torch.inf).amax(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda states, mask: states[:, 0],
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len": lambda states, mask: (states * mask).sum(1) / mask.sum(1).sqrt(),
}
"""Ways to make one vector ``(batch, width)`` of tokens' states ``(batch, tokens, width)``; the mask is 1 for tokens."""
ACTIVATIONS = {kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid)}
"""Activations of a dense layer behind the pooling."""


class Answer(NamedTuple):
    """What the network returns."""

    logits: Tensor


class Pooled(nn.Module):
    """Tokens' states as one vector, by several poolings side by side; ``(batch, poolings * width)``."""

    def __init__(self, poolings: Sequence[str]) -> None:
        super().__init__()
        self.poolings = tuple(poolings)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool states ``(batch, tokens, width)`` where the mask ``(batch, tokens)`` is 1."""
        weights = mask[..., None].to(states.dtype)
        return torch.cat([POOLINGS[name](states, weights) for name in self.poolings], -1)


class UnitLength(nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Divide vectors ``(batch, width)`` by their L2 norm."""
        return F.normalize(vectors, dim=-1)


class SentenceClassifier(nn.Module):
    """``logits = head(behind(pooled(encoder(ids))))``.

    The encoder has the name that its library gives it inside a larger network, such as ``bert``, so that the library
    finds its weights in a file of this network's state.

    Args:
        encoder: network of the transformers library that returns ``last_hidden_state``.
        poolings: names in `POOLINGS`.
        behind: what follows the pooling, in order: ``unit_length``, or a dense layer as a mapping with
            ``in_features``, ``out_features``, ``bias`` and ``activation``, a name in `ACTIVATIONS`.
        classes: number of the head's outputs.
    """

    def __init__(
        self, encoder: Any, *, poolings: Sequence[str], behind: Sequence[str | Mapping[str, Any]], classes: int
    ) -> None:
        super().__init__()
        self._encoder: str = encoder.base_model_prefix
        setattr(self, self._encoder, encoder)
        self.pooling = Pooled(poolings)
        self.behind = nn.Sequential(*(UnitLength() if layer == "unit_length" else _dense(layer) for layer in behind))
        widths = [layer["out_features"] for layer in behind if not isinstance(layer, str)]
        width = widths[-1] if widths else len(self.pooling.poolings) * encoder.config.hidden_size
        self.head = nn.Linear(width, classes)

    @property
    def encoder(self) -> Any:
        """The encoder."""
        return getattr(self, self._encoder)

    @property
    def is_plain(self) -> bool:
        """Whether the head reads one pooling of the encoder's states, and no layer with weights stands between."""
        return len(self.pooling.poolings) == 1 and not any(True for _ in self.behind.parameters())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Answer:
        """Classify texts: ids and mask, both ``(batch, tokens)``; the logits are ``(batch, classes)``."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return Answer(self.head(self.behind(self.pooling(states, attention_mask))))


def _dense(layer: Any) -> nn.Module:
    linear = nn.Linear(layer["in_features"], layer["out_features"], bias=layer["bias"])
    return nn.Sequential(OrderedDict(linear=linear, activation=ACTIVATIONS[layer["activation"]]()))
