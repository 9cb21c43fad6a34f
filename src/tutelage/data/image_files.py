"""Files of images in a folder: which they are, a reader of them, and the key of what is decoded of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.data.cache import digest, key_of
from tutelage.data.file_hashes import Files
from tutelage.data.names import is_picture
from tutelage.images import READER_VERSION, Encoded
from tutelage.settings.data import DataSettings

SHOWN = 3
"""Endings of files in a note."""


class FolderReader:
    """Images of files below one folder."""

    def __init__(self, root: Path, names: NDArray[np.bytes_]) -> None:
        self._root = root
        # An array of bytes: a list of strings would be copied into every worker, page by page, when read.
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def name(self, position: int) -> str:
        """Return the file's path below the folder."""
        return os.fsdecode(bytes(self._names[position]))

    def encoded(self, positions: Sequence[int]) -> list[Encoded]:
        """Return the files."""
        return [self._root / self.name(position) for position in positions]


class Pictures:
    """Tells which files are pictures by their names, and counts the others."""

    def __init__(self) -> None:
        self.others: list[str] = []  # endings

    def __call__(self, name: str) -> bool:
        """Whether a file's name is that of a picture."""
        if not (kept := is_picture(name)) and not name.startswith("."):
            self.others.append(Path(name).suffix.lower() or name)
        return kept

    def note(self) -> list[str]:
        """Return a sentence about the files that are none, or nothing if all are."""
        if not self.others:
            return []
        counted = sorted(Counter(self.others).items(), key=lambda each: (-each[1], each[0]))
        kinds = ", ".join(f"{count} {ending}" for ending, count in counted[:SHOWN]) + ", ..." * (len(counted) > SHOWN)
        return [f"Skipped: {len(self.others)} files that are no images by their names ({kinds})."]


def pixels_key(halves: Sequence[Files], settings: DataSettings) -> str:
    """Name the layout and the decoded pixels by the files and their times."""
    files = [[str(half.root.resolve()), digest(half.names), digest(half.stats)] for half in halves]
    division = [settings.test, settings.split_seed] if len(halves) == 1 else None
    return key_of([files, READER_VERSION, settings.size, settings.test_crop, settings.interpolation, division])
