"""A data set's splits, as other packages see them, and the split whose pixels are held in memory."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.custom_transforms import Transform
from tutelage.data.transforms import to_float, vary
from tutelage.data.workers import WorkerPool
from tutelage.errors import InvalidValueError
from tutelage.rng import balanced, buffered_permutation, in_turn, permutation, spread, strong_view
from tutelage.settings.data import DataSettings
from tutelage.settings.fit import Switch
from tutelage.text import TextInput
from tutelage.types import UNLABELLED, Inputs, Served, Task, View
from tutelage.views import map_views


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """The mixing of training samples.

    Attributes:
        mixup: alpha of Mixup, at least 0; 0 is off.
        cutmix: alpha of CutMix, at least 0; 0 is off.
        probability: probability that a sample is mixed.
        switch: probability of CutMix if both are on.
        classes: number of classes, the width of the labels.
        image_size: height and width, pixels.
    """

    mixup: float
    cutmix: float
    probability: float
    switch: float
    classes: int
    image_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class UnlabelledSamples:
    """The samples of a split that come from a source without labels, behind all others.

    Attributes:
        source: the source, to show.
        first: index of the first of them.
        samples: number of them.
        share: their share of an epoch, or ``None`` if it has each sample of the split once.
    """

    source: str
    first: int
    samples: int
    share: float | None = None

    @property
    def per_epoch(self) -> int:
        """Number of them in an epoch."""
        return self.samples if self.share is None else round(self.first * self.share / (1 - self.share))


Images = TypeVar("Images", Tensor, Inputs)


@dataclass(frozen=True, kw_only=True)
class Split(ABC):
    """Samples with fixed indices ``0 .. len - 1``.

    Attributes:
        labels: labels, ``(len,)`` int64 on the CPU, -100 if unlabelled; or ``(len, labels)``, 1 where a label holds, 0
            where not, and -100 where that is not known.
        transform: transform of training views, a library's or the user's, or ``None``.
        mixing: mixing of training batches, whose labels are then soft, or ``None``; `fetch` and `stream` never mix.
        corrupt: names of the images so far that could not be read, each once.
        workers: number of processes that fetch streamed images, at least 0.
        pool: pool of those processes, which the splits of a data set share.
        divisor: value of white in 8-bit images.
        on_device: whether its pixels lie on a device that is not the CPU: ``auto``, true or false.
        units: number of the unit that each sample is read with, such as a shard, at each level, ``(len, levels)``;
            ``None`` if each is read by itself.
        shuffle_buffer: number of samples among which training samples are shuffled where they are read by unit;
            ``None`` for all.
        text_bytes: length in UTF-8 of the text whose tokens are counted; ``None`` where no text is predicted.
        unlabelled: which samples come from a source without labels, or ``None``.
        served: what a served teacher answered for the samples, or ``None``.
        prompts: number of each text's tokens before the last part that is learned, ``(len,)``, at least 1; ``None``
            without such parts.
        texts: number of the text that belongs to each image, ``(len,)``; ``None`` where none does.
        balanced: whether training samples with labels are drawn with all classes equally often (`balanced_classes`).
        strong: the same samples, varied more strongly, or ``None``. Whatever is read of a view then has two rows a
            sample, one after the other: its own view, and that of ``strong``.
    """

    labels: Tensor
    transform: Transform | None = None
    mixing: Mixing | None = None
    corrupt: list[str] = field(default_factory=list)
    workers: int = 0
    pool: WorkerPool = field(default_factory=WorkerPool)
    divisor: float = 255.0
    on_device: Switch = "auto"
    units: NDArray[np.integer] | None = None
    shuffle_buffer: int | None = None
    text_bytes: int | None = None
    unlabelled: UnlabelledSamples | None = None
    served: Served | None = None
    prompts: NDArray[np.int64] | None = None
    texts: NDArray[np.int64] | None = None
    balanced: bool = False
    strong: Split | None = None

    @property
    def views_per_sample(self) -> int:
        """Number of views that a training batch holds of each sample."""
        return 1 if self.strong is None else 2

    def largest(self, count: int) -> NDArray[np.int64]:
        """Return the indices of samples that take the most memory in a batch, at most so many."""
        return np.arange(min(count, len(self)))

    @property
    def per_position(self) -> bool:
        """Whether each position of a sample has a label of its own; ``labels`` is then ``(len, 0)``."""
        return False

    @property
    def for_teacher(self) -> Split:
        """The samples as the teacher reads them, where its positions and classes are its own; else itself."""
        return self

    @property
    def labelled(self) -> int:
        """Number of samples with a label."""
        known = self.labels != UNLABELLED
        return len(self) if self.per_position else int((known if known.ndim == 1 else known.any(1)).sum())

    def pixels_of_classes(self) -> Tensor | None:
        """Return the number of pixels of each class; ``None`` where pixels have none, or must be decoded for it."""
        return None

    def labels_of_classes(self, classes: int) -> Tensor | None:
        """Return how many labels each class has, ``(classes,)`` float64, soft ones added up: of samples, or of pixels.

        ``None`` where a sample has several, or must be decoded for it, or the classes are tokens.
        """
        if (pixels := self.pixels_of_classes()) is not None:
            return pixels[:classes].double()
        if self.per_position or (self.labels.ndim > 1 and not self.labels.is_floating_point()):
            return None
        if self.labels.is_floating_point():
            return self.labels.double().sum(0)
        return torch.bincount(self.labels[self.labels != UNLABELLED], minlength=classes).double()

    def targets(self, index: Tensor, inputs: Inputs, view: View | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the labels of samples in a view, and which of their positions count, as in `types.Batch`."""
        return self.labels[index], None

    def order(self, seed: int, epoch: int, *, batch_size: int) -> NDArray[np.int64]:
        """Return the order of the training samples in an epoch, ``(per_epoch,)``: a function of the arguments alone.

        ``batch_size`` is that of all processes together; only an order of batches of similar samples, or of batches
        with a share of unlabelled ones, depends on it.
        """
        part = self.unlabelled
        if part is None or part.share is None:
            return self._shuffled(seed, epoch, len(self))
        drawn = in_turn(seed, epoch, np.arange(part.first, len(self)), part.per_epoch)
        return spread(seed, epoch, self._shuffled(seed, epoch, part.first), drawn, batch_size=batch_size)

    def evenly(self, most: int) -> NDArray[np.int64]:
        """Return up to ``most`` training samples, evenly spaced, with an epoch's share of unlabelled ones.

        There are fewer if an epoch needs some of these again.
        """
        count, part = self.per_epoch, self.unlabelled
        most = min(most, count)
        if part is not None and part.per_epoch > part.samples:
            most = min(most, max(1, count * part.samples // part.per_epoch))
        at = np.unique(np.linspace(0, count - 1, most).astype(np.int64))
        if part is None or part.share is None:
            return at
        own = at[at < part.first]
        others = len(at) - len(own)
        return np.concatenate([own, part.first + np.arange(others) * part.samples // max(1, others)])

    def _shuffled(self, seed: int, epoch: int, count: int) -> NDArray[np.int64]:
        """Return an order of the first samples; balanced, samples without a label keep their places in it."""
        if self.units is not None and self.shuffle_buffer is not None:
            return buffered_permutation(seed, epoch, self.units[:count], self.shuffle_buffer)
        order = permutation(seed, epoch, count)
        if self.balanced:
            labels = self.labels[:count].numpy()
            order[labels[order] != UNLABELLED] = balanced(seed, epoch, labels)
        return order

    @property
    def per_epoch(self) -> int:
        """Number of samples in an epoch of training."""
        part = self.unlabelled
        return len(self) if part is None else part.first + part.per_epoch

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Inputs:
        """Return float32 ``(batch, channels, height, width)`` in [0, 1]; without a view, not augmented.

        In a view the batch has `views_per_sample` rows a sample.
        """

    def stream(
        self, requests: Iterable[NDArray[np.int64]], *, view: View | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Inputs]]:
        """Fetch batches in order, as `fetch` does, each with the indices that could be read."""
        for index, images in self.stream_images(requests, view=view):
            yield index, self.to_inputs(images)

    def stream_images(
        self, requests: Iterable[NDArray[np.int64]], *, view: View | None = None, pin_memory: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], Inputs]]:
        """Fetch batches like `stream`, with images as stored: `to_inputs` turns them into inputs.

        With ``pin_memory``, workers fetch into page-locked memory.
        """
        yield from self.pool.map(self._indexed, requests, view=view, workers=self.workers, pin_memory=pin_memory)

    def parts(self) -> list[Split]:
        """Return the splits that hold its samples' images or texts: itself, unless it has both."""
        return [self]

    def is_bytes(self, view: Tensor) -> bool:
        """Whether what `stream_images` yields are 8-bit images; a user's own tensors are not."""
        return view.dtype == torch.uint8

    def to_inputs(self, images: Images) -> Images:
        """Return 8-bit images as float32 ``(batch, channels, height, width)`` in [0, 1]; others unchanged."""
        return map_views(lambda view: to_float(view, divisor=self.divisor) if self.is_bytes(view) else view, images)

    def _indexed(self, index: NDArray[np.int64], *, view: View | None) -> tuple[NDArray[np.int64], Inputs]:
        """Return the indices, and ``(batch, height, width, channels)`` uint8 or the result of `fetch`."""
        return index, self.fetch(index, view=view)


@dataclass(frozen=True, kw_only=True)
class MemorySplit(Split):
    """Samples of an 8-bit tensor that several splits may share; batches are augmented as a whole."""

    pixels: Tensor  # ``(all, height, width, channels)`` uint8, CPU
    positions: Tensor  # rows of ``pixels`` in this split, ``(len,)`` int64
    settings: DataSettings | None = None  # settings of the augmentation, or None

    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Tensor:
        """Return float32 ``(batch, channels, height, width)`` in [0, 1], strided as channels-last."""
        return self.to_inputs(self._indexed(index, view=view)[1])

    def _indexed(self, index: NDArray[np.int64], *, view: View | None) -> tuple[NDArray[np.int64], Tensor]:
        images = self.pixels[self.positions[torch.from_numpy(index)]]
        if view is not None and self.settings is not None:
            images = vary(
                images, index, view=view, settings=self.settings, transform=self.transform, white=self.divisor
            )
        if view is not None and isinstance(self.strong, MemorySplit):
            return neighbours(index, images, *self.strong._indexed(index, view=strong_view(view)))
        return index, images


def neighbours(
    index: NDArray[np.int64], images: Tensor, other_index: NDArray[np.int64], others: Tensor
) -> tuple[NDArray[np.int64], Tensor]:
    """Return two views of samples as one batch: each sample's row of the first, then that of the other.

    ``other_index`` has samples of ``index`` in the same order, but those that could not be read again: they are left
    out.
    """
    if len(other_index) < len(index):
        images = images[torch.from_numpy(np.isin(index, other_index))]
    return other_index.repeat(2), torch.stack((images, others), dim=1).flatten(0, 1)


def refuse_one_class(class_names: Sequence[str], source: str, *, what: str = "images") -> None:
    """Refuse data of fewer than 2 classes, of which any network is right without having learned anything."""
    if len(class_names) < 2:
        got = f"{len(class_names)} in {source}" + "".join(f" ({name})" for name in class_names)
        raise InvalidValueError("data", "at least 2 classes", got, f"add {what} of another class")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set, split.

    Attributes:
        train: training samples.
        validation: samples held out of training, or ``None``.
        test: samples held out by the source.
        classes: number of classes of a position, the last axis of logits; 2 for labels, the width of an embedding.
        class_names: one name per class, or per label; empty where the classes are tokens, or there are none.
        channels: number of channels of an image; ``None`` for others.
        image_size: height and width, pixels; ``None`` for others.
        source: source as typed, a local path reduced to its last component.
        fingerprint: 16 hexadecimal digits that change with the samples, their order or their division; ``None`` if the
            content is not known.
        notes: decisions made on the user's behalf, one sentence each.
        margin: size of the resized copy relative to the evaluation view, its centre.
        divisor: value of white in the source's own images.
        interpolation: interpolation of resizes, ``bilinear`` or ``bicubic``.
        views: shapes of the views of a sample by name, ``(channels, height, width)``, ``()`` of one that is no image;
            empty where it has one for all.
        text: what a network of each name reads of a text, ``student`` and ``teacher``; those that read images are
            not there.
        task: what a network answers for a sample.
        licence: licence that the source was published under; ``None`` if none is known.
        beside: the same samples as texts, where each is an image and a text, until `pairs.read_by` has said which
            network reads which; ``None`` for others.
    """

    train: Split
    validation: Split | None
    test: Split
    classes: int
    class_names: tuple[str, ...]
    source: str
    fingerprint: str | None
    channels: int | None = None
    image_size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    margin: float = 1.0
    divisor: float = 255.0
    interpolation: str = "bilinear"
    views: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    text: Mapping[str, TextInput] = field(default_factory=dict)
    task: Task = "classes"
    licence: str | None = None
    beside: Splits | None = None

    @property
    def for_teacher(self) -> Splits:
        """The data as the teacher reads them: with the classes of its vocabulary, where that is another; else itself.

        A `Batch` of it is the teacher's alone.
        """
        if self.train.for_teacher is self.train:
            return self
        text = self.text["teacher"]
        return replace(
            self,
            train=self.train.for_teacher,
            validation=self.validation and self.validation.for_teacher,
            test=self.test.for_teacher,
            classes=text.tokenizer.size,
            text={"student": text, "teacher": text},
        )

    @property
    def outputs(self) -> int:
        """Number of outputs of a network per sample, or per position: of labels one each, of others the classes."""
        return len(self.class_names) if self.task == "labels" else self.classes

    @property
    def positions(self) -> int:
        """Largest number of positions of a training sample, each of which is classified."""
        if self.task == "pixels" and self.image_size is not None:
            return math.prod(self.image_size)
        return self.text["student"].max_tokens if self.train.per_position else 1

    @property
    def per_token(self) -> bool:
        """Whether each token of a text has a label, as in a language model."""
        return "student" in self.text and self.text["student"].per_token

    @property
    def of_images(self) -> bool:
        """Whether samples have an image; others are texts, or tensors that the user's networks take as they are."""
        return self.channels is not None

    def input_shape(self, view: str) -> tuple[int, ...]:
        """Return channels, height and width of the images that a network of this name reads; ``()`` for others."""
        if self.channels is None or self.image_size is None:
            return ()
        return self.views.get(view, (self.channels, *self.image_size))

    def by_name(self) -> dict[str, Split]:
        """Return the existing splits by name."""
        splits = [("train", self.train), ("validation", self.validation), ("test", self.test)]
        return {name: split for name, split in splits if split is not None}

    def close(self) -> None:
        """End the worker processes; they start again when a split is used again."""
        for split in self.by_name().values():
            split.pool.close()

    def sizes(self) -> dict[str, int]:
        """Return counts: samples per split, training samples with a label, and unreadable images so far."""
        present = self.by_name()
        sizes = {name: len(split) for name, split in present.items()}
        sizes["labelled"] = self.train.labelled
        return sizes | {"corrupt": len({name for split in present.values() for name in split.corrupt})}
