"""How a function becomes a preset: named, its arguments checked, held by a recipe and read from one."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, NamedTuple, cast

import torch

from tutelage import losses, records
from tutelage.objectives.objective import Objective, PresetCall, WeightedTerm
from tutelage.objectives.schedules import (
    Automatic,
    AutomaticNumber,
    AutomaticWeight,
    SignedWeight,
    Weight,
    automatic_from_recipe,
    automatic_weight_from_recipe,
    scaled,
    weight_from_recipe,
)
from tutelage.objectives.term import Apply, BindContext
from tutelage.types import Batch, Outputs, Progress

Names = tuple[str, ...]
"""The annotation of an argument that is one name or several: a text, or a list of texts."""


class Preset(NamedTuple):
    """A named method.

    Attributes:
        build: the function; keyword arguments only.
        paper: where the method comes from.
    """

    build: Callable[..., Objective]
    paper: str


PRESETS: dict[str, Preset] = {}


def preset(paper: str) -> Callable[[Callable[..., Objective]], Callable[..., Objective]]:
    """Name a function as a preset: its objective remembers the call, so that a recipe can hold it.

    Its parameters are numbers; annotated as ``str`` they are text, as `Names` one name or several. Those annotated
    as `Weight` may be schedules too, and are at least 0; those annotated as `SignedWeight` may be below it. Those
    annotated as `AutomaticWeight` or `AutomaticNumber` may be ``auto``. They are checked at the call.

    Args:
        paper: where the method comes from.

    Raises:
        ValueError: there is a preset of that name already.
    """

    def name_it(function: Callable[..., Objective]) -> Callable[..., Objective]:
        name = function.__name__
        signature = inspect.signature(function, eval_str=True)

        @functools.wraps(function)
        def build(*positional: Any, **arguments: Any) -> Objective:
            if positional:
                named = ", ".join(f"{p}={value!r}" for p, value in zip(signature.parameters, positional, strict=False))
                raise TypeError(
                    f"{name}: expected arguments by name, got {positional[0]!r} alone; type {name}({named})"
                )
            read = _read(name, signature, arguments)
            parts = tuple(replace(part, weight=scaled(part.weight, scale)) for part, scale in function(**read).parts)
            _probe(parts)
            return Objective((PresetCall(parts, name, read),))

        if name in PRESETS:
            raise ValueError(f"preset: expected a new name, got {name!r}, which is taken; rename the function")
        PRESETS[name] = Preset(build, paper)
        return build

    return name_it


def objective_of(*parts: WeightedTerm) -> Objective:
    """Make an objective of those parts whose weight is not the number zero."""
    kept = [part for part in parts if part.weight != 0]
    if not kept:
        raise ValueError("objective: expected a term with a weight other than 0, got none; for example supervised=1")
    return Objective.of(*kept)


def supervised_part(weight: Weight, *, label_smoothing: float = 0.0) -> WeightedTerm:
    """Make the cross-entropy with the labels, hard or soft."""
    return WeightedTerm(
        "ce", weight, Apply(losses.cross_entropy, {"label_smoothing": label_smoothing}, soft_labels=True)
    )


def is_built_in(name: str | None) -> bool:
    """Whether a preset is one of this package's, so that a recipe that names it can be read anywhere."""
    return name in PRESETS and PRESETS[name].build.__module__.startswith(f"{__package__}.")


def from_recipe(value: Any) -> Objective:
    """Read an objective from a recipe: a preset's name, ``{preset: {argument: value}}``, or a list of those.

    An entry of a list may carry ``scale: number`` beside the preset, and ``gather: true`` (`Objective.gathered`).

    Raises:
        ValueError: an unknown preset or argument (the nearest known one is named), a missing or bad one.
    """
    if isinstance(value, Objective):
        return value
    entries = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not entries:
        raise ValueError("objective: expected a preset or a list of them, got an empty list; for example kd")
    made, found = [], []
    for entry in entries:
        try:
            made.append(_entry(entry))
        except ValueError as error:
            found.append(str(error))
    if found:
        raise ValueError("\n".join(found))
    return functools.reduce(lambda left, right: left + right, made)


