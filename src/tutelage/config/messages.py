"""Errors of a recipe, from what pydantic found: what, what was expected, what was got, what to type."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tutelage.errors import RecipeError, TutelageError, nearest_name
from tutelage.settings.numbers import SMALLEST
from tutelage.settings.objective import ObjectiveSpec

SYNONYMS = {"model": "student", "student": "model"}
"""What a network to train is called, by whether it learns from another."""
MOST_FAULTS = 50
"""Faults of one recipe that are told; the others are counted."""


def recipe_error(kind: type[BaseModel], error: ValidationError) -> RecipeError:
    """Return the error for all that pydantic found, each about a dotted key of the schema."""
    details = error.errors(include_url=False)
    told = [each for detail in details[:MOST_FAULTS] for each in _errors_of(kind, detail)]
    errors = list({str(each): each for each in told}.values())  # Each alternative of a union finds the same.
    if (left := len(details) - MOST_FAULTS) > 0:
        errors.append(RecipeError("recipe", "no fault", f"{left} more", "mend those above first"))
    return RecipeError.of(errors)


def _errors_of(kind: type[BaseModel], detail: Any) -> tuple[TutelageError, ...]:
    path, got, what = detail["loc"], detail["input"], detail["type"]
    if path[-1:] == ("[key]",):
        path, what = path[:-1], "invalid_key"
    if what == "missing" and path and isinstance(path[-1], int):
        path, what = path[:-1], "too_short"
    location = _find(kind, path)
    if what == "string_type" and isinstance(got, Mapping) and any(_sections(location.annotation)):
        return ()  # It is meant to be the section, which tells its own faults.
    match what:
        case "extra_forbidden" | "unexpected_keyword_argument":
            near = _nearest(kind, location, str(path[-1]))
            return (RecipeError(location.key, "a known key", shown(path[-1]), near),)
        case "invalid_key":
            return (RecipeError(location.key, "a key that is text", shown(path[-1]), "put it in quotes"),)
        case "value_error" if isinstance(detail["ctx"]["error"], TutelageError):
            return detail["ctx"]["error"].renamed(partial(_under, location.key)).errors
        case "union_tag_invalid" | "union_tag_not_found" if isinstance(got, Mapping):
            tags = [tag for section in _sections(location.annotation) if (tag := _tag(section))]
            tag = got.get("name")
            text = "none" if tag is None else repr(tag)
            key = f"{location.key}.name"
            return (RecipeError(key, f"one of {', '.join(tags)}", text, f"type {key}={nearest_name(tag, tags)}"),)
    expected = (
        location.expected.replace("a number", "a finite number") if what == "finite_number" else location.expected
    )
    text = "none" if what == "missing" else shown(got)
    typed = f"{location.key}={location.example(got)}"
    if " " in typed:  # A shell would cut it there.
        typed = f'"{typed}"'
    return (RecipeError(location.key, expected, text, f"for example {typed}"),)


class SchemaLocation(NamedTuple):
    """Where in the schema a fault is: its dotted key, as typed, and what the schema says of it, if it is a field."""

    key: str
    around: list[type]
    """The sections that the mapping around it may be."""
    annotation: Any
    field: FieldInfo | None

    @property
    def expected(self) -> str:
        """What its value must be."""
        if self.field and self.field.description:
            return self.field.description
        core, nullable = _core(self.annotation)
        return _phrase(core) + _bounds(self.annotation, self.field) + (" or null" if nullable else "")

    def example(self, got: Any) -> str:
        """A value to type instead."""
        core = _core(self.annotation)[0]
        if typing.get_origin(core) is Literal:
            return nearest_name(got, [str(choice) for choice in typing.get_args(core)])
        if self.field and self.field.examples:
            return str(self.field.examples[0])
        default = self.field.default if self.field else None
        if isinstance(default, bool | int | float | str | tuple):
            return _flow(default)
        inner = typing.get_args(core)
        if typing.get_origin(core) is tuple:
            return f"[{', '.join(_sample(_core(each)[0]) for each in inner if each is not ...)}]"
        return "{}" if typing.get_origin(core) is dict else _sample(core)


def _find(kind: type[BaseModel], path: Sequence[str | int]) -> SchemaLocation:
    """Follow pydantic's path, which names a union's section as well as a mapping's keys, through the schema."""
    key, around, inside = [], [kind], [kind]
    annotation: Any = kind
    field: FieldInfo | None = None
    for part in path:
        if (len(inside) > 1 or _alternatives(annotation)) and part in [section.__name__ for section in inside]:
            inside = sorted(inside, key=lambda section: section.__name__ != part)  # Its keys come first.
            continue
        if part in [getattr(each, "__name__", None) for each in _alternatives(annotation)]:
            continue
        if len(inside) > 1 and (tagged := [section for section in inside if part == _tag(section)]):
            inside = tagged
            continue
        if not inside and _alternatives(annotation):
            continue  # It names one of them.
        key.append(str(part))
        around = inside
        field = next((member for section in inside if (member := _members(section).get(str(part)))), None)
        annotation = field.annotation if field else _item(annotation, part)
        inside = list(_sections(annotation))
    return SchemaLocation(".".join(key), around, annotation, field)


