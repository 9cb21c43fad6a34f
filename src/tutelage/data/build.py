"""From a source's images and labels to splits: shape, memory or stream, validation, labels, fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage import images, rng
from tutelage.data import cache, multi_hot, shards
from tutelage.data.datasets import MemorySplit, Mixing, Split, Splits, UnlabelledSamples, refuse_one_class
from tutelage.data.masks import UNCOUNTED, Masks, MaskSplit, MaskStreamSplit
from tutelage.data.names import of_unlabelled, shown
from tutelage.data.partition import keep_labels, stratified
from tutelage.data.shards import Content, CopyAhead, Shard
from tutelage.data.streamed import StreamSplit
from tutelage.data.workers import WorkerPool
from tutelage.errors import InvalidValueError, TutelageError
from tutelage.settings.data import DataSettings
from tutelage.types import UNLABELLED

Arranged = tuple[images.Reader, NDArray[np.integer], Sequence[str]]
"""Reader of a half's samples, their units, as in `Split`, and notes."""
HELD_OUT = 0.2  # fraction that becomes the test set of a source without one


@dataclass(frozen=True, kw_only=True)
class UnlabelledImages:
    """Images of a source without labels, whose shape is that of the images with labels."""

    raw: Raw
    key: str | None  # key of the cache of the decoded pixels, without their layout; ``None`` for no cache


@dataclass(frozen=True, kw_only=True)
class Description:
    """A source without its images: its name and notes for display, its checked settings; at least 2 classes if any."""

    class_names: Sequence[str]
    settings: DataSettings
    source: str
    notes: Sequence[str] = ()
    unlabelled: UnlabelledImages | None = None  # further training images

    def __post_init__(self) -> None:
        if self.settings.embedding is None and self.settings.labels is None:
            refuse_one_class(self.class_names, self.source)


@dataclass(frozen=True)
class Raw:
    """One half of a source, not decoded."""

    reader: images.Reader
    labels: NDArray[np.int64]  # ``(images,)``, or ``(images, labels)`` of 1, 0 and -100
    identity: Callable[[], bytes]  # maker of bytes that change with the images; called only if they are streamed
    units: NDArray[np.integer] | None = None  # as of `Split`
    ahead: CopyAhead | None = None  # as of `StreamSplit`
    texts: NDArray[np.int64] | None = None  # as of `Split`
    masks: Masks | None = None  # masks of the images, whose labels are then 0, or -100 without one

    def subset(self, positions: NDArray[np.int64]) -> Raw:
        """Return some of the images."""
        units = None if self.units is None else self.units[positions]
        texts = None if self.texts is None else self.texts[positions]
        masks = None if self.masks is None else self.masks.subset(positions)
        reader = images.Subset(self.reader, positions)
        return Raw(reader, self.labels[positions], self.identity, units, self.ahead, texts, masks)

    def joined(self, other: Raw) -> Raw:
        """Return these images, and those of another source behind them."""
        return Raw(
            images.Joined(self.reader, other.reader),
            with_unlabelled(self.labels, len(other.labels)),
            lambda: self.identity() + b"\0" + other.identity(),
            _joined_units(self.units, len(other.labels)),
            self.ahead,
            masks=self.masks,
        )


@dataclass(frozen=True)
class Pixels:
    """One half of a source, decoded."""

    values: NDArray[np.uint8]  # ``(images, height, width, channels)``
    labels: NDArray[np.int64]  # as of `Raw`
    corrupt: tuple[str, ...] = ()  # names of images that were left out
    with_frames: str | None = None  # name of the first image that has further frames or pages
    units: NDArray[np.integer] | None = None  # as of `Split`
    texts: NDArray[np.int64] | None = None  # as of `Split`
    masks: NDArray[np.uint8] | None = None  # ``(images, height, width)``, where labels are as of `Raw` with masks

    def joined(self, other: Pixels) -> Pixels:
        """Return these images, and those of another source behind them."""
        return Pixels(
            np.concatenate([self.values, other.values]),
            with_unlabelled(self.labels, len(other.labels)),
            (*self.corrupt, *other.corrupt),
            self.with_frames or other.with_frames,
            _joined_units(self.units, len(other.labels)),
            masks=None if self.masks is None else np.concatenate([self.masks, np.zeros_like(other.values[..., 0])]),
        )


