"""Terms that read more of the teacher than its features: its head, its batch norms, its class means.

What is the teacher's is kept in buffers that no checkpoint holds: it is read anew whenever a term is bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage import losses
from tutelage.objectives import projectors
from tutelage.objectives.term import BindContext, present, shape_of
from tutelage.types import Batch, Outputs, Progress, Projection, Requirements, Term

MAP = 3
"""Axes of a map without the batch: channels, height, width."""


@dataclass(frozen=True, kw_only=True)
class SRRL:
    """Pooled features against the teacher's, before its head and behind it.

    ``losses.srrl_statistics + regression * losses.srrl_regression``. The student's map goes through a 1x1 convolution
    without a bias, a batch norm and a ReLU onto the teacher's channels, then the pooling.

    Attributes:
        regression: weight of the second term within the sum, finite and at least 0.
        student_tap: a map ``(batch, channels, height, width)``.
        teacher_tap: what the teacher's head reads, ``(batch, width)``, or a map, whose mean that is.
    """

    regression: float
    student_tap: str
    teacher_tap: str

    def __post_init__(self) -> None:
        if not 0 <= self.regression < math.inf:
            raise ValueError(f"regression: expected a finite number >= 0, got {self.regression}; type regression=1.0")

    @property
    def needs(self) -> Requirements:
        """What it reads."""
        return Requirements(True, "none", False, (self.student_tap,), (self.teacher_tap,), teacher_head=True)

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the connector.

        Raises:
            ValueError: the context lacks shapes or the teacher's head, or they do not fit.
        """
        return _BoundRegress(self, context)


