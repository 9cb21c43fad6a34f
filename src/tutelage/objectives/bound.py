"""A bound objective: the module that computes a run's loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from tutelage import checks, kernels, losses, targets
from tutelage.checks import widened
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.kernels.divergence import LogitLoss, divergence_of
from tutelage.objectives import gathering, projectors
from tutelage.objectives.automatic import balanced_weight
from tutelage.objectives.term import (
    BindContext,
    PresetCall,
    common_gamma,
    joint_needs,
    named_parts,
    present,
    shape_of,
    teacher_logits,
)
from tutelage.settings.weights import Automatic, Schedule, WeightValue, scaled, weight_at
from tutelage.submodules import LAYER
from tutelage.types import UNLABELLED, Batch, Hidden, Loss, Outputs, Progress, Projection, Requirements, Term, Totals

CHUNK = 1 << 22
"""Number of logits of each network that exist at a time on a CPU if all need not: more would save little time."""


class BoundObjective(nn.Module):
    """An objective bound to one run.

    Whatever the networks' precision, the terms are computed in at least float32, with autocast switched off.
    The teacher gets no gradient, nor do its features if a term maps them. Of a teacher's `Sparse` logits whole rows are
    made, unless all terms that match it read them as they are.

    Attributes:
        needs: requirements of the terms.
        target_gamma: exponent of the transformed teacher that is matched, if any.
        supervised: names of the terms whose means are over labelled samples.
        schedules: schedules of the terms' weights and of the terms themselves, for `Progress.scheduled`.
        pair: names of the cross-entropy and a loss of logits that can be computed at once; ``None`` without such.
        fused: whether these are computed at once.
        fused_compiled: whether that is, where a device has such a form, in compiled sweeps.
        resolved: numbers that were computed at binding, by term and argument; empty if nothing is ``auto``. Typed in
            place of ``auto``, they give the same run. Weights of classes are among them.
    """

    user_code: ClassVar[None] = None  # a term of the user's has functions of its own, which `errors.explained` names

    def __init__(self, calls: Sequence[PresetCall], context: BindContext, *, needs: Requirements) -> None:
        super().__init__()
        self._reads_sparse = needs.sparse and not any(call.gather for call in calls)
        parts = list(named_parts(calls))
        self.supervised = frozenset(part.name for part, _ in parts if part.term.needs.labels != "none")
        self.terms = nn.ModuleDict({part.name: _module(part.term.bind(context)) for part, _ in parts})
        self.needs = _of_chosen_layers(needs, self.terms.values())
        self.target_gamma = common_gamma(
            getattr(self.terms[part.name], "target_gamma", part.term.target_gamma) for part, _ in parts
        )
        self._weights: dict[str, WeightValue] = {}
        self.resolved: dict[str, dict[str, Any]] = {}
        for part, scale in parts:
            term, weight = self.terms[part.name], part.weight
            numbers = dict(cast(Mapping[str, Any], getattr(term, "resolved", {})))
            if isinstance(weight, Automatic):
                single = getattr(term, "single", term)  # for one teacher, where there are several
                found = numbers[weight.argument] = balanced_weight(cast(Term, single), context, weight)
                weight = found * weight.factor
            self._weights[part.name] = cast(WeightValue, scaled(weight, scale))
            if numbers:
                self.resolved[part.name] = numbers
        numbered = [*self._weights.values()]
        numbered += [number for term in self.terms.values() for number in getattr(term, "scheduled", ())]
        self.schedules = tuple(dict.fromkeys(number for number in numbered if isinstance(number, Schedule)))
        # One list per preset call, in the order of the terms: terms share maps within a call, not across calls.
        self.projectors = nn.ModuleList()
        self._calls: list[_BoundCall] = []
        names = iter(self._weights)
        for call in calls:
            call_needs = joint_needs(call.parts)
            maps, routes = _projectors(call_needs.projections, context)
            self.projectors.append(maps)
            call_names = tuple(itertools.islice(names, len(call.parts)))
            features = {*call_needs.student_taps, *call_needs.teacher_taps}.difference(call_needs.members)
            of_logits = not (features or call_needs.indices)
            coupled = call_needs.coupled and of_logits
            self._calls.append(_BoundCall(call_names, routes, call_needs if call.gather else None, coupled))

        local = [name for call in self._calls if call.gathers is None for name in call.names]
        self.pair = _fusible({name: self.terms[name] for name in local})
        self.fused = self.fused_compiled = False
        self._unseen = True  # no soft labels were looked at

    def check_labels(self, batch: Batch, *, again: bool = False) -> None:
        """Refuse soft labels that are no distributions at a counted position, for losses that take them for such.

        A loss of the user's own may take others. Only the first batch is looked at, since on an accelerator the host
        waits, unless ``again``; a call looks at every batch on the CPU.

        Raises:
            ValueError: if they are none.
        """
        labels = batch.labels
        if not labels.is_floating_point() or torch.compiler.is_compiling():
            return
        if (self._unseen or again) and any(map(_reads_distributions, self.terms.values())):
            checks.distributions(labels, counted=batch.counted)
        self._unseen = False

    @property
    def loss_of_pair(self) -> LogitLoss:
        """The loss of logits of the `pair`, which is not ``None``."""
        assert self.pair is not None
        return cast(LogitLoss, self.terms[self.pair[1]].applied)

    def plain_pair(self, z: Tensor, v: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of the `pair` at the student's and the teacher's logits, computed one by one."""
        return losses.cross_entropy(z, labels), self.loss_of_pair(z, v)

    def refuses_hidden(self, batch: Batch) -> str | None:
        """Return why the loss of a batch like this cannot be computed from `Hidden`, if that is so."""
        if self.pair is None or set(self.pair) != set(self.names):
            return "not a cross-entropy with one loss of logits beside it and nothing else"
        if batch.labels.is_floating_point():
            return "soft labels, which are as large as logits"
        if any(isinstance(self._weights[name], Schedule) for name in self.pair) and batch.labels.device.type != "cpu":
            return "a scheduled weight, which the host would wait for"
        return None

    def host_waits(self, batch: Batch) -> bool:
        """Whether the loss of a batch like this makes the host wait: a term does, or how many positions count."""
        return self.needs.host_waits or (batch.counted is not None and any(call.coupled for call in self._calls))

    @property
    def names(self) -> tuple[str, ...]:
        """The terms' names, in order."""
        return tuple(self._weights)

    @property
    def gathered_modules(self) -> list[nn.Module]:
        """The terms that read all processes' samples at once, and the maps of the student's features that they read."""
        gathering_calls = [
            (call, maps) for call, maps in zip(self._calls, self.projectors, strict=True) if call.gathers
        ]
        return [part for call, maps in gathering_calls for part in (maps, *(self.terms[name] for name in call.names))]

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
            student: student's outputs.
            teacher: teacher's outputs; may be ``None`` if no term needs them.
            batch: samples.
            progress: position in the run.
            totals: divisors of the means; by default the counts of this batch.

        Returns:
            The weighted sum, ``()``, and each term's mean.
        """
        if batch.labels.is_floating_point():
            self.check_labels(batch, again=batch.labels.device.type == "cpu")
            if batch.counted is not None:  # Whatever else stands there: a row of 0 says nothing.
                batch = batch._replace(labels=batch.labels.where(batch.counted.unsqueeze(-1), 0.0))
        if student.hidden is not None:
            return self._of_hidden(student.hidden, present(teacher).hidden, batch, progress, totals)
        if teacher is not None and teacher.sparse is not None and not self._reads_sparse:
            teacher = teacher._replace(logits=targets.dense(teacher.sparse), sparse=None)
        with torch.autocast(student.logits.device.type, enabled=False):
            fused = self._fused_values(student, teacher, batch) if self.fused else {}
            if len(fused) < len(self.names):  # Wide copies only if something else reads the logits.
                student = _mapped(student, widened)
                wide = torch.float64 if student.logits.dtype == torch.float64 else torch.float32
                teacher = teacher and _mapped(teacher, partial(_constant, wide=wide))
            local = _Inputs(student, teacher, batch, totals or count(batch, student.logits))
            several = student.logits.ndim > 2 or batch.counted is not None
            coupled = several and any(call.coupled for call in self._calls)
            if several and self.needs.views > 1:  # Of neighbours among the counted positions none are a sample's views.
                got, instead = f"logits {tuple(student.logits.shape)}", "use an objective of one view"
                raise InvalidValueError(
                    "batch", "samples of one position, of which two views are compared", got, instead
                )
            rows = _as_rows(local, self.needs.members) if coupled else local
            parts, weighted = {}, []
            for call, maps in zip(self._calls, self.projectors, strict=True):
                inputs = rows if call.coupled else local
                if call.gathers is not None and gathering.processes() > 1:
                    inputs = _of_all_processes(inputs, call.gathers, counted=totals is None)
                outputs = _projected(inputs.student, call.routes, cast(nn.ModuleList, maps))
                for name in call.names:
                    term = cast(Term, self.terms[name])
                    values = fused.get(name) if inputs is local else None  # Those are of all positions.
                    if values is None:
                        values = term(outputs, inputs.teacher, inputs.batch, progress)
                    check_shape(name, values, term.needs, outputs.logits.shape[:-1])
                    mean = _mean(values, term.needs, outputs.logits.shape[:-1], inputs)
                    parts[name] = mean.detach()
                    weighted.append(mean * weight_at(self._weights[name], progress))
            return Loss(torch.stack(weighted).sum(), parts)

    def _of_hidden(
        self, student: Hidden, teacher: Hidden | None, batch: Batch, progress: Progress, totals: Totals | None
    ) -> Loss:
        """Return the loss, whose logits never exist all at once."""
        assert self.pair is not None  # `refuses_hidden` was asked before, and the teacher's layer left out too.
        assert teacher is not None
        totals = totals or count(batch, student.states)
        supervised, weight = (float(weight_at(self._weights[name], progress)) for name in self.pair)
        loss = kernels.linear(
            self.loss_of_pair,
            student.states,
            student.weight,
            teacher.states,
            teacher.weight,
            batch.labels,
            weight=weight,
            supervised=supervised,
            student_bias=student.bias,
            teacher_bias=teacher.bias,
            sample_weight=None if batch.counted is None else batch.counted.float(),
            divisors=(totals.labelled, totals.positions),
            chunk=CHUNK if student.states.device.type == "cpu" else None,
        )
        parts = dict(zip(self.pair, loss.parts.values(), strict=True))
        return Loss(loss.total, {name: parts[name] for name in self.names})

    def _fused_values(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Return the values of the fused terms, by name."""
        if self.pair is None:
            return {}
        given = student.logits, teacher_logits(teacher), batch.labels
        values = kernels.cross_entropy_and(self.loss_of_pair, *given, compiled=self.fused_compiled)
        return dict(zip(self.pair, values, strict=True))


