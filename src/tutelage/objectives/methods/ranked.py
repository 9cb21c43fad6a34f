"""Methods that rank the classes, or read the logits of regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor

from tutelage import checks, losses
from tutelage.errors import InvalidValueError
from tutelage.losses.pooling import averaged
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import objective_of, preset, supervised_part
from tutelage.objectives.term import LOCAL, Apply, BindContext, BoundFeatures, FeatureTerm, WeightedTerm
from tutelage.settings.weights import AUTO, Automatic, AutomaticNumber, Weight
from tutelage.types import Batch, Progress, Requirements


def _kd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    return losses.kd(student_logits, teacher_logits, temperature=temperature)


BASES: Mapping[str, tuple[Callable[..., Tensor], Mapping[str, float]]] = {
    "kd": (_kd, {}),
    "dkd": (losses.dkd, {"alpha": 1.0, "beta": 8.0}),
    "nkd": (losses.nkd, {"gamma": 1.5}),
}
"""Losses of a region that `sdd` takes, with the defaults of their numbers besides the temperature."""


class _BoundSDD(BoundFeatures):
    spec: SDD

    def build(self, context: BindContext) -> None:
        for network, shape in zip(("student", "teacher"), *self.spec.shapes(context, "map"), strict=True):
            if min(shape[1:]) < self.spec.finest:
                expected = f"at most {min(shape[1:])}, the smaller side of the {network}'s local logits"
                instead = f"type finest={2 ** (min(shape[1:]).bit_length() - 1)}"
                raise InvalidValueError("finest", expected, self.spec.finest, instead)

    def values(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, progress: Progress) -> Tensor:
        regions = [self._regions(maps) for maps in (*student, *teacher)]
        return losses.sdd(regions[0], regions[1], batch.labels, base=self.spec.loss)

    def _regions(self, maps: Tensor) -> Tensor:
        """Return the logits ``(batch, regions, classes)`` of the whole, then of grids of twice as many cells a side."""
        sides = [2**scale for scale in range(self.spec.finest.bit_length())]
        return torch.cat([averaged(maps, (side, side)).flatten(2) for side in sides], dim=2).mT


@dataclass(frozen=True, kw_only=True)
class SDD(FeatureTerm):
    """`losses.sdd` on averages of both networks' local logits over the cells of square grids."""

    module: ClassVar = _BoundSDD
    one_pair: ClassVar = True
    base_needs: ClassVar = Requirements(teacher=True, labels="index")
    base: str  # name of the loss of a region
    temperature: float  # its T
    numbers: Mapping[str, float | Automatic]  # its further numbers; automatic: the default of `BASES`
    finest: int  # cells a side of the finest grid, a power of two

    @property
    def loss(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The loss of a region with its numbers."""
        function, defaults = BASES[self.base]
        typed = {name: value for name, value in self.numbers.items() if not isinstance(value, Automatic)}
        return partial(function, temperature=self.temperature, **{**defaults, **typed})

    def _check(self) -> None:
        checks.known(self.base, "base", BASES, example="kd")
        for name in self.numbers.keys() - BASES[self.base][1]:
            if not isinstance(self.numbers[name], Automatic):
                of = " or ".join(f"base={base}" for base, (_, defaults) in BASES.items() if name in defaults)
                expected, instead = f"auto with base {self.base}, which reads none", f"leave it out, or type {of}"
                raise InvalidValueError(name, expected, self.numbers[name], instead)
        checks.whole_number(self.finest, "finest", example=2)
        if self.finest & (self.finest - 1):
            raise InvalidValueError("finest", "a power of two", self.finest, "for example finest=4")
        self.loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))


@preset("Wei et al. 2024, arXiv:2403.13512")
def sdd(
    *,
    base: str = "kd",
    finest: int = 2,
    temperature: float = 4.0,
    alpha: AutomaticNumber = AUTO,
    beta: AutomaticNumber = AUTO,
    gamma: AutomaticNumber = AUTO,
    weight: Weight = 0.9,
    supervised: Weight = 0.1,
    student_tap: str = LOCAL,
    teacher_tap: str = LOCAL,
) -> Objective:
    """``supervised * CE(y, q) + weight * mean_r(w[r] * base(z[r], v[r], y))``: scale-decoupled distillation.

    The regions r are the whole image and the cells of grids of 2 and perhaps 4 a side; ``w[r]`` is 2 where the teacher
    is right about the one of region and whole and wrong about the other, else 1. A region's logits are the mean over
    its cells of local logits, `tutelage.taps`: the networks' own heads applied to each cell of the map that they
    average.

    Published settings: CIFAR-100 T=4, ``finest=2`` for networks of one kind, 4 for others. ``base=kd`` without a
    warm-up; ``base=dkd`` as `dkd` has it, with ``supervised=1 weight={schedule: warm_up, value: 1, epochs: 20}``, beta
    2 for resnet56/resnet20; ``base=nkd`` likewise, gamma 2. ImageNet T=1, beta 0.5, ``weight=1 supervised=1``.

    Args:
        base: loss of a region: ``kd``, ``dkd`` or ``nkd``.
        finest: number of cells a side of the finest grid, a power of two: 2 for 5 regions, 4 for 21, 1 for ``base``.
        temperature: T > 0 of ``base``, on both sides.
        alpha: weight of the label's divergence with ``dkd``, >= 0; ``auto`` is 1.
        beta: weight of the others' divergence with ``dkd``, >= 0; ``auto`` is 8.
        gamma: weight of the term on the classes that are not labelled with ``nkd``, >= 0; ``auto`` is 1.5.
        weight: weight of the mean over the regions.
        supervised: weight of the cross-entropy.
        student_tap: tap of local logits, such as ``head@layer4``.
        teacher_tap: tap of local logits.

    Differs from: the authors' code where the finest grid does not divide the map: it averages the coarser regions from
    the finest, whose cells overlap there. With ``nkd``, its term of the classes that are not labelled runs over the
    labelled one too.
    """
    read = cast(Mapping[str, float | Automatic], {"alpha": alpha, "beta": beta, "gamma": gamma})  # by the decorator
    term = SDD(
        student_taps=(student_tap,),
        teacher_taps=(teacher_tap,),
        base=base,
        temperature=temperature,
        numbers=read,
        finest=finest,
    )
    return objective_of(supervised_part(supervised), WeightedTerm("sdd", weight, term))


@preset("Xu et al. 2025, ICCV, Local Dense Logit Relations")
def ldrld(
    *,
    k: int = 7,
    alpha: float = 10.5,
    beta: float = 7.0,
    temperature: float = 4.0,
    weight: Weight = 1.0,
    supervised: Weight = 1.0,
) -> Objective:
    """``supervised * CE(y, q) + weight * T**2 * (alpha / (P + 1) * (sum_{i<j} w * KL_ij + KL_top) + beta * KL_rest)``.

    Each KL is over some classes alone: pairs of the student's ``k`` likeliest ones, all of these, and the rest.
    Published settings: CIFAR-100 T=4, k 7, alpha 10.5, beta 7.

    Args:
        k: number of classes that are ranked, >= 2; all of them where there are no more.
        alpha: weight of the ranked classes, >= 0.
        beta: weight of the rest, >= 0.
        temperature: T > 0, on both sides.
        weight: weight of both.
        supervised: weight of the cross-entropy.
    """
    match = Apply(losses.ldrld, {"k": k, "alpha": alpha, "beta": beta, "temperature": temperature})
    return objective_of(supervised_part(supervised), WeightedTerm("ldrld", weight, match))
