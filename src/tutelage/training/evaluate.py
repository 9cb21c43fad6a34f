"""Evaluation: sums over a held-out set, batch by batch, and the metrics that follow from them.

Several processes take whole batches in turn, and share their sums: each metric is that of one process, to the bit.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from tutelage import losses, records, targets
from tutelage.adapters import inputs_for
from tutelage.checks import nonfinite_weight, widened
from tutelage.errors import InvalidTypeError, RunError
from tutelage.metrics import CHANCE
from tutelage.records import Bin, Calibration, EvaluationMeans, Judgement, TaskMeasures
from tutelage.settings.fit import Precision
from tutelage.submodules import evaluation_mode
from tutelage.training.distributed import gathered_objects, of_all, rank, to_device, world
from tutelage.training.precision import float32_products, mixed_precision, network_dtype
from tutelage.training.sharding import is_sharded
from tutelage.types import UNLABELLED, Batch, Batches, Deals, Metric
from tutelage.views import views_of

BINS = 15
"""Number of bins for reliability and calibration error, of equal width, as in Guo et al. 2017 (arXiv:1706.04599)."""
EDGES = 31
"""Number of edges of the histogram of entropies."""
ALIKE = 1e-6
"""Largest difference between logits of several samples, relative to the largest logit, at which they are the same."""
FEW = 16
"""Number of samples below which nothing follows from their answers being the same."""
LARGEST_LOSS = 350.0
"""Mean cross-entropy in nats of which a perplexity is made; of larger ones the square overflows."""
NAMED = 16
"""Number of samples of a non-finite step or evaluation that are named."""
SAMPLED = 512
"""Number of samples, about evenly spaced, whose logits an evaluation keeps."""
IN_MEMORY = 2**28
"""Bytes of a network's logits on a held-out set that a process keeps in memory; it writes the others to a file."""


class NonFiniteError(RunError):
    """A loss, a gradient or logits were not finite. Such a step is not applied."""


class TeacherLogits(Protocol):
    """A teacher's logits for the batches of a held-out set."""

    def __call__(self, number: int, batch: Batch) -> Tensor:
        """Return the logits of a batch and its number, ``(positions, classes)``: those of counted positions alone."""


class KeptLogits:
    """A network's logits, float32 or float64, for the batches that this process evaluates, by the batch's number.

    Args:
        most: bytes to keep in memory; the other batches are in a temporary file, which ends with this object.

    Attributes:
        index: indices of each batch's samples, by its number.
    """

    def __init__(self, most: int = IN_MEMORY) -> None:
        self.room = most
        self.held: dict[int, Tensor] = {}
        self.index: dict[int, Tensor] = {}
        self._written: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._file: IO[bytes] | None = None

    def __setitem__(self, number: int, logits: Tensor) -> None:
        """Keep a batch's logits, on the CPU.

        Raises:
            StorageError: if the temporary file cannot be written.
        """
        if logits.nbytes <= self.room:
            self.room -= logits.nbytes
            self.held[number] = logits
            return
        with records.writing(Path(tempfile.gettempdir()) / "logits"):
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  for as long as the logits are read
                weakref.finalize(self, self._file.close)
            self._written[number] = self._file.seek(0, 2), logits.shape, logits.dtype
            self._file.write(_bytes_of(logits.contiguous()))
            self._file.flush()

    def __call__(self, number: int, batch: Batch | None = None) -> Tensor:
        """Return a batch's logits, ``(positions, classes)``."""
        if number in self.held:
            return self.held[number]
        assert self._file is not None
        place, shape, dtype = self._written[number]
        logits = torch.empty(shape, dtype=dtype)
        self._file.seek(place)
        self._file.readinto(_bytes_of(logits))  # type: ignore[attr-defined]
        return logits


def _bytes_of(logits: Tensor) -> memoryview:
    return memoryview(logits.numpy()).cast("B")


