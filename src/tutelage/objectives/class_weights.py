"""The cross-entropy with the labels, each class with a weight of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from tutelage import losses
from tutelage.errors import InvalidValueError
from tutelage.objectives.term import Apply, BindContext, PresetCall, TermSpec, WeightedTerm
from tutelage.types import Batch, Outputs, Progress, Requirements, Term


@dataclass(frozen=True)
class ClassWeighted:
    """``-sum_i w[i] * y'[i] * log q[i]``: a cross-entropy with a weight per class.

    Attributes:
        term: cross-entropy with the labels.
        weights: weight of each class.
    """

    target_gamma: ClassVar[None] = None  # labels are no teacher
    term: Apply
    weights: tuple[float, ...]

    @property
    def needs(self) -> Requirements:
        """The requirements of the cross-entropy."""
        return self.term.needs

    def bind(self, context: BindContext) -> Term:
        """Build the term.

        Raises:
            ValueError: if the context has another number of classes.
        """
        if context.classes not in (None, len(self.weights)):
            expected = f"a number for each of {context.classes} classes"
            raise InvalidValueError("class_weights", expected, len(self.weights), "give one for each class")
        return _BoundClassWeighted(self)


class _BoundClassWeighted(nn.Module):
    """A bound `ClassWeighted`; it has no ``applied`` loss, so that no kernel without weights takes its place."""

    user_code: ClassVar[None] = None
    class_weights: Tensor

    def __init__(self, spec: ClassWeighted) -> None:
        super().__init__()
        self.needs, self._arguments = spec.needs, spec.term.arguments
        self.resolved = {"class_weights": list(spec.weights)}
        # Not in checkpoints: the recipe and the labels give it again.
        self.register_buffer("class_weights", torch.tensor(spec.weights), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        arguments = {**self._arguments, "class_weights": self.class_weights}
        return losses.cross_entropy(student.logits, batch.labels, **arguments)


def with_class_weights(call: PresetCall, weights: Sequence[float]) -> PresetCall:
    """Return a preset call whose cross-entropy with the labels has a weight per class.

    Raises:
        ValueError: if it learns from labels alone by anything else.
    """
    return replace(call, parts=tuple(_part(call, part, tuple(map(float, weights))) for part in call.parts))


def _part(call: PresetCall, part: WeightedTerm, weights: tuple[float, ...]) -> WeightedTerm:
    if not reads_labels_alone(part.term):
        return part
    if not isinstance(part.term, Apply) or part.term.loss is not losses.cross_entropy:
        expected = "a cross-entropy as what learns from labels alone, which class weights weigh"
        got = f"{part.name} of {call.preset or 'terms put together by hand'}"
        instead = "type data.sampling=balanced instead, or another objective"
        raise InvalidValueError("class_weights", expected, got, instead)
    return replace(part, term=ClassWeighted(part.term, weights))


def reads_labels_alone(term: TermSpec) -> bool:
    """Whether a term learns from labels without a teacher."""
    return term.needs.labels != "none" and not term.needs.teacher
