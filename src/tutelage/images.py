"""The one reader of images: from encoded images to 8-bit pixels, with their readers and common layout.

What a picture's pixels are, wherever it comes from (`opened` and `decode`):

- Formats are `FORMATS`, found by content; no other decoder is started. Of several frames or pages the first is read. A
  file is a regular one of at most `MAX_BYTES`, a picture has at most `MAX_PIXELS`.
- The orientation that EXIF (or XMP) tells is applied, as viewers do; one that is broken or unknown counts as upright.
- Pixels have 8 bits. Grey of 16 bits (PNG, TIFF, PGM; mode ``I;16``) has its white at 65535, of 12 bits (TIFF) at 4095,
  and is rounded to the nearest of 256 values; of colours in 16 bits Pillow keeps the upper 8. Integers of 32 bits and
  floats have no white that is known, and are refused.
- Palettes become their colours. Transparency is dropped, and what lies below it is seen. CMYK, YCbCr and HSV are
  converted by Pillow's formulas, colour profiles are not applied, LAB is refused.
- A random box of a JPEG may come from a smaller picture, which is decoded faster, if that still has a pixel for each of
  the view (`decode_box`). Evaluation views never do.
- A data set whose pictures are all grey (8, 12, 16 bits, or black and white) has one channel, else three.
- Of a mask the values are classes: a palette's numbers, grey of 8 bits, or black and white as 0 and 1 (`decode_mask`).
"""

from __future__ import annotations

import io
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from tutelage.errors import InvalidValueError, one_line, reason_of

