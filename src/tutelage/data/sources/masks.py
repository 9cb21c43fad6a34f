"""``masks:``: a folder of images, and one of masks with the class of each pixel."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, partial
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage import plain_files
from tutelage.data.build import Description, Raw, UnlabelledImages, from_images
from tutelage.data.cache import digest, key_of
from tutelage.data.datasets import Splits
from tutelage.data.file_hashes import Files, listing, scan
from tutelage.data.image_files import FolderReader
from tutelage.data.masks import UNCOUNTED, Masks
from tutelage.data.names import image_folder, is_picture
from tutelage.data.sources.imagefolder import TESTS
from tutelage.errors import InvalidValueError, one_line
from tutelage.images import MAX_BYTES, READER_VERSION
from tutelage.settings.data import DataSettings

NAMES = "classes.txt"
IMAGES, MASKS = "images", "masks"
_SHAPE = "<path>/images/1.jpg with <path>/masks/1.png, or both below <path>/train and <path>/test"


def open_masks(path: str, settings: DataSettings, unlabelled: UnlabelledImages | None = None) -> Splits:
    """Open a folder of images and masks of the same names, whatever their extensions are.

    They are in ``path/images`` and ``path/masks``, or in such folders below ``path/train`` and ``path/test`` (or
    ``val``, ``validation``, ``valid``). A mask has one channel of 8 bits; 255 is a pixel without a class. The classes'
    names are the lines of ``path/classes.txt``; without it they are numbers, as many as the largest value tells.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: an image lacks its mask, or a mask its image; a mask cannot be read, or does not fit.
    """
    root = image_folder(path, kind="masks")
    divided = (root / "train").is_dir()
    test_root = next((name for name in TESTS if (root / name).is_dir()), None) if divided else None
    folders = ["train" if divided else ""] + ([test_root] if test_root is not None else [])
    halves = [_half(root, below, path) for below in folders]
    readers = [tuple(FolderReader(root, files.names) for files in half) for half in halves]
    names = _names(root / NAMES) if (root / NAMES).exists() else None
    if names is None:
        names = numbered_classes([Masks(masks, pictures) for pictures, masks in readers], f"masks:{path}")
    notes = [f"The source has no test folder: {test_root} is used for test."] if test_root not in (None, "test") else []
    source = f"masks:{root.resolve().name}"
    description = Description(class_names=names, settings=settings, source=source, notes=notes, unlabelled=unlabelled)
    raws = [
        Raw(
            pictures,
            np.zeros(len(pictures), np.int64),
            cache(partial(_identity, half)),
            masks=Masks(masks, pictures, len(names)),
        )
        for half, (pictures, masks) in zip(halves, readers, strict=True)
    ]
    key = _key(halves, len(names), settings)
    return from_images(raws[0], raws[1] if test_root is not None else None, description, key=key)


def numbered_classes(halves: list[Masks], source: str) -> list[str]:
    """Return the classes' numbers as names, as many as the largest value of all masks tells."""
    classes = max(masks.counted_classes() for masks in halves)
    if classes < 2:
        got = f"no other value than 0 and {UNCOUNTED} in {source}"
        instead = f"write 1, 2, ... for the other classes: {UNCOUNTED} marks pixels that have none"
        raise InvalidValueError("data.source", "masks of at least 2 classes", got, instead)
    return [str(number) for number in range(classes)]


def _half(root: Path, below: str, path: str) -> tuple[Files, Files]:
    """List the images and the masks of a folder, one of each per sample, in the same order."""
    images, masks = (_listed(root, os.path.join(below, kind), path) for kind in (IMAGES, MASKS))
    for (one, kind), (other, kind_of_other) in permutations(((images, IMAGES), (masks, MASKS))):
        if lone := one.keys() - other.keys():
            first = os.path.join(below, kind, min(lone))
            got = f"none for {first}" + f" and {len(lone) - 1} more" * (len(lone) > 1)
            extra = ", or name pictures without masks by data.unlabelled=images:<folder>" * (kind == IMAGES)
            instead = f"add it or remove {first}{extra}"
            expected = f"an image and a mask of each name, in {IMAGES} and {MASKS}"
            raise InvalidValueError("data.source", expected, f"{got} in {kind_of_other}", instead)
    return _taken(root, images.values()), _taken(root, (masks[name] for name in images))


def _listed(root: Path, folder: str, path: str) -> dict[str, tuple[bytes, NDArray[np.int64]]]:
    """Return name and state of the files of a folder and its folders, by their path there without the extension."""
    files, _ = scan(root, [folder], keep=is_picture, enter=lambda name: not name.startswith("."))
    listed: dict[str, tuple[bytes, NDArray[np.int64]]] = {}
    for name, stats in zip(files.names.tolist(), files.stats, strict=True):
        below = os.path.splitext(os.path.relpath(os.fsdecode(name), folder))[0]
        if below in listed:
            both = " and ".join(os.fsdecode(each) for each in (listed[below][0], name))
            instead = "rename or remove one"
            raise InvalidValueError("data.source", f"one picture of each name in {folder}", both, instead)
        listed[below] = name, stats
    if not listed:
        got = f"none in {folder} of masks:{path}"
        raise InvalidValueError("data.source", "pictures and masks", got, f"arrange them as {_SHAPE}")
    return listed


def _taken(root: Path, listed: Iterable[tuple[bytes, NDArray[np.int64]]]) -> Files:
    names, stats = zip(*listed, strict=True)
    return Files(root, np.array(names, np.bytes_), np.stack(stats))


def _names(file: Path) -> list[str]:
    """Return the lines of a file of classes' names."""
    try:
        names = plain_files.read(file).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        got = f"{file.name} ({one_line(error)})"
        raise InvalidValueError("data.source", "names of classes in UTF-8", got, "write a name per line") from error
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    faults = [f"an empty line {number}" for number, name in enumerate(names, 1) if not name]
    faults += [f"{name!r} twice" for name, count in Counter(names).items() if name and count > 1]
    faults += [f"{len(names)} lines"] * (len(names) > UNCOUNTED)
    if faults:
        expected = f"at most {UNCOUNTED} names of classes, each on a line and none twice"
        raise InvalidValueError("data.source", expected, f"{faults[0]} in {file.name}", f"mend {file.name}")
    return names


def _identity(half: tuple[Files, Files]) -> bytes:
    return b"\0".join(listing(files, max_bytes=MAX_BYTES) for files in half)


def _key(halves: Sequence[tuple[Files, Files]], classes: int, settings: DataSettings) -> str:
    """Name the layout, the decoded pixels and the masks by the files and their times."""
    each = [[str(f.root.resolve()), digest(f.names), digest(f.stats)] for half in halves for f in half]
    division = [settings.test, settings.split_seed] if len(halves) == 1 else None
    read = [READER_VERSION, settings.size, settings.test_crop, settings.interpolation, division]
    return key_of([each, read, classes])
