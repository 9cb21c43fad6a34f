"""A file gets its name when it is whole and answers as its student does; otherwise nothing is left."""

import dataclasses
import errno
import os

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage.errors import InvalidValueError, RunError, StorageError
from tutelage.exports import registry, verify
from tutelage.exports.writing import write
from tutelage.runs.lock import BusyError


class Format:
    """A format that pickles, and whose file answers with another weight."""

    def __init__(self, factor=1.0, fails=None):
        self.factor, self.fails = factor, fails

    def write(self, source, to):
        to.write_bytes(b"half")
        if self.fails:
            raise self.fails
        self.graph = source.graph

    def reopen(self, to):
        with torch.no_grad():
            return lambda inputs: self.graph(inputs).detach() * self.factor


@pytest.fixture
def put(monkeypatch, make, tmp_path):
    """Return what writes the tiny student in such a format."""
    monkeypatch.setattr(verify, "MOST_CALLS", 2)

    def written(writer, module=None, **options):
        monkeypatch.setattr("tutelage.exports.writing.writer_of", lambda name: writer)
        return write(make(module), "torch-export", tmp_path / "a.pt2", **options)

    return written


def test_a_file_that_answers_alike_gets_its_name(put, tmp_path):
    made = put(Format())
    assert (made.samples, made.difference, made.agreement) == (37, 0, 1)
    assert made.student.accuracy == made.file.accuracy
    assert made.file.bytes == 4
    assert os.listdir(tmp_path) == ["a.pt2"]


def test_a_file_that_answers_otherwise_is_removed(put, tmp_path):
    with refused(RunError, "export to torch-export"):
        put(Format(1.01))
    assert os.listdir(tmp_path) == []
    assert put(Format(1 + 1e-5)).relative == pytest.approx(1e-5, rel=0.1)


def test_integers_that_answer_otherwise_are_warned_of(monkeypatch, make, tmp_path):
    monkeypatch.setattr(verify, "MOST_CALLS", 2)
    monkeypatch.setattr("tutelage.exports.writing.writer_of", lambda name: Format(-1.0))
    source = dataclasses.replace(make(), int8=True)
    with pytest.warns(UserWarning, match=r"int8: [0-9.]+% of the answers are others"):
        made = write(source, "onnx", tmp_path / "a.onnx")
    assert made.agreement < 0.9


def test_what_fails_leaves_nothing_and_keeps_what_was_there(put, tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with refused(StorageError, f"'{tmp_path / 'a.pt2'}'"):
        put(Format(fails=full))
    assert os.listdir(tmp_path) == []
    (tmp_path / "a.pt2").write_bytes(b"earlier")
    with pytest.raises(KeyboardInterrupt):
        put(Format(fails=KeyboardInterrupt()), force=True)
    assert (tmp_path / "a.pt2").read_bytes() == b"earlier"
    with refused(InvalidValueError, "output"):
        put(Format())
    assert (tmp_path / "a.pt2").read_bytes() == b"earlier"
    put(Format(), force=True)
    assert (tmp_path / "a.pt2").read_bytes() == b"half"
    assert os.listdir(tmp_path) == ["a.pt2"]


def test_what_a_kill_left_is_removed(put, tmp_path):
    (tmp_path / ".a.pt2.tmp").mkdir()
    (tmp_path / ".a.pt2.tmp" / "a.pt2").write_bytes(b"half")
    put(Format())
    assert os.listdir(tmp_path) == ["a.pt2"]


def test_a_student_that_is_never_the_same_twice_is_told_of(put):
    class Random(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.layer, self.factor = nn.Linear(16, 3), factor

        def forward(self, images):
            return self.layer(images.flatten(1)) + torch.rand(3) * self.factor

    with refused(RunError, "model object:Random", got="others"):
        put(Format(), Random(1.0))
    with refused(RunError, "model object:Random"):
        put(Format(), Random(float("nan")))


def test_a_file_of_a_fixed_batch_is_refused(put):
    class Fixed(Format):
        def reopen(self, to):
            def call(inputs):
                if len(inputs) != 1:
                    raise RuntimeError("got 3, expected 1")
                return self.graph(inputs)

            return call

    with refused(RunError, "export", got="3"):
        put(Fixed())


def test_a_folder_is_replaced_as_a_whole(put, monkeypatch, make, tmp_path):
    class Folder(Format):
        def write(self, source, to):
            to.mkdir()
            super().write(source, to / "weights")

    monkeypatch.setitem(registry.FORMATS, "folder", registry.Format(summary="", suffix=""))
    monkeypatch.setattr("tutelage.exports.writing.writer_of", lambda name: Folder())
    monkeypatch.setattr(verify, "MOST_CALLS", 1)
    for _ in range(2):
        made = write(make(), "folder", tmp_path / "a", force=True)
        assert made.file.bytes == 4
    (tmp_path / "a" / "weights").unlink()
    write(make(), "folder", tmp_path / "a", force=True)
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == ["weights"]


def test_two_exports_at_once_do_not_write_each_others_file(put, tmp_path):
    class Twice(Format):
        def write(self, source, to):
            super().write(source, to)
            with refused(BusyError, "output"):
                put(Format())
            assert to.read_bytes() == b"half"

    put(Twice())
    assert os.listdir(tmp_path) == ["a.pt2"]
