"""The space of the term that matches the teacher: every divergence, target, weight, temperature and regulariser.

KD-Zero (Li et al., NeurIPS 2023) searches such a space by evolution. The kinds are those of `objectives.matching`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage import targets
from tutelage.config.schema import Recipe, known_presets
from tutelage.losses.divergences import KINDS
from tutelage.objectives.methods.logits import MIXTURES, REGULARISERS
from tutelage.records import Dimension
from tutelage.settings.objective import ObjectiveSpec, read_objective
from tutelage.tuning.space import GAMMA, WEIGHT, choice, number

PART = "objective.matching"
PENALTY = (0.01, 1.0)
"""Range of a regulariser's weight."""
ORDERS = (0.25, 4.0)
"""Range of the order of a Rényi entropy that regularises."""
SHARE = (0.05, 0.95)
"""Range of the teacher's share of a mixture."""
EXPONENT = (0.1, 1.2)
"""Range of each exponent of the alpha-beta divergence: published pairs add up to between 0.9 and 1.1."""
MASS = (0.1, 0.95)
"""Range of the mass of the head of the adaptive divergence."""
TEMPERATURE = (1.0, 20.0)
"""Range of the student's temperature."""


def dimensions() -> list[Dimension]:
    """Return the parts and their numbers, each asked for only where it is there.

    All divergences but ``wasserstein``: it reads the teacher's last layer, which a recorded teacher has not, and its
    unit is that of a cost, for which ``beta`` would need a range of its own.
    """
    sure, some = ["constant", "power_sum"], [name for name in REGULARISERS if name != "none"]
    graded = [name for name in targets.WEIGHTS if name not in sure]
    return [
        choice(f"{PART}.divergence", [kind for kind in KINDS if kind != "wasserstein"]),
        number(f"{PART}.share", *SHARE, when={f"{PART}.divergence": [*MIXTURES]}),
        number(f"{PART}.ab_alpha", *EXPONENT, when={f"{PART}.divergence": ["alpha_beta"]}),
        number(f"{PART}.ab_beta", *EXPONENT, when={f"{PART}.divergence": ["alpha_beta"]}),
        number(f"{PART}.mu", *MASS, when={f"{PART}.divergence": ["adaptive"]}),
        choice(f"{PART}.target", [*targets.TRANSFORMS]),
        number(f"{PART}.gamma", *GAMMA),
        number(f"{PART}.temperature", *TEMPERATURE, log=True),
        choice(f"{PART}.weight_by", [*targets.WEIGHTS]),
        choice(f"{PART}.weight_of", ["teacher", "target"], when={f"{PART}.weight_by": graded}),
        number(f"{PART}.beta", *WEIGHT, log=True),
        choice(f"{PART}.regulariser", [*REGULARISERS]),
        number(f"{PART}.regulariser_weight", *PENALTY, log=True, when={f"{PART}.regulariser": some}),
        number(f"{PART}.regulariser_order", *ORDERS, log=True, when={f"{PART}.regulariser": ["renyi"]}),
    ]


def base() -> ObjectiveSpec:
    """Return the objective that the parts' values are laid over."""
    return read_objective("matching", known_presets())


def known_points(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return published objectives as values of the parts, with the recipe's gamma and beta if it has any.

    ``kd`` is the one that differs from ``ttm`` in the student's temperature alone, ``reverse_kl`` has no temperature.
    """
    numbers = _numbers(recipe)
    gamma, beta = numbers.get("gamma", 0.25), numbers.get("beta", 1.0)
    plain = {
        "divergence": "forward",
        "target": "power",
        "gamma": gamma,
        "temperature": 1.0,
        "weight_by": "constant",
        "beta": beta,
        "regulariser": "none",
    }
    points = {
        "kd": {**plain, "temperature": 1 / gamma, "beta": max(WEIGHT[0], beta * gamma)},
        "ttm": plain,
        "wttm": {**plain, "weight_by": "power_sum"},
        "reverse_kl": {**plain, "divergence": "reverse", "gamma": 1.0},
    }
    return {name: {f"{PART}.{key}": value for key, value in point.items()} for name, point in points.items()}


def own_point(recipe: Recipe) -> str | None:
    """Return the known point that a recipe's own objective is; ``None`` if it is none of them."""
    calls = recipe.objective.presets
    plain = {"supervised": 1.0, "normalise": "none", "logits": "raw"}
    if len(calls) != 1 or calls[0].preset not in ("ttm", "wttm") or calls[0].scale != 1 or calls[0].gather:
        return None
    arguments = calls[0].arguments
    same = all(arguments.get(key, value) == value for key, value in plain.items())
    return calls[0].preset if same and {"gamma", "beta"} == {*_numbers(recipe)} else None


def _numbers(recipe: Recipe) -> Mapping[str, float]:
    """Return gamma and beta of a recipe's objective, those that are numbers within the ranges."""
    found: dict[str, float] = {}
    presets = ("ttm", "wttm", "matching", "transformed_matching")
    for call in (call for call in recipe.objective.presets if call.preset in presets):
        for name, (low, high) in (("gamma", GAMMA), ("beta", WEIGHT)):
            value = call.arguments.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
                found.setdefault(name, value)
    return found


def replaced(space: Sequence[Dimension], typed: Sequence[Dimension]) -> list[Dimension]:
    """Return a space in which typed ranges replace those of their keys, or are added."""
    by_key = {dimension["key"]: dimension for dimension in space}
    for dimension in typed:
        when = by_key[dimension["key"]]["when"] if dimension["key"] in by_key else {}
        by_key[dimension["key"]] = {**dimension, "when": when}
    return list(by_key.values())
