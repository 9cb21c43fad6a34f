"""Objectives from recipes: presets by their names, and functions in files of the user's own, which this runs."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tutelage import user_code
from tutelage.errors import InvalidTypeError, InvalidValueError, TutelageError, UserCodeError, raise_all
from tutelage.objectives.objective import Objective
from tutelage.objectives.registry import PRESETS, Preset, described, is_built_in, objective_of, supervised_part
from tutelage.objectives.term import LOSS_INPUTS, Apply, WeightedTerm
from tutelage.settings.objective import (
    OWN_EXAMPLE,
    REQUIRED,
    SIGNATURES,
    ObjectiveSpec,
    PresetSpec,
    Signature,
    is_own,
    read_objective,
    with_recipe_keys,
)
from tutelage.settings.weights import Weight

Trust = bool | frozenset[str] | None
"""Whether functions in files, which run code, are allowed: all, those of these names, or those that were run."""


def from_recipe(value: Any, *, trust_code: Trust = None) -> Objective:
    """Read an objective from a recipe: a preset's name, ``{preset: {argument: value}}``, or a list of those.

    An entry of a list may carry ``scale: number`` beside the preset, and ``gather: true`` (`Objective.gathered`).

    Args:
        value: what a recipe holds; an objective is returned as it is.
        trust_code: as of `from_spec`.

    Raises:
        ValueError: if a preset or argument is unknown (the nearest known one is named), missing or bad.
    """
    if isinstance(value, Objective):
        return value
    return from_spec(read_objective(value, SIGNATURES), trust_code=trust_code)


def from_spec(spec: ObjectiveSpec, *, trust_code: Trust = None) -> Objective:
    """Build the objective that a recipe holds.

    Args:
        spec: objective as plain data.
        trust_code: whether functions ``file:path.py:function``, whose files are run, are allowed: all of them, or those
            of these names; ``None`` for those that this process has run already.

    Raises:
        ValueError: if an argument's value is refused (all are listed), the presets do not add up, a file is not trusted
            or not the one that is meant, or the recipe holds the weights of terms that were put together by hand.
        UserCodeError: if a file of the user's own fails.
    """
    if not spec.presets:
        instead = "name the function that makes them as a preset, with @tutelage.objectives.preset"
        raise InvalidValueError("objective", "presets", "terms put together by hand, which no recipe can make", instead)
    built, errors = [], []
    for call in spec.presets:
        try:
            preset = _own(call, trust_code) if is_own(call.preset) else PRESETS[call.preset]
            built.append(_build(preset, json.dumps(call.to_recipe()), call.defaulted))
        except InvalidValueError as error:
            errors.append(error)
    raise_all(errors)
    return functools.reduce(lambda left, right: left + right, built)


@functools.lru_cache(maxsize=256)
def _build(preset: Preset, entry: str, defaulted: frozenset[str]) -> Objective:
    """Build one preset's entry of a recipe; objectives are immutable, and studies build the same one many times.

    The entry has every argument, but for a preset of the user's own; those that were ``defaulted`` are so in the
    objective.
    """
    (call,) = read_objective(json.loads(entry), SIGNATURES).presets
    try:
        objective = preset.build(**call.arguments)
        (piece,) = (call.scale * (objective.gathered() if call.gather else objective)).pieces
        return Objective((piece if is_own(call.preset) else replace(piece, defaulted=defaulted),))
    except TutelageError as error:
        if isinstance(error, UserCodeError):
            raise
        of_recipe = with_recipe_keys(error, call.preset, [*SIGNATURES[call.preset], *call.arguments])
        raise InvalidValueError.of([of_recipe]) from None


# Functions of the user's own


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

_OWN: dict[tuple[str, str], tuple[Preset, Signature]] = {}
"""Presets of the user's own that were made in this process, by name and digest of the file."""


def _own(call: PresetSpec, trust_code: Trust) -> Preset:
    """Return the preset of a function in a file, which is run unless the very file was run before."""
    name = call.preset
    file, function = user_code.split(name, "objective", example=OWN_EXAMPLE)
    if trust_code is not None:
        user_code.require_trust(name, "objective", trust_code)
    sha256 = call.sha256
    if sha256 is None or (name, sha256) not in _OWN:
        user_code.require_file(name, "objective", file)
        sha256 = user_code.require_unchanged(f"objective {name}", file, call.sha256)
        if (name, sha256) not in _OWN:
            user_code.require_trust(name, "objective", bool(trust_code))
            _OWN[name, sha256] = _read(name, file, function, sha256)
    PRESETS[name], SIGNATURES[name] = _OWN[name, sha256]
    return PRESETS[name]


