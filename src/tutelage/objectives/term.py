"""Terms, of which an objective is a weighted sum."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.kernels.logits import READ_SPARSE
from tutelage.objectives import projectors
from tutelage.settings.weights import Automatic, AutomaticWeight, WeightValue, value_of
from tutelage.types import Batch, Outputs, Progress, Projection, Requirements, Sparse, Term

LOSS_INPUTS: dict[str, Callable[[Apply, Outputs, Outputs | None, Batch], Tensor | Sparse]] = {
    "student_logits": lambda term, student, teacher, batch: student.logits,
    "teacher_logits": lambda term, student, teacher, batch: teacher_logits(teacher),
    "student_features": lambda term, student, teacher, batch: student.taps[term.student_feature],
    "teacher_features": lambda term, student, teacher, batch: present(teacher).taps[term.teacher_tap],
    "student_embeddings": lambda term, student, teacher, batch: student.logits,
    "teacher_embeddings": lambda term, student, teacher, batch: present(teacher).logits,
    "labels": lambda term, student, teacher, batch: batch.labels,
}
"""Readers of a loss's positional arguments, by name: a loss's signature says what it reads."""

EMBEDDING = "card:embedding"
STAGES = ("card:stage.-3", "card:stage.-2", "card:stage.-1")
WITH_STEM = ("card:stage.-4", *STAGES)
BEFORE = ("card:before.-3", "card:before.-2", "card:before.-1")
LOCAL = "head@card:stage.-1"
"""Taps with which methods were published."""

_NAME_A_STAGE = "name a stage of a convolutional network, such as card:stage.-1"
KINDS: Mapping[str, tuple[tuple[int, ...], str, str]] = {
    "embedding": ((1,), "a feature (batch, width)", "name one after the pooling, such as card:embedding"),
    "map": ((3,), "a map (batch, channels, height, width)", _NAME_A_STAGE),
    "tokens": ((2,), "features (batch, tokens, width)", "name a transformer's layers, such as encoder.layer.*"),
    "map or embedding": ((1, 3), "features (batch, channels, height, width) or (batch, width)", _NAME_A_STAGE),
}
"""Kinds of features: numbers of axes without the batch, and what messages call them and suggest."""


@dataclass(frozen=True, kw_only=True)
class BindContext:
    """What a bound objective may know about the run; `tutelage.network_context` builds it.

    Values on training samples are computed without augmentation; shapes of features omit the batch.

    Attributes:
        samples: number of samples in the training set.
        classes: number of classes.
        labels: labels of the training set, ``(samples,)`` int64, -100 if unlabelled, or float ``(samples, classes)``.
        student_shapes: shapes of the student's features, by tap.
        teacher_shapes: shapes of the teacher's features, by tap.
        teacher_logits: teacher's logits on some training samples, float32 ``(some, classes)``.
        teacher_head: weight ``(classes, width)`` and bias of the teacher's last layer.
        teacher_norms: weight and bias ``(channels,)`` of the teacher's batch norms, by tap.
        class_means: means of the teacher's features per class, by tap, float32 ``(classes, width)``.
        same_tokens: classes of the student and of the teacher that are the same, ``(pairs, 2)`` int64; ``None`` where
            both have the same classes.
        per_epoch: number of samples in an epoch, where it is not that of all labels.
        per_token: whether each token of a text has a label: an automatic gamma is then 1.
        seed: seed of what a term draws in training, such as CRD's negatives, by epoch and sample.
    """

    samples: int | None = None
    classes: int | None = None
    labels: Tensor | None = None
    student_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    teacher_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    teacher_logits: Tensor | None = None
    teacher_head: tuple[Tensor, Tensor | None] | None = None
    teacher_norms: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    class_means: Mapping[str, Tensor] = field(default_factory=dict)
    same_tokens: Tensor | None = None
    per_epoch: int | None = None
    per_token: bool = False
    seed: int = 0


class TermSpec(Protocol):
    """An immutable description of a term, from which each run binds a term."""

    @property
    def needs(self) -> Requirements:
        """The requirements of the bound term."""

    @property
    def target_gamma(self) -> float | None:
        """The exponent of the transformed teacher that it matches; ``None`` if it matches none."""

    def bind(self, context: BindContext) -> Term:
        """Build the term for one run."""


@dataclass(frozen=True)
class WeightedTerm:
    """One term with its name and weight."""

    name: str
    weight: WeightValue | Automatic
    term: TermSpec

    if TYPE_CHECKING:  # what it takes is wider than what it holds

        def __init__(self, name: str, weight: AutomaticWeight, term: TermSpec) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", value_of(self.weight))


@dataclass(frozen=True)
class PresetCall:
    """The result of one preset call, with the factor that all of it was scaled by."""

    parts: tuple[WeightedTerm, ...]
    preset: str | None = None  # None for terms put together by hand, which cannot be written to a recipe
    arguments: Mapping[str, Any] | None = None
    scale: float = 1.0  # factor on every weight
    gather: bool = False  # whether its terms read all processes' samples at once, not each process's share
    sha256: str | None = None  # digest of the file that a preset of the user's own is in
    defaulted: frozenset[str] = field(default=frozenset(), compare=False)  # arguments that were not typed


def for_tokens(term: TermSpec) -> TermSpec:
    """Return the term for data whose tokens each have a label: an automatic gamma is set, which takes no teacher."""
    fitted: Callable[[], TermSpec] | None = getattr(term, "for_tokens", None)
    return fitted() if fitted else term


def named_parts(calls: Iterable[PresetCall]) -> Iterator[tuple[WeightedTerm, float]]:
    """Yield each term with the factor on its weight; a number makes names unique."""
    taken: set[str] = set()
    for call in calls:
        for part in call.parts:
            names = itertools.chain([part.name], (f"{part.name}_{k}" for k in itertools.count(2)))
            name = next(name for name in names if name not in taken)
            taken.add(name)
            yield replace(part, name=name), call.scale


def joint_needs(parts: Iterable[WeightedTerm]) -> Requirements:
    """Return the joint requirements of some terms."""
    parts = tuple(parts)
    needs = [part.term.needs for part in parts]
    kinds = {n.labels for n in needs}
    return Requirements(
        teacher=any(n.teacher for n in needs),
        labels="index" if "index" in kinds else "any" if "any" in kinds else "none",
        coupled=any(n.coupled for n in needs),
        student_taps=_unique(tap for n in needs for tap in (*n.student_taps, *(p.student for p in n.projections))),
        teacher_taps=_unique(tap for n in needs for tap in (*n.teacher_taps, *(p.teacher for p in n.projections))),
        projections=_unique(projection for n in needs for projection in n.projections),
        teacher_statistics=any(n.teacher_statistics for n in needs)
        or any(isinstance(p.weight, Automatic) for p in parts),
        indices=any(n.indices for n in needs),
        teacher_head=any(n.teacher_head for n in needs),
        teacher_norms=_unique(tap for n in needs for tap in n.teacher_norms),
        class_means=_unique(tap for n in needs for tap in n.class_means),
        min_batch=max((n.min_batch for n in needs), default=1),
        host_waits=any(n.host_waits for n in needs),
        sparse=all(n.sparse for n in needs if n.teacher),
        embeddings=any(n.embeddings for n in needs),
        members=_unique(tap for n in needs for tap in n.members),
        views=max((n.views for n in needs), default=1),
        other_vocabulary={n.other_vocabulary for n in needs if n.teacher} == {True},
        same_tokens=any(n.same_tokens for n in needs),
    )


def common_gamma(gammas: Iterable[float | None]) -> float | None:
    """Return the exponent of the transformed teacher that terms match; ``None`` if none has one, or two differ."""
    known = {*gammas} - {None}
    return known.pop() if len(known) == 1 else None


@dataclass(frozen=True)
class Apply:
    """A pure loss function with its hyperparameters.

    Attributes:
        loss: loss whose positional parameters are named after what they read (`LOSS_INPUTS`).
        arguments: keyword arguments of the loss.
        target_gamma: exponent of the transformed teacher that it matches, if any.
        soft_labels: whether it also takes soft labels; a loss of one's own then gets any floats of the logits' shape,
            such as multi-hot labels.
        coupled: whether it returns ``()``, so that its value depends on how a batch is split.
        min_batch: smallest number of samples in a batch.
        student_tap: tap of ``student_features``.
        teacher_tap: tap of ``teacher_features``.
        projection: kind of a learned map of the student's features, one of `projectors.KINDS`.
        project_always: whether to map even if the shapes agree.
        views: number of views of each sample that it compares, neighbours in a batch, as data with `data.strong` have
            two.

    Raises:
        TypeError: if a positional parameter of the loss is named after nothing that a term can read, or the loss reads
            features and no tap is named.
    """

    loss: Callable[..., Tensor]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    target_gamma: float | None = None
    soft_labels: bool = False
    coupled: bool = False
    min_batch: int = 1
    student_tap: str = ""
    teacher_tap: str = ""
    projection: str | None = None
    project_always: bool = True
    views: int = 1

    def __post_init__(self) -> None:
        for name in self.reads:
            if name not in LOSS_INPUTS:
                expected = f"positional parameters among {', '.join(LOSS_INPUTS)}"
                instead = "rename it, or put it after a * where it is a hyperparameter"
                raise InvalidTypeError("loss", expected, repr(name), instead)
            network, _, kind = name.partition("_")
            if kind == "features" and not getattr(self, f"{network}_tap"):
                instead = f'for example {network}_tap="card:embedding"'
                raise InvalidTypeError(f"{network}_tap", f"the tap that {name} are read from", "none", instead)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the loss's inputs, in the order of its positional parameters."""
        parameters = inspect.signature(self.loss).parameters.values()
        return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))

    @property
    def needs(self) -> Requirements:
        """The requirements of the loss."""
        reads = self.reads
        return Requirements(
            teacher=any(name.startswith("teacher_") for name in reads),
            labels="none" if "labels" not in reads else "any" if self.soft_labels else "index",
            coupled=self.coupled,
            student_taps=(self.student_tap,) if "student_features" in reads else (),
            teacher_taps=(self.teacher_tap,) if "teacher_features" in reads or self.projection else (),
            projections=(self._projection,) if self._projection else (),
            min_batch=self.min_batch,
            sparse=self.loss in READ_SPARSE,
            embeddings="student_embeddings" in reads,
            views=self.views,
        )

    @property
    def _projection(self) -> Projection | None:
        if self.projection is None:
            return None
        return Projection(self.student_tap, self.teacher_tap, self.projection, self.project_always)

    @property
    def student_feature(self) -> str:
        """The name of ``student_features`` among the student's taps."""
        return projectors.name(self._projection) if self._projection else self.student_tap

    def bind(self, context: BindContext) -> Term:
        """Build the term; it needs nothing from the context."""
        return _Applied(self)


