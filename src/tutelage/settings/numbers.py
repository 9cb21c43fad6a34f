"""Numbers that reach float32 tensors."""

from __future__ import annotations

import functools
import math
import numbers
import operator
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

SMALLEST, LARGEST = 1.2e-38, 3.4e38
"""Range of float32's normal numbers, rounded inwards: outside it a number becomes zero or infinity."""
FLOAT32 = f"that float32 holds ({SMALLEST} to {LARGEST} in size)"
"""The range in the words of an error."""
LARGEST_COUNT = 2**31 - 1
"""Largest number of epochs, samples or the like."""


def fits_float32(value: float) -> bool:
    """Return whether a number stays finite in float32, and above zero if it is; NaN does not."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


SHORT_FOR = "shortFor"
"""Keyword that `docs/recipe_schema.py` puts the short form in the place of."""


class ShortFor:
    """Metadata of a field that takes a text alone, or a number, for a mapping with it under one key."""

    def __init__(self, key: str, *, number: bool = False) -> None:
        self.key = key
        self.kind = (int, float) if number else str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self._written_out, handler(source))

    def __get_pydantic_json_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), SHORT_FOR: self.key}

    def _written_out(self, value: Any) -> Any:
        return {self.key: value} if isinstance(value, self.kind) and not isinstance(value, bool) else value


class InSchema:
    """Metadata of a field: what the JSON Schema of recipes says beyond its type."""

    def __init__(self, **keywords: Any) -> None:
        self.keywords = keywords

    def __get_pydantic_json_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), **self.keywords}


class _Number:
    """Metadata of a field that takes no text and no truth value for a number, as pydantic does by default."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(_a_number, handler(source))


def _a_number(value: Any) -> Any:
    from pydantic_core import PydanticCustomError

    if isinstance(value, bool | str | bytes):
        raise PydanticCustomError("number_type", "a number")
    return value


class _TruthValue:
    """Metadata of a field that takes no text and no number for a truth value, as pydantic does by default."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        strict = core_schema.bool_schema(strict=True)
        return core_schema.no_info_before_validator_function(_plain_truth, strict)

    def __get_pydantic_json_schema__(self, source: Any, handler: Any) -> Any:
        return {"type": "boolean"}


def _plain_truth(value: Any) -> Any:
    """Return NumPy's truth values as Python's, and all else as it is."""
    return bool(value) if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_") else value


NUMBER = _Number()
Whole = Annotated[int, NUMBER]
"""Whole number, which may be written with a point: 1e3 is 1000."""
Real = Annotated[float, NUMBER]
"""Number."""
Truth = Annotated[bool, _TruthValue()]
"""True or false."""


@dataclass(frozen=True)
class Range:
    """Metadata of a field that a section checks itself: the numbers it takes, in words and as the JSON Schema has them.

    Attributes:
        words: what is expected.
        least: smallest number.
        above: number below all.
        most: largest number.
        below: number above all.
        or_zero: whether 0 is taken, too.
        count: fewest and most numbers of a list.
        example: what to type instead; ``None`` for the field's default.
    """

    words: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    or_zero: bool = False
    count: tuple[int, int] | None = None
    example: Any = None

    def holds(self, value: Any) -> bool:
        """Return whether a number, or each of several, is inside."""
        if self.count is not None or isinstance(value, (tuple, list)):
            fewest, most = self.count or (0, math.inf)
            several = isinstance(value, (tuple, list)) and fewest <= len(value) <= most
            return several and all(map(self._inside, value))
        return self._inside(value)

    def _inside(self, value: Any) -> bool:
        bounds = (
            (operator.ge, self.least),
            (operator.gt, self.above),
            (operator.le, self.most),
            (operator.lt, self.below),
        )
        return isinstance(value, numbers.Real) and (
            all(bound is None or compare(value, bound) for compare, bound in bounds) or (self.or_zero and value == 0)
        )

    def __get_pydantic_json_schema__(self, source: Any, handler: Any) -> Any:
        return self._bounded(handler(source))

    def _bounded(self, schema: dict[str, Any]) -> dict[str, Any]:
        if schema["type"] == "array":
            size = {} if self.count is None else {"minItems": self.count[0], "maxItems": self.count[1]}
            inner: dict[str, Any] = {
                key: [self._bounded(each) for each in schema[key]]
                if key == "prefixItems"
                else self._bounded(schema[key])
                for key in ("items", "prefixItems")
                if key in schema
            }
            return {**schema, **size, **inner}
        whole = schema["type"] == "integer"
        least = SMALLEST if self.above == 0 and not whole else self.least
        most = (LARGEST_COUNT if whole else LARGEST) if self.most is None and self.below is None else self.most
        bounds = {"minimum": least, "maximum": most, "exclusiveMaximum": self.below}
        inside = {**schema, **{key: bound for key, bound in bounds.items() if bound is not None}}
        return {"anyOf": [{"const": 0}, inside]} if self.or_zero else inside


@functools.cache
def _ranges(kind: Any) -> dict[str, tuple[Range, bool]]:
    """Return the range of each field that has one, and whether the field may be ``None``."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        name: (found, type(None) in typing.get_args(hint)) for name, hint in hints.items() if (found := _range_in(hint))
    }


def _range_in(hint: Any) -> Range | None:
    known = (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range))
    return next(known, None) or next((found for each in typing.get_args(hint) if (found := _range_in(each))), None)


def ranged(section: Any) -> Iterator[tuple[str, Any, Range]]:
    """Yield name, value and range of the fields that have one, but of those that may be, and are, ``None``."""
    kind: Any = type(section)
    for name, (known, optional) in _ranges(kind).items():
        if (value := getattr(section, name)) is not None or not optional:
            yield name, value, known