def count(batch: Batch, logits: Tensor) -> Totals:
    """Count a batch's samples and positions, and those with a label, without leaving the device."""
    samples, counted = logits.new_full((), len(logits), dtype=torch.float32), batch.counted
    positions = torch.full_like(samples, logits.shape[:-1].numel()) if counted is None else counted.sum().to(samples)
    if batch.labels.is_floating_point():
        return Totals(samples, positions, positions)
    labelled = batch.labels != UNLABELLED
    return Totals(samples, (labelled if counted is None else labelled & counted).sum().to(samples), positions)


class _BoundCall(NamedTuple):
    """One preset call: its terms' names, its projected features, and what it gathers, if anything."""

    names: tuple[str, ...]
    routes: dict[str, tuple[str, int | None]]  # by projected feature: its tap, and the index of its map, if any
    gathers: Requirements | None
    coupled: bool  # whether it couples logits alone, which need be those of counted positions


def _fusible(terms: Mapping[str, nn.Module]) -> tuple[str, str] | None:
    """Return the names of the first cross-entropy and the first loss of logits that `kernels` can fuse."""
    bound = {name: getattr(term, "applied", None) for name, term in terms.items()}
    applied = {name: loss for name, loss in bound.items() if isinstance(loss, partial)}
    supervised = [
        name for name, loss in applied.items() if loss.func is losses.cross_entropy and not any(loss.keywords.values())
    ]
    matching = [name for name, loss in applied.items() if divergence_of(loss) is not None]
    return (supervised[0], matching[0]) if supervised and matching else None