class AskedLogits:
    """A network's logits that are computed whenever they are asked for: those of tokens are too many to keep.

    The network is on the device and in evaluation mode; `evaluate` calls this without gradients.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: torch.device,
        precision: Precision,
        channels_last: bool,
        view: str = "teacher",
    ) -> None:
        self.network, self.device, self.precision, self.view = network, device, precision, view
        self.channels_last = channels_last

    def __call__(self, number: int, batch: Batch) -> Tensor:
        """Return a batch's logits, ``(positions, classes)``; the network is in evaluation mode."""
        moved = to_device(batch, self.device, channels_last=self.channels_last, dtype=network_dtype(self.precision))
        with mixed_precision(self.device, self.precision):
            logits = self.network(inputs_for(self.network, moved.inputs, self.view))
        return counted_rows(widened(logits), moved).cpu()


class TeacherOutputs(NamedTuple):
    """A teacher on a held-out set."""

    evaluation: Evaluation
    logits: TeacherLogits | None  # None where its positions are its own


class EvalSet(NamedTuple):
    """A held-out set."""

    name: str  # name: ``validation`` or ``test``
    batches: Batches  # whole set, in order, without augmentation
    teacher: TeacherOutputs | None = None  # teacher on it, evaluated once; None without a teacher
    text_bytes: int | None = None  # length in UTF-8 of the text whose tokens are counted; None if it is no such text
    metric: Metric | None = None  # what networks are judged by there besides


class Predicted(NamedTuple):
    """What a network answers for samples of one class each, in the order of their indices, on the CPU."""

    index: Tensor  # type: ignore[assignment]  # over tuple.index, which no one calls on it; ``(samples,)`` int64
    labels: Tensor  # ``(samples,)`` int64, -100 if unlabelled
    classes: Tensor  # the likeliest, ``(samples,)`` int64
    probabilities: Tensor  # those of these classes, ``(samples,)``

    @classmethod
    def joined(cls, parts: Sequence[Predicted]) -> Predicted:
        """Return the samples of several batches."""
        index, *others = (torch.cat(columns) for columns in zip(*parts, strict=True))
        order = index.argsort()
        return cls(index[order], *(column[order] for column in others))


class _Counts(NamedTuple):
    """Counts of positions, int64, and each class's smallest and largest logit, ``(classes,)``."""

    numbers: Tensor  # positions, labelled ones, correct ones, and those whose class the teacher gives too
    in_bin: Tensor  # labelled samples by confidence, ``(BINS,)``
    right_in_bin: Tensor
    entropies: Tensor  # samples by entropy, ``(EDGES - 1,)``
    of_class: Tensor  # labelled samples by label, ``(classes,)``
    right_of_class: Tensor
    low: Tensor
    high: Tensor

    def plus(self, other: _Counts) -> _Counts:
        """Return the counts of both sets of samples."""
        sums = _Counts(*(first + second for first, second in zip(self, other, strict=True)))
        return sums._replace(low=torch.minimum(self.low, other.low), high=torch.maximum(self.high, other.high))