class _BoundRegress(nn.Module):
    weight: Tensor
    bias: Tensor | None

    def __init__(self, description: SRRL, context: BindContext) -> None:
        super().__init__()
        self.needs = description.needs
        self._description = description
        if context.teacher_head is None:
            raise _lacks("teacher_head", "the weights of the teacher's last layer")
        weight, bias = context.teacher_head
        theirs = shape_of(context, "teacher", description.teacher_tap)
        if len(theirs) not in (1, MAP) or theirs[0] != weight.shape[1]:
            raise ValueError(
                f"tap {description.teacher_tap}: expected the {weight.shape[1]} channels that the teacher's head "
                f"reads, got {theirs} without the batch; type teacher_tap=card:embedding"
            )
        self.connector = nn.Sequential(
            *_connector(_channels(context, "student", description.student_tap), theirs[0]), nn.ReLU()
        )
        self.register_buffer("weight", weight.detach().clone(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        asked = self._description
        ours = self.connector(student.taps[asked.student_tap])
        theirs = present(teacher).taps[asked.teacher_tap]
        regression = losses.srrl_regression(ours, theirs, weight=self.weight, bias=self.bias)
        return losses.srrl_statistics(ours, theirs) + asked.regression * regression


@dataclass(frozen=True, kw_only=True)
class OFD:
    """Maps before their activation against the teacher's, above a margin a channel (`losses.ofd`), summed over taps.

    The last tap counts in full, each one before it half as much as the next. A 1x1 convolution without a bias and a
    batch norm take each of the student's maps onto the teacher's channels; where the teacher's map is larger, it is
    averaged down to the student's places.

    Attributes:
        student_taps: maps ``(batch, channels, height, width)`` before their activation.
        teacher_taps: as many of the teacher.
        norms: the teacher's batch norms that the margins come from, as many; none to find them by ``teacher_taps``.
    """

    student_taps: tuple[str, ...]
    teacher_taps: tuple[str, ...]
    norms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, optional in (("teacher_taps", False), ("norms", True)):
            given = getattr(self, name)
            if len(given) != len(self.student_taps) and not (optional and not given):
                raise ValueError(
                    f"{name}: expected {len(self.student_taps)} names, as many as student_taps, got {len(given)}; "
                    "name one of the teacher for each of the student"
                )

    @property
    def needs(self) -> Requirements:
        """What it reads."""
        names = self.norms or self.teacher_taps
        return Requirements(True, "none", False, self.student_taps, self.teacher_taps, teacher_norms=names)

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Build the connectors and find the margins.

        Raises:
            ValueError: the context lacks shapes or batch norms, or they do not fit.
        """
        return _BoundOverhaul(self, context)


class _BoundOverhaul(nn.Module):
    def __init__(self, description: OFD, context: BindContext) -> None:
        super().__init__()
        self.needs = description.needs
        self._pairs = tuple(zip(description.student_taps, description.teacher_taps, strict=True))
        self.connectors = nn.ModuleList()
        for level, ((ours, theirs), norm) in enumerate(zip(self._pairs, self.needs.teacher_norms, strict=True)):
            if norm not in context.teacher_norms:
                raise _lacks("teacher_norms", f"the teacher's batch norm at {norm}")
            channels = _channels(context, "teacher", theirs)
            margins = losses.ofd_margins(*context.teacher_norms[norm])
            if len(margins) != channels:
                raise ValueError(
                    f"norms: expected a batch norm of the {channels} channels of the teacher's tap {theirs}, got one "
                    f"of {len(margins)} at {norm}; name another"
                )
            small, large = (shape_of(context, "student", ours)[1:], shape_of(context, "teacher", theirs)[1:])
            if any(one > other for one, other in zip(small, large, strict=True)):
                raise ValueError(
                    f"tap {ours}: expected a map of the student no larger than {large}, as the teacher's tap {theirs}, "
                    f"got {small}; name a later tap of the student or an earlier one of the teacher"
                )
            self.connectors.append(nn.Sequential(*_connector(_channels(context, "student", ours), channels)))
            self.register_buffer(f"margins_{level}", margins, persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        levels = []
        for level, (ours, theirs) in enumerate(self._pairs):
            mapped = self.connectors[level](student.taps[ours])
            wanted = present(teacher).taps[theirs]
            if wanted.shape != mapped.shape:
                wanted = F.adaptive_avg_pool2d(wanted, (mapped.shape[-2], mapped.shape[-1]))
            margins = cast(Tensor, getattr(self, f"margins_{level}"))
            levels.append(losses.ofd(mapped, wanted, margins=margins) / 2 ** (len(self._pairs) - level - 1))
        return torch.stack(levels).sum(0)


@dataclass(frozen=True, kw_only=True)
class NormDirection:
    """An embedding's norm and direction against the teacher's class means (`losses.norm_direction`).

    A linear map takes the student's embedding to the teacher's width where the widths differ.

    Attributes:
        student_tap: a feature ``(batch, width)``.
        teacher_tap: a feature ``(batch, width)``.
    """

    student_tap: str
    teacher_tap: str

    @property
    def needs(self) -> Requirements:
        """What it reads."""
        return Requirements(
            True,
            "index",
            False,
            (self.student_tap,),
            (self.teacher_tap,),
            (self._projection,),
            class_means=(self.teacher_tap,),
        )

    @property
    def _projection(self) -> Projection:
        return Projection(self.student_tap, self.teacher_tap, "linear", always=False)

    @property
    def target_gamma(self) -> None:
        """None: it matches no distribution."""
        return

    def bind(self, context: BindContext) -> Term:
        """Keep the class means.

        Raises:
            ValueError: the context lacks them.
        """
        return _BoundNormDirection(self, context)


class _BoundNormDirection(nn.Module):
    class_means: Tensor

    def __init__(self, description: NormDirection, context: BindContext) -> None:
        super().__init__()
        self.needs = description.needs
        self._student, self._teacher = projectors.name(self.needs.projections[0]), description.teacher_tap
        if description.teacher_tap not in context.class_means:
            raise _lacks(
                "class_means",
                f"the teacher's class means of tap {description.teacher_tap}",
                ", class_means={name: means}",
            )
        means = context.class_means[description.teacher_tap]
        self.register_buffer("class_means", means.detach().clone(), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        ours, theirs = student.taps[self._student], present(teacher).taps[self._teacher]
        return losses.norm_direction(ours, theirs, batch.labels, class_means=self.class_means)


def _connector(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, nn.BatchNorm2d(outputs)


def _channels(context: BindContext, who: str, tap: str) -> int:
    shape = shape_of(context, "student" if who == "student" else "teacher", tap)
    if len(shape) != MAP:
        raise ValueError(
            f"tap {tap}: expected a map (batch, channels, height, width) of the {who}, got {shape} without the batch; "
            "name a stage of a convolutional network, such as card:stage.-1"
        )
    return shape[0]


def _lacks(field: str, what: str, more: str = "") -> ValueError:
    return ValueError(
        f"context: expected {field}, {what}, got none; "
        f"type context=tutelage.network_context(objective, student, teacher, inputs{more})"
    )
