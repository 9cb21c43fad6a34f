"""An objective as plain data, as in a recipe: read and checked without torch."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, NamedTuple

from tutelage import user_code
from tutelage.errors import InvalidTypeError, InvalidValueError, TutelageError, nearest, raise_all
from tutelage.records import BESIDE
from tutelage.settings import weights
from tutelage.settings.numbers import FLOAT32, InSchema

Names = str | Sequence[str]
"""Annotation of an argument that is one name or several: a string, or a list of strings."""

LayerPairs = str | Sequence[Sequence[int]]
"""Annotation of an argument that pairs layers: the name of a rule, or pairs of numbers, the student's first."""

Exponent = Annotated[weights.Weight, "exponent"]
"""Annotation of the exponent of a transformed teacher, a number or a schedule."""

BALANCED: Final = "balanced"
"""Classes that count alike, however many samples each has."""
_NotNegative = Annotated[float, InSchema(minimum=0)]
ClassWeights = Literal["balanced"] | tuple[_NotNegative, ...] | dict[str, _NotNegative]
"""Weight of each class in the cross-entropy with the labels: ``n / (classes * n_c)``, a number for each class, or some
by the classes' names, 1 for the others."""


def check_class_weights(value: Any) -> ClassWeights | None:
    """Return weights of classes as they are kept; names that YAML reads as whole numbers are texts.

    Raises:
        ValueError: if they are none.
    """
    if value is None:
        return None
    if isinstance(value, str) and value == BALANCED:
        return BALANCED
    value = getattr(value, "tolist", lambda: value)()  # an array or a tensor
    named = isinstance(value, Mapping)
    numbers = (
        list(value.values())
        if named
        else list(value)
        if isinstance(value, Sequence) and not isinstance(value, str)
        else []
    )
    names = [name for name in value if not isinstance(name, str | int) or isinstance(name, bool)] if named else []
    good = numbers and all(weights.is_number(number) and number >= 0 for number in numbers)
    if names or not good or not (named or any(numbers)):
        expected = "balanced, numbers >= 0, one for each class and not all 0 or by class names, or null"
        instead = "for example class_weights=balanced"
        raise InvalidValueError("class_weights", expected, repr(value), instead)
    if named:
        return {str(name): float(number) for name, number in value.items()}
    return tuple(map(float, numbers))


REQUIRED: Any = object()
"""Default of an argument that has none."""


class Argument(NamedTuple):
    """A preset's argument: its reader, a key of `ARGUMENT_READERS`, and its default as written in a recipe."""

    kind: str
    default: Any = REQUIRED


Signature = Mapping[str, Argument]
"""Arguments of a preset by name, in order: the schema of its section in a recipe."""

SIGNATURES: dict[str, Signature] = {}
"""Signatures of presets that were defined in this process; this package's are also in ``config/objectives.json``."""


@dataclass(frozen=True, kw_only=True)
class PresetSpec:
    """A preset with its arguments."""

    preset: str
    arguments: Mapping[str, Any]
    """All arguments by name, as written in a recipe."""
    scale: float = 1.0
    """Factor on every weight, > 0."""
    gather: bool = False
    """Whether its terms read all processes' samples at once, not each process's share."""
    sha256: str | None = None
    """Digest of the file (`user_code.digest`) that a preset of the user's own is in; ``None`` if it was not there."""
    defaulted: frozenset[str] = field(default=frozenset(), compare=False)
    """Arguments that were not typed; none are left where a recipe was written out and read again."""

    def to_recipe(self) -> dict[str, Any]:
        """Return the preset as written in a recipe: ``{preset: {argument: value}, scale: number, gather: true}``.

        One of the user's own has the ``sha256`` of its file too.
        """
        return (
            {self.preset: dict(self.arguments)}
            | ({"scale": self.scale} if self.scale != 1 else {})
            | ({"gather": True} if self.gather else {})
            | ({"sha256": self.sha256} if self.sha256 else {})
        )


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """An objective as held by a recipe; `tutelage.objectives.from_spec` builds it.

    Attributes:
        presets: presets that add up to it; empty if terms were put together by hand, which no recipe can make.
        weights: weights of such terms by name, for writing only: reading them back is refused.
    """

    presets: tuple[PresetSpec, ...] = ()
    weights: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The presets' names, joined by ``+``; ``custom`` for terms that were put together by hand."""
        return "+".join(call.preset for call in self.presets) or "custom"

    def to_recipe(self) -> Any:
        """Return the objective as written in a recipe: a list of presets with their arguments."""
        return dict(self.weights) if self.weights is not None else [call.to_recipe() for call in self.presets]


