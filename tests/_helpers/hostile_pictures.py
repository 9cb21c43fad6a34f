"""Picture files that are rare, broken or no pictures at all, each with what must become of it."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

ORIENTATION = 0x0112
COLOURS = [[(220, 30, 40), (30, 200, 60), (40, 60, 210)], [(240, 230, 20), (10, 10, 10), (250, 250, 250)]]
UPRIGHT = np.kron(np.array(COLOURS, np.uint8), np.ones((8, 8, 1), np.uint8))
"""24 x 16 pixels, no two of whose 8 x 8 blocks are alike: JPEG keeps them, and every turn shows."""
GREY = UPRIGHT[:, :, 0]

# Where row 0 and column 0 of the file are seen, by the definition of EXIF.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright.swapaxes(0, 1)[::-1],  # right, top
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


class Picture(NamedTuple):
    """A file and what must become of it."""

    write: Callable[[Path], Any]
    suffix: str
    expected: np.ndarray | str  # its pixels (height, width, 3), or a part of the reason for which it is refused
    tolerance: float = 0  # of a pixel
    frames: bool = False  # whether it has more than the one that is read
    regular: bool = True  # whether a user's own code can open it without waiting


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _file(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def _exif(orientation: int, *, kind: int = 3, count: int = 1) -> bytes:
    """Return EXIF of one tag; ``kind`` 3 is a number of 16 bits, 2 is text, 5 a fraction that lies elsewhere."""
    entry = struct.pack("<HHII", ORIENTATION, kind, count, orientation)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes = b"", more: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + more + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _png_rows(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


def _late_exif(png: bytes) -> bytes:
    """Move the EXIF of a PNG behind its pixels."""
    at = png.index(b"eXIf") - 4
    length = 12 + int.from_bytes(png[at : at + 4], "big")
    return png[:at] + png[at + length : -12] + png[at : at + length] + png[-12:]


def _tiff(values: bytes, width: int, height: int, *, bits: int, photometric: int = 1, sample: int = 1) -> bytes:
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height, 279: len(values)}
    tags |= {339: sample, 273: 8 + 2 + 12 * 10 + 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + values


def _twelve_bits(values: np.ndarray) -> bytes:
    high, low = values.reshape(-1, 2).T.astype(np.uint32)
    return np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], -1).astype(np.uint8).tobytes()


def _xmp(orientation: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f'<rdf:Description tiff:Orientation="{orientation}"/>')
    return info


def _sparse(path: Path, head: bytes, size: int) -> None:
    path.write_bytes(head)
    os.truncate(path, size)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # as the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _linked(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    target.write_bytes(_saved(_image(UPRIGHT), "PNG"))
    path.symlink_to(target)


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, -1)


def pictures() -> dict[str, Picture]:
    """Return all kinds by their names."""
    kinds: dict[str, Picture] = {}
    colour = _image(UPRIGHT)
    jpeg: dict[str, Any] = {"quality": 98, "subsampling": 0}
    formats = {
        "PNG": ".png",
        "JPEG": ".jpg",
        "WEBP": ".webp",
        "GIF": ".gif",
        "TIFF": ".tif",
        "BMP": ".bmp",
        "PPM": ".ppm",
    }
    options = {"JPEG": jpeg, "WEBP": {"lossless": True}}
    whole = {kind: _saved(colour, kind, **options.get(kind, {})) for kind in formats}

    def read(name: str, content: bytes, suffix: str, expected: Any = UPRIGHT, **others: Any) -> None:
        kinds[name] = Picture(_file(content), suffix, expected, **others)

    def refused(name: str, content: bytes, reason: str, suffix: str = ".png") -> None:
        kinds[name] = Picture(_file(content), suffix, reason)

    for kind, suffix in formats.items():
        read(f"plain {kind}", whole[kind], suffix, tolerance=3 if kind == "JPEG" else 0)
    for turn in range(1, 9):
        stored = _image(STORED[turn](UPRIGHT))
        read(f"orientation {turn}, JPEG", _saved(stored, "JPEG", exif=_exif(turn), **jpeg), ".jpg", tolerance=3)
        read(f"orientation {turn}, PNG", _saved(stored, "PNG", exif=_exif(turn)), ".png")
        read(f"orientation {turn}, TIFF", _saved(stored, "TIFF", tiffinfo={ORIENTATION: turn}), ".tif")
    turned = _image(STORED[6](UPRIGHT))
    read("orientation 6, WebP", _saved(turned, "WEBP", lossless=True, exif=_exif(6)), ".webp")
    read("orientation 6 behind the pixels, PNG", _late_exif(_saved(turned, "PNG", exif=_exif(6))), ".png")
    read("orientation 6 in XMP, PNG", _saved(turned, "PNG", pnginfo=_xmp(6)), ".png")
    deep_turned = _image(STORED[8](GREY.astype(np.uint16) * 257))
    read("orientation 8 of 16 bits, PNG", _saved(deep_turned, "PNG", exif=_exif(8)), ".png", _rgb(GREY))
    read(
        "orientation 7 of a palette, PNG", _saved(_image(STORED[7](UPRIGHT)).quantize(6), "PNG", exif=_exif(7)), ".png"
    )
    unknown = {"0": _exif(0), "9": _exif(9), "65535": _exif(65535), "in letters": _exif(ord("6"), kind=2, count=2)}
    unknown["that lies nowhere"] = _exif(9999, kind=5)
    for name, exif in unknown.items():
        read(f"orientation {name}", _saved(colour, "JPEG", exif=exif, **jpeg), ".jpg", tolerance=3)
    for name, exif in {"torn": _exif(6)[:12], "junk": b"Exif\0\0junk and more junk", "empty": b"Exif\0\0"}.items():
        read(f"EXIF {name}", _saved(colour, "JPEG", exif=exif, **jpeg), ".jpg", tolerance=3)
        read(f"EXIF {name}, PNG", _saved(colour, "PNG", exif=exif), ".png")
    read("a broken colour profile", _saved(colour, "PNG", icc_profile=b"no profile"), ".png")

    deep = np.linspace(0, 65535, 24 * 16).reshape(16, 24).round().astype(np.uint16)
    rounded = _rgb(np.rint(deep / 257).astype(np.uint8))
    upper = _rgb((deep >> 8).astype(np.uint8))
    read("16 bits, PNG", _saved(_image(deep), "PNG"), ".png", rounded)
    read("16 bits, TIFF", _saved(_image(deep), "TIFF"), ".tif", rounded)
    read("16 bits of the other order, TIFF", _saved(_image(deep.astype(">u2")), "TIFF"), ".tif", rounded)
    read(
        "16 bits whose white is 0, TIFF",
        _tiff((65535 - deep).astype("<u2").tobytes(), 24, 16, bits=16, photometric=0),
        ".tif",
        rounded,
    )
    read("16 bits, PGM", b"P5 24 16 65535\n" + deep.astype(">u2").tobytes(), ".pgm", rounded)
    read(
        "10 bits, PGM",
        b"P5 24 16 1000\n" + np.full((16, 24), 500, ">u2").tobytes(),
        ".pgm",
        np.full((16, 24, 3), 128, np.uint8),
        tolerance=1,
    )
    read("16 bits in letters, PGM", b"P2 24 16 65535\n" + " ".join(map(str, deep.ravel())).encode(), ".pgm", rounded)
    twelve = (deep >> 4).astype(np.uint16)
    read(
        "12 bits, TIFF",
        _tiff(_twelve_bits(twelve), 24, 16, bits=12),
        ".tif",
        _rgb(np.rint(twelve / 4095 * 255).astype(np.uint8)),
    )
    colours = np.stack([deep, deep[::-1], deep[:, ::-1]], -1)
    read(
        "16 bits of colour, PNG",
        _png(24, 16, depth=16, rows=_png_rows(colours)),
        ".png",
        (colours >> 8).astype(np.uint8),
    )
    with_alpha = np.stack([deep, np.full_like(deep, 99)], -1)
    read("16 bits with transparency, PNG", _png(24, 16, depth=16, colour=4, rows=_png_rows(with_alpha)), ".png", upper)
    refused("signed 16 bits, TIFF", _tiff(bytes(768), 24, 16, bits=16, sample=2), "mode I", ".tif")
    refused("32 bits, TIFF", _saved(_image(deep.astype(np.int32)), "TIFF"), "mode I", ".tif")
    refused("floats, TIFF", _saved(_image(deep.astype(np.float32)), "TIFF"), "mode F", ".tif")
    refused("floats, PFM", b"Pf\n24 16\n-1.0\n" + deep.astype("<f4").tobytes(), "mode F", ".ppm")
    refused("LAB, TIFF", _saved(Image.new("LAB", (24, 16)), "TIFF"), "mode LAB", ".tif")

    clear = np.dstack([UPRIGHT, np.full((16, 24), 7, np.uint8)])
    read("transparency, PNG", _saved(_image(clear), "PNG"), ".png")
    read("transparency, WebP", _saved(_image(clear), "WEBP", lossless=True, exact=True), ".webp")
    read("grey with transparency, PNG", _saved(_image(np.dstack([GREY, GREY // 2])), "PNG"), ".png", _rgb(GREY))
    read("a transparent colour, PNG", _saved(colour, "PNG", transparency=(220, 30, 40)), ".png")
    read("a transparent grey, PNG", _saved(_image(GREY), "PNG", transparency=220), ".png", _rgb(GREY))
    read("a palette, PNG", _saved(colour.quantize(6), "PNG"), ".png")
    read("a palette with transparency, PNG", _saved(colour.quantize(6), "PNG", transparency=bytes(range(6))), ".png")
    read("a palette with a transparent entry, GIF", _saved(colour.quantize(6), "GIF", transparency=0), ".gif")
    black = _image(GREY).point(lambda value: 255 * (value > 100)).convert("1")
    read("1 bit, PNG", _saved(black, "PNG"), ".png", _rgb(np.asarray(black).astype(np.uint8) * 255))
    read(
        "1 bit, TIFF",
        _saved(black, "TIFF", compression="group4"),
        ".tif",
        _rgb(np.asarray(black).astype(np.uint8) * 255),
    )
    inks = colour.convert("CMYK")
    read("CMYK, JPEG", _saved(inks, "JPEG", **jpeg), ".jpg", tolerance=6)
    read("CMYK, TIFF", _saved(inks, "TIFF"), ".tif", np.asarray(inks.convert("RGB")))

    second = _image(255 - UPRIGHT)
    frames: dict[str, Any] = {"save_all": True, "append_images": [second], "frames": True}
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        more = {key: value for key, value in frames.items() if key != "frames"} | options.get(kind, {})
        read(f"frames, {kind}", _saved(colour, kind, **more), formats[kind], frames=True)
    read(
        "a picture behind the first, MPO",
        _saved(colour, "MPO", save_all=True, append_images=[second], **jpeg),
        ".jpg",
        tolerance=3,
    )

    for kind, suffix in formats.items():
        for part in (0.1, 0.5, 0.75):
            refused(f"{kind}, {part:.0%} of it", whole[kind][: int(len(whole[kind]) * part)], "", suffix)
    refused("JPEG, the last pixels cut", whole["JPEG"][:-20], "truncated", ".jpg")
    refused("nothing", b"", "none of the formats")
    refused("zeros", bytes(5000), "none of the formats")
    refused("PNG's name alone", whole["PNG"][:8], "none of the formats")
    refused("a damaged checksum", whole["PNG"].replace(b"IDAT", b"IDAX"), "")
    flipped = bytearray(whole["PNG"])
    flipped[len(flipped) // 2] ^= 255
    refused("a flipped byte", bytes(flipped), "")
    refused("pixels without end", _png(60_000, 60_000), "pixels")
    refused("more pixels than are read", _png(10_000, 10_000), "10000 x 10000 pixels")
    refused("no pixels", _png(0, 0), "")
    refused("no height", _png(24, 0), "")
    refused("no width, BMP", whole["BMP"][:18] + bytes(4) + whole["BMP"][22:], "", ".bmp")
    refused("pixels without end, TIFF", _tiff(bytes(9), 2**31, 2**31, bits=8), "", ".tif")
    refused("pixels without end, PPM", b"P6 99999 99999 255\n", "", ".ppm")
    refused("pixels without end, GIF", b"GIF89a" + b"\xff" * 4 + whole["GIF"][10:], "pixels", ".gif")
    bomb = zlib.compress(bytes(2**26))
    refused("a text without end", _png(24, 16, more=_chunk(b"zTXt", b"k\0\0" + bomb)), "too large")
    refused("a text without end, iTXt", _png(24, 16, more=_chunk(b"iTXt", b"k\0\1\0\0\0" + bomb)), "too large")
    refused("a profile without end", _png(24, 16, more=_chunk(b"iCCP", b"k\0\0" + bomb)), "too large")

    foreign = {
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n%%EndComments\nshowpage\n",
        "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="24" height="16"><script>alert(1)</script></svg>',
        "HTML": b"<!doctype html><title>not found</title>",
        "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "GRIB": b"GRIB" + bytes(3) + b"\x01" + bytes(99),
        "BUFR": b"BUFR" + bytes(99),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(99),
        "WMF": b"\xd7\xcd\xc6\x9a\x00\x00"
        + struct.pack("<4h", 0, 0, 24, 16)
        + struct.pack("<H", 72)
        + bytes(9)
        + b"\x01\0",
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 16, 24, 8, 3) + bytes(14 + 24 * 16 * 3),
        "zip": b"PK\x03\x04" + bytes(99),
    }
    for kind, content in foreign.items():
        refused(kind, content, "none of the formats")
    Image.init()
    for kind in sorted({"ICO", "ICNS", "TGA", "JPEG2000", "PCX", "SGI", "DDS", "QOI"} & Image.SAVE.keys()):
        refused(kind, _saved(colour, kind), "none of the formats")

    read("one pixel", _saved(_image(UPRIGHT[:1, :1]), "PNG"), ".png", UPRIGHT[:1, :1])
    read("one column", _saved(_image(np.ones((999, 1, 3), np.uint8)), "PNG"), ".png", np.ones((999, 1, 3), np.uint8))
    read("by another name", whole["GIF"], ".jpg")
    kinds["a link to a file"] = Picture(_linked, ".png", UPRIGHT)
    odd = partial(Picture, suffix=".png", expected="not a regular file", regular=False)
    kinds["a pipe"] = odd(os.mkfifo)
    kinds["a socket"] = odd(_socket)
    kinds["a device without end"] = odd(lambda path: path.symlink_to("/dev/zero"))
    kinds["a link to itself"] = Picture(lambda path: path.symlink_to(path.name), ".png", "symbolic links")
    kinds["a link to nothing"] = Picture(lambda path: path.symlink_to("nowhere"), ".png", "No such file")
    head = whole["WEBP"][:16]
    kinds["a file without end"] = Picture(partial(_sparse, head=head, size=2**40), ".webp", "bytes", regular=False)
    return kinds
