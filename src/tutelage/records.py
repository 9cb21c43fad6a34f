"""What a run writes and a report reads: file names, schemas, atomic writes. No torch.

A run's folder holds ``recipe.yaml``, ``manifest.json``, ``metrics.jsonl`` (an `Epoch` per line), ``evaluation.json``,
``predictions.npz``, ``disputed.json``, ``costs.json``, ``checkpoints/``, ``student.safetensors`` with
``student.json``, ``best.safetensors`` and ``report.html``.
A comparison's folder holds ``comparison.json`` and one run's folder for each entry, a study's ``study.json``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import re
import shutil
import stat
import time
import typing
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, Required, TypedDict

from tutelage import plain_files
from tutelage.errors import InvalidValueError, NotFoundError, StorageError, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECIPE = "recipe.yaml"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
COMPARISON = "comparison.json"
STUDY = "study.json"
TUNE = "tune.json"
OUTPUTS = "outputs.json"
CHECKPOINTS = "checkpoints"
STUDENT = "student.safetensors"
CARD = "student.json"
NETWORK = "config.json"
TOKENIZER = "tokenizer.json"
BEST = "best.safetensors"
PREDICTIONS = "predictions.npz"
DISPUTED = "disputed.json"
COSTS = "costs.json"
REPORT = "report.html"
README = "README.md"

CHECKPOINT = re.compile(r"(\d{2,})-(\d{9,})")
"""Pattern of a checkpoint's name: stage and step. Anything else in the folder is left alone."""
STATE = "state.json"
CHECKSUMS = "checksums"

SCHEMA = 1
"""Version of a run's folder and of recipes, in each of their files. What lacks it is of the first."""
OUTPUTS_SCHEMA = 4
"""Version of recorded outputs. Files of the first do not say their place."""


class TrainMeans(TypedDict):
    """Means over the training samples of one epoch, taken while training."""

    loss: float
    terms: dict[str, float]  # each term of the objective, not weighted, in nats
    accuracy: (
        float | None
    )  # over labelled samples; none where there are no labels, or no logits: ``loss_form: last_layer``
    entropy: float | None  # mean Shannon entropy of the student's distribution, nats; none without logits, as all below
    kl_to_target: float | None
    """Mean KL from the student's distribution to the transformed teacher that the objective matches, nats."""
    agreement: float | None
    """Fraction of samples on which student and teacher predict the same class; none without a teacher in the step."""
    samples: int
    unlabelled: NotRequired[int]
    """Counted positions without a label, as what a student wrote itself; only where there are some beside others."""


class TaskMeasures(TypedDict):
    """What a network is judged by besides, where it does not tell one class per sample."""

    # Of a language model, over the counted tokens that have a label.
    perplexity: NotRequired[float]  # exp of the mean cross-entropy per token; lower is better
    bits_per_byte: NotRequired[
        float
    ]  # cross-entropy in bits per byte of the text in UTF-8: comparable between tokenizers
    # Of pixels: mean over the classes that a pixel has, or is given, of intersection over union.
    mean_iou: NotRequired[float | None]
    # Of labels: means over those with a positive sample. F1 is at probability 1/2; ``micro`` is of all answers at once.
    mean_average_precision: NotRequired[float | None]
    macro_f1: NotRequired[float | None]
    micro_f1: NotRequired[float | None]
    # Of embeddings, by cosine similarity.
    recall_at_1: NotRequired[float | None]  # fraction of samples whose nearest other sample has the same label
    cosine: NotRequired[float | None]  # mean similarity to the teacher's


class EvaluationMeans(TaskMeasures):
    """Means over a whole held-out set, in evaluation mode, without augmentation.

    Where samples have several positions, such as tokens, means and ``samples`` are of the positions that count.
    """

    set: str
    accuracy: float | None
    loss: float | None  # cross-entropy, nats
    entropy: float | None  # none of embeddings
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
    samples_by_rank: NotRequired[list[int]]  # of several processes: each one's samples, since a resume if there was one
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


class Calibration(TypedDict):
    """A network whose logits are divided by one temperature, as Guo et al. 2017 (arXiv:1706.04599) do."""

    temperature: float  # above 1 for a network that is too sure of itself
    fitted_on: str  # ``validation``; or ``test``: each half of the test set with the temperature of the other half
    loss: float  # of the scaled logits, nats
    ece: float  # of the scaled logits, a fraction
    reliability: list[Bin]


