"""Projectors: learned maps from a student's features onto the shape of a teacher's, sized by one dry forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from tutelage.contracts import Projection

Shape = tuple[int, ...]


def linear(student: Shape, teacher: Shape) -> nn.Module:
    """Return ``nn.Linear`` from one width to another, with a bias, on features ``(batch, width)``."""
    if len(student) != 1 or len(teacher) != 1:
        raise ValueError(
            f"projection: expected features (batch, width) on both sides of a linear map, got {student} and {teacher} "
            "without the batch; name taps after the pooling, such as card:embedding"
        )
    return nn.Linear(student[0], teacher[0])


def conv1x1_bn(student: Shape, teacher: Shape) -> nn.Module:
    """Return a 1 x 1 convolution without a bias and a batch norm, from one number of channels to another.

    Height and width stay the student's.
    """
    if len(student) != 3 or len(teacher) != 3:
        raise ValueError(
            f"projection: expected maps (batch, channels, height, width) on both sides of a convolution, got {student} "
            f"and {teacher} without the batch; name taps before the pooling, such as card:stage.-1"
        )
    return nn.Sequential(nn.Conv2d(student[0], teacher[0], 1, bias=False), nn.BatchNorm2d(teacher[0]))


KINDS: Mapping[str, Callable[[Shape, Shape], nn.Module]] = MappingProxyType(
    {"linear": linear, "conv1x1_bn": conv1x1_bn}
)
"""Kinds of maps, by the names that terms ask for."""


def name(projection: Projection) -> str:
    """Return what the mapped feature is called among a student's taps."""
    where = "" if projection.always else " where they differ"
    return f"{projection.kind}({projection.student} onto {projection.teacher}{where})"


def build(projection: Projection, student: Shape, teacher: Shape) -> nn.Module:
    """Build a fresh map.

    Raises:
        ValueError: the kind is unknown, or cannot map these shapes.
    """
    if projection.kind not in KINDS:
        raise ValueError(
            f"projection: expected a kind among {', '.join(KINDS)}, got {projection.kind!r}; type one of those"
        )
    return KINDS[projection.kind](student, teacher)
