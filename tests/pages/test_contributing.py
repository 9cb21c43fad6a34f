"""The worked example of CONTRIBUTING.md is a loss that trains and has its recorded values."""

from __future__ import annotations

import re

import pytest
from tests._helpers import ROOT, SHARED
from tests.pages.harness import blocks_of, play

import tutelage
from tutelage import losses, objectives
from tutelage.losses import logits as logits_module
from tutelage.objectives.methods import logits as logits_methods

PAGE = "CONTRIBUTING.md"
RECORDED = SHARED / "conformance" / "losses.jsonl"


def test_its_commands_exist(tmp_path):
    elsewhere = "its place is a module: the tests below put it there"
    play(PAGE, tmp_path, skip={"standardised_kd": elsewhere})


@pytest.fixture
def worked(monkeypatch):
    """The page's blocks, put where they say they go; what they add is taken away afterwards."""
    function, export, row, preset = (block.code for block in blocks_of(PAGE) if block.language == "python")
    space = dict(vars(logits_module))
    exec(compile(function, "losses/logits.py", "exec"), space)
    monkeypatch.setattr(logits_module, "standardised_kd", space["standardised_kd"], raising=False)
    exported = {}
    exec(compile(export, "losses/__init__.py", "exec"), exported)
    monkeypatch.setattr(losses, "standardised_kd", exported["standardised_kd"], raising=False)
    known = dict(objectives.PRESETS)
    objectives.PRESETS.pop("standardised_kd", None)
    exec(compile(preset, "objectives/methods/logits.py", "exec"), dict(vars(logits_methods)))
    yield row, preset
    objectives.PRESETS.clear()
    objectives.PRESETS.update(known)


def test_the_worked_example_is_a_preset_that_trains(worked, tmp_path):
    _, preset = worked
    objective = objectives.from_recipe({"standardised_kd": {"temperature": 3}})
    assert objectives.from_recipe(objective.to_recipe()) == objective
    body = re.sub(r'""".*?"""\n', "", preset, flags=re.DOTALL)
    assert len(body.strip().splitlines()) <= 10
    settings = {"data": "digits", "epochs": 1, "batch_size": 256, "device": "cpu", "runs": tmp_path}
    teacher = tutelage.train(model="mlp:16", name="teacher", optimizer={"name": "sgd", "lr": 0.2}, **settings)
    run = tutelage.distill(student="mlp:8", teacher=str(teacher.folder), objective=objective, name="s", **settings)
    assert set(run.epochs[0]["train"]["terms"]) == {"ce", "standardised_kd"}


@pytest.mark.skipif(not RECORDED.exists(), reason="the full file of recorded losses is not beside the repository")
def test_the_worked_example_reproduces_its_recorded_values(worked, monkeypatch):
    row, _ = worked
    monkeypatch.syspath_prepend(ROOT / "tests" / "conformance")
    import run

    methods = eval(f"{{{row}}}", {"losses": losses})
    monkeypatch.setattr(run, "METHODS", {**run.METHODS, **methods})
    results = [run.check(each) for each in run.read(RECORDED) if each["method"] in methods]
    assert len(results) >= 4
    assert [result for result in results if result.verdict != "passed"] == []
