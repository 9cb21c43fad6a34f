"""What an export is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tutelage.models import Classifier


@dataclass(frozen=True, kw_only=True)
class Source:
    """A student and what goes into its file besides the weights.

    Attributes:
        classifier: student, in evaluation mode, float32, on the CPU.
        inputs: some of the test set as the student reads them, ``(samples, ...)``: images float32 in [0, 1], or token
            ids int64 with `PADDING` behind a text.
        class_names: name of each of its classes; empty where the classes are tokens.
        metadata: JSON value that goes into the file: ``name``, ``class_names``, ``preprocessing`` (how an image or a
            text becomes an input), ``card``, ``version``.
        folder: folder of the run; ``None`` for a named network.
    """

    classifier: Classifier
    inputs: Tensor
    class_names: tuple[str, ...]
    metadata: Mapping[str, Any]
    folder: str | None = None
