"""Studies done for real on the digits: end to end, skipping, failures, several processes, kills."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tests._helpers import ROOT
from tests._helpers.refusals import refused
from tests._helpers.studies import QUICK, STUDY, Lines

from tutelage import records
from tutelage.errors import RecipeError
from tutelage.places import here
from tutelage.runs.run import Run, RunOptions
from tutelage.studies import plan, run_study, schema, study_file, workers
from tutelage.studies import study_table as paper_table
from tutelage.studies.workers import share


def do(tmp_path, *, pool=None, seeds=None, only=(), **changes):
    study = schema.parse({**STUDY, **changes})
    request = plan.assign(study, study, runs=tmp_path, pool=pool, seeds=seeds, methods=only)
    reporter = Lines()
    return run_study.run_study(request, options=RunOptions(reporter=reporter)), request, reporter.lines


def table(request):
    rows = json.loads((request.folder / "table.json").read_text())["rows"]
    return {(row["pair"], row["method"]): row for row in rows}


def status(folder):
    return json.loads((folder / records.MANIFEST).read_text())["status"]


def test_a_study_of_one_s_own_from_the_page(invoke, tmp_path):
    """The example of docs/studies.md as it stands, in fewer epochs."""
    page = (ROOT / "docs" / "studies.md").read_text()
    example, _ = re.findall(r"^```yml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in example.splitlines() if not line.startswith("#")]
    assert len(lines) <= 10
    Path("shapes.yaml").write_text(example)
    typed = ["study", "shapes.yaml", "device=cpu", "threads=1", "--epochs", "2", "--seeds", "1"]
    code, out, err = invoke(*typed)
    assert code == 0, err
    folder = tmp_path / "runs/shapes-2epochs/shapes"
    assert {path.name for path in folder.iterdir()} >= {"study.json", "table.md", "table.json", "report.html"}
    rows = json.loads((folder / "table.json").read_text())["rows"]
    assert [(row["method"], row["n"]) for row in rows] == [("teacher", 1), ("cross_entropy", 1), ("kd", 1), ("wttm", 1)]
    for method, name in (("kd", "wide-narrow/kd-seed0"), ("cross_entropy", "students/narrow-cross_entropy-seed0")):
        recorded = Run(folder.parent / name)
        (value,) = next(row["values"] for row in rows if row["method"] == method)
        assert value == 100 * recorded.accuracy == 100 * recorded.epochs[-1]["test"]["accuracy"]
    assert "deviates from the study: epochs: 2 instead of 20" in out
    assert f"{rows[0]['accuracy']:.2f}" in out
    # Nothing is left to do, and what is there is shown; `report` shows it too.
    code, out, _ = invoke(*typed)
    assert code == 0
    assert "0 of 4 runs to do" in out
    code, out, _ = invoke("report", "runs/shapes-2epochs/shapes")
    assert code == 0
    assert "wide/narrow" in out


def group_of(tmp_path, name):
    return json.loads((tmp_path / name / records.MANIFEST).read_text())["class"]


def test_students_of_one_data_seed_are_trained_together(tmp_path, without_reports):
    _, _, lines = do(tmp_path, seeds=2)
    ours, distilled = "grid/students/narrow-cross_entropy", "grid/wide-narrow/kd"
    for seed in (0, 1):
        # The one that learns from labels has no teacher, but the same batches.
        assert group_of(tmp_path, f"{ours}-seed{seed}") == [f"{distilled}-seed{seed}"]
        assert group_of(tmp_path, f"{distilled}-seed{seed}") == [f"{ours}-seed{seed}"]
    assert group_of(tmp_path, "grid/teachers/wide-seed100") == []
    assert f"4 left: {ours}-seed0, {distilled}-seed0, together" in lines
    study = schema.parse({**STUDY, "name": "alone"})
    request = plan.assign(study, study, runs=tmp_path, seeds=2)
    assert run_study.run_study(request, together=1) == {}
    for name in (f"{ours}-seed1", f"{distilled}-seed1"):
        alone = name.replace("grid/", "alone/")
        assert group_of(tmp_path, alone) == []
        mine, other = (tmp_path / folder / records.STUDENT for folder in (name, alone))
        assert mine.read_bytes() == other.read_bytes()


def test_what_is_timed_is_trained_alone(tmp_path, without_reports):
    _, request, _ = do(tmp_path, costs="kd")
    assert group_of(tmp_path, "grid/wide-narrow/kd-seed0") == []
    study = schema.parse({**STUDY, "name": "both", "costs": "kd"})
    request = plan.assign(study, study, runs=tmp_path)
    run_study.run_study(request, together=2)
    assert group_of(tmp_path, "both/wide-narrow/kd-seed0")
    for name, timed in (("grid", True), ("both", False)):
        folder = tmp_path / name / name
        rows = [row for row in paper_table.read_table(folder).rows if row.role != "teacher"]
        assert {row.step_ms is not None for row in rows} == {timed}


def test_a_worker_takes_its_part_of_what_is_left(tmp_path, without_reports):
    study = schema.parse({**STUDY, "methods": ["cross_entropy", "kd", "dkd", "dist"]})
    request = plan.assign(study, study, runs=tmp_path)
    run_study.run_study(request, on=here.Here(2))
    # The teacher is done, four are left: two, then one and one.
    assert len(group_of(tmp_path, "grid/students/narrow-cross_entropy-seed0")) == 1
    assert group_of(tmp_path, "grid/wide-narrow/kd-seed0") == ["grid/students/narrow-cross_entropy-seed0"]
    assert group_of(tmp_path, "grid/wide-narrow/dkd-seed0") == []
    assert group_of(tmp_path, "grid/wide-narrow/dist-seed0") == []


def test_one_of_a_group_that_fails_is_reported_and_the_others_are_done(tmp_path, without_reports):
    methods = {
        "kd": "kd",
        "diverges": {"objective": "dkd", "settings": {"optimizer": {"lr": 1e30}}},
        "ce": "cross_entropy",
    }
    failed, _, _ = do(tmp_path, methods=methods)
    assert list(failed) == ["grid/wide-narrow/diverges-seed0"]
    assert "finite" in failed["grid/wide-narrow/diverges-seed0"]
    assert status(tmp_path / "grid/wide-narrow/kd-seed0") == "finished"
    assert group_of(tmp_path, "grid/wide-narrow/kd-seed0")[0] == "grid/wide-narrow/diverges-seed0"


def test_both_seeds_differ_and_the_teacher_has_its_own(tmp_path, without_reports):
    failed, request, _ = do(tmp_path, seeds=2, only=["kd"])
    assert failed == {}
    recorded = {
        name: Run(tmp_path / "grid" / name).manifest
        for name in ("teachers/wide-seed100", "wide-narrow/kd-seed0", "wide-narrow/kd-seed1")
    }
    seeds = [(manifest["seeds"]["seed"], manifest["seeds"]["data_seed"]) for manifest in recorded.values()]
    assert seeds == [(100, 100), (0, 0), (1, 1)]
    teachers = {manifest["teacher"]["fingerprint"] for manifest in recorded.values() if manifest["teacher"]}
    assert len(teachers) == 1
    assert table(request)["wide/narrow", "teacher"]["n"] == 1


def test_finished_runs_are_kept_and_more_are_added(tmp_path, without_reports):
    do(tmp_path, only=["kd"])
    folder = tmp_path / "grid/wide-narrow/kd-seed0"
    before = (folder / records.STUDENT).stat().st_mtime_ns
    failed, request, lines = do(tmp_path, seeds=2)
    assert failed == {}
    assert lines[0].startswith("grid: 3 of 5 runs to do")
    assert (folder / records.STUDENT).stat().st_mtime_ns == before
    assert {method: row["n"] for (_, method), row in table(request).items()} == {
        "teacher": 1,
        "cross_entropy": 2,
        "kd": 2,
    }
    # A narrower command leaves what is there in the table.
    _, request, _ = do(tmp_path, seeds=1, only=["kd"])
    assert table(request)["wide/narrow", "cross_entropy"]["n"] == 2


def test_a_teacher_whose_students_are_done_is_not_trained_again(tmp_path, without_reports):
    do(tmp_path, only=["kd"])
    shutil.rmtree(tmp_path / "grid/teachers")
    failed, _, lines = do(tmp_path, only=["kd"])
    assert failed == {}
    assert lines[0].startswith("grid: 0 of 2 runs to do")
    assert not (tmp_path / "grid/teachers").exists()


def test_a_run_that_fails_does_not_stop_the_others(invoke, tmp_path, without_reports):
    pairs = {
        "lost/narrow": {"teacher": "mlp:zero", "student": "mlp:8"},
        "wide/lost": {"teacher": "mlp:16", "student": "mlp:none"},
        **STUDY["pairs"],
    }
    Path("grid.yaml").write_text(yaml.safe_dump({**STUDY, "pairs": pairs}))
    code, out, err = invoke("study", "grid.yaml")
    assert code == 1
    lines = [line.removeprefix("tutelage: ") for line in err.splitlines() if line.startswith("tutelage: ")]
    assert [line.partition(":")[0] for line in lines] == [
        "grid/teachers/lost-seed100",
        "grid/lost-narrow/kd-seed0",
        "grid/students/lost-cross_entropy-seed0",
        "grid/wide-lost/kd-seed0",
    ]
    assert "mlp:zero" in lines[0]
    assert lines[1].endswith("its teacher grid/teachers/lost-seed100 is not trained")
    for name in ("students/narrow-cross_entropy-seed0", "teachers/wide-seed100", "wide-narrow/kd-seed0"):
        assert status(tmp_path / "runs/grid" / name) == "finished"
    assert "wide/narrow" in out


def test_a_run_of_another_recipe_is_refused_and_in_no_mean(tmp_path, without_reports):
    do(tmp_path)
    failed, request, _ = do(tmp_path, protocol={**QUICK, "batch_size": 256})
    assert list(failed) == [
        "grid/teachers/wide-seed100",
        "grid/students/narrow-cross_entropy-seed0",
        "grid/wide-narrow/kd-seed0",
    ]
    assert "batch_size was 512, is 256" in failed["grid/wide-narrow/kd-seed0"]
    assert "type --pool NAME" in failed["grid/wide-narrow/kd-seed0"]
    assert {row["n"] for row in table(request).values()} == {0}
    failed, request, _ = do(tmp_path, protocol={**QUICK, "batch_size": 256}, pool="other")
    assert failed == {}
    assert request.folder == tmp_path / "other/grid"


def put_on_purpose(folder):
    """Let a manifest tell of the weights that are beside it now."""
    manifest = records.read_manifest(folder)
    manifest["files"] |= records.digests(folder, [records.STUDENT])
    records.write_json(folder / records.MANIFEST, manifest)


def test_students_of_two_teachers_are_in_no_mean_together(tmp_path, without_reports):
    do(tmp_path, only=["kd"])
    do(tmp_path, pool="second", only=["kd"], teacher_seed=7)
    failed, _, _ = do(tmp_path, only=["kd"], seeds=2)
    assert failed == {}  # What is in the teacher's folder is what the run's manifest says.
    there = tmp_path / "grid/teachers/wide-seed100"
    shutil.copy(tmp_path / "second/teachers/wide-seed7" / records.STUDENT, there / records.STUDENT)
    put_on_purpose(there)
    failed, request, _ = do(tmp_path, only=["kd"], seeds=3)
    assert list(failed) == ["grid/wide-narrow/kd-seed0", "grid/wide-narrow/kd-seed1"]
    assert "the teacher's fingerprint was " in failed["grid/wide-narrow/kd-seed0"]
    assert table(request)["wide/narrow", "kd"]["n"] == 1


def test_a_teacher_of_half_precision_is_the_one_that_its_students_had(tmp_path, without_reports):
    do(tmp_path, only=["kd"])
    there = tmp_path / "grid/teachers/wide-seed100"
    state = {name: value.half() for name, value in load_file(there / records.STUDENT).items()}
    half = tmp_path / "half"
    shutil.copytree(there, half)
    save_file(state, half / records.STUDENT)
    put_on_purpose(half)
    pair = {**STUDY["pairs"]["wide/narrow"], "teacher": str(half)}
    for _ in range(2):
        failed, request, _ = do(tmp_path, pairs={"wide/narrow": pair}, only=["kd"], pool="of-half")
        assert failed == {}
    assert table(request)["wide/narrow", "kd"]["n"] == 1


def test_data_of_a_pair_s_own_are_checked_too(tmp_path, without_reports):
    pair = {**STUDY["pairs"]["wide/narrow"], "settings": {"data": {"validation": 0.1}}}
    failed, request, _ = do(tmp_path, pairs={"wide/narrow": pair}, only=["kd"])
    assert failed == {}
    path = tmp_path / "grid/wide-narrow/kd-seed0" / records.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["data"]["fingerprint"] = "f" * 16
    path.write_text(json.dumps(manifest))
    failed, request, _ = do(tmp_path, pairs={"wide/narrow": pair}, only=["kd"])
    assert list(failed) == ["grid/wide-narrow/kd-seed0"]
    assert "the data's fingerprint was ffffffffffffffff" in failed["grid/wide-narrow/kd-seed0"]
    assert table(request)["wide/narrow", "kd"]["n"] == 0


def test_a_run_is_shown_only_under_pairs_that_plan_it(tmp_path, without_reports):
    pairs = {
        "wide/narrow": STUDY["pairs"]["wide/narrow"],
        "wider/narrow": {"teacher": "mlp:32", "student": "mlp:8", "settings": {"optimizer": {"lr": 0.1}}},
        "slim/narrow": {"teacher": "mlp:4", "student": "mlp:8"},
    }
    study = schema.parse({**STUDY, "pairs": pairs})
    request = plan.assign(study, study, runs=tmp_path, pairs=["wide/narrow"], methods=["cross_entropy"])
    assert run_study.run_study(request) == {}
    rows = table(request)
    assert {pair: rows[pair, "cross_entropy"]["n"] for pair in pairs} == {
        "wide/narrow": 1,
        "wider/narrow": 0,
        "slim/narrow": 1,
    }


@pytest.mark.filterwarnings("ignore:student after epoch 1")  # of 8 units, which die
def test_studies_of_one_pool_share_teachers_and_runs(tmp_path, without_reports):
    do(tmp_path, pool="shared", only=["kd"])
    failed, request, lines = do(tmp_path, pool="shared", name="second", methods={"kd": "kd", "ttm": "ttm"})
    assert failed == {}
    assert lines[0].startswith("second: 1 of 3 runs to do")
    assert table(request)["wide/narrow", "kd"]["n"] == 1


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path, without_reports):
    folder = tmp_path / "grid/students/narrow-cross_entropy-seed0"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        failed, request, lines = do(tmp_path)
    assert failed == {}
    assert "grid/students/narrow-cross_entropy-seed0 is running in another process: left to it" in lines
    assert table(request)["wide/narrow", "kd"]["n"] == 1
    assert not (folder / records.STUDENT).exists()
    do(tmp_path)
    assert status(folder) == "finished"


def test_a_process_waits_for_a_teacher_that_another_trains(tmp_path, without_reports, monkeypatch):
    folder = tmp_path / "grid/teachers/wide-seed100"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waited = []

        def sleep(seconds):
            # The other process ends without having finished: this one takes its run.
            waited.append((tmp_path / "grid/students/narrow-cross_entropy-seed0" / records.STUDENT).exists())
            fcntl.flock(file, fcntl.LOCK_UN)

        monkeypatch.setattr(run_study, "time", SimpleNamespace(sleep=sleep, time=time.time, monotonic=time.monotonic))
        failed, request, _ = do(tmp_path)
    assert failed == {}
    assert waited == [True]  # What needs no teacher was done meanwhile.
    assert table(request)["wide/narrow", "kd"]["n"] == 1


def test_a_dry_run_writes_nothing_and_reports_what_does_not_fit(invoke, tmp_path):
    pairs = {**STUDY["pairs"], "wide/lost": {"teacher": "mlp:16", "student": "mlp:none"}}
    Path("grid.yaml").write_text(yaml.safe_dump({**STUDY, "pairs": pairs}))
    code, out, err = invoke("study", "grid.yaml", "--dry-run", "--pairs", "wide/narrow", "--methods", "kd")
    assert code == 0, err
    assert "grid: 2 runs in runs/grid" in out
    assert "it is trained first" in out
    code, out, err = invoke("study", "grid.yaml", "--dry-run", "--methods", "kd")
    assert code == 2
    assert "tutelage: grid/wide-lost/kd-seed0: " in err
    assert "grid/wide-narrow/kd-seed0 (dry run" in out
    assert not (tmp_path / "runs").exists()


def test_a_method_that_is_not_built_is_listed_so(invoke, tmp_path, without_reports):
    method = {"objective": "no_such_preset", "published": {"wide/narrow": {"mean": 71.5, "std": 0.5, "n": 3}}}
    Path("grid.yaml").write_text(yaml.safe_dump({**STUDY, "methods": {"new": method, "cross_entropy": None}}))
    code, out, err = invoke("study", "grid.yaml")
    assert code == 0, err
    assert "not built" in out
    code, out, _ = invoke("study", "grid.yaml", "--methods", "new", "--dry-run")
    assert (code, "new: not built: no_such_preset" in out) == (0, True)


def test_studies_are_listed(invoke):
    for typed in (["study"], ["study", "--list"], ["study", "table1", "--list"]):
        code, out, _ = invoke(*typed)
        assert code == 0
        assert [line.split()[0] for line in out.splitlines()] == study_file.names()
    assert "table1" in out


def test_mistakes_are_answered_in_a_line(invoke):
    for typed, line in (
        (["study", "tabel1"], "did you mean table1?"),
        (["study", "table1", "--pairs", "resnet56/resnet2"], "did you mean resnet56/resnet20?"),
        (["study", "table1", "epocs=3"], "did you mean epochs?"),
    ):
        code, _, err = invoke(*typed)
        assert code == 2
        (message,) = err.splitlines()
        assert line in message


# Processes of its own


EPOCHS = 150
LONG = {**STUDY, "protocol": {**QUICK, "epochs": EPOCHS}}


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def is_free(folder):
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def epochs_of(folder):
    return [epoch["epoch"] for epoch in records.read_epochs(folder)]


@pytest.mark.slow
def test_workers_end_with_their_parent_and_their_runs_are_resumed(tmp_path, without_reports):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(LONG))
    parent = subprocess.Popen(
        [sys.executable, "-m", "tutelage", "study", "grid.yaml", "--jobs", "2"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pool = tmp_path / "runs/grid"
    both = [pool / "teachers/wide-seed100", pool / "students/narrow-cross_entropy-seed0"]
    try:
        # Each worker is at a run of its own.
        wait_for(lambda: all(len(epochs_of(folder)) > 1 for folder in both))
        assert not any(is_free(folder) for folder in both)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: all(is_free(folder) for folder in both))
    left = len(epochs_of(both[0]))
    assert left < EPOCHS
    study = schema.parse(LONG)
    request = plan.assign(study, study, runs=Path("runs"))
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert run_study.run_study(request) == {}
    finally:
        os.chdir(before)
    for folder in both:
        assert epochs_of(folder) == list(range(1, EPOCHS + 1))
        assert Run(folder).manifest["resumed"] == 1


LIKE_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from tutelage.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "group", "code"), [(signal.SIGTERM, False, 143), (signal.SIGINT, True, 130)])
def test_a_study_of_several_workers_that_is_stopped_says_what_is_saved_and_resumes(number, group, code, tmp_path):
    """Stopped as a scheduler does, by SIGTERM to the first process, and as a terminal does, by Ctrl-C to all."""
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(LONG))
    typed = [sys.executable, "-c", LIKE_A_TERMINAL, "study", "grid.yaml", "--jobs", "2"]
    pool = tmp_path / "runs/grid"
    both = [pool / "teachers/wide-seed100", pool / "students/narrow-cross_entropy-seed0"]
    with subprocess.Popen(
        typed, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        wait_for(lambda: all(len(epochs_of(folder)) > 1 for folder in both))
        os.killpg(parent.pid, number) if group else parent.send_signal(number)
        out, err = parent.communicate(timeout=60)
    assert parent.returncode == code
    (line,) = [line for line in err.splitlines() if line.startswith("tutelage: ")]
    assert line == (
        "tutelage: stopped: runs/grid: 0 finished runs and 2 with a checkpoint; run the same command again to resume"
    )
    workers = [line for line in out.splitlines() if re.match(r"\[[12]\] tutelage: stopped: ", line)]
    assert len(workers) == 2  # each says which checkpoint
    assert all("a checkpoint after epoch" in line for line in workers)
    assert all(is_free(folder) for folder in both)
    if group:
        return
    again = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    for folder in both:
        assert epochs_of(folder) == list(range(1, EPOCHS + 1))
        assert Run(folder).manifest["resumed"] == 1


@pytest.mark.slow
def test_a_worker_reports_what_failed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = {**STUDY["pairs"], "wide/lost": {"teacher": "mlp:16", "student": "mlp:none"}}
    Path("grid.yaml").write_text(yaml.safe_dump({**STUDY, "pairs": pairs}))
    lines = []
    failed = share(["study", "grid.yaml", "--methods", "cross_entropy"], 1, say=lines.append)
    assert list(failed) == ["grid/students/lost-cross_entropy-seed0"]
    assert all(line.startswith("[1] ") for line in lines)
    assert any("runs to do" in line for line in lines)
    done = tmp_path / "runs/grid/students/narrow-cross_entropy-seed0"
    assert status(done) == "finished"
    command = json.loads((done / records.MANIFEST).read_text())["command"]
    assert command == "tutelage study grid.yaml --methods cross_entropy"


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_a_worker_whose_parent_has_ended_is_interrupted(monkeypatch, system):
    sent = []
    with monkeypatch.context() as patch:
        patch.setattr(workers.os, "name", system)
        patch.setattr(workers.os, "read", lambda descriptor, count: b"")
        patch.setattr(workers.os, "kill", lambda process, number: sent.append(("kill", process, number)))
        patch.setattr(workers.os, "_exit", lambda code: sent.append(("exit", code)))
        patch.setattr(workers.signal, "raise_signal", lambda number: sent.append(("raise", number)))
        patch.setattr(workers, "GRACE", 0)
        workers._wait_for_parent()
    # On Windows os.kill ends a process whatever the signal.
    interrupted = ("raise", signal.SIGINT) if system == "nt" else ("kill", os.getpid(), signal.SIGINT)
    assert sent == [interrupted, ("exit", 1)]


def test_data_that_are_not_there_are_the_user_s_mistake_with_workers_too(invoke, tmp_path):
    Path("grid.yaml").write_text(yaml.safe_dump(STUDY))
    code, out, err = invoke("study", "grid.yaml", "data.source=imagefolder:nowhere", "--jobs", "2")
    assert code == 2
    (line,) = err.splitlines()
    assert "nowhere" in line
    assert "[1]" not in out


@pytest.mark.filterwarnings("ignore:student after epoch 1")
def test_a_study_s_figures_are_drawn_and_stand_in_its_report(tmp_path):
    methods = {
        "kd": {"kd": {"temperature": 4, "weight": 0.9, "supervised": 0.1}},
        "ttm": {"ttm": {"gamma": 0.25, "beta": 36}},
        "wttm": {"wttm": {"gamma": 0.25, "beta": 36, "normalise": "training"}},
    }
    failed, request, lines = do(tmp_path, methods=methods, figures=["entropy"])
    assert failed == {}
    assert [text for text in lines if text.startswith("figure: ") and text.endswith("entropy.svg")]
    assert (request.folder / "entropy.png").stat().st_size > 10_000
    sentence = (request.folder / "figures.md").read_text()
    assert "H(q)" in sentence
    page = (request.folder / "report.html").read_text()
    assert "paper-0" in page
    assert "Entropy of the student" in page


def test_a_study_of_functions_needs_no_runs(invoke, tmp_path):
    code, out, err = invoke("study", "figure4")
    assert code == 0, err
    assert "0 of 0 runs to do" in out
    folder = tmp_path / "runs/figures/figure4"
    assert {"mappings.svg", "mappings.png", "figures.md", "report.html"} <= {path.name for path in folder.iterdir()}
    with refused(RecipeError, ["study: pairs", "study: methods"]):
        schema.parse({"name": "x", "figures": ["entropy"]})
