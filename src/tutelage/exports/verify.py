"""A file beside the student that it is of: what they answer, how fast, how large."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tutelage.errors import RunError, TutelageError, reason_of
from tutelage.exports.source import Source
from tutelage.types import PADDING, UNLABELLED

SIZES = (1, 3, 32)
"""Sizes of the batches that a file is run on: the first two once, the last one for all other samples."""
SECONDS = 0.5
"""Seconds for which each of a pair of calls is timed."""
MOST_CALLS = 50
"""Calls that are timed at most."""

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Side:
    """A student as PyTorch runs it, or as a file has it.

    Attributes:
        accuracy: share of right answers among the samples that it was verified on, or of their positions; ``None``
            without labels.
        latency_ms: median milliseconds of a batch of one sample.
        throughput: samples per second in batches of ``batch``.
        bytes: size of the file, or of its folder; of the student's tensors.
    """

    accuracy: float | None
    latency_ms: float
    throughput: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A file compared with its student.

    Attributes:
        samples: number of test samples.
        difference: largest absolute difference of their logits.
        relative: that difference over the student's largest absolute logit.
        agreement: share of samples, or positions, of the same class; ``None`` of embeddings.
        student: the student.
        file: the file.
        latency_n: calls that the latency is the median of.
        batch: batch of the throughput.
        threads: threads of each.
    """

    samples: int
    difference: float
    relative: float
    agreement: float | None
    student: Side
    file: Side
    latency_n: int
    batch: int
    threads: int


@torch.no_grad()
def verify(source: Source, run: Call, path: Path) -> Verification:
    """Run a file on test samples in batches of several sizes, beside its student.

    Args:
        source: what the file is of.
        run: file, as its users run it.
        path: file or folder, for its size.

    Raises:
        RunError: the file does not take a batch, or answers with another shape, or the student's own logits are not
            finite, or not the same twice.
    """
    found = _Sums()
    first = trimmed(source.inputs[: SIZES[-1]], of_text=source.of_text)
    expected, again = source.logits(first), source.logits(first)
    if not bool(torch.isfinite(expected).all()) or not torch.equal(expected, again):
        what = "the same logits" if bool(torch.isfinite(expected).all()) else "finite logits"
        instead = "take out of it what is drawn at random, or train it again"
        name = source.classifier.card.name
        raise RunError(f"model {name}", f"{what} for the same inputs", "others, in evaluation mode", instead)
    for rows in _batches(source):
        batch = trimmed(source.inputs[rows], of_text=source.of_text)
        found.add(source, batch, source.logits(batch), _answer(run, batch), rows)
    latencies = _timed(source.logits, run, trimmed(source.inputs[:1], of_text=source.of_text))
    throughputs = _timed(source.logits, run, first)
    state = source.classifier.network.state_dict().values()
    sizes = sum(tensor.nbytes for tensor in state), size_of(path)
    sides = [
        Side(
            accuracy=found.share(right),
            latency_ms=1000 * statistics.median(latency),
            throughput=len(first) / statistics.median(seconds),
            bytes=size,
        )
        for right, latency, seconds, size in zip(found.right, latencies, throughputs, sizes, strict=True)
    ]
    return Verification(
        samples=len(source.inputs),
        difference=found.difference,
        relative=found.difference / found.largest if found.largest else found.difference,
        agreement=found.same / found.positions if found.positions else None,
        student=sides[0],
        file=sides[1],
        latency_n=len(latencies[0]),
        batch=len(first),
        threads=torch.get_num_threads(),
    )


def trimmed(inputs: Tensor, *, of_text: bool) -> Tensor:
    """Return texts without what stands behind the longest of them; anything else unchanged."""
    if not of_text:
        return inputs
    return inputs[:, : max(1, int((inputs != PADDING).sum(1).max()))]


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(each.stat().st_size for each in files_of(path))


def files_of(path: Path) -> list[Path]:
    """Return a file, or all files in a folder."""
    return [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]


def _batches(source: Source) -> Iterator[slice]:
    start, sizes = 0, list(SIZES)
    while start < len(source.inputs):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        yield slice(start, start + size)
        start += size


class _Sums:
    """Sums over the batches that were compared."""

    def __init__(self) -> None:
        self.difference, self.largest = 0.0, 0.0
        self.same, self.positions, self.labelled = 0, 0, 0
        self.right = [0, 0]

    def add(self, source: Source, batch: Tensor, expected: Tensor, got: Tensor, rows: slice) -> None:
        """Add a batch: what the student answers and what the file does."""
        if got.shape != expected.shape:
            instead = "choose another format"
            raise RunError("export", f"logits of shape {tuple(expected.shape)}", tuple(got.shape), instead)
        task, labels = source.classifier.card.task, source.labels
        if source.classifier.card.per_token:  # What is returned behind a text matters to nothing.
            inside = batch != PADDING
            expected, got = expected[inside], got[inside]
            labels = None if labels is None else labels[rows, : batch.shape[1]][inside]
        elif labels is not None:
            labels = labels[rows]
        difference = (expected.double() - got.double()).abs().max().item() if expected.numel() else 0.0
        self.difference = difference if math.isnan(difference) else max(self.difference, difference)
        self.largest = max(self.largest, expected.abs().max().item() if expected.numel() else 0.0)
        if task == "embedding":
            return
        answers = [each > 0 if task == "labels" else each.argmax(-1) for each in (expected, got)]
        self.same += int((answers[0] == answers[1]).sum())
        self.positions += answers[0].numel()
        if labels is not None:
            known = labels != UNLABELLED
            self.labelled += int(known.sum())
            for side, answer in enumerate(answers):
                self.right[side] += int((answer == labels)[known].sum())

    def share(self, right: int) -> float | None:
        return right / self.labelled if self.labelled else None


def _answer(run: Call, batch: Tensor) -> Tensor:
    try:
        return run(batch)
    except TutelageError:
        raise
    except Exception as error:  # of whatever runs the file
        expected, instead = f"a file that takes inputs of shape {tuple(batch.shape)}", "choose another format"
        raise RunError("export", expected, reason_of(error)[:300], instead) from error


def _timed(first: Call, second: Call, batch: Tensor) -> tuple[list[float], list[float]]:
    """Return the seconds of as many calls of each, in turn."""
    calls, seconds = (first, second), ([], [])  # type: tuple[Call, Call], tuple[list[float], list[float]]
    began = 0.0
    for turn in range(MOST_CALLS + 1):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call(batch)
            if turn:  # The first one of each prepares what the others find there.
                taken.append(time.perf_counter() - start)
        if not turn:
            began = time.perf_counter()
        elif time.perf_counter() - began > 2 * SECONDS:
            break
    return seconds