def _under(key: str, what: str) -> str:
    """Return what an error is about as a key, in place of the section's name that it may begin with."""
    for section in (key.rpartition(".")[2], "objective"):
        if re.match(rf"{re.escape(section)}(?:[.: ]|$)", what):
            return key + what[len(section) :]
    return f"{key}: {what}" if what else key


def _nearest(kind: type[BaseModel], location: SchemaLocation, name: str) -> str:
    """Name the known key that an unknown one was probably meant to be, at its own depth or elsewhere."""
    if "." in name:  # As an override is typed, where a mapping belongs.
        section, _, inner = name.rpartition(".")
        return f"type {section}={{{inner}: ...}}"
    above = location.key.rpartition(".")[0]
    known = sorted({member for section in location.around for member in _members(section)})
    if name in known:
        return f"leave out {location.key}, or the keys beside it that exclude it"
    here = [path for section in location.around for path in paths(section) if path.rpartition(".")[2] == name]
    near = [SYNONYMS[name]] if SYNONYMS.get(name) in known else []
    near = near or sorted(here, key=len) or difflib.get_close_matches(name, known, n=1)
    near = [f"{above}.{path}" if above else path for path in near]
    if not near and above:
        others = _sections(_find(kind, above.split(".")).annotation)
        kinds = [tag for other in others if name in _members(other) and (tag := _tag(other))]
        if kinds:
            return f"type {above}.name={kinds[0]} with it"
    elsewhere = sorted((path for path in paths(kind) if path.rpartition(".")[2] == name), key=len)
    if not near and location.key not in elsewhere:
        near = elsewhere[:1]
    return f"did you mean {near[0]}?" if near else f"type one of {', '.join(known)}"


def paths(section: type) -> Iterator[str]:
    """Every key of a section and of the sections in it, dotted; what lies in lists is left out."""
    for name, field in _members(section).items():
        yield name
        if typing.get_origin(_core(field.annotation)[0]) is not tuple:
            for inner in _sections(field.annotation):
                yield from (f"{name}.{path}" for path in paths(inner))


def choices(kind: type[BaseModel], key: str) -> list[str]:
    """Return the values that a dotted key of a section may have, where the schema lists them."""
    name, values = key.rpartition(".")[2], list[Any]()
    members = [_members(section).get(name) for section in _find(kind, key.split(".")).around]
    for annotation in [member.annotation for member in members if member is not None]:
        for alternative in _alternatives(annotation) or [_core(annotation)[0]]:
            values += (True, False) if alternative is bool else ()
            values += typing.get_args(alternative) if typing.get_origin(alternative) is Literal else ()
    return [_flow(value) for value in dict.fromkeys(values)]


def _members(section: Any) -> Mapping[str, FieldInfo]:
    """The keys of a section of the schema."""
    if issubclass(section, BaseModel):
        return section.model_fields
    hints = typing.get_type_hints(section)
    return {field.name: FieldInfo(annotation=hints[field.name], default=field.default) for field in fields(section)}


