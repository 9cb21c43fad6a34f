"""Terms: what an objective is a weighted sum of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from tutelage.objectives import projectors
from tutelage.types import Batch, Outputs, Progress, Projection, Requirements, Term

READERS: dict[str, Callable[[Apply, Outputs, Outputs | None, Batch], Tensor]] = {
    "student_logits": lambda term, student, teacher, batch: student.logits,
    "teacher_logits": lambda term, student, teacher, batch: present(teacher).logits,
    "student_features": lambda term, student, teacher, batch: student.taps[term.student_feature],
    "teacher_features": lambda term, student, teacher, batch: present(teacher).taps[term.teacher_tap],
    "labels": lambda term, student, teacher, batch: batch.labels,
}
"""How a loss's positional arguments are found, by their names: a loss's signature says what it reads."""


class BindContext(NamedTuple):
    """What a bound objective may know of the run: the one door to it.

    `tutelage.modules.survey` makes one that has what an objective needs.

    Attributes:
        samples: number of training samples.
        classes: number of classes.
        labels: of the training samples, ``(samples,)`` int64, -100 where unlabelled, or float ``(samples, classes)``.
        student_shapes: shapes of the student's features without the batch, by tap.
        teacher_shapes: the same of the teacher's.
        teacher_logits: the teacher's word on training samples, not augmented, float32 ``(some, classes)``.
        teacher_head: weight ``(classes, width)`` of the teacher's last layer, and its bias or none.
        teacher_norms: weight and bias, ``(channels,)`` each, of the teacher's batch norms, by tap.
        class_means: each class's mean of a teacher's feature over the training samples, not augmented, float32
            ``(classes, width)``, by tap.
    """

    samples: int | None = None
    classes: int | None = None
    labels: Tensor | None = None
    student_shapes: Mapping[str, tuple[int, ...]] = {}
    teacher_shapes: Mapping[str, tuple[int, ...]] = {}
    teacher_logits: Tensor | None = None
    teacher_head: tuple[Tensor, Tensor | None] | None = None
    teacher_norms: Mapping[str, tuple[Tensor, Tensor]] = {}
    class_means: Mapping[str, Tensor] = {}


class TermSpec(Protocol):
    """An immutable description of a term, from which each run binds its own."""

    @property
    def needs(self) -> Requirements:
        """What the bound term will read."""

    @property
    def target_gamma(self) -> float | None:
        """The exponent of the transformed teacher that it matches; none where it matches none."""

    def bind(self, context: BindContext) -> Term:
        """Build the term for one run."""


@dataclass(frozen=True)
class Apply:
    """A pure loss function with its hyperparameters.

    Attributes:
        loss: its positional parameters are named after what they read (`READERS`).
        arguments: its keyword arguments.
        target_gamma: the exponent of the transformed teacher that it matches, if any.
        soft_labels: it takes soft labels too.
        coupled: it returns ``()``: its value depends on how a batch is split.
        least: samples of a batch that it can be computed of.
        student_tap: what ``student_features`` are.
        teacher_tap: what ``teacher_features`` are.
        projection: kind of a learned map that the student's features go through first (`projectors.KINDS`).
        project_always: map even where the shapes agree.

    Raises:
        TypeError: a positional parameter of the loss is named after nothing that a term can read, or the loss reads
            features and no tap is named.
    """

    loss: Callable[..., Tensor]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    target_gamma: float | None = None
    soft_labels: bool = False
    coupled: bool = False
    least: int = 1
    student_tap: str = ""
    teacher_tap: str = ""
    projection: str | None = None
    project_always: bool = True

    def __post_init__(self) -> None:
        for name in self.reads:
            if name not in READERS:
                raise TypeError(
                    f"loss: expected positional parameters among {', '.join(READERS)}, got {name!r}; "
                    "rename it, or put it after a * where it is a hyperparameter"
                )
            who, _, what = name.partition("_")
            if what == "features" and not getattr(self, f"{who}_tap"):
                raise TypeError(
                    f"{who}_tap: expected the tap that {name} are read from, got none; "
                    f'for example {who}_tap="card:embedding"'
                )

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of what the loss reads, in the order of its positional parameters."""
        parameters = inspect.signature(self.loss).parameters.values()
        return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))

    @property
    def needs(self) -> Requirements:
        """What the loss reads."""
        reads = self.reads
        labels: Literal["none", "index", "any"] = "any" if self.soft_labels else "index"
        if "labels" not in reads:
            labels = "none"
        return Requirements(
            any(name.startswith("teacher_") for name in reads),
            labels,
            self.coupled,
            (self.student_tap,) if "student_features" in reads else (),
            (self.teacher_tap,) if "teacher_features" in reads or self.projection else (),
            (self._projection,) if self._projection else (),
            least=self.least,
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
        """Build the term; nothing of the context is needed."""
        return _Applied(self)


class _Applied(nn.Module):
    """A bound `Apply`: no parameters, no state."""

    def __init__(self, description: Apply) -> None:
        super().__init__()
        self.needs = description.needs
        self._description = replace(description, arguments=dict(description.arguments))
        self._readers = [READERS[name] for name in description.reads]

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        term = self._description
        return term.loss(*(read(term, student, teacher, batch) for read in self._readers), **term.arguments)


def present(teacher: Outputs | None) -> Outputs:
    """Return the teacher's outputs; refuse none."""
    if teacher is None:
        raise ValueError("teacher: expected its outputs, got none; the objective matches a teacher, so pass one")
    return teacher


def shape_of(context: BindContext, who: Literal["student", "teacher"], tap: str) -> tuple[int, ...]:
    """Return the shape of a feature without the batch.

    Raises:
        ValueError: the context does not know it.
    """
    shapes = context.student_shapes if who == "student" else context.teacher_shapes
    if tap not in shapes:
        raise ValueError(
            f"context: expected the shape of the {who}'s tap {tap}, got none; "
            "type context=tutelage.network_context(objective, student, teacher, inputs)"
        )
    return shapes[tap]