class Judgement(TaskMeasures):
    """A network on a held-out set, in detail. Accuracies are fractions, entropies and losses nats.

    Of embeddings there are none of these.
    """

    accuracy: float | None
    loss: float | None
    entropy: float | None
    ece: float | None  # expected calibration error over the reliability bins, a fraction
    # Accuracy by class; none for a class without samples; empty where tokens are classes, and of labels.
    per_class: list[float | None]
    average_precision: NotRequired[list[float | None]]  # of each label; none for a label that no sample has
    entropy_histogram: Histogram
    reliability: list[Bin]
    agreement: NotRequired[float | None]  # with the teacher
    kl_to_teacher: NotRequired[float | None]  # mean KL(p || q) at temperature 1, nats
    kl_to_target: NotRequired[float | None]
    calibration: NotRequired[Calibration | None]  # after temperature scaling; of one class a sample


class Best(TaskMeasures):
    """The epoch that selection would choose, with the measure by which it does."""

    set: str
    accuracy: float | None
    epoch: int
    stage: int


class Evaluation(TypedDict):
    """``evaluation.json``: the student that the run ends with, and its teacher where there is one."""

    set: str
    samples: int
    class_names: list[str]
    student: Judgement
    teacher: Judgement | None
    best: Best | None  # on the set that selection used; the manifest's ``selection`` says whether it is reported


class Answer(TypedDict):
    """The class that a network gives a sample, and its probability."""

    label: int
    probability: float


class DisputedSample(TypedDict):
    """A sample of the test set that student and teacher answer differently; without a teacher, one answered wrongly."""

    index: int
    label: int | None
    student: Answer
    teacher: Answer | None
    picture: str | None  # a small PNG as a data URL
    text: str | None  # its beginning


class Disputed(TypedDict):
    """``disputed.json``: the samples on which the networks, or a student alone, are surest, these first."""

    set: str
    count: int  # of all such samples
    samples: list[DisputedSample]


class Predictions(NamedTuple):
    """``predictions.npz``: the class that each network gives each sample of a set, with its probability.

    Arrays are ``(samples,)``, in the order of the samples' indices: integers as narrow as they fit, probabilities
    float32. What a teacher answers is not there where there is none.
    """

    set: str
    index: NDArray[np.integer]  # type: ignore[assignment]  # over tuple.index; the sample's place in the set
    label: NDArray[np.integer]  # -100 if unlabelled
    student: NDArray[np.integer]
    student_probability: NDArray[np.float32]
    teacher: NDArray[np.integer] | None = None
    teacher_probability: NDArray[np.float32] | None = None


MOST_PREDICTIONS = 2**22
"""Number of samples above which no `PREDICTIONS` are written or read."""


class NetworkCost(TypedDict):
    """What a network costs to keep and to call. A time is none where it was not measured."""

    network: str  # its name
    parameters: int
    flops: int | None  # of one sample's forward pass, a multiplication and an addition being two
    file_bytes: int | None  # of its weights as saved; none where nothing is saved of it
    latency_ms: float | None  # of a batch of one sample: the median
    latency_p90_ms: float | None
    latency_n: int  # forward passes that were timed
    throughput: float | None  # samples per second at the best batch that was tried
    batch: int | None  # that batch


class Costs(TypedDict):
    """``costs.json``: the networks of a run, measured in one process after the last evaluation."""

    schema: NotRequired[int]
    device: str
    hardware: str  # name of the processor or the GPU
    threads: int | None
    precision: str
    input: list[int] | None  # shape of the student's sample; its tokens for a text
    student: NetworkCost
    teacher: NetworkCost | None


class Entry(TypedDict):
    """One run of a comparison."""

    folder: str  # relative to the comparison's folder
    objective: str  # the entry's name in the comparison, such as ``wttm``
    seed: int


class OutputsKey(TypedDict):
    """What ``outputs.json`` says of whose outputs lie beside it."""

    key: dict[str, Any]


class Comparison(TypedDict):
    """``comparison.json``."""

    schema: NotRequired[int]
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


class Compared(TypedDict):
    """Two methods of a study, whose difference is reported."""

    tests: str  # what it tests
    first: str
    second: str  # subtracted from the first


