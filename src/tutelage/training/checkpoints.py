"""Checkpoints: safetensors plus plain state, written so that a kill, a crash or a full disk loses nothing.

A checkpoint is a folder ``<stage>-<step>`` with ``tensors.safetensors``, ``state.json`` and ``checksums``. Sharded
tensors are in a folder ``shards`` inside it, of which each process writes its files. All is written under a temporary
name, synced, and renamed when the last has written; the last two are kept. One that fails its checksums, whose state is
of another stage or step than its name, or that does not fit the run, is never used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from tutelage import records
from tutelage.errors import RunError, one_line
from tutelage.records import CHECKSUMS, STATE
from tutelage.tensor_files import to_bytes
from tutelage.training import sharding
from tutelage.training.distributed import by_main, of_all

TENSORS = "tensors.safetensors"
SHARDS = "shards"
KEPT = 2
DAMAGED = (OSError, ValueError, TypeError, KeyError, IndexError, RuntimeError, safetensors.SafetensorError)
"""Errors that readers raise on damaged content."""


class CheckpointError(RunError):
    """A checkpoint could not be written or none could be read."""


class Checkpoint(NamedTuple):
    """A checkpoint as read: its tensors by name, on the CPU, and everything that is not a tensor."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    shards: Path | None = None  # folder of further tensors, which are sharded: `sharding.read`


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, which is removed."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class Checkpoints:
    """The checkpoints of one run, in a folder that is created with the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save_shards(self, name: str, shards: Mapping[str, Tensor]) -> dict[str, str]:
        """Write a checkpoint's sharded tensors, before `save` does the rest; all processes call it.

        Returns:
            The files' digests by their paths in the checkpoint; empty without tensors.

        Raises:
            CheckpointError: if the disk of any process refused; earlier checkpoints stay.
        """
        if not shards:
            return {}
        folder = self._temporary(name) / SHARDS

        def begin() -> None:
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.mkdir(parents=True)

        def write() -> dict[str, str]:
            paths = sharding.write(folder, shards)
            return {f"{SHARDS}/{path.name}": records.digest(path) or "" for path in paths}

        with self._writing(f"checkpoint {name}", self.folder):
            by_main(begin)
            return {file: digest for own in of_all(write) for file, digest in own.items()}

    def _temporary(self, name: str) -> Path:
        return self.folder / f".{name}.tmp"

    def save(
        self, name: str, tensors: dict[str, Tensor], state: dict[str, Any], shard_digests: Mapping[str, str] = {}
    ) -> None:
        """Write a checkpoint of tensors and plain values, whose name sorts after all earlier ones, and drop the oldest.

        Args:
            name: name of the checkpoint.
            tensors: tensors by name.
            state: plain values.
            shard_digests: digests of the files that `save_shards` has written.

        Raises:
            CheckpointError: if the disk refused; earlier checkpoints stay.
        """
        contents = {TENSORS: to_bytes(tensors), STATE: (json.dumps(state) + "\n").encode()}
        digests = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
        sums = "".join(f"{digest}  {file}\n" for file, digest in {**digests, **shard_digests}.items())
        temporary = self._temporary(name)
        with self._writing(f"checkpoint {name}", self.folder):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if shard_digests:
                    records.sync_folder(temporary / SHARDS)
                else:
                    shutil.rmtree(temporary, ignore_errors=True)
                    temporary.mkdir()
                for file, content in {**contents, CHECKSUMS: sums.encode()}.items():
                    records.write_bytes(temporary / file, content)
                final = self.folder / name
                shutil.rmtree(final, ignore_errors=True)
                temporary.replace(final)
                records.sync_folder(self.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for old in self._names()[:-KEPT]:
            shutil.rmtree(self.folder / old, ignore_errors=True)

    def write(self, path: Path, content: bytes) -> None:
        """Write a file that belongs to the run's state, atomically.

        Raises:
            CheckpointError: if the disk refused; the checkpoints stay.
        """
        with self._writing(path.name, path.parent):
            records.write_bytes(path, content)

    def load(self, check: Callable[[Checkpoint], None] | None = None) -> Checkpoint | None:
        """Read the newest good checkpoint; warn of every newer one that is damaged, and drop it.

        Args:
            check: raises an error for one that does not fit the run; it is passed over too, and renamed.

        Raises:
            CheckpointError: if there are checkpoints but all are damaged; they stay, so that this is not forgotten.
        """
        names = self._names()
        damaged: list[str] = []
        unfit: list[str] = []
        reasons = []
        for name in reversed(names):
            expected, refused = "its checksums to match", damaged
            try:
                saved = read(self.folder / name)
                expected, refused = "a state of this run", unfit
                if check is not None:
                    check(saved)
            except DAMAGED as error:
                reasons.append(f"{name}: {_first_line(error)}")
                if name != names[0]:
                    warnings.warn(
                        f"checkpoint {name}: expected {expected}, got {_first_line(error)}; using the one before it",
                        stacklevel=2,
                    )
                refused.append(name)
            else:
                # A damaged one would count among those kept; a temporary one was left by a kill.
                for left in [*damaged, *(path.name for path in self.folder.glob(".*.tmp"))]:
                    shutil.rmtree(self.folder / left, ignore_errors=True)
                for left in unfit:  # It may be another run's, so it is not removed.
                    shutil.rmtree(self.folder / f"unfit-{left}", ignore_errors=True)
                    (self.folder / left).rename(self.folder / f"unfit-{left}")
                return saved
        if names:
            expected, got = f"a good one among {', '.join(names)} in {self.folder}", f"none ({'; '.join(reasons)})"
            instead = f"to start again, remove the run's folder {self.folder.parent}, or type name=... for another run"
            raise CheckpointError("checkpoints", expected, got, instead)
        return None

    def stages(self) -> list[int]:
        """Return the stages that the checkpoints are of, by their names."""
        return sorted({int(name.partition("-")[0]) for name in self._names()})

    def describe_newest(self) -> str:
        """Say which step the newest checkpoint is of."""
        names = self._names()
        if not names:
            return "no checkpoint yet"
        with contextlib.suppress(OSError, ValueError, KeyError):
            state = records.parse_state(records.read_bytes(self.folder / names[-1] / STATE), names[-1])
            return f"a checkpoint after epoch {state['epoch']}, step {state['step']}"
        return f"a checkpoint, {names[-1]}, which is damaged"

    @contextlib.contextmanager
    def _writing(self, what: str, folder: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            last = (self._names() or ["none"])[-1]
            first = {errno.ENOSPC: "free some space", errno.EISDIR: "move it away"}.get(error.errno or 0, "allow it")
            expected = f"to be able to write it in {folder}"
            got = f"{error.strerror or error}; the last good checkpoint is {last}"
            raise CheckpointError(what, expected, got, f"{first} and run the same command again to resume") from error

    def _names(self) -> list[str]:
        return records.checkpoint_names(self.folder)


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint from its folder.

    Raises:
        Exception: one of `DAMAGED`.
    """
    contents = records.read_checked(folder, TENSORS, STATE)
    shards = folder / SHARDS if records.has_checked_files(folder, SHARDS) else None
    state = records.parse_state(contents[STATE], folder.name)
    return Checkpoint(safetensors.torch.load(contents[TENSORS]), state, shards)


def _first_line(error: Exception) -> str:
    return f"none of {error}" if isinstance(error, KeyError) else one_line(error)


class CheckpointSink(NamedTuple):
    """The destination of a run's state."""

    checkpoints: Checkpoints  # checkpoints of the run
    best: Path  # file for the weights that did best on the selection set
    choices: Mapping[str, Any]  # facts that exact resume depends on; a resumed run warns if they differ
    # callback, called once with the chosen `ComputePlan` as JSON
    announce: Callable[[dict[str, Any]], None] | None = None
    run: records.KeptRun | None = None  # what every checkpoint keeps of its run

    def read_best(self) -> bytes:
        """Return the file of the best weights.

        Raises:
            DamagedError: if it is missing, or not as the run wrote it.
        """
        known = None if self.run is None else self.run["best"]
        content = records.read_bytes(self.best) if self.best.is_file() else None
        if content is None or (known is not None and hashlib.sha256(content).hexdigest() != known):
            got = "none" if content is None else "others"
            instead = "restore the file, or remove the folder and run the same command again"
            raise records.DamagedError(self.best, "the weights that the run wrote", got, instead)
        return content
