"""The space of a search: which keys of a recipe, and in which ranges. No torch."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tutelage import config
from tutelage.config import files
from tutelage.config.schema import Recipe, known_presets
from tutelage.errors import InvalidValueError, RecipeError, TutelageError, raise_all
from tutelage.records import Dimension
from tutelage.settings.objective import ObjectiveSpec, PresetSpec, arguments_to_recipe

DIGITS = 3
"""Significant digits of a number that is drawn, so that it can be typed as it was trained."""
FIXED = (
    *("schema", "name", "seed", "data_seed", "device", "threads", "teacher", "outputs", "stages"),
    *("data.source", "data.validation", "data.split_seed", "data.classes"),
)
"""Keys that no search chooses: trials would not be the same task, or not be judged alike."""
OPTION = "--search"
EXAMPLE = "for example --search optimizer.lr=1e-3..1e-1,log or --search batch_size=32,64,128"

Values = Mapping[str, Any]
"""Values of a space's keys."""


def read(typed: Sequence[str], recipe: Recipe) -> list[Dimension]:
    """Read ranges as they are typed: ``KEY=LOW..HIGH``, ``KEY=LOW..HIGH,log`` or ``KEY=A,B,C``.

    Raises:
        InvalidValueError: one is no range, or its key is none that a search may choose.
        RecipeError: the recipe refuses its bounds or choices.
    """
    dimensions: dict[str, Dimension] = {}
    errors: list[TutelageError] = []
    for text in typed:
        try:
            dimension = _read(text, recipe)
            if dimension["key"] in dimensions:
                raise InvalidValueError(OPTION, "each key once", f"{dimension['key']} twice", "leave one of them out")
            dimensions[dimension["key"]] = dimension
        except TutelageError as error:
            errors.append(error)
    raise_all(errors)
    return list(dimensions.values())


def _read(text: str, recipe: Recipe) -> Dimension:
    key, equals, raw = text.partition("=")
    if not equals or not key or not raw:
        raise InvalidValueError(OPTION, "KEY=LOW..HIGH or KEY=A,B,C", repr(text), EXAMPLE)
    if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
        expected = "a key that changes how the student is trained, and not on what it is judged"
        raise InvalidValueError(f"{OPTION} {key}", expected, repr(text), EXAMPLE)
    parts = re.fullmatch(r"([^,]+?)\.\.([^.,][^,]*)(,\s*log)?", raw)
    dimension = _choice(key, raw) if parts is None else _range(key, raw, parts, recipe)
    ends = dimension["choices"] or [dimension["low"], dimension["high"]]
    for value in ends:
        whole = dimension["kind"] == "whole"
        try:
            apply(recipe, {key: int(value) if whole else value})
        except TutelageError as error:
            raise error.within(OPTION) from None
    return dimension


def _range(key: str, raw: str, parts: re.Match[str], recipe: Recipe) -> Dimension:
    numbers = [_parsed(part) for part in parts.group(1, 2)]
    low, high = numbers
    good = all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers)
    if not good or not low < high:
        raise InvalidValueError(f"{OPTION} {key}", "two numbers, the smaller one first", repr(raw), EXAMPLE)
    log = parts[3] is not None
    if log and low <= 0:
        raise InvalidValueError(f"{OPTION} {key}", "numbers > 0 for log", repr(raw), "leave ,log out, or begin above 0")
    whole = all(isinstance(each, int) for each in numbers) and not _takes(recipe, key, (low + high) / 2 + 0.25)
    return number(key, low, high, log=log, whole=whole)


def _choice(key: str, raw: str) -> Dimension:
    values = _parsed(f"[{raw}]")
    if not isinstance(values, list) or len(values) < 2 or any(value in values[:k] for k, value in enumerate(values)):
        raise InvalidValueError(f"{OPTION} {key}", "LOW..HIGH, or at least two values that differ", repr(raw), EXAMPLE)
    return choice(key, values)


