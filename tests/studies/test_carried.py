"""Teachers and records that are carried in the repository: collected, put back, and a study resumed."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests._helpers import ROOT

from tutelage import records
from tutelage.report import html
from tutelage.studies import plan, report, run_study, schema

STUDY = {
    "name": "grid",
    "protocol": {"data": "digits", "epochs": 1, "optimizer": {"lr": 0.1}, "device": "cpu", "threads": 1},
    "pairs": {"wide/narrow": {"teacher": "mlp:16", "student": "mlp:8"}},
    "methods": ["cross_entropy", "kd"],
}


@pytest.fixture
def collecting(monkeypatch):
    spec = importlib.util.spec_from_file_location("collect", ROOT / "benchmarks/collect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(html, "write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr(report, "write_report", lambda folder: folder / "report.html")
    return module


def studied(folder, seeds=1):
    study = schema.parse(STUDY)
    request = plan.assign(study, study, runs=folder, seeds=seeds)
    return run_study.run_study(request), request


def read(folder):
    return json.loads((folder / records.MANIFEST).read_text())


def test_a_study_resumes_from_its_records_and_a_teacher_in_half_precision(collecting, tmp_path):
    studied(tmp_path / "runs")
    kept = collecting.collect(tmp_path / "runs/grid", tmp_path / "results")
    weights = [path.relative_to(kept).as_posix() for path in kept.rglob("*.safetensors")]
    assert weights == ["teachers/wide-seed100/student.safetensors"]
    state = load_file(kept / weights[0])
    assert {value.dtype for value in state.values()} == {torch.float16}
    there = tmp_path / "elsewhere"
    pool = collecting.restore(kept, there)
    fingerprint = read(pool / "wide-narrow/kd-seed0")["teacher"]["fingerprint"]
    assert read(pool / "teachers/wide-seed100")["rounded"]["from"] == fingerprint
    failed, request = studied(there, seeds=2)
    assert failed == {}
    rows = json.loads((request.folder / "table.json").read_text())
    assert [(row["method"], row["n"]) for row in rows["rows"]] == [("teacher", 1), ("cross_entropy", 2), ("kd", 2)]
    assert sum("a copy in float16 of the teacher that was trained" in note for note in rows["notes"]) == 1
    # The runs that were carried are kept, and the new one had the copy.
    assert not (pool / "wide-narrow/kd-seed0" / records.STUDENT).exists()
    rounded = read(pool / "teachers/wide-seed100")["rounded"]["fingerprint"]
    assert read(pool / "wide-narrow/kd-seed1")["teacher"]["fingerprint"] == rounded != fingerprint
    # Carried once more, it is still known whose copy it is.
    again = collecting.collect(pool, tmp_path / "second")
    assert read(again / "teachers/wide-seed100")["rounded"]["from"] == fingerprint


def test_a_copy_without_places_is_whole_but_for_what_was_damaged(collecting, tmp_path):
    studied(tmp_path / "runs")
    pool = tmp_path / "runs/grid"
    (pool / "students/narrow-cross_entropy-seed0" / records.EVALUATION).write_text("{}")
    kept = collecting.collect(pool, tmp_path / "results", places=False)
    damaged = {path.parent.name: records.lost(path.parent, read(path.parent)) for path in kept.rglob(records.MANIFEST)}
    of_files = {name: {*files} & {*collecting.KEPT} for name, files in damaged.items()}
    assert of_files.pop("narrow-cross_entropy-seed0") == {records.EVALUATION}
    assert of_files == {"kd-seed0": set(), "wide-seed100": set()}


def test_another_teacher_in_the_copy_s_place_is_none_of_theirs(collecting, tmp_path):
    studied(tmp_path / "runs")
    kept = collecting.collect(tmp_path / "runs/grid", tmp_path / "results")
    pool = collecting.restore(kept, tmp_path / "elsewhere")
    second = {**STUDY, "teacher_seed": 7}
    study = schema.parse(second)
    run_study.run_study(plan.assign(study, study, runs=tmp_path / "other", methods=["kd"]))
    trained = tmp_path / "other/grid/teachers/wide-seed7" / records.STUDENT
    shutil.copy(trained, pool / "teachers/wide-seed100" / records.STUDENT)
    failed, _ = studied(tmp_path / "elsewhere", seeds=2)
    assert "the teacher's fingerprint was " in failed["grid/wide-narrow/kd-seed0"]


def test_large_weights_and_unfinished_runs_stay_behind(collecting, tmp_path, capsys):
    studied(tmp_path / "runs", seeds=2)
    pool = tmp_path / "runs/grid"
    large = tmp_path / "copy"
    assert not collecting.carry(pool / "teachers/wide-seed100", large, limit=100)
    assert "its weights stay behind" in capsys.readouterr().out
    assert not large.exists()
    path = pool / "wide-narrow/kd-seed1" / records.MANIFEST
    path.write_text(json.dumps({**read(path.parent), "status": "interrupted"}))
    path = pool / "teachers/wide-seed100" / records.MANIFEST
    path.write_text(json.dumps({**read(path.parent), "status": "interrupted"}))
    kept = collecting.collect(pool, tmp_path / "results")
    assert list(kept.rglob("*.safetensors")) == []
    pool = collecting.restore(kept, tmp_path / "elsewhere")
    back = sorted(path.parent.relative_to(pool).as_posix() for path in pool.rglob(records.MANIFEST))
    assert back == [
        "students/narrow-cross_entropy-seed0",
        "students/narrow-cross_entropy-seed1",
        "wide-narrow/kd-seed0",
    ]


def test_records_need_not_say_where_they_were_made(collecting, tmp_path):
    studied(tmp_path / "runs")
    texts = {}
    for places in (True, False):
        kept = collecting.collect(tmp_path / "runs/grid", tmp_path / f"results {places}", places=places)
        texts[places] = "".join(path.read_text() for path in kept.rglob("*") if path.suffix in (".json", ".yaml"))
    assert f"{tmp_path}/runs/grid/teachers" in texts[True]
    assert str(tmp_path) not in texts[False]
    assert " runs/grid/teachers" in texts[False]


def test_the_files_of_the_repository_s_records_are_those_that_their_manifests_name():
    for path in sorted((ROOT / "benchmarks/results").rglob(records.MANIFEST)):
        there = [name for name in read(path.parent).get("files", ()) if (path.parent / name).exists()]
        assert not there or records.lost(path.parent, read(path.parent), there) == [], path.parent