class _Applied(nn.Module):
    """A bound `Apply`: no parameters, no state. ``applied`` is the loss with its hyperparameters."""

    def __init__(self, spec: Apply) -> None:
        super().__init__()
        self.needs = spec.needs
        self._spec, self.applied = spec, partial(spec.loss, **spec.arguments)
        self._reads = spec.reads  # names, as the functions could not be pickled

    @property
    def user_code(self) -> str | None:
        """The loss's name where it is the user's own function; see `errors.explained`."""
        loss = self._spec.loss
        ours = str(getattr(loss, "__module__", "")).startswith(f"{__package__.partition('.')[0]}.")
        return None if ours else f"loss {getattr(loss, '__qualname__', type(loss).__name__)}"

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        return self.applied(*(LOSS_INPUTS[name](self._spec, student, teacher, batch) for name in self._reads))


class BoundFeatures(nn.Module):
    """Base of bound `FeatureTerm` modules."""

    spec: Any  # the term's description

    def __init__(self, spec: FeatureTerm, context: BindContext) -> None:
        super().__init__()
        self.spec, self.needs = spec, spec.needs
        self.student_features = spec.student_taps  # names of its features among the student's taps
        self.build(context)

    def build(self, context: BindContext) -> None:
        """Build the term's modules and buffers; by default none."""

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        """Return the term's values, ``(batch,)``, or ``()`` if it couples the batch; features are in tap order."""
        raise NotImplementedError

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        """Read the features and return the term's values."""
        taps = present(teacher).taps
        features = [student.taps[name] for name in self.student_features]
        return self.values(features, [taps[tap] for tap in self.spec.teacher_taps], batch, progress)