def with_unlabelled(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return labels, and behind them those of so many samples without any."""
    return np.concatenate([labels, np.full((count, *labels.shape[1:]), UNLABELLED, np.int64)])


def _joined_units(units: NDArray[np.integer] | None, count: int) -> NDArray[np.integer] | None:
    """Return units, and behind them those of so many samples, each of which is read by itself."""
    return None if units is None else np.concatenate([units, units.max(axis=0) + 1 + np.arange(count)[:, None]])


def refuse_train_as_test(settings: DataSettings, source: str) -> None:
    """Refuse to evaluate a source that has a test set on its training images."""
    if settings.test == "train":
        raise InvalidValueError(
            "data.test", f"'held_out' for {source}, which has a test set", "'train'", "type data.test=held_out"
        )


def check_labels(labels: NDArray[np.int64], *, classes: int, what: str, instead: str) -> None:
    """Raise ValueError for labels outside the classes."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        got = f"{int(labels[wrong[0]])} for sample {int(wrong[0])} ({wrong.size} such)"
        raise InvalidValueError("data.label", f"classes 0 to {classes - 1} in {what}", got, instead)


def from_shards(
    pattern: str,
    settings: DataSettings,
    *,
    kind: str,
    form: str,
    read: Callable[..., Content],
    arrange: Callable[[Sequence[Shard], Sequence[Content], DataSettings], Arranged],
    unlabelled: UnlabelledImages | None,
) -> Splits:
    """Divide the samples of shards, as `from_images` does, if there is room to read them in their order.

    ``read`` returns a shard's arrays, given it, the open file and ``settings=...``: among them ``labels``, texts in
    bytes, and ``names``, the classes' as JSON, if they are known. ``arrange`` makes one half's `Arranged` of them.
    ``kind`` is the source's prefix, ``form`` tells in caches' keys what is read, and ``unlabelled`` are further images.
    """
    read_by: list[Any] = [form, settings.image, settings.label]
    read_by += [] if settings.labels is None else [settings.labels]
    halves, source = [shards.find(pattern, what="data.source")], shards.shown(kind, pattern)
    if settings.test_shards is not None:
        halves.append(shards.find(settings.test_shards, what="data.test_shards"))
    contents = [shards.contents(half, partial(read, settings=settings), form=read_by) for half in halves]
    arranged = [arrange(half, found, settings) for half, found in zip(halves, contents, strict=True)]
    known = contents[0][0].get("names")
    names, labels = _labels(contents, settings, json.loads(known.tobytes()) if known is not None else None, source)
    notes = [note for _, _, said in arranged for note in said]
    description = Description(class_names=names, settings=settings, source=source, notes=notes, unlabelled=unlabelled)
    raws = [
        Raw(reader, classes, partial(shards.identity, half, found), units, shards.copying_ahead(half))
        for half, found, (reader, units, _), classes in zip(halves, contents, arranged, labels, strict=True)
    ]
    for half, raw in zip(halves, raws, strict=True):  # Test samples come in order.
        shuffled = settings if half is halves[0] else replace(settings, shuffle_buffer=1)
        shards.check_room(half, len(raw.labels), shuffled)
    test = raws[1] if len(raws) > 1 else None
    return from_images(raws[0], test, description, key=shards.key_of(halves, read_by, settings))


def _labels(
    contents: Sequence[Sequence[Content]], settings: DataSettings, names: Sequence[str] | None, source: str
) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Return the names of the classes or labels of shards, and the labels of each half."""
    if settings.labels is None:
        texts = [np.concatenate([np.char.decode(content["labels"]) for content in found]) for found in contents]
        return shards.numbered(texts, names, source=source)
    rows = [[row for content in found for row in json.loads(content["rows"].tobytes())] for found in contents]
    return multi_hot.table(rows, settings.labels, names, source=source)


def from_images(train: Raw, test: Raw | None, description: Description, *, key: str | None = None) -> Splits:
    """Build splits of encoded images: in memory if they fit, else streamed, as random boxes always are.

    Args:
        train: training images, from which validation is held out.
        test: test images; ``None`` takes them from ``train`` as the settings say.
        description: description of the source.
        key: key of the cache of the layout, and of the decoded pixels if they fit; ``None`` for no cache.

    Raises:
        ValueError: if images cannot be read, holding some out would leave a class without training images, or the
            training images are to be the test set of a source that has one.
    """
    if test is not None:
        refuse_train_as_test(description.settings, description.source)
    else:
        train, test, note = _make_test(train, description)
        description = replace(description, notes=[*description.notes, note])
    settings = description.settings
    halves = {"train": train} if test is train else {"train": train, "test": test}
    samples = sum(len(raw.labels) for raw in halves.values())
    samples += 0 if description.unlabelled is None else len(description.unlabelled.raw.labels)
    layout = cache.load_layout(key) if key is not None else None
    known = layout is not None
    saved = cache.load(key) if key is not None and (layout is None or _fits(samples, layout, settings)) else None
    pixels: list[Pixels] = []
    if saved is not None:
        layout, arrays = saved
        pixels = [
            Pixels(arrays[name], raw.labels, units=raw.units, texts=raw.texts, masks=arrays.get(f"{name}_masks"))
            for name, raw in halves.items()
        ]
    elif layout is None and (guessed := _decode_alike(list(halves.values()), settings, samples)) is not None:
        layout, pixels = guessed
    elif layout is None:
        layout = images.find_layout((train.reader, test.reader), size=settings.size, test_crop=settings.test_crop)
    # Pictures whose layout is known are not opened again.
    noted = cache.notes_of(key) if known and key is not None else [*_enlarged(train.reader, layout)]
    description = replace(description, notes=[*description.notes, *noted])
    if not _fits(samples, layout, settings):
        if key is not None and not known:
            cache.save(key, layout, {}, source=description.source, notes=noted)
        return _streamed(train, test, description, layout)
    pixels = pixels or [_decode(raw, layout, settings) for raw in halves.values()]
    with_frames = next((half.with_frames for half in pixels if half.with_frames is not None), None)
    if with_frames is not None:
        description = replace(description, notes=[*description.notes, images.frames_note(with_frames)])
    # What is to be said of the files would not be said again of cached pixels.
    if key is not None and saved is None and with_frames is None and not any(half.corrupt for half in pixels):
        named = dict(zip(halves, pixels, strict=True))
        arrays = {name: half.values for name, half in named.items()}
        arrays |= {f"{name}_masks": half.masks for name, half in named.items() if half.masks is not None}
        cache.save(key, layout, arrays, source=description.source, notes=noted)
    return from_pixels(pixels[0], pixels[-1], description, margin=layout.margin)


def _enlarged(reader: images.Reader, layout: images.Layout) -> Iterator[str]:
    """Yield a note where the first image is smaller than what is made of it."""
    try:
        (encoded,) = reader.encoded([0])
        with images.opened(encoded) as image:
            width, height = images.upright_size(image)
    except images.UnreadableError:
        return
    if height < layout.height and width < layout.width:
        made = f"{layout.width} by {layout.height} pixels"
        yield f"Images are enlarged to {made}: {reader.name(0)} has {width} by {height}."


def _with_unlabelled(
    train: Pixels, description: Description, layout: images.Layout, *, divisor: float
) -> tuple[Pixels, Description]:
    """Return the training images with those without labels behind them, and what is to be said."""
    extra, settings = description.unlabelled, description.settings
    if extra is None or settings.unlabelled is None:
        return train, description
    source = shown(settings.unlabelled.source)
    if not _fits(len(train.labels) + len(extra.raw.labels), layout, settings):
        each = layout.height * layout.width * (layout.channels + settings.has_masks)
        size = math.ceil((len(train.labels) + len(extra.raw.labels)) * each / 2**20)
        expected = f"at least the {size} MiB of {source} beside {description.source}, which is held in memory"
        instead = f"type data.memory_limit_mb={size}"
        raise InvalidValueError("data.memory_limit_mb", expected, settings.memory_limit_mb, instead)
    key = None if extra.key is None else cache.key_of([extra.key, list(layout), settings.interpolation])
    saved = None if key is None else cache.load(key)
    if saved is not None:
        decoded = Pixels(saved[1]["unlabelled"], extra.raw.labels)
    else:
        try:
            decoded = _decode(extra.raw, layout, settings)
        except TutelageError as error:
            raise error.renamed(of_unlabelled) from error
        if decoded.with_frames is not None:
            notes = [*description.notes, images.frames_note(decoded.with_frames)]
            description = replace(description, notes=notes)
        elif key is not None and not decoded.corrupt:
            cache.save(key, layout, {"unlabelled": decoded.values}, source=source)
    return train.joined(replace(decoded, values=images.rescale(decoded.values, divisor / 255))), description


def from_pixels(
    train: Pixels, test: Pixels, description: Description, *, divisor: float = 255.0, margin: float = 1.0
) -> Splits:
    """Build splits in memory; ``divisor`` is the value of white, ``margin`` that of the views they were cut from."""
    settings = description.settings
    _, height, width, channels = train.values.shape
    layout = images.Layout(height, width, channels, margin)
    joined, description = _with_unlabelled(train, description, layout, divisor=divisor)
    tested, test = test.labels, joined if test is train else test  # of which the first alone are asked for
    tensors = {id(half): torch.from_numpy(half.values) for half in (joined, test)}
    masks = {id(half): torch.from_numpy(half.masks) for half in (joined, test) if half.masks is not None}
    pool = WorkerPool()

    def make(part: str, positions: NDArray[np.int64], **fields: Any) -> Split:
        half = test if part == "test" else joined
        if half.masks is not None:
            bordered = part == "train" and settings.crop_padding > 0
            fields |= _of_masks(fields["labels"]) | {"all_counted": not (bordered or UNCOUNTED in half.masks)}
            fields["masks"] = _blanked(masks[id(half)], positions, fields["known"])
        return (MemorySplit if half.masks is None else MaskSplit)(
            pixels=tensors[id(half)],
            positions=torch.from_numpy(positions),
            settings=settings if part == "train" else None,
            divisor=divisor,
            on_device=settings.on_device,
            # Only work on a picture by itself is worth a separate process.
            workers=settings.workers if part == "train" and (settings.randaugment or settings.transform) else 0,
            pool=pool,
            corrupt=list(half.corrupt) if part == "train" or half is not joined else [],
            units=None if half.units is None else half.units[positions],
            texts=None if half.texts is None else half.texts[positions],
            shuffle_buffer=settings.shuffle_buffer,
            **fields,
        )

    content = [cache.digest(array) for half in (joined, test) for array in (half.values, half.labels)]
    content += [cache.digest(half.units) for half in (joined, test) if half.units is not None]  # the order follows them
    content += [cache.digest(half.masks) for half in (joined, test) if half.masks is not None]
    content.append(f"divisor {divisor}")
    splits = _divide(joined.labels, tested, description, make, own=len(train.labels), layout=layout, content=content)
    return replace(splits, divisor=divisor)


def _of_masks(labels: Tensor) -> dict[str, Tensor]:
    """Return the fields of a split of masks for labels as of `Raw`."""
    return {"labels": labels.new_empty(len(labels), 0), "known": labels != UNLABELLED}


def _blanked(masks: Tensor, positions: NDArray[np.int64], known: Tensor) -> Tensor:
    """Return masks of which those of samples that lose theirs are 0."""
    if bool(known.all()):
        return masks
    masks = masks.clone()
    masks[torch.from_numpy(positions)[~known]] = 0
    return masks


def _make_test(raw: Raw, description: Description) -> tuple[Raw, Raw, str]:
    """Divide a source without a test set; return both halves and a note of how."""
    kept, held_out, note = hold_out_test(raw.labels, description.settings, description.class_names)
    return (raw.subset(kept), raw.subset(held_out), note) if held_out is not kept else (raw, raw, note)


def hold_out_test(
    labels: NDArray[np.int64], settings: DataSettings, names: Sequence[str], *, what: str = "images"
) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    """Divide a source without a test set; ``names`` are the classes', ``what`` the samples'.

    Returns:
        Positions of the samples for training and for test, the same array if they are the same; a note of how.
    """
    count, seed = len(labels), settings.split_seed
    if settings.test == "train":
        unvaried = ", not augmented" if what == "images" else ""
        note = f"There are no held-out {what}: the test set is the {count} training {what}{unvaried}."
        return (everything := np.arange(count)), everything, note
    held_out = stratified(labels, count=round(count * HELD_OUT), seed=seed, stream=rng.TEST)
    kept = np.setdiff1d(np.arange(count), held_out)
    if labels.ndim == 1:
        lost, each = np.setdiff1d(labels, np.append(labels[kept], UNLABELLED)), "class"
    else:
        lost, each = np.flatnonzero((labels == 1).any(0) & ~(labels[kept] == 1).any(0)), "label"
    if lost.size and settings.embedding is None:
        raise InvalidValueError(
            "data.source",
            f"{what} enough of every {each} to hold a fifth out for test",
            f"none to learn from of {names[lost[0]]} ({lost.size} such)",
            f"give it a test set, or type data.test=train to judge on the training {what}",
        )
    note = f"The source has no test set: {len(held_out)} of its {count} {what} were held out (split_seed {seed})."
    return kept, held_out, note


def hold_out_validation(
    labels: NDArray[np.int64], settings: DataSettings
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of the samples that stay for training, and of those for validation."""
    count = len(labels)
    held_count = round(count * settings.validation)
    if settings.validation and not 0 < held_count < count:
        expected = f"a fraction that leaves samples on both sides of {count}"
        raise InvalidValueError("data.validation", expected, settings.validation, "type data.validation=0")
    held_out = stratified(labels, count=held_count, seed=settings.split_seed, stream=rng.VALIDATION)
    return np.setdiff1d(np.arange(count), held_out), held_out


def labels_kept(labels: NDArray[np.int64], settings: DataSettings, *, classes: int) -> NDArray[np.int64]:
    """Return training labels, of which only so many a class are left as the settings say."""
    if settings.labelled is None:
        return labels
    return keep_labels(
        labels, per_class=settings.labelled, classes=classes, seed=settings.split_seed, stream=rng.LABELLED
    )


def unlabelled_samples(settings: DataSettings, *, own: int, samples: int) -> UnlabelledSamples | None:
    """Return the training samples of the source without labels, behind so many of the data set's own, if there is one.

    Raises:
        InvalidValueError: their share is less than one of them in an epoch.
    """
    if settings.unlabelled is None:
        return None
    share = settings.unlabelled.share
    part = UnlabelledSamples(source=shown(settings.unlabelled.source), first=own, samples=samples, share=share)
    if share and not part.per_epoch:
        expected = f"a share of at least one beside the {own} samples of data.source, or 0"
        instead = f"type data.unlabelled.share={1 / (own + 1):.2g}, or null for all"
        raise InvalidValueError("data.unlabelled.share", expected, share, instead)
    return part


def _streamed(train: Raw, test: Raw, description: Description, layout: images.Layout) -> Splits:
    pool = WorkerPool()
    noted: list[str] = []
    joined = train if description.unlabelled is None else train.joined(description.unlabelled.raw)

    def make(part: str, positions: NDArray[np.int64], **fields: Any) -> Split:
        half = test if part == "test" else joined
        if half.masks is not None:
            fields |= _of_masks(fields["labels"]) | {"masks": half.masks}
        return (StreamSplit if half.masks is None else MaskStreamSplit)(
            noted=noted,
            reader=half.reader,
            positions=positions,
            layout=layout,
            settings=description.settings,
            augmented=part == "train",
            workers=description.settings.workers,
            pool=pool,
            on_device=description.settings.on_device,
            units=None if half.units is None else half.units[positions],
            texts=None if half.texts is None else half.texts[positions],
            ahead=half.ahead,
            shuffle_buffer=description.settings.shuffle_buffer,
            **fields,
        )

    content = [hashlib.sha256(raw.identity()).hexdigest() + cache.digest(raw.labels) for raw in (joined, test)]
    content.append(str(tuple(layout)))
    if not isinstance(joined.reader, images.ArrayReader):
        content.append(f"reader {images.READER_VERSION}")
    return _divide(joined.labels, test.labels, description, make, own=len(train.labels), layout=layout, content=content)


def _mixing(description: Description, layout: images.Layout, labels: Tensor) -> Mixing | None:
    """Return how training samples are mixed, or ``None``.

    Raises:
        ValueError: if only some samples have a label, which a soft label cannot express.
    """
    settings = description.settings
    if not (settings.mix_probability and (settings.mixup or settings.cutmix)):
        return None
    known = int((labels != UNLABELLED).sum())
    if 0 < known < len(labels):
        name = "mixup" if settings.mixup else "cutmix"
        expected = "labels for all training samples or for none where samples are mixed"
        key = "labelled" if settings.unlabelled is None else "unlabelled"
        instead = f"type data.mixup=0 data.cutmix=0, or data.{key}=null"
        raise InvalidValueError(f"data.{name}", expected, f"labels for {known} of {len(labels)}", instead)
    return Mixing(
        mixup=settings.mixup,
        cutmix=settings.cutmix,
        probability=settings.mix_probability,
        switch=settings.switch_probability,
        classes=len(description.class_names),
        image_size=(layout.height, layout.width),
    )


def _fits(samples: int, layout: images.Layout, settings: DataSettings) -> bool:
    """Return whether a data set is held in memory; views cut from originals never are."""
    size = samples * layout.height * layout.width * (layout.channels + settings.has_masks)
    return not settings.random_resized_crop and size <= settings.memory_limit_mb * 2**20


def _decode_alike(
    halves: Sequence[Raw], settings: DataSettings, samples: int
) -> tuple[images.Layout, list[Pixels]] | None:
    """Decode as if every image had the first one's size, so that none is opened twice; ``None`` if one does not.

    ``samples`` is how many images must fit into memory.
    """
    first = images.Subset(halves[0].reader, np.arange(1))
    try:
        (encoded,) = first.encoded([0])
        with images.opened(encoded) as image:
            size = images.upright_size(image)
    except images.UnreadableError:
        return None
    layout = images.find_layout([first], size=settings.size, test_crop=settings.test_crop)
    if not _fits(samples, layout, settings):
        return None
    try:
        return layout, [_decode(raw, layout, settings, alike=size) for raw in halves]
    except images.UnlikeError:
        return None


def _decode(raw: Raw, layout: images.Layout, settings: DataSettings, *, alike: tuple[int, int] | None = None) -> Pixels:
    half = images.decode_all(raw.reader, layout, alike=alike, interpolation=settings.interpolation)
    if half.faults and (settings.on_corrupt == "stop" or not len(half.kept)):
        images.stop_on(half.faults[0])
    corrupt = tuple(fault.name for fault in half.faults)
    units = None if raw.units is None else raw.units[half.kept]
    texts = None if raw.texts is None else raw.texts[half.kept]
    masks = None if raw.masks is None else raw.masks.decoded(half.kept, layout)
    return Pixels(half.pixels, raw.labels[half.kept], corrupt, half.with_frames, units, texts, masks)


def _divide(
    train_labels: NDArray[np.int64],
    test_labels: NDArray[np.int64],
    description: Description,
    make: Callable[..., Split],
    *,
    own: int,
    layout: images.Layout,
    content: Sequence[str],
) -> Splits:
    """Hold validation out and drop labels; ``make`` builds a split from its name, positions, labels and mixing.

    The first ``own`` training images are divided; those without labels, behind them, all stay.
    """
    settings = description.settings
    if settings.crop_padding >= min(layout.height, layout.width):
        below = f"a border below the images, {layout.width} by {layout.height} pixels"
        raise InvalidValueError("data.crop_padding", below, settings.crop_padding, "type data.crop_padding=0")
    kept, held_out = hold_out_validation(train_labels[:own], settings)
    unlabelled = unlabelled_samples(settings, own=len(kept), samples=len(train_labels) - own)
    kept = np.append(kept, np.arange(own, len(train_labels)))
    classes = len(description.class_names) if train_labels.ndim == 1 else 2
    labels = labels_kept(train_labels[kept], settings, classes=1 if settings.has_masks else classes)
    kept_labels, held_labels = torch.from_numpy(labels), torch.from_numpy(train_labels[held_out])
    identity = "\n".join([*content, cache.digest(kept) + cache.digest(held_out)])
    return Splits(
        train=make(
            "train",
            kept,
            labels=kept_labels,
            mixing=_mixing(description, layout, kept_labels),
            unlabelled=unlabelled,
        ),
        validation=make("validation", held_out, labels=held_labels) if held_out.size else None,
        test=make("test", np.arange(len(test_labels)), labels=torch.from_numpy(test_labels)),
        classes=classes,
        class_names=tuple(description.class_names),
        channels=layout.channels,
        image_size=(layout.height, layout.width),
        margin=layout.margin,
        interpolation=settings.interpolation,
        source=description.source,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
        notes=tuple(description.notes),
        task="pixels" if settings.has_masks else "classes" if train_labels.ndim == 1 else "labels",
    )