def _reads_distributions(term: nn.Module) -> bool:
    """Whether a term is one of the library's losses that take soft labels."""
    return cast(Term, term).needs.labels == "any" and getattr(term, "user_code", "") is None


def check_shape(name: str, values: object, needs: Requirements, expected: torch.Size) -> None:
    """Refuse a term's values that are neither one per position nor one per sample, nor ``()`` where it couples them."""
    if not isinstance(values, Tensor):
        raise InvalidTypeError(
            f"term {name}", "a tensor, one value per sample", type(values).__name__, "return that from the loss"
        )
    if values.shape not in (expected, expected[:1]) and not (needs.coupled and values.ndim == 0):
        each = "sample" if len(expected) == 1 else "position"
        raise InvalidValueError(
            f"term {name}",
            f"one value per {each}, shape {tuple(expected)}",
            tuple(values.shape),
            "leave the mean over the batch to the objective, or type coupled=True where a () value couples the batch",
        )


def _mean(values: Tensor, needs: Requirements, positions: torch.Size, inputs: _Inputs) -> Tensor:
    totals, counted = inputs.totals, inputs.batch.counted
    if values.ndim == 0:
        return values * (len(inputs.batch.index) / totals.samples)
    if values.shape != positions:  # one per sample, though a sample has several positions
        return values.sum() / totals.samples
    if counted is not None:
        values = torch.where(counted, values, 0.0)
    divisor = totals.positions if needs.labels == "none" else totals.labelled
    if needs.labels != "none" or counted is not None:
        # Counts are divided by the number of processes: one label among two processes counts a half.
        divisor = torch.where(divisor > 0, divisor, 1.0)
    return values.sum() / divisor


