"""Projectors: learned maps from a student's features onto the shape of a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tutelage.errors import InvalidValueError
from tutelage.types import Projection

Shape = tuple[int, ...]


def linear(student: Shape, teacher: Shape) -> nn.Module:
    """Return ``nn.Linear`` from one width to another, with a bias, on features ``(batch, width)``."""
    if len(student) != 1 or len(teacher) != 1:
        expected = "features (batch, width) on both sides of a linear map"
        raise _shapes_error(student, teacher, expected, "name taps after the pooling, such as card:embedding")
    return nn.Linear(student[0], teacher[0])


def conv(student: Shape, teacher: Shape) -> nn.Module:
    """Return a 1x1 convolution with a bias, on maps of equal size."""
    _maps("conv", student, teacher)
    if student[1:] != teacher[1:]:
        instead = "name taps of equal sizes, or type projection=regressor where the method has that argument"
        raise _shapes_error(student, teacher, "maps of equal height and width for a conv", instead)
    return nn.Conv2d(student[0], teacher[0], 1)


def conv1x1(student: Shape, teacher: Shape) -> nn.Module:
    """Return a 1x1 convolution with a bias; height and width stay the student's."""
    _maps("conv1x1", student, teacher)
    return nn.Conv2d(student[0], teacher[0], 1)


def conv1x1_bn(student: Shape, teacher: Shape) -> nn.Module:
    """Return a 1x1 convolution without a bias, and a batch norm; height and width stay the student's."""
    _maps("conv1x1_bn", student, teacher)
    return nn.Sequential(nn.Conv2d(student[0], teacher[0], 1, bias=False), nn.BatchNorm2d(teacher[0]))


def connector(student: Shape, teacher: Shape) -> nn.Module:
    """Return a convolution with a bias and a batch norm on maps, for values before an activation.

    The convolution is that of a `regressor`: 1x1 if the sizes agree.
    """
    return nn.Sequential(_reaching("connector", student, teacher), nn.BatchNorm2d(teacher[0]))


def regressor(student: Shape, teacher: Shape) -> nn.Module:
    """Return FitNet's regressor on maps: a convolution with a bias, a batch norm and a ReLU.

    The convolution is 3x3 at stride 2 if the student's map is twice as large, and a transposed 4x4 at stride 2 if it is
    half as large; otherwise it has no padding and the kernel that gives the teacher's size, 1x1 if the sizes agree.
    """
    return nn.Sequential(_reaching("regressor", student, teacher), nn.BatchNorm2d(teacher[0]), nn.ReLU())


class Orthogonal(nn.Module):
    """A linear map without a bias whose matrix has orthonormal columns, or rows where it narrows, throughout training.

    It maps the width of embeddings and tokens and the channels of maps. It begins at the orthogonal factor of a fresh
    linear layer's weight.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.linear = parametrizations.orthogonal(nn.Linear(student, teacher, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(batch, width)``, ``(batch, tokens, width)`` or ``(batch, channels, height, width)``."""
        if features.ndim < 4:
            return self.linear(features)
        return self.linear(features.movedim(1, -1)).movedim(-1, 1)


def orthogonal(student: Shape, teacher: Shape) -> nn.Module:
    """Return VkD's map from width to width of embeddings, tokens or maps; positions stay the student's."""
    if not all(len(shape) in (1, 2, 3) for shape in (student, teacher)):
        expected = "features (batch, width), (batch, tokens, width) or (batch, channels, height, width)"
        raise _shapes_error(student, teacher, expected, "name taps of such features, or another kind of map")
    return Orthogonal(*(shape[0 if len(shape) == 3 else -1] for shape in (student, teacher)))


def _reaching(kind: str, student: Shape, teacher: Shape) -> nn.Module:
    """Return a convolution from the student's size to the teacher's."""
    _maps(kind, student, teacher)
    (channels, *size), (outputs, *target) = student, teacher
    if size == [2 * side for side in target]:
        return nn.Conv2d(channels, outputs, 3, stride=2, padding=1)
    if [2 * side for side in size] == target:
        return nn.ConvTranspose2d(channels, outputs, 4, stride=2, padding=1)
    if all(side >= target_side for side, target_side in zip(size, target, strict=True)):
        return nn.Conv2d(channels, outputs, (1 + size[0] - target[0], 1 + size[1] - target[1]))
    expected = f"a student's map half as large as the teacher's, or at least as large, for a {kind}"
    raise _shapes_error(student, teacher, expected, "name taps of closer sizes")


def _maps(kind: str, student: Shape, teacher: Shape) -> None:
    if len(student) != 3 or len(teacher) != 3:
        expected = f"maps (batch, channels, height, width) on both sides of a {kind}"
        raise _shapes_error(
            student, teacher, expected, "name taps of maps, such as card:stage.-1, or another kind of map"
        )


def _shapes_error(student: Shape, teacher: Shape, expected: str, instead: str) -> InvalidValueError:
    return InvalidValueError("projection", expected, f"{student} and {teacher} without the batch", instead)


KINDS: Mapping[str, Callable[[Shape, Shape], nn.Module]] = MappingProxyType(
    {
        "linear": linear,
        "conv": conv,
        "conv1x1": conv1x1,
        "conv1x1_bn": conv1x1_bn,
        "connector": connector,
        "regressor": regressor,
        "orthogonal": orthogonal,
    }
)
"""Kinds of maps, by the names that terms use."""


def name(projection: Projection) -> str:
    """Return the name of the mapped feature among a student's taps."""
    condition = "" if projection.always else " where they differ"
    return f"{projection.kind}({projection.student} onto {projection.teacher}{condition})"


def build(projection: Projection, student: Shape, teacher: Shape) -> nn.Module:
    """Build a fresh map.

    Raises:
        ValueError: if the kind is unknown or cannot map these shapes.
    """
    if projection.kind not in KINDS:
        raise InvalidValueError(
            "projection", f"a kind among {', '.join(KINDS)}", repr(projection.kind), "type one of those"
        )
    return KINDS[projection.kind](student, teacher)
