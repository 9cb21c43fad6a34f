"""Types shared by all modules: no logic.

Tuples of tensors are named tuples because accelerate and DDP walk those; a dataclass would pass through untouched.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

UNLABELLED = -100
"""Class index of a sample without a label; such a sample takes part in no supervised term."""
Task: TypeAlias = Literal["classes", "labels", "pixels", "embedding"]
"""What a network answers for a sample. One of several ``classes``; whether each of several ``labels`` holds, each a
position with the classes no and yes; the class of each of its ``pixels``; or an ``embedding``, a vector of no classes
in the place of logits."""
PADDING = -1
"""Token id that fills a text's row up to the longest of its batch: no tokenizer has it, so no text can hold it."""


class View(NamedTuple):
    """Random view of samples: together with a sample's index it determines the augmentation.

    Attributes:
        seed: data seed.
        epoch: number of epochs before this one.
    """

    seed: int
    epoch: int


Inputs: TypeAlias = "Tensor | Mapping[str, Tensor]"
"""Inputs ``(batch, ...)`` of every network, or views of the same samples by the name of the network that reads each:
``student`` and ``teacher``. Where the teacher's positions are its own, such as the tokens of another vocabulary, bool
``teacher_counted`` beside them says which count, and ``student_aligned`` and ``teacher_aligned`` at which both networks
have read the same text (`views.positions_of`)."""


class Batch(NamedTuple):
    """One batch of samples, on one device.

    A sample has positions, each of which is classified: an image or a text has one, the tokens of a language model are
    many. Logits are ``(batch, *positions, classes)``.

    Attributes:
        index: indices of the samples in their data set, ``(batch,)`` int64; a sample with two views has two rows, one
            after the other: its weak view, then its strong one.
        inputs: inputs of the networks, ``(batch, ...)``, or a mapping of views by the name of the network that reads
            each; images are ``(batch, channels, height, width)``, in [0, 1]; token ids ``(batch, tokens)`` int64,
            `PADDING` behind a text.
        labels: class indices, ``(batch, *positions)`` int64, -100 if unlabelled; or soft labels, float
            ``(batch, *positions, classes)``.
        view: view of the samples, by which a teacher's recorded outputs are found; ``None`` without augmentation.
        counted: whether a position takes part in the loss and in the metrics, ``(batch, *positions)`` bool; ``None``
            for all. What is padding, or a prompt, does not; what a network returns there must be finite, and matters
            to nothing else.
    """

    index: Tensor  # type: ignore[assignment]  # over tuple.index, which no one calls on a batch
    inputs: Inputs
    labels: Tensor
    view: View | None = None
    counted: Tensor | None = None