class Candidate(TypedDict):
    """One trial of a study's search: a method's candidate, trained for one pair."""

    pair: str
    method: str
    number: int  # among the method's candidates, from 0
    folder: str  # relative to the study's folder
    seed: int
    setting: dict[str, dict[str, Any]]  # by preset, every argument that any of the method's candidates names
    state: Literal["to do", "finished", "failed"]
    value: float | None  # of the measure on the validation set, by the student that the trial ended with
    chosen: bool  # whether the method's runs have it


class StudySearch(TypedDict):
    """How the settings of a study's methods were chosen."""

    epochs: int  # of a trial
    validation: float  # share of the training samples that trials hold out
    presets: dict[str, str]  # by method, the one preset that it has beside cross-entropy
    candidates: list[Candidate]


class Study(TypedDict):
    """``study.json``."""

    schema: NotRequired[int]
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
    differences: list[Compared]  # between methods, below the table of each pair
    search: NotRequired[StudySearch]  # only with one
    departures: list[str]  # how the runs differ from the published ones, one per line
    missing: dict[str, str]  # methods that could not be run, and why
    notes: list[str]  # below its table


class Dimension(TypedDict):
    """One setting that a search chooses."""

    key: str  # of the recipe, as it is typed
    kind: Literal["number", "whole", "choice"]
    low: float | None  # bounds of a number; none for a choice
    high: float | None
    log: bool  # whether a number's logarithm is drawn evenly
    choices: list[Any]  # of a choice; else empty
    when: dict[str, list[Any]]  # keys on whose values it depends, with those under which it is there; mostly empty


class Trial(TypedDict):
    """One run of a search."""

    number: int
    folder: str  # relative to the search's folder
    round: int  # those of one round were chosen before any of them was trained
    origin: str  # ``recipe``, ``sampled``, or the name of a known point
    values: dict[str, Any]  # by key; the recipe's own run has none where the recipe is no point of the space
    state: Literal["running", "finished", "pruned", "failed"]
    value: float | None  # of the search's measure on the validation set, by the student that the run ended with
    epochs: int  # trained
    reason: str | None  # why it failed or was pruned


class Confirmation(TypedDict):
    """One run over a new seed."""

    folder: str
    trial: int  # whose settings it has
    seed: int
    data_seed: int
    validation: float  # the measure of the student that the run ended with, as of a trial
    test: float | None


class HeldOutGain(TypedDict):
    """Mean difference of found settings from the recipe's over new seeds, in the measure, positive where better."""

    mean: float
    low: float | None  # 95 % interval by Student's t of the differences; none for one seed
    high: float | None
    n: int


class Found(TypedDict):
    """What a search found."""

    trial: int
    values: dict[str, Any]
    line: str  # what to type behind the recipe
    gain: float  # over the recipe's own run in the search, on the validation set, positive where better
    held_out: NotRequired[dict[str, HeldOutGain]]  # by set; missing before new seeds were tried
    selection_noise: NotRequired[float]  # the gain less the held-out one on the validation set


class Tune(TypedDict):
    """``tune.json``."""

    schema: NotRequired[int]
    name: str
    space: list[Dimension]
    measure: str  # key of a `Measure`
    prune: bool
    version: str  # of the package
    sampler: str  # library and version
    trials: list[Trial]
    confirmations: list[Confirmation]
    found: Found | None


class KeptRun(TypedDict):
    """What a checkpoint knows of its run besides its state: enough to make the run's other records again."""

    recipe: dict[str, Any]
    manifest: dict[str, Any]
    epochs: list[dict[str, Any]]  # `Epoch` of earlier stages, perhaps of an earlier version
    best: str | None  # SHA-256 of `BEST`, if there are best weights


class StartedFrom(TypedDict):
    """The finished run that another one began with."""

    name: str
    fingerprint: str  # of its student
    epoch: int  # the last of its last stage


ManifestTypes = TypedDict(
    "ManifestTypes",
    {
        "schema": int,
        "name": str,
        "status": Required[str],
        "repeatable": bool,
        "started": str,
        "duration_s": float,
        "resumed": int,
        "software": dict[str, str],
        "files": dict[str, str],
        "data": dict[str, Any],
        "teacher": dict[str, Any] | None,
        "student": dict[str, Any],
        "precision": dict[str, Any],
        "speed": list[dict[str, Any]],
        "objective_resolved": list[dict[str, Any]],
        "class": list[str],
        "stopped": list[dict[str, Any] | None],
        "recipe": dict[str, Any] | None,
        "rounded": dict[str, Any],
        "notes": list[str],
        "started_from": StartedFrom,
        "accumulate": dict[str, Any],
    },
    total=False,
)
"""Types of the keys of ``manifest.json`` that are read again; a manifest of an earlier version lacks some."""


