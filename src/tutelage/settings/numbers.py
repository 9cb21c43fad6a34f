"""Numbers that reach float32 tensors."""

from __future__ import annotations

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


class ShortFor:
    """Metadata of a field that takes a text alone, or a number, for a mapping with it under one key."""

    def __init__(self, key: str, *, number: bool = False) -> None:
        self.key = key
        self.kind = (int, float) if number else str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self._written_out, handler(source))

    def _written_out(self, value: Any) -> Any:
        return {self.key: value} if isinstance(value, self.kind) and not isinstance(value, bool) else value


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


NUMBER = _Number()
Whole = Annotated[int, NUMBER]
"""Whole number, which may be written with a point: 1e3 is 1000."""
Real = Annotated[float, NUMBER]
"""Number."""
