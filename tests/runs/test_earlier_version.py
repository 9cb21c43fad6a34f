"""Runs of an earlier version are read, and resumed.

`tests/fixtures/runs` was written at the commit that its manifests name: a teacher and a student that finished, each
without its checkpoints, two students that were killed in the middle of an epoch, and recorded outputs, which the
second of them reads. Reports and lock files are left out.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch.optim.optimizer import register_optimizer_step_post_hook

import tutelage

FIXTURES = Path(__file__).parents[1] / "fixtures"
UNFINISHED = {"unfinished": (17, 48), "unfinished-recorded": (24 + 5, 48)}
"""Steps done at the last checkpoint, and of the whole run."""

# Another version of PyTorch than wrote them is warned of: bits may differ.
pytestmark = [
    pytest.mark.filterwarnings("ignore:resume. expected the same set-up"),
    pytest.mark.filterwarnings("ignore:.*recorded by an earlier version"),
]


@pytest.fixture(autouse=True)
def copy(tmp_path, monkeypatch):
    shutil.copytree(FIXTURES / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def steps():
    """Count the optimizer's steps."""
    taken = []
    hook = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    yield taken
    hook.remove()


def record(name, file):
    return json.loads(Path("runs", name, file).read_text())


def epochs(name):
    return [json.loads(line) for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_run_goes_on_where_it_was(invoke, steps, name):
    before = epochs(name)
    done, whole = UNFINISHED[name]
    assert record(name, "manifest.json")["status"] == "running"
    code, _, err = invoke("distill", f"runs/{name}")
    assert code == 0, err
    assert len(steps) == whole - done
    assert record(name, "manifest.json")["status"] == "finished"
    assert record(name, "manifest.json")["resumed"] == 1
    assert epochs(name)[: len(before)] == before, "what was done stays, its times too"
    assert len(epochs(name)) == 4
    steps.clear()
    assert invoke("distill", f"runs/{name}", "name=whole")[0] == 0
    assert len(steps) == whole
    # Not to the bit: the first part may have been done by another processor.
    resumed, whole = (load_file(f"runs/{run}/student.safetensors") for run in (name, "whole"))
    torch.testing.assert_close(resumed, whole, rtol=1e-3, atol=1e-3)
    for epoch, expected in zip(epochs(name), epochs("whole"), strict=True):
        assert epoch["train"]["loss"] == pytest.approx(expected["train"]["loss"], rel=1e-3)


def test_it_goes_on_by_the_command_that_began_it(invoke, steps):
    Path("student.yaml").write_text(Path("runs/unfinished/recipe.yaml").read_text())
    assert invoke("distill", "student.yaml")[0] == 0
    assert len(steps) == 31
    assert record("unfinished", "manifest.json")["resumed"] == 1


@pytest.mark.parametrize("name", ["teacher", "finished"])
def test_a_finished_run_is_evaluated(invoke, name):
    code, out, err = invoke("evaluate", f"runs/{name}")
    assert code == 0, err
    accuracy = float(re.search(r"accuracy\s+([\d.]+) %", out)[1]) / 100
    # One of its 360 test samples may fall on the other side on another processor.
    assert accuracy == pytest.approx(record(name, "evaluation.json")["student"]["accuracy"], abs=1.1 / 360)


def test_a_finished_run_is_reported(invoke):
    code, out, err = invoke("report", "runs/finished")
    assert code == 0, err
    assert f"{record('finished', 'evaluation.json')['student']['accuracy'] * 100:.2f}" in out
    assert "finished" in Path("runs/finished/report.html").read_text()


def test_a_finished_run_predicts():
    digits = load_digits()
    predictions = tutelage.load("runs/finished").predict(list(digits.images.astype("uint8")))
    pairs = zip(predictions, digits.target, strict=True)
    accuracy = sum(prediction.label == label for prediction, label in pairs) / len(predictions)
    assert accuracy == pytest.approx(record("finished", "evaluation.json")["student"]["accuracy"], abs=0.1)
    assert 0.1 < predictions[0].probability <= 1


def test_a_finished_run_is_not_done_again(invoke):
    code, _, err = invoke("distill", "runs/finished", "name=finished")
    assert code == 2
    assert "finished" in err


def test_a_finished_run_is_repeated(invoke):
    assert invoke("distill", "runs/finished")[0] == 0
    repeated, first = (record(name, "evaluation.json")["student"] for name in ("finished-again", "finished"))
    assert repeated.keys() - first.keys() == {"calibration"}  # which earlier versions did not fit
    assert first.keys() <= repeated.keys()
    assert repeated["loss"] == pytest.approx(first["loss"], rel=1e-2)
