"""Records: what reaches the disk, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import stat

import numpy as np
import pytest
from tests._helpers.refusals import refused

from tutelage import plain_files, records
from tutelage.errors import InvalidValueError, NotFoundError, StorageError


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


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[1]", 9999 * b"["])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with refused(records.DamagedError, str(path), suggests="restore"):
        records.read_json(path)


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


def test_a_full_disk_is_said_with_the_file_the_room_and_a_remedy_and_the_old_file_stays(small_disk):
    path = small_disk / "runs" / "x"
    records.write_bytes(path, b"old")
    with pytest.raises(StorageError) as caught:
        records.write_bytes(path, bytes(2**20))
    error = caught.value
    assert (error.exit_code, error.errno, error.strerror) == (1, errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(path) in error.what
    assert re.fullmatch(r"No space left on device, 0\.\d MB free", error.got)
    assert "free some space" in error.instead
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["x"]
    records.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_line_that_a_full_disk_cut_off_is_passed_over(small_disk):
    records.append_epoch(small_disk, epoch(1))
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))

    def append_more():
        for number in range(2, 12):
            records.append_epoch(small_disk, epoch(number))

    with pytest.raises(StorageError) as caught:
        append_more()
    assert records.METRICS in caught.value.what
    ballast.unlink()
    whole = list(records.read_epochs(small_disk))
    assert [e["epoch"] for e in whole] == list(range(1, len(whole) + 1))
    records.rewrite_epochs(small_disk, whole)
    records.append_epoch(small_disk, epoch(len(whole) + 1))
    assert len(list(records.read_epochs(small_disk))) == len(whole) + 1


def test_what_cannot_be_written_to_is_said_and_where_to_write_instead(read_only):
    for write in (
        lambda: records.write_json(read_only / "a" / "x", {}),
        lambda: records.append_epoch(read_only, epoch(1)),
    ):
        with pytest.raises(StorageError) as caught:
            write()
        assert str(read_only) in caught.value.what
        assert "--runs" in caught.value.instead


def test_a_file_in_the_place_of_a_folder_is_the_users_mistake(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(InvalidValueError):
        records.write_json(tmp_path / "runs" / "a" / "x.json", {})


@pytest.mark.parametrize("refusals", [1, 3, 4])
def test_a_file_that_another_process_reads_is_replaced_a_moment_later(tmp_path, monkeypatch, refusals):
    """Windows refuses to replace a file while it is open."""
    path, attempts, pauses, replace = tmp_path / "x", [], [], records.Path.replace
    records.write_bytes(path, b"old")

    def refuses(new, target):
        attempts.append(target)
        if len(attempts) <= refusals:
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(new, target)

    monkeypatch.setattr(records.Path, "replace", refuses)
    monkeypatch.setattr(records.time, "sleep", pauses.append)
    for_ever = refusals > len(records.PAUSES)
    with pytest.raises(StorageError) if for_ever else contextlib.nullcontext():
        records.write_bytes(path, b"new")
    assert path.read_bytes() == (b"old" if for_ever else b"new")
    assert os.listdir(tmp_path) == ["x"]
    assert pauses == list(records.PAUSES[:refusals])


def test_a_system_that_opens_no_folders_writes_all_the_same(tmp_path, monkeypatch):
    """As Windows does."""
    plain = os.open

    def opened(path, *arguments, **keywords):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Access is denied")
        return plain(path, *arguments, **keywords)

    monkeypatch.setattr(records.os, "open", opened)
    records.write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


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
    assert set(epoch(1)) == set(records.Epoch.__annotations__) - {"overflowed_steps", "samples_by_rank"}
    assert set(epoch(1)["train"]) == set(records.TrainMeans.__annotations__) - {"unlabelled"}
    of_text = set(records.TaskMeasures.__annotations__)
    assert set(epoch(1)["test"]) == set(records.EvaluationMeans.__annotations__) - of_text


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (bytes(9), "zeros"),
        (b"", "nothing"),
        ('{"a": 1}'.encode("utf-16"), "byte order mark"),
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        (b'{"a": "\xe9"}', "not UTF-8"),
        (b'{\n"a": 1,', "line 2"),
        (b'{"a": NaN}', "NaN"),
        (b"[{}]", "a list"),
        (b"null", "null"),
    ],
)
def test_what_is_no_record_is_said_in_plain_words(tmp_path, content, got):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with refused(records.DamagedError, str(path), got=got, suggests="restore"):
        records.read_json(path)


def test_a_folder_or_a_pipe_in_a_records_place_is_named_and_not_waited_for(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with refused(records.DamagedError, str(tmp_path / name), got=name):
            records.read_json(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"entries": {}}, "entries: {}"),
        ({"entries": [{"folder": "a", "objective": "kd"}]}, "no entries.0.seed"),
        ({"entries": [{"folder": "a", "objective": "kd", "seed": True}]}, "entries.0.seed: true"),
        ({"teacher": 3}, "teacher: 3"),
        ({"name": None}, "name: null"),
        ({"share_data_seed": 1}, "share_data_seed: 1"),
    ],
)
def test_a_key_that_is_missing_or_of_another_type_is_named(change, wrong):
    whole = {"name": "c", "baseline": "kd", "teacher": None, "entries": [{"folder": "a", "objective": "kd", "seed": 0}]}
    assert plain_files.misfit(whole, records.Comparison) is None
    assert plain_files.misfit(whole | change, records.Comparison) == wrong


@pytest.mark.parametrize(
    ("schema", "kind"), [(2, records.NewerError), ("1", records.DamagedError), (0, records.DamagedError)]
)
def test_a_newer_schema_is_refused_and_none_is_the_first(tmp_path, schema, kind):
    path = tmp_path / "x.json"
    records.write_json(path, {"schema": schema})
    with pytest.raises(kind) as caught:
        records.read_json(path)
    assert type(caught.value) is kind
    assert str(path) in caught.value.what
    records.write_json(path, {})
    assert records.read_json(path) == {}


def test_damaged_lines_of_metrics_are_left_out_and_named(tmp_path):
    for number in (1, 2, 3):
        records.append_epoch(tmp_path, epoch(number))
    path = tmp_path / records.METRICS
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b'"epoch": 2', b'"epoch": "2"') + third)
    epochs, damage = records.read_metrics(tmp_path)
    assert [e["epoch"] for e in epochs] == [1, 3]
    assert len(damage) == 1
    assert "line 2" in damage[0]


def test_a_language_model_is_judged_by_its_perplexity_and_anything_else_by_its_accuracy():
    text = {"accuracy": 0.1587, "perplexity": 118.8094, "bits_per_byte": 2.41257}
    assert records.measure(text).describe(text) == "perplexity 118.81, 2.413 bits per byte"
    assert records.measure({"accuracy": 0.1587}).describe({"accuracy": 0.1587}) == "accuracy 15.87%"
    assert (records.merit(text), records.merit({"accuracy": 0.1587}), records.merit({})) == (-118.8094, 0.1587, None)
    assert records.PERPLEXITY.write(1e151, 2.0) == "1e+151 ± 2.00"


# Predictions


def predictions(count=5, *, classes=3, teacher=True):
    index, sure = np.arange(count) * 2, np.linspace(0.5, 1, count)
    answers = (index % classes, sure) if teacher else ()
    return records.Predictions("test", index, index % classes - 100, index % classes, sure, *answers)


@pytest.mark.parametrize(("count", "classes", "kinds"), [(5, 3, "bb"), (5, 200, "bb"), (200, 300, "hh"), (0, 3, "bb")])
@pytest.mark.parametrize("teacher", [True, False])
def test_predictions_are_read_back_and_no_wider_than_need_be(tmp_path, count, classes, kinds, teacher):
    written = predictions(count, classes=classes, teacher=teacher)
    records.write_predictions(tmp_path, written)
    first = (tmp_path / records.PREDICTIONS).read_bytes()
    read = records.read_predictions(tmp_path)
    assert read.set == "test"
    for name, values in written._asdict().items():
        if isinstance(values, np.ndarray):
            assert getattr(read, name) == pytest.approx(values)
        else:
            assert getattr(read, name) == values
    assert read.index.dtype.char + read.student.dtype.char == kinds
    assert read.student_probability.dtype == np.float32
    records.write_predictions(tmp_path, written)
    assert (tmp_path / records.PREDICTIONS).read_bytes() == first


def test_more_predictions_than_are_read_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MOST_PREDICTIONS", 4)
    records.write_predictions(tmp_path, predictions())
    with refused(NotFoundError, str(tmp_path / records.PREDICTIONS)):
        records.read_predictions(tmp_path)
    (tmp_path / records.PREDICTIONS).write_bytes(changed(label=np.zeros(2**13, np.int8)))
    with refused(records.DamagedError, got="8320 bytes"):
        records.read_predictions(tmp_path)


def archive(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def changed(**arrays):
    written = predictions()._asdict() | arrays
    return archive(**{name: values for name, values in written.items() if values is not None})


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "zip"),
        (b"PK\x03\x04 nothing", "zip"),
        (changed()[:-60], "zip"),
        (archive(), "no array set"),
        (changed(student=None), "no array student"),
        (changed(teacher=None), "no array teacher"),
        (changed(other=np.zeros(5)), "'other'"),
        (changed(label=np.zeros(4, int)), "label"),
        (changed(label=np.full(5, -101)), "label"),
        (changed(index=np.array([0, 2, 2, 3, 4])), "indices"),
        (changed(index=np.int64(3)), "index of int64, shape ()"),
        (changed(student=np.zeros(5)), "student of float64"),
        (changed(student_probability=np.full(5, np.nan)), "values of student_probability"),
        (changed(teacher_probability=np.full(5, 1.5)), "values of teacher_probability"),
        (changed(set=np.zeros(5)), "name of the set"),
        (changed(label=np.array([None] * 5)), "allow_pickle=False"),
    ],
)
def test_predictions_of_another_kind_are_refused(tmp_path, content, got):
    (tmp_path / records.PREDICTIONS).write_bytes(content)
    with refused(records.DamagedError, str(tmp_path / records.PREDICTIONS), got=got):
        records.read_predictions(tmp_path)