@dataclass
class _Part:
    """What a process finds in its batches."""

    samples: int = 0
    counts: _Counts | None = None
    sums: list[list[float]] = field(default_factory=list)  # sums over each batch, as named in `Evaluation`
    sample: dict[int, Tensor] = field(default_factory=dict)  # some of the logits, by the batch's number
    predicted: list[Predicted] = field(default_factory=list)  # what is answered in each batch, if that is wanted
    bad: list[int] = field(default_factory=list)  # samples with logits that are not finite
    bad_inputs: list[int] = field(default_factory=list)  # those among them whose inputs are not finite either
    folded: Any = None  # state of the metric


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A network on a held-out set: sums over its samples, and the metrics that follow from them.

    Where samples have several positions, such as tokens, a sample is here a position that counts.

    Attributes:
        samples: number of samples.
        labelled: number of those with a label.
        correct: number of those whose label has the largest logit.
        classes: number of classes.
        sample: float32 logits of some samples, about evenly spaced, at most `SAMPLED`; none unless they were wanted.
        predicted: what is answered for each sample; ``None`` unless that was wanted.
        calibration: what its `judgement` says of the network after temperature scaling, if anything.
    """

    samples: int
    labelled: int
    correct: int
    agreeing: int | None  # number of those whose largest logit is the teacher's too; None without one
    classes: int
    loss: float  # sum over labelled samples, nats; the next three are sums over all
    entropy: float | None
    kl_to_target: float | None
    kl_to_teacher: float | None
    confidences: list[float]  # sum over the labelled samples of each bin
    counts: _Counts
    sample: Tensor
    predicted: Predicted | None = None
    calibration: Calibration | None = None
    text_bytes: int | None = None  # as of `EvalSet`
    folded: TaskMeasures = field(default_factory=lambda: TaskMeasures())  # what the metric says
    details: dict[str, Any] = field(default_factory=dict)  # lists that it says besides
    beats_chance: Callable[[], bool | None] | None = None  # what to ask it of that; None without a metric
    of_classes: bool = True  # as of the metric

    @property
    def accuracy(self) -> float | None:
        """Fraction of labelled samples that are correct; ``None`` without any."""
        return self.correct / self.labelled if self.labelled else None

    @property
    def perplexity(self) -> float | None:
        """``exp`` of the mean cross-entropy per labelled token; ``None`` if it is no text's, or none has a label."""
        if not self.labelled or self.text_bytes is None:
            return None
        return math.exp(min(self.loss / self.labelled, LARGEST_LOSS))

    def of_task(self) -> TaskMeasures:
        """Return the measures besides accuracy: of the metric, or of a language model; none for one class a sample."""
        if self.perplexity is None or self.text_bytes is None:
            return self.folded
        return {"perplexity": self.perplexity, "bits_per_byte": self.loss / math.log(2) / max(self.text_bytes, 1)}

    def means(self, name: str) -> EvaluationMeans:
        """Return the means over the set of this name."""
        return {
            **self.of_task(),
            "set": name,
            "accuracy": self.accuracy,
            "loss": self.loss / self.labelled if self.labelled else None,
            "entropy": None if self.entropy is None else self.entropy / self.samples,
            "kl_to_target": None if self.kl_to_target is None else self.kl_to_target / self.samples,
            "agreement": None if self.agreeing is None else self.agreeing / self.samples,
            "samples": self.samples,
        }

    @property
    def is_judged(self) -> bool:
        """Whether anything is known of how good the network is: some sample has a label, or the metric needs none."""
        return bool(self.labelled) or any(value is not None for value in self.folded.values())

    def judgement(self) -> Judgement:
        """Return the metrics in detail, where `is_judged`."""
        if self.entropy is None or not self.labelled:
            unknown: Judgement = {
                "accuracy": None,
                "loss": None,
                "entropy": None,
                "ece": None,
                "per_class": [],
                "entropy_histogram": {"edges": [], "counts": []},
                "reliability": [],
            }
            return unknown | self.folded  # type: ignore[return-value]  # of some keys alone
        bins = [self._bin(k) for k in range(BINS)]
        of_class = zip(self.counts.right_of_class.tolist(), self.counts.of_class.tolist(), strict=True)
        per_class = [right / known if known else None for right, known in of_class]
        judgement: Judgement = {
            "accuracy": self.correct / self.labelled,
            "loss": self.loss / self.labelled,
            "entropy": self.entropy / self.samples,
            "ece": sum(each["count"] * abs(each["accuracy"] - each["confidence"]) for each in bins) / self.labelled,
            "per_class": per_class if self.text_bytes is None else [],
            "entropy_histogram": {
                "edges": _edges(self.classes).tolist(),
                "counts": self.counts.entropies.tolist(),
            },
            "reliability": bins,
        }
        judgement.update(self.of_task())  # type: ignore[typeddict-item]  # of some keys alone
        judgement.update(self.details)  # type: ignore[typeddict-item]
        if self.agreeing is not None and self.kl_to_teacher is not None:
            judgement["agreement"] = self.agreeing / self.samples
            judgement["kl_to_teacher"] = self.kl_to_teacher / self.samples
            judgement["kl_to_target"] = None if self.kl_to_target is None else self.kl_to_target / self.samples
        if self.calibration is not None:
            judgement["calibration"] = self.calibration
        return judgement

    def _bin(self, k: int) -> Bin:
        known, right = int(self.counts.in_bin[k]), int(self.counts.right_in_bin[k])
        return {
            "low": k / BINS,
            "high": (k + 1) / BINS,
            "count": known,
            "confidence": self.confidences[k] / known if known else 0.0,
            "accuracy": right / known if known else 0.0,
        }

    @property
    def answers_alike(self) -> bool:
        """Whether it answers all samples alike, whatever it is shown; a few samples may be alike themselves."""
        low, high = self.counts.low, self.counts.high
        labels = int((self.counts.of_class > 0).sum()) + (self.labelled < self.samples) + (not self.of_classes)
        largest = max(1.0, float(high.max()), -float(low.min()))
        return self.samples >= FEW and labels > 1 and float((high - low).max()) <= ALIKE * largest

    @property
    def better_than_chance(self) -> bool | None:
        """Whether it beats guessing, by a one-sided binomial test or as the metric says; ``None`` if not known."""
        if self.beats_chance is not None:
            return self.beats_chance()
        if not self.labelled:
            return None
        return bool(binomtest(self.correct, self.labelled, 1 / self.classes, alternative="greater").pvalue < CHANCE)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Batches,
    *,
    device: torch.device,
    precision: Precision,
    channels_last: bool,
    who: str = "network",
    teacher: TeacherLogits | None = None,
    gamma: float | None = None,
    keep: KeptLogits | None = None,
    sample: bool = False,
    predictions: bool = False,
    text_bytes: int | None = None,
    metric: Metric | None = None,
) -> Evaluation:
    """Evaluate a network on every sample, in evaluation mode; its mode is restored.

    Several processes take whole batches in turn, and all return the evaluation of the whole set.

    Args:
        network: network on the device.
        batches: held-out set.
        device: device to evaluate on.
        precision: precision of the network's operations.
        channels_last: whether images are laid out as channels-last.
        who: ``teacher`` for the view of that name where a batch has several; any other network reads the student's.
        teacher: logits of the network's teacher for the same batches.
        gamma: exponent of the transformed teacher that the network matched.
        keep: where to keep the network's logits; the evaluation then holds a sample of them too.
        sample: whether the evaluation is to hold a sample of them.
        predictions: whether it is to hold what is answered for each sample, of one class each.
        text_bytes: length of the text whose tokens are counted, as of `EvalSet`.
        metric: what the network is judged by besides.

    Raises:
        NonFiniteError: if logits are not finite, as no metric would mean anything; it names ``who`` and the samples.
    """

    def part() -> _Part:
        part, steps = _Part(), len(batches)

        view = "teacher" if who == "teacher" else "student"
        asked = AskedLogits(network, device=device, precision=precision, channels_last=channels_last, view=view)

        with evaluation_mode(network), float32_products(device, precision):
            for number, batch in _dealt(batches):
                logits = asked(number, batch)
                given = None if teacher is None else teacher(number, batch)
                _add(part, number, batch, logits, given, gamma, metric, predictions=predictions)
                if keep is not None:
                    keep[number], keep.index[number] = logits, batch.index.cpu()
                if (sample or keep is not None) and number % -(-steps // SAMPLED) == 0:
                    part.sample[number] = _some(logits, max(1, SAMPLED // steps))
            if is_sharded(network) and steps % world() and rank() >= steps % world():
                asked(0, next(iter(batches.epoch(0))))  # The others, which have a batch more, gather parameters.
        return part

    # An error in one process alone ends it at once: the others of a sharded network wait for its parameters.
    parts = gathered_objects(part()) if is_sharded(network) else of_all(part)
    of_classes = metric is None or metric.of_classes
    evaluation = _joined(parts, network, who, has_teacher=of_classes and teacher is not None, gamma=gamma)
    if metric is None:
        return replace(evaluation, text_bytes=text_bytes)
    states = [part.folded for part in parts if part.folded is not None]
    measures = metric.end(states)
    details = {name: value for name, value in measures.items() if isinstance(value, list)}
    folded = cast(TaskMeasures, {name: value for name, value in measures.items() if name not in details})
    evaluation = replace(evaluation, folded=folded, details=details, beats_chance=partial(metric.beats_chance, states))
    if metric.of_classes:
        return evaluation
    return replace(evaluation, of_classes=False, entropy=None)


def evaluation_of(rows: Callable[[], Iterator[tuple[int, Tensor, Tensor, Tensor]]]) -> Evaluation:
    """Return the evaluation of a network with these logits.

    Args:
        rows: yields, of each batch that this process has, its number, its samples' indices, their logits
            ``(samples, classes)`` and their labels ``(samples,)``.
    """

    def part() -> _Part:
        part = _Part()
        for number, index, logits, labels in rows():
            _add(part, number, Batch(index, logits.new_empty(len(index), 0), labels), logits, None, None, None)
        return part

    return _joined(of_all(part), nn.Identity(), "network", has_teacher=False, gamma=None)


def counted_rows(values: Tensor, batch: Batch) -> Tensor:
    """Return the values ``(batch, *positions, ...)`` of a batch's counted positions, as rows in order."""
    if batch.counted is not None:
        return values[batch.counted]
    return values.flatten(0, batch.labels.ndim - 1) if batch.labels.ndim > 1 else values


def _dealt(batches: Batches) -> Iterator[tuple[int, Batch]]:
    """Yield the batches that this process evaluates, each with its number."""
    first, step = rank(), world()
    if step > 1 and isinstance(batches, Deals):
        return zip(count(first, step), batches.dealt(rank=first, world=step), strict=False)
    return ((number, batch) for number, batch in enumerate(batches.epoch(0)) if number % step == first)


def _some(logits: Tensor, most: int) -> Tensor:
    return logits[:: -(-len(logits) // most)].clone()


def _add(
    part: _Part,
    number: int,
    batch: Batch,
    logits: Tensor,
    teacher: Tensor | None,
    gamma: float | None,
    metric: Metric | None,
    *,
    predictions: bool = False,
) -> None:
    """Add a batch of a number to what a process found before."""
    part.samples += len(batch.index)
    bad = torch.isfinite(logits).all(-1).logical_not()
    if bool(bad.any()):
        index, sample = batch.index.cpu(), torch.arange(len(batch.index)).reshape(-1, *[1] * (batch.labels.ndim - 1))
        faulty = counted_rows(sample.expand(batch.labels.shape), batch)[bad].unique()
        part.bad += index[faulty].tolist()
        sound = [torch.isfinite(view).flatten(1).all(1).cpu() for view in views_of(batch.inputs)]
        part.bad_inputs += index[faulty][torch.stack(sound).all(0).logical_not()[faulty]].tolist()
        return
    if batch.labels.is_floating_point():
        instead = "type labels.argmax(-1) where they are soft, or labels.long() where several hold, 1 for those that do"
        raise InvalidTypeError("labels", "int64 class indices in evaluation", batch.labels.dtype, instead)
    labels, log_q = counted_rows(batch.labels, batch).cpu(), logits.log_softmax(-1)
    if metric is not None:
        part.folded = metric.fold(part.folded, number, logits, labels, teacher)
        if not metric.of_classes:
            labels, teacher = torch.full_like(labels, UNLABELLED), None
    known, classes, entropy = labels != UNLABELLED, logits.shape[-1], targets.shannon_entropy(log_q)
    confidence, predicted = log_q.exp().max(-1)
    if predictions:
        part.predicted.append(Predicted(batch.index.cpu(), labels, predicted, confidence))
    right, labelled, confidence = (predicted == labels)[known], labels[known], confidence[known]
    in_bin = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    agreeing, to_target, to_teacher, edges = 0, 0.0, 0.0, _edges(classes)
    if teacher is not None:
        agreeing = int((predicted == teacher.argmax(-1)).sum())
        to_teacher = _sum(losses.kl_divergence(log_q, teacher.log_softmax(-1)))
        if gamma is not None:
            to_target = _sum(losses.kl_divergence(log_q, (gamma * teacher).log_softmax(-1)))
    counts = _Counts(
        numbers=torch.tensor([len(labels), len(labelled), int(right.sum()), agreeing]),
        in_bin=torch.bincount(in_bin, minlength=BINS),
        right_in_bin=torch.bincount(in_bin[right], minlength=BINS),
        entropies=torch.histogram(entropy.double().clamp(0, float(edges[-1])), edges).hist.long(),
        of_class=torch.bincount(labelled, minlength=classes),
        right_of_class=torch.bincount(labelled[right], minlength=classes),
        low=logits.amin(0),
        high=logits.amax(0),
    )
    part.counts = counts if part.counts is None else part.counts.plus(counts)
    confidences = torch.zeros(BINS, dtype=torch.float64).index_add_(0, in_bin, confidence.double()).tolist()
    part.sums.append([_sum(losses.cross_entropy(logits, labels)), _sum(entropy), to_target, to_teacher, *confidences])


def _sum(values: Tensor) -> float:
    return float(values.double().sum())


def _joined(
    parts: Sequence[_Part], network: nn.Module, who: str, *, has_teacher: bool, gamma: float | None
) -> Evaluation:
    """Return the evaluation that follows from all processes' parts."""
    found = [part.counts for part in parts if part.counts is not None]
    if bad := sorted(sample for part in parts for sample in part.bad):
        samples = sum(part.samples for part in parts)
        got = f"NaN or infinity for {len(bad)} of {samples} samples: {listed(bad[:NAMED], len(bad))}"
        cause, instead = _cause(network, sorted(sample for part in parts for sample in part.bad_inputs))
        raise NonFiniteError(who, "finite logits in evaluation", f"{got}{cause}", instead)
    counts, *others = found
    for other in others:
        counts = counts.plus(other)
    samples, labelled, correct, agreeing = counts.numbers.tolist()
    # Rounded once, so that neither the processes nor their order matters.
    columns = zip(*(sums for part in parts for sums in part.sums), strict=True)
    loss, entropy, to_target, to_teacher, *confidences = map(math.fsum, columns)
    rows = dict(sorted(row for part in parts for row in part.sample.items()))
    predicted = [each for part in parts for each in part.predicted]
    return Evaluation(
        samples=samples,
        labelled=labelled,
        correct=correct,
        agreeing=agreeing if has_teacher else None,
        classes=len(counts.low),
        loss=loss,
        entropy=entropy,
        kl_to_target=to_target if has_teacher and gamma is not None else None,
        kl_to_teacher=to_teacher if has_teacher else None,
        confidences=confidences,
        counts=counts,
        sample=torch.cat([*rows.values()]) if rows else counts.low.new_empty(0, len(counts.low)),
        predicted=Predicted.joined(predicted) if predicted else None,
    )


def _cause(network: nn.Module, bad_inputs: Sequence[int]) -> tuple[str, str]:
    """Return the cause of non-finite logits, and what to do; some samples' inputs may not be finite."""
    if weight := nonfinite_weight(network):
        return f"; parameter {weight}", "name other weights, or lower optimizer.lr if it is the student that diverged"
    if bad_inputs:
        named = listed(bad_inputs[:NAMED], len(bad_inputs))
        return f"; inputs of samples {named} are not finite", "mend these samples or leave them out of the data"
    return "", "look at these samples, or lower optimizer.lr if it is the student that diverged"


def listed(samples: Sequence[int], count: int) -> str:
    """Name some of this many samples."""
    more = f" and {count - len(samples)} more" if count > len(samples) else ""
    return ", ".join(map(str, samples)) + more


def _edges(classes: int) -> Tensor:
    return torch.linspace(0, float(torch.tensor(classes).log()), EDGES, dtype=torch.float64)
