"""How a function becomes a preset: named, with checked arguments, written to recipes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, ParamSpec, cast

import torch

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.objectives.bound import check_shape
from tutelage.objectives.objective import Objective
from tutelage.objectives.term import Apply, BindContext, PresetCall, WeightedTerm
from tutelage.settings.objective import (
    REQUIRED,
    SIGNATURES,
    Argument,
    Exponent,
    LayerPairs,
    Names,
    Signature,
    arguments_to_recipe,
    is_own,
    read_arguments,
)
from tutelage.settings.weights import (
    AutomaticNumber,
    AutomaticScheduledNumber,
    AutomaticWeight,
    ScheduledNumber,
    SignedWeight,
    Weight,
    scaled,
)
from tutelage.types import Batch, Outputs, Progress

P = ParamSpec("P")

KINDS: dict[Any, str] = {
    Weight: "weight",
    SignedWeight: "signed_weight",
    AutomaticWeight: "automatic_weight",
    AutomaticNumber: "automatic_number",
    str: "text",
    Names: "names",
    LayerPairs: "layers",
    Exponent: "exponent",
    ScheduledNumber: "scheduled_number",
    AutomaticScheduledNumber: "automatic_scheduled_number",
}
"""Kinds of arguments, by annotation; any other is a number."""


class Preset(NamedTuple):
    """A named method.

    Attributes:
        build: function that makes the objective; keyword arguments only.
        paper: source of the method.
        task: what it is for, where what it reads does not say it.
    """

    build: Callable[..., Objective]
    paper: str
    task: str | None = None


PRESETS: dict[str, Preset] = {}
"""Every preset by its name; `preset` adds to it."""
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def preset(paper: str, *, task: str | None = None) -> Callable[[Callable[P, Objective]], Callable[P, Objective]]:
    """Register a function as a preset, whose objective remembers the call so that a recipe can hold it.

    Its parameters are numbers; annotated as ``str`` they are text, as `Names` one name or several, as `LayerPairs` a
    rule or pairs of layers. Those annotated
    as `Weight` may also be schedules, and are at least 0; those annotated as `SignedWeight` may be negative. Those
    annotated as `AutomaticWeight` or `AutomaticNumber` may be ``auto``. They are checked at the call.

    Args:
        paper: source of the method.
        task: a word for what it is for, such as ``tokens``; by default `tutelage list objectives` says what it can
            tell from what the objective reads.

    Raises:
        ValueError: if there already is a preset of that name.
    """
    if not isinstance(paper, str):
        raise InvalidTypeError("preset", "the paper, a text", "a function", "type @tutelage.objectives.preset('...')")

    def name_it(function: Callable[P, Objective]) -> Callable[P, Objective]:
        name = function.__name__
        made, signature = described(cast(Callable[..., Objective], function), name, paper)
        if name in PRESETS:
            raise InvalidValueError("preset", "a new name", f"{name!r}, which is taken", "rename the function")
        PRESETS[name], SIGNATURES[name] = made._replace(task=task), signature
        return cast(Callable[P, Objective], made.build)

    return name_it


def described(function: Callable[..., Objective], name: str, paper: str) -> tuple[Preset, Signature]:
    """Return the preset of a function, which checks its arguments and remembers the call, and what it takes."""
    signature = {
        key: Argument(KINDS.get(p.annotation, "number"), REQUIRED if p.default is p.empty else p.default)
        for key, p in inspect.signature(function, eval_str=True).parameters.items()
    }

    @functools.wraps(function)
    def build(*positional: Any, **arguments: Any) -> Objective:
        if positional:
            named = ", ".join(f"{p}={value!r}" for p, value in zip(signature, positional, strict=False))
            raise InvalidTypeError(name, "arguments by name", f"{positional[0]!r} alone", f"type {name}({named})")
        read = read_arguments(name, signature, arguments)
        made: object = function(**read)
        if not isinstance(made, Objective):
            got = f"an object of type {type(made).__name__}"
            raise InvalidTypeError(name, "a function that returns an objective", got, "let it return one")
        parts = tuple(replace(part, weight=scaled(part.weight, scale)) for part, scale in made.parts)
        _probe(parts)
        return Objective((PresetCall(parts, name, read, defaulted=frozenset(read) - frozenset(arguments)),))

    variadic = [str(p) for p in inspect.signature(function).parameters.values() if p.kind in VARIADIC]
    if variadic:
        raise InvalidTypeError(name, "arguments with names", ", ".join(variadic), "name each: (*, weight=1.0)")
    return Preset(build, paper), signature


def objective_of(*parts: WeightedTerm) -> Objective:
    """Make an objective from the parts whose weight is not the number zero."""
    nonzero = [part for part in parts if part.weight != 0]
    if not nonzero:
        raise InvalidValueError("objective", "a term with a weight other than 0", "none", "for example supervised=1")
    return Objective.of(*nonzero)


def supervised_part(weight: Weight, *, label_smoothing: float = 0.0) -> WeightedTerm:
    """Make the cross-entropy with the labels, hard or soft."""
    return WeightedTerm(
        "ce", weight, Apply(losses.cross_entropy, {"label_smoothing": label_smoothing}, soft_labels=True)
    )


def is_built_in(name: str | None) -> bool:
    """Whether a preset is one of this package's, so that a recipe that names it can be read anywhere."""
    built = PRESETS[name].build if name in PRESETS and not is_own(name) else None
    return built is not None and built.__module__.startswith(f"{__package__}.")


