"""What a search is asked for, read and checked without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.records import Dimension, Tune
from tutelage.settings.run import TOGETHER
from tutelage.tuning import space as spaces

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
    suffix: str = "tune"  # of its folder's name, behind the recipe's

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
    return "not searched" if dimension is None else spaces.in_words(dimension)


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
    if not recipe.data.validation:
        expected = "a share of the training samples to choose on: what is chosen on the test set looks too good there"
        raise RecipeError("data.validation", expected, "none", "type data.validation=0.1")
    if max(recipe.seed, recipe.data_seed) + confirm >= 2**63:
        raise InvalidValueError("seed", f"a seed with {confirm} above it below 2**63", recipe.seed, "type seed=0")
    common: dict[str, Any] = {
        "recipe": recipe,
        "trials": trials,
        "confirm": confirm,
        "together": together,
        "prune": prune,
    }
    if space == "objective":
        return _of_objective(recipe, search, common)
    dimensions = spaces.read(search, recipe) or spaces.default(recipe)
    known = [(RECIPE, spaces.own_values(dimensions, recipe))]
    return SearchRequest(base=recipe, space=dimensions, known=known, **common)


def _of_objective(recipe: Recipe, search: Sequence[str], common: Mapping[str, Any]) -> SearchRequest:
    """Return a search over the parts of the matching term, beside the keys that are typed."""
    if recipe.teacher is None:
        instead = "name a teacher, or type --space recipe"
        raise RecipeError("teacher", "one for --space objective, to match", "none", instead)
    if any(stage.objective is not None for stage in recipe.stages):
        instead = "leave the stages' objectives out, or type --space recipe"
        raise RecipeError("stages", "one objective for --space objective", "stages with their own", instead)
    from tutelage.tuning import objective_space  # and with it torch

    base = recipe.model_copy(update={"objective": objective_space.base()})
    typed = spaces.read(search, base)
    beside = [dimension for dimension in typed if not dimension["key"].startswith("objective.")]
    own = spaces.own_values(beside, recipe) or {}
    points = {name: {**values, **own} for name, values in objective_space.known_points(recipe).items()}
    same = objective_space.own_point(recipe)
    known = [(RECIPE, None if same is None else points[same])]
    known += [(name, values) for name, values in points.items() if name != same]
    dimensions = objective_space.replaced(objective_space.dimensions(), typed)
    return SearchRequest(base=base, space=dimensions, known=known, suffix="tune-objective", **common)


def folder_name(asked: SearchRequest) -> str:
    """Return the name of a search's folder beside the runs."""
    return f"{asked.recipe.name}-{asked.suffix}"


def edges(asked: SearchRequest) -> Iterator[Recipe]:
    """Yield recipes with the ends of each range, or each choice, whose objectives the losses may refuse."""
    for dimension in asked.space:
        for value in dimension["choices"] or [dimension["low"], dimension["high"]]:
            if dimension["key"].startswith("objective") and not dimension["when"]:
                yield spaces.apply(asked.base, {dimension["key"]: value})
