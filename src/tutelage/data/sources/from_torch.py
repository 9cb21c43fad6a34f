"""A user's own torch data sets as splits."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tutelage import rng
from tutelage.data.datasets import Split, Splits, refuse_one_class
from tutelage.data.workers import WorkerPool
from tutelage.errors import InvalidTypeError, InvalidValueError, TutelageError, UserCodeError
from tutelage.images import UnreadableError, decode, opened, pixels_of
from tutelage.types import UNLABELLED, Inputs, View
from tutelage.views import as_views, view_of, views_of

SLACK = 0.1
"""Tolerance for values outside [0, 1]: a bicubic resize overshoots a little, normalised images lie far outside."""


class Mapped(Protocol):
    """A map-style data set of images with their class indices, or of images alone, or of mappings of tensors."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Keys:
    """Keys of a data set whose samples are mappings of tensors.

    Attributes:
        inputs: keys of the inputs; one as a text is the inputs themselves, and not a mapping.
        labels: key of the label; a sample without it is unlabelled.
    """

    inputs: str | tuple[str, ...]
    labels: str


@dataclass(frozen=True, kw_only=True)
class TorchSplit(Split):
    """Samples of a user's data set, whose own transforms become functions of (data seed, epoch, sample)."""

    dataset: Mapped
    keys: Keys | None = None  # of mappings of tensors; None for images
    several: int | None = None  # number of labels, of which several may hold; None for one class

    def is_bytes(self, view: Tensor) -> bool:
        """Whether they are 8-bit images: these are float, and other tensors are taken as they are."""
        return False

    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Inputs:
        """Return float32 ``(batch, channels, height, width)`` in [0, 1], such views by name, or the keys' tensors."""
        seed, epoch = view if view is not None else (0, 0)
        seeds = rng.draw(seed, epoch, index, rng.OWN)
        images = []
        for position, bits in zip(index.tolist(), seeds.tolist(), strict=True):
            with rng.seeded() as seed_generators:
                seed_generators(bits)
                image, label = _sample(self.dataset, position, self.keys)
            expected = self.labels[position].tolist()
            if (label := _label(label, position, self.several)) != expected:
                instead = "let __getitem__ and targets agree"
                raise InvalidValueError(
                    "data", f"label {expected} for sample {position} as its targets say", label, instead
                )
            images.append(image)
            if _shapes(image) != _shapes(images[0]):
                got, what = f"{_shown(image)} for sample {position}", "images" if self.keys is None else "tensors"
                instead = f"{'resize or crop' if self.keys is None else 'pad or cut'} them in __getitem__"
                raise InvalidValueError("data", f"{what} of one shape, {_shown(images[0])}", got, instead)
        columns = zip(*map(views_of, images), strict=True)
        batch = as_views([torch.stack(column) for column in columns], images[0])
        for stacked in filter(torch.is_floating_point, views_of(batch) if self.keys is None else ()):
            low, high = float(stacked.min()), float(stacked.max())
            if not (low >= -SLACK and high <= 1 + SLACK):  # NaN is in no range
                outside = [not (float(i.min()) >= -SLACK and float(i.max()) <= 1 + SLACK) for i in stacked]
                got = f"{low:.3g} to {high:.3g}"
                instead = "leave normalisation out of the transforms: each model's card normalises its own inputs"
                if not math.isfinite(high - low):
                    got, instead = "NaN or infinity", "mend this sample, or leave it out of the data set"
                got += f", first in sample {index[outside.index(True)]}"
                raise InvalidValueError("data", "images with values in [0, 1]", got, instead)
        return batch