@dataclass(frozen=True, kw_only=True)
class FeatureTerm:
    """Base of terms that compare features of both networks tap by tap, with trained modules."""

    module: ClassVar[type[BoundFeatures]]  # class of the bound term
    base_needs: ClassVar[Requirements] = Requirements(teacher=True, labels="none")  # requirements besides its taps
    target_gamma: ClassVar[None] = None  # features are no distribution
    one_pair: ClassVar[bool] = False  # whether it compares one feature of each network
    student_taps: tuple[str, ...]  # features of the student
    teacher_taps: tuple[str, ...]  # features of the teacher, as many

    def __post_init__(self) -> None:
        pairs = paired(self.student_taps, self.teacher_taps)
        if self.one_pair and len(pairs) != 1:
            raise InvalidValueError(
                "student_taps", "one tap of each network", len(pairs), "add a term for each further pair"
            )
        self._check()

    def _check(self) -> None:
        """Refuse arguments out of range; by default none."""

    @property
    def needs(self) -> Requirements:
        """The requirements of the bound term."""
        return replace(self.base_needs, student_taps=self.student_taps, teacher_taps=self.teacher_taps)

    def shapes(self, context: BindContext, kind: str | None = None) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the shapes of each pair of taps, student first, without the batch; refuse other kinds of features."""
        return [
            (shape_of(context, "student", student, kind), shape_of(context, "teacher", teacher, kind))
            for student, teacher in zip(self.student_taps, self.teacher_taps, strict=True)
        ]

    def bind(self, context: BindContext) -> Term:
        """Build the term for one run.

        Raises:
            ValueError: if the context lacks something, or the features are not of the kind that the method compares.
        """
        return self.module(self, context)


def _unique(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def present(teacher: Outputs | None) -> Outputs:
    """Return the teacher's outputs; refuse ``None``."""
    if teacher is None:
        raise InvalidValueError("teacher", "its outputs", "none", "the objective matches a teacher, so pass one")
    return teacher


