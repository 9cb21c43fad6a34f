"""``webdataset:``: tar files of samples, each a picture and its label under one name, read in place."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tutelage import plain_files
from tutelage.data import shards
from tutelage.data.build import Arranged, UnlabelledImages, from_shards
from tutelage.data.datasets import Splits
from tutelage.data.names import EXTENSIONS
from tutelage.data.shards import Content, Shard
from tutelage.errors import InvalidValueError, one_line
from tutelage.images import MAX_BYTES, Encoded, UnreadableError
from tutelage.settings.data import DataSettings

_MAX_LABEL = 2**20
"""Largest text or JSON of a label, bytes."""
_LABEL = "cls"
_NOTHING = -1  # offset of a sample without a picture


@dataclass(frozen=True)
class TarReader:
    """Pictures inside of tar files, by their places: nothing is unpacked."""

    shards: tuple[Shard, ...]
    shard: NDArray[np.int32]  # shard of each sample
    offsets: NDArray[np.int64]  # its first byte
    sizes: NDArray[np.int64]
    keys: NDArray[np.bytes_]  # its name in the shard

    def __len__(self) -> int:
        return len(self.shard)

    def name(self, position: int) -> str:
        """Return the sample's shard and name."""
        return f"{self.shards[self.shard[position]].name}/{self.keys[position].decode(errors='replace')}"

    def encoded(self, positions: Sequence[int]) -> list[Encoded]:
        """Return the pictures' bytes, read shard by shard from front to back."""
        found: dict[int, Encoded] = {}
        rows = sorted((int(self.shard[p]), int(self.offsets[p]), int(p)) for p in positions)
        for number, group in groupby(rows, key=lambda row: row[0]):
            with shards.opened(self.shards[number]) as file:
                for _, offset, position in group:
                    found[position] = self._read(file, offset, int(self.sizes[position]))
        return [found[int(p)] for p in positions]

    @staticmethod
    def _read(file: Any, offset: int, size: int) -> Encoded:
        if offset == _NOTHING:
            return UnreadableError("no picture of that name")
        if size > MAX_BYTES:
            return UnreadableError(f"{size} bytes, of at most {MAX_BYTES}")
        file.seek(offset)
        content: bytes = file.read(size)
        return content if len(content) == size else UnreadableError("the shard ends before the picture does")


def open_webdataset(pattern: str, settings: DataSettings, unlabelled: UnlabelledImages | None = None) -> Splits:
    """Open tar files of samples by a pattern; `data.names.shard_locations` says how one is written.

    Members of one name up to the first dot are a sample: a picture, by its extension, and a label, ``cls`` or as
    ``settings.label`` says, which is a class number or a name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a shard is no tar file or is damaged, or samples have several pictures or labels that do not fit.
    """
    return from_shards(
        pattern, settings, kind="webdataset", form="tar", read=_read, arrange=_arrange, unlabelled=unlabelled
    )


def _arrange(half: Sequence[Shard], found: Sequence[Content], settings: DataSettings) -> Arranged:
    counts, notes = [len(content["keys"]) for content in found], []
    for shard, content, count in zip(half, found, counts, strict=True):
        if reason := content["damage"].tobytes().decode():
            if settings.on_corrupt == "stop":
                instead = "copy it again, or type data.on_corrupt=skip to use what comes before"
                raise InvalidValueError("data.source", "a whole tar file", f"{shard.name} ({reason})", instead)
            notes.append(f"{shard.name} is damaged ({reason}): of it {count} samples are used.")
    if not sum(counts):
        instead = "check the pattern: a sample has a picture, such as 0001.jpg, and a label, such as 0001.cls"
        raise InvalidValueError("data.source", "samples", f"none in {half[0].name} and others", instead)
    number = np.repeat(np.arange(len(half), dtype=np.int32), counts)
    columns = (np.concatenate([content[name] for content in found]) for name in ("offsets", "sizes", "keys"))
    return TarReader(tuple(half), number, *columns), number[:, None], notes


def _read(shard: Shard, file: BinaryIO, *, settings: DataSettings) -> Content:
    """Return the places of a shard's pictures, their labels, and why not all of it could be read."""
    extension, key = _label_of(settings)
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    texts: dict[str, str] = {}
    damage, opened = "", False
    try:
        with tarfile.open(fileobj=file, mode="r:") as members:  # This reads the first header.
            opened = True
            for name, suffix, member in _members(members):
                if suffix == extension:
                    content = members.extractfile(member)
                    assert content is not None
                    texts[name] = _text(content.read(_MAX_LABEL + 1), key, f"{shard.name}/{member.name}")
                    samples.setdefault(name, {})
                elif suffix == settings.image or (settings.image is None and f".{suffix}" in EXTENSIONS):
                    samples.setdefault(name, {})[suffix] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        damage = one_line(error)
        if not opened and file.seek(0, os.SEEK_END) >= tarfile.BLOCKSIZE:
            got = f"{shard.name} ({damage})"
            instead = "unpack it from .gz or the like, as samples are read in place"
            raise InvalidValueError("data.source", "a tar file that is not compressed", got, instead) from error
    for name, pictures in samples.items():
        if len(pictures) > 1:
            several = ", ".join(sorted(pictures))
            instead = f"type data.image={min(pictures)}"
            got = f"{several} of {shard.name}/{name}"
            raise InvalidValueError("data.image", "one picture of a sample", got, instead)
    places = [next(iter(pictures.values()), (_NOTHING, 0)) for pictures in samples.values()]
    offsets, sizes = np.array(places, np.int64).reshape(-1, 2).T
    return {
        "keys": np.array([name.encode(errors="surrogateescape")[: shards.LONGEST] for name in samples], np.bytes_),
        "offsets": offsets,
        "sizes": sizes,
        "labels": np.array([texts.get(name, "").encode() for name in samples], np.bytes_),
        "damage": np.frombuffer(damage.encode(), np.uint8),
    }


def _label_of(settings: DataSettings) -> tuple[str, str | None]:
    """Return the extension that a label has, and its key where that is JSON."""
    extension, dot, key = (settings.label or _LABEL).partition(".")
    return (extension, key) if extension == "json" and dot else (settings.label or _LABEL, None)


def _members(members: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield the regular files of a tar file: sample, extension in small letters, and member."""
    for member in members:
        folder, slash, file = member.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if member.isreg() and not member.issparse() and stem and dot:
            yield f"{folder}{slash}{stem}", extension.lower(), member


def _text(content: bytes, key: str | None, name: str) -> str:
    """Return a label as text."""
    if len(content) > _MAX_LABEL:
        raise InvalidValueError("data.label", f"at most {_MAX_LABEL} bytes", f"more in {name}", "name another one")
    try:
        value = content.decode() if key is None else plain_files.parse_json(content)[key]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        expected = "text in UTF-8" if key is None else f"JSON with the key {key!r}"
        raise InvalidValueError("data.label", expected, f"{name} ({one_line(error)})", "type data.label=...") from error
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | str):
        got, instead = f"{type(value).__name__} in {name}", "name another key: data.label=json.<key>"
        raise InvalidValueError("data.label", "a class number or a name", got, instead)
    text = str(value).strip()
    if len(text.encode()) > shards.LONGEST:
        got, instead = f"a longer text in {name}", "name another label: data.label=..."
        raise InvalidValueError("data.label", f"a class of at most {shards.LONGEST} bytes", got, instead)
    return text
