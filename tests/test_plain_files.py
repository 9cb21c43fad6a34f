"""Files that somebody hands in: what is read of them, and what is refused."""

import os

import pytest
from tests._helpers.refusals import refused

from tutelage import plain_files, records
from tutelage.errors import InvalidValueError


def test_a_pipe_a_device_and_a_folder_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    for path, kind in ((pipe, "pipe"), ("/dev/zero", "device"), (tmp_path, "folder")):
        with refused(InvalidValueError, str(path), got=kind):
            plain_files.read(path, 10)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="a system without /proc")
def test_a_file_with_more_in_it_than_its_size_is_refused():
    with refused(InvalidValueError, "/proc/self/maps"):
        plain_files.read("/proc/self/maps", 2**20)


def test_a_file_is_read_up_to_the_limit(tmp_path):
    (path := tmp_path / "file").write_bytes(b"12345")
    assert plain_files.read(path, 5) == b"12345"
    with refused(InvalidValueError, str(path), got=5):
        plain_files.read(path, 4)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100 + "1" + "}" * 100, '{"a": NaN}', "[Infinity]", '{"a": 1, "a": 2}', "1" * 5000],
)
def test_json_that_parsers_disagree_about_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"nested|NaN|Infinity|twice|digits"):
        plain_files.parse_json(text)
    (path := tmp_path / "manifest.json").write_text(text)
    with refused(records.DamagedError, str(path)):
        records.read_json(path)


def test_json_within_the_limits_is_read():
    assert plain_files.parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert plain_files.parse_json("[" * plain_files.DEPTH + "]" * plain_files.DEPTH)
