"""What a prediction's files, folders, tables and lines stand for, before any network is loaded."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from tests._helpers.refusals import refused

from tutelage.errors import InvalidValueError, NotFoundError, TutelageError
from tutelage.runs import samples
from tutelage.runs.samples import Samples


@pytest.fixture(autouse=True)
def in_a_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pipe(monkeypatch):
    """Let standard input hold some bytes."""

    def hold(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return hold


def write(path, content="x"):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def test_folders_are_read_in_order_without_what_is_hidden():
    for name in ("b.png", "a b.JPG", "ä.webp", "sub/c.tif", ".x.png", ".hidden/y.png", "notes.txt", "sub/more.md"):
        write(f"pictures/{name}")
    listed = Samples(["pictures"], "images")
    assert [each.file for each in listed] == [
        os.path.join("pictures", *name.split("/")) for name in ("a b.JPG", "b.png", "ä.webp", "sub/c.tif")
    ]
    assert listed.notes() == "2 other files"
    assert [each.file for each in Samples(["pictures"], "texts")] == [os.path.join("pictures", "notes.txt")]


def test_lines_are_texts_or_paths(pipe):
    lines = '\ufeffone\r\n\n  \n- two, "three"\n'.encode() + b"caf\xe9\n"
    pipe(lines)
    listed = Samples(["-"], "texts")
    first, second, third = listed
    assert (first.source, first.row, second.source, second.row) == ("one", 1, '- two, "three"', 4)
    assert isinstance(third.source, TutelageError)
    assert "line 5" in str(third.source)
    assert listed.notes() == "2 blank lines"
    os.mkdir("folder")
    pipe(b"a b.png\r\nfolder\n")
    listed = Samples(["-"], "images")
    assert [each.file for each in listed] == ["a b.png"]
    assert listed.notes() == "1 folder"


@pytest.mark.parametrize("begins", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM\x5a\0\0\0\0\0"])
def test_a_picture_may_come_in_itself(begins, pipe):
    pipe(begins + b"\n\0more")
    (picture,) = Samples(["-"], "images")
    assert picture.source == begins + b"\n\0more"
    pipe(b"\0\1\2")
    with refused(InvalidValueError, "standard input"):
        list(Samples(["-"], "images"))


def test_each_row_of_a_table_is_a_text():
    write("r.csv", 'id,review\n1,"a, b\nc"\n2,\n')
    write("r.jsonl", '{"review": "d"}\n{"review": 3}\nno\n')
    rows = list(Samples(["r.csv", "r.jsonl"], "texts", "review"))
    assert [(each.row, each.source) for each in rows if isinstance(each.source, str)] == [(3, "a, b\nc"), (1, "d")]
    assert [str(each.source).partition(":")[0] for each in rows if not isinstance(each.source, str)] == [
        "r.csv line 4",
        "r.jsonl line 2",
        "r.jsonl line 3",
    ]
    with refused(InvalidValueError, "--column", got="'reviw'", suggests="review"):
        list(Samples(["r.csv"], "texts", "reviw"))
    write("open.csv", 'review\n"a\n')
    with refused(InvalidValueError, "open.csv"):
        list(Samples(["open.csv"], "texts", "review"))


def test_files_that_suit_nothing_are_refused():
    for name in ("a.txt", "rose.png", "none/x.doc"):
        write(name)
    os.mkdir("empty")
    wrong = ["a.txt", "roze.png", "none", "empty", "rose.png", "x" * 5000]
    found = list(Samples(wrong, "images").errors())
    assert [type(each) for each in found] == [InvalidValueError, NotFoundError, *[InvalidValueError] * 2, NotFoundError]
    assert "rose.png" in found[1].instead
    (of_picture,) = Samples(["rose.png", "a.txt"], "texts").errors()
    assert "rose.png" in of_picture.got
    (text,) = Samples(["a fine day"], "texts").errors()
    assert "echo" in text.instead


def test_standard_input_is_read_once_and_not_from_a_terminal(monkeypatch, pipe):
    pipe(b"")
    assert samples.typed_or_piped([]) == ["-"]
    with refused(InvalidValueError, "FILE", got="twice"):
        samples.typed_or_piped(["-", "a", "-"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with refused(InvalidValueError, "FILE", got="none"):
        samples.typed_or_piped([])
    monkeypatch.setattr(sys, "stdin", None)
    with refused(InvalidValueError, "FILE", got="none"):
        samples.typed_or_piped([])


def test_no_mask_replaces_a_picture_or_another_mask(tmp_path):
    for name in ("p/a/1.png", "p/b/1.jpg", "p/2.jpg"):
        write(name)
    assert [each.mask for each in Samples(["p"], "images", masks=tmp_path / "m")] == [
        "2.png",
        os.path.join("a", "1.png"),
        os.path.join("b", "1.png"),
    ]
    first, second = Samples(["p/a/1.png", "p/b/1.jpg"], "images", masks=tmp_path / "m")
    assert not isinstance(first.source, TutelageError)
    assert isinstance(second.source, TutelageError)
    for files in (["p"], ["p/2.jpg"]):
        with refused(InvalidValueError, "--output"):
            list(Samples(files, "images", masks=tmp_path / "p"))


def test_what_is_read_is_not_to_be_written():
    for name in ("p/1.png", "p/notes.csv", "p/a.txt", "2.png"):
        write(name)
    for files, kind, read in (
        (["p"], "images", {"p/1.png"}),
        (["p"], "texts", {"p/a.txt"}),
        (["2.png", "-"], "images", {"2.png"}),
        (["p/notes.csv"], "texts", {"p/notes.csv"}),
    ):
        listed = Samples(files, kind)
        found = {
            name for name in ("p/1.png", "p/notes.csv", "p/a.txt", "2.png", "new", "p") if listed.reads(Path(name))
        }
        assert found == read