def _tag(section: type) -> str | None:
    """The name that tells a section from the others of its union."""
    default = getattr(section, "tag", getattr(section, "name", None))
    return default if isinstance(default, str) else None


def _sections(annotation: Any) -> Iterator[type]:
    """Every section of the schema that an annotation holds."""
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        if issubclass(annotation, BaseModel) or (is_dataclass(annotation) and annotation is not ObjectiveSpec):
            yield annotation
    elif typing.get_origin(annotation) is not Literal:
        for inner in typing.get_args(annotation):
            yield from _sections(inner)


def _alternatives(annotation: Any) -> list[Any]:
    """What a value may be where it may be of several types, null apart."""
    core = _core(annotation)[0]
    union = typing.get_origin(core) in (typing.Union, types.UnionType)
    return [_core(each)[0] for each in typing.get_args(core)] if union else []


def _core(annotation: Any) -> tuple[Any, bool]:
    """Take an annotation apart: without its metadata and without null, and whether null was allowed."""
    if typing.get_origin(annotation) is Annotated:
        return _core(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [each for each in typing.get_args(annotation) if each is not types.NoneType]
        if len(inner) < len(typing.get_args(annotation)):
            return (_core(inner[0])[0] if len(inner) == 1 else typing.Union[tuple(inner)]), True  # noqa: UP007
    return annotation, False


def _item(annotation: Any, part: str | int) -> Any:
    """The type of an entry of a list or a mapping."""
    core = _core(annotation)[0]
    inner = typing.get_args(core)
    if typing.get_origin(core) is tuple:
        return inner[0] if len(inner) == 2 and inner[1] is ... else inner[min(int(part), len(inner) - 1)]
    return inner[1] if typing.get_origin(core) is dict else None


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_SAMPLES = {int: "1", float: "1.0", bool: "true", str: "text"}


def _phrase(core: Any) -> str:
    inner = typing.get_args(core)
    if alternatives := _alternatives(core):
        return ", ".join(dict.fromkeys(_phrase(each).removeprefix("one of ") for each in alternatives))
    if typing.get_origin(core) is Literal:
        return f"one of {', '.join(inner)}"
    if typing.get_origin(core) is tuple:
        count = "" if inner[-1] is ... else f"{len(inner)} "
        return f"a list of {count}{_phrase(inner[0]).removeprefix('a ')}s"
    return _WORDS.get(core, "a mapping")


def _bounds(annotation: Any, field: FieldInfo | None) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    # pydantic lifts the metadata of a whole annotation into the field, and leaves that of a union's members.
    metadata = [*(field.metadata if field else ()), *_metadata(annotation)]
    bounds = {name: getattr(m, name) for m in metadata for name in signs if getattr(m, name, None) is not None}
    if bounds.get("ge") == SMALLEST:
        return " > 0 that float32 holds"
    if "ge" in bounds and "le" in bounds:
        return f" in [{bounds['ge']}, {bounds['le']}]"
    return "".join(f" {signs[name]} {bound}" for name, bound in bounds.items())


def _metadata(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((bounds for each in typing.get_args(annotation) if (bounds := _metadata(each))), ())
    return getattr(annotation, "__metadata__", ())


def _sample(core: Any) -> str:
    if core in _SAMPLES:
        return _SAMPLES[core]
    section = next(_sections(core), None)
    if section is None:
        return "null"
    members = _members(section).items()
    examples = ((name, SchemaLocation(name, [], field.annotation, field).example(None)) for name, field in members)
    return next(f"{{{name}: {example}}}" for name, example in examples if example != "null")


def _flow(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.dump(plain, default_flow_style=True).strip().removesuffix("...").strip()


def shown(value: Any) -> str:
    """Put a value into a message: as it is typed, and not too long."""
    try:
        text = str(value) if isinstance(value, Mapping | list | tuple | int | float) else repr(value)
    except ValueError:  # Python writes no number of thousands of digits.
        return "a number of thousands of digits"
    if value is None or value in (True, False):
        text = _flow(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