def from_datasets(
    train: Mapped,
    test: Mapped,
    *,
    classes: int,
    validation: Mapped | None = None,
    class_names: Sequence[str] | None = None,
    workers: int = 0,
    source: str = "own",
    inputs: str | Sequence[str] | None = None,
    labels: str = "labels",
    task: Literal["classes", "labels"] = "classes",
) -> Splits:
    """Wrap map-style torch data sets.

    Args:
        train: data set of (image, label): a float tensor ``(channels, height, width)`` in [0, 1] or a Pillow image, and
            a class index; if unlabelled -100, ``None``, or the image alone. All images have one shape. Labels are read
            from ``targets`` if present and not transformed, else in one pass over the samples. Instead of an image
            there may be a mapping of views of it, ``{"student": ..., "teacher": ...}``, of which each network reads
            its own; one of them may be an int64 tensor, such as token ids ``(tokens,)``, which is taken as it is.
        test: data set of the same form.
        classes: number of classes.
        validation: data set of the same form, or ``None``.
        class_names: one name per class; by default their numbers.
        workers: number of processes that run the data sets, at least 0.
        source: name to show.
        inputs: keys of the inputs, where samples are mappings of tensors of any shape, the same for all samples, such
            as ``("input_ids", "attention_mask")``, for a `tutelage.Adapter` that names them; or one key, whose tensor
            is what a network is called with. ``None`` for images.
        labels: key of the label in such mappings.
        task: ``labels`` where several of ``classes`` labels may hold for a sample. Its label is then a tensor, an array
            or a list ``(labels,)``: 1 for each that holds, 0 for the others and -100 where it is not known.

    Returns:
        Splits without a fingerprint, as the content of a user's data set is not known.

    Example:
        >>> from tutelage.data import from_datasets
        >>> rows = [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [3, 2], "labels": 1}]
        >>> from_datasets(rows, rows, classes=2, inputs=("input_ids",)).train.labels
        tensor([0, 1])
        >>> several = [{"input_ids": [1, 2], "labels": [1, 0, 1]}, {"input_ids": [3, 2], "labels": [0, 1, -100]}]
        >>> from_datasets(several, several, classes=3, inputs=("input_ids",), task="labels").train.labels
        tensor([[   1,    0,    1],
                [   0,    1, -100]])

    Raises:
        TypeError: if a sample is not an image and a class index, or not a mapping of tensors.
        ValueError: if there are no samples, fewer than 2 classes, a label is outside of them, images have several
            shapes, or a Pillow image cannot be read as `tutelage.images` says.
    """
    names = tuple(map(str, range(classes) if class_names is None else class_names))
    if len(names) != classes:
        raise InvalidValueError("class_names", f"{classes} names", len(names), "give one for each class")
    several = classes if task == "labels" else None
    if several is None:
        refuse_one_class(names, source)
    if workers < 0:
        raise InvalidValueError("workers", "a whole number of at least 0", workers, "type workers=0")
    keys = None if inputs is None else Keys(inputs if isinstance(inputs, str) else tuple(inputs), labels)
    splits: dict[str, Split] = {}
    pool = WorkerPool()
    expected: Inputs | None = None
    for part, dataset in {"train": train, "validation": validation, "test": test}.items():
        if dataset is None:
            continue
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            loads = hasattr(dataset, "dataset")
            instead = "pass the loader's data set, loader.dataset" if loads else "pass a map-style Dataset"
            raise InvalidTypeError(
                part, "a data set with a length and samples by number", type(dataset).__name__, instead
            )
        if not len(dataset):
            raise InvalidValueError(part, "at least 1 sample", "0", "pass a data set with samples")
        with rng.seeded() as seed_generators:
            seed_generators(0)
            first = _sample(dataset, 0, keys)[0]
        expected = first if expected is None else expected
        if _shapes(first) != _shapes(expected):
            got = _shown(first)
            what = "images" if keys is None else "tensors"
            raise InvalidValueError(part, f"{what} of shape {_shown(expected)} as in train", got, "resize them")
        targets = _targets(dataset, keys, several)
        wrong = np.flatnonzero((targets != UNLABELLED) & ((targets < 0) | (targets >= classes)))
        if wrong.size and several is None:
            got = f"{int(targets[wrong[0]])} for sample {int(wrong[0])}"
            raise InvalidValueError(part, f"labels in [0, {classes}) or -100", got, "raise classes or fix the labels")
        splits[part] = TorchSplit(
            dataset=dataset,
            labels=torch.from_numpy(targets),
            workers=workers,
            pool=pool,
            keys=keys,
            several=several,
        )
    images: dict[str, tuple[int, ...]] = {}
    if keys is None:
        view_of(first, "student")  # It is refused here if it is not there.
        views = first if isinstance(first, Mapping) else {"": first}
        images = {name: tuple(view.shape) if view.is_floating_point() else () for name, view in views.items()}
    channels, *size = images.get("student") or next(filter(None, images.values()), (None,))
    return Splits(
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits["test"],
        classes=classes if several is None else 2,
        class_names=names,
        channels=channels,
        image_size=(size[0], size[1]) if size else None,
        source=source,
        fingerprint=None,
        views=images if isinstance(first, Mapping) else {},
        task=task,
    )


def _shapes(image: Inputs) -> dict[str, tuple[int, ...]]:
    """Return the shape of each view, under no name that of an only one."""
    views = image if isinstance(image, Mapping) else {"": image}
    return {name: tuple(view.shape) for name, view in views.items()}


def _shown(image: Inputs) -> str:
    return ", ".join(f"{name} {shape}".strip() for name, shape in _shapes(image).items())


def _sample(dataset: Mapped, position: int, keys: Keys | None) -> tuple[Inputs, Any]:
    try:
        sample = dataset[position]
    except TutelageError:
        raise
    except Exception as error:
        name, reason = f"{type(dataset).__name__}[{position}]", f"{type(error).__name__}: {error}"
        raise UserCodeError(name, "a sample", reason, "fix the data set, or leave this sample out of it") from error
    if keys is not None:
        return _tensors(sample, keys, position)
    if isinstance(sample, (torch.Tensor, Image.Image, Mapping)):
        sample = (sample,)
    if not isinstance(sample, (tuple, list)) or len(sample) not in (1, 2):
        got = f"{len(sample)} values" if isinstance(sample, (tuple, list)) else type(sample).__name__
        raise InvalidTypeError("data", f"(image, label) of sample {position}, or an image alone", got, "return a pair")
    image, label = sample if len(sample) == 2 else (*sample, None)
    if isinstance(image, Mapping):
        if not set(image) & {"student", "teacher"}:
            expected = f"images by the name of the network that reads them, in sample {position}"
            names = tuple(str(name) for name in image if name != "labels")
            instead = (
                "name them student and teacher; for other tensors wrap the networks in tutelage.Adapter and type "
                f"data=tutelage.data.from_datasets(train, test, classes=..., inputs={names}, labels='labels')"
            )
            raise InvalidTypeError("data", expected, f"the keys {', '.join(map(repr, image))}", instead)
        # In the order of their names, as a mapping's own may differ from sample to sample.
        views = {str(name): _view(image[name], position) for name in sorted(image)}
        return views, label
    return _image(image, position), label


