"""An objective: an immutable description of named, weighted terms that adds, scales, serialises and binds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from tutelage.objectives import gathering, projectors
from tutelage.objectives.automatic import balanced_weight
from tutelage.objectives.term import Apply, BindContext, TermSpec, shape_of
from tutelage.settings.objective import ObjectiveSpec, PresetSpec, written
from tutelage.settings.weights import Automatic, Weight, scaled, weight_at, weight_to_recipe
from tutelage.types import UNLABELLED, Batch, Loss, Outputs, Progress, Projection, Requirements, Term, Totals


@dataclass(frozen=True)
class WeightedTerm:
    """One term with its name and weight."""

    name: str
    weight: Weight | Automatic
    term: TermSpec


@dataclass(frozen=True)
class PresetCall:
    """What one preset call made, with the factor that the whole of it was scaled by.

    Attributes:
        parts: its terms.
        preset: the call's name; none for terms put together by hand, which cannot be written to a recipe.
        arguments: the call's arguments.
        scale: a factor on every weight.
        gather: its terms read the samples of all processes at once instead of each process's share.
    """

    parts: tuple[WeightedTerm, ...]
    preset: str | None = None
    arguments: Mapping[str, Any] | None = None
    scale: float = 1.0
    gather: bool = False


@dataclass(frozen=True)
class Objective:
    """What a student learns from: ``sum_k weight_k(progress) * mean(term_k)``.

    Presets make objectives; they add and scale::

        objective = objectives.wttm(gamma=0.1, beta=3.0) + 0.5 * objectives.confidence_penalty(weight=0.1)

    The mean of a supervised term is over labelled samples, of any other over all samples, in both cases of a whole
    optimizer step: all micro-batches and all processes.
    """

    pieces: tuple[PresetCall, ...]

    @classmethod
    def of(cls, *parts: WeightedTerm) -> Objective:
        """Make an objective of terms put together by hand."""
        return cls((PresetCall(parts),))

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        if self.supervised and other.supervised:
            raise ValueError(
                f"objective: expected one supervised term, got one in {self.name!r} and one in {other.name!r}; "
                f"{_one_to_zero((*other.pieces, *self.pieces))}"
            )
        return Objective(self.pieces + other.pieces)

    def __mul__(self, factor: float) -> Objective:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"objective: expected a factor > 0, got {factor}; to drop an objective, do not add it")
        return Objective(tuple(replace(piece, scale=piece.scale * factor) for piece in self.pieces))

    __rmul__ = __mul__

    def gathered(self) -> Objective:
        """Return the objective with every piece that couples a batch's samples computed on all processes' samples.

        With several processes each has a share of a step's batch, and a batch-coupled term is by default the mean of
        what it is of each share: `losses.itrd_mutual`, for one, never sees a pair of samples of two shares. Gathered,
        value and gradient are those of one process on the whole batch, at the price of sending logits and features,
        and of every process computing the whole term. With one process nothing changes.

        The samples come in the order of the processes' ranks, and a term sees no inputs of them. A term that draws
        numbers draws its own in each process; the gradient is the mean over the draws.

        Raises:
            ValueError: nothing in the objective couples samples, so that there is nothing to gather for.

        Example:
            >>> from tutelage import objectives
            >>> (objectives.kd() + objectives.itrd()).gathered().to_recipe()[1]["gather"]
            True
        """
        coupled = [any(part.term.needs.coupled for part in piece.parts) for piece in self.pieces]
        if not any(coupled):
            raise ValueError(
                f"objective: expected a term that couples a batch's samples, to be gathered for, got {self.name}, "
                "which is the same however a batch is split over processes; leave gather out"
            )
        pieces = zip(self.pieces, coupled, strict=True)
        return Objective(tuple(replace(piece, gather=piece.gather or couples) for piece, couples in pieces))

    @property
    def name(self) -> str:
        """The presets' names, joined by ``+``."""
        return "+".join(piece.preset or "custom" for piece in self.pieces)

    @property
    def parts(self) -> Iterator[tuple[WeightedTerm, float]]:
        """Each term with the factor on its weight; names are made unique by a number."""
        taken: set[str] = set()
        for piece in self.pieces:
            for part in piece.parts:
                names = itertools.chain([part.name], (f"{part.name}_{k}" for k in itertools.count(2)))
                name = next(name for name in names if name not in taken)
                taken.add(name)
                yield replace(part, name=name), piece.scale

    @property
    def supervised(self) -> bool:
        """Whether a term is a cross-entropy with the labels or anything else that reads labels alone."""
        return any(_reads_labels_alone(part) for part, _ in self.parts)

    @property
    def needs(self) -> Requirements:
        """What all the terms need together."""
        each = [part.term.needs for part, _ in self.parts]
        kinds = {needs.labels for needs in each}
        labels: Literal["none", "index", "any"] = "index" if "index" in kinds else "any" if "any" in kinds else "none"
        return Requirements(
            any(n.teacher for n in each),
            labels,
            any(n.coupled for n in each),
            _each_once(tap for n in each for tap in (*n.student_taps, *(p.student for p in n.projections))),
            _each_once(tap for n in each for tap in (*n.teacher_taps, *(p.teacher for p in n.projections))),
            _each_once(projection for n in each for projection in n.projections),
            any(n.teacher_statistics for n in each) or any(isinstance(p.weight, Automatic) for p, _ in self.parts),
            any(n.places for n in each),
            any(n.teacher_head for n in each),
            _each_once(tap for n in each for tap in n.teacher_norms),
            _each_once(tap for n in each for tap in n.class_means),
            max((n.least for n in each), default=1),
        )

    @property
    def target_gamma(self) -> float | None:
        """The exponent of the transformed teacher that is matched; none where no term has one, or two differ in it."""
        gammas = {part.term.target_gamma for part, _ in self.parts} - {None}
        return gammas.pop() if len(gammas) == 1 else None

    @property
    def read_at(self) -> frozenset[float | None]:
        """The exponents at which terms read the teacher's logits: by ``p_gamma`` and ``U_gamma`` alone.

        ``None`` is among them where a term reads the logits in another way. Empty where no term reads them. A term that
        reads features and has no exponent is taken to read nothing else.
        """
        each = [_read_at(part.term) for part, _ in self.parts]
        return frozenset(gamma for gammas in each for gamma in gammas)

    def weights(self) -> dict[str, Any]:
        """Return each term's weight by name: a number, or a schedule as a recipe writes it."""
        return {part.name: weight_to_recipe(scaled(part.weight, scale)) for part, scale in self.parts}

    @property
    def spec(self) -> ObjectiveSpec:
        """The objective as plain data: what a recipe holds of it."""
        if any(piece.preset is None for piece in self.pieces):
            return ObjectiveSpec(weights=self.weights())
        return ObjectiveSpec(
            presets=tuple(
                PresetSpec(
                    preset=str(piece.preset),
                    arguments=written(piece.arguments or {}),
                    scale=piece.scale,
                    gather=piece.gather,
                )
                for piece in self.pieces
            )
        )

    def to_recipe(self) -> list[dict[str, Any]]:
        """Return the objective as a recipe writes it: ``[{preset: {argument: value}, scale: number}, ...]``.

        An entry that gathers has ``gather: true`` beside the preset.

        Raises:
            ValueError: a term was put together by hand, so no preset call makes it.
        """
        if self.spec.weights is not None:
            raise ValueError(
                "objective: expected presets, got terms put together by hand, which no recipe can hold; "
                "name the function that makes them as a preset, with @objectives.preset"
            )
        return list(self.spec.to_recipe())

    def bind(self, context: BindContext = BindContext()) -> BoundObjective:  # noqa: B008  a named tuple is immutable
        """Build the objective's fresh module for one run; nothing is shared between two of them."""
        return BoundObjective(self, context)


