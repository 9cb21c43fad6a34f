"""``parquet:``: Parquet files with a column of pictures, read row group by row group, without a copy on disk."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tutelage.data import multi_hot, shards
from tutelage.data.build import Arranged, UnlabelledImages, from_shards
from tutelage.data.datasets import Splits
from tutelage.data.shards import Content, Shard
from tutelage.errors import InvalidValueError, missing_extra, one_line
from tutelage.images import Encoded, UnreadableError
from tutelage.settings.data import DataSettings

HELD = 2**29
"""Most bytes of row groups that a process keeps; a larger one is kept alone."""


class _Groups:
    """The row groups that were read last, of one process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_Groups], tuple[()]]:
        return _Groups, ()  # Another process reads its own.

    def read(self, shard: Shard, number: int, group: int, column: str) -> Any:
        """Return the pictures of a row group, an Arrow array of bytes; what was not used for longest is let go."""
        with self._lock:
            if (number, group) in self._kept:
                self._kept.move_to_end((number, group))
                return self._kept[number, group]
        import pyarrow.compute
        import pyarrow.parquet

        with shards.opened(shard) as file:
            # In this thread alone, as Arrow's own do not survive the fork of a worker.
            rows = pyarrow.parquet.ParquetFile(file).read_row_group(group, columns=[column], use_threads=False)
        values = rows.column(0)
        if "." in column:
            values = pyarrow.compute.struct_field(values, column.rpartition(".")[2])
        with self._lock:
            self._kept[number, group] = values
            while len(self._kept) > 1 and self.held > HELD:
                self._kept.popitem(last=False)
        return values

    @property
    def held(self) -> int:
        """Bytes of the row groups that are kept."""
        return sum(values.nbytes for values in self._kept.values())


@dataclass(frozen=True)
class RowReader:
    """Pictures of a column of Parquet files."""

    shards: tuple[Shard, ...]
    column: str  # ``image``, or ``image.bytes`` where it is a struct
    shard: NDArray[np.int32]  # shard of each row
    group: NDArray[np.int32]  # its row group in the shard
    row: NDArray[np.int32]  # its row in the group
    first: NDArray[np.int64]  # number of rows before each row group of a row, in the shard
    groups: _Groups = field(default_factory=_Groups)

    def __len__(self) -> int:
        return len(self.shard)

    def name(self, position: int) -> str:
        """Return the row's shard and number."""
        return f"{self.shards[self.shard[position]].name} row {self.first[position] + self.row[position]}"

    def encoded(self, positions: Sequence[int]) -> list[Encoded]:
        """Return the pictures' bytes."""
        found: dict[int, Encoded] = {}
        rows = sorted((int(self.shard[p]), int(self.group[p]), int(p)) for p in positions)
        for (number, group), chosen in groupby(rows, key=lambda row: row[:2]):
            try:
                values = self.groups.read(self.shards[number], number, group, self.column)
                for *_, position in chosen:
                    content = values[int(self.row[position])].as_py()
                    found[position] = UnreadableError("no bytes in this row") if content is None else content
            except (OSError, ValueError, IndexError) as error:
                if isinstance(error, shards.FAILURES):
                    raise
                reason = UnreadableError(f"its row group cannot be read: {one_line(error)}")
                found.update((int(p), reason) for p in positions if (self.shard[p], self.group[p]) == (number, group))
        return [found[int(p)] for p in positions]


