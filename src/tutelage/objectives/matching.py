"""Matching a transformed teacher in general: any mapping that has a name, any weight of samples that has one."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor, nn

from tutelage import losses, targets
from tutelage.objectives import automatic
from tutelage.objectives.term import BindContext, present
from tutelage.settings.weights import Automatic
from tutelage.types import Batch, Outputs, Progress, Requirements, Term

NORMALISE = ("none", "batch", "training")


@dataclass(frozen=True)
class Matching:
    """A description of ``w(p) / m * KL(p_f || q)``.

    Attributes:
        gamma: the dial of the mapping, or automatic: as flat as the power at `automatic.FLAT_GAMMA`.
        transform: the mapping's name, `targets.Pointwise`.
        weight_by: the weight's name, `targets.SampleWeight`.
        weight_of: what an entropy or the top is of.
        order: of an entropy.
        normalise: what ``m`` is: 1, the weight's mean over the batch, or its mean over the training set.

    Raises:
        ValueError: a name is unknown or a number out of range.
    """

    gamma: float | Automatic
    transform: str = "power"
    weight_by: str = "constant"
    weight_of: str = "teacher"
    order: float = 1.0
    normalise: str = "none"

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISE:
            near = get_close_matches(str(self.normalise), NORMALISE, n=1, cutoff=0.5)
            raise ValueError(
                f"normalise: expected one of {', '.join(NORMALISE)}, got {self.normalise!r}; "
                f"{f'did you mean {near[0]}?' if near else 'type for example normalise=batch'}"
            )
        self._weight(targets.Pointwise(self.transform, gamma=1 if isinstance(self.gamma, Automatic) else self.gamma))

    @property
    def needs(self) -> Requirements:
        """The teacher; the statistics of its logits where a number is found from them."""
        dial = isinstance(self.gamma, Automatic) and self.transform != "power"
        statistics = dial or self.normalise == "training"
        return Requirements(True, "none", self.normalise == "batch", teacher_statistics=statistics)

    @property
    def target_gamma(self) -> float | None:
        """The exponent; none where the mapping is no power."""
        if self.transform != "power":
            return None
        return automatic.FLAT_GAMMA if isinstance(self.gamma, Automatic) else self.gamma

    @property
    def reads_at(self) -> float | None:
        """The exponent through which alone it reads the teacher; none where a weight is of something else."""
        return self.target_gamma if self.weight_by in ("constant", "power_sum") else None

    def bind(self, context: BindContext) -> Term:
        """Build the term, with the numbers found that are not given."""
        found = {}
        gamma = self.gamma
        if isinstance(gamma, Automatic):
            gamma = found["gamma"] = automatic.equally_flat(self.transform, context)
        transform = targets.Pointwise(self.transform, gamma=gamma)
        weight, mean = self._weight(transform), 1.0
        if self.normalise == "training":
            mean = found["mean_weight"] = automatic.mean_weight(weight, context)
        return _Matched(self, transform, weight if self.weight_by != "constant" else None, mean, found)

    def _weight(self, transform: targets.Pointwise) -> targets.SampleWeight:
        return targets.SampleWeight(self.weight_by, transform=transform, of=self.weight_of, order=self.order)


class _Matched(nn.Module):
    """A bound `Matching`: no parameters, no state.

    Attributes:
        resolved: the numbers that were found when it was bound.
    """

    def __init__(
        self,
        description: Matching,
        transform: targets.Pointwise,
        weight: targets.SampleWeight | None,
        mean: float,
        resolved: dict[str, float],
    ) -> None:
        super().__init__()
        self.needs, self.resolved = description.needs, resolved
        self._transform, self._weight, self._mean = transform, weight, mean
        self._by_batch = description.normalise == "batch"

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Tensor:
        values = losses.transformed_matching(
            student.logits,
            present(teacher).logits,
            transform=self._transform,
            sample_weight=self._weight,
            normalise=self._by_batch,
        )
        return values / self._mean
