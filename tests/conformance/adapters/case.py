"""What an adapter reads of a row of recorded values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class Case:
    """What an adapter sees of a row.

    Attributes:
        inputs: tensors by name, whatever their role; students and parameters require a gradient.
        hyper: hyperparameters under the public code's own names.
        aux: further integers, such as the signs of singular vectors.
    """

    inputs: Mapping[str, Tensor]
    hyper: Mapping[str, Any]
    aux: Mapping[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        return self.inputs[name]


Adapter: TypeAlias = Callable[[Case], Tensor]
"""Computes a row's loss, a scalar."""


def kept(case: Case, values: Tensor) -> Tensor:
    """The mean over the positions that the mask keeps, of all sequences together; NaN where it keeps none."""
    return values[case["mask"] != 0].mean()
