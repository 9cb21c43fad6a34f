"""Records: what reaches the disk, whole or not at all."""

from __future__ import annotations

import json
import math
import os
import stat

import pytest

from tutelage import records


def epoch(number, *, test=0.5, validation=None, stage=0):
    def held(name, accuracy):
        return {
            "set": name,
            "accuracy": accuracy,
            "loss": 1.0,
            "entropy": 1.0,
            "kl_to_target": None,
            "agreement": None,
            "samples": 9,
        }

    return {
        "stage": stage,
        "epoch": number,
        "step": 10 * number,
        "learning_rate": 0.1,
        "train": {
            "loss": 1.0,
            "terms": {"ce": 1.0},
            "accuracy": 0.5,
            "entropy": 1.0,
            "kl_to_target": None,
            "agreement": None,
            "samples": 9,
        },
        "validation": validation if validation is None else held("validation", validation),
        "test": held("test", test),
        "images_per_second": 1.0,
        "seconds": 1.0,
        "memory_mb": None,
        "skipped_steps": 0,
    }


def test_json_goes_there_and_back(tmp_path):
    value = {"a": [1, 2.5, None, True], "name": "Rényi"}
    records.write_json(tmp_path / "x.json", value)
    assert records.read_json(tmp_path / "x.json") == value
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_strict_json_has_not_is_refused_and_the_old_file_stays(tmp_path, number):
    records.write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(ValueError, match="Out of range float values"):
        records.write_json(tmp_path / "x.json", {"new": number})
    assert records.read_json(tmp_path / "x.json") == {"old": 1}
    with pytest.raises(ValueError, match="Out of range float values"):
        records.append_epoch(tmp_path, epoch(1, test=number))
    assert list(records.read_epochs(tmp_path)) == []


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moment):
    path = tmp_path / "x"
    records.write_bytes(path, b"old")

    def fail(*_, **__):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "fsync", fail) if moment == "fsync" else patch.setattr(records.Path, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            records.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]
    records.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_content_and_the_folder_are_synced_before_and_after_the_name_changes(tmp_path, monkeypatch):
    seen = []
    sync, change = os.fsync, records.Path.replace
    monkeypatch.setattr(
        records.os,
        "fsync",
        lambda fd: (seen.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"), sync(fd)),
    )
    monkeypatch.setattr(records.Path, "replace", lambda self, to: (seen.append("rename"), change(self, to)))
    records.write_bytes(tmp_path / "x", b"new")
    assert seen == ["file", "rename", "folder"]


def test_epochs_are_appended_and_read_in_order(tmp_path):
    for number in (1, 2, 3):
        records.append_epoch(tmp_path, epoch(number))
    assert [e["epoch"] for e in records.read_epochs(tmp_path)] == [1, 2, 3]
    lines = (tmp_path / records.METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 30]


def test_a_folder_without_metrics_has_no_epochs(tmp_path):
    assert list(records.read_epochs(tmp_path)) == []


@pytest.mark.parametrize("kept", [1, 40, 200, -2])
def test_a_torn_last_line_is_passed_over(tmp_path, kept):
    for number in (1, 2):
        records.append_epoch(tmp_path, epoch(number))
    path = tmp_path / records.METRICS
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:kept])
    assert [e["epoch"] for e in records.read_epochs(tmp_path)] == [1]


def test_a_line_torn_inside_a_letter_is_passed_over(tmp_path):
    path = tmp_path / records.METRICS
    path.write_bytes(json.dumps(epoch(1)).encode() + b"\n" + '{"stage": "é'.encode()[:-1])
    assert [e["epoch"] for e in records.read_epochs(tmp_path)] == [1]


def test_a_resumed_run_goes_on_from_a_whole_line(tmp_path):
    for number in (1, 2):
        records.append_epoch(tmp_path, epoch(number))
    with (tmp_path / records.METRICS).open("ab") as file:
        file.write(b'{"stage": 0, "epo')
    records.rewrite_epochs(tmp_path, list(records.read_epochs(tmp_path))[:1])
    records.append_epoch(tmp_path, epoch(2))
    assert [e["epoch"] for e in records.read_epochs(tmp_path)] == [1, 2]


def test_the_best_epoch_is_the_first_of_the_highest():
    epochs = [epoch(1, test=0.5), epoch(2, test=0.7), epoch(3, test=0.7), epoch(4, test=0.6, stage=1)]
    assert records.best_epoch(epochs, "test") == {"set": "test", "accuracy": 0.7, "epoch": 2, "stage": 0}


def test_the_best_epoch_is_of_the_set_that_is_asked_for():
    epochs = [epoch(1, test=0.9, validation=0.1), epoch(2, test=0.1, validation=0.2)]
    assert records.best_epoch(epochs, "validation") == {"set": "validation", "accuracy": 0.2, "epoch": 2, "stage": 0}


def test_without_accuracies_there_is_no_best_epoch():
    assert records.best_epoch([], "test") is None
    assert records.best_epoch([epoch(1)], "validation") is None
    assert records.best_epoch([epoch(1, test=None)], "test") is None
    assert records.best_epoch([epoch(1, test=None), epoch(2, test=0.0)], "test")["epoch"] == 2


def test_the_schema_of_an_epoch_is_what_is_written():
    assert set(epoch(1)) == set(records.Epoch.__annotations__) - {"overflowed_steps"}
    assert set(epoch(1)["train"]) == set(records.TrainMeans.__annotations__)
    assert set(epoch(1)["test"]) == set(records.EvaluationMeans.__annotations__)
