"""Numbers that reach float32 tensors."""

from __future__ import annotations

SMALLEST, LARGEST = 1.2e-38, 3.4e38
"""Range of float32's normal numbers, rounded inwards: outside it a number becomes zero or infinity."""
FLOAT32 = f"0 or {SMALLEST} to {LARGEST} in size, as float32 holds"
"""The range in the words of an error."""
LARGEST_COUNT = 2**31 - 1
"""Largest number of epochs, samples or the like."""


def fits_float32(value: float) -> bool:
    """Return whether a number stays finite in float32, and above zero if it is; NaN does not."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST
