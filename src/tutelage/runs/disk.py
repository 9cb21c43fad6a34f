"""The disk that runs need: an estimate that a dry run shows and that is checked before anything is written."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from tutelage import data, records
from tutelage.config.schema import Recipe
from tutelage.errors import StorageError
from tutelage.runs.networks import create_student
from tutelage.settings.fit import SGD, AdamW, LibraryOptimizer
from tutelage.submodules import trained_state
from tutelage.training.checkpoints import KEPT

MARGIN = 1.1
"""Room that is asked for, relative to what is estimated to be written: file systems have blocks and tables too."""
EPOCH = 2_000
"""Bytes of a line of metrics."""
FIXED = 200_000
"""Bytes of a run's other records. A report is several times that, but is written last, and a run does not need it."""

MOMENTS: Mapping[type, int] = {SGD: 1, AdamW: 2, LibraryOptimizer: 3}
"""Moments per parameter of each kind of optimizer, at most."""


def run_size(recipe: Recipe, student: nn.Module) -> int:
    """Estimate the bytes that a run writes, from its student's parameters and buffers that are not frozen.

    ``KEPT + 1`` checkpoints while one is written, each with the weights, their average if there is one, and the
    optimizer's moments (`MOMENTS`); last and best weights, and one of them while it is replaced; and the records. What
    an objective keeps besides, such as learned maps or banks, is not counted.
    """
    fits = recipe.fits()
    weights = sum(tensor.numel() * tensor.element_size() for tensor in trained_state(student).values())
    moments = sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad)
    most = max(MOMENTS[type(fit.settings.optimizer)] for fit in fits)
    epochs = sum(fit.settings.epochs for fit in fits)
    averages = weights if any(fit.settings.ema for fit in fits) else 0
    return (KEPT + 1) * (weights + averages + most * moments) + 3 * weights + epochs * EPOCH + FIXED


def present(folder: Path) -> int:
    """Return the bytes that a run's folder holds of what its next checkpoints and weights replace."""
    kept = [folder / records.STUDENT, folder / records.BEST]
    kept += (folder / records.CHECKPOINTS).glob("*/*")
    return sum(path.stat().st_size for path in kept if path.is_file())


def size_left(recipe: Recipe, student: nn.Module, folder: Path) -> int:
    """Estimate the bytes that a run still writes, less what it replaces."""
    return max(run_size(recipe, student) - present(folder), 0)


def size_of_all(planned: Iterable[tuple[Recipe, Path]], splits: data.Splits, trust_code: bool | frozenset[str]) -> int:
    """Estimate the bytes that runs in their folders still write, without what is recorded of a teacher.

    A student that cannot be made counts nothing: its run says why. Nor does one that is made of its teacher.
    """
    students: dict[str, nn.Module] = {}
    size = 0
    for recipe, folder in planned:
        network = recipe.student
        with contextlib.suppress(ValueError, TypeError, OSError, ImportError, RuntimeError):
            written = network.model_dump_json()  # A network with a configuration has no hash.
            if written not in students:
                students[written] = create_student(
                    network, data.read_by(splits, recipe.reads), seed=0, trust_code=trust_code
                )
            size += size_left(recipe, students[written], folder)
    return size


def free_bytes(folder: Path) -> int:
    """Return what is free on the disk of a folder, which need not be there."""
    return shutil.disk_usage(next(filter(Path.exists, (folder.absolute(), *folder.absolute().parents)))).free


def require_room(
    what: str, folder: Path, size: float, instead: str = "or type --runs FOLDER for one on another disk"
) -> None:
    """Refuse to begin what the disk of a folder has no room for: ``size`` bytes, an estimate, and `MARGIN`.

    Raises:
        StorageError: so; with what is needed and what is free.
    """
    if MARGIN * size > (free := free_bytes(folder)):
        expected = f"{MARGIN * size / 1e6:.1f} MB free in {folder}"
        error = StorageError(what, expected, f"{free / 1e6:.1f} MB", f"free some space, {instead}")
        error.errno = errno.ENOSPC
        raise error