def _parsed(text: str) -> Any:
    try:
        return files.load(text)
    except (yaml.YAMLError, ValueError):
        return None


def _takes(recipe: Recipe, key: str, value: Any) -> bool:
    try:
        apply(recipe, {key: value})
    except TutelageError:
        return False
    return True


def number(
    key: str, low: float, high: float, *, log: bool = False, whole: bool = False, when: Mapping[str, list[Any]] = {}
) -> Dimension:
    """Return a range of numbers."""
    return {
        "key": key,
        "kind": "whole" if whole else "number",
        "low": low,
        "high": high,
        "log": log,
        "choices": [],
        "when": dict(when),
    }


def choice(key: str, choices: Sequence[Any], when: Mapping[str, list[Any]] = {}) -> Dimension:
    """Return a choice."""
    return {
        "key": key,
        "kind": "choice",
        "low": None,
        "high": None,
        "log": False,
        "choices": list(choices),
        "when": dict(when),
    }


GAMMA = (0.05, 1.0)
"""Range of an exponent: temperatures from 1 to 20."""
WEIGHT = (0.1, 30.0)
"""Range of a weight that the recipe leaves to be found."""
AROUND, AROUND_TEMPERATURE = 10.0, 5.0
"""Factors by which weights and learning rates, and temperatures, may differ from the recipe's."""


def default(recipe: Recipe) -> list[Dimension]:
    """Return the space of a recipe: exponents, temperatures and weights of what matches the teacher, the learning rate.

    Raises:
        InvalidValueError: its stages set all of that themselves.
    """
    stages = recipe.stages
    dimensions: list[Dimension] = []
    if not stages or any(stage.objective is None for stage in stages):
        seen = set[str]()
        for call in recipe.objective.presets:
            if call.preset not in seen:
                dimensions += _of_preset(call)
            seen.add(call.preset)
    if not stages or any(stage.optimizer is None for stage in stages):
        dimensions.append(_around("optimizer.lr", recipe.optimizer.lr, AROUND))
    if not dimensions:
        raise InvalidValueError(OPTION, "keys to search, as each stage sets its own", "none", EXAMPLE)
    return dimensions


SCHEDULABLE = ("exponent", "scheduled_number", "automatic_scheduled_number")
"""Kinds of arguments that may be schedules."""


def _of_preset(call: PresetSpec) -> list[Dimension]:
    """Return the ranges of a preset's exponent, temperature and weights, but for the supervised one."""
    if call.preset == "cross_entropy":
        return []
    found: list[Dimension] = []
    for name, argument in known_presets().get(call.preset, {}).items():
        key, value = f"objective.{call.preset}.{name}", call.arguments.get(name, argument.default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, Mapping) and argument.kind in SCHEDULABLE:
            continue  # a schedule is left as it is
        if argument.kind == "exponent" or (argument.kind.startswith("automatic") and name == "gamma"):
            low, high = GAMMA
            bounds = (min(low, value), max(high, value)) if is_number else GAMMA
            found.append(number(key, *bounds))
        elif name == "temperature" and is_number:
            found.append(_around(key, value, AROUND_TEMPERATURE))
        elif name == "temperature" and value == "auto":
            found.append(number(key, 1 / GAMMA[1], 1 / GAMMA[0], log=True))
        elif argument.kind in ("weight", "automatic_weight") and name != "supervised":
            if name == "beta" or value == "auto":
                low, high = WEIGHT
                bounds = (min(low, value), max(high, value)) if is_number and value > 0 else WEIGHT
                if is_number or value == "auto":
                    found.append(number(key, *bounds, log=True))
            elif is_number and value > 0:
                found.append(_around(key, value, AROUND))
    return found


