"""Shards, files of many samples: where they are, what is known of their content, and copies of those behind a URL.

A shard behind a URL is copied whole into ``TUTELAGE_CACHE``, where all processes of a machine find it; those that were
used least recently make room. What was read of a shard's content once, such as the places of its samples, is kept
until the shard changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from tutelage import connection, records
from tutelage.data import cache
from tutelage.data.names import is_url, public_url, shard_locations
from tutelage.errors import InvalidValueError, NetworkError, NotFoundError, StorageError, one_line
from tutelage.images import READER_VERSION
from tutelage.settings.data import DataSettings
from tutelage.types import UNLABELLED

LIMIT = "TUTELAGE_SHARDS_GB"
"""Environment variable: most gigabytes of shards that are copied; `DEFAULT_LIMIT` if it is not set."""
DEFAULT_LIMIT = 50.0
TIMEOUT = 60.0
"""Seconds that a server may be silent."""
ATTEMPTS = 4
LONGEST = 255
"""Longest name of a sample or a class, bytes: arrays of names are as wide as their longest."""
_PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
_THREADS = 4
_BLOCK = 2**20
_STALE = 600.0  # seconds without a byte after which a copy's process is gone
_AWAY = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)
FAILURES = (NetworkError, NotFoundError, StorageError)
"""Errors of the machine, not of a sample."""
Content = dict[str, NDArray[Any]]
"""What is known of a shard's samples."""


class Shard(NamedTuple):
    """A file of samples."""

    location: str  # path or URL
    size: int  # bytes
    version: str  # changes with the content: times of a file, the server's mark of what a URL has

    @property
    def name(self) -> str:
        """The last component of its location."""
        return unquote(urlsplit(self.location).path).rpartition("/")[2] if self.is_remote else Path(self.location).name

    @property
    def is_remote(self) -> bool:
        """Whether it is behind a URL."""
        return is_url(self.location)

    @property
    def key(self) -> str:
        """Identifies the shard and its version on this machine."""
        return cache.key_of([self.location, self.size, self.version])


def find(pattern: str, *, what: str) -> list[Shard]:
    """Return the shards of a pattern, in its order; those of a ``*`` by name.

    Raises:
        NotFoundError: there are none, or one of them is not there.
        NetworkError: a server does not answer.
    """
    locations = shard_locations(pattern, what=what)
    for location in {urlsplit(each).netloc: each for each in locations if is_url(each)}.values():
        if why := connection.why_unreachable(location):
            instead = "check the connection, or type the path of a local copy"
            raise NetworkError(what, "a server that answers", f"{public_url(location)} ({why})", instead)
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda location: _found(location, what), locations))


def _found(location: str, what: str) -> Shard:
    if is_url(location):
        with contextlib.closing(_requested(location, what, method="HEAD")) as response:
            headers = response.headers
            size = int(headers["Content-Length"] or -1)
            version = headers["ETag"] or headers["Last-Modified"] or ""
        if size < 0:
            expected, instead = "a server that says how long a file is", "copy the shards to a disk"
            raise NetworkError(what, expected, f"{public_url(location)} without Content-Length", instead)
        return Shard(location, size, version)
    try:
        status = os.stat(location)
    except OSError as error:
        raise NotFoundError(what, "a shard", f"{location} ({error.strerror})", "check the path") from error
    return Shard(str(Path(location).resolve()), status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns}")


def _requested(url: str, what: str, *, method: str = "GET") -> Any:
    """Return a server's answer, asking again while there is none; what is not there is not asked for again."""
    # Only http and https get here, and a redirection to a file is refused.
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "tutelage"})  # noqa: S310
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                got = f"{public_url(url)} ({error.code} {error.reason})"
                raise NotFoundError(what, "a shard that can be read", got, "check the URL") from error
            if attempt == ATTEMPTS:
                raise _no_answer(url, what, error) from error
        except _AWAY as error:
            if attempt == ATTEMPTS:
                raise _no_answer(url, what, error) from error
        time.sleep(_PAUSE * 2 ** (attempt - 1))
    raise AssertionError


def _no_answer(url: str, what: str, error: Exception) -> NetworkError:
    got, instead = (
        f"{public_url(url)} ({one_line(error)})",
        "check the connection, and run the same command again to resume",
    )
    return NetworkError(what, f"a server's answer, {ATTEMPTS} times", got, instead)


def limit() -> int:
    """Return the most bytes of copied shards.

    Raises:
        InvalidValueError: the environment's is no number above 0.
    """
    text = os.environ.get(LIMIT, "")
    try:
        gigabytes = float(text) if text else DEFAULT_LIMIT
        if gigabytes > 0:
            return int(min(gigabytes, 1e9) * 1e9)
    except ValueError:
        pass
    raise InvalidValueError(LIMIT, "a number of gigabytes above 0", repr(text), f"for example {LIMIT}=100")


