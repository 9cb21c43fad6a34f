"""What is fuzzed: how each kind of input is read, the sound inputs that are mutated, and what holds of every answer."""

from __future__ import annotations

import hashlib
import io
import json
import traceback
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from tests._helpers import ROOT
from tests.fuzz.guard import Forbidden, guarded

from tutelage import config, images, models, records
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import InvalidValueError, TutelageError
from tutelage.models.io import read_card
from tutelage.report import reading, results
from tutelage.teacher_cache.cache import LOGITS, TeacherCache
from tutelage.training.checkpoints import Checkpoints

LONGEST = 2000
"""Characters of one error's message."""
KEY = {"teacher": "0123", "classes": 3, "data_seed": 0, "views": {"flip": False}}


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        file: what it is called where it is read; empty for what is typed.
        read: reads it, in a folder that holds what stands beside it.
        seeds: sound inputs.
        json: whether the input is JSON, so that values are replaced as well as bytes.
    """

    file: str
    read: Callable[[Path, bytes], object]
    seeds: tuple[bytes, ...]
    json: bool = False


def judge(target: Target, folder: Path, content: bytes) -> str | None:
    """Read an input; return what is wrong with what came of it, or nothing."""
    try:
        with guarded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(folder, content)
    except TutelageError as error:
        for part in error.errors:
            text = str(part)
            if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text):
                return f"control characters in {text[:200]!r}"
            if len(text) > LONGEST:
                return f"a message of {len(text)} characters: {text[:100]!r}"
            if not part.what or (target.file and target.file.rpartition(".")[0] not in text):
                return f"{target.file} is not named in {text[:200]!r}"
    except Forbidden as error:
        return str(error)
    except BaseException as error:  # noqa: BLE001  any other is what is looked for
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tutelage/" in frame.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "elsewhere"
        return f"{type(error).__name__} in {where}"
    return None


def _recipe(folder: Path, content: bytes) -> object:
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    value = config.read(path)
    return config.parse(Comparison if "objectives" in value else Recipe, value, where=str(path))


BASE = {"name": "base", "student": "mlp:8", "data": "digits", "stages": [{"epochs": 1}], "objective": ["kd"]}


def _overrides(folder: Path, content: bytes) -> object:
    typed = content.decode("utf-8", errors="replace").split("\n")
    return config.parse(Recipe, config.override(BASE, typed), overrides=typed)


def _checkpoint(file: str, *, sums: bool) -> Callable[[Path, bytes], object]:
    def read(folder: Path, content: bytes) -> object:
        place = folder / "checkpoints" / "00-000000003"
        place.mkdir(parents=True, exist_ok=True)
        files = {"tensors.safetensors": TENSORS, "state.json": STATE, file: content}
        digests = "".join(f"{hashlib.sha256(each).hexdigest()}  {name}\n" for name, each in files.items())
        if sums:
            files["checksums"] = digests.encode()
        for name, each in files.items():
            (place / name).write_bytes(each)
        checkpoints = Checkpoints(folder / "checkpoints")
        checkpoints.load()
        return checkpoints.describe_newest()

    return read


def _weights(name: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, content: bytes) -> object:
        (folder / name).write_bytes(content)
        state = models.read(folder / name)
        network = torch.nn.Linear(4, 3)
        models.load(network, state, name="linear", path=folder / name)
        return models.fingerprint(network)

    return read


def _record(name: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, content: bytes) -> object:
        for other, sound in RECORDS.items():
            (folder / other).write_bytes(sound)
        (folder / name).write_bytes(content)
        rows = results.rows(folder)
        return reading.read(folder), results.table(rows)

    return read


def _comparison(folder: Path, content: bytes) -> object:
    (folder / records.COMPARISON).write_bytes(content)
    return results.table(results.rows(folder))


def _card(folder: Path, content: bytes) -> object:
    (folder / records.CARD).write_bytes(content)
    return read_card(folder)


def _cache(folder: Path) -> TeacherCache:
    return TeacherCache(folder, KEY, samples=4, rows=4)


def _outputs(folder: Path, content: bytes) -> object:
    (folder / records.OUTPUTS).write_bytes(content)
    cache = _cache(folder)
    return list(cache.missing(0)), cache.form


def _chunk(folder: Path, content: bytes) -> object:
    (folder / "epoch-0000").mkdir(exist_ok=True)
    (folder / "epoch-0000" / "000000000.logits.safetensors").write_bytes(content)
    (folder / records.OUTPUTS).write_bytes(OUTPUTS)
    return _cache(folder).read(0, LOGITS)


def _image(folder: Path, content: bytes) -> object:
    path = folder / "image.png"
    path.write_bytes(content)
    try:
        with images.opened(path) as image:
            return images.decode(image, channels=3)
    except images.UnreadableError as error:  # which every data source tells with the picture's name
        raise InvalidValueError("data", "a readable image", f"image.png ({error})", "repair it") from error


def _picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((9, 7)).convert(mode).save(file, kind, **options)
    return file.getvalue()


TENSORS = safetensors.torch.save({"student.weight": torch.zeros(2, 3), "random": torch.zeros(4, dtype=torch.uint8)})
STATE = (json.dumps({"epoch": 1, "step": 3, "stage": 0, "history": [], "choices": {}, "to_beat": 0.5}) + "\n").encode()
SUMS = "".join(
    f"{hashlib.sha256(each).hexdigest()}  {name}\n"
    for name, each in (("tensors.safetensors", TENSORS), ("state.json", STATE))
).encode()
WEIGHTS = safetensors.torch.save({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)})
_pickled = io.BytesIO()
torch.save({"state_dict": {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, "epoch": 3}, _pickled)
_run = next((ROOT / "tests/fixtures/runs").rglob("manifest.json")).parent
RECORDS = {
    name: (_run / name).read_bytes()
    for name in (records.MANIFEST, records.METRICS, records.EVALUATION)
    if (_run / name).exists()
}
COMPARISON = json.dumps(
    {"name": "c", "baseline": "kd", "teacher": None, "entries": [{"folder": "kd-0", "objective": "kd", "seed": 0}]}
).encode()
CARD = json.dumps(
    {"card": {"name": "mlp:8", "classes": 3, "channels": 1, "image_size": [8, 8]}, "name": "mlp:8"}
).encode()
OUTPUTS = json.dumps(
    {"schema": 1, "samples": 4, "rows": 4, "digest": "blake2b", "key": KEY, "form": None, "speed": None}
).encode()
TOP = json.dumps({**json.loads(OUTPUTS), "form": {"kept": 2, "classes": 3, "gammas": [0.5], "bound": 0.1}}).encode()


def _chunk_seed() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        cache = _cache(Path(folder))
        cache.write(0, range(4), torch.arange(12.0).reshape(4, 3), {})
        return next(Path(folder).rglob("*.safetensors")).read_bytes()


RECIPES = tuple(path.read_bytes() for path in sorted((ROOT / "recipes").rglob("*.yaml")))
TARGETS: dict[str, Target] = {
    "recipes": Target("recipe.yaml", _recipe, RECIPES),
    "overrides": Target(
        "", _overrides, (b"epochs=3\noptimizer.lr=0.1", b"objective.kd.temperature=2\nstages.0.epochs=4")
    ),
    "tensors": Target("00-000000003.", _checkpoint("tensors.safetensors", sums=True), (TENSORS,)),
    "state": Target("00-000000003.", _checkpoint("state.json", sums=True), (STATE,), json=True),
    "checksums": Target("00-000000003.", _checkpoint("checksums", sums=False), (SUMS,)),
    "weights": Target("weights.safetensors", _weights("weights.safetensors"), (WEIGHTS,)),
    "pickles": Target("weights.pt", _weights("weights.pt"), (_pickled.getvalue(),)),
    "manifest": Target(records.MANIFEST, _record(records.MANIFEST), (RECORDS[records.MANIFEST],), json=True),
    "metrics": Target(records.METRICS, _record(records.METRICS), (RECORDS[records.METRICS],)),
    "evaluation": Target(records.EVALUATION, _record(records.EVALUATION), (RECORDS[records.EVALUATION],), json=True),
    "comparison": Target(records.COMPARISON, _comparison, (COMPARISON,), json=True),
    "card": Target(records.CARD, _card, (CARD,), json=True),
    "outputs": Target(records.OUTPUTS, _outputs, (OUTPUTS, TOP), json=True),
    "chunks": Target("000000000.logits.safetensors", _chunk, (_chunk_seed(),)),
    "images": Target(
        "image.png",
        _image,
        (
            _picture("PNG"),
            _picture("PNG", "P"),
            _picture("JPEG"),
            _picture("JPEG", "CMYK"),
            _picture("GIF", "P"),
            _picture("WEBP"),
            _picture("TIFF"),
            _picture("TIFF", compression="tiff_lzw"),
            _picture("BMP"),
            _picture("PPM"),
        ),
    ),
}