def _read(name: str, file: Path, function: str, sha256: str) -> tuple[Preset, Signature]:
    """Run a file, and return the preset that its function is, or makes a loss into."""
    with _own_presets_aside():
        loaded = user_code.function_of(user_code.execute(file, "objective"), function, file, "objective")
        papers = {id(preset.build): preset.paper for preset in PRESETS.values()}
    paper = papers.get(id(loaded), f"{file.name}, sha256 {sha256}")
    inner = inspect.unwrap(loaded) if id(loaded) in papers else loaded
    with _blaming(name, "a function whose parameters and annotations can be read"):
        preset, signature = described(_with_weights(inner, name) if _is_loss(inner) else inner, name, paper)
        positional = [p.name for p in inspect.signature(preset.build).parameters.values() if p.kind in _POSITIONAL]

    @functools.wraps(inner)
    def build(**arguments: Any) -> Objective:
        if unread := [key for key in positional if signature[key].default is REQUIRED and key not in arguments]:
            expected = (
                f"a loss whose positional parameters are among {', '.join(LOSS_INPUTS)}, or a function of numbers"
            )
            instead = "rename them, or give each number its default or its value"
            raise InvalidTypeError(name, expected, ", ".join(unread), instead)
        with _blaming(name, "a function that returns an objective"):
            (piece,) = preset.build(**arguments).pieces
        # Defaults are the file's own, which its digest stands for: what was typed is all that a recipe needs.
        typed = {key: value for key, value in (piece.arguments or {}).items() if key in arguments}
        return Objective((replace(piece, arguments=typed, sha256=sha256),))

    return Preset(build, paper), signature


@contextmanager
def _blaming(name: str, expected: str) -> Iterator[None]:
    """Raise a `UserCodeError` about a function of the user's own where Python refuses it, or it fails or exits."""
    try:
        yield
    except TutelageError:
        raise
    except (Exception, SystemExit) as error:
        raise UserCodeError(name, expected, f"{type(error).__name__}: {error}", "fix the function") from error


@contextmanager
def _own_presets_aside() -> Iterator[None]:
    """Forget presets of the user's own for as long as a file is run, and those that it makes afterwards.

    So a file may be run again, and two files may use one name; what a recipe names is found by its file.
    """
    before = dict(PRESETS), dict(SIGNATURES)
    for own in [name for name in PRESETS if not is_built_in(name)]:
        del PRESETS[own], SIGNATURES[own]
    try:
        yield
    finally:
        PRESETS.clear()
        PRESETS.update(before[0])
        SIGNATURES.clear()
        SIGNATURES.update(before[1])


def _is_loss(function: Callable[..., Any]) -> bool:
    """Whether a function is a loss, whose positional parameters are named after what it reads."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name in LOSS_INPUTS and p.kind in _POSITIONAL for p in parameters)


def _with_weights(loss: Callable[..., Any], name: str) -> Callable[..., Objective]:
    """Return a function that weighs a loss beside the cross-entropy, and takes its keyword arguments too."""
    parameters = [p for p in inspect.signature(loss, eval_str=True).parameters.values() if p.kind is p.KEYWORD_ONLY]
    apply = Apply(loss)
    labels_alone = "labels" in apply.reads and not apply.needs.teacher
    defaults = {"weight": 1.0, "supervised": 0.0 if labels_alone else 1.0}
    if taken := [p.name for p in parameters if p.name in defaults]:
        expected = f"a loss whose parameters are not {' or '.join(defaults)}, which are the terms' weights"
        raise InvalidTypeError(name, expected, taken[0], "rename it, or write a function that returns an objective")

    def weighted(*, weight: Weight, supervised: Weight, **arguments: Any) -> Objective:
        term = WeightedTerm(name.rpartition(":")[2], weight, Apply(loss, arguments))
        return objective_of(supervised_part(supervised), term)

    weights = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Weight)
        for key, default in defaults.items()
    ]
    weighted.__signature__ = inspect.Signature([*parameters, *weights])  # type: ignore[attr-defined]
    return weighted