READER_VERSION = 3
"""Version of the pixels and views that are made of a file; those of another version are not mixed with them."""
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "GIF", "WEBP", "TIFF")
"""Formats that are read, by Pillow's names."""
MAX_PIXELS = 89_478_485
"""Most pixels of a picture: where Pillow begins to warn."""
MAX_BYTES = 2**30
"""Largest file that is opened."""
MARGIN = 256 / 224
MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's pixels, by channel, where white is 1."""
STD = (0.229, 0.224, 0.225)
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
"""Resampling filters by their names in settings; the last, which makes no new values, is that of masks."""
DEFAULT_SIZE = 224
_JPEG = ("JPEG", "MPO")  # MPO: a JPEG that is followed by others
_GREY = frozenset({"L", "1"})
_CONVERTIBLE = _GREY | {"LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its orientation in EXIF."""
_PNG_ORIENTATION = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")
_SIDEWAYS = frozenset(_TRANSPOSITIONS[orientation] for orientation in (5, 6, 7, 8))
_BUFFER = 2**17
"""Bytes read at once: a header is read byte by byte, and then again with the pixels."""
_CHUNK = 256
_THREADS = 8


class UnreadableError(Exception):
    """A picture that cannot be read; the message is the reason, in one line."""


Encoded = bytes | Path | Image.Image | UnreadableError
"""A picture to be read, or the error that its source raised in its place."""


Box = tuple[int, int, int, int]
"""Left, top, right and bottom, pixels."""


class Reader(Protocol):
    """Images by position, not yet decoded."""

    def __len__(self) -> int:
        """Return the number of images."""

    def name(self, position: int) -> str:
        """Return a name by which a user can find the image; no absolute path."""

    def encoded(self, positions: Sequence[int]) -> list[Encoded]:
        """Return the images' files, or errors in their places; must be safe to call from several threads."""


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
class Joined:
    """Images of one reader, and behind them those of another."""

    first: Reader
    second: Reader

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def name(self, position: int) -> str:
        """Return the image's name in its reader."""
        behind = position - len(self.first)
        return self.first.name(position) if behind < 0 else self.second.name(behind)

    def encoded(self, positions: Sequence[int]) -> list[Encoded]:
        """Return the images' files, each reader's read together."""
        count = len(self.first)
        first = iter(self.first.encoded([p for p in positions if p < count]))
        second = iter(self.second.encoded([p - count for p in positions if p >= count]))
        return [next(first if p < count else second) for p in positions]


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


@contextmanager
def reasoned() -> Iterator[None]:
    """Turn whatever a decoder raises into UnreadableError; memory that runs out is not the picture's fault."""
    try:
        yield
    except (UnreadableError, UnlikeError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError(f"none of the formats {', '.join(FORMATS)}") from error
    except OSError as error:
        raise UnreadableError(error.strerror or one_line(error)) from error  # Without the path, which is absolute.
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(one_line(error)) from error
    except Exception as error:
        raise UnreadableError(reason_of(error)) from error


@contextmanager
def opened(encoded: Encoded) -> Iterator[Image.Image]:
    """Open a picture without decoding its pixels; of a Pillow image nothing is closed.

    Raises:
        UnreadableError: for what is no picture that can be read, and for what a decoder raises while it is open.
    """
    with reasoned():
        if isinstance(encoded, UnreadableError):
            raise encoded
        if isinstance(encoded, Image.Image):
            _check_header(encoded)
            yield encoded
            return
        with _file_of(encoded) as file, Image.open(file, formats=FORMATS) as image:
            _check_header(image)
            yield image


def _file_of(encoded: bytes | Path) -> IO[bytes]:
    if isinstance(encoded, bytes):
        return io.BytesIO(encoded)
    _check_file(encoded)
    return open(encoded, "rb", buffering=_BUFFER)


def _check_file(path: Path) -> None:
    """Refuse what would block or never end, before it is opened."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise UnreadableError(f"{status.st_size} bytes, of at most {MAX_BYTES}")


def _check_header(image: Image.Image) -> None:
    if image.format not in (None, *_JPEG, *FORMATS):
        raise UnreadableError(f"format {image.format}, none of {', '.join(FORMATS)}: convert it to one of these")
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise UnreadableError(f"{image.width} x {image.height} pixels, of 1 to {MAX_PIXELS}")
    if image.mode not in _CONVERTIBLE and _white(image) is None:
        raise UnreadableError(f"mode {image.mode}, whose range is not known: convert it to 8-bit grey or RGB")


def _white(image: Image.Image) -> int | None:
    """Return the largest value of grey with more than 8 bits; ``None`` if it is not known."""
    if image.mode.startswith("I;16"):
        (bits, *_) = getattr(image, "tag_v2", {}).get(258) or (16,)  # 258: TIFF's bits per sample
        return 2**bits - 1
    return 65535 if image.mode == "I" and image.format == "PPM" else None


def decode(image: Image.Image, *, channels: int, reduction: int = 1) -> Image.Image:
    """Decode an opened image to upright grey (1 channel) or RGB (3) of 8 bits.

    A JPEG's sides are divided by the reduction (2, 4 or 8) and rounded up, by its own cosine transform.
    """
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    image.load()
    transposition = _transposition(image)
    if (white := _white(image)) is not None:
        values = np.asarray(image).astype(np.uint32)
        if getattr(image, "tag_v2", {}).get(262) == 0:  # 262: TIFF's meaning of 0, which is white here
            values = white - values
        image = Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")
    mode = "RGB" if channels == 3 else "L"
    # A JPEG has no frames that would be read into the same image later, so its pixels need no copy.
    if image.mode != mode or image.format not in _JPEG:
        image = image.convert(mode)
    return image if transposition is None else image.transpose(transposition)


def decode_mask(image: Image.Image) -> Image.Image:
    """Decode an opened mask to upright values of 8 bits, which are classes.

    Raises:
        UnreadableError: for a format that changes values, or for more channels or bits.
    """
    if image.format in (*_JPEG, "WEBP"):
        raise UnreadableError(f"format {image.format}, which changes values: save masks as PNG")
    if image.mode not in ("P", "L", "1"):
        wanted = "one channel of 8 bits with a class in each pixel"
        raise UnreadableError(f"mode {image.mode}: a mask has {wanted}, or a palette")
    image.load()
    transposition = _transposition(image)
    upright = image if transposition is None else image.transpose(transposition)
    return Image.fromarray(np.asarray(upright).astype(np.uint8))


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """Return what makes an opened image upright; ``None`` if it is, or if its EXIF cannot be read."""
    # Pillow makes a TIFF's size upright when it is opened, and its pixels when they are decoded.
    if not image.info or image.format == "TIFF":
        return None
    with suppress(Exception):
        # The base class's method, as PNG's own decodes the pixels to look behind them.
        return _TRANSPOSITIONS.get(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    return None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height that an opened image will have when it is decoded."""
    file = getattr(image, "fp", None)
    if image.format == "PNG" and file is not None and image.width != image.height and "exif" not in image.info:
        # A PNG may tell its orientation behind its pixels, which are decoded only where it does.
        position = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(position)
        if any(key in content for key in _PNG_ORIENTATION):
            image.load()
    return image.size[::-1] if _transposition(image) in _SIDEWAYS else image.size


def _is_grey(image: Image.Image) -> bool:
    return image.mode in _GREY or _white(image) is not None


def has_more_frames(image: Image.Image) -> bool:
    """Return whether an opened file, which must be decoded before, is an animation or has further pages."""
    with suppress(Exception):  # GIF reads on to know it.
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return False


def frames_note(name: str) -> str:
    """Return what is said once of a data set that has an animation or several pages in a picture."""
    return f"{name} has several frames or pages: of every such picture the first is read."


def centre(image: Image.Image, layout: Layout, *, interpolation: str = "bilinear") -> NDArray[np.uint8]:
    """Return the evaluation view: resized (antialiased) to cover the layout times its margin, centre crop.

    Returns:
        ``(height, width, channels)`` uint8.

    Raises:
        UnreadableError: if it is so narrow that the resized copy has more than `MAX_PIXELS`.
    """
    if layout.margin != 1 or image.size != (layout.width, layout.height):
        scale = layout.margin * max(layout.width / image.width, layout.height / image.height)
        width = max(layout.width, round(image.width * scale))
        height = max(layout.height, round(image.height * scale))
        if width * height > MAX_PIXELS:
            reason = f"too narrow: its evaluation view is cut from a copy of {width} x {height}, of {MAX_PIXELS} pixels"
            raise UnreadableError(f"{image.width} x {image.height} pixels, {reason} at most")
        left, top = (width - layout.width) // 2, (height - layout.height) // 2
        image = image.resize((width, height), RESAMPLING[interpolation])
        image = image.crop((left, top, left + layout.width, top + layout.height))
    return pixels_of(image)


def cut(image: Image.Image, box: Box, layout: Layout, *, interpolation: str = "bilinear") -> NDArray[np.uint8]:
    """Return a box of a decoded image, resized (antialiased) to the layout."""
    return pixels_of(image.resize((layout.width, layout.height), RESAMPLING[interpolation], box=box))


def decode_box(image: Image.Image, box_of: Callable[[int, int], Box], layout: Layout) -> NDArray[np.uint8]:
    """Decode a file's opened picture and return the pixels of a box, ``(height, width, channels)``, not yet resized.

    A JPEG is decoded at a half, a quarter or an eighth of its sides, which takes less time, where the box then still
    has as many pixels as the layout both ways; its edges are rounded to whole pixels of the smaller picture.

    Args:
        image: picture that `opened` has of a file.
        box_of: function of the upright picture's width and height that chooses the box.
        layout: shape to which the caller will bring the box.
    """
    if image.format not in _JPEG:
        decoded = decode(image, channels=layout.channels)
        box = box_of(*decoded.size)
    else:
        box = left, top, right, bottom = box_of(*upright_size(image))
        spare = min((right - left) // layout.width, (bottom - top) // layout.height)
        reduction = max(number for number in (1, 2, 4, 8) if number <= max(1, spare))
        decoded = decode(image, channels=layout.channels, reduction=reduction)
        box = (round(left / reduction), round(top / reduction), round(right / reduction), round(bottom / reduction))
    return pixels_of(decoded.crop(box)).copy()  # which PyTorch may write to


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


def _each(readers: Iterable[Reader]) -> Iterator[tuple[Reader, int, Encoded]]:
    for reader in readers:
        for start in range(0, len(reader), _CHUNK):
            positions = range(start, min(start + _CHUNK, len(reader)))
            for position, encoded in zip(positions, reader.encoded(positions), strict=True):
                yield reader, position, encoded


def find_layout(readers: Iterable[Reader], *, size: int | None, test_crop: float | None = None) -> Layout:
    """Decide the shape of a data set from its images' headers, reading no further than the answer needs.

    Raises:
        ValueError: if no image can be opened.
    """
    first: tuple[int, int] | None = None
    fault: Fault | None = None
    mixed, colour = False, False
    for reader, position, encoded in _each(readers):
        try:
            with opened(encoded) as image:
                shape, grey = upright_size(image), _is_grey(image)
        except UnreadableError as error:
            fault = fault or Fault(reader.name(position), str(error))
            continue
        first = first or shape
        mixed |= shape != first
        colour |= not grey
        if mixed and colour:
            break
    if first is None:
        got = "none" if fault is None else f"none that can be opened: {fault.name} ({fault.reason}) and all others"
        raise InvalidValueError("data.source", "images", got, "check the files")
    width, height = first
    if size is not None or mixed:
        width = height = size or DEFAULT_SIZE
    margin = MARGIN if mixed else 1.0
    return Layout(height, width, 3 if colour else 1, margin if test_crop is None else 1 / test_crop)


class UnlikeError(Exception):
    """An image differs from the first in size, or has colours although the first is grey."""


class Decoded(NamedTuple):
    """The images of a reader."""

    pixels: NDArray[np.uint8]  # ``(kept, height, width, channels)``
    kept: NDArray[np.int64]  # positions of the images that could be read
    faults: list[Fault]
    with_frames: str | None  # name of the first image that has further frames or pages


def decode_all(
    reader: Reader, layout: Layout, *, alike: tuple[int, int] | None = None, interpolation: str = "bilinear"
) -> Decoded:
    """Decode a whole reader, in threads (Pillow decodes outside the interpreter's lock).

    Args:
        reader: reader of the images.
        layout: layout to bring them to.
        alike: width and height that every image must have, if the layout is only a guess from one of them.
        interpolation: interpolation of resizes, a key of `RESAMPLING`.

    Raises:
        UnlikeError: if the guess was wrong.
    """
    pixels = np.empty((len(reader), layout.height, layout.width, layout.channels), np.uint8)
    starts = range(0, len(reader), _CHUNK)

    def work(start: int) -> tuple[dict[int, Fault], list[int]]:
        positions = range(start, min(start + _CHUNK, len(reader)))
        faults: dict[int, Fault] = {}
        with_frames: list[int] = []
        for position, encoded in zip(positions, reader.encoded(positions), strict=True):
            try:
                with opened(encoded) as image:
                    if alike is not None and (
                        sorted(image.size) != sorted(alike) or (layout.channels == 1 and not _is_grey(image))
                    ):
                        raise UnlikeError
                    decoded = decode(image, channels=layout.channels)
                    if alike is not None and decoded.size != alike:
                        raise UnlikeError
                    pixels[position] = centre(decoded, layout, interpolation=interpolation)
                    if not with_frames and has_more_frames(image):
                        with_frames.append(position)
            except UnreadableError as error:
                faults[position] = Fault(reader.name(position), str(error))
        return faults, with_frames

    with ThreadPoolExecutor(_THREADS) as pool:
        results = list(pool.map(work, starts))
    faults = {position: fault for chunk, _ in results for position, fault in chunk.items()}
    first = next((reader.name(position) for _, positions in results for position in positions), None)
    kept = np.setdiff1d(np.arange(len(reader)), np.array(list(faults), np.int64))
    return Decoded(pixels[kept] if faults else pixels, kept, list(faults.values()), first)


def stop_on(fault: Fault) -> NoReturn:
    """Raise the error of a corrupt image."""
    instead = "repair or remove the file, or type data.on_corrupt=skip"
    raise InvalidValueError("data.source", "a readable image", f"{fault.name} ({fault.reason})", instead)