class Hidden(NamedTuple):
    """Logits that are not made yet: ``states weight^T + bias``.

    Attributes:
        states: inputs of a network's last layer, ``(batch, *positions, width)``.
        weight: the layer's weight, ``(classes, width)``, in the dtype of the states, like the bias.
        bias: its bias, ``(classes,)``; ``None`` for 0.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None


class Sparse(NamedTuple):
    """What is known of a teacher's row without the whole of it: some classes, and one number for all the others.

    A ``bucket`` and ``sampled`` classes say what they say of the teacher at temperature 1 alone, and have no whole row.

    Attributes:
        values: largest logits, ``(..., top)``. In a ``bucket`` log-probabilities; of ``sampled`` classes the logarithms
            of weights: what they add up to for a class is in the mean over all draws the class's probability.
        index: classes of the values, ``(..., top)`` int64, each at most once; of ``sampled`` ones once for each draw,
            the likeliest first.
        level: logit of every other class, ``(...)``; ``-inf`` for probability 0. In a ``bucket`` the log-probability of
            all others together; with ``sampled`` classes minus the entropy of the teacher's whole row, nats.
        classes: number of classes in the whole row.
        form: what ``level`` is of.
    """

    values: Tensor
    index: Tensor  # type: ignore[assignment]  # over tuple.index, which no one calls on it
    level: Tensor
    classes: int
    form: Literal["level", "bucket", "sampled"] = "level"


class Served(NamedTuple):
    """What a served teacher answered for the samples of a split, at temperature 1.

    Attributes:
        logits: its log-probabilities, a row for each counted position, one sample's after another's, ``(rows, top)``.
        offsets: first row of each sample, and the number of rows, ``(samples + 1,)`` int64.
        left_over: mean probability of all classes but those that an answer names.
        source: file or data set that the answers are from, and their column.
    """

    logits: Sparse
    offsets: Tensor
    left_over: float
    source: str


class Outputs(NamedTuple):
    """A network's outputs for a batch.

    Attributes:
        logits: logits, ``(batch, *positions, classes)``; of no class where ``hidden`` or ``sparse`` is in their place.
        taps: features by tap, for objectives that match them.
        hidden: what the logits are made of, only for objectives that read it: `BoundObjective.refuses_hidden`.
        sparse: a teacher's largest logits, as they were recorded; terms that do not read them get whole rows.
    """

    logits: Tensor
    taps: Mapping[str, Tensor] = {}
    hidden: Hidden | None = None
    sparse: Sparse | None = None


class Progress(NamedTuple):
    """A step's position in a fit, of which scheduled weights and learning rates are functions. A run's stage is a fit.

    In a step of `fit` all are ``()`` tensors on the device, int64 and float32, so that a step can be captured once and
    replayed: a term computes with them as with numbers, but never reads them on the host, as ``if progress.epoch > 5``
    would. Their memory is reused, so clone one to keep it; as dict keys they compare by identity, not by value.

    Attributes:
        epoch: number of epochs before this one, so 0 in the first.
        step: number of optimizer steps done in the whole fit.
        fraction: fraction of the fit's steps done, in [0, 1).
        scheduled: values of schedules at this step, by schedule; missing ones are computed on the host when they are
            read. A loop that computes them beforehand leaves the host nothing to work out in a step.
    """

    epoch: int | Tensor = 0
    step: int | Tensor = 0
    fraction: float | Tensor = 0.0
    scheduled: Mapping[Hashable, float | Tensor] = {}


class Totals(NamedTuple):
    """Divisors of means: counts over all micro-batches and processes of one optimizer step.

    The counts are divided by the number of processes, over which gradients are averaged afterwards.

    Attributes:
        samples: number of samples, for terms with one value per sample.
        labelled: number of counted positions with a label.
        positions: number of counted positions.
    """

    samples: Tensor
    labelled: Tensor
    positions: Tensor


class Loss(NamedTuple):
    """A loss: the weighted sum of the terms, ``()``, and each term's unweighted, detached mean by name."""

    total: Tensor
    parts: dict[str, Tensor]


class Projection(NamedTuple):
    """A learned map from a student's tap onto the shape of a teacher's.

    Its ``kind`` is one of `tutelage.objectives.projectors.KINDS`; with ``always`` it maps even if the shapes agree.
    Terms of one preset call that name the same taps and kind share the map.
    """

    student: str
    teacher: str
    kind: str
    always: bool = True


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """Requirements of a term, so that a run fails before training instead of in its first epoch.

    Attributes:
        teacher: whether it reads the teacher's outputs.
        labels: labels that it reads: ``"none"``, ``"index"`` (class indices) or ``"any"`` (these or soft labels).
        coupled: whether it couples the samples of a batch, so that its value depends on how a batch is split.
        student_taps: features of the student that it reads.
        teacher_taps: features of the teacher that it reads.
        projections: student's features that it reads through a learned map.
        teacher_statistics: whether its binding reads the teacher's logits on training samples.
        indices: whether it reads the samples' indices in the training set.
        teacher_head: whether its binding reads the weights of the teacher's last layer.
        teacher_norms: taps at which its binding reads the weights of the teacher's batch norm.
        class_means: teacher's features whose mean per class, over the training samples, its binding reads.
        min_batch: smallest number of samples in a batch.
        host_waits: whether its computation makes the host wait for the device, so that no step can be captured.
        sparse: whether it reads a teacher's logits as `Sparse` too.
        embeddings: whether it reads outputs as embeddings, which are no logits of classes.
        members: taps of the teacher, among ``teacher_taps``, that are logits: those of an ensemble's members.
        views: number of views of each sample that it compares, neighbours in a batch.
        other_vocabulary: whether it takes a teacher of other classes, at positions of its own.
        same_tokens: whether its binding reads which classes of both networks are the same.
    """

    teacher: bool
    labels: Literal["none", "index", "any"]
    coupled: bool = False
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    projections: tuple[Projection, ...] = ()
    teacher_statistics: bool = False
    indices: bool = False
    teacher_head: bool = False
    teacher_norms: tuple[str, ...] = ()
    class_means: tuple[str, ...] = ()
    min_batch: int = 1
    host_waits: bool = False
    sparse: bool = False
    embeddings: bool = False
    members: tuple[str, ...] = ()
    views: int = 1
    other_vocabulary: bool = False
    same_tokens: bool = False


