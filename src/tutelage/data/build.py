"""From a source's images and labels to splits: shape, memory or stream, validation, labels, fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tutelage.data import cache, rng
from tutelage.data.datasets import Split, Splits
from tutelage.data.memory import MemorySplit
from tutelage.data.mixup import Mixing
from tutelage.data.partition import keep_labels, stratified
from tutelage.data.streamed import StreamSplit
from tutelage.data.transforms import PLAIN, Augmentation
from tutelage.images import (
    UNREADABLE,
    Layout,
    Reader,
    Subset,
    UnlikeError,
    decode_all,
    find_layout,
    open_image,
    stop_on,
)
from tutelage.types import UNLABELLED

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from tutelage.settings.data import DataSettings

HELD_OUT = 0.2
"""The fraction that becomes the test set of a source that has none."""


@dataclass(frozen=True)
class Raw:
    """Images and labels of one half of a source.

    Attributes:
        reader: of the images.
        labels: ``(images,)`` int64.
        identity: makes bytes that change with the images; asked for only where they are not decoded as a whole.
    """

    reader: Reader
    labels: NDArray[np.int64]
    identity: Callable[[], bytes]


@dataclass(frozen=True)
class Pixels:
    """Images of one half of a source, decoded.

    Attributes:
        values: ``(images, height, width, channels)`` uint8.
        labels: ``(images,)`` int64.
        corrupt: names of images that were left out.
    """

    values: NDArray[np.uint8]
    labels: NDArray[np.int64]
    corrupt: tuple[str, ...] = ()


def make_test(raw: Raw, settings: DataSettings, class_names: Sequence[str]) -> tuple[Raw, Raw, str]:
    """Give a source without a test set one, as the settings say; return both halves and the note that says so.

    Raises:
        ValueError: holding images out would leave a class without any to learn from.
    """
    count, seed = len(raw.labels), settings.split_seed
    if settings.test == "train":
        return raw, raw, f"There are no held-out images: the test set is the {count} training images, not augmented."
    held = stratified(raw.labels, count=round(count * HELD_OUT), seed=seed, stream=rng.TEST)
    rest = np.setdiff1d(np.arange(count), held)
    lost = np.setdiff1d(raw.labels, np.append(raw.labels[rest], UNLABELLED))
    if lost.size:
        raise ValueError(
            "data.source: expected images enough of every class to hold a fifth out for test, got none to learn from "
            f"of {class_names[lost[0]]} ({lost.size} such); give it a test set, or type data.test=train to judge on "
            "the training images"
        )
    halves = [Raw(Subset(raw.reader, p), raw.labels[p], raw.identity) for p in (rest, held)]
    note = f"The source has no test set: {len(held)} of its {count} images were held out (split_seed {seed})."
    return halves[0], halves[1], note


def keep_test(settings: DataSettings, source: str) -> None:
    """Refuse to judge on the training images of a source that has a test set.

    Raises:
        ValueError: that was asked for.
    """
    if settings.test == "train":
        raise ValueError(
            f"data.test: expected 'held_out' for {source}, which has a test set, got 'train'; type data.test=held_out"
        )


def check_labels(labels: NDArray[np.int64], *, classes: int, what: str, remedy: str) -> None:
    """Refuse labels outside the classes.

    Raises:
        ValueError: one is.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise ValueError(
            f"data.label: expected classes 0 to {classes - 1} in {what}, got {int(labels[wrong[0]])} for sample "
            f"{int(wrong[0])} ({wrong.size} such); {remedy}"
        )


