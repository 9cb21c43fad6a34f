"""``imagefolder:``: a folder of images per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage import plain_files
from tutelage.data import multi_hot
from tutelage.data.build import Description, Raw, UnlabelledImages, from_images
from tutelage.data.cache import digest, key_of
from tutelage.data.datasets import Splits
from tutelage.data.file_hashes import Files, listing, scan
from tutelage.data.image_files import FolderReader, Pictures, pixels_key
from tutelage.data.names import EXTENSIONS, image_folder, is_picture
from tutelage.data.sources.text_files import csv_rows, json_lines
from tutelage.errors import InvalidValueError, one_line
from tutelage.images import MAX_BYTES, READER_VERSION
from tutelage.settings.data import DataSettings
from tutelage.types import UNLABELLED

_KINDS = f"images ({' '.join(sorted(EXTENSIONS))})"
TESTS = ("test", "val", "validation", "valid")
_METADATA = ("metadata.csv", "metadata.jsonl")
_SHAPE = "<path>/train/<class>/<image> with <path>/test/<class>/<image>, or <path>/<class>/<image>"


def open_folder(path: str, settings: DataSettings, unlabelled: UnlabelledImages | None = None) -> Splits:
    """Open a folder of images.

    Training images are in ``path/train``, test images in ``path/test`` (or ``val``, ``validation``, ``valid``); without
    a test folder, or with the classes directly in ``path``, ``settings.test`` says what the test set is.

    Where samples have several labels, each of these folders has no class folders, but a ``metadata.csv`` or a
    ``metadata.jsonl``: its column ``file_name`` names the images below it, each in one row, beside the labels' columns.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there are no class folders or images, the test folder has a class that train lacks, or an image
            is not named, or not there.
    """
    root = image_folder(path)
    train_root = root / "train" if (root / "train").is_dir() else root
    test_root = next((root / n for n in TESTS if (root / n).is_dir()), None) if train_root != root else None
    if settings.labels is not None:
        roots = [train_root, *([] if test_root is None else [test_root])]
        described = [_described(root, below, settings.labels) for below in roots]
        source = f"imagefolder:{root.resolve().name}"
        names, labels = multi_hot.table([rows for _, rows in described], settings.labels, None, source=source)
        halves = [(files, half) for (files, _), half in zip(described, labels, strict=True)]
        return _opened(root, test_root, halves, names, settings, unlabelled)
    names, pictures = _classes(train_root, path), Pictures()
    halves = [_scan(train_root, names, root, path, pictures)]
    counts = np.bincount(halves[0][1], minlength=len(names))
    if not counts.all():
        expected = f"images in every class folder of imagefolder:{path}"
        instead = "add images or remove the folder"
        raise InvalidValueError("data.source", expected, f"none in {names[int(counts.argmin())]}", instead)
    if test_root is not None:
        unknown = sorted(set(_classes(test_root, path)) - set(names))
        if unknown:
            instead = f"add it to train or remove it from {test_root.name}"
            raise InvalidValueError("data.source", f"in {test_root.name} the classes of train", unknown[0], instead)
        halves.append(_scan(test_root, names, root, f"{path} ({test_root.name})", pictures))
    return _opened(root, test_root, halves, names, settings, unlabelled, pictures.note())


def _opened(
    root: Path,
    test_root: Path | None,
    halves: Sequence[tuple[Files, NDArray[np.int64]]],
    names: Sequence[str],
    settings: DataSettings,
    unlabelled: UnlabelledImages | None,
    said: Sequence[str] = (),
) -> Splits:
    """Return the splits of a folder's files and their labels, for training and for test; ``said`` are notes."""
    notes = [*said]
    if test_root is not None and test_root.name != "test":
        notes.append(f"The source has no test folder: {test_root.name} is used for test.")
    description = Description(
        class_names=names,
        settings=settings,
        source=f"imagefolder:{root.resolve().name}",
        notes=notes,
        unlabelled=unlabelled,
    )
    raws = [
        Raw(FolderReader(root, files.names), labels, cache(partial(listing, files, max_bytes=MAX_BYTES)))
        for files, labels in halves
    ]
    key = pixels_key([files for files, _ in halves], settings)
    return from_images(raws[0], raws[1] if test_root is not None else None, description, key=key)


def _described(root: Path, below: Path, columns: multi_hot.Columns) -> tuple[Files, list[list[Any] | None]]:
    """Return the images in a folder, and what its metadata say of their labels."""
    file = next((below / name for name in _METADATA if (below / name).is_file()), None)
    expected = f"{' or '.join(_METADATA)} in {below.name}, with a file_name and labels for each of its images"
    if file is None:
        raise InvalidValueError("data.source", expected, "none", "write one, or leave data.labels out")
    prefix = "" if below == root else below.name
    rows: dict[str, list[Any] | None] = {}
    lines = csv_rows if file.suffix == ".csv" else json_lines
    for where, record in lines(file, plain_files.read(file).removeprefix(b"\xef\xbb\xbf")):
        try:
            if isinstance(record, ValueError):
                raise record
            if not isinstance(name := record.get("file_name"), str):
                raise ValueError("no text in 'file_name'")
            if (picture := os.path.normpath(os.path.join(prefix, name))) in rows:
                raise ValueError(f"{name!r} a second time")
            rows[picture] = multi_hot.row_of(record, columns)
        except ValueError as error:
            got = f"{where}: {one_line(error)}"
            raise InvalidValueError("data.source", expected, got, "mend it, or name other columns") from error
    files, _ = scan(root, [prefix], keep=is_picture, enter=lambda name: not name.startswith("."))
    found = [os.fsdecode(name) for name in files.names.tolist()]
    if lacking := sorted(set(found) - rows.keys()):
        raise InvalidValueError("data.source", expected, f"no row for {lacking[0]} ({len(lacking)} such)", "add them")
    if absent := sorted(rows.keys() - set(found)):
        raise InvalidValueError("data.source", expected, f"no image {absent[0]} ({len(absent)} such)", "add them")
    return files, [rows[name] for name in found]


def unlabelled_images(path: str) -> UnlabelledImages:
    """Open all images in a folder and in its folders, without classes.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no images.
    """
    root = image_folder(path, kind="images")
    files, _ = scan(root, [""], keep=is_picture, enter=lambda name: not name.startswith("."))
    if not len(files.names):
        raise InvalidValueError("data.source", _KINDS, f"none in images:{path}", "check the path")
    labels = np.full(len(files.names), UNLABELLED, np.int64)
    raw = Raw(FolderReader(root, files.names), labels, partial(listing, files, max_bytes=MAX_BYTES))
    key = key_of([str(root.resolve()), digest(files.names), digest(files.stats), READER_VERSION])
    return UnlabelledImages(raw=raw, key=key)


def _classes(root: Path, path: str) -> list[str]:
    names = sorted(name for name in os.listdir(root) if os.path.isdir(root / name) and not name.startswith("."))
    if not names:
        raise InvalidValueError("data.source", _SHAPE, f"imagefolder:{path} without class folders", "check the path")
    return names


def _scan(
    root: Path, classes: Sequence[str], base: Path, path: str, pictures: Pictures
) -> tuple[Files, NDArray[np.int64]]:
    """List the images of the classes, sorted by name, and label them."""
    below = "" if root == base else root.name + os.sep
    files, counts = scan(base, [below + name for name in classes], keep=pictures)
    if not len(files.names):
        raise InvalidValueError("data.source", _KINDS, f"none in imagefolder:{path}", f"arrange them as {_SHAPE}")
    return files, np.repeat(np.arange(len(classes)), counts)
