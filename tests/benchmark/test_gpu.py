"""What is run on a GPU in parts: it resumes, one item costs no other, and a CPU's figures are never a GPU's."""

import importlib
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from tests._helpers import ROOT
from torch import nn

from tutelage import losses
from tutelage.benchmark.steps import BETA, GAMMA
from tutelage.settings.fit import SGD
from tutelage.studies import plan
from tutelage.training.buffers import SavedBuffers

CPU = {"device": "cpu", "gpu": None, "processor": "a processor"}
GPU = {"device": "cuda", "gpu": "a GPU", "processor": "a processor"}
SMALL = SimpleNamespace(device="cpu", small=True)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.fixture
def gpu(script, tmp_path):
    module = script("gpu")
    module.Record(tmp_path).open("cpu", True)
    return module


@pytest.fixture
def part(gpu, monkeypatch):
    """A part of four items, which note that they ran."""
    ran = []

    def item(name, error=None, seconds=1.0):
        def run():
            ran.append(name)
            if error:
                raise error
            return {"value": len(ran), "unfinished": name == "d" and len(ran) < 8}

        return seconds, run

    jobs = {"a": item("a"), "b": item("b", AssertionError("wrong")), "c": item("c"), "d": item("d")}
    module = SimpleNamespace(ran=ran, jobs=jobs, item=item, items=lambda options: jobs, report=lambda entries: {})
    monkeypatch.setattr(gpu, "module_of", lambda name: module)
    return module


def options(out, left=1e6):
    return SimpleNamespace(out=out, until=time.time() + left, typed=[], device="cpu", small=True)


def test_an_item_with_a_result_is_not_done_again(gpu, part, tmp_path, capsys):
    gpu.work("bugs", options(tmp_path))
    gpu.work("bugs", options(tmp_path))
    assert part.ran == ["a", "b", "c", "d", "d"]  # d is unfinished
    record = gpu.Record(tmp_path)
    assert record.entries("bugs", "FAIL")["b"]["error"] == "AssertionError: wrong"
    assert record.entries("bugs", "ok")["a"]["result"] == {"value": 1}
    assert list(record.entries("bugs", "unfinished")) == ["d"]
    assert "FAIL  b" in capsys.readouterr().out


def test_an_item_that_there_is_no_time_for_is_not_begun(gpu, part, tmp_path):
    part.jobs["c"] = part.item("c", seconds=100.0)
    gpu.work("bugs", options(tmp_path, left=50))
    assert part.ran == ["a", "b"]


def test_after_an_error_that_may_have_broken_it_a_worker_ends(gpu, part, tmp_path):
    part.jobs["a"] = part.item("a", RuntimeError("Offset increment\noutside graph capture"))
    with pytest.raises(SystemExit) as ended:
        gpu.work("bugs", options(tmp_path))
    assert (ended.value.code, part.ran) == (gpu.BROKEN, ["a"])
    assert gpu.Record(tmp_path).entries("bugs", "FAIL")["a"]["error"].endswith("Offset increment outside graph capture")


def test_another_worker_goes_on_where_one_died(gpu, part, tmp_path, monkeypatch):
    def worker(typed, env):
        if not part.ran:
            part.ran.append("a")
            gpu.Record(tmp_path).add("bugs", "a", "began")
            return SimpleNamespace(returncode=-11)
        gpu.work("bugs", options(tmp_path))
        return SimpleNamespace(returncode=0)

    del part.jobs["d"]
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=worker))
    assert gpu.run_part("bugs", options(tmp_path))
    assert part.ran == ["a", "b", "c"]
    assert "exit status -11" in gpu.Record(tmp_path).entries("bugs", "FAIL")["a"]["error"]


def test_results_of_another_machine_or_size_are_refused(gpu, tmp_path):
    with gpu.Record(tmp_path).path.open("a") as file:
        file.write('{"part": "bugs", "it')  # killed while it wrote
    gpu.Record(tmp_path).open("cpu", True)
    with pytest.raises(SystemExit, match=r"--out: expected results of .*False.*, got those of .*True"):
        gpu.Record(tmp_path).open("cpu", False)


MS = {
    "published": [20.0, 22.0, 21.0],
    "live": [3.0],
    "recorded": [1.5],
    "six": [6.0],
    "graph live": [2.5],
    "graph recorded": [2.0],
    "graph six": [5.0],
}
PAIR = {"pair": "a/b", "batch": 64, "students": 6, "n": {"steps": 200, "rounds": 3}, "ms": MS}
LOSS = {"n": 3, "ms": 4.5, "least": 4.4, "most": 4.6, "added_mb": 520.0, "first_call_s": 9.0}
LOSS |= {"floor_ms": 0.26, "floor": "as known of this device"}
RUNS = {
    "teacher, seed 100": {"method": "teacher", "finished": True, "accuracy": [50.0, 74.85]},
    "kd, seed 0": {"method": "kd", "finished": True, "accuracy": [72.0]},
    "kd, seed 1": {"method": "kd", "finished": True, "accuracy": [73.0]},
    "ttm, seed 0": {"method": "ttm", "finished": False, "accuracy": [60.0, 61.0]},
}
VALUES = {"kd": {"mean": 72.98, "std": 0.19, "n": 5}, "ttm": {"mean": 74.33, "std": 0.07, "n": 5}}
SCHEDULE = {"finished": 3, "of": 4, "epochs": 240, "runs": RUNS, "published": VALUES}