class BoundObjective(nn.Module):
    """An objective bound to one run.

    Whatever precision the networks ran in, the terms are computed in float32 at least, with autocast switched off.
    The teacher gets no gradient, of a term that learns a map of its features neither.

    Attributes:
        needs: what the terms read.
        target_gamma: the exponent of the transformed teacher that is matched, if any.
        supervised: names of the terms whose means are over labelled samples.
        resolved: numbers that were found when it was bound, by term and argument; those of an objective that leaves
            nothing open are none. Typed in place of ``auto``, they make the same run.
    """

    def __init__(self, objective: Objective, context: BindContext) -> None:
        super().__init__()
        self.needs = objective.needs
        self.target_gamma = objective.target_gamma
        self.supervised = frozenset(part.name for part, _ in objective.parts if part.term.needs.labels != "none")
        self.terms = nn.ModuleDict({part.name: _module(part.term.bind(context)) for part, _ in objective.parts})
        self._weights: dict[str, tuple[Weight, float]] = {}
        self.resolved: dict[str, dict[str, float]] = {}
        for part, scale in objective.parts:
            term, weight = self.terms[part.name], part.weight
            found = dict(cast(Mapping[str, float], getattr(term, "resolved", {})))
            if isinstance(weight, Automatic):
                found["beta"] = balanced_weight(cast(Term, term), context)
                weight = found["beta"] * weight.factor
            self._weights[part.name] = (weight, scale)
            if found:
                self.resolved[part.name] = found
        # One list a piece, in the order of the terms: terms of one preset call share a map, those of two calls do not.
        self.projectors = nn.ModuleList()
        self._pieces: list[_BoundPiece] = []
        names = iter(self._weights)
        for piece in objective.pieces:
            maps, routes = _projectors(
                _each_once(p for part in piece.parts for p in part.term.needs.projections), context
            )
            self.projectors.append(maps)
            own = tuple(itertools.islice(names, len(piece.parts)))
            self._pieces.append(_BoundPiece(own, routes, Objective((piece,)).needs if piece.gather else None))

    @property
    def names(self) -> tuple[str, ...]:
        """The terms' names, in order."""
        return tuple(self._weights)

    def forward(
        self,
        student: Outputs,
        teacher: Outputs | None,
        batch: Batch,
        progress: Progress = Progress(),  # noqa: B008
        totals: Totals | None = None,
    ) -> Loss:
        """Compute the loss of one (micro-)batch.

        Args:
            student: its outputs.
            teacher: its outputs; may be none where no term needs them.
            batch: the samples.
            progress: where in the run this is.
            totals: what means divide by; by default the counts of this batch.

        Returns:
            The weighted sum, ``()``, and each term's mean.
        """
        with torch.autocast(student.logits.device.type, enabled=False):
            student, teacher = _at_least_float32(student), teacher and _detached(_at_least_float32(teacher))
            counted = totals is None
            totals = totals or count(batch, student.logits)
            parts, weighted = {}, []
            for piece, maps in zip(self._pieces, self.projectors, strict=True):
                step = _Step(student, teacher, batch, totals)
                if piece.gathers is not None and gathering.processes() > 1:
                    step = _of_all_processes(step, piece.gathers, counted=counted)
                seen = _projected(step.student, piece.routes, cast(nn.ModuleList, maps))
                for name in piece.names:
                    term = cast(Term, self.terms[name])
                    values = term(seen, step.teacher, step.batch, progress)
                    _check_shape(name, values, term.needs, seen.logits.shape[:-1])
                    mean = _mean(values, term.needs, step.batch, step.totals)
                    weight, scale = self._weights[name]
                    parts[name] = mean.detach()
                    weighted.append(mean * (weight_at(weight, progress) * scale))
            return Loss(torch.stack(weighted).sum(), parts)


