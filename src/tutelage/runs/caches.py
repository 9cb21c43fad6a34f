"""What takes room on this machine because of the package: recorded outputs, decoded pixels, copies of shards. No torch.

Only what the package wrote is listed or removed: files and folders by their names and records, never by their place.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tutelage import config, plain_files, records
from tutelage.data import cache
from tutelage.errors import NotFoundError, TutelageError
from tutelage.runs.lock import BusyError, folder_lock
from tutelage.settings.outputs import words

KINDS = {
    "outputs": "a teacher's recorded outputs",
    "pixels": "decoded pixels of a data set",
    "shards": "copies of shards behind URLs",
    "digests": "SHA-256 of data files, and the contents of shards",
}
_KEY = re.compile(r"[0-9a-f]{32}")
_LEFT = re.compile(r"\.[0-9a-f]{32}\..+")  # of a process that was killed while it saved
_ABANDONED = 86_400.0
_CHUNK = re.compile(r"\d{9}\.[\w.-]+\.safetensors")
_EPOCH = re.compile(r"epoch-\d{4,}")


@dataclass(frozen=True)
class Kept:
    """Something that takes room.

    Attributes:
        kind: a key of `KINDS`.
        name: name to remove it by.
        path: its file or folder.
        size: bytes of its files.
        changed: seconds of the time of day at which it was last written, or for a copied shard last used.
        owner: what it belongs to.
        users: folders of runs whose recipe reads it.
    """

    kind: str
    name: str
    path: Path
    size: int
    changed: float
    owner: str
    users: tuple[Path, ...] = field(default=())


def found(folders: Iterable[Path] = (), *, runs: Path = Path("runs")) -> list[Kept]:
    """Return what takes room.

    Args:
        folders: folders in which to look for recorded outputs, besides that of all runs and those that the recipes of
            runs name.
        runs: folder of all runs.

    Raises:
        NotFoundError: a folder is not there.
    """
    users = _users(runs)
    for folder in folders:
        if not folder.is_dir():
            raise NotFoundError("cache", "a folder", f"{folder}, which is not there", "check the path")
    places = {path.parent for top in (runs, *folders, *users) for path in top.rglob(records.OUTPUTS)}
    outputs = (_outputs(folder, users) for folder in sorted({place.resolve(): place for place in places}.values()))
    return [*(each for each in outputs if each is not None), *_in_cache()]


def _users(runs: Path) -> dict[Path, list[Path]]:
    """Return the folders that runs' recipes name as recorded outputs, each with the folders of its runs."""
    users: dict[Path, list[Path]] = {}
    for path in sorted(runs.rglob(records.RECIPE)):
        with contextlib.suppress(TutelageError, OSError):
            if isinstance(outputs := config.read(path).get("outputs"), str) and Path(outputs).is_dir():
                users.setdefault(Path(outputs), []).append(path.parent)
    return users


def _outputs(folder: Path, users: dict[Path, list[Path]]) -> Kept | None:
    """Describe a folder of recorded outputs; ``None`` if its record is another's, or damaged."""
    try:
        value = plain_files.parse_json(records.read_bytes(folder / records.OUTPUTS, "", limit=records.LARGEST_JSON))
        key: Any = value["key"]
        form = f", {words(value['form'])}" if value.get("form") else ""
        owner = f"{key['teacher']['name']}, {value['samples']} samples{form}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    files = _written(folder)
    if any(path.is_symlink() for path in (folder, *files)):
        return None
    readers = [run for place, each in users.items() if folder.resolve().is_relative_to(place.resolve()) for run in each]
    size, changed = _measured(files)
    return Kept("outputs", str(folder), folder, size, changed, owner, tuple(readers))


def _written(folder: Path) -> list[Path]:
    """Return the files that a recording wrote into its folder, what it is known by last."""
    epochs = [path for path in folder.iterdir() if _EPOCH.fullmatch(path.name) and path.is_dir()]
    chunks = [path for epoch in sorted(epochs) for path in sorted(epoch.iterdir()) if _CHUNK.fullmatch(path.name)]
    return [*chunks, folder / records.OUTPUTS]


def _in_cache() -> Iterator[Kept]:
    """Describe what lies in the folder of caches: each data set's pixels, and other kinds as one."""
    top = cache.folder()
    for path in _entries(top / "pixels"):
        if not path.is_dir():
            continue
        size, changed = _measured(each for each in path.iterdir() if each.is_file())
        if _KEY.fullmatch(path.name):
            yield Kept("pixels", path.name, path, size, changed, cache.source_of(path.name) or "a data set")
        elif _LEFT.fullmatch(path.name) and time.time() - path.stat().st_mtime > _ABANDONED:
            yield Kept("pixels", path.name, path, size, path.stat().st_mtime, "a process that was killed")
    for kind, folders in (("shards", ("shards",)), ("digests", ("digests", "shard_contents"))):
        for path in (path for name in folders for path in _entries(top / name)):
            if _KEY.fullmatch(path.name) and path.is_file():
                yield Kept(kind, kind, path, *_measured([path]), KINDS[kind])


def _entries(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not path.is_symlink()] if folder.is_dir() else []


def _measured(files: Iterable[Path]) -> tuple[int, float]:
    """Return the bytes of files, and when the newest was written."""
    stats = [path.stat() for path in files]
    return sum(each.st_size for each in stats), max((each.st_mtime for each in stats), default=0.0)


def remove(kept: Kept) -> list[Path]:
    """Remove what the package wrote there; return the paths of what others wrote, which stay.

    Raises:
        BusyError: another process is writing it, or a run that reads it is in progress.
        StorageError: the system refuses.
    """
    path = kept.path
    with records.writing(path), contextlib.ExitStack() as stack:
        if kept.kind == "pixels":
            shutil.rmtree(path)
        elif kept.kind == "shards":
            try:
                stack.enter_context(FileLock(path.with_name(f".{path.name}.lock"), timeout=0))
            except Timeout:
                raise _busy(path, "which is being copied") from None
            path.unlink(missing_ok=True)
        elif kept.kind == "digests":
            path.unlink(missing_ok=True)
        else:
            return _remove_outputs(kept, path, stack)
    return []


def _remove_outputs(kept: Kept, folder: Path, stack: contextlib.ExitStack) -> list[Path]:
    for held in (folder, *kept.users):
        try:
            stack.enter_context(folder_lock(held))
        except BusyError:
            doing = "where it is being recorded" if held == folder else f"which the run in {held} reads"
            raise _busy(folder, doing) from None
    for path in _written(folder):  # What says whose they are goes last: a part of them can be recorded again.
        path.unlink(missing_ok=True)
    (folder / ".lock").unlink()
    for path in (*(path for path in folder.iterdir() if _EPOCH.fullmatch(path.name)), folder):
        with contextlib.suppress(OSError):  # where something else lies in it
            path.rmdir()
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def _busy(path: Path, doing: str) -> BusyError:
    return BusyError("cache", "what no other process is using", f"{path}, {doing}", "wait until it has ended")