def check_room(shards: Sequence[Shard], samples: int, settings: DataSettings) -> None:
    """Refuse what would copy the same shards again and again: samples from more of them than there is room for.

    Raises:
        InvalidValueError: an epoch's samples at one time come from more shards than `limit` allows.
    """
    remote = [shard for shard in shards if shard.is_remote]
    total, room = sum(shard.size for shard in remote), limit()
    if total <= room:
        return
    larger = f"set {LIMIT}={total / 1e9:.0f} in the environment"
    largest = max(shard.size for shard in remote)
    expected = f"at most the {room / 1e9:g} GB of {LIMIT}"
    if settings.mix_probability and (settings.mixup or settings.cutmix):
        key = "mixup" if settings.mixup else "cutmix"
        got = f"partners from all {total / 1e9:g} GB of shards behind a URL"
        raise InvalidValueError(f"data.{key}", expected, got, f"{larger}, or type data.mixup=0 data.cutmix=0")
    at_once = samples if settings.shuffle_buffer is None else settings.shuffle_buffer
    needed = largest * (-(-at_once * len(shards) // max(samples, 1)) + 2)  # a shard before and one behind the buffer
    if needed > room:
        got = f"samples from about {needed / 1e9:g} GB of shards behind a URL at a time"
        instead = f"{larger}, or type a smaller data.shuffle_buffer=..."
        raise InvalidValueError("data.shuffle_buffer", expected, got, instead)


def opened(shard: Shard, *, what: str = "data.source") -> io.BufferedReader:
    """Open a shard for reading; one behind a URL is copied first.

    Raises:
        NetworkError: a server does not answer.
        StorageError: the copy cannot be written, or the file cannot be read.
    """
    for _ in range(ATTEMPTS):
        path = copied(shard, what=what)
        try:
            return path.open("rb")
        except OSError as error:
            if not (shard.is_remote and isinstance(error, FileNotFoundError)):  # Another process made room meanwhile.
                got = f"{shard.name} ({error.strerror})"
                raise StorageError(what, "a shard that can be read", got, "restore it, then resume") from error
    instead = f"set a larger {LIMIT}"
    raise StorageError(what, "a copied shard", f"{shard.name}, which was deleted at once", instead)


def copied(shard: Shard, *, what: str) -> Path:
    """Return the path of a shard, or of its copy, which is made if it is not there."""
    if not shard.is_remote:
        return Path(shard.location)
    folder = cache.folder() / "shards"
    path = folder / shard.key
    try:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # which makes it the one used most recently
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{shard.key}.lock"):
            if not path.exists():
                part = folder / f".{shard.key}.part"
                try:
                    _make_room(folder, shard.size)
                    _copy(shard, part, what)
                    part.replace(path)
                    _make_room(folder)  # for what other processes have copied meanwhile
                finally:
                    part.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, FAILURES):
            raise
        elsewhere = "set TUTELAGE_CACHE to another folder"
        raise records.storage_error(error, f"{shard.name} in '{folder}'", folder=folder, elsewhere=elsewhere) from error
    return path


def _copy(shard: Shard, path: Path, what: str) -> None:
    """Copy a shard from its server, all of it or nothing."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with contextlib.closing(_requested(shard.location, what)) as response, path.open("wb") as file:
                shutil.copyfileobj(response, file, _BLOCK)
                length = file.tell()
            if length == shard.size:
                return
            error: Exception = ConnectionError(f"{length} of {shard.size} bytes")
        except _AWAY as failed:
            if isinstance(failed, NetworkError):  # It was asked for often enough.
                raise
            error = failed
        if attempt < ATTEMPTS:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
    raise _no_answer(shard.location, what, error) from error


def _make_room(folder: Path, size: int = 0) -> None:
    """Delete the copies that were used least recently until there is room for another one of this size."""
    copies = []
    for entry in os.scandir(folder):
        if entry.is_file() and not entry.name.endswith(".lock"):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                written = entry.name.endswith(".part") and time.time() - status.st_mtime < _STALE
                copies.append((status.st_mtime_ns, status.st_size, entry.path, written))
    excess = sum(length for _, length, *_ in copies) + size - limit()
    for _, length, path, written in sorted(copies):
        if excess <= 0:
            return
        if not written:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            excess -= length


class CopyAhead:
    """What copies the shard that is read next, while others are read; an error waits until it is read.

    Attributes:
        shards: the shards.
        copying: thread that copies one, or ``None`` before the first.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self.copying: threading.Thread | None = None
        self._number: int | None = None

    def __reduce__(self) -> tuple[type[CopyAhead], tuple[tuple[Shard, ...]]]:
        return CopyAhead, (self.shards,)

    def begin(self, number: int | None) -> None:
        """Begin to copy a shard, unless one is being copied."""
        if number is None or number == self._number or (self.copying is not None and self.copying.is_alive()):
            return
        self._number = number
        # No process waits for it at its end.
        self.copying = threading.Thread(target=self._copy, args=(self.shards[number],), daemon=True)
        self.copying.start()

    @staticmethod
    def _copy(shard: Shard) -> None:
        with contextlib.suppress(*FAILURES):
            copied(shard, what="data.source")


def copying_ahead(shards: Sequence[Shard]) -> CopyAhead | None:
    """Return what copies shards ahead, if any is behind a URL."""
    return CopyAhead(shards) if any(shard.is_remote for shard in shards) else None


def contents(
    shards: Sequence[Shard], read: Callable[[Shard, io.BufferedReader], Content], *, form: object
) -> list[Content]:
    """Return what ``read`` finds in each shard, and its SHA-256 (``sha256``, 32 bytes), kept from run to run.

    Args:
        shards: the shards.
        read: returns arrays, given a shard and the open file.
        form: what else the arrays depend on, as JSON.
    """

    def known(shard: Shard) -> Content:
        path = cache.folder() / "shard_contents" / cache.key_of([shard.key, form])
        saved = cache.load_arrays(path)
        if saved is None:
            with opened(shard) as file:
                content = hashlib.file_digest(file, "sha256").digest()
                file.seek(0)
                saved = {**read(shard, file), "sha256": np.frombuffer(content, np.uint8)}
            with contextlib.suppress(OSError):
                cache.save_arrays(path, saved)
        return saved

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(known, shards))


