"""The command that prints what a network answers: a table, JSON or comma-separated values."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, TypeAlias

import typer

from tutelage import launcher, records
from tutelage.cli import common
from tutelage.errors import InvalidValueError, TutelageError, printable, raise_all

if TYPE_CHECKING:
    from tutelage.runs.predict import Answer, Predictor
    from tutelage.runs.samples import Samples

Format: TypeAlias = Literal["table", "json", "csv"]
_OF_ENDING = {".json": "json", ".jsonl": "json", ".csv": "csv"}
_SHOWN = 60
"""Characters of a text in a table."""
_SHOWN_NUMBERS = 4
_NUMBERS = frozenset({"probability", "share", "row", "rank", "label", "start", "end"})
_TEXTS = frozenset({"file", "text", "mask", "generated", "vector", "name"})
_NARROWEST = 12
_GAP = 2
"""Blanks between columns of a table."""
_WIDE = 4096
"""Columns of a line that goes to no terminal, besides those of the first lines."""


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run's folder, or a model's name.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE...",
            help="Pictures, texts (.txt; .csv and .jsonl with a text in each row), folders of those, or - for standard "
            "input: a text or a picture's path in each line, or one picture. With none, what is piped in.",
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="How many of the likeliest classes, labels or tokens to say.")
    ] = None,
    format_: Annotated[
        Format | None,
        typer.Option("--format", help="By default what --output ends in, or else a table; json has a line for each."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="A file to write instead of printing; of a network of pixels the folder of the masks."),
    ] = None,
    column: Annotated[str, typer.Option(help="The column of the texts in .csv and .jsonl files.")] = "text",
    generate: Annotated[
        int, typer.Option(help="How many tokens a language model is to write at most behind each text.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(help="Samples at once; 1 answers each line as it comes.")] = 64,
    on_corrupt: Annotated[
        Literal["skip", "stop"],
        typer.Option(help="What cannot be read is named and left out, and the exit code is 1; or stop at the first."),
    ] = "skip",
    best: Annotated[bool, typer.Option("--best", help="The run's best weights instead of its last.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    trust_code: common.TrustCode = False,
) -> None:
    """Print what a network answers: classes with their probabilities, or what else its task is.

    Of labels: those above 1/2, or the likeliest ones. Of pixels: the share of each class, and masks. Of an embedding:
    the vector. Of a language model: the next token, and texts that it writes. Of a network of tokens: a class for each.
    """
    trust = common.trusted(trust_code, [], [model])
    samples = _checked(
        model,
        files or [],
        column,
        top_k=top_k,
        generate=generate,
        batch_size=batch_size,
        device=device,
        best=best,
        trust=trust,
    )
    if output is not None and samples.reads(output):
        raise InvalidValueError("--output", "another file than those that are read", output, "name another")
    form = format_ or _OF_ENDING.get("" if output is None else output.suffix.lower(), "table")
    from tutelage.runs import predict as answering

    network = answering.network_of(model, device=device, best=best, trust_code=trust)
    is_of_pixels = network.card.task == answering.PIXELS
    if output is not None and output.exists() and output.is_dir() != is_of_pixels:
        expected, got = ("a folder for masks", "a file") if is_of_pixels else ("a file", "a folder")
        raise InvalidValueError("--output", expected, f"{output}, {got}", "name another")
    samples.masks = output if is_of_pixels else None
    predictor = answering.Predictor(network, top_k=top_k, generate=generate, masks=samples.masks)
    result = None if is_of_pixels or launcher.rank() > 0 else output
    counts = _Counts()
    with _opened(result, form) as stream:
        writer = _Writer(stream, form, _columns(predictor, samples), result, top=top_k is not None)
        try:
            for batch in answering.answers(predictor, samples, batch_size=batch_size):
                writer.write(_good(batch, counts, stop=on_corrupt == "stop"))
        except KeyboardInterrupt as error:
            error.add_note(f"{counts.good} answered")
            vars(error)["instead"] = "run the same command again to begin anew"
            raise
        if not counts.good and not counts.bad:
            left_out = f", as all that was there are {samples.notes()}" if samples.skipped else ""
            raise InvalidValueError("FILE", "samples", f"none{left_out}", "name others")
    _say(samples, counts, result, predictor)


@dataclass
class _Counts:
    """What became of the samples so far."""

    good: int = 0
    bad: int = 0
    long: int = 0
    with_frames: str | None = None  # the first one


def _checked(
    model: str,
    files: Sequence[str],
    column: str,
    *,
    top_k: int | None,
    generate: int,
    batch_size: int,
    device: str,
    best: bool,
    trust: bool | frozenset[str],
) -> Samples:
    """Return the samples that were typed; refuse what can be seen to be wrong without PyTorch, all of it at once."""
    from tutelage.config.schema import DEVICE
    from tutelage.models import names
    from tutelage.runs import samples as listing

    wrong: list[TutelageError] = []
    for name, number, least in (("--top-k", top_k, 1), ("--batch-size", batch_size, 1), ("--generate", generate, 0)):
        if number is not None and number < least:
            wrong.append(InvalidValueError(name, f"a whole number >= {least}", number, f"for example {name} 5"))
    if not re.match(DEVICE, device):
        wrong.append(InvalidValueError("--device", "auto, cpu, cuda or cuda:N", repr(device), "leave it out for auto"))
    samples = None
    try:
        names.check(model, trust_code=trust)
        if model.startswith(("cifar:", "mlp:")):
            instead = "name a run's folder, or a name with a tag such as timm:resnet18.a1_in1k"
            got = f"{model}, which has random weights"
            raise InvalidValueError("model", "a network that was trained", got, instead)
        if best and not (Path(model) / records.BEST).is_file():
            expected = f"{records.BEST} in a run's folder"
            raise InvalidValueError("--best", expected, f"{model} without it", "leave --best out")
        samples = listing.Samples(listing.typed_or_piped(files), listing.kind_of(model), column)
        wrong += samples.errors()
    except TutelageError as error:
        wrong.append(error)
    raise_all(wrong)
    assert samples is not None
    return samples


def _good(batch: Sequence[Answer], counts: _Counts, *, stop: bool) -> list[dict[str, Any]]:
    """Return the answers of a batch; name the samples that could not be read."""
    good = []
    for each in batch:
        if isinstance(each.fields, TutelageError):
            if stop:
                raise each.fields
            counts.bad += 1
            common.echo(f"tutelage: {each.fields}", err=True)
            continue
        counts.good += 1
        counts.long += each.is_long
        counts.with_frames = counts.with_frames or (each.name if each.more_frames else None)
        good.append(each.fields)
    return good


def _say(samples: Samples, counts: _Counts, result: Path | None, predictor: Predictor) -> None:
    """Say what became of the samples besides what was printed, and end with an error if some could not be read."""
    from tutelage.training.distributed import part

    notes = samples.notes()
    if notes:
        common.echo(f"skipped: {notes}", err=True)
    if counts.with_frames is not None:
        from tutelage.images import frames_note

        common.echo(f"note: {frames_note(counts.with_frames)}", err=True)
    if counts.long and predictor.text is not None:
        most, where = predictor.text.max_tokens, "last" if predictor.task == "next token" else "first"
        kind = f"texts of {most} tokens or more, of which the {where} {most} are read"
        common.echo(f"note: {kind}: {counts.long}", err=True)
    if result is not None:
        common.echo(f"{result}: {counts.good} answers", err=True)
    if counts.bad:
        common.echo(f"{counts.bad} of {counts.good + counts.bad} could not be read", err=True)
        part()  # Until the first process has printed all, none of several may end with an error.
        raise typer.Exit(common.FAILED)


# Rows


def _columns(predictor: Predictor, samples: Samples) -> list[str]:
    """Return the columns of a table or of comma-separated values."""
    whose = ["file", "row", "text"] if samples.has_rows else ["file"]
    ranked = ["rank"] if (predictor.top_k or 1) > 1 else []
    said = ["label", "name", "probability"]
    match predictor.task:
        case "embedding":
            return [*whose, *(f"v{k}" for k in range(predictor.network.card.classes))]
        case "pixels":
            return [*whose, *(["mask"] if predictor.masks else []), "label", "name", "share"]
        case "labels":
            return [*whose, *said, "holds"]
        case "tokens":
            return [*whose, "start", "end", "token", *ranked, *said]
        case "next token":
            return [*whose, *ranked, *said, *(["generated"] if predictor.generate else [])]
    return [*whose, *ranked, *said]


def _rows(answer: Mapping[str, Any], *, top: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of an answer, each a mapping of columns; ``top`` says whether a number of labels was asked for."""
    if "vector" in answer:
        yield {**answer, **{f"v{k}": value for k, value in enumerate(answer["vector"])}}
    elif "classes" in answer:
        yield from ({**answer, **each} for each in answer["classes"])
    elif "labels" in answer:
        shown = answer["top"] if top else answer["labels"] or answer["top"][:1]
        yield from ({**answer, **each, "holds": each in answer["labels"]} for each in shown)
    else:
        for token in answer.get("tokens", [{}]):
            for rank, each in enumerate({**answer, **token}["top"], start=1):
                yield {**answer, **token, **each, "rank": rank}


