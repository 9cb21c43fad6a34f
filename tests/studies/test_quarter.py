"""The quarter schedule: the study that its collected runs are of, and what is written from whichever are there."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
from tests._helpers import ROOT

from tutelage import config, records
from tutelage.studies import plan
from tutelage.studies.study_table import read_table

POOL = "cifar100-quarter"
SEEN = {"resnet56-resnet20/kd": (0.68, 0.69), "resnet56-resnet20/kd_matched": (0.69, 0.705, 0.7)}
"""Accuracies of runs that nobody trained, by seed."""


@pytest.fixture(scope="module")
def quarter():
    spec = importlib.util.spec_from_file_location("quarter", ROOT / "benchmarks/quarter.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pool(quarter, tmp_path, monkeypatch):
    """The collected runs, and some more."""
    monkeypatch.setattr(quarter.paper, "draw", lambda folder: [])
    shutil.copytree(
        quarter.RESULTS / POOL, tmp_path / POOL, ignore=shutil.ignore_patterns("resnet56-resnet20", "method-alone")
    )
    jobs = {job.name: job.recipe for job in plan.cells(quarter.request(tmp_path))}
    like = tmp_path / POOL / "students/resnet20-cross_entropy-seed0"
    for stem, accuracies in SEEN.items():
        for seed, accuracy in enumerate(accuracies):
            name = f"{POOL}/{stem}-seed{seed}"
            shutil.copytree(like, tmp_path / name)
            recipe = config.dump(jobs[name]).replace("3.3333333333333335", "3.3333333")  # as it was typed
            (tmp_path / name / records.RECIPE).write_text(recipe)
            evaluation = json.loads((like / records.EVALUATION).read_text())
            evaluation["student"]["accuracy"] = accuracy
            (tmp_path / name / records.EVALUATION).write_text(json.dumps(evaluation))
    return tmp_path / POOL


def test_the_study_is_the_quarter_schedule(quarter):
    asked = quarter.request()
    recipes = {job.method: job.recipe for job in plan.jobs(asked)}
    assert list(recipes) == ["teacher", "cross_entropy", "kd", "kd_matched", "ttm", "wttm", "wttm_auto"]
    for recipe in recipes.values():
        assert (recipe.epochs, recipe.schedule.milestones, recipe.precision) == (60, (38, 45, 53), "bf16")
    ((matched,),) = (entry.values() for entry in recipes["kd_matched"].objective.to_recipe())
    assert (matched["temperature"], matched["weight"]) == pytest.approx((10 / 3, 2.1))
    assert len(plan.jobs(asked)) == 19
    whole = plan.assign(asked.plain, asked.plain, runs=asked.runs)
    published = {job.method: job.recipe.model_dump(mode="json") for job in plan.jobs(whole)}
    for method, recipe in recipes.items():
        mine = recipe.model_dump(mode="json")
        differ = {key for key, value in mine.items() if value != published[method][key]}
        assert differ - {"name", "teacher"} == {"epochs", "schedule", "precision"}


def test_means_differences_and_what_is_missing(quarter, pool):
    folder = quarter.write(pool.parent)
    table = read_table(folder)
    weight, method, *_ = table.of(quarter.PAIR)
    assert weight.values == pytest.approx((1.0, 1.5))
    assert (weight.mean, weight.low) == (pytest.approx(1.25), pytest.approx(1.25 - 12.7062047 * 0.25))
    assert method.untested == "no seed that both have finished"
    text = (pool / "README.md").read_text()
    assert "- kd_matched: 69.00, 70.50, 70.00 %" in text
    assert "weight and temperature, kd_matched - kd: +1.25 points, n = 2, 95 % interval -1.93 to +4.43" in text
    missing = text.split("## Missing")[1].split("## Machine")[0]
    assert "- kd: seed 2\n- ttm: seeds 0, 1, 2\n" in missing
    assert "kd_matched" not in missing
    assert quarter.write(pool.parent) == folder
    assert (pool / "README.md").read_text() == text


def test_a_run_of_another_recipe_is_refused(quarter, pool):
    path = pool / "resnet56-resnet20/kd-seed1" / records.RECIPE
    path.write_text(path.read_text().replace("lr: 0.05", "lr: 0.1"))
    with pytest.raises(SystemExit, match=r"kd-seed1: expected the run of method-alone.*optimizer.lr was 0.1, is 0.05"):
        quarter.write(pool.parent)


def test_what_is_committed_is_made_of_the_records(quarter, tmp_path, monkeypatch):
    monkeypatch.setattr(quarter.paper, "draw", lambda folder: [])
    shutil.copytree(quarter.RESULTS / POOL, tmp_path / POOL)
    folder = quarter.write(tmp_path)
    for path in (*folder.glob("*.json"), *folder.glob("*.md"), tmp_path / POOL / "README.md"):
        assert path.read_text() == (quarter.RESULTS / path.relative_to(tmp_path)).read_text(), (
            "type python benchmarks/quarter.py"
        )