class _Inputs(NamedTuple):
    """Inputs of terms, and the divisors of their means."""

    student: Outputs
    teacher: Outputs | None
    batch: Batch
    totals: Totals


def _as_rows(inputs: _Inputs, members: Sequence[str]) -> _Inputs:
    """Return the counted positions as samples of one position each, for terms that couple them.

    Of features those that are logits, of the teacher's ``members``, are kept.

    On an accelerator the host waits for their number, unless all count.
    """
    student, teacher, batch, totals = inputs
    positions = student.logits.shape[:-1]

    def rows(values: Tensor) -> Tensor:
        return values.flatten(0, len(positions) - 1) if batch.counted is None else values[batch.counted]

    logits, index = rows(student.logits), batch.index.reshape(-1, *[1] * (len(positions) - 1)).expand(positions)
    each = Batch(rows(index), logits.new_empty((len(logits), 0)), rows(batch.labels))
    outputs = teacher and Outputs(rows(teacher.logits), {tap: rows(teacher.taps[tap]) for tap in members})
    return _Inputs(Outputs(logits), outputs, each, totals._replace(samples=totals.positions))


def _of_all_processes(local: _Inputs, needs: Requirements, *, counted: bool) -> _Inputs:
    """Gather all processes' shares of what ``needs`` names; if ``counted``, the totals count this share alone."""
    student, teacher, batch = gathering.gathered(
        *local[:3], student_taps=needs.student_taps, teacher_taps=needs.teacher_taps
    )
    if counted:
        return _Inputs(student, teacher, batch, count(batch, student.logits))
    # Counts were divided by the number of processes for shares of the sum; here each process has the whole sum.
    return _Inputs(student, teacher, batch, Totals(*(total * gathering.processes() for total in local.totals)))


def _of_chosen_layers(needs: Requirements, terms: Iterable[nn.Module]) -> Requirements:
    """Return requirements whose patterns of layers are replaced by those of them that bound terms read."""
    if not any(LAYER in tap for tap in (*needs.student_taps, *needs.teacher_taps)):
        return needs
    read = [cast(Term, term).needs for term in terms]
    student = (tap for each in read for tap in (*each.student_taps, *(p.student for p in each.projections)))
    teacher = (tap for each in read for tap in (*each.teacher_taps, *(p.teacher for p in each.projections)))
    return replace(needs, student_taps=tuple(dict.fromkeys(student)), teacher_taps=tuple(dict.fromkeys(teacher)))


def _projectors(
    projections: Sequence[Projection], context: BindContext
) -> tuple[nn.ModuleList, dict[str, tuple[str, int | None]]]:
    """Build the maps of one preset call: one per pair of taps and kind, unless equal shapes need none."""
    maps, routes = nn.ModuleList(), {}
    built: dict[tuple[str, str, str], int] = {}
    for projection in projections:
        student = shape_of(context, "student", projection.student)
        teacher = shape_of(context, "teacher", projection.teacher)
        key = (projection.student, projection.teacher, projection.kind)
        needed = projection.always or student != teacher
        if needed and key not in built:
            built[key] = len(maps)
            maps.append(projectors.build(projection, student, teacher))
        routes[projectors.name(projection)] = (projection.student, built[key] if needed else None)
    return maps, routes


def _projected(student: Outputs, routes: Mapping[str, tuple[str, int | None]], maps: nn.ModuleList) -> Outputs:
    """Add the projected features to a student's taps."""
    features = {
        feature: student.taps[tap] if index is None else maps[index](student.taps[tap])
        for feature, (tap, index) in routes.items()
    }
    return Outputs(student.logits, {**student.taps, **features})


def _mapped(outputs: Outputs, function: Callable[[Tensor], Tensor]) -> Outputs:
    sparse = outputs.sparse
    if sparse is not None:
        sparse = sparse._replace(values=function(sparse.values), level=function(sparse.level))
    taps = {name: function(tap) for name, tap in outputs.taps.items()}
    return Outputs(function(outputs.logits), taps, sparse=sparse)


def _constant(tensor: Tensor, wide: torch.dtype) -> Tensor:
    """Return a teacher's values without a gradient, in at least the precision of the student's."""
    return (
        tensor.to(torch.promote_types(tensor.dtype, wide)).detach() if tensor.is_floating_point() else tensor.detach()
    )


def _module(term: object) -> nn.Module:
    if not isinstance(term, nn.Module):
        raise InvalidTypeError(
            "term", "bind() to return an nn.Module", type(term).__name__, "return self where it is a module already"
        )
    return term