BESIDE = ("scale", "gather", "sha256")
"""Keys of an objective's entry in a recipe that are not presets."""

ELSEWHERE = "choose another folder: --runs FOLDER for runs, outputs=FOLDER for a teacher's outputs"
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
"""Numbers of errors by which a download fails on the disk and not on the connection."""
PAUSES = (0.01, 0.1, 1.0)
"""Seconds between attempts to replace a file that is being read."""

Manifest = dict[str, Any]
"""``manifest.json``; its keys are documented in ``docs/records.md``."""


class DamagedError(InvalidValueError):
    """A record that is missing, torn, of another kind, or from another place."""


class NewerError(InvalidValueError):
    """A record that a newer version of this package wrote."""


@contextlib.contextmanager
def writing(path: Path, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Raise what the system refuses while a file is written as an error with the file and what to type.

    Raises:
        StorageError: the system refused; ``errno`` and ``strerror`` are its own.
        InvalidValueError: a folder of the path is a file.
    """
    try:
        yield
    except StorageError:
        raise
    except IsADirectoryError as error:
        refused = StorageError(f"'{path}'", "a file, or nothing", "a folder", "move it away")
        refused.errno, refused.strerror = error.errno, "a folder is in its place"
        raise refused from error
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidValueError(
            f"'{path}'", "a folder to write it to", "a file in the folder's place", elsewhere
        ) from error
    except OSError as error:
        raise storage_error(error, f"'{path}'", folder=path.parent, elsewhere=elsewhere) from error


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


LARGEST_JSON = 2**26
"""Bytes of a JSON file."""


def flat(values: Any, separator: str = ".", *, lists: bool = False, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is in nested mappings by the path to it; empty mappings yield nothing.

    Args:
        values: a mapping.
        separator: what stands between the keys of a path.
        lists: whether lists of mappings are entered too, by position; other lists are values.
        before: path of ``values`` itself.

    Example:
        >>> dict(flat({"epoch": 1, "train": {"loss": 0.5, "terms": {"kd": 0.25}}}))
        {'epoch': 1, 'train.loss': 0.5, 'train.terms.kd': 0.25}
    """
    if isinstance(values, Mapping):
        inner: Iterable[tuple[Any, Any]] = values.items()
    elif lists and isinstance(values, list) and any(isinstance(each, Mapping) for each in values):
        inner = enumerate(values)
    else:
        yield before, values
        return
    for key, each in inner:
        yield from flat(each, separator, lists=lists, before=f"{before}{separator}{key}" if before else str(key))


def read_bytes(
    path: Path, instead: str = "restore the file or run again", *, limit: int = plain_files.UNLIMITED
) -> bytes:
    """Read a regular file: a pipe in its place would keep the reader waiting.

    Raises:
        NotFoundError: there is none.
        DamagedError: something else is in its place.
        StorageError: the system refused.
    """
    try:
        return plain_files.read(path, limit)
    except FileNotFoundError:
        raise NotFoundError(path, "a file", "none", instead) from None
    except NotADirectoryError:
        raise DamagedError(path, "a file in a folder", "a file in the folder's place", instead) from None
    except InvalidValueError as error:
        raise DamagedError(path, error.expected, error.got, f"move it away; {instead}") from None
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(path, "to be able to read it", error.strerror or error, "allow it, or " + instead) from error


def parse_json(content: bytes, kind: Any = None, *, partial: bool = False) -> dict[str, Any]:
    """Read a JSON object of a kind, a `TypedDict`; of ``partial`` ones, keys may be missing.

    Raises:
        ValueError: it is something else; the message says what.
    """
    if not content.strip(b"\0 \t\r\n"):
        raise ValueError("zeros" if b"\0" in content else "nothing in it")
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("a byte order mark: another program saved it")
    try:
        value = plain_files.parse_json(content.decode())
    except UnicodeDecodeError:
        raise ValueError("text that is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"text that is cut off or changed, in line {error.lineno}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{_KINDS.get(type(value), 'a number')} in place of an object")
    if wrong := None if kind is None else plain_files.misfit(value, kind, partial=partial):
        raise ValueError(wrong)
    return value


_KINDS = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}


def read_json(
    path: Path,
    kind: Any = None,
    *,
    partial: bool = False,
    reads: int = SCHEMA,
    instead: str = "restore the file or run again",
) -> Any:
    """Read a JSON object of a kind, a `TypedDict`; of ``partial`` ones, keys may be missing.

    Raises:
        DamagedError: the file holds something else; it is named, with ``instead``.
        NewerError: a newer version wrote it.
        NotFoundError: there is none.
    """
    content = read_bytes(path, instead, limit=LARGEST_JSON)
    try:
        value = parse_json(content)
    except ValueError as error:
        raise DamagedError(path, "JSON", error, instead) from None
    check_schema(path, value, reads)
    if wrong := None if kind is None else plain_files.misfit(value, kind, partial=partial):
        raise DamagedError(path, "the record that was written", wrong, instead)
    return value


def check_schema(what: object, value: Mapping[str, Any], reads: int = SCHEMA) -> None:
    """Refuse what a newer version wrote, or what has no version where one stands.

    Raises:
        NewerError: the schema is above ``reads``.
        DamagedError: it is not a number of one.
    """
    schema = value.get("schema", 1)
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise DamagedError(what, f"schema: a whole number from 1 to {reads}", repr(schema), "restore the file")
    if schema > reads:
        expected = f"schema {reads} or an earlier one, which this version of tutelage reads"
        raise NewerError(what, expected, f"schema {schema}, of a newer version", "type pip install --upgrade tutelage")


def read_manifest(folder: Path, *, instead: str = "restore the file, or remove the folder") -> Manifest:
    """Read a run's manifest; raises what `read_json` does."""
    manifest: Manifest = read_json(folder / MANIFEST, ManifestTypes, instead=instead)
    return manifest


def digest(path: Path) -> str | None:
    """Return a file's SHA-256; ``None`` if there is no regular file. A file is read again only if it has changed."""
    try:
        known = path.stat()
    except OSError:
        return None
    return _digest(path, known.st_size, known.st_mtime_ns, known.st_ctime_ns) if stat.S_ISREG(known.st_mode) else None


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of those of a folder's files that are there, for ``files`` in its manifest."""
    return {name: known for name in names if (known := digest(folder / name)) is not None}


def lost(folder: Path, manifest: Mapping[str, Any], names: Iterable[str] | None = None) -> list[str]:
    """Return the files of a run that are missing, or are not those that it wrote; ``names`` limits which."""
    files = manifest.get("files") or {}
    return [name for name in names or files if name in files and not _is_as_written(folder / name, files[name])]


def _is_as_written(path: Path, known: str) -> bool:
    """Whether a file has a digest. Metrics may have one line more: a kill comes between it and the manifest."""
    if digest(path) == known:
        return True
    if path.name != METRICS or digest(path) is None:
        return False
    lines = read_bytes(path).splitlines(keepends=True)
    return hashlib.sha256(b"".join(lines[:-1])).hexdigest() == known


def require_whole(folder: Path, *names: str) -> None:
    """Refuse files in a run's folder that are not those that the run wrote. A folder without a manifest is not a run's.

    Raises:
        DamagedError: one of them is another; what to do stands with it.
    """
    if not (folder / MANIFEST).exists() and not checkpoint_names(folder / CHECKPOINTS):
        return
    for name in lost(folder, read_manifest(folder, instead=how_to_restore(folder)), names):
        got = "another one" if (folder / name).exists() else "none"
        expected = f"the one that {folder / MANIFEST} tells of"
        raise DamagedError(folder / name, expected, got, how_to_restore(folder))


def how_to_restore(folder: Path) -> str:
    """Say what to type where a file of a finished run is lost."""
    if checkpoint_names(folder / CHECKPOINTS):
        return f"type tutelage train {folder}, or distill, to write it again from the last checkpoint"
    return "restore the file, or remove the folder and run it again"


def checkpoint_names(folder: Path) -> list[str]:
    """Return the names of the checkpoints in a folder, the oldest first.

    Raises:
        DamagedError: something else is in the folder's place, which no checkpoint could be written to.
    """
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise DamagedError(folder, "a folder", "something else", "move it away, and run the same command again")
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and CHECKPOINT.fullmatch(path.name))


