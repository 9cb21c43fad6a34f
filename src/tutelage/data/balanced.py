"""Training epochs in which all classes come equally often, however many samples each has."""

from __future__ import annotations

from dataclasses import replace

from tutelage.data.datasets import Splits
from tutelage.errors import InvalidValueError


def balanced_classes(splits: Splits) -> Splits:
    """Return a data set whose training epochs take samples of all classes equally often: ``data.sampling: balanced``.

    An epoch has as many samples as before, those without a label once each as before. A class's samples are walked
    through in one permutation after the other, over the epochs (`rng.balanced`): a function of the data seed and the
    epoch. A sample that comes twice in an epoch has the same view. Validation and test stay as they are.

    Raises:
        ValueError: if training samples have no class each, or are shuffled in a buffer.

    Example:
        >>> from tutelage.data import balanced_classes, from_datasets
        >>> rows = [{"x": [0.5], "labels": int(k == 7)} for k in range(8)]
        >>> splits = balanced_classes(from_datasets(rows, rows, classes=2, inputs="x"))
        >>> order = splits.train.order(0, 0, batch_size=4)
        >>> splits.train.labels[order].tolist().count(1)
        4
    """
    train, kinds = splits.train, {"labels": "several labels a sample", "pixels": "a class for each pixel"}
    if splits.task in kinds or train.per_position or train.labels.is_floating_point():
        got = kinds.get(splits.task, "labels of tokens" if train.per_position else "soft labels")
        raise InvalidValueError(
            "data.sampling", "natural without one class a sample", got, "type data.sampling=natural"
        )
    if not train.labelled:
        expected, instead = "natural without labels, by which samples are drawn", "type data.sampling=natural"
        raise InvalidValueError("data.sampling", expected, "balanced", instead)
    if train.units is not None and train.shuffle_buffer is not None:
        expected = "natural where shards are read one after the other and shuffled in a buffer"
        instead = "type class_weights=balanced in its place, or data.shuffle_buffer=null to read samples in any order"
        raise InvalidValueError("data.sampling", expected, "balanced", instead)
    beside = splits.beside and replace(splits.beside, train=replace(splits.beside.train, balanced=True))
    return replace(splits, train=replace(train, balanced=True), beside=beside)
