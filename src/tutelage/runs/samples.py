"""What is to be predicted: files, folders, rows of tables, lines of standard input. No torch."""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

from tutelage import plain_files, records
from tutelage.data.names import is_picture
from tutelage.errors import InvalidValueError, NotFoundError, StorageError, TutelageError, nearest, one_line
from tutelage.hub_files import folder_of
from tutelage.models.names import HF_KINDS

Kind: TypeAlias = Literal["images", "texts"]
"""What a network reads."""
STDIN = "-"
TABLES = (".csv", ".jsonl")
"""How names of files end that hold a text in each row."""
COLUMN = "text"
_TEXT = ".txt"
_PICTURES = (*(b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"RIFF", b"II*\0", b"MM\0*", b"P5\n", b"P6\n"),)
"""How files of pictures begin, where no path does."""


class Sample(NamedTuple):
    """An image or a text of which something is predicted.

    Attributes:
        file: path as it was typed or found, or ``-`` for standard input.
        source: image's or text's file, the bytes of an image, a text, or why there is none.
        row: number of the file's line, from 1, where a file has several texts.
        mask: path of its mask below the folder of all masks.
    """

    file: str
    source: Path | str | bytes | TutelageError
    row: int | None = None
    mask: str = ""

    @property
    def name(self) -> str:
        """What an error calls it."""
        file = "standard input" if self.file == STDIN else self.file
        return file if self.row is None else f"{file} line {self.row}"


def text_kind(path: str) -> str | None:
    """Return what a network ``hf:path`` classifies, as its configuration says, if it reads texts; else ``None``.

    Raises:
        TutelageError: its files are not there, or it has no head whose answers mean anything.
    """
    folder = folder_of(path, ("*.json", "*/config.json"), what="model")
    if (folder / "modules.json").is_file():
        return "sentence"
    value = records.read_json(folder / records.NETWORK, instead="name another folder")
    named = value.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else "none"
    for kind, ending in HF_KINDS.items():
        if ending and name.endswith(ending):
            return None if kind in ("image", "pixels") else kind
    expected = f"a network with a head, such as one {', '.join(filter(None, HF_KINDS.values()))}"
    raise InvalidValueError("model", expected, f"hf:{path}, {name}", "train it for a task first, and name the run")


def kind_of(model: str) -> Kind:
    """Return what a network reads whose name was checked.

    Raises:
        TutelageError: as of `text_kind`, or a run's card is damaged.
    """
    prefix, colon, path = model.partition(":")
    if colon and prefix == "hf":
        return "texts" if text_kind(path) else "images"
    if not (Path(model) / records.CARD).is_file():
        return "images"
    card = records.read_json(Path(model) / records.CARD, instead=records.how_to_restore(Path(model))).get("card")
    return "texts" if isinstance(card, dict) and card.get("max_tokens") else "images"


def typed_or_piped(files: Sequence[str]) -> list[str]:
    """Return what was typed, or standard input where nothing was and it is no terminal.

    Raises:
        InvalidValueError: there is neither, or standard input twice.
    """
    if not files:
        if sys.stdin is None or sys.stdin.isatty():
            instead = "type files or folders, or pipe texts or paths into the command"
            raise InvalidValueError("FILE", "files, folders or -", "none", instead)
        return [STDIN]
    if list(files).count(STDIN) > 1:
        raise InvalidValueError("FILE", "standard input once", "- twice", "leave one out")
    return list(files)


