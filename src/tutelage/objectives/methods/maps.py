"""Methods that match quantities derived from maps: factors, boundaries, flows. None includes a cross-entropy."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage import checks, losses
from tutelage.errors import InvalidValueError
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset
from tutelage.objectives.term import (
    BEFORE,
    STAGES,
    WITH_STEM,
    Apply,
    BindContext,
    BoundFeatures,
    FeatureTerm,
    WeightedTerm,
    paired,
)
from tutelage.settings.objective import Names
from tutelage.settings.weights import Weight, scaled
from tutelage.types import Batch, Progress, Requirements

SLOPE = 0.1
"""Slope of the leaky ReLUs."""
LARGEST = 256
"""Largest number of channels, and of pixels per side, of the maps that losses are tried on."""


class _BoundFactorTransfer(BoundFeatures):
    spec: FactorTransfer

    def build(self, context: BindContext) -> None:
        (((student, *_), (teacher, *_)),) = self.spec.shapes(context, "map")
        width = int(teacher * self.spec.rate)
        if width < 1:
            expected = (
                f"a number that leaves at least one of the {teacher} channels of the teacher's tap "
                f"{self.spec.teacher_taps[0]}"
            )
            raise InvalidValueError("rate", expected, self.spec.rate, "for example rate=0.5")
        self.encoder = _layers(nn.Conv2d, (teacher, teacher, width, width))
        self.decoder = _layers(nn.ConvTranspose2d, (width, width, teacher, teacher))
        self.translator = _layers(nn.Conv2d, (student, student, width, width))

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        spec, factor = self.spec, self.encoder(teacher[0])
        transfer = losses.factor_transfer(self.translator(student[0]), factor, p=spec.p, norm=spec.norm)
        return transfer + spec.reconstruction * losses.hint(self.decoder(factor), teacher[0])


def _layers(layer: Callable[..., nn.Module], widths: tuple[int, ...]) -> nn.Sequential:
    """Build 3x3 convolutions that keep the size, each followed by a batch norm and a leaky ReLU.

    Without the batch norms a paraphraser at a student's learning rate, 0.05, diverges within about 40 steps.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [layer(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


@dataclass(frozen=True, kw_only=True)
class FactorTransfer(FeatureTerm):
    """``losses.factor_transfer(T(s), E(t)) + reconstruction * losses.hint(D(E(t)), t)``.

    The teacher's map is paraphrased into fewer channels, and the student's is translated into as many. The paraphraser
    ``E`` and ``D`` learn from the second part alone, the student and the translator ``T`` from the first alone.
    """

    module: ClassVar = _BoundFactorTransfer
    one_pair: ClassVar = True
    rate: float = 0.5  # number of channels of the factors, as a share of the teacher's; above 0
    p: float = 2  # power of the channels' mean
    norm: float = 1  # power of the difference
    reconstruction: float = 0.005  # share of the paraphraser's error, above 0

    def _check(self) -> None:
        checks.positive(self.rate, "rate", example=0.5)
        checks.positive(self.reconstruction, "reconstruction", example=0.005)
        ones = torch.ones(1, 1, 1, 1)
        losses.factor_transfer(ones, ones, p=self.p, norm=self.norm)


class _BoundStages(BoundFeatures):
    spec: Stages

    def build(self, context: BindContext) -> None:
        shapes = self.spec.shapes(context, "map")
        pairs = zip(self.spec.student_taps, self.spec.teacher_taps, shapes, strict=True)
        for tap, teacher_tap, (student_shape, teacher_shape) in pairs:
            if student_shape[0] != teacher_shape[0]:
                expected = f"as many channels as the teacher's tap {teacher_tap}, {teacher_shape[0]}"
                instead = "this method has no learned map: name stages of equal width, or take another objective"
                raise InvalidValueError(f"tap {tap}", expected, student_shape[0], instead)
        # Maps that are too small for the loss are refused before training.
        student, teacher = ([torch.zeros(1, *shape) for shape in network] for network in zip(*shapes, strict=True))
        self.spec.loss(student, teacher, **self.spec.arguments)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        return self.spec.loss(student, teacher, **self.spec.arguments)


@dataclass(frozen=True, kw_only=True)
class Stages(FeatureTerm):
    """A pure loss of two lists of maps, one per network, such as `losses.fsp` and `losses.kd_svd`."""

    module: ClassVar = _BoundStages
    # function of the student's maps and the teacher's, at least two of each, in the order of the stages
    loss: Callable[..., Tensor]
    arguments: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of the loss
    host_waits: bool = False  # whether its computation makes the host wait for the device

    @property
    def needs(self) -> Requirements:
        """The requirements of the bound term."""
        return replace(super().needs, host_waits=self.host_waits)

    def _check(self) -> None:
        if len(self.student_taps) < 2:
            expected = "at least 2 stages, which are compared with the next"
            instead = "for example student_taps=[card:stage.-2, card:stage.-1]"
            raise InvalidValueError("student_taps", expected, len(self.student_taps), instead)
        # Only the loss knows what its hyperparameters may be. Any count is bounded by the maps' sizes.
        counts = [value for value in self.arguments.values() if isinstance(value, int)]
        side = min(max(4, *counts), LARGEST) if counts else 4
        ones = [torch.ones(1, side, side, 1)] * 2
        self.loss(ones, ones, **self.arguments)


