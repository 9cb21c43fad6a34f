"""A first recipe, written from the answers to a few questions: its lines with what each is. No torch."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tutelage import config, records
from tutelage.config import files
from tutelage.config.schema import Recipe
from tutelage.data import names as data_names
from tutelage.errors import InvalidValueError, MissingExtraError, NotFoundError, TutelageError
from tutelage.models import names as model_names
from tutelage.runs import preflight

SMALL = 64
"""Longest side of images, pixels, up to which the networks for small images are proposed."""
MOST_EPOCHS = 2**31 - 1
BERT = "hf:bert"
"""A type of network without weights of its own, which needs a configuration."""
BERTS = {
    "teacher": "{num_hidden_layers: 4, hidden_size: 128, num_attention_heads: 4, intermediate_size: 512}",
    "student": "{num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 2, intermediate_size: 256}",
}
TEXT_COLUMNS = ("text", "sentence", "review", "content", "document", "body", "title")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "stars", "rating", "sentiment")
COLUMN = 46
"""Where comments begin behind a line, if it is no longer."""


@dataclass(frozen=True)
class Facts:
    """What a source's files say of its samples, as far as they are here to be asked.

    Attributes:
        source: with its kind.
        kind: ``images``, ``small images``, ``texts`` or ``digits``.
        columns: of a table of texts: that of the text, that of the label, and all of them.
        labels: of images that have several columns of classes: these, first the one with most classes.
        size: longest side of the first small image, pixels.
    """

    source: str
    kind: str
    columns: tuple[str, str, tuple[str, ...]] | None = None
    labels: tuple[str, ...] = ()
    size: int = 32


def example_source() -> str:
    """Return the source that is proposed, which needs no file and no network; empty where its library is missing."""
    try:
        data_names.require_digits()
    except MissingExtraError:
        return ""
    return "digits"


def read_source(answer: str) -> Facts:
    """Return what is known of data by a source's name, or the path of a folder or a file.

    Raises:
        TutelageError: such as an `InvalidValueError` or a `NotFoundError`: there is none.
    """
    answer = answer.strip()
    source = answer
    if answer and Path(answer).expanduser().exists() and answer not in dict(data_names.available()):
        source = data_names.of_path(answer) or ""
        if not source:
            expected = (
                "a folder with one of images for each class, one of Parquet files, or a .csv or .jsonl file of texts"
            )
            raise InvalidValueError(
                "data", expected, answer, "type tutelage list data to see all kinds, such as hf:NAME"
            )
    elif re.fullmatch(r"(?:[A-Za-z]:)?[^:]*[./\\][^:]*", answer) and not data_names.elsewhere(answer):
        of_hub = re.fullmatch(r"[\w-]+/[\w.-]+", answer)
        instead = f"check the path{f', or type hf:{answer} for a data set of the Hub' if of_hub else ''}"
        raise NotFoundError("data", "a folder or a file", f"{answer}, which does not exist", instead)
    try:
        data_names.check(source)
    except TutelageError as error:
        instead = error.instead.replace("data.source=", "")  # An answer has no key.
        raise type(error)("data", error.expected, error.got, instead) from None
    kind, name = data_names.parse_source(source)
    if kind in ("csv", "jsonl"):
        return Facts(source, "texts", _columns(kind, Path(name).expanduser()))
    if kind == "digits":
        return Facts(source, "digits")
    if kind == "masks":
        raise InvalidValueError("data", "samples of one class each", source, "start from recipes/segmentation.yaml")
    if kind == "hf":
        folder = data_names.local_folder(name)
        return _of_parquet(source, folder) if folder else Facts(source, "images")
    small = kind == "torchvision" and name not in ("Food101", "Flowers102", "Imagenette", "StanfordCars", "DTD", "PCAM")
    if kind == "imagefolder":
        root = Path(name).expanduser()
        below = root / "train" if (root / "train").is_dir() else root
        first = next((each for each in below.glob("*/*") if data_names.is_picture(each.name)), None)
        size = _side(first.read_bytes()) if first else None
        return Facts(source, "small images", size=size) if size and size <= SMALL else Facts(source, "images")
    return Facts(source, "small images" if small else "images")


def _columns(kind: str, file: Path) -> tuple[str, str, tuple[str, ...]]:
    """Return the column of the texts of a table, that of the labels, and all of them, from its first lines."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if kind == "csv":
                names = tuple(next(csv.reader(lines), ()))
            else:
                row = json.loads(next((line for line in lines if line.strip()), "{}"))
                names = tuple(row) if isinstance(row, dict) else ()
    except (ValueError, csv.Error) as error:
        raise InvalidValueError("data", f"a {kind} file in UTF-8", f"{file}: {error}", "check the file") from None
    return _chosen(names, file)