def count(batch: Batch, logits: Tensor) -> Totals:
    """Count a batch's samples, and those that have a label, without leaving the device."""
    samples = logits.new_full((), logits.shape[:-1].numel(), dtype=torch.float32)
    if batch.labels.is_floating_point():
        return Totals(samples, samples)
    return Totals(samples, (batch.labels != UNLABELLED).sum().to(samples))


def _check_shape(name: str, values: Tensor, needs: Requirements, expected: torch.Size) -> None:
    if needs.coupled and values.ndim == 0:
        return
    if values.shape != expected:
        raise ValueError(
            f"term {name}: expected one value a sample, shape {tuple(expected)}, got {tuple(values.shape)}; "
            "leave the mean over the batch to the objective, or type coupled=True where a () value couples the batch"
        )


def _mean(values: Tensor, needs: Requirements, batch: Batch, totals: Totals) -> Tensor:
    if values.ndim == 0:
        return values * (len(batch.index) / totals.samples)
    if needs.labels == "none":
        return values.sum() / totals.samples
    # Counts of several processes are divided by their number: of one label among two, the count is a half.
    return values.sum() / torch.where(totals.labelled > 0, totals.labelled, 1.0)


class _BoundPiece(NamedTuple):
    """What is known of one preset call: its terms' names, its projected features, and what it gathers, if it does."""

    names: tuple[str, ...]
    routes: list[_Route]
    gathers: Requirements | None