@preset("Kim et al. 2018, arXiv:1802.04977")
def factor_transfer(
    *,
    weight: Weight = 200.0,
    rate: float = 0.5,
    p: float = 2,
    norm: float = 1,
    reconstruction: float = 0.005,
    student_tap: str = "card:stage.-1",
    teacher_tap: str = "card:stage.-1",
) -> Objective:
    """``weight * (mean(abs(Q_s - Q_t)**norm) + reconstruction * mean((D(E(f_t)) - f_t)**2))``, on factors of maps.

    Q are the maps ``mean_c f**p`` of the factors ``T(f_s)`` and ``E(f_t)``, scaled to length 1. It includes no
    cross-entropy. Published settings: CIFAR-100 200, rate 0.5, p 2, norm 1.

    Args:
        weight: weight of the whole loss.
        rate: number of channels of the factors, as a share of the teacher's, > 0.
        p: power of the features, a whole number >= 1.
        norm: power of the differences, >= 1.
        reconstruction: weight of the paraphraser's error, > 0. It alone trains the paraphraser, and nothing else; the
            published weight is 1, which is 0.005 times 200.
        student_tap: tap of a map.
        teacher_tap: tap of a map.

    Differs from: the paper, which compares whole factors, including channels (`losses.factor_difference`); and from the
    paper and the published runs in that the paraphraser learns along with the student, not for 30 epochs before it, and
    has batch norms, without which it diverges at a student's learning rate.
    """
    factors = FactorTransfer(
        student_taps=(student_tap,),
        teacher_taps=(teacher_tap,),
        rate=rate,
        p=p,
        norm=norm,
        reconstruction=reconstruction,
    )
    return objective_of(WeightedTerm("factor_transfer", weight, factors))


@preset("Heo et al. 2019, arXiv:1811.03233")
def activation_boundary(
    *, weight: Weight = 1.0, margin: float = 1.0, student_taps: Names = BEFORE, teacher_taps: Names = BEFORE
) -> Objective:
    """``weight * 3 / 1000 * sum_l 2**(l - L + 1) * sum(hinge**2)``, with the stages ``l`` from 0 to ``L - 1``.

    The hinge is ``max(0, margin - c(f_s))`` where the teacher's neuron is on, ``max(0, margin + c(f_s))`` where it is
    off; the margin is > 0. It includes no cross-entropy. Published settings: 30 epochs of this alone, then
    cross-entropy alone: two stages of a recipe. Taps are of maps before their activation, one per stage, and each is
    its own term; ``c`` is a convolution with batch norm if the shapes differ (the ``connector``).
    """
    hinge = functools.partial(
        Apply, losses.activation_boundary, {"margin": margin}, projection="connector", project_always=False
    )
    parts = [
        WeightedTerm("activation_boundary", scaled(weight, 3 / 1000 * 2.0**level), hinge(student_tap=s, teacher_tap=t))
        for level, (s, t) in enumerate(paired(student_taps, teacher_taps), 1 - len(student_taps))
    ]
    return objective_of(*parts)


@preset("Yim et al. 2017, CVPR")
def fsp(
    *,
    weight: Weight = 1.0,
    pool: str = "average",
    distance: str = "mean_square",
    student_taps: Names = WITH_STEM,
    teacher_taps: Names = WITH_STEM,
) -> Objective:
    """``weight * sum_l mean((M_s - M_t)**2)`` with ``M[c, d] = (1 / pixels) * sum_x a[c, x] * b[d, x]``.

    Each stage a is paired with the next, b; the stem is the first. It includes no cross-entropy. Published settings: 30
    epochs of this alone, then cross-entropy alone: two stages of a recipe. It has no learned map: widths must agree.

    Args:
        weight: weight of the whole loss.
        pool: kind of pooling of the larger map: ``average``, or the paper's ``maximum``.
        distance: kind of distance: ``mean_square``; or ``norm``, summed over columns.
        student_taps: taps of maps, at least 2.
        teacher_taps: as many taps, each as wide as the student's.
    """
    arguments = {"pool": pool, "distance": distance}
    flow = Stages(
        loss=losses.fsp, arguments=arguments, student_taps=tuple(student_taps), teacher_taps=tuple(teacher_taps)
    )
    return objective_of(WeightedTerm("fsp", weight, flow))


@preset("Lee et al. 2018, ECCV")
def kd_svd(
    *, weight: Weight = 1.0, k: float = 1, student_taps: Names = STAGES, teacher_taps: Names = STAGES
) -> Objective:
    """``weight * sum_l sum((g_s - g_t)**2)`` with ``g = exp(-(a - b)**2 / 8)`` of leading singular vectors a and b.

    Each stage is paired with the next. It includes no cross-entropy. Published settings: CIFAR-100 1, k 1. It has no
    learned map: widths must agree. On a GPU the host waits for each singular value decomposition, to read whether it
    succeeded, so steps are not captured as graphs.

    Args:
        weight: weight of the whole loss.
        k: number of singular vectors, >= 1.
        student_taps: taps of maps, at least 2.
        teacher_taps: as many taps, each as wide as the student's.

    Differs from: public code, which takes the vectors' signs as they come; here they are fixed.
    """
    vectors = Stages(
        loss=losses.kd_svd,
        arguments={"k": k},
        student_taps=tuple(student_taps),
        teacher_taps=tuple(teacher_taps),
        host_waits=True,
    )
    return objective_of(WeightedTerm("kd_svd", weight, vectors))