def _chosen(names: Sequence[str], where: Path) -> tuple[str, str, tuple[str, ...]]:
    if len(names) < 2:
        got = f"{', '.join(names) or 'none'} in {where}"
        raise InvalidValueError("data", "a column of texts and one of labels", got, "name them in its first line")
    folded = {name.casefold(): name for name in names}
    label = next((folded[name] for name in LABEL_COLUMNS if name in folded), names[-1])
    text = next((folded[name] for name in TEXT_COLUMNS if name in folded and folded[name] != label), "")
    return text or next(name for name in names if name != label), label, tuple(names)


def _of_parquet(source: str, folder: Path) -> Facts:
    """Return what the first of a folder's Parquet files says: texts or images, and how large."""
    file = next((each for pattern in ("*.parquet", "*/*.parquet") for each in sorted(folder.glob(pattern))), None)
    if file is None:
        raise NotFoundError("data", "a folder of Parquet files", source, "name a folder with files of them")
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq

        parquet = pq.ParquetFile(file)
        images = [
            field.name
            for field in parquet.schema_arrow
            if pa.types.is_struct(field.type)
            and any(field.type.field(k).name == "bytes" for k in range(field.type.num_fields))
        ]
        if images:
            batch = next(parquet.iter_batches(batch_size=1, columns=images[:1]))
            size = _side(batch.to_pylist()[0][images[0]]["bytes"])
            labels = _label_columns(parquet.schema_arrow.metadata or {})
            if size and size <= SMALL:
                return Facts(source, "small images", labels=labels, size=size)
            return Facts(source, "images", labels=labels)
        return Facts(source, "texts", _chosen(parquet.schema_arrow.names, file))
    except ImportError:  # Without its library the files say nothing; the dry run names the extra.
        return Facts(source, "images")


def _label_columns(described: Mapping[bytes, bytes]) -> tuple[str, ...]:
    """Return the columns of classes by the description that the library datasets writes, with most classes first."""
    try:
        features = json.loads(described.get(b"huggingface", b"{}"))["info"]["features"]
        classes = {name: len(of["names"]) for name, of in features.items() if of.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, AttributeError, TypeError):  # It is another program's, or none.
        return ()
    return tuple(sorted(classes, key=lambda name: -classes[name]))


def _side(encoded: bytes | None) -> int | None:
    """Return the longest side of a picture, pixels; none if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded or b"")) as picture:
            return max(picture.size)
    except OSError:
        return None


def defaults(facts: Facts) -> dict[str, str]:
    """Return the teacher, the student and the epochs that are proposed for data."""
    has_timm = True
    try:
        metadata.version("timm")
    except metadata.PackageNotFoundError:
        has_timm = False
    large = "timm:resnet50.a1_in1k" if has_timm else "torchvision:resnet50.IMAGENET1K_V2"
    teacher, student, epochs = {
        "digits": ("cifar:resnet8", "mlp:16", 40),
        "small images": ("cifar:resnet56", "cifar:resnet20", 60),
        "images": (large, "torchvision:mobilenet_v3_small.IMAGENET1K_V1", 40),
        "texts": ("hf:google-bert/bert-base-uncased", BERT, 5),
    }[facts.kind]
    return {"teacher": teacher, "student": student, "epochs": str(epochs)}


def check_network(key: str, answer: str) -> str:
    """Return a network's name; refuse one that no source has, or a student that is not trained."""
    answer = answer.strip()
    if key == "student" and model_names.is_exported(answer):
        raise InvalidValueError(key, "a network to train", f"{answer}, a graph in a file", "type the name of a network")
    try:
        # The code of a file is run by the command that reads the recipe, which asks for consent.
        model_names.check(answer, trust_code=True)
    except TutelageError as error:
        raise error.renamed(lambda what: key if what == "model" else what) from None
    return answer


def check_epochs(answer: str) -> int:
    """Return a number of epochs."""
    if not re.fullmatch(r"[0-9]{1,10}", answer.strip(), re.ASCII) or not 1 <= int(answer) <= MOST_EPOCHS:
        raise InvalidValueError("epochs", "a whole number >= 1", repr(answer), "type 40, for example")
    return int(answer)


def is_ready(teacher: str) -> bool:
    """Whether a teacher teaches as it is: a run's folder, or a file with a trained network."""
    return model_names.is_exported(teacher) or ":" not in teacher or Path(teacher).exists()


def save(out: Path, text: str) -> None:
    """Write a recipe that can be read, whole or not at all."""
    recipe = config.parse(Recipe, files.load(text), where=str(out))
    preflight.check_names(recipe, trust_code=True)
    records.write_bytes(out, text.encode())


def write(out: Path, facts: Facts, *, teacher: str, student: str, epochs: int) -> str:
    """Return the commented recipe, which tells editors where they look for the JSON Schema of recipes."""
    lines = [*_lines(out, facts, teacher=teacher, student=student, epochs=epochs)]
    beside = out.parent / files.JSON_SCHEMA.name
    head = [
        f"# tutelage distill {out} --dry-run",
        "#",
        "# Written by tutelage init. Any key can be typed behind the recipe, as in epochs=5 data.validation=0.2;",
        "# docs/recipes.md has them all. The numbers are usual ones, not the result of a search.",
        f"# yaml-language-server: $schema={beside.name}",
    ]
    body = [f"{line:<{COLUMN}}  # {comment}" if comment else line for line, comment in lines]
    return "\n".join([*head, *body]) + "\n"


