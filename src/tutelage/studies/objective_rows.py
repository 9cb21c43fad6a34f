"""What is said of each objective, from a generated table: `studies.overview` makes it, this reads it without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

ROWS = Path(__file__).parent / "objective_rows.json"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one preset; cells are empty where nothing was measured."""

    name: str
    signature: str  # with the defaults of its arguments
    formula: str  # the first line of its docstring
    paper: str
    needs: str  # what its terms read
    time: str  # of a training step, over that with KD
    memory: str  # kept for the backward pass, over that with KD
    tables: str  # of the paper of TTM and WTTM that it is in


def read() -> list[Row]:
    """Return a row for each of the package's presets."""
    return [Row(**row) for row in json.loads(ROWS.read_text(encoding="utf-8"))]