def _tensors(sample: Any, keys: Keys, position: int) -> tuple[Inputs, Any]:
    """Return what a mapping has at the keys; the label may be beside it."""
    label = None
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        sample, label = sample
    named = (keys.inputs,) if isinstance(keys.inputs, str) else keys.inputs
    if not isinstance(sample, Mapping) or not set(named) <= set(sample):
        got = f"the keys {', '.join(map(repr, sample))}" if isinstance(sample, Mapping) else type(sample).__name__
        expected = f"a mapping with {', '.join(map(repr, named))} as sample {position}"
        raise InvalidTypeError("data", expected, got, "name its keys: inputs=..., labels=...")
    try:
        views = {key: torch.as_tensor(sample[key]) for key in named}
    except (TypeError, ValueError, RuntimeError) as error:
        instead = "return tensors, arrays or lists of numbers in __getitem__"
        raise InvalidTypeError("data", f"tensors in sample {position}", str(error), instead) from error
    label = sample.get(keys.labels) if label is None else label
    return (views[keys.inputs] if isinstance(keys.inputs, str) else views), label


def _view(view: Any, position: int) -> Tensor:
    """Return one of several views: an image, or an int64 tensor as it is."""
    return view if isinstance(view, torch.Tensor) and view.dtype == torch.int64 else _image(view, position)


def _image(image: Any, position: int) -> Tensor:
    """Return an image as float32 ``(channels, height, width)``."""
    if isinstance(image, Image.Image):
        try:
            with opened(image):
                image = decode(image, channels=1 if image.mode == "L" else 3)
        except UnreadableError as error:
            instead = "convert it in __getitem__ to 8 bits, or return a float tensor in [0, 1]"
            got = f"sample {position} ({error})"
            raise InvalidValueError("data", "a readable image", got, instead) from error
        image = torch.from_numpy(pixels_of(image).copy()).permute(2, 0, 1).to(torch.float32).div_(255.0)
    if not isinstance(image, torch.Tensor) or not image.is_floating_point() or image.ndim != 3:
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, torch.Tensor) else type(image).__name__
        expected = f"a float image (channels, height, width) in [0, 1] of sample {position}"
        raise InvalidTypeError("data", expected, got, "convert it in __getitem__, 8-bit values divided by 255")
    return image.to(torch.float32)


def _targets(dataset: Mapped, keys: Keys | None, several: int | None) -> NDArray[np.int64]:
    targets = getattr(dataset, "targets", None) if keys is None else None
    if targets is None or len(targets) != len(dataset) or getattr(dataset, "target_transform", None) is not None:
        with rng.seeded() as seed_generators:
            seed_generators(0)
            targets = [_sample(dataset, position, keys)[1] for position in range(len(dataset))]
    return np.array([_label(target, position, several) for position, target in enumerate(targets)], np.int64)


def _label(label: Any, position: int, several: int | None) -> int | list[int]:
    """Return a class index, -100 for ``None``; or of several labels 1, 0 or -100 for each."""
    if several is not None:
        return _labels(label, position, several)
    if label is None:
        return UNLABELLED
    try:
        return operator.index(label)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(label.shape)}" if isinstance(label, (torch.Tensor, np.ndarray)) else ""
        kind = f"{label.dtype} values" if shape else type(label).__name__
        expected = f"a class index as the label of sample {position}, a whole number"
        instead = (
            "return one whole number, or None where unlabelled; where several hold, type "
            "data=tutelage.data.from_datasets(train, test, classes=..., task='labels')"
        )
        raise InvalidTypeError("data", expected, f"{kind}{shape}", instead) from error


def _labels(labels: Any, position: int, several: int) -> list[int]:
    """Return 1, 0 or -100 for each label; -100 for all in place of ``None``."""
    if labels is None:
        return [UNLABELLED] * several
    expected = f"{several} labels of sample {position}, each 1, 0 or -100"
    try:
        values = np.asarray(labels, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError("data", expected, type(labels).__name__, "return a tensor of them") from error
    if values.shape != (several,) or not np.isin(values, (0, 1, UNLABELLED)).all():
        got = (
            f"{values.shape}" if values.shape != (several,) else f"{values[~np.isin(values, (0, 1, UNLABELLED))][0]:g}"
        )
        raise InvalidValueError("data", expected, got, "return a tensor of them")
    return [int(value) for value in values]