class _Step(NamedTuple):
    """What the terms of a piece are called with."""

    student: Outputs
    teacher: Outputs | None
    batch: Batch
    totals: Totals


def _of_all_processes(step: _Step, needs: Requirements, *, counted: bool) -> _Step:
    """Gather a step's samples.

    Args:
        step: this process's share.
        needs: what the terms read.
        counted: the totals are the counts of this share alone.
    """
    student, teacher, batch = gathering.gathered(
        step.student, step.teacher, step.batch, student_taps=needs.student_taps, teacher_taps=needs.teacher_taps
    )
    if counted:
        return _Step(student, teacher, batch, count(batch, student.logits))
    # Counts were divided by the number of processes for shares of the sum; here each process has the whole of it.
    return _Step(student, teacher, batch, Totals(*(total * gathering.processes() for total in step.totals)))


class _Route(NamedTuple):
    """How one projected feature of a student comes about: the tap, and which of the piece's maps, if any."""

    feature: str
    tap: str
    map: int | None


def _projectors(projections: Sequence[Projection], context: BindContext) -> tuple[nn.ModuleList, list[_Route]]:
    """Build the maps of one preset call: one for each pair of taps and kind, none where shapes agree and may."""
    maps, routes = nn.ModuleList(), []
    made: dict[tuple[str, str, str], int] = {}
    for projection in projections:
        student = shape_of(context, "student", projection.student)
        teacher = shape_of(context, "teacher", projection.teacher)
        key = (projection.student, projection.teacher, projection.kind)
        needed = projection.always or student != teacher
        if needed and key not in made:
            made[key] = len(maps)
            maps.append(projectors.build(projection, student, teacher))
        routes.append(_Route(projectors.name(projection), projection.student, made[key] if needed else None))
    return maps, routes


def _projected(student: Outputs, routes: Sequence[_Route], maps: nn.ModuleList) -> Outputs:
    """Add the projected features to a student's taps."""
    if not routes:
        return student
    made = {}
    for route in routes:
        tap = student.taps[route.tap]
        made[route.feature] = tap if route.map is None else maps[route.map](tap)
    return Outputs(student.logits, {**student.taps, **made})


T = TypeVar("T")


def _each_once(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))


def _at_least_float32(outputs: Outputs) -> Outputs:
    def up(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor

    return Outputs(up(outputs.logits), {name: up(tap) for name, tap in outputs.taps.items()})


def _detached(outputs: Outputs) -> Outputs:
    return Outputs(outputs.logits.detach(), {name: tap.detach() for name, tap in outputs.taps.items()})


def _read_at(term: TermSpec) -> tuple[float | None, ...]:
    gamma = getattr(term, "reads_at", term.target_gamma)
    reads = "teacher_logits" in term.reads if isinstance(term, Apply) else gamma is not None or not _features(term)
    return (gamma,) if term.needs.teacher and reads else ()


def _features(term: TermSpec) -> bool:
    return bool(term.needs.teacher_taps or term.needs.projections)


def _reads_labels_alone(part: WeightedTerm) -> bool:
    return part.term.needs.labels != "none" and not part.term.needs.teacher


def _one_to_zero(pieces: Sequence[PresetCall]) -> str:
    """Name the preset whose supervised term can be zeroed."""
    supervised = [piece for piece in pieces if any(_reads_labels_alone(part) for part in piece.parts)]
    for piece in supervised:
        if "supervised" in (piece.arguments or {}):
            return f"zero one of them, for example {piece.preset}(..., supervised=0)"
    return f"leave one of them out, for example {supervised[0].preset or 'the one put together by hand'}"


def _module(term: Any) -> nn.Module:
    if not isinstance(term, nn.Module):
        raise TypeError(f"term: expected bind() to return an nn.Module, got {type(term).__name__}")
    return term