class Metric(Protocol):
    """What networks are judged by on a held-out set besides accuracy: a fold over its batches.

    Attributes:
        of_classes: whether outputs are logits of classes, which accuracy, cross-entropy and entropy can be taken of.
    """

    of_classes: bool

    def fold(self, state: Any, number: int, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Any:
        """Return the state with another batch; ``None`` is that of none.

        Args:
            state: what the last call returned in this process, which may be changed.
            number: number of the batch in the set.
            logits: outputs at its counted positions, one after another, ``(positions, classes)``, on the CPU.
            labels: their labels, ``(positions,)`` int64, -100 where there are none.
            teacher: the teacher's outputs there, ``(positions, classes)``, if there is a teacher.
        """

    def end(self, states: Sequence[Any]) -> Mapping[str, Any]:
        """Return the measures by name, given the states of all processes that had a batch.

        Numbers, ``None`` where not known, are of every evaluation; lists are of detailed ones alone.
        """

    def beats_chance(self, states: Sequence[Any]) -> bool | None:
        """Return whether the network is better than guessing, given the same states; ``None`` if that is not known."""


class Term(Protocol):
    """A bound term of an objective: a module that holds whatever it needs for one run.

    It returns values ``(batch, *positions)``, or ``(batch,)`` for one per sample, zero where a label is missing that it
    reads; or ``()`` if it couples the batch.
    """

    needs: Requirements

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        """Compute the term's values."""


@runtime_checkable
class StatefulTerm(Protocol):
    """Optional interface for bound terms that own buffers, such as a bank of embeddings.

    A call changes no buffer; `commit` does, once it is known whether the step was applied. So no copy of the buffers is
    needed to undo a step. Several processes do not synchronise the buffers: the term keeps them equal.
    """

    def commit(self, applied: Tensor) -> None:
        """Write the last step's values to the buffers if ``applied``, ``()`` bool on its device; else drop them."""


class Teacher(Protocol):
    """A source of the teacher's outputs: a frozen network, or a cache of recorded ones."""

    def __call__(self, batch: Batch) -> Outputs:
        """Return the teacher's outputs for the batch; no gradient flows into them."""


@runtime_checkable
class Opens(Protocol):
    """Optional interface for teachers that read an epoch's outputs before its first step."""

    def open(self, view: View | None) -> None:
        """Make the outputs of these views ready, in the memory of the previous views' outputs."""


class Batches(Protocol):
    """A seeded, replayable stream: the same (epoch, step) is always the same batch.

    Attributes:
        samples: number of samples per epoch.
    """

    samples: int

    def __len__(self) -> int:
        """Return the number of steps per epoch, for as many processes as share it."""

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield the batches of one epoch from step ``start`` on; with several processes, this one's share of each.

        Augmented batches carry their ``view``.
        """


@runtime_checkable
class Deals(Protocol):
    """Optional interface for batches that several processes take whole, each without reading those of the others."""

    def dealt(self, *, rank: int, world: int) -> Iterator[Batch]:
        """Yield every ``world``-th whole batch of the first epoch, from number ``rank`` on."""
