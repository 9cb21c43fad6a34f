"""Terms: what an objective is a weighted sum of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from tutelage.contracts import Batch, Needs, Outputs, Progress, Term

READERS: dict[str, Callable[[Outputs, Outputs | None, Batch], Tensor]] = {
    "student_logits": lambda student, teacher, batch: student.logits,
    "teacher_logits": lambda student, teacher, batch: _present(teacher).logits,
    "labels": lambda student, teacher, batch: batch.labels,
}
"""How a loss's positional arguments are found, by their names: a loss's signature says what it reads."""


class Context(NamedTuple):
    """What a bound objective may know of the run: the one door to it.

    Attributes:
        samples: number of training samples.
        classes: number of classes.
    """

    samples: int | None = None
    classes: int | None = None


class Description(Protocol):
    """An immutable description of a term, from which each run binds its own."""

    @property
    def needs(self) -> Needs:
        """What the bound term will read."""

    @property
    def target_gamma(self) -> float | None:
        """The exponent of the transformed teacher that it matches; none where it matches none."""

    def bind(self, context: Context) -> Term:
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

    Raises:
        TypeError: a positional parameter of the loss is named after nothing that a term can read.
    """

    loss: Callable[..., Tensor]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    target_gamma: float | None = None
    soft_labels: bool = False
    coupled: bool = False

    def __post_init__(self) -> None:
        for name in self.reads:
            if name not in READERS:
                raise TypeError(
                    f"loss: expected positional parameters among {', '.join(READERS)}, got {name!r}; "
                    "rename it, or put it after a * where it is a hyperparameter"
                )

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of what the loss reads, in the order of its positional parameters."""
        parameters = inspect.signature(self.loss).parameters.values()
        return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))

    @property
    def needs(self) -> Needs:
        """What the loss reads."""
        labels: Literal["none", "index", "any"] = "any" if self.soft_labels else "index"
        if "labels" not in self.reads:
            labels = "none"
        return Needs(any(name.startswith("teacher_") for name in self.reads), labels, self.coupled)

    def bind(self, context: Context) -> Term:
        """Build the term; nothing of the context is needed."""
        return _Applied(self)


class _Applied(nn.Module):
    """A bound `Apply`: no parameters, no state."""

    def __init__(self, description: Apply) -> None:
        super().__init__()
        self.needs = description.needs
        self._loss = description.loss
        self._arguments = dict(description.arguments)
        self._readers = [READERS[name] for name in description.reads]

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        return self._loss(*(read(student, teacher, batch) for read in self._readers), **self._arguments)


def _present(teacher: Outputs | None) -> Outputs:
    if teacher is None:
        raise ValueError("teacher: expected its outputs, got none; the objective matches a teacher, so pass one")
    return teacher