def read_objective(value: Any, signatures: Mapping[str, Signature]) -> ObjectiveSpec:
    """Read an objective from a recipe: a preset's name, ``{preset: {argument: value}}``, or a list of those.

    An entry of a list may carry ``scale: number`` beside the preset, and ``gather: true``. That an argument is a
    number, a weight or a name is checked here; further conditions are known only to the losses, and checked when the
    objective is built.

    An objective of `tutelage.objectives` stands for its written form. ``file:path.py:function`` stands for a function
    of the user's own: its arguments are known only once its file was run, when the objective is built, so that any are
    let through here; its file is read for its digest alone, unless a ``sha256`` beside it says which file is meant.

    Raises:
        ValueError: if a preset or argument is unknown (the nearest known one is named), missing or bad; all errors are
            listed.
    """
    if isinstance(value, ObjectiveSpec):
        return value
    if isinstance(spec := getattr(value, "spec", None), ObjectiveSpec):
        if getattr(value, "class_weights", None) is not None:
            expected = "an objective without class weights, which are a setting beside it"
            raise InvalidValueError("objective", expected, "one with them", "give class_weights beside it")
        return spec
    entries = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not entries:
        raise InvalidValueError("objective", "a preset or a list of them", "an empty list", "for example kd")
    presets, errors = [], []
    for entry in entries:
        try:
            presets.append(_read_entry(entry, signatures))
        except InvalidValueError as error:
            errors.append(error)
    raise_all(errors)
    return ObjectiveSpec(presets=tuple(presets))


MATCHED = {"ttm": "kd", "wttm": "weighted_kd"}
"""Presets without a temperature of the student, and those that have it and are otherwise the same."""
MATCHED_TO = "matched_to"
"""Argument in a recipe that stands for all of a preset: what it is matched to."""


