"""What a run writes and a report reads: file names, schemas, atomic writes. No torch.

A run's folder holds ``recipe.yaml``, ``manifest.json``, ``metrics.jsonl`` (an `Epoch` per line), ``evaluation.json``,
``checkpoints/``, ``student.safetensors`` with ``student.json``, ``best.safetensors`` and ``report.html``.
A comparison's folder holds ``comparison.json`` and one run's folder for each entry, a study's ``study.json``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from tutelage import plain_files
from tutelage.errors import InvalidValueError, StorageError

RECIPE = "recipe.yaml"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
COMPARISON = "comparison.json"
STUDY = "study.json"
OUTPUTS = "outputs.json"
CHECKPOINTS = "checkpoints"
STUDENT = "student.safetensors"
CARD = "student.json"
BEST = "best.safetensors"
REPORT = "report.html"


class TrainMeans(TypedDict):
    """Means over the training samples of one epoch, taken while training."""

    loss: float
    terms: dict[str, float]  # each term of the objective, not weighted, in nats
    accuracy: float | None  # over labelled samples; none where there are no labels
    entropy: float  # mean Shannon entropy of the student's distribution, nats
    kl_to_target: float | None
    """Mean KL from the student's distribution to the transformed teacher that the objective matches, nats."""
    agreement: float | None
    """Fraction of samples on which student and teacher predict the same class; none without a teacher in the step."""
    samples: int


class EvaluationMeans(TypedDict):
    """Means over a whole held-out set, in evaluation mode, without augmentation."""

    set: str
    accuracy: float | None
    loss: float | None  # cross-entropy, nats
    entropy: float
    kl_to_target: float | None
    agreement: float | None
    samples: int


class Epoch(TypedDict):
    """One line of ``metrics.jsonl``."""

    stage: int
    epoch: int  # epochs done in this stage, so 1 after the first
    step: int  # optimizer steps done in this stage
    learning_rate: float  # of the epoch's last step
    train: TrainMeans
    validation: EvaluationMeans | None
    test: EvaluationMeans | None
    images_per_second: float  # training only, evaluation left out
    seconds: float  # of the whole epoch, evaluation included; after a resume, of the part since
    memory_mb: float | None  # peak while training, in 1e6 bytes: of tensors on CUDA, of the whole process on the CPU
    skipped_steps: int  # steps with a non-finite loss or gradient, not applied
    overflowed_steps: NotRequired[int]  # under ``fp16``: steps that overflowed and lowered the loss scale, not applied


class Bin(TypedDict):
    """One bin of a reliability diagram."""

    low: float
    high: float
    count: int
    confidence: float  # mean top-1 probability of the bin's samples; 0 where it is empty
    accuracy: float


class Histogram(TypedDict):
    """Counts between consecutive edges."""

    edges: list[float]
    counts: list[int]


class Judgement(TypedDict):
    """A network on a held-out set, in detail. Accuracies are fractions, entropies and losses nats."""

    accuracy: float
    loss: float
    entropy: float
    ece: float  # expected calibration error over the reliability bins, a fraction
    per_class: list[float | None]  # accuracy by class; none for a class without samples
    entropy_histogram: Histogram
    reliability: list[Bin]
    agreement: NotRequired[float | None]  # with the teacher
    kl_to_teacher: NotRequired[float | None]  # mean KL(p || q) at temperature 1, nats
    kl_to_target: NotRequired[float | None]


class Best(TypedDict):
    """The epoch that selection would choose."""

    set: str
    accuracy: float
    epoch: int
    stage: int


class Evaluation(TypedDict):
    """``evaluation.json``: the last epoch's student, and its teacher where there is one."""

    set: str
    samples: int
    class_names: list[str]
    student: Judgement
    teacher: Judgement | None
    best: Best | None  # on the set that selection used; the last epoch is what is reported


class Entry(TypedDict):
    """One run of a comparison."""

    folder: str  # relative to the comparison's folder
    objective: str  # the entry's name in the comparison, such as ``wttm``
    seed: int


class Comparison(TypedDict):
    """``comparison.json``."""

    name: str
    baseline: str | None  # the entry that gains are relative to
    teacher: str | None  # the teacher's run folder, relative, where the comparison trained it
    share_data_seed: NotRequired[bool]
    """All seeds share order and views, so that the spread over seeds is that of the initialisation alone."""
    entries: list[Entry]


class Cell(TypedDict):
    """One run of a study."""

    folder: str
    """Relative to the study's folder; several studies of one protocol may share runs, so it may begin with ``..``."""
    pair: str  # teacher and student as the study calls them, such as ``resnet56/resnet20``
    teacher: str | None  # the teacher's run folder, relative as above; none where it has none of its own
    method: str
    seed: int


