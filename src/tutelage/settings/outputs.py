"""Settings of recorded outputs of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from tutelage.settings.fit import check_ranges
from tutelage.settings.numbers import Range, Real, Whole

BOUND = 0.01
"""How far off a chunk may be in the mean: total variation of ``p_gamma``, and relative error of ``U_gamma``."""
TOKEN_BOUND = 0.25
"""The same for tokens, whose distributions are flat: the top 64 of 2,000 of a weak language model are
off by 0.21 at gamma 1."""
Kept = Annotated[Whole, Range("a whole number in [1, 100000]", least=1, most=100_000)]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """The largest log-probabilities, and that of all other classes together.

    Attributes:
        top: number of classes kept, at least 1 and fewer than there are.
    """

    name: Literal["bucket"] = "bucket"
    top: Kept = 16

    def __post_init__(self) -> None:
        check_ranges("outputs_form", self)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Classes drawn from the teacher, with importance weights: `targets.draw`.

    Attributes:
        draws: number of draws, with repeats.
        proposal: exponent of the teacher in what is drawn from, in [0.1, 10]; at 1 a draw has no weight to be stored.
    """

    name: Literal["sampled"] = "sampled"
    draws: Kept = 50
    proposal: Annotated[Real, Range("an exponent in [0.1, 10]", least=0.1, most=10)] = 1.0

    def __post_init__(self) -> None:
        check_ranges("outputs_form", self)


OutputsForm: TypeAlias = Bucket | Sampled
"""Form of recorded logits that is typed; without one all logits are kept, or the top classes with power sums."""


def words(form: Mapping[str, Any] | None, unit: str = "") -> str:
    """Say which form ``outputs.json`` describes, for people; ``unit`` is what it holds."""
    if form is None:
        return "all logits"
    of = f"of {form['classes']} {unit}".rstrip()
    if form.get("name") == "sampled":
        proposal = "" if form["proposal"] == 1 else f" with weights, from p**{form['proposal']:g},"
        return f"{form['draws']} draws{proposal} {of}"
    return f"the top {form['top']} {of}" + (" and the rest as one" if form.get("name") == "bucket" else "")
