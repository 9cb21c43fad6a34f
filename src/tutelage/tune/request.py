"""What a search is asked for, read and checked without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.config.schema import TOGETHER, Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.records import Dimension, Tune
from tutelage.tune import space as spaces

RECIPE, SAMPLED = "recipe", "sampled"
"""Origins of trials: the recipe's own settings, or those that the sampler chose."""
Space = Literal["recipe", "objective"]
"""What is searched: numbers of the recipe, or the parts of the term that matches the teacher."""
MOST = 10_000
"""Trials of a search."""


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """A search."""

    recipe: Recipe  # whose own settings are the first trial
    base: Recipe  # what other settings are laid over
    space: list[Dimension]
    known: Sequence[tuple[str, Mapping[str, Any] | None]]  # trials that come first, with their origins; None: no point
    trials: int = 20
    confirm: int = 3
    together: int = TOGETHER
    prune: bool = True

    @property
    def no_validation(self) -> tuple[str, str, str, str]:
        """What an error says where there is no validation set."""
        expected = "a share of the training samples to choose on: what is chosen on the test set looks too good there"
        return "data.validation", expected, "none", "type data.validation=0.1"

    def differences(self, record: Tune) -> list[str]:
        """Describe how a search that was begun differs from this one; more trials and new seeds may be asked for."""
        differs = []
        then = {each["key"]: each for each in record["space"]}
        now = {each["key"]: each for each in self.space}
        for key in {**then, **now}:
            if then.get(key) != now.get(key):
                differs.append(f"{key} was {_range(then.get(key))}, is {_range(now.get(key))}")
        if record["prune"] != self.prune:
            differs.append(f"pruning was {'on' if record['prune'] else 'off'}, is {'on' if self.prune else 'off'}")
        return differs


def _range(dimension: Dimension | None) -> str:
    if dimension is None:
        return "not searched"
    if dimension["choices"]:
        return f"one of {spaces.flow(dimension['choices'])}"
    return f"{dimension['low']:g}..{dimension['high']:g}{',log' if dimension['log'] else ''}"


def request(
    recipe: Recipe,
    *,
    trials: int = 20,
    search: Sequence[str] = (),
    space: Space = "recipe",
    confirm: int = 3,
    together: int = TOGETHER,
    prune: bool = True,
) -> SearchRequest:
    """Return a search of a recipe.

    Args:
        recipe: whose own settings are the first trial.
        trials: number of trials, the first included.
        search: ranges as they are typed; in their place those of `space.default`, or beside the objective's parts none.
        space: what is searched.
        confirm: new seeds over which what was found is tried again, beside the recipe.
        together: trials of a round, which are trained in lockstep where they can be.
        prune: whether trials end early that do worse than the median of earlier ones.

    Raises:
        InvalidValueError: a range is none, or there is no validation set.
    """
    limits = {"trials": (trials, 1, MOST), "confirm": (confirm, 0, 1000), "together": (together, 1, 1000)}
    for name, (value, least, most) in limits.items():
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            expected = f"a whole number in [{least}, {most}]"
            raise InvalidValueError(f"--{name}", expected, repr(value), f"for example --{name} {max(least, 3)}")
    if space == "objective":
        raise NotImplementedError
    dimensions, base = spaces.read(search, recipe) or spaces.default(recipe), recipe
    asked = SearchRequest(
        recipe=recipe,
        base=base,
        space=dimensions,
        known=[(RECIPE, spaces.own_values(dimensions, recipe))],
        trials=trials,
        confirm=confirm,
        together=together,
        prune=prune,
    )
    if not recipe.data.validation:
        raise RecipeError(*asked.no_validation)
    if max(recipe.seed, recipe.data_seed) + confirm >= 2**63:
        raise InvalidValueError("seed", f"a seed with {confirm} above it below 2**63", recipe.seed, "type seed=0")
    return asked


def folder_name(asked: SearchRequest) -> str:
    """Return the name of a search's folder beside the runs."""
    return f"{asked.recipe.name}-tune"


def edges(asked: SearchRequest) -> Iterator[Recipe]:
    """Yield recipes with the ends of each range, or each choice, whose objectives the losses may refuse."""
    for dimension in asked.space:
        for value in dimension["choices"] or [dimension["low"], dimension["high"]]:
            if dimension["key"].startswith("objective") and not dimension["when"]:
                yield spaces.apply(asked.base, {dimension["key"]: value})