def read_checked(folder: Path, *names: str) -> dict[str, bytes]:
    """Read files of a checkpoint that `CHECKSUMS` lists, at least those named.

    Raises:
        ValueError: a file is missing or of another content, or the list is no list.
        OSError: one cannot be read.
    """
    sums = _checksums(folder)
    if missing := [name for name in names if name not in sums]:
        raise ValueError(f"an incomplete list without {missing[0]}")
    contents = {name: read_bytes(folder / name) for name in names}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != sums[name]:
            raise ValueError(f"another content of {name}")
    return contents


def has_checked_files(folder: Path, inside: str) -> bool:
    """Whether `CHECKSUMS` of a checkpoint lists files in a folder inside it, and all of them are as listed.

    Raises:
        ValueError: a file is missing or of another content, or the list is no list.
        OSError: the list cannot be read.
    """
    sums = {name: known for name, known in _checksums(folder).items() if name.startswith(f"{inside}/")}
    for name, known in sums.items():
        if digest(folder / name) != known:
            raise ValueError(f"another content of {name}, or none")
    return bool(sums)


def _checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that `CHECKSUMS` lists, by its path in the folder."""
    text = read_bytes(folder / CHECKSUMS).decode(errors="replace")
    return {name: known for known, name in (line.split("  ") for line in text.splitlines())}


def parse_state(content: bytes, name: str) -> dict[str, Any]:
    """Read the plain values of a checkpoint of a name, which says their stage and step.

    Raises:
        ValueError: they are something else, those of another stage or step, or of a newer version.
    """
    state = parse_json(content)
    check_schema(STATE, state)
    place = CHECKPOINT.fullmatch(name)
    assert place is not None
    for key, expected in zip(("stage", "step"), map(int, place.groups()), strict=True):
        if key in state and state[key] != expected:
            raise ValueError(f"the state of {key} {state[key]}")
    return state


def kept_run(folder: Path) -> tuple[KeptRun, str] | None:
    """Return what the newest good checkpoint of a run's folder knows of the run, and the checkpoint's name."""
    for name in reversed(checkpoint_names(folder / CHECKPOINTS)):
        with contextlib.suppress(OSError, ValueError):
            state = parse_state(read_checked(folder / CHECKPOINTS / name, STATE)[STATE], name)
            if plain_files.misfit(state.get("run"), KeptRun) is None:
                return typing.cast(KeptRun, state["run"]), name
    return None


def write_predictions(folder: Path, predictions: Predictions) -> None:
    """Write what networks answer for each sample into a run's folder, unless there are more than `MOST_PREDICTIONS`.

    Raises:
        StorageError: the system refused.
    """
    import numpy as np

    if len(predictions.index) > MOST_PREDICTIONS:
        return
    arrays: dict[str, Any] = {"set": np.array(predictions.set)}
    for name, values in predictions._asdict().items():
        if name == "set" or values is None:
            continue
        if name in _PROBABILITIES:
            arrays[name] = values.astype(np.float32)
        else:
            low, high = values.min(initial=0), values.max(initial=0)
            kinds = (np.int8, np.int16, np.int32, np.int64)
            arrays[name] = values.astype(next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max))
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_bytes(folder / PREDICTIONS, content.getvalue())


_PROBABILITIES = ("student_probability", "teacher_probability")


def read_predictions(folder: Path) -> Predictions:
    """Read what a run's networks answer for each sample of its test set.

    Raises:
        NotFoundError: there is no such file: an earlier version wrote the run, or it has not one class a sample.
        DamagedError: the file holds something else.
        StorageError: the system refused.
    """
    import numpy as np

    path, instead = folder / PREDICTIONS, "do without it, as the run is whole, or run it again in another folder"
    arrays: dict[str, Any] = {}
    most = MOST_PREDICTIONS * 8 + 2**12  # bytes of an array and its header
    content = read_bytes(path, instead, limit=len(Predictions._fields) * most)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name not in Predictions._fields or name in arrays or entry.file_size > most:
                    raise ValueError(f"an array {name[:40]!r} of {entry.file_size} bytes")
                arrays[name] = np.load(io.BytesIO(archive.read(entry)), allow_pickle=False)
        _check_predictions(arrays)
    except Exception as error:  # of whatever reads a damaged archive
        got = one_line(error) or type(error).__name__
        raise DamagedError(path, "the predictions that a run wrote", got, instead) from error
    return Predictions(**arrays | {"set": str(arrays["set"])})


def _check_predictions(arrays: Mapping[str, Any]) -> None:
    """Refuse what `write_predictions` does not write.

    Raises:
        ValueError: an array is missing, or of another kind or shape, or holds what cannot be.
    """
    import numpy as np

    of_teacher = {"teacher", "teacher_probability"}
    optional = set() if of_teacher & {*arrays} else of_teacher
    if missing := [name for name in Predictions._fields if name not in arrays and name not in optional]:
        raise ValueError(f"no array {missing[0]}")
    given = {name: values for name, values in arrays.items() if name != "set"}
    if arrays["set"].shape or arrays["set"].dtype.kind != "U":
        raise ValueError("no text as the name of the set")
    for name, values in given.items():
        probable = name in _PROBABILITIES
        if values.dtype.kind != ("f" if probable else "i") or values.shape != (given["index"].size,):
            raise ValueError(f"{name} of {values.dtype}, shape {values.shape}")
        low = -100 if name == "label" else 0
        if not bool(np.all(values >= low)) or (probable and not bool(np.all(values <= 1))):
            raise ValueError(f"values of {name} that none can have")
    if not bool(np.all(np.diff(given["index"].astype(np.int64)) > 0)):
        raise ValueError("indices that are not in order")


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


class Metrics(NamedTuple):
    """A run's epochs, and what is wrong with the file."""

    epochs: list[Epoch]
    damage: list[str]


