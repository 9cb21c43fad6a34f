"""A student and its data as what an export is made of."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage import data
from tutelage.adapters import inputs_for, takes_keywords
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.exports.source import Source
from tutelage.models import Card, Classifier
from tutelage.models.entrance import entrance
from tutelage.models.exported import Exported
from tutelage.models.lora import merged
from tutelage.runs.manifest import without_paths
from tutelage.types import PADDING, UNLABELLED
from tutelage.version import __version__

SAMPLES = 256
"""Test samples that a file is verified on, unless others are asked for."""
CALIBRATION = 256
"""Training samples by which the ranges of an 8-bit file's activations are measured."""
AT_ONCE = 64
"""Samples that are read at once."""


def source_of(
    classifier: Classifier,
    splits: data.Splits,
    *,
    name: str,
    folder: str | None = None,
    samples: int = SAMPLES,
    int8: bool = False,
) -> Source:
    """Return a student and some of its test set as what a file is made of; the classifier is copied.

    Args:
        classifier: student.
        splits: data that it reads.
        name: name of the run, or of the network.
        folder: folder of the run.
        samples: number of test samples, evenly spaced over the test set.
        int8: whether the file is to compute in 8-bit integers, for which training samples are read too.

    Raises:
        ValueError: the network is a graph already or reads several tensors, or there is nothing to verify it on.
    """
    if samples < 1:
        raise InvalidValueError("samples", "at least 1 test sample", samples, "type --samples 256")
    if any(isinstance(module, Exported) for module in classifier.modules()):
        expected, instead = "a network of modules", "name the run, or the network, that the file is of"
        raise InvalidValueError("model", expected, f"{classifier.card.name}, a graph in a file", instead)
    if takes_keywords(classifier.network):
        expected = "a network that reads one tensor, as the file's only input is one"
        instead = "wrap it in a module that does, and hand that in"
        raise InvalidValueError("model", expected, f"{classifier.card.name}, which takes keywords", instead)
    classifier = copy.deepcopy(classifier).cpu().float().eval()
    if classifier.adapters is not None:
        classifier.network, classifier.adapters = merged(classifier.network).eval(), None
    classifier.requires_grad_(False)
    try:
        inputs, labels = _read(classifier, splits.test, samples)
        calibration = _read(classifier, splits.train, CALIBRATION)[0] if int8 else None
    finally:
        splits.close()
    if len(inputs) == 0:
        expected, got = "a test set with samples that can be read", f"none in {splits.source}"
        raise RecipeError("data.source", expected, got, "name other data: data.source=...")
    # The file takes images of the network's own size.
    classifier.resizes = False
    card = classifier.card
    names = card.class_names or (splits.class_names if len(splits.class_names) == card.classes else ())
    classifier.card = card = replace(card, class_names=names or None)
    if splits.outputs != card.classes or labels.shape[1:] != _positions(card, inputs):
        labels = None
    text = classifier.call and classifier.call.text
    return Source(
        classifier=classifier,
        inputs=inputs,
        class_names=tuple(names),
        metadata=_metadata(card, inputs, name),
        folder=folder,
        labels=labels,
        files=text.tokenizer.files() if text else {},
        int8=int8,
        calibration=calibration,
    )


def _positions(card: Card, inputs: Tensor) -> tuple[int, ...]:
    """Return the shape of what a sample has labels for."""
    if card.task == "pixels":
        return tuple(inputs.shape[2:])
    if card.task == "labels":
        return (card.classes,)
    return tuple(inputs.shape[1:]) if card.per_token else ()


def _read(classifier: Classifier, split: data.Split, most: int) -> tuple[Tensor, Any]:
    """Return samples as the network reads them, and the labels of their positions that count."""
    rows, targets = [], []
    with torch.no_grad():
        for read, inputs in replace(split, workers=0).stream(_parts(split.evenly(most))):
            labels, counted = split.targets(torch.from_numpy(read), inputs)
            view = inputs_for(classifier, inputs, "student").cpu()
            rows.append(entrance(view, classifier.card) if classifier.resizes else view)
            targets.append(labels if counted is None else labels.masked_fill(~counted, UNLABELLED))
    of_text = classifier.card.max_tokens is not None
    return _joined(rows, PADDING if of_text else None), _joined(targets, UNLABELLED if of_text else None)


def _parts(index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.array_split(index, -(-len(index) // AT_ONCE)) if len(index) else []


def _joined(parts: list[Tensor], fill: int | None) -> Tensor:
    """Join batches; those of texts are filled up to the longest."""
    if not parts:
        return torch.empty(0)
    if fill is not None and parts[0].ndim == 2:
        width = max(part.shape[1] for part in parts)
        parts = [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts]
    return torch.cat(parts)


def _metadata(card: Card, inputs: Tensor, name: str) -> dict[str, Any]:
    """Return what a file says of itself; absolute paths are reduced to their last component."""
    preprocessing: Mapping[str, Any] = {"input": "as the data set yields it"}
    if card.max_tokens is not None:
        preprocessing = {"input": "token ids, int64", "max_tokens": card.max_tokens, "behind_a_text": PADDING}
    elif inputs.ndim == 4:
        preprocessing = {
            "input": "images, float32, (batch, channels, height, width), values in [0, 1]",
            "channels": card.channels,
            "size": list(inputs.shape[2:]),
            "margin": card.margin,
            "interpolation": card.interpolation,
            "divisor": card.divisor,
            "normalisation": "inside the network",
        }
    described = {
        "name": name,
        "model": card.name,
        "task": card.task,
        "class_names": list(card.class_names or ()),
        "preprocessing": preprocessing,
        "card": card.to_json(),
        "version": __version__,
    }
    return dict(json.loads(json.dumps(without_paths(described))))