def write_recorded(folder, hardware, small):
    entries = [
        {"small": small, "hardware": hardware, "software": {"torch": "2", "python": "3"}},
        {"part": "bugs", "item": "replayed: kd", "status": "ok", "result": {"verdict": "captured"}},
        {"part": "bugs", "item": "no host wait: kd", "status": "FAIL", "error": "AssertionError: the host waits"},
        {"part": "ratios", "item": "a/b", "status": "ok", "result": PAIR | {"first_call_s": dict.fromkeys(MS, 1.0)}},
        {"part": "losses", "item": "4 x 5, bfloat16, kd: losses", "status": "ok", "result": LOSS},
        {"part": "schedule", "item": "study", "status": "unfinished", "result": SCHEDULE},
    ]
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_the_report_is_made_from_what_was_recorded(script, tmp_path, monkeypatch, capsys):
    gpu = script("gpu")
    monkeypatch.setattr(gpu, "RESULT", tmp_path / "gpu.json")
    write_recorded(tmp_path, GPU, False)
    gpu.report(tmp_path)
    text = capsys.readouterr().out
    assert "live 7.00x (1.20 of the graph), recorded 14.00x (0.75 of the graph), six 21.00x (1.20 of the graph)" in text
    assert "FAIL no host wait: kd: AssertionError: the host waits" in text
    assert "captured: kd" in text
    assert "520 MB added" in text
    assert "72.50 ± 0.71, n = 2    published 72.98 ± 0.19, n = 5" in text
    assert "unfinished at epoch 2" in text
    assert "without a GPU" not in text
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["hardware"] == GPU
    assert written["parts"]["ratios"]["summary"]["live"]["times_as_fast_as_published"] == pytest.approx(7.0)
    assert written["parts"]["schedule"]["summary"]["kd"]["mean"] == 72.5


@pytest.mark.parametrize(("hardware", "small"), [(CPU, False), (GPU, True)])
def test_what_says_nothing_of_a_gpu_is_not_written_as_a_gpus(hardware, small, script, tmp_path, monkeypatch, capsys):
    gpu = script("gpu")
    monkeypatch.setattr(gpu, "RESULT", tmp_path / "of-a-gpu.json")
    write_recorded(tmp_path / "out", hardware, small)
    gpu.report(tmp_path / "out")
    assert "that it runs is all that this says" in capsys.readouterr().out
    assert not gpu.RESULT.exists()
    assert (tmp_path / "out" / "gpu.json").exists()


def test_the_schedule_is_a_pair_of_the_study_in_half_precision(script, tmp_path):
    schedule = script("gpu_schedule")
    options = SimpleNamespace(device="cuda", small=False, data="path/to/cifar100", teacher=None, out=tmp_path)
    request = schedule.request(options)
    teacher, *students = plan.jobs(request)
    assert (teacher.recipe.student.name, len(students)) == ("cifar:vgg13", 18)
    assert {(job.recipe.epochs, job.recipe.precision, job.recipe.data.source) for job in students} == {
        (240, "bf16", "hf:path/to/cifar100")
    }
    options.small, options.teacher = True, "runs/teacher"
    request = schedule.request(options)
    assert [job.recipe.student.name for job in plan.jobs(request)] == ["mlp:4"] * 6
    assert request.study.pairs[schedule.PAIR].teacher.name == "runs/teacher"


def test_a_mark_of_a_skipped_step_is_found(script, monkeypatch):
    bugs = script("gpu_bugs")
    assert bugs.skips(SGD(), SMALL) == {}
    monkeypatch.setattr(SavedBuffers, "restore", lambda self: None)
    with pytest.raises(AssertionError, match="no mark of the skipped step"):
        bugs.skips(SGD(), SMALL)


def test_the_step_by_hand_is_that_of_sgd_on_the_same_loss(script):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 32, 32, 3), generator=draw, dtype=torch.uint8)
    labels, logits = torch.arange(8) % 3, torch.randn(8, 3, generator=draw)
    student, other = (nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)) for _ in range(2))
    other.load_state_dict(student.state_dict())
    step = script("gpu_ratios").WholeStep(images, labels, [student], logits, batch=4)
    seen = []
    views = step._views
    step._views = lambda index: seen.append((index, views(index))) or seen[-1][1]
    step(), step()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for index, inputs in seen:
        assert inputs.shape == (4, 3, 32, 32)
        assert 0 <= inputs.min() < inputs.max() <= 1
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            z = other(inputs).float()
        (losses.cross_entropy(z, labels[index]) + BETA * losses.wttm(z, logits[index], gamma=GAMMA)).mean().backward()
        optimizer.step()
    assert sorted(torch.cat([index for index, _ in seen]).tolist()) == list(range(8))
    for mine, theirs in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.slow
def test_all_parts_run_in_small_on_a_cpu(tmp_path):
    typed = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--small", "--out", tmp_path]
    ended = subprocess.run(typed, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert list(record["parts"]) == ["bugs", "ratios", "losses", "schedule"]
    assert {item["status"] for part in record["parts"].values() for item in part["items"].values()} == {"ok"}