def read_metrics(folder: Path) -> Metrics:
    """Read a run's epochs in order; lines that are damaged, as the last is after a kill, are left out and named."""
    path, epochs, damage = folder / METRICS, list[Epoch](), list[str]()
    if not path.exists():
        return Metrics(epochs, damage)
    try:
        lines = read_bytes(path).splitlines()
    except (DamagedError, StorageError) as error:
        return Metrics(epochs, [f"expected {error.expected}, got {error.got}"])
    for number, line in enumerate(lines, 1):
        try:
            epoch = parse_json(line, Epoch, partial=True)
            if "stage" not in epoch or "epoch" not in epoch:
                raise ValueError("no epoch")
        except ValueError as error:
            damage.append(f"line {number} holds {error}")
        else:
            epochs.append(typing.cast(Epoch, epoch))
    return Metrics(epochs, damage)


def read_epochs(folder: Path) -> Iterator[Epoch]:
    """Yield a run's epochs in order, those that `read_metrics` can read."""
    yield from read_metrics(folder).epochs


def rewrite_epochs(folder: Path, epochs: Sequence[Epoch]) -> None:
    """Replace a run's metrics atomically: a resumed run drops the epochs after its checkpoint."""
    write_bytes(folder / METRICS, b"".join((json.dumps(e, allow_nan=False) + "\n").encode() for e in epochs))