def _around(key: str, value: float, factor: float) -> Dimension:
    return number(key, _rounded(value / factor), _rounded(value * factor), log=True)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def drawn(dimension: Dimension, value: float) -> float | int:
    """Return a number that was drawn with few digits, within its bounds."""
    if dimension["kind"] == "whole":
        return int(value)
    assert dimension["low"] is not None
    assert dimension["high"] is not None
    return min(max(_rounded(value), dimension["low"]), dimension["high"])


def is_there(dimension: Dimension, values: Values) -> bool:
    """Whether a key is asked for beside these values of those before it."""
    return all(values.get(key) in allowed for key, allowed in dimension["when"].items())


def apply(recipe: Recipe, values: Values) -> Recipe:
    """Return a recipe with other values of its keys.

    Raises:
        RecipeError: it refuses one.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    try:
        return config.parse(
            Recipe, config.override(recipe.model_dump(mode="json"), overrides), where="recipe", overrides=overrides
        )
    except RecipeError as error:
        names = {preset.preset for preset in recipe.objective.presets}
        for key in values:  # Its message would be about a list of presets that nobody typed.
            preset = key.split(".")[1:2]
            if key.startswith("objective.") and preset and preset[0] not in names:
                instead = f"type objective.{next(iter(names))}.NAME=..., or another objective"
                raise RecipeError(key, f"an argument of the recipe's {', '.join(names)}", preset[0], instead) from error
        raise


def own_values(space: Sequence[Dimension], recipe: Recipe) -> dict[str, Any] | None:
    """Return a recipe's own values of a space's keys; ``None`` if it is no point of the space."""
    written = recipe.model_dump(mode="json")
    values: dict[str, Any] = {}
    for dimension in space:
        if not is_there(dimension, values):
            continue
        value = _value_at(written, dimension["key"].split("."))
        low, high = dimension["low"], dimension["high"]
        if low is not None and high is not None:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        else:
            fits = value in dimension["choices"]
        if not fits:
            return None
        values[dimension["key"]] = value
    return values


def _value_at(value: Any, names: Sequence[str]) -> Any:
    for name in names:
        if isinstance(value, list) and name.isdecimal():
            value = value[int(name)] if int(name) < len(value) else None
        elif isinstance(value, list):
            value = next((entry[name] for entry in value if isinstance(entry, Mapping) and name in entry), None)
        else:
            value = value.get(name) if isinstance(value, Mapping) else None
    return value


def line(recipe: Recipe, values: Values) -> str:
    """Return what to type behind a recipe for these values: the whole objective as one word, other keys as they are.

    Example:
        >>> recipe = Recipe(name="x", student="mlp:8", objective="wttm")
        >>> line(recipe, {"objective.wttm.gamma": 0.31, "optimizer.lr": 0.012})
        "'objective={wttm: {gamma: 0.31}}' optimizer.lr=0.012"
    """
    typed = [f"{key}={flow(value)}" for key, value in values.items() if not key.startswith("objective.")]
    if len(typed) < len(values):
        typed.insert(0, f"objective={flow(as_typed(apply(recipe, values).objective))}")
    return shlex.join(typed)


def as_typed(spec: ObjectiveSpec) -> Any:
    """Return an objective as somebody would type it: without the defaults."""
    entries = []
    for call in spec.presets:
        signature, written = known_presets().get(call.preset, {}), call.to_recipe()
        defaults = arguments_to_recipe({key: argument.default for key, argument in signature.items()})
        changed = {key: value for key, value in call.arguments.items() if value != defaults.get(key)}
        entries.append({**written, call.preset: changed} if changed or len(written) > 1 else call.preset)
    return entries[0] if len(entries) == 1 else entries


def flow(value: Any) -> str:
    """Write a value in one line of YAML."""
    text = yaml.dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.strip().removesuffix("...").strip()


def in_words(dimension: Dimension) -> str:
    """Write a range as it is typed."""
    if dimension["choices"]:
        return flow(dimension["choices"])[1:-1]
    return f"{dimension['low']:g}..{dimension['high']:g}{',log' if dimension['log'] else ''}"