def from_images(
    train: Raw,
    test: Raw,
    *,
    class_names: Sequence[str],
    settings: DataSettings,
    source: str,
    notes: Sequence[str] = (),
    key: str | None = None,
) -> Splits:
    """Build splits of encoded images: in memory where they fit, else streamed, as random boxes always are.

    Args:
        train: what is learned from, and what validation is held out of.
        test: the other half.
        class_names: one for each class.
        settings: checked.
        source: to show.
        notes: to show.
        key: of the decoded pixels' cache; none keeps none.
    """
    saved = cache.load(key) if key is not None else None
    guessed = None if saved else _all_alike(train, test, settings)
    if saved:
        layout = saved[0]
    else:
        readers = (train.reader, test.reader)
        layout = guessed[0] if guessed else find_layout(readers, size=settings.size, test_crop=settings.test_crop)
    if not _fits(train, test, layout, settings):
        return _streamed(train, test, layout, class_names=class_names, settings=settings, source=source, notes=notes)
    parts = _parts(train, test)
    if saved:
        halves = [Pixels(saved[1][name], raw.labels) for name, raw in parts.items()]
    else:
        halves = guessed[1] if guessed else [_decoded(raw, layout, settings) for raw in parts.values()]
        if key is not None and not any(half.corrupt for half in halves):
            cache.save(key, layout, {name: half.values for name, half in zip(parts, halves, strict=True)})
    return from_pixels(
        halves[0],
        halves[-1],
        class_names=class_names,
        settings=settings,
        source=source,
        notes=notes,
        margin=layout.margin,
    )


def from_pixels(
    train: Pixels,
    test: Pixels,
    *,
    class_names: Sequence[str],
    settings: DataSettings,
    source: str,
    notes: Sequence[str] = (),
    divisor: float = 255.0,
    margin: float = 1.0,
) -> Splits:
    """Build splits in memory; ``divisor`` is the value of white, ``margin`` that of the views they were cut from."""

    def make(half: Pixels, positions: NDArray[np.int64], labels: Tensor, *, corrupt: bool, vary: bool) -> Split:
        return MemorySplit(
            pixels=tensors[id(half)],
            positions=torch.from_numpy(positions),
            labels=labels,
            divisor=divisor,
            augmentation=Augmentation.of(settings) if vary else PLAIN,
            mixing=_mixing(settings, layout, labels, len(class_names)) if vary else None,
            corrupt=list(half.corrupt) if corrupt else [],
        )

    tensors = {id(half): torch.from_numpy(half.values) for half in (train, test)}
    content = [cache.digest(array) for half in (train, test) for array in (half.values, half.labels)]
    _, height, width, channels = train.values.shape
    layout = Layout(height, width, channels, margin)
    return _divided(
        train.labels,
        test.labels,
        lambda p, y: make(train, p, y, corrupt=True, vary=True),
        lambda p, y: make(train, p, y, corrupt=False, vary=False),
        lambda p, y: make(test, p, y, corrupt=test is not train, vary=False),
        layout=layout,
        content=[*content, f"divisor {divisor}"],
        class_names=class_names,
        settings=settings,
        source=source,
        notes=notes,
        divisor=divisor,
    )


def _parts(train: Raw, test: Raw) -> dict[str, Raw]:
    """Return the halves by name; one where both are the same images."""
    return {"train": train} if test is train else {"train": train, "test": test}


def _mixing(settings: DataSettings, layout: Layout, labels: Tensor, classes: int) -> Mixing | None:
    """Return how training samples are mixed; none where that is off.

    Raises:
        ValueError: some samples have a label and others have none: a soft label cannot say that it is unknown.
    """
    if not (settings.mix_probability and (settings.mixup or settings.cutmix)):
        return None
    known = int((labels != UNLABELLED).sum())
    if 0 < known < len(labels):
        name = "mixup" if settings.mixup else "cutmix"
        raise ValueError(
            f"data.{name}: expected labels for all training samples or for none where samples are mixed, got labels "
            f"for {known} of {len(labels)}; type data.mixup=0 data.cutmix=0, or data.labelled=null"
        )
    return Mixing(
        mixup=settings.mixup,
        cutmix=settings.cutmix,
        probability=settings.mix_probability,
        switch=settings.switch_probability,
        classes=classes,
        image_size=(layout.height, layout.width),
    )


def _fits(train: Raw, test: Raw, layout: Layout, settings: DataSettings) -> bool:
    """Return whether a data set is held in memory; views cut from originals never are."""
    count = sum(len(raw.labels) for raw in _parts(train, test).values())
    size = count * layout.height * layout.width * layout.channels
    return not settings.random_resized_crop and size <= settings.memory_limit_mb * 2**20


