"""Hostile files are refused with their name, at once; nothing of them runs, and what is printed of them is escaped."""

import hashlib
import os
import sys

import pytest
import torch
from tests.fuzz import hostile
from tests.fuzz.targets import RECORDS, STATE, TENSORS, Target, judge

from tutelage import config, models
from tutelage.config.schema import Recipe
from tutelage.models.io import read_card
from tutelage.report import reading, results
from tutelage.teacher_cache.cache import TeacherCache
from tutelage.training.checkpoints import Checkpoints

LARGE = {
    "a-file-of-20-megabytes",
    "keys-very-many",
    "an-archive-that-explodes",
    "names-very-many",
    "a-text-of-a-megabyte",
}


def _weights(path):
    state = models.read(path)
    network = torch.nn.Linear(4, 3)
    models.load(network, state, name="linear", path=path)
    return models.fingerprint(network)


def _checkpoint(path):
    for name, content in {"state.json": STATE, "tensors.safetensors": TENSORS}.items():
        if path.name != name:
            (path.parent / name).write_bytes(content)
    if path.name != "checksums":
        # What a writer of a hostile checkpoint would do: the checksums are right.
        regular = path.is_file() and not path.is_symlink()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if regular else "0" * 64
        other = "state.json" if path.name != "state.json" else "tensors.safetensors"
        lines = {path.name: digest, other: hashlib.sha256((path.parent / other).read_bytes()).hexdigest()}
        (path.parent / "checksums").write_text("".join(f"{value}  {name}\n" for name, value in lines.items()))
    return Checkpoints(path.parents[1]).load()


def _report(path):
    for name, content in RECORDS.items():
        if not os.path.lexists(path.parent / name):
            (path.parent / name).write_bytes(content)
    return reading.read(path.parent), results.table(results.rows(path.parent))


READERS = {
    "weights": _weights,
    "pickles": _weights,
    "recipes": lambda path: config.parse(Recipe, config.read(path), where=str(path)),
    "manifest": _report,
    "evaluation": _report,
    "card": lambda path: read_card(path.parent),
    "outputs": lambda path: TeacherCache(path.parent, {"classes": 3}, samples=4),
    "checksums": _checkpoint,
    "state": _checkpoint,
    "tensors": _checkpoint,
}


CASES = [
    pytest.param(kind, name, id=f"{kind}-{name}", marks=[pytest.mark.slow] if name in LARGE else [])
    for kind, (_, makers) in hostile.KINDS.items()
    for name in makers
]


@pytest.mark.skipif(sys.platform != "linux", reason="needs pipes and devices")
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_hostile_file_is_refused_or_read_as_what_it_is(kind, name, monkeypatch, tmp_path):
    file, makers = hostile.KINDS[kind]
    folder = tmp_path / "work"
    (folder / file).parent.mkdir(parents=True)
    monkeypatch.chdir(folder)
    makers[name](folder / file)
    shown = "00-000000003." if "checkpoints" in file else file
    reason = judge(Target(shown, lambda where, _: READERS[kind](where / file), ()), folder, b"")
    assert not (folder / hostile.CANARY).exists(), "the code in it ran"
    assert reason is None