class Published(TypedDict):
    """One published value that a study is compared with, in percent as published."""

    pair: str
    method: str
    mean: float
    std: float | None
    n: int | None  # runs that the mean is over


class Study(TypedDict):
    """``study.json``."""

    name: str
    title: str
    source: str  # of the published values
    pairs: list[str]
    methods: list[str]  # in the table's order, including those that were not run
    cells: list[Cell]
    published: list[Published]
    figures: list[str]  # which are drawn: any of ``entropy``, ``divergence``, ``histogram``, ``mappings``
    costs: str | None
    """The method that time and memory of all methods are relative to; none where the table shows neither."""
    departures: list[str]  # how the runs differ from the published ones, one per line
    missing: dict[str, str]  # methods that could not be run, and why
    notes: list[str]  # below its table


BESIDE = ("scale", "gather")
"""Keys of an objective's entry in a recipe that are not presets."""

ELSEWHERE = "choose another folder: --runs FOLDER for runs, outputs=FOLDER for a teacher's outputs"
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
"""Numbers of errors by which a download fails on the disk and not on the connection."""
PAUSES = (0.01, 0.1, 1.0)
"""Seconds between attempts to replace a file that is being read."""

Manifest = dict[str, Any]
"""``manifest.json``; its keys are documented in ``docs/records.md``."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what the system refuses while a file is written as an error with the file and what to type.

    Raises:
        StorageError: the system refused; ``errno`` and ``strerror`` are its own.
        InvalidValueError: a folder of the path is a file.
    """
    try:
        yield
    except StorageError:
        raise
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidValueError(
            f"'{path}'", "a folder to write it to", "a file in the folder's place", ELSEWHERE
        ) from error
    except OSError as error:
        raise storage_error(error, f"'{path}'", folder=path.parent, elsewhere=ELSEWHERE) from error


def storage_error(error: OSError, what: str, *, folder: Path, elsewhere: str) -> StorageError:
    """Return what to raise where the system refuses to write something into a folder, which need not be there."""
    got, instead = error.strerror or str(error), f"allow it, or {elsewhere}"
    if error.errno == errno.ENOSPC:
        there = next(filter(Path.exists, (folder, *folder.parents)))
        got += f", {shutil.disk_usage(there).free / 1e6:.1f} MB free"
        instead = "free some space and run the same command again to resume"
    refused = StorageError(what, "to be able to write it", got, instead)
    refused.errno, refused.strerror = error.errno, error.strerror
    return refused


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically: temporary name, sync, rename, sync of the folder, which is made if missing.

    Raises:
        StorageError: the system refused; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _replace(temporary: Path, path: Path) -> None:
    # Windows refuses to replace a file that another process is reading: a study's workers read each other's manifests.
    for pause in PAUSES:
        with contextlib.suppress(PermissionError):
            temporary.replace(path)
            return
        time.sleep(pause)
    temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, if the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. NaN is refused: records are read by strict parsers too."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON object.

    Raises:
        InvalidValueError: the file holds something else, as after damage.
    """
    try:
        value = plain_files.parse_json(plain_files.read(path, plain_files.JSON_BYTES))
    except InvalidValueError:
        raise
    except ValueError as error:
        raise InvalidValueError(path, "JSON", error, "restore the file or run again") from error
    if not isinstance(value, dict):
        raise InvalidValueError(path, "a JSON object", type(value).__name__, "restore the file or run again")
    return value


def append_epoch(folder: Path, record: Epoch) -> None:
    """Add one epoch to a run's metrics, durably.

    Raises:
        StorageError: the system refused; what it wrote of the line is passed over by `read_epochs`.
    """
    path, line = folder / METRICS, (json.dumps(record, allow_nan=False) + "\n").encode()
    with writing(path), path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_epochs(folder: Path) -> Iterator[Epoch]:
    """Yield a run's epochs in order. A truncated last line, left by a kill, is skipped."""
    path = folder / METRICS
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            yield plain_files.parse_json(line)
        except ValueError:
            return


def rewrite_epochs(folder: Path, epochs: Sequence[Epoch]) -> None:
    """Replace a run's metrics atomically: a resumed run drops the epochs after its checkpoint."""
    write_bytes(folder / METRICS, b"".join((json.dumps(e, allow_nan=False) + "\n").encode() for e in epochs))


def best_epoch(epochs: Sequence[Epoch], name: Literal["validation", "test"]) -> Best | None:
    """Return the first epoch with the highest accuracy on a held-out set; none where that set has no labels."""
    scored = [(e, held["accuracy"]) for e in epochs if (held := e[name]) is not None and held["accuracy"] is not None]
    if not scored:
        return None
    epoch, accuracy = max(scored, key=lambda pair: pair[1])
    return {"set": name, "accuracy": accuracy, "epoch": epoch["epoch"], "stage": epoch["stage"]}