def teacher_logits(teacher: Outputs | None) -> Tensor | Sparse:
    """Return the teacher's logits, whole or as `Sparse`; refuse ``None``."""
    teacher = present(teacher)
    return teacher.logits if teacher.sparse is None else teacher.sparse


def paired(student_taps: Sequence[str], teacher_taps: Sequence[str]) -> list[tuple[str, str]]:
    """Return the taps of both networks in pairs; refuse unequal numbers."""
    if len(student_taps) != len(teacher_taps):
        expected = f"{len(student_taps)}, as many as student_taps"
        instead = "name one tap of the teacher for each of the student"
        raise InvalidValueError("teacher_taps", expected, len(teacher_taps), instead)
    return list(zip(student_taps, teacher_taps, strict=True))


def shape_of(
    context: BindContext, network: Literal["student", "teacher"], tap: str, kind: str | None = None
) -> tuple[int, ...]:
    """Return the shape of a feature without the batch; refuse an unknown one, or one of another kind of `KINDS`."""
    shapes = context.student_shapes if network == "student" else context.teacher_shapes
    if tap not in shapes:
        raise missing(f"the shape of the {network}'s tap {tap}")
    shape = shapes[tap]
    axes, expected, instead = KINDS[kind] if kind else ((len(shape),), "", "")
    if len(shape) not in axes:
        raise InvalidValueError(f"tap {tap}", f"{expected} of the {network}", f"{shape} without the batch", instead)
    return shape


def missing(what: str, argument: str = "") -> InvalidValueError:
    """Return the error for a context that lacks something, with the argument of `network_context` that provides it."""
    call = f"tutelage.network_context(objective, student, teacher, inputs{argument})"
    return InvalidValueError("context", what, "none", f"type context={call}")
