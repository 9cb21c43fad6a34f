"""Reading images: from encoded images to 8-bit pixels, with their readers and common layout."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tutelage.errors import InvalidTypeError, InvalidValueError, NotFoundError

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""Errors that Pillow raises on files that are truncated, mistyped or absurd."""
MARGIN = 256 / 224
MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's pixels, by channel, where white is 1."""
STD = (0.229, 0.224, 0.225)
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
"""Resampling filters by their names in settings."""
DEFAULT_SIZE = 224
_GREY = ("L", "1")
_CHUNK = 256
_THREADS = 8

Encoded = bytes | Path | Image.Image


class Reader(Protocol):
    """Images by position, not yet decoded."""

    def __len__(self) -> int:
        """Return the number of images."""

    def name(self, position: int) -> str:
        """Return a name by which a user can find the image; no absolute path."""

    def encoded(self, positions: Sequence[int]) -> list[Encoded]:
        """Return the images' files; must be safe to call from several threads."""


@dataclass(frozen=True)
class Subset:
    """Some of another reader's images."""

    reader: Reader
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, position: int) -> str:
        """Return the image's name in the other reader."""
        return self.reader.name(int(self.positions[position]))

    def encoded(self, positions: Sequence[int]) -> list[Encoded]:
        """Return the images' files."""
        return self.reader.encoded([int(p) for p in self.positions[np.asarray(positions, np.int64)]])


@dataclass(frozen=True)
class ArrayReader:
    """Images that are already pixels: ``(images, height, width, channels)`` uint8."""

    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, position: int) -> str:
        """Return the image's position."""
        return f"sample {position}"

    def encoded(self, positions: Sequence[int]) -> list[Encoded]:
        """Return the images."""
        return [image_of(self.pixels[p]) for p in positions]


class Layout(NamedTuple):
    """The common shape, in pixels, of all images in a data set."""

    height: int
    width: int
    channels: int  # number of channels: 1 if every image is grey, else 3
    margin: float  # size of the resized copy relative to the evaluation view, its centre


class Fault(NamedTuple):
    """An image that could not be read: its name, and the reason in one line."""

    name: str
    reason: str