def identity(shards: Sequence[Shard], found: Sequence[Content]) -> bytes:
    """Return a line per shard, in order: its name and its SHA-256."""
    lines = (f"{s.name} {content['sha256'].tobytes().hex()}" for s, content in zip(shards, found, strict=True))
    return "\n".join(lines).encode()


def numbered(
    texts: Sequence[NDArray[np.str_]], names: Sequence[str] | None, *, source: str
) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Return the classes' names, and the class of each label of the training and then of the test samples.

    Labels are class numbers, or else names, whose classes are numbered as they are sorted. No text and -1 are no label.

    Args:
        texts: labels of each half, as text.
        names: the classes' names, if they are known.
        source: the source, to show.

    Raises:
        InvalidValueError: no training sample has a label, a test sample has none, or it has a class that no training
            sample has.
    """
    chosen = [np.unique(text) for text in texts]
    values = [[str(value) for value in half if value not in ("", "-1")] for half in chosen]
    if not values[0]:
        instead = "type data.label=... where they are under another name"
        raise InvalidValueError("data.label", f"labels in {source}", "none", instead)
    if all(value.isdecimal() and len(value) < 10 for half in values for value in half):
        if names is None:
            names = [str(number) for number in range(max(map(int, values[0])) + 1)]
        classes = {value: int(value) for half in values for value in half}
    else:
        names = values[0] if names is None else names
        classes = {name: number for number, name in enumerate(names)}
    labels = []
    for half, text in enumerate(texts):
        unknown = [value for value in values[half] if not 0 <= classes.get(value, -1) < len(names)]
        if unknown:
            expected = f"the classes of the training samples of {source}" if half else f"one of {len(names)} classes"
            instead = "choose another label (data.label=...), or shards that are labelled alike"
            raise InvalidValueError("data.label", expected, f"{unknown[0]!r} ({len(unknown)} such)", instead)
        places, inverse = np.unique(text, return_inverse=True)
        of_value = np.array([classes.get(str(value), UNLABELLED) for value in places], np.int64)
        labels.append(of_value[inverse] if len(text) else np.empty(0, np.int64))
        if half and (labels[half] == UNLABELLED).any():
            first = int(np.argmax(labels[half] == UNLABELLED))
            instead = "label them, or leave them out of data.test_shards"
            raise InvalidValueError(
                "data.label", f"a label of every test sample of {source}", f"none of sample {first}", instead
            )
    return list(names), labels


def shown(kind: str, pattern: str) -> str:
    """Return a source of shards as it is shown: a local path's last component, a URL without what is secret."""
    return f"{kind}:{public_url(pattern) if is_url(pattern) else Path(pattern).name}"


def key_of(halves: Sequence[Sequence[Shard]], form: object, settings: DataSettings) -> str:
    """Name the layout and the decoded pixels by the shards and what is read of them."""
    division = [settings.test, settings.split_seed] if len(halves) == 1 else None
    read = [READER_VERSION, settings.size, settings.test_crop, settings.interpolation, division]
    return cache.key_of([[[shard.key for shard in half] for half in halves], form, read])