def _entry(entry: Any) -> Objective:
    if isinstance(entry, str):
        entry = {entry: {}}
    names = [name for name in entry if name not in records.BESIDE] if isinstance(entry, Mapping) else []
    if len(names) != 1:
        raise ValueError(
            f"objective: expected one preset with its arguments, got {entry!r}; for example {{kd: {{temperature: 4}}}}"
        )
    (name,) = names
    arguments = {} if entry[name] is None else entry[name]
    if name not in PRESETS:
        near = get_close_matches(str(name), PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "type one of those"
        raise ValueError(f"objective: expected one of {', '.join(PRESETS)}, got {name!r}; {hint}")
    known = list(inspect.signature(PRESETS[name].build).parameters)
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"objective.{name}: expected a mapping of its arguments, got {arguments!r}; "
            f"for example {{{name}: {{{known[0]}: 1}}}}"
        )
    found = []
    scale = entry.get("scale", 1)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not (math.isfinite(scale) and scale > 0):
        found.append(f"objective.{name}: expected scale, a finite number > 0, got {scale!r}; for example scale: 0.8")
    gather = entry.get("gather", False)
    if not isinstance(gather, bool):
        found.append(f"objective.{name}: expected gather, true or false, got {gather!r}; for example gather: true")
    try:
        made = PRESETS[name].build(**{str(argument): value for argument, value in arguments.items()})
        made = made.gathered() if gather is True else made
    except (TypeError, ValueError) as error:
        for line in str(error).splitlines():
            # Most say which argument is meant; the rest speak of the objective as a whole.
            own = line.partition(":")[0] in (*known, *map(str, arguments))
            found.append(f"objective.{name}{'.' if own else ': '}{line.removeprefix('objective: ')}")
    if found:
        raise ValueError("\n".join(found))
    return scale * made


def _probe(parts: Sequence[WeightedTerm]) -> None:
    """Call each pure loss on two samples: it alone knows what its hyperparameters may be, and speaks late otherwise."""
    batch = Batch(torch.arange(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    for part in parts:
        term = getattr(part.term, "inner", part.term)  # what a description wraps
        if isinstance(term, Apply):
            errors = [_error(term, shape, batch) for shape in _FEATURES]
            # A loss of features takes some of these shapes; a bad hyperparameter is one on all of them, and is what the
            # message is about where the shape fits.
            if all(errors):
                found = [cast(ValueError, error) for error in errors]
                raise next((error for error in found if not str(error).startswith(_ABOUT_FEATURES)), found[0])


_FEATURES = ((2, 4), (2, 4, 3), (2, 4, 3, 3))
"""Shapes of the features that a loss is tried on: embeddings, tokens, maps."""

_ABOUT_FEATURES = ("student_features", "teacher_features")
"""How a message begins that complains of the features themselves."""


def _error(term: Apply, shape: tuple[int, ...], batch: Batch) -> ValueError | TypeError | None:
    taps = dict.fromkeys((term.student_feature, term.teacher_tap), torch.ones(shape))
    outputs = Outputs(torch.zeros(2, 3), taps)
    try:
        # A loss of the user's own may be made for other shapes; of those torch says so with a RuntimeError.
        with contextlib.suppress(RuntimeError):
            term.bind(BindContext())(outputs, outputs, batch, Progress())
    except (ValueError, TypeError) as error:
        return error
    return None


def _read(preset: str, signature: inspect.Signature, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check a call's arguments, every fault at once, and fill in the defaults."""
    known = list(signature.parameters)
    found: list[TypeError | ValueError] = []
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "type one of those"
            found.append(
                TypeError(f"{name}: expected an argument of {preset} ({', '.join(known)}), got {name!r}; {hint}")
            )
    read: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        value = given.get(name, parameter.default)
        if value is parameter.empty:
            found.append(TypeError(f"{name}: expected a value for {preset}, got none; for example {name}=1.0"))
            continue
        try:
            read[name] = _READ.get(parameter.annotation, _number)(value, argument=name)
        except (TypeError, ValueError) as error:
            found.append(error)
    if found:
        kind = TypeError if any(isinstance(error, TypeError) for error in found) else ValueError
        raise kind("\n".join(str(error) for error in found))
    return read


def _number(value: Any, *, argument: str) -> float:
    # A recipe and its records are YAML and JSON, which have no infinity in common.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{argument}: expected a finite number, got {value!r}; for example {argument}=1.0")
    return value if isinstance(value, int) else float(value)


def _text(value: Any, *, argument: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{argument}: expected a name, got {value!r}; type the name as text")
    return value


def _names(value: Any, *, argument: str) -> Names:
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise TypeError(
            f"{argument}: expected a name or a list of names, got {value!r}; for example {argument}=[layer1]"
        )
    return names


def _number_or_auto(value: Any, *, argument: str) -> float | Automatic:
    found = automatic_from_recipe(value)
    if found is None and isinstance(value, str):
        raise TypeError(f"{argument}: expected a finite number or auto, got {value!r}; for example {argument}=auto")
    return found or _number(value, argument=argument)


_READ: dict[Any, Callable[..., Any]] = {
    Weight: weight_from_recipe,
    SignedWeight: functools.partial(weight_from_recipe, signed=True),
    AutomaticWeight: automatic_weight_from_recipe,
    AutomaticNumber: _number_or_auto,
    str: _text,
    Names: _names,
}
"""How an argument is read, by its annotation; any other is a number."""