@dataclass
class Samples:
    """The samples that files stand for, in order; they are listed anew each time that they are iterated over.

    Attributes:
        files: paths of files and folders, or `STDIN`.
        kind: what the network reads.
        column: column of the texts in tables.
        masks: folder to which a mask of each image is to be written; ``None`` for none.
        skipped: what was left out so far, and how often.
    """

    files: Sequence[str]
    kind: Kind
    column: str = COLUMN
    masks: Path | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def has_rows(self) -> bool:
        """Whether some texts have no file of their own."""
        return self.kind == "texts" and any(file == STDIN or _is_table(file) for file in self.files)

    def reads(self, path: Path) -> bool:
        """Whether a file is one of those that are read."""
        if not path.is_file():
            return False
        of_kind = is_picture(path.name) if self.kind == "images" else path.suffix.lower() == _TEXT
        files = [Path(file) for file in self.files if file != STDIN]
        return any(
            file.resolve() in path.resolve().parents and of_kind if file.is_dir() else file.samefile(path)
            for file in files
        )

    def errors(self) -> Iterator[TutelageError]:
        """Yield what is wrong with the files as far as it can be seen without reading them."""
        for file in self.files:
            if file == STDIN:
                continue
            path = Path(file)
            try:
                is_there = path.exists()
            except (OSError, ValueError):  # a text in place of a name, which is too long for one
                is_there = False
            if not is_there:
                yield self._missing(path)
            elif path.is_dir():
                if not any(self._suits(name) for _, name in _walked(path, [])):
                    others = sum(1 for _ in _walked(path, []))
                    got, instead = f"{file}, which has {f'{others} others' if others else 'no files'}", "name another"
                    yield InvalidValueError("FILE", f"a folder with {self._wanted}", got, instead)
            elif self.kind == "images" and path.suffix.lower() in (_TEXT, *TABLES):
                instead = "name pictures; paths in a file are piped into the command: tutelage predict MODEL - < FILE"
                yield InvalidValueError("FILE", "pictures, as the model reads those", file, instead)
            elif self.kind == "texts" and is_picture(path.name):
                yield InvalidValueError("FILE", "texts, as the model reads those", file, f"name {self._wanted}")

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples.

        Raises:
            TutelageError: a table cannot be read, or masks would be written beside the images.
        """
        of_mask: dict[str, str] = {}
        for sample in self._listed():
            if self.masks is None:
                yield sample
                continue
            if isinstance(sample.source, Path):
                folder = (self.masks / sample.mask).parent.resolve()
                if folder == sample.source.parent.resolve():
                    instead = "name another folder, which is made if it is missing"
                    raise InvalidValueError("--output", "a folder without the pictures", str(folder), instead)
            if (other := of_mask.setdefault(sample.mask, sample.file)) != sample.file:
                expected = f"a mask of its own, but {sample.mask} is that of {other}"
                error = InvalidValueError(sample.file, expected, "the same name", "predict it by itself")
                sample = sample._replace(source=error)
            yield sample

    def _listed(self) -> Iterator[Sample]:
        for file in self.files:
            if file == STDIN:
                yield from self._of_stdin()
            elif Path(file).is_dir():
                yield from self._of_folder(Path(file))
            elif self.kind == "texts" and _is_table(file):
                yield from self._of_table(Path(file))
            else:
                yield Sample(file, Path(file), mask=_mask(PurePath(Path(file).name)))

    def notes(self) -> str:
        """Return what was left out, in a line; nothing if that is nothing."""
        return ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for what, count in self.skipped.items())

    @property
    def _wanted(self) -> str:
        return "pictures" if self.kind == "images" else f"{_TEXT}, {' or '.join(TABLES)} files"

    def _suits(self, name: str) -> bool:
        return is_picture(name) if self.kind == "images" else name.lower().endswith(_TEXT)

    def _missing(self, path: Path) -> TutelageError:
        names: list[str] = []
        with suppress(OSError, ValueError):
            names = [name for name in os.listdir(path.parent) if self._suits(name) and name != path.name]
        itself = f"; for a text itself type echo '...' | tutelage predict MODEL {STDIN}"
        instead = nearest(path.name, names, otherwise="check the path") + (itself if self.kind == "texts" else "")
        return NotFoundError("FILE", "a file or a folder", f"{str(path)!r}, which is not there", instead)

    def _of_folder(self, folder: Path) -> Iterator[Sample]:
        refused: list[OSError] = []
        for path, name in _walked(folder, refused):
            if self._suits(name):
                yield Sample(str(path), path, mask=_mask(path.relative_to(folder)))
            else:
                self.skipped["other file"] += 1
        for error in refused:
            yield Sample(str(error.filename), _refused(str(error.filename), error))

    def _of_table(self, path: Path) -> Iterator[Sample]:
        from tutelage.data.sources import text_files

        read = text_files.csv_rows if path.suffix.lower() == ".csv" else text_files.json_lines
        try:
            content = plain_files.read(path).removeprefix(b"\xef\xbb\xbf")
            rows = list(read(path, content))
        except OSError as error:
            yield Sample(str(path), _refused(str(path), error))
            return
        except TutelageError as error:
            raise error.renamed(lambda _: str(path)) from error
        columns = {str(name): None for _, row in rows[:1] if not isinstance(row, ValueError) for name in row}
        if columns and self.column not in columns:
            expected = f"a column of {path}, which has {', '.join(columns)}"
            instead = nearest(self.column, columns, otherwise=f"type --column {next(iter(columns))}")
            raise InvalidValueError("--column", expected, repr(self.column), instead)
        for where, row in rows:
            number = int(where.rpartition(" ")[2])
            value = row if isinstance(row, ValueError) else row.get(self.column)
            source: str | TutelageError
            if isinstance(value, str) and value.strip():
                source = value
            else:
                got = one_line(value) if isinstance(value, ValueError) else "none" if not value else repr(value)
                source = InvalidValueError(f"{path} line {number}", f"a text in {self.column!r}", got, "mend the line")
            yield Sample(str(path), source, row=number)

    def _of_stdin(self) -> Iterator[Sample]:
        with _standard_input() as stream:
            if self.kind == "images" and _begins_picture(stream):
                yield Sample(STDIN, stream.read(), mask=_mask(PurePath("stdin")))
                return
            for number, line in enumerate(stream, start=1):
                content = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip(b"\r\n")
                if not content.strip():
                    self.skipped["blank line"] += 1
                elif self.kind == "images":
                    if b"\0" in content:
                        instead = "pipe a JPEG, PNG, BMP, PPM, GIF, WEBP or TIFF, or paths"
                        raise InvalidValueError(
                            "standard input", "a picture, or a path in each line", "other bytes", instead
                        )
                    path = Path(os.fsdecode(content))
                    if os.path.isdir(path):
                        self.skipped["folder"] += 1
                    else:
                        yield Sample(str(path), path, mask=_mask(PurePath(path.name)))
                else:
                    yield Sample(STDIN, _decoded(content, number), row=number)


def _is_table(file: str) -> bool:
    return file.lower().endswith(TABLES)


def _mask(path: PurePath) -> str:
    return str(path.with_suffix(".png")) if path.name else ""


def _refused(name: str, error: OSError) -> StorageError:
    return StorageError(name, "a file that can be read", error.strerror or one_line(error), "check its permissions")


def _decoded(line: bytes, number: int) -> str | TutelageError:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        return InvalidValueError(f"standard input line {number}", "UTF-8", one_line(error), "write it in UTF-8")


def _walked(folder: Path, refused: list[OSError]) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder and their names, sorted in each; what is hidden is left out."""
    for parent, folders, names in os.walk(folder, onerror=refused.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent) / name, name


def _standard_input() -> BinaryIO:
    """Open standard input anew: the interpreter's own may not be in use by another thread when it ends."""
    try:
        return open(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, ValueError, AttributeError):  # none, a closed one, or a stand-in of Python's
        return getattr(sys.stdin, "buffer", None) or io.BytesIO()


def _begins_picture(stream: Any) -> bool:
    first = stream.peek(16) if hasattr(stream, "peek") else stream.getvalue()
    return first.startswith(_PICTURES) or (first.startswith(b"BM") and b"\0" in first[:16])


def batched(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Yield samples in batches, of which the last may be smaller."""
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
