"""What an export is made of."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.models import Classifier
from tutelage.models.names import is_own_module


@dataclass(frozen=True, kw_only=True)
class Source:
    """A student and what goes into its file besides the weights.

    Attributes:
        classifier: student, in evaluation mode, float32, on the CPU, without adapters beside its layers.
        inputs: some of the test set as the student reads them, ``(samples, ...)``: images float32 in [0, 1] of its own
            size, or token ids int64 with `PADDING` behind a text.
        class_names: name of each of its classes; empty where the classes are tokens.
        metadata: JSON value that goes into the file: ``name``, ``class_names``, ``preprocessing`` (how an image or a
            text becomes an input), ``card``, ``version``.
        folder: folder of the run; ``None`` for a named network.
        labels: classes of the inputs, ``(samples, *positions)`` int64, -100 where none counts; ``None`` if unknown.
        files: content of the tokenizer's files by name; empty for a network of images.
        int8: whether the file is to compute in 8-bit integers.
        calibration: training inputs, not augmented, by which the ranges of such a file's activations are measured.
    """

    classifier: Classifier
    inputs: Tensor
    class_names: tuple[str, ...]
    metadata: Mapping[str, Any]
    folder: str | None = None
    labels: Tensor | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    int8: bool = False
    calibration: Tensor | None = None

    @property
    def of_text(self) -> bool:
        """Whether the inputs are token ids."""
        return self.classifier.card.max_tokens is not None

    @property
    def input_name(self) -> str:
        """What the input of a graph is called: ``images``, ``input_ids``, or ``inputs`` for anything else."""
        return "input_ids" if self.of_text else "images" if self.inputs.ndim == 4 else "inputs"

    def emptied(self) -> nn.Module | None:
        """Return a copy of a module of the user's own without its weights; ``None`` where a name builds the network."""
        if not is_own_module(self.classifier.card.name):
            return None
        network = copy.deepcopy(self.classifier.network)
        for tensor in network.state_dict().values():
            tensor.zero_()
        return network

    @cached_property
    def graph(self) -> Graph:
        """What a file computes."""
        return Graph(self.classifier).eval()

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Return what a file is to answer, ``(batch, *positions, classes)``, of labels ``(batch, labels)``."""
        logits: Tensor = self.graph(inputs)
        return logits


class Graph(nn.Module):
    """What a file computes: normalisation, network and logits; of labels the output for yes alone, ``(batch, labels)``.

    Args:
        classifier: student.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits ``(batch, *positions, classes)``."""
        logits: Tensor = self.classifier(inputs)
        return logits[..., 1] if self.classifier.card.task == "labels" else logits
