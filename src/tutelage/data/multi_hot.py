"""Labels of which several may hold for a sample: from columns or lists to ``(samples, labels)`` of 1, 0 and -100."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import InvalidValueError
from tutelage.types import UNLABELLED

Columns = str | tuple[str, ...]
"""One column of lists of labels, or a column of 0 and 1 for each label, as ``labels`` of the settings of data."""
MOST = 100_000
"""Number of labels that numbers alone may stand for."""
_KNOWN = {0: 0, 1: 1, "0": 0, "1": 1, "false": 0, "true": 1, None: UNLABELLED, -1: UNLABELLED, "": UNLABELLED}


def names_of(columns: Columns) -> tuple[str, ...]:
    """Return the names of the columns."""
    return (columns,) if isinstance(columns, str) else columns


def row_of(record: Mapping[str, Any], columns: Columns) -> list[Any] | None:
    """Return what a row says of its labels: 1, 0 or -100 for each column, or the list of those that hold.

    ``None`` if nothing is known.

    Raises:
        ValueError: a value is none of these, or a column is not there.
    """
    for column in names_of(columns):
        if column not in record:
            raise ValueError(f"no {column!r} among the columns {', '.join(map(str, record))}")
    if isinstance(columns, str):
        return _listed(record[columns], columns)
    return [_known(record[column], column) for column in columns]


def rows_of(values: Mapping[str, Sequence[Any]], columns: Columns, *, source: str) -> list[list[Any] | None]:
    """Return what `row_of` does of each row, given the values of each column.

    Raises:
        InvalidValueError: a value is none of these.
    """
    names, rows = names_of(columns), list[list[Any] | None]()
    try:
        for row in zip(*(values[name] for name in names), strict=True):
            rows.append(row_of(dict(zip(names, row, strict=True)), columns))
    except ValueError as error:
        instead = "mend it, or name other columns: data.labels=..."
        raise InvalidValueError("data.labels", f"labels in {source}", f"{error} in row {len(rows)}", instead) from error
    return rows


def _known(value: Any, column: str) -> int:
    """Return 1, 0 or -100."""
    try:
        known = _KNOWN.get(value.lower() if isinstance(value, str) else value)
    except TypeError:  # of a list
        known = None
    if known is None and value != value:  # NaN stands for an empty cell in many files.
        return UNLABELLED
    if known is None:
        raise ValueError(f"{value!r:.60} in {column!r} is not 0, 1 or empty")
    return known


def _listed(value: Any, column: str) -> list[Any] | None:
    """Return the labels that hold."""
    if value is None:
        return None
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{value!r:.60} in {column!r} is no list of labels")
    labels = list(value)
    for label in labels:
        named = isinstance(label, str) and bool(label)
        if not named and (isinstance(label, bool | str) or not isinstance(label, int) or not 0 <= label < MOST):
            raise ValueError(f"{label!r:.60} in {column!r} is neither a label's name nor its number")
    return labels


def table(
    halves: Sequence[Sequence[list[Any] | None]], columns: Columns, names: Sequence[str] | None, *, source: str
) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Return the labels' names, and for each half ``(samples, labels)``: 1 where a label holds, 0 or -100.

    Args:
        halves: what `row_of` returned for the training and then for the test samples.
        columns: where it was read.
        names: names of the labels that lists number, if they are known.
        source: the source, to show.

    Raises:
        InvalidValueError: no training sample has a label that holds, names and numbers are mixed, or a label is not
            among those of the training samples.
    """
    if isinstance(columns, str):
        return _of_lists(halves, columns, names, source=source)
    known = [
        np.array([[UNLABELLED] * len(columns) if row is None else row for row in half], np.int64) for half in halves
    ]
    _require_some(bool((known[0] == 1).any()), source)
    return list(columns), [half.reshape(-1, len(columns)) for half in known]


def _of_lists(
    halves: Sequence[Sequence[list[Any] | None]], column: str, names: Sequence[str] | None, *, source: str
) -> tuple[list[str], list[NDArray[np.int64]]]:
    values = [{label for row in half for label in row or ()} for half in halves]
    _require_some(bool(values[0]), source)
    kinds = {isinstance(label, str) for half in values for label in half}
    if len(kinds) > 1:
        instead = "write the one or the other"
        raise InvalidValueError("data.labels", f"names or numbers in {column!r} of {source}", "both", instead)
    if names is None:
        numbers = () if kinds == {True} else range(max(values[0]) + 1)
        names = sorted(values[0]) if kinds == {True} else [str(number) for number in numbers]
    place: dict[Any, int] = {name: k for k, name in enumerate(names)} if kinds == {True} else _numbers(len(names))
    known = []
    for number, half in enumerate(halves):
        if unknown := sorted(values[number] - place.keys()):
            expected = f"the labels of the training samples of {source}" if number else f"one of {len(names)} labels"
            got = f"{unknown[0]!r} ({len(unknown)} such)"
            raise InvalidValueError("data.labels", expected, got, "choose another column, or label all alike")
        labels = np.zeros((len(half), len(names)), np.int64)
        for row, held in enumerate(half):
            if held is None:
                labels[row] = UNLABELLED
            else:
                labels[row, [place[label] for label in held]] = 1
        known.append(labels)
    return list(names), known


def _numbers(count: int) -> dict[Any, int]:
    return {number: number for number in range(count)}


def _require_some(some: bool, source: str) -> None:
    if not some:
        instead = "type data.labels=... where they are under other names"
        raise InvalidValueError("data.labels", f"training samples in {source} with a label that holds", "none", instead)
