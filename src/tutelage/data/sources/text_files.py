"""``jsonl:`` and ``csv:``: files of texts, a sample per line or row, perhaps with an image each."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from tutelage import plain_files
from tutelage.data.build import Description, Raw, from_images
from tutelage.data.datasets import Splits
from tutelage.data.file_hashes import listing, named
from tutelage.data.image_files import FolderReader, pixels_key
from tutelage.data.names import text_file
from tutelage.data.shards import numbered
from tutelage.data.texts import Texts, beside_images, from_texts, open_tokenizer, read_texts
from tutelage.errors import InvalidValueError, one_line
from tutelage.images import MAX_BYTES
from tutelage.settings.data import DataSettings

Record = tuple[str, Mapping[str, Any] | ValueError]


def open_jsonl(path: str, settings: DataSettings, unlabelled: Texts | None = None) -> Splits:
    """Open a file of JSON objects, one per line; empty lines are skipped."""
    return _open("jsonl", path, settings, unlabelled)


def open_csv(path: str, settings: DataSettings, unlabelled: Texts | None = None) -> Splits:
    """Open a file of comma-separated values, whose first row names the columns."""
    return _open("csv", path, settings, unlabelled)


def unlabelled_texts(kind: str, path: str, settings: DataSettings) -> Texts:
    """Open a file of texts without labels: of kind ``texts`` with one per line, or of the other kinds by their column.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, no UTF-8 or damaged, or has no such column or no texts.
    """
    file = text_file(kind, path, what="data.source")
    content, source = _content(file, "data.source", settings), f"{kind}:{file.name}"
    rows = _records(kind, file, content, settings)
    return read_texts(rows, settings, label=None, source=source, tokenizer=None, labelled=False)


def _open(kind: str, path: str, settings: DataSettings, unlabelled: Texts | None) -> Splits:
    """Open a file, and the test file that the settings name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is too large, no UTF-8 or damaged, or its columns or labels do not fit.
    """
    if settings.is_pair:
        return _open_pairs(kind, path, settings)
    tokenizer = open_tokenizer(settings)
    label = settings.label
    if not (settings.per_token or settings.labels or settings.embedding):
        label = label or "label"

    def read(what: str, typed: str) -> Texts:
        file = text_file(kind, typed, what=what)
        records = _records(kind, file, _content(file, what, settings), settings)
        answers = settings.top_logprobs if what == "data.source" else None
        return read_texts(
            records, settings, label=label, source=f"{kind}:{file.name}", tokenizer=tokenizer, answers=answers
        )

    train = read("data.source", path)
    test = None if settings.test_shards is None else read("data.test_shards", settings.test_shards)
    source = f"{kind}:{Path(path).name}"
    return from_texts(train, test, settings, source=source, tokenizer=tokenizer, unlabelled=unlabelled)


def _open_pairs(kind: str, path: str, settings: DataSettings) -> Splits:
    """Open a file, and perhaps a test file, of texts and paths of images, which begin at the file's folder."""
    tokenizer, source = open_tokenizer(settings), f"{kind}:{Path(path).name}"
    texts, images = [], []
    for what, typed in (("data.source", path), ("data.test_shards", settings.test_shards)):
        if typed is None:
            continue
        file = text_file(kind, typed, what=what)
        records = [
            _with_path(each, settings) for each in _records(kind, file, _content(file, what, settings), settings)
        ]
        label, shown = settings.label or "label", f"{kind}:{file.name}"
        texts.append(read_texts(records, settings, label=label, source=shown, tokenizer=tokenizer))
        kept = [records[number][1] for number in texts[-1].kept(where for where, _ in records)]
        images.append(named(file.parent, [row[settings.image] for row in kept if isinstance(row, Mapping)]))
    names, labels = numbered([np.array(half.labels, np.str_) for half in texts], None, source=source)
    raws = [
        Raw(
            FolderReader(files.root, files.names),
            classes,
            cache(partial(listing, files, max_bytes=MAX_BYTES)),
            texts=np.arange(len(classes)),
        )
        for files, classes in zip(images, labels, strict=True)
    ]
    test = raws[1] if len(raws) > 1 else None
    description = Description(class_names=names, settings=settings, source=source)
    splits = from_images(raws[0], test, description, key=pixels_key(images, settings))
    return beside_images(splits, texts[0], texts[1] if test else None, settings, tokenizer=tokenizer)