def papers(objective: Objective) -> list[str]:
    """Return the sources of an objective's presets, in its order."""
    return [PRESETS[piece.preset].paper for piece in objective.pieces if piece.preset in PRESETS]


def signatures_json() -> str:
    """Return the facts about this package's presets that are read without torch: ``config/objectives.json``.

    They are each one's paper, whether it reads a teacher and which labels with its default arguments, and each
    argument's kind and default.
    """
    table = {}
    for name in filter(is_built_in, PRESETS):
        signature = SIGNATURES[name]
        stand_ins = {key: 1 for key, argument in signature.items() if argument.default is REQUIRED}
        needs = PRESETS[name].build(**stand_ins).needs
        table[name] = {
            "paper": PRESETS[name].paper,
            "needs": {"teacher": needs.teacher, "labels": needs.labels},
            "arguments": {key: _argument_json(argument) for key, argument in signature.items()},
        }
    return json.dumps(table, indent=1) + "\n"


def _argument_json(argument: Argument) -> dict[str, Any]:
    if argument.default is REQUIRED:
        return {"kind": argument.kind}
    return {"kind": argument.kind, "default": arguments_to_recipe({"default": argument.default})["default"]}


def _probe(parts: Sequence[WeightedTerm]) -> None:
    """Call each pure loss on two samples: only it checks its hyperparameters, and otherwise not until training.

    What a loss of logits returns is checked too.
    """
    batch = Batch(torch.arange(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    for part in parts:
        term = getattr(part.term, "inner", part.term)  # a description may wrap another
        if isinstance(term, Apply):
            errors = []
            # A loss of features takes some of these shapes; a bad hyperparameter fails on all of them, and is what
            # the message is about if the shape fits.
            for shape in _FEATURES:
                if (error := _error(part.name, term, shape, batch)) is None:
                    break
                errors.append(error)
            else:
                of_shapes = ("student_features", "teacher_features")
                raise next((error for error in errors if not str(error).startswith(of_shapes)), errors[0])


_FEATURES = ((2, 3), (2, 4), (2, 4, 3), (2, 4, 3, 3), (2, 4, 64, 64))
"""Shapes of the features that losses are tried on: logits, embeddings, tokens, maps, and maps of many cells."""


def _error(name: str, term: Apply, shape: tuple[int, ...], batch: Batch) -> ValueError | TypeError | None:
    taps = dict.fromkeys((term.student_feature, term.teacher_tap), torch.ones(shape))
    outputs = Outputs(torch.zeros(2, 3), taps)
    try:
        # A user's loss may be written for other shapes, where torch raises one of these.
        with contextlib.suppress(RuntimeError, IndexError):
            values = term.bind(BindContext())(outputs, outputs, batch, Progress())
            if not any(read.endswith("_features") for read in term.reads):
                check_shape(name, values, term.needs, batch.labels.shape)
    except (ValueError, TypeError) as error:
        return error
    return None