class _Writer:
    """Writes answers in a format, batch by batch.

    Args:
        stream: text stream that they are written to.
        form: a `Format`.
        columns: columns of a row.
        path: file that the stream is of; ``None`` for standard output.
        top: whether a number of labels was asked for.
    """

    def __init__(self, stream: TextIO, form: str, columns: Sequence[str], path: Path | None, *, top: bool) -> None:
        self.stream, self.form, self.columns, self.path, self.top = stream, form, columns, path, top
        self._widths: dict[str, int] = {}

    def write(self, answers: Sequence[dict[str, Any]]) -> None:
        """Write the answers of a batch."""
        if not answers:
            return
        with contextlib.nullcontext() if self.path is None else records.writing(self.path):
            if self.form == "json":
                self.stream.writelines(f"{_json(answer)}\n" for answer in answers)
            else:
                rows = [row for answer in answers for row in _rows(answer, top=self.top)]
                (self._write_csv if self.form == "csv" else self._write_table)(rows)
            self.stream.flush()

    def _write_csv(self, rows: Sequence[dict[str, Any]]) -> None:
        writer = csv.DictWriter(self.stream, self.columns, extrasaction="ignore", lineterminator="\n")
        if not self._widths:
            writer.writeheader()
            self._widths = dict.fromkeys(self.columns, 0)
        writer.writerows(rows)

    def _write_table(self, rows: Sequence[dict[str, Any]]) -> None:
        from rich.cells import cell_len
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        columns = [name for name in self.columns if not re.fullmatch(r"v\d+", name)]
        columns += ["vector"] if len(columns) < len(self.columns) else []
        cells = [[_cell(row, name) for name in columns] for row in rows]
        console = Console(file=self.stream, emoji=False, highlight=False)
        begins = not self._widths
        if begins:  # The later batches keep the columns of the first.
            self._widths = {
                name: max(cell_len(text) for text in (name, *(line[k] for line in cells)))
                for k, name in enumerate(columns)
            }
            if self.stream.isatty():
                _fit(self._widths, console.width - _GAP * (len(columns) - 1))
        if not self.stream.isatty():  # Nothing is folded in a line that goes to another program.
            console.width = sum(self._widths.values()) + _WIDE
        table = Table(box=None, show_header=begins, pad_edge=False, header_style="bold")
        for name, width in self._widths.items():
            justify: Literal["left", "right"] = "right" if name in _NUMBERS else "left"
            most = width if self.stream.isatty() else None
            table.add_column(name, justify=justify, overflow="fold", min_width=width, max_width=most)
        for line in cells:
            table.add_row(*map(Text, line))
        console.print(table)


