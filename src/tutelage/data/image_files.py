"""Files of images in a folder: which they are, a reader of them, and the key of what is decoded of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.data.cache import digest, key_of
from tutelage.data.file_hashes import Files
from tutelage.images import READER_VERSION, Encoded
from tutelage.settings.data import DataSettings


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


def pixels_key(halves: Sequence[Files], settings: DataSettings) -> str:
    """Name the layout and the decoded pixels by the files and their times."""
    files = [[str(half.root.resolve()), digest(half.names), digest(half.stats)] for half in halves]
    division = [settings.test, settings.split_seed] if len(halves) == 1 else None
    return key_of([files, READER_VERSION, settings.size, settings.test_crop, settings.interpolation, division])