def _with_path(record: Record, settings: DataSettings) -> Record:
    """Return a row, or that it names no image."""
    where, row = record
    if isinstance(row, ValueError):
        return record
    path = row.get(str(settings.image))
    try:
        if not isinstance(path, str) or not path or "\0" in path:
            raise ValueError("it is none")
        os.fsencode(path)
    except ValueError as error:
        columns = f", of the columns {', '.join(map(str, row))}" if settings.image not in row else ""
        return where, ValueError(f"no path of an image in {settings.image!r}: {one_line(error)}{columns}")
    return record


def _content(file: Path, what: str, settings: DataSettings) -> bytes:
    limit, size = settings.memory_limit_mb * 2**20, file.stat().st_size
    if size > limit:
        expected = f"at least the {-(-size // 2**20)} MiB of {file.name}, which is held in memory"
        instead = f"type data.memory_limit_mb={-(-size // 2**20)}"
        raise InvalidValueError("data.memory_limit_mb", expected, settings.memory_limit_mb, instead)
    try:
        return plain_files.read(file, limit).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InvalidValueError(
            what, "a file that can be read", f"{file.name}: {error.strerror}", "check it"
        ) from error


def json_lines(file: Path, content: bytes) -> Iterator[Record]:
    """Yield the JSON objects of a file, each with the place of its line."""
    for number, line in enumerate(io.BytesIO(content), start=1):
        if not line.strip():
            continue
        where = f"{file.name} line {number}"
        try:
            record = plain_files.parse_json(line.decode())
        except ValueError as error:
            yield where, ValueError(one_line(error))
            continue
        yield where, record if isinstance(record, dict) else ValueError("no JSON object")


def csv_rows(file: Path, content: bytes) -> Iterator[Record]:
    """Yield rows; a quote that is not closed damages all that follow, so nothing is read then."""
    try:
        text = content.decode()
        limit = csv.field_size_limit(len(text) + 1)  # One for the whole process, so it is put back.
        try:
            reader = csv.reader(io.StringIO(text, newline=""), strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
        finally:
            csv.field_size_limit(limit)
    except csv.Error as error:
        got = f"{file.name} line {reader.line_num}: {one_line(error)}"
        raise InvalidValueError("data.source", "comma-separated values", got, "mend the line") from error
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        got = f"{file.name} line {number}: {one_line(error)}"
        raise InvalidValueError("data.source", "text in UTF-8", got, "write the file in UTF-8") from error
    header = rows[0][1] if rows else []
    if len(set(header)) < len(header) or not all(header):
        got = f"{', '.join(header)} in {file.name}"
        raise InvalidValueError("data.source", "a first row of different column names", got, "write one into it")
    for number, row in rows[1:]:
        where = f"{file.name} line {number}"
        if len(row) == len(header):
            yield where, dict(zip(header, row, strict=True))
        else:
            yield where, ValueError(f"{len(row)} values for {len(header)} columns")


def _plain_lines(file: Path, content: bytes, column: str | None) -> Iterator[Record]:
    """Yield the lines that are not blank, each as the one column of a row."""
    for number, line in enumerate(io.BytesIO(content), start=1):
        where = f"{file.name} line {number}"
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield where, ValueError(one_line(error))
            continue
        if text.strip():
            yield where, {str(column): text}


def _records(kind: str, file: Path, content: bytes, settings: DataSettings) -> Iterator[Record]:
    match kind:
        case "texts":
            return _plain_lines(file, content, settings.text)
        case "jsonl":
            return json_lines(file, content)
    return csv_rows(file, content)
