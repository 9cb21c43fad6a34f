"""Seeded, stratified choices of samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import InvalidValueError
from tutelage.rng import draw
from tutelage.types import UNLABELLED


def stratified(labels: NDArray[np.int64], *, count: int, seed: int, stream: int) -> NDArray[np.int64]:
    """Choose ``count`` of the ``(samples,)`` int64 labels with each class in proportion; ``stream`` is one of `rng`'s.

    Samples of several labels, ``(samples, labels)``, are chosen as if all had one class.

    Each class gives the integer part of its share; the remainder goes to the largest fractions. Within a class
    the samples with the smallest hashes are taken.

    Returns:
        ``(count,)`` int64 positions, ascending.
    """
    if labels.ndim > 1:
        labels = np.zeros(len(labels), np.int64)
    classes, members = np.unique(labels, return_counts=True)
    shares = members * (count / max(len(labels), 1))
    quota = np.floor(shares + 1e-9).astype(np.int64)
    by_fraction = np.argsort(-(shares - quota), kind="stable")
    quota[by_fraction[: count - int(quota.sum())]] += 1
    hashes = draw(seed, 0, np.arange(len(labels)), stream)
    chosen = [_smallest(hashes, labels == c, q) for c, q in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def keep_labels(
    labels: NDArray[np.int64], *, per_class: int, classes: int, seed: int, stream: int
) -> NDArray[np.int64]:
    """Return a copy of the labels in which only ``per_class`` samples of each class keep theirs.

    Of samples with several labels, ``(samples, labels)``, so many keep theirs in all.

    Raises:
        ValueError: if a class has fewer samples than that, or so few have labels.
    """
    if labels.ndim > 1:
        known = (labels != UNLABELLED).any(1)
        if per_class > known.sum():
            expected = f"at most the {known.sum()} training samples with labels"
            raise InvalidValueError("data.labelled", expected, per_class, "type data.labelled=null")
        chosen = _smallest(draw(seed, 0, np.arange(len(labels)), stream), known, per_class)
        return np.where(np.isin(np.arange(len(labels)), chosen)[:, None], labels, UNLABELLED)
    members = np.bincount(labels[labels != UNLABELLED], minlength=classes)
    if members.min() < per_class:
        scarce = int(members.argmin())
        expected = f"at most the {members[scarce]} training samples" + f" of class {scarce}" * (classes > 1)
        raise InvalidValueError("data.labelled", expected, per_class, f"type data.labelled={members[scarce] or 'null'}")
    hashes = draw(seed, 0, np.arange(len(labels)), stream)
    kept = np.full_like(labels, UNLABELLED)
    for c in range(classes):
        kept[_smallest(hashes, labels == c, per_class)] = c
    return kept


def _smallest(hashes: NDArray[np.uint64], mask: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    members = np.flatnonzero(mask)
    return members[np.argsort(hashes[members], kind="stable")[:count]]