class Measure(NamedTuple):
    """What a network is judged by on a held-out set, and how that is written."""

    key: str  # in records
    name: str
    unit: str  # of what is written; empty for none
    scale: int  # by which a recorded number is multiplied to be written
    lower_is_better: bool
    difference: str  # what a table calls the difference of two means
    steps: str  # unit of that difference; empty for none
    counted: str  # what is counted: means are over these
    definition: str = ""
    beside: str | None = None  # key of what is shown beside it, one of `COMPANIONS`

    @property
    def title(self) -> str:
        """Its name at the beginning of a line."""
        return self.name[0].upper() + self.name[1:]

    def merit(self, value: float) -> float:
        """Return a value with the sign by which higher is better."""
        return -value if self.lower_is_better else value

    def heading(self, name: str, unit: str | None = None) -> str:
        """Return the heading of a column of values, or of another unit."""
        unit = self.unit if unit is None else unit
        return f"{name} ({unit})" if unit else name

    def write(self, value: float, std: float | None = None) -> str:
        """Write a recorded value without its unit, with its standard deviation if there is one."""
        numbers = [self.scale * each for each in (value, std) if each is not None]
        return " ± ".join(f"{each:.2f}" if abs(each) < LARGE else f"{each:.3g}" for each in numbers)

    def describe(self, means: Mapping[str, Any]) -> str:
        """Write what is recorded: ``accuracy 15.87%``, or ``perplexity 118.81, 2.413 bits per byte``."""
        return f"{self.name} {self.write(means[self.key])}{self.unit}{self.describe_beside(means, ', ')}"

    def describe_beside(self, means: Mapping[str, Any], separator: str) -> str:
        """Write what is shown beside it behind a separator: ``, 2.413 bits per byte``; nothing if it is not known."""
        value = means.get(self.beside) if self.beside is not None else None
        return "" if value is None else f"{separator}{value:.3f} {COMPANIONS[str(self.beside)][0]}"


