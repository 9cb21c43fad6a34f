"""From a student to a verified file: written beside its place, compared with the student, and only then named."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tutelage import records
from tutelage.errors import InvalidValueError, RunError
from tutelage.exports.registry import format_of, writer_of
from tutelage.exports.source import Source
from tutelage.exports.verify import Verification, files_of, verify
from tutelage.runs.lock import BusyError, folder_lock

TOLERANCE = 1e-3
"""Largest difference of a file's logits from the student's that is a rounding's, over the largest logit."""
ALIKE = 0.9
"""Share of answers that a file of 8-bit integers has in common with the student, below which that is a warning."""
_ELSEWHERE = "type --output for another place"


@dataclass(frozen=True, kw_only=True)
class Export(Verification):
    """A file that was written, and what it was found to do.

    Attributes:
        path: file or folder.
        to: name of the format.
        int8: whether it computes in 8-bit integers.
    """

    path: Path
    to: str
    int8: bool


def write(source: Source, to: str, path: Path, *, force: bool = False) -> Export:
    """Write a student in a format, verify the file, and give it its name; what is stopped leaves nothing under it.

    Args:
        source: student and test samples.
        to: name of the format.
        path: file or folder to write, as of `registry.destination`.
        force: whether what is there is replaced.

    Raises:
        RunError: the file does not answer as the student does; it is removed.
        BusyError: another process writes it.
        StorageError: it cannot be written.
    """
    known, writer = format_of(to, int8=source.int8), writer_of(to)
    with _scratch(path) as folder:
        made = folder / path.name
        with records.writing(path, _ELSEWHERE):
            writer.write(source, made)
        run = writer.reopen(made, source.emptied()) if known.is_weights else writer.reopen(made)
        found = verify(source, run, made)
        if not source.int8 and not found.relative <= TOLERANCE:
            expected = f"logits within {TOLERANCE:g} of the student's, relative to the largest"
            got = f"{found.relative:.3g}, a difference of {found.difference:.3g}, and no file was kept"
            raise RunError(f"export to {to}", expected, got, "choose another format, such as safetensors")
        if source.int8 and found.agreement is not None and found.agreement < ALIKE:
            change = f"{1 - found.agreement:.1%} of the answers are others than the student's"
            warnings.warn(f"int8: {change}; compare the accuracies, or leave int8 out", stacklevel=2)
        with records.writing(path, _ELSEWHERE):
            _name(made, path, folder, force=force)
    return Export(path=path, to=to, int8=source.int8, **vars(found))


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside a path, which is removed; what a kill left in it is removed first.

    Raises:
        BusyError: another process is in it.
    """
    folder = path.with_name(f".{path.name}.tmp")
    with records.writing(path, _ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with folder_lock(folder):
            made = folder / "new"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            try:
                yield made
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except BusyError:
        instead = "wait for it, or name another"
        raise BusyError("output", "a path that no other process writes", str(path), instead) from None
    finally:
        with suppress(OSError):  # It stays while another process is in it, or Windows kept the lock's file.
            folder.rmdir()


def _name(made: Path, path: Path, folder: Path, *, force: bool) -> None:
    """Give what was made its name, once all of it is on the disk."""
    for file in files_of(made):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    if path.exists() and not force:  # It came while this was made.
        raise InvalidValueError("output", "a path where nothing is", str(path), "name another")
    if path.is_dir():
        path.rename(folder / "replaced")
    made.replace(path)
    records.sync_folder(path.parent)