def _lines(out: Path, facts: Facts, *, teacher: str, student: str, epochs: int) -> Iterator[tuple[str, str]]:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", out.stem).strip("-.") or "student"
    yield f"name: {name}", f"the run's folder: runs/{name}"
    yield "data:", ""
    of_hub = facts.source.startswith("hf:") and not Path(facts.source[3:]).expanduser().is_dir()
    other = "for texts: docs/text.md has their keys" if of_hub else "tutelage list data shows other kinds"
    yield f"  source: {_quoted(facts.source)}", other
    yield from _of_data(facts, teacher)
    rate = {"digits": ("0.003", "0.003"), "small images": ("0.001", "0.001"), "images": ("1e-4", "5e-4")}
    slow, fast = rate.get(facts.kind, ("1e-3" if teacher == BERT else "5e-5", "1e-3" if student == BERT else "1e-4"))
    if is_ready(teacher):
        yield f"teacher: {_quoted(teacher)}", "it is not changed; [runs/a, runs/b] is a team of two"
    else:
        yield "teacher:", "or the folder of a run: runs/NAME"
        yield "  train:", "before the student, on the same data"
        yield from _network("    model", "teacher", teacher, _weights_of(teacher))
        yield f"    epochs: {max(1, (epochs + 1) // 2)}", ""
        yield f"    optimizer: {{name: adamw, lr: {slow}}}", ""
        yield f"    schedule: {_schedule((epochs + 1) // 2)}", ""
    yield from _network("student", "student", student, "tutelage list models PATTERN shows names")
    gamma = "{wttm: {gamma: 0.5, beta: 1}}"
    yield f"objective: {gamma}", "or kd, ttm, dkd, ...: tutelage list objectives"
    yield f"epochs: {epochs}", "passes over the training set; 1 to try it"
    yield f"batch_size: {16 if facts.kind == 'texts' else 64}", "smaller where memory runs out"
    yield f"optimizer: {{name: adamw, lr: {fast}}}", "or sgd, at about lr: 0.05 and batch_size: 64"
    yield f"schedule: {_schedule(epochs)}", "the rate falls to 0; warmup in epochs"


def _of_data(facts: Facts, teacher: str) -> Iterator[tuple[str, str]]:
    if facts.kind == "texts" and facts.columns:
        text, label, known = facts.columns
        others = ", ".join(map(str, itertools.islice(known, 8)))
        yield f"  text: {_quoted(text)}", f"the column of texts, of {others}"
        yield f"  label: {_quoted(label)}", "the column of classes"
        published = teacher.partition(":")[2] if teacher.startswith("hf:") and teacher != BERT else ""
        yield (
            (f"  tokenizer: {_quoted(published)}", "that of the teacher")
            if published
            else ("  tokenizer: {bpe: 2000}", "learned from the texts; or a model's: google-bert/bert-base-uncased")
        )
        yield "  max_tokens: 64", "longer texts are cut"
    if len(facts.labels) > 1:
        yield f"  label: {_quoted(facts.labels[0])}", f"the column of classes, of {', '.join(facts.labels)}"
    yield "  validation: 0.1", "a tenth is held out, to choose settings by"
    if facts.kind == "images":
        yield "  random_resized_crop: true", "a new part of each image in each epoch"
        yield "  flip: true", "false where left and right differ, as in writing"
        yield f"  workers: {min(4, os.cpu_count() or 1)}", "processes that read images, at most one a core"
    elif facts.kind == "small images":
        padding = max(1, facts.size // 8)
        yield f"  crop_padding: {padding}", f"moves each image by up to {padding} pixel{'s' * (padding > 1)}"
        yield "  flip: true", "false where left and right differ, as in writing"


def _network(line: str, key: str, name: str, comment: str) -> Iterator[tuple[str, str]]:
    if name != BERT:
        yield f"{line}: {_quoted(name)}", comment
        return
    inner = " " * (len(line) - len(line.lstrip()) + 2)
    yield f"{line}:", comment
    yield f"{inner}name: {name}", ""
    yield f"{inner}config: {BERTS[key]}", ""


def _weights_of(name: str) -> str:
    source, _, path = name.partition(":")
    if source in ("timm", "torchvision"):
        return "the tag behind the dot names its weights" if "." in path else "without a tag its weights are random"
    return "with published weights" if source == "hf" and name != BERT else "from random weights"


def _schedule(epochs: int) -> str:
    return "{name: cosine, warmup: 1}" if epochs > 2 else "{name: cosine}"


def _quoted(text: str) -> str:
    """Return text as a value of YAML: plain where it reads as that text."""
    plain = re.fullmatch(r"[A-Za-z_./~][\w./:@+~-]*", text, re.ASCII) and not text.endswith(":")
    return (
        text
        if plain and text.casefold() not in ("true", "false", "null", "yes", "no", "on", "off", "~")
        else json.dumps(text)
    )