COMPANIONS = {
    "bits_per_byte": (
        "bits per byte",
        "Cross-entropy in bits per byte of the text in UTF-8: comparable between tokenizers.",
    ),
    "macro_f1": (
        "macro F1",
        "Mean over the labels of 2 tp / (2 tp + fp + fn), for answers whose probability is above 1/2.",
    ),
    "cosine": ("cosine similarity", "Mean cosine similarity of the student's embedding and the teacher's."),
}
"""Names and definitions of what is shown beside a measure."""
ACCURACY = Measure("accuracy", "accuracy", "%", 100, False, "Gain", "points", "samples")
PERPLEXITY = Measure(
    *("perplexity", "perplexity", "", 1, True, "Change", "", "tokens"),
    "exp of the mean cross-entropy per token; lower is better.",
    "bits_per_byte",
)
MEAN_IOU = Measure(
    *("mean_iou", "mean IoU", "%", 100, False, "Gain", "points", "pixels"),
    "Intersection over union, mean over the classes that a pixel has or is given.",
)
MEAN_AVERAGE_PRECISION = Measure(
    *("mean_average_precision", "mean average precision", "%", 100, False, "Gain", "points", "labels"),
    "Area under a label's curve of precision by recall, mean over the labels that a sample has.",
    "macro_f1",
)
RECALL_AT_1 = Measure(
    *("recall_at_1", "recall at 1", "%", 100, False, "Gain", "points", "samples"),
    "Share of samples whose nearest other sample of the set, by cosine similarity, has the same label.",
    "cosine",
)
COSINE = Measure(
    *("cosine", "cosine similarity", "", 1, False, "Gain", "", "samples"),
    "Mean cosine similarity of the student's embedding and the teacher's.",
)
MEASURES = (PERPLEXITY, MEAN_IOU, MEAN_AVERAGE_PRECISION, RECALL_AT_1, COSINE)
"""What others than classifiers of samples are judged by, the first that is known."""
OF_TASKS = tuple(TaskMeasures.__annotations__)
"""Keys of the measures besides accuracy."""
OF_SHARES = ("mean_iou", "mean_average_precision", "macro_f1", "micro_f1", "recall_at_1")
"""Those of them that are fractions."""
LARGE = 1e6
"""Number from which on digits after the point are left out: the perplexity of a network that diverged."""


def measure_named(key: str) -> Measure:
    """Return the measure of a key in records."""
    return next((by for by in MEASURES if by.key == key), ACCURACY)


def measure(means: Mapping[str, Any]) -> Measure:
    """Return what a network with these means is judged by: its task's measure, or else accuracy."""
    return next((by for by in MEASURES if means.get(by.key) is not None), ACCURACY)


def merit(means: Mapping[str, Any]) -> float | None:
    """Return what the best epoch is chosen by, higher is better: the accuracy, or its task's measure."""
    by = measure(means)
    value = means.get(by.key)
    return None if value is None else by.merit(value)


def best_epoch(epochs: Sequence[Epoch], name: Literal["validation", "test"]) -> Best | None:
    """Return the first epoch with the highest `merit` on a held-out set; none where that set has no labels."""
    scored = [(e, held) for e in epochs if (held := e[name]) is not None and merit(held) is not None]
    if not scored:
        return None
    epoch, held = max(scored, key=lambda pair: merit(pair[1]) or 0.0)
    best: Best = {"set": name, "accuracy": held["accuracy"], "epoch": epoch["epoch"], "stage": epoch["stage"]}
    if (by := measure(held)) is not ACCURACY:
        best[by.key] = held[by.key]  # type: ignore[literal-required]
    return best