def _all_alike(train: Raw, test: Raw, settings: DataSettings) -> tuple[Layout, list[Pixels]] | None:
    """Decode on the guess that every image is like the first: then none is opened twice. None where that is wrong."""
    try:
        (first,) = train.reader.encoded([0])
        with open_image(first) as image:
            size = image.size
        first_alone = Subset(train.reader, np.arange(1))
        layout = find_layout([first_alone], size=settings.size, test_crop=settings.test_crop)
    except UNREADABLE:
        return None
    if not _fits(train, test, layout, settings):
        return None
    try:
        return layout, [_decoded(raw, layout, settings, alike=size) for raw in _parts(train, test).values()]
    except UnlikeError:
        return None


def _decoded(raw: Raw, layout: Layout, settings: DataSettings, *, alike: tuple[int, int] | None = None) -> Pixels:
    values, kept, faults = decode_all(raw.reader, layout, alike=alike, interpolation=settings.interpolation)
    if faults and (settings.on_corrupt == "stop" or not len(kept)):
        stop_on(faults[0])
    return Pixels(values, raw.labels[kept], tuple(fault.name for fault in faults))


def _streamed(
    train: Raw,
    test: Raw,
    layout: Layout,
    *,
    class_names: Sequence[str],
    settings: DataSettings,
    source: str,
    notes: Sequence[str],
) -> Splits:
    def make(raw: Raw, positions: NDArray[np.int64], labels: Tensor, *, vary: bool) -> Split:
        return StreamSplit(
            reader=raw.reader,
            positions=positions,
            labels=labels,
            layout=layout,
            interpolation=settings.interpolation,
            random_resized_crop=settings.random_resized_crop and vary,
            augmentation=Augmentation.of(settings) if vary else PLAIN,
            mixing=_mixing(settings, layout, labels, len(class_names)) if vary else None,
            workers=settings.workers,
            on_corrupt=settings.on_corrupt,
        )

    content = [hashlib.sha256(raw.identity()).hexdigest() + cache.digest(raw.labels) for raw in (train, test)]
    return _divided(
        train.labels,
        test.labels,
        lambda p, y: make(train, p, y, vary=True),
        lambda p, y: make(train, p, y, vary=False),
        lambda p, y: make(test, p, y, vary=False),
        layout=layout,
        content=[*content, str(tuple(layout))],
        class_names=class_names,
        settings=settings,
        source=source,
        notes=notes,
    )


_Make = Callable[["NDArray[np.int64]", "Tensor"], Split]


def _divided(
    train_labels: NDArray[np.int64],
    test_labels: NDArray[np.int64],
    make_train: _Make,
    make_validation: _Make,
    make_test: _Make,
    *,
    layout: Layout,
    content: Sequence[str],
    class_names: Sequence[str],
    settings: DataSettings,
    source: str,
    notes: Sequence[str],
    divisor: float = 255.0,
) -> Splits:
    count, seed = len(train_labels), settings.split_seed
    held_count = round(count * settings.validation)
    if settings.validation and not 0 < held_count < count:
        raise ValueError(
            f"data.validation: expected a fraction that leaves samples on both sides of {count}, "
            f"got {settings.validation}; type data.validation=0"
        )
    held = stratified(train_labels, count=held_count, seed=seed, stream=rng.VALIDATION)
    rest = np.setdiff1d(np.arange(count), held)
    labels = train_labels[rest]
    if settings.labelled is not None:
        labels = keep_labels(
            labels, per_class=settings.labelled, classes=len(class_names), seed=seed, stream=rng.LABELLED
        )
    division = cache.digest(rest) + cache.digest(held)
    return Splits(
        train=make_train(rest, torch.from_numpy(labels)),
        validation=make_validation(held, torch.from_numpy(train_labels[held])) if held.size else None,
        test=make_test(np.arange(len(test_labels)), torch.from_numpy(test_labels)),
        classes=len(class_names),
        class_names=tuple(class_names),
        channels=layout.channels,
        image_size=(layout.height, layout.width),
        margin=layout.margin,
        divisor=divisor,
        interpolation=settings.interpolation,
        source=source,
        fingerprint=hashlib.sha256("\n".join([*content, division]).encode()).hexdigest()[:16],
        notes=tuple(notes),
    )