def matched_kd(ttm: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the `kd` that differs from a `ttm` in the Rényi entropy of the student alone.

    ``T = 1 / gamma`` and ``weight = beta * gamma``, so that the factor ``weight * T**2`` on ``KL(p_gamma || q_gamma)``
    is the ``beta * T`` that it has in `ttm`; an automatic weight is found as that, an automatic temperature from an
    automatic gamma. All else is the same, as for the `weighted_kd` of a `wttm`.

    Raises:
        ValueError: if gamma is not above 0, or is to be found and beta is not.
    """
    same = dict(ttm)
    gamma, beta = same.pop("gamma"), same.pop("beta")
    if isinstance(gamma, weights.Automatic):
        if not isinstance(beta, weights.Automatic):
            expected, got = "auto where gamma is auto, as the weight of kd is their product", repr(beta)
            raise InvalidValueError("beta", expected, got, "type beta=auto, or a number for gamma")
        return {"temperature": gamma, "weight": beta, **same}
    if isinstance(gamma, weights.Schedule):
        instead = "give kd a temperature and a weight of its own"
        raise InvalidValueError("gamma", "a number, which a temperature can be matched to", gamma, instead)
    if not gamma > 0:
        raise InvalidValueError("gamma", "a number > 0", gamma, "for example gamma=0.25")
    weight = beta if isinstance(beta, weights.Automatic) else weights.scaled(beta, gamma)
    return {"temperature": 1 / gamma, "weight": weight, **same}


def _matched(entry: Any, signatures: Mapping[str, Signature]) -> PresetSpec:
    """Return the preset that ``kd: {matched_to: {ttm: {...}}}`` stands for, with its arguments."""
    where = f"objective.kd.{MATCHED_TO}"
    try:
        spec = read_objective(entry, signatures)
    except TutelageError as error:
        raise error.renamed(lambda what: where + what.removeprefix("objective")) from None
    of = spec.presets[0] if spec.presets else None
    if of is None or len(spec.presets) > 1 or of.preset not in MATCHED or of.scale != 1 or of.gather:
        expected = f"one {' or '.join(MATCHED)} with its arguments"
        instead = "for example {ttm: {gamma: 0.25, beta: 4}}, and a scale beside kd"
        raise InvalidValueError(where, expected, repr(entry), instead)
    try:
        arguments = matched_kd(read_arguments(of.preset, signatures[of.preset], of.arguments))
    except TutelageError as error:
        raise error.renamed(lambda what: f"{where}.{of.preset}.{what}") from None
    defaulted = frozenset(f"{MATCHED_TO}.{of.preset}.{argument}" for argument in of.defaulted)
    return PresetSpec(preset=MATCHED[of.preset], arguments=arguments_to_recipe(arguments), defaulted=defaulted)


def _read_entry(entry: Any, signatures: Mapping[str, Signature]) -> PresetSpec:
    if isinstance(entry, str):
        entry = {entry: {}}
    names = [name for name in entry if name not in BESIDE] if isinstance(entry, Mapping) else []
    if len(names) != 1:
        got, instead = repr(entry), "for example {kd: {temperature: 4}}"
        if callable(entry):
            got, instead = "a function", f"call it: {getattr(entry, '__name__', 'kd')}()"
        elif not isinstance(entry, Mapping | Sequence | int | float | None):
            got, instead = f"an object of type {type(entry).__name__}", "objectives add without a list: a + b"
        raise InvalidValueError("objective", "one preset with its arguments", got, instead)
    (name,) = names
    arguments = {} if entry[name] is None else entry[name]
    in_file = is_own(name)
    if in_file:
        signatures = {name: {str(key): Argument("any") for key in arguments} if isinstance(arguments, Mapping) else {}}
    elif "sha256" in entry:
        expected, instead = f"no sha256 beside {name}, which is in no file of yours", "leave it out"
        raise InvalidValueError("objective.sha256", expected, repr(entry["sha256"]), instead)
    if name not in signatures:
        instead = f"{nearest(name, signatures, otherwise='for example kd;')} `tutelage list objectives` lists them"
        raise InvalidValueError("objective", "a preset's name", repr(name), instead)
    defaulted: frozenset[str] | None = None
    if name == "kd" and isinstance(arguments, Mapping) and MATCHED_TO in arguments:
        if len(arguments) > 1:
            others = ", ".join(str(key) for key in arguments if key != MATCHED_TO)
            instead = "leave those out: they follow from what it is matched to"
            raise InvalidValueError("objective.kd", f"{MATCHED_TO} alone", f"{others} beside it", instead)
        matched = _matched(arguments[MATCHED_TO], signatures)
        name, arguments, defaulted = matched.preset, matched.arguments, matched.defaulted
    known = list(signatures[name])
    if not isinstance(arguments, Mapping):
        instead = f"for example {{{name}: {{{known[0]}: 1}}}}" if known else f"for example {name}"
        raise InvalidValueError(f"objective.{name}", "a mapping of its arguments", repr(arguments), instead)
    errors: list[TutelageError] = []
    scale = entry.get("scale", 1)
    if not weights.is_number(scale) or scale <= 0:
        errors.append(
            InvalidValueError(
                f"objective.{name}", f"scale, a number > 0 {FLOAT32}", repr(scale), "for example scale: 0.8"
            )
        )
    gather = entry.get("gather", False)
    if not isinstance(gather, bool):
        errors.append(
            InvalidValueError(f"objective.{name}", "gather, true or false", repr(gather), "for example gather: true")
        )
    sha256 = None
    try:
        sha256 = _file_of(name, entry.get("sha256")) if in_file else None
    except TutelageError as error:
        errors.append(error)
    values: dict[str, Any] = {}
    try:
        values = read_arguments(name, signatures[name], {str(key): value for key, value in arguments.items()})
    except TutelageError as error:
        errors.append(with_recipe_keys(error, name, [*known, *map(str, arguments)]))
    raise_all(errors, InvalidValueError)
    return PresetSpec(
        preset=name,
        arguments=arguments_to_recipe(values),
        scale=float(scale),
        gather=gather,
        sha256=sha256,
        defaulted=frozenset(values) - frozenset(map(str, arguments)) if defaulted is None else defaulted,
    )


def is_own(name: object) -> bool:
    """Whether a preset's name is that of a function in a file of the user's own."""
    return isinstance(name, str) and name.startswith(user_code.PREFIX)


OWN_EXAMPLE = "file:my_method.py:my_loss"


def _file_of(name: str, sha256: Any) -> str | None:
    """Return the digest of the file that a name of the user's own is in; the one that was typed, if one was."""
    file, _ = user_code.split(name, "objective", example=OWN_EXAMPLE)
    if sha256 is None:
        return user_code.digest(file) if file.is_file() else None
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{16}", sha256):
        instead = "leave it out: the file that is there is meant then"
        raise InvalidValueError("objective.sha256", "16 hexadecimal digits, in quotes", repr(sha256), instead)
    return sha256


def untyped_exponents(
    spec: ObjectiveSpec, signatures: Mapping[str, Signature], where: str
) -> Iterator[InvalidValueError]:
    """Yield an error for each exponent of a transformed teacher that was not typed.

    The presets' default, a temperature of 4, is vision's: it flattens a teacher over a vocabulary too far.
    """
    for call in spec.presets:
        gammas = {"gamma": call.preset} | {f"{MATCHED_TO}.{of}.gamma": of for of in MATCHED}
        for name, preset in gammas.items():
            argument = signatures.get(preset, {}).get("gamma")
            if argument and name in call.defaulted and argument.kind in ("exponent", "automatic_scheduled_number"):
                typed = "kd" if name.startswith(MATCHED_TO) else call.preset  # whatever it stands for
                key, expected = f"{where}.{typed}.{name}", "a gamma that was typed, where each token has a label"
                instead = f"type {key}=1, or a little below: docs/tokens.md shows why"
                yield InvalidValueError(key, expected, f"the default of {preset}", instead)


def with_recipe_keys(error: TutelageError, preset: str, arguments: Sequence[str]) -> TutelageError:
    """Return a copy of an error that names each argument by its key in a recipe; the rest is the objective's."""

    def key(what: str) -> str:
        if what.partition(":")[0] in arguments:
            return f"objective.{preset}.{what}"
        return f"objective.{preset}" if what in ("objective", preset) else f"objective.{preset}: {what}"

    return error.renamed(key)


def arguments_to_recipe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments as written in a recipe."""
    return {
        name: [list(each) if isinstance(each, tuple) else each for each in value]
        if isinstance(value, tuple)
        else weights.weight_to_recipe(value)
        for name, value in arguments.items()
    }


def read_arguments(preset: str, signature: Signature, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check a call's arguments, reporting all errors at once, and fill in the defaults.

    Raises:
        TypeError: if an argument is unknown, missing, or of another type.
        ValueError: if a value is out of range.
    """
    errors: list[TutelageError] = []
    for name in values:
        if name not in signature:
            known = f"an argument of {preset} ({', '.join(signature)})"
            errors.append(InvalidTypeError(name, known, repr(name), nearest(name, signature)))
    read: dict[str, Any] = {}
    for name, argument in signature.items():
        value = values.get(name, argument.default)
        if value is REQUIRED:
            errors.append(InvalidTypeError(name, f"a value for {preset}", "none", f"for example {name}=1.0"))
            continue
        try:
            read[name] = ARGUMENT_READERS[argument.kind](value, argument=name)
        except TutelageError as error:
            errors.append(error)
    raise_all(errors)
    return read


def _number(value: Any, *, argument: str) -> float:
    if not weights.is_number(value):
        number = f"a number {FLOAT32}" if isinstance(value, int | float) else "a number"
        raise InvalidTypeError(argument, number, repr(value), f"for example {argument}=1.0")
    return value if isinstance(value, int) and abs(value) < 2**63 else float(value)  # as torch takes


def _number_or_schedule(value: Any, *, argument: str) -> float | weights.Schedule:
    return weights.scheduled_from_recipe(value, argument=argument) or _number(value, argument=argument)


def _number_or_auto(value: Any, *, argument: str) -> float | weights.Automatic:
    automatic = weights.automatic_from_recipe(value, argument=argument)
    if automatic is None and isinstance(value, str):
        raise InvalidTypeError(argument, "a finite number or auto", repr(value), f"for example {argument}=auto")
    return automatic or _number(value, argument=argument)


def _number_schedule_or_auto(value: Any, *, argument: str) -> float | weights.Schedule | weights.Automatic:
    return weights.scheduled_from_recipe(value, argument=argument) or _number_or_auto(value, argument=argument)


def _text(value: Any, *, argument: str) -> str:
    if isinstance(value, str):
        return value
    raise InvalidTypeError(argument, "a name", repr(value), "type the name as text")


def _names(value: Any, *, argument: str) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidTypeError(argument, "a name or a list of names", repr(value), f"for example {argument}=[layer1]")
    return names


def _layers(value: Any, *, argument: str) -> str | tuple[tuple[int, int], ...]:
    if isinstance(value, str) and value:
        return value
    pairs: Sequence[Any] = value if isinstance(value, list | tuple) and value else [None]
    if not all(isinstance(pair, list | tuple) and list(map(type, pair)) == [int, int] for pair in pairs):
        expected = "a rule's name, or pairs of layers' numbers, the student's first"
        raise InvalidTypeError(argument, expected, repr(value), f"for example {argument}=[[0, 1], [1, 3]]")
    return tuple((ours, theirs) for ours, theirs in pairs)


def _any(value: Any, *, argument: str) -> Any:
    return value


ARGUMENT_READERS: dict[str, Callable[..., Any]] = {
    "any": _any,
    "number": _number,
    "exponent": _number_or_schedule,
    "scheduled_number": _number_or_schedule,
    "automatic_scheduled_number": _number_schedule_or_auto,
    "automatic_number": _number_or_auto,
    "weight": weights.weight_from_recipe,
    "signed_weight": functools.partial(weights.weight_from_recipe, signed=True),
    "automatic_weight": functools.partial(weights.weight_from_recipe, automatic=True),
    "text": _text,
    "names": _names,
    "layers": _layers,
}
"""Readers of arguments, by kind."""
