"""An objective: an immutable description of named, weighted terms that adds, scales, serialises and binds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.errors import InvalidValueError
from tutelage.objectives.bound import BoundObjective
from tutelage.objectives.class_weights import ClassWeighted, reads_labels_alone, with_class_weights
from tutelage.objectives.members import of_each
from tutelage.objectives.term import (
    Apply,
    BindContext,
    PresetCall,
    TermSpec,
    WeightedTerm,
    common_gamma,
    for_tokens,
    joint_needs,
    named_parts,
)
from tutelage.settings.objective import ObjectiveSpec, PresetSpec, arguments_to_recipe, check_class_weights
from tutelage.settings.weights import scaled, weight_to_recipe
from tutelage.types import Requirements


@dataclass(frozen=True)
class Objective:
    """What a student learns from: ``sum_k weight_k(progress) * mean(term_k)``.

    Presets make objectives; they add and scale::

        objective = objectives.wttm(gamma=0.1, beta=3.0) + 0.5 * objectives.confidence_penalty(weight=0.1)

    The mean of a supervised term is over labelled samples, that of any other over all samples; both cover a whole
    optimizer step, with all micro-batches and all processes.
    """

    pieces: tuple[PresetCall, ...]

    @classmethod
    def of(cls, *parts: WeightedTerm) -> Objective:
        """Make an objective from terms put together by hand."""
        return cls((PresetCall(parts),))

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        if self.supervised and other.supervised:
            expected = "one supervised term, which learns from the labels"
            instead = _one_to_zero((*other.pieces, *self.pieces))
            raise InvalidValueError("objective", expected, f"one in {self.name!r} and one in {other.name!r}", instead)
        return Objective(self.pieces + other.pieces)

    def __mul__(self, factor: float) -> Objective:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        if not (math.isfinite(factor) and factor > 0):
            raise InvalidValueError("objective", "a factor > 0", factor, "to drop an objective, do not add it")
        return Objective(tuple(replace(piece, scale=piece.scale * factor) for piece in self.pieces))

    __rmul__ = __mul__

    def gathered(self) -> Objective:
        """Return the objective with all its batch-coupled parts computed on the samples of all processes.

        By default, each of several processes computes a batch-coupled term on its share of the batch, and the mean over
        the shares counts: `losses.itrd_mutual`, for example, never sees two samples from different shares. Gathered,
        value and gradient are those of one process on the whole batch, at the cost of sending logits and features and
        of computing the whole term in every process. With one process nothing changes.

        Samples come in the order of the processes' ranks, without their inputs. A term that draws random numbers does
        so separately in each process; the gradient is the mean over the draws.

        Raises:
            ValueError: if nothing in the objective couples samples, so there is nothing to gather.

        Example:
            >>> from tutelage import objectives
            >>> (objectives.kd() + objectives.itrd()).gathered().to_recipe()[1]["gather"]
            True
        """
        coupled = [any(part.term.needs.coupled for part in piece.parts) for piece in self.pieces]
        if not any(coupled):
            expected = "a term that couples a batch's samples, to be gathered for"
            got = f"{self.name}, which is the same however a batch is split over processes"
            raise InvalidValueError("objective", expected, got, "leave gather out")
        pieces = zip(self.pieces, coupled, strict=True)
        return Objective(tuple(replace(piece, gather=piece.gather or couples) for piece, couples in pieces))

    def per_member(self, weights: Mapping[str, float]) -> Objective:
        """Return the objective with each term that reads the teacher computed for each member of an ensemble.

        ``sum_k weights[k] * term(z, v_k)``; with `wttm` each member's own ``U_gamma`` weighs its divergence. For KL at
        gamma 1 its gradient is that of the mean of probabilities; the value is larger by the members' disagreement,
        ``sum_k w_k KL(p_k || sum_j w_j p_j)``. An automatic weight is found from the ensemble's own logits.

        Args:
            weights: weight of each member by the tap of its logits, such as `tutelage.models.Ensemble.by_tap`.

        Raises:
            ValueError: if a term reads more of a teacher than its logits.
        """
        return Objective(tuple(of_each(piece, weights) for piece in self.pieces))

    def for_tokens(self) -> Objective:
        """Return the objective where each token has a label: an automatic gamma is 1, known without a teacher."""

        def fitted(part: WeightedTerm) -> WeightedTerm:
            return replace(part, term=for_tokens(part.term))

        return Objective(tuple(replace(piece, parts=tuple(map(fitted, piece.parts))) for piece in self.pieces))

    def with_class_weights(self, weights: Sequence[float]) -> Objective:
        """Return the objective with a weight for each class in its cross-entropy with the labels.

        ``-sum_i w[i] * y'[i] * log q[i]`` for a label ``y'``, smoothed or soft, so ``w[y] * CE(y, q)`` for a class
        index without smoothing (`losses.cross_entropy`). Terms that read a teacher stay as they are, also those that
        read labels beside it, such as `dkd`'s. Means still divide by the number of labels, not by the sum of their
        weights as `torch.nn.functional.cross_entropy` does; where the mean weight of the labels is 1, as with
        ``n / (classes * n_c)``, both agree over the training set, and not in each batch.

        Args:
            weights: weight of each class, finite and at least 0, one of them above 0.

        Raises:
            ValueError: if a weight is none, or nothing learns from labels alone, or that is no cross-entropy.

        Example:
            >>> from tutelage import objectives
            >>> weighted = objectives.wttm(gamma=0.25, beta=1.0).with_class_weights([0.5, 2.0])
            >>> weighted.class_weights
            (0.5, 2.0)
        """
        read = check_class_weights(weights)
        if not isinstance(read, tuple):
            instead = "give one for each, for example with_class_weights([0.5, 2.0])"
            raise InvalidValueError("class_weights", "a number for each class", repr(weights), instead)
        if not self.supervised:
            expected = "an objective with a cross-entropy with the labels, which class weights weigh"
            instead = "add cross_entropy, or leave class_weights out"
            raise InvalidValueError("class_weights", expected, f"{self.name}, with nothing to weight", instead)
        return Objective(tuple(with_class_weights(piece, read) for piece in self.pieces))

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """The weights of the classes in its cross-entropy with the labels; ``None`` without such."""
        weighted = (part.term.weights for part, _ in self.parts if isinstance(part.term, ClassWeighted))
        return next(weighted, None)

    @property
    def name(self) -> str:
        """The presets' names, joined by ``+``."""
        return "+".join(piece.preset or "custom" for piece in self.pieces)

    @property
    def parts(self) -> Iterator[tuple[WeightedTerm, float]]:
        """Each term with the factor on its weight; a number makes names unique."""
        return named_parts(self.pieces)

    @property
    def supervised(self) -> bool:
        """Whether a term is a cross-entropy with the labels or anything else that reads labels alone."""
        return any(reads_labels_alone(part.term) for part, _ in self.parts)

    @property
    def needs(self) -> Requirements:
        """The joint requirements of all terms."""
        return joint_needs(part for part, _ in self.parts)

    @property
    def target_gamma(self) -> float | None:
        """The exponent of the transformed teacher that is matched.

        ``None`` if no term has one, two terms differ, or it is found at binding.
        """
        return common_gamma(part.term.target_gamma for part, _ in self.parts)

    @property
    def read_at(self) -> frozenset[float | None]:
        """The exponents at which terms read the teacher's logits through ``p_gamma`` and ``U_gamma`` alone.

        ``None`` is among them if a term reads the logits in another way. Empty if no term reads them. A term that reads
        features and has no exponent is taken to read nothing else.
        """
        return frozenset(gamma for part, _ in self.parts for gamma in _read_at(part.term))

    def weights(self) -> dict[str, Any]:
        """Return each term's weight by name: a number, or a schedule as written in a recipe."""
        return {part.name: weight_to_recipe(scaled(part.weight, scale)) for part, scale in self.parts}

    @property
    def spec(self) -> ObjectiveSpec:
        """The objective as plain data, as held by a recipe."""
        if any(piece.preset is None for piece in self.pieces):
            return ObjectiveSpec(weights=self.weights())
        return ObjectiveSpec(
            presets=tuple(
                PresetSpec(
                    preset=str(piece.preset),
                    arguments=arguments_to_recipe(piece.arguments or {}),
                    scale=piece.scale,
                    gather=piece.gather,
                    sha256=piece.sha256,
                    defaulted=piece.defaulted,
                )
                for piece in self.pieces
            )
        )

    def to_recipe(self) -> list[dict[str, Any]]:
        """Return the objective as written in a recipe: ``[{preset: {argument: value}, scale: number}, ...]``.

        An entry that gathers has ``gather: true`` beside the preset.

        Raises:
            ValueError: if a term was put together by hand, so that no preset call makes it.
        """
        if self.spec.weights is not None:
            got = "terms put together by hand, which no recipe can hold"
            instead = "name the function that makes them as a preset, with @tutelage.objectives.preset"
            raise InvalidValueError("objective", "presets", got, instead)
        return list(self.spec.to_recipe())

    def bind(self, context: BindContext = BindContext()) -> BoundObjective:  # noqa: B008  it is immutable
        """Build a fresh module of the objective for one run; no two of them share anything."""
        return BoundObjective(self.pieces, context, needs=self.needs)


def _read_at(term: TermSpec) -> tuple[float | None, ...]:
    gamma = getattr(term, "reads_at", term.target_gamma)
    if isinstance(term, Apply):
        reads = "teacher_logits" in term.reads
    else:
        reads = gamma is not None or not (term.needs.teacher_taps or term.needs.projections)
    return (gamma,) if term.needs.teacher and reads else ()


def _one_to_zero(pieces: Sequence[PresetCall]) -> str:
    """Name the preset whose supervised term can be zeroed."""
    supervised = [piece for piece in pieces if any(reads_labels_alone(part.term) for part in piece.parts)]
    for piece in supervised:
        if "supervised" in (piece.arguments or {}):
            return f"zero one of them, for example {piece.preset}(..., supervised=0)"
    return f"leave one of them out, for example {supervised[0].preset or 'the one put together by hand'}"