def _fit(widths: dict[str, int], room: int) -> None:
    """Make columns of text narrower until all fit, the widest first; their cells are folded."""
    while sum(widths.values()) > room:
        widest = max(_TEXTS & widths.keys(), key=widths.__getitem__)
        if widths[widest] <= _NARROWEST:
            return
        widths[widest] -= 1


def _json(answer: Mapping[str, Any]) -> str:
    """Return an answer as JSON, with letters as they are unless UTF-8 has none for a part of a file's name."""
    text = json.dumps(answer, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(answer)
    return text


def _cell(row: Mapping[str, Any], name: str) -> str:
    """Return what a table shows of a row's column."""
    value = row.get(name)
    if isinstance(value, list):
        numbers = " ".join(f"{number:.3f}" for number in value[:_SHOWN_NUMBERS])
        return f"{numbers} ..., {len(value)} numbers" if len(value) > _SHOWN_NUMBERS else numbers
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if name == "share" else f"{value:.4f}"
    text = printable("" if value is None else str(value))
    return f"{text[: _SHOWN - 3]}..." if name in ("text", "generated") and len(text) > _SHOWN else text


@contextlib.contextmanager
def _opened(path: Path | None, form: str) -> Iterator[TextIO]:
    """Yield standard output, or a file that gets its name once all is written."""
    as_named = "surrogateescape"  # Names that are no UTF-8 stay as the system has them.
    if path is None:
        if form != "table" and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors=as_named, newline="")
        with contextlib.nullcontext(sys.stdout) if sys.stdout else open(os.devnull, "w", encoding="utf-8") as stream:
            yield stream
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with records.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = temporary.open("w", encoding="utf-8", errors=as_named, newline="")
    try:
        with stream:
            yield stream
            with records.writing(path):
                stream.flush()
                os.fsync(stream.fileno())
        with records.writing(path):
            temporary.replace(path)
            records.sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
