"""The weights in one file whose header has all that rebuilds the network: card, configuration, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from tutelage import models
from tutelage.errors import InvalidValueError
from tutelage.exports.source import Graph, Source
from tutelage.models import Ensemble

KEY = "tutelage"
"""Key of the metadata in the header."""


def write(source: Source, to: Path) -> None:
    """Write a file that `tutelage.load` and, as weights, any reader of safetensors reads.

    Raises:
        ValueError: the student is several networks.
    """
    if isinstance(source.classifier, Ensemble):
        got, instead = source.classifier.card.name, "export each of its members, or type --to onnx or --to torch-export"
        raise InvalidValueError("to", "one network, whose name or class rebuilds it", got, instead)
    to.write_bytes(models.pack(source.classifier, {KEY: json.dumps(source.metadata, ensure_ascii=False)}))


def reopen(to: Path, network: nn.Module | None = None) -> Callable[[Tensor], Tensor]:
    """Load a file that was just written: its code is trusted.

    Args:
        to: file.
        network: module of the user's own that gets the weights.
    """
    loaded = models.create(str(to), trust_code=True) if network is None else models.restored(to, network)
    return Graph(loaded).eval()
