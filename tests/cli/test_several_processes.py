"""The commands in several processes that a launcher starts: one decides, locks, writes and shows."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests._helpers import ROOT
from tests._helpers.launching import end, launch, start

from tutelage import records

pytestmark = pytest.mark.timeout(300)
RUN = ["student=mlp:16", "teacher=mlp:32", "data.source=digits", "objective=kd", "weak_teacher=true"]
RUN += ["precision=fp32", "device=cpu", "epochs=2"]


@pytest.fixture(autouse=True)
def in_a_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def read(path):
    return json.loads(Path(path).read_text())


def epochs(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def assert_close(first, second, tolerance):
    a, b = (load_file(Path(folder) / "student.safetensors") for folder in (first, second))
    assert a.keys() == b.keys()
    for name, weight in a.items():
        torch.testing.assert_close(b[name], weight, rtol=tolerance, atol=tolerance)


@pytest.mark.slow  # two processes train as one in every change
def test_two_processes_distil_as_one(invoke):
    code, out, err = launch(["distill", *RUN, "name=two"])
    assert code == 0, err
    assert out.count("two: 2 processes") == out.count("report: runs/two/report.html") == 1
    assert (Path("runs/two/report.html")).exists()
    manifest = read("runs/two/manifest.json")
    assert (manifest["status"], manifest["processes"]) == ("finished", 2)
    assert len(epochs("runs/two")) == 2
    invoke("distill", *RUN, "name=one")
    assert_close("runs/one", "runs/two", 1e-5)
    one, two = (read(f"runs/{name}/evaluation.json")["student"] for name in ("one", "two"))
    assert one["accuracy"] == two["accuracy"]
    answers = [records.read_predictions(Path("runs", name)) for name in ("one", "two")]
    for first, second in zip(*(each[1:] for each in answers), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-3)
    assert read("runs/one/manifest.json")["processes"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "student"])
def test_two_processes_go_on_from_a_finished_run(shard):
    run = ["train", "model=mlp:16", "data=digits", "precision=fp32", "device=cpu", f"shard={shard}", "batch_size=512"]
    for keys in (["name=a", "epochs=1"], ["name=b", "epochs=2", "start=runs/a"], ["name=c", "epochs=2"]):
        code, _, err = launch([*run, *keys])
        assert code == 0, err
    more, whole = (Path(f"runs/{name}/student.safetensors").read_bytes() for name in "bc")
    assert more == whole
    assert [epoch["epoch"] for epoch in epochs("runs/b")] == [1, 2]


@pytest.mark.slow
def test_a_refusal_reaches_all_and_is_said_once():
    assert launch(["distill", *RUN, "name=two"])[0] == 0
    for typed, said in (
        (["distill", *RUN, "name=two"], "which is finished"),
        (["distill", "nosuch.yaml"], "nosuch.yaml"),
        (["distill", *RUN, "name=three", "batch_size=1"], "on 2 processes"),
        (["distill", *RUN, "name=three", "weak_teacher=false"], "better than chance"),
        (["evaluate", "runs/none"], "runs/none"),
        (["distill", "--nosuch"], "--nosuch"),
        (["evaluate", "runs/none", "--debug"], "runs/none"),
        (["doctor"], "without the launcher"),
    ):
        code, _, err = launch(typed)
        assert err.count("in _main") == ("--debug" in typed)
        lines = [line for line in err.splitlines() if line.startswith(("tutelage:", "Error:"))]
        assert (code, len(lines)) == (1, 1), err
        assert said in lines[0]
        assert "process" not in lines[0].split(":")[1]


@pytest.mark.slow
def test_every_command_in_two_processes(invoke):
    """Train, record, distil from the record, evaluate, compare, a study: each figure is that of one process."""
    teacher = ["train", str(ROOT / "recipes/digits-teacher.yaml"), "epochs=2", "student=mlp:32", "device=cpu"]
    code, _, err = launch([*teacher, "name=teacher", "precision=fp32"])
    assert code == 0, err
    wttm = [str(ROOT / "recipes/digits-wttm.yaml"), "teacher=runs/teacher", "epochs=2", "student=mlp:16", "device=cpu"]
    wttm += ["precision=fp32", "weak_teacher=true"]
    code, out, err = launch(["record", *wttm, "outputs=outputs/two"])
    assert code == 0, err
    assert out.count("outputs: outputs/two") == 1
    assert invoke("record", *wttm, "outputs=outputs/one")[0] == 0
    ones = sorted(Path("outputs/one").rglob("*.safetensors"))
    assert ones
    for path in ones:
        assert path.read_bytes() == (Path("outputs/two") / path.relative_to("outputs/one")).read_bytes()
    code, _, err = launch(["distill", *wttm, "outputs=outputs/two", "name=from-two"])
    assert code == 0, err
    assert invoke("distill", *wttm, "outputs=outputs/one", "name=from-one")[0] == 0
    assert_close("runs/from-one", "runs/from-two", 1e-5)
    code, out, err = launch(["evaluate", "runs/from-two", "--no-cost"])
    assert code == 0, err
    assert out == invoke("evaluate", "runs/from-two", "--no-cost")[1]
    code, out, err = launch(["report", "runs/from-two"])
    assert (code, out) == (0, invoke("report", "runs/from-two")[1]), err
    compared = ["compare", str(ROOT / "recipes/digits.yaml"), "seeds=1", "epochs=1", "teacher.train.epochs=1"]
    compared += ["teacher.train.model=mlp:32", "precision=fp32", "device=cpu", "weak_teacher=true"]
    code, out, err = launch([*compared, "name=two"])
    assert code == 0, err
    assert invoke(*compared, "name=one")[0] == 0
    for name in ("teacher", "cross_entropy-seed0", "kd-seed0", "ttm-seed0", "weighted_kd-seed0", "wttm-seed0"):
        assert_close(f"runs/one/{name}", f"runs/two/{name}", 1e-5)
        assert read(f"runs/two/{name}/manifest.json")["processes"] == 2
    study = {
        "name": "grid",
        "protocol": {
            "data": "digits",
            "epochs": 1,
            "batch_size": 512,
            "device": "cpu",
            "precision": "fp32",
            "weak_teacher": True,
        },
        "pairs": {"wide/narrow": {"teacher": "mlp:16", "student": "mlp:8"}},
        "methods": ["cross_entropy", "kd"],
    }
    Path("grid.yaml").write_text(json.dumps(study))
    code, _, err = launch(["study", "grid.yaml", "--seeds", "1", "--budget", "2m"])
    assert code == 0, err
    assert invoke("study", "grid.yaml", "--seeds", "1", "--pool", "alone")[0] == 0
    assert_close("runs/grid/wide-narrow/kd-seed0", "runs/alone/wide-narrow/kd-seed0", 1e-5)


@pytest.mark.slow
def test_a_killed_worker_resumes_by_itself():
    import psutil

    run = [*RUN[:-1], "epochs=60", "name=killed", "checkpoint_seconds=0.2"]
    whole = launch(["distill", *RUN[:-1], "epochs=60", "name=whole", "checkpoint_seconds=0.2"])
    assert whole[0] == 0, whole[2]
    started = start(["distill", *run], restarts=3)
    try:
        deadline = time.monotonic() + 60
        metrics = Path("runs/killed/metrics.jsonl")
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 5) and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = [p for p in psutil.Process(started.pid).children() if "tutelage" in " ".join(p.cmdline())]
        assert len(workers) == 2
        workers[1].kill()
        _, err = started.communicate(timeout=120)
    finally:
        end(started)
    assert started.returncode == 0, err
    recorded = epochs("runs/killed")
    assert [epoch["epoch"] for epoch in recorded] == list(range(1, 61))
    assert read("runs/killed/manifest.json")["resumed"] == 1
    assert_close("runs/killed", "runs/whole", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "verb", "typed"),
    [("train/b/7.png", "distill", ()), ("test/b/99.png", "distill", ("shard=both",)), ("train/b/7.png", "compare", ())],
    ids=str,
)
def test_an_error_of_one_process_names_it(place, verb, typed):
    """Only one process's share has the picture that cannot be read."""
    from PIL import Image

    for split, count in (("train", 24), ("test", 130)):
        for label in ("a", "b"):
            folder = Path("pictures") / split / label
            folder.mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (8, 8), (k * 9, 0, 255 * (label == "a"))).save(folder / f"{k}.png")
    broken = Path("pictures", place)
    size = broken.stat().st_size
    objectives = "objective: kd" if verb == "distill" else "objectives: {kd: kd, cross_entropy: cross_entropy}"
    Path("r.yaml").write_text(f"{objectives}\ndata: {{source: imagefolder:pictures}}\nstudent: mlp:8\nteacher: mlp:8\n")
    run = [verb, "r.yaml", *(["seeds=1"] if verb == "compare" else [])]
    run += ["weak_teacher=true", "precision=fp32", "device=cpu", "epochs=2", "name=p", "batch_size=8"]
    run += ["data.random_resized_crop=true", "data.size=8", *typed]
    broken.write_bytes(broken.read_bytes()[: size // 2])
    code, _, err = launch(run, timeout=100)
    assert code == 1
    lines = [line for line in err.splitlines() if line.startswith("tutelage:")]
    assert any(broken.name in line for line in lines), err


@pytest.mark.slow
def test_sharded_networks_are_trained_saved_and_evaluated_as_whole_ones(invoke):
    run = [*(word for word in RUN if "objective" not in word), "objective=kd_plus_plus"]  # It reads class means.
    code, _, err = launch(["distill", *run, "shard=both", "name=two"])
    assert code == 0, err
    invoke("distill", *run, "shard=both", "name=one")
    assert_close("runs/one", "runs/two", 1e-5)
    one, two = (read(f"runs/{name}/evaluation.json") for name in ("one", "two"))
    assert one["student"]["accuracy"] == two["student"]["accuracy"]
    assert one["teacher"] == two["teacher"]
    assert list(Path("runs/two/checkpoints").glob("*/shards/*"))
    assert not list(Path("runs/one/checkpoints").glob("*/shards"))