def as_image(image: Any) -> Image.Image:
    """Open a user's image: a path, a Pillow image, or a uint8 array ``(height, width[, channels])``.

    Raises:
        TypeError: if it is none of these.
        FileNotFoundError: if there is no such file.
        ValueError: if a file cannot be read as an image, or pixels have more than 8 bits.
    """
    if isinstance(image, str | Path):
        if not Path(image).is_file():
            raise NotFoundError("images", "an image file", f"{str(image)!r}, which is none", "check the path")
        try:
            with open_image(Path(image)) as opened:
                return opened.copy()
        except UNREADABLE as error:
            raise InvalidValueError(
                "images", "a readable image", f"{str(image)!r} ({one_line(error)})", "check the file"
            ) from error
    if isinstance(image, Image.Image):
        return open_image(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        height, width, channels = (*image.shape, 1)[:3]
        if height and width and 1 <= channels <= 4:
            return image_of(image)
    got = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    instead = "for a float tensor in [0, 1] call the classifier itself"
    raise InvalidTypeError("images", "paths, PIL images or uint8 arrays (height, width, channels)", got, instead)


def open_image(encoded: Encoded) -> Image.Image:
    """Open an image without decoding its pixels.

    Raises:
        ValueError: if pixels have more than 8 bits, which would be clipped silently.
    """
    if isinstance(encoded, Image.Image):
        image = encoded
    else:
        image = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        if image is not encoded:
            image.close()
        raise InvalidValueError("image", "8-bit pixels", f"mode {image.mode}", "convert the image to 8 bits")
    return image


def decode(encoded: Encoded, *, channels: int) -> Image.Image:
    """Decode an image to grey (1 channel) or RGB (3)."""
    with open_image(encoded) as image:
        return convert(image, channels=channels)


def convert(image: Image.Image, *, channels: int) -> Image.Image:
    """Return a grey (1 channel) or RGB (3) image; transparency is dropped, even a palette's."""
    if image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("RGB" if channels == 3 else "L")


def centre(image: Image.Image, layout: Layout, *, interpolation: str = "bilinear") -> NDArray[np.uint8]:
    """Return the evaluation view: resized (antialiased) to cover the layout times its margin, centre crop.

    Returns:
        ``(height, width, channels)`` uint8.
    """
    if layout.margin != 1 or image.size != (layout.width, layout.height):
        scale = layout.margin * max(layout.width / image.width, layout.height / image.height)
        width = max(layout.width, round(image.width * scale))
        height = max(layout.height, round(image.height * scale))
        left, top = (width - layout.width) // 2, (height - layout.height) // 2
        image = image.resize((width, height), RESAMPLING[interpolation])
        image = image.crop((left, top, left + layout.width, top + layout.height))
    return pixels_of(image)


def cut(
    image: Image.Image, box: tuple[int, int, int, int], layout: Layout, *, interpolation: str = "bilinear"
) -> NDArray[np.uint8]:
    """Return a box of an image, resized (antialiased) to the layout."""
    return pixels_of(image.resize((layout.width, layout.height), RESAMPLING[interpolation], box=box))


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return ``(height, width, channels)`` uint8."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def image_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return the image of ``(height, width)`` or ``(height, width, channels)``: the inverse of `pixels_of`."""
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


def rescale(pixels: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Return the pixels times a factor, rounded."""
    return pixels if factor == 1 else np.rint(pixels * factor).astype(np.uint8)


def one_line(error: BaseException) -> str:
    """Return an error's first line, or its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def find_layout(readers: Iterable[Reader], *, size: int | None, test_crop: float | None = None) -> Layout:
    """Decide the shape of a data set from its images' headers, reading no further than the answer needs.

    Raises:
        ValueError: if no image can be opened.
    """
    first: tuple[int, int] | None = None
    mixed, colour = False, False
    chunks = (
        reader.encoded(range(start, min(start + _CHUNK, len(reader))))
        for reader in readers
        for start in range(0, len(reader), _CHUNK)
    )
    for encoded in chain.from_iterable(chunks):
        try:
            image = open_image(encoded)
        except UNREADABLE:
            continue
        first = first or image.size
        mixed |= image.size != first
        colour |= image.mode not in _GREY
        if not isinstance(encoded, Image.Image):
            image.close()
        if mixed and colour:
            break
    if first is None:
        raise InvalidValueError("data.source", "images", "files of which not one can be opened", "check the files")
    width, height = first
    if size is not None or mixed:
        width = height = size or DEFAULT_SIZE
    margin = MARGIN if mixed else 1.0
    return Layout(height, width, 3 if colour else 1, margin if test_crop is None else 1 / test_crop)


class UnlikeError(Exception):
    """An image differs from the first in size, or has colours although the first is grey."""


def decode_all(
    reader: Reader, layout: Layout, *, alike: tuple[int, int] | None = None, interpolation: str = "bilinear"
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[Fault]]:
    """Decode a whole reader, in threads (Pillow decodes outside the interpreter's lock).

    Args:
        reader: reader of the images.
        layout: layout to bring them to.
        alike: width and height that every image must have, if the layout is only a guess from one of them.
        interpolation: interpolation of resizes, a key of `RESAMPLING`.

    Returns:
        Pixels ``(kept, height, width, channels)``, the positions kept, and the images that could not be read.

    Raises:
        UnlikeError: if the guess was wrong.
    """
    pixels = np.empty((len(reader), layout.height, layout.width, layout.channels), np.uint8)
    starts = range(0, len(reader), _CHUNK)

    def work(start: int) -> list[tuple[int, Fault]]:
        positions = range(start, min(start + _CHUNK, len(reader)))
        faults = []
        for position, encoded in zip(positions, reader.encoded(positions), strict=True):
            try:
                with open_image(encoded) as image:
                    grey = image.mode in _GREY
                    if alike is not None and (image.size != alike or (layout.channels == 1 and not grey)):
                        raise UnlikeError
                    decoded = convert(image, channels=layout.channels)
                    pixels[position] = centre(decoded, layout, interpolation=interpolation)
            except UNREADABLE as error:
                faults.append((position, Fault(reader.name(position), one_line(error))))
        return faults

    with ThreadPoolExecutor(_THREADS) as pool:
        faults = dict(chain.from_iterable(pool.map(work, starts)))
    kept = np.setdiff1d(np.arange(len(reader)), np.array(list(faults), np.int64))
    return (pixels[kept] if faults else pixels), kept, list(faults.values())


def stop_on(fault: Fault) -> NoReturn:
    """Raise the error of a corrupt image."""
    instead = "repair or remove the file, or type data.on_corrupt=skip"
    raise InvalidValueError("data.source", "a readable image", f"{fault.name} ({fault.reason})", instead)