def open_parquet(pattern: str, settings: DataSettings, unlabelled: UnlabelledImages | None = None) -> Splits:
    """Open Parquet files by a pattern; `data.names.shard_locations` says how one is written.

    The columns are those of `hf:`: pictures as bytes, or as a struct with ``bytes``, and class numbers; names too.

    Raises:
        ImportError: if the ``pyarrow`` library is missing.
        FileNotFoundError: there is no such file.
        ValueError: a file is no Parquet file, there is no such column, or labels do not fit.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise missing_extra("data.source", "pyarrow for parquet:", "hf", error) from error
    return from_shards(
        pattern, settings, kind="parquet", form="parquet", read=_read, arrange=_arrange, unlabelled=unlabelled
    )


def _arrange(half: Sequence[Shard], found: Sequence[Content], settings: DataSettings) -> Arranged:
    columns = {content["column"].tobytes().decode() for content in found}
    if len(columns) > 1:
        raise InvalidValueError("data.image", "one column of all shards", ", ".join(sorted(columns)), "convert them")
    counts = np.concatenate([content["groups"] for content in found])
    of_shard = np.array([len(content["groups"]) for content in found])
    groups = np.repeat(np.arange(len(counts)), counts)
    shard = np.repeat(np.arange(len(half), dtype=np.int32), of_shard)[groups]
    within = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    firsts = [np.cumsum(content["groups"]) - content["groups"] for content in found]
    reader = RowReader(
        tuple(half),
        columns.pop(),
        shard,
        np.concatenate([np.arange(count, dtype=np.int32) for count in of_shard])[groups],
        within.astype(np.int32),
        np.concatenate(firsts)[groups],
    )
    return reader, np.stack([shard, groups], axis=1), ()


def _read(shard: Shard, file: BinaryIO, *, settings: DataSettings) -> Content:
    """Return the rows of a shard's row groups, their labels, the classes' names, and the column of pictures."""
    import pyarrow.compute
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        described = _described(table.schema_arrow)
        image, label = _columns(table.schema_arrow, described, settings, shard)
        names = [label] if settings.labels is None else list(multi_hot.names_of(settings.labels))
        read = table.read(columns=names, use_threads=False)
        sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        got, instead = f"{shard.name} ({one_line(error)})", "copy it again"
        raise InvalidValueError("data.source", "a Parquet file", got, instead) from error
    found: Content = {
        "groups": np.array(sizes, np.int64),
        "names": np.frombuffer(json.dumps(_names(described.get(names[0], {}))).encode(), np.uint8),
        "column": np.frombuffer(image.encode(), np.uint8),
    }
    if settings.labels is not None:
        values = {name: read.column(name).to_pylist() for name in names}
        rows = multi_hot.rows_of(values, settings.labels, source=shard.name)
        return found | {"rows": np.frombuffer(json.dumps(rows).encode(), np.uint8)}
    labels = read.column(label)
    texts = labels.cast(pyarrow.string()).fill_null("")
    if (pyarrow.compute.max(pyarrow.compute.binary_length(texts)).as_py() or 0) > shards.LONGEST:
        got, instead = f"longer texts in the column {label} of {shard.name}", "name another label: data.label=..."
        raise InvalidValueError("data.label", f"classes of at most {shards.LONGEST} bytes", got, instead)
    encoded = np.char.encode(texts.to_numpy().astype(np.str_)) if len(texts) else np.array([], np.bytes_)
    return found | {"labels": encoded}


def _names(described: dict[str, Any]) -> Any:
    """Return the classes' names of a column, or of the items of its lists, if they are noted."""
    feature = described.get("feature")
    return (feature if isinstance(feature, dict) else described).get("names")


def _described(schema: Any) -> dict[str, Any]:
    """Return what the library ``datasets`` has noted of the columns, if it wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _columns(schema: Any, described: dict[str, Any], settings: DataSettings, shard: Shard) -> tuple[str, str]:
    """Return the columns of pictures' bytes and of labels."""
    import pyarrow

    def holds_bytes(kind: Any) -> bool:
        return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

    pictures, labels = {}, []
    for column in schema:
        kind = column.type
        if holds_bytes(kind):
            pictures[column.name] = column.name
        elif pyarrow.types.is_struct(kind) and any(f.name == "bytes" and holds_bytes(f.type) for f in kind):
            pictures[column.name] = f"{column.name}.bytes"
        elif pyarrow.types.is_integer(kind) or pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
            labels.append(column.name)
    classes = [name for name in labels if described.get(name, {}).get("_type") == "ClassLabel"]
    image = _chosen("image", settings.image, list(pictures), list(pictures), schema, shard)
    if settings.labels is not None:
        for name in multi_hot.names_of(settings.labels):
            if name not in schema.names:
                got, instead = f"{name!r} in {shard.name}", f"the columns are {', '.join(schema.names)}"
                raise InvalidValueError("data.labels", "columns of labels", got, instead)
        return pictures[image], ""
    label = _chosen("label", settings.label, labels, classes or labels, schema, shard)
    return pictures[image], label


def _chosen(
    key: str, chosen: str | None, suitable: Sequence[str], likely: Sequence[str], schema: Any, shard: Shard
) -> str:
    """Return the chosen column; if none is chosen, the only likely one."""
    if chosen in suitable:
        return str(chosen)
    if chosen is None and len(likely) == 1:
        return likely[0]
    kind = {"image": "pictures' bytes", "label": "class numbers or names"}[key]
    expected = f"one column of {kind}" if chosen is None else f"a column of {kind}"
    got = f"{len(likely)} in {shard.name}" if chosen is None else f"{chosen!r} in {shard.name}"
    keys = " or ".join(f"data.{key}={name}" for name in suitable)
    instead = f"type {keys}" if suitable else "none of them will do: choose other files"
    raise InvalidValueError(f"data.{key}", expected, got, f"the columns are {', '.join(schema.names)}; {instead}")
