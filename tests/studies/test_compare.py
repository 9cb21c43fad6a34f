"""A comparison's students are trained together, and are what they would be alone."""

import json

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import api, config, records
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import RecipeError
from tutelage.modules import Distiller
from tutelage.report import html, results
from tutelage.runs.execute import execute
from tutelage.runs.lock import folder_lock
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import RunOptions, finished
from tutelage.studies.compare import compare, plan
from tutelage.training.evaluate import NonFiniteError

VALUE = {
    "name": "few",
    "student": "mlp:8",
    "teacher": {"train": {"model": "mlp:16", "epochs": 2}},
    "epochs": 1,
    "batch_size": 512,
    "optimizer": {"lr": 0.3},
    "seeds": 2,
    "device": "cpu",
    "threads": 1,
    "objectives": {"ce": "cross_entropy", "kd": "kd", "wttm": {"wttm": {"gamma": 0.25, "beta": 1}}},
}


@pytest.fixture(autouse=True)
def one_thread_and_no_report(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(html, "write_report", lambda folder: folder / "report.html")
    yield
    torch.set_num_threads(threads)


class CollectingReporter(Reporter):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def of(**changes):
    return config.parse(Comparison, {**VALUE, **changes})


def do(folder, **changes):
    reporter = CollectingReporter()
    compare(of(**changes), folder, options=RunOptions(reporter=reporter))
    return reporter.lines


def manifest(folder):
    return json.loads((folder / records.MANIFEST).read_text())


def weights(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob(f"*-seed*/{records.STUDENT}")}


def test_those_of_one_data_seed_are_together_and_the_same_as_one_by_one(tmp_path):
    lines = do(tmp_path / "both")
    assert "students 1 to 3 of 6, together: few/ce-seed0, few/kd-seed0, few/wttm-seed0" in lines
    assert "students 4 to 6 of 6, together: few/ce-seed1, few/kd-seed1, few/wttm-seed1" in lines
    lines = do(tmp_path / "single", together=1)
    assert "student 6 of 6: few/wttm-seed1" in lines
    assert len(weights(tmp_path / "both")) == 6
    assert weights(tmp_path / "both") == weights(tmp_path / "single")
    assert manifest(tmp_path / "both" / "kd-seed1")["class"] == ["few/ce-seed1", "few/wttm-seed1"]
    assert manifest(tmp_path / "single" / "kd-seed1")["class"] == []


def test_a_group_is_no_larger_than_requested(tmp_path):
    lines = [text for text in do(tmp_path, together=2) if text.startswith("student")]
    assert [text.partition(":")[0] for text in lines] == [
        "students 1 to 2 of 6, together",
        "student 3 of 6",
        "students 4 to 5 of 6, together",
        "student 6 of 6",
    ]


def test_seeds_that_share_the_data_seed_are_one_group_and_are_marked(tmp_path):
    lines = do(tmp_path / "shared", share_data_seed=True)
    assert any(text.startswith("students 1 to 6 of 6, together: ") for text in lines)
    seeds = {path.name: manifest(path)["seeds"] for path in (tmp_path / "shared").glob("*-seed*")}
    assert {entry["data_seed"] for entry in seeds.values()} == {0}
    assert {seeds[f"kd-seed{k}"]["seed"] for k in range(2)} == {0, 1}
    assert len(manifest(tmp_path / "shared" / "kd-seed1")["class"]) == 5
    assert records.read_json(tmp_path / "shared" / records.COMPARISON)["share_data_seed"] is True
    mark = "Seeds share order and views"
    rows = results.rows(tmp_path / "shared")
    assert mark in results.table(rows).markdown()
    assert mark in results.table(rows).markdown()
    do(tmp_path / "own")
    assert mark not in results.table(results.rows(tmp_path / "own")).markdown()
    # The first seed's runs have the data seed that they would have anyway, the second's another.
    shared, separate = weights(tmp_path / "shared"), weights(tmp_path / "own")
    assert shared["kd-seed0"] == separate["kd-seed0"]
    assert shared["kd-seed1"] != separate["kd-seed1"]


def test_the_size_of_a_group_may_change_and_what_seeds_share_may_not(tmp_path):
    do(tmp_path, seeds=1, together=1)
    do(tmp_path, seeds=2, together=3)
    assert len(weights(tmp_path)) == 6
    with refused(RecipeError, "name", got=["share_data_seed", "false", "true"], suggests="name=..."):
        do(tmp_path, seeds=2, share_data_seed=True)


def test_a_comparison_that_lacks_its_teacher_is_refused_before_anything_is_written(tmp_path):
    """A recipe in the folder would refuse the comparison with the teacher that the message asks for."""
    with refused(RecipeError, "teacher", suggests="teacher=..."):
        do(tmp_path / "few", teacher=None)
    assert not (tmp_path / "few").exists()


def test_where_teacher_and_data_are_may_change_but_not_what_they_are(tmp_path):
    """The runs that are finished would stand in one table with those of other data, or of another teacher."""
    for name, seed in (("here", 0), ("there", 0), ("other", 1)):
        how = {"name": "t", "student": "mlp:16", "epochs": 2, "device": "cpu", "threads": 1, "seed": seed}
        execute(config.parse(Recipe, {**how, "optimizer": {"lr": 0.3}}), tmp_path / name / "t")
    how = {"seeds": 1, "objectives": {"kd": "kd"}}
    do(tmp_path / "few", teacher=str(tmp_path / "here/t"), **how)
    before = weights(tmp_path / "few")
    how["objectives"] = {"kd": "kd", "ce": "cross_entropy"}
    do(tmp_path / "few", teacher=str(tmp_path / "there/t"), data={"workers": 1}, **how)
    assert weights(tmp_path / "few").items() > before.items()
    resolved = (tmp_path / "few" / records.RECIPE).read_bytes()
    with refused(RecipeError, "name", got=["kd-seed0", "ce-seed0", "teacher's fingerprint"]):
        do(tmp_path / "few", teacher=str(tmp_path / "other/t"), **how)
    with refused(RecipeError, "name", got=["objectives.kd.0.kd.temperature", 4.0, 2], suggests="name=..."):
        do(
            tmp_path / "few",
            teacher=str(tmp_path / "here/t"),
            **how | {"objectives": {"kd": {"kd": {"temperature": 2}}}},
        )
    record = manifest(tmp_path / "few/ce-seed0")
    record["data"]["fingerprint"] = "f" * 16
    records.write_json(tmp_path / "few/ce-seed0" / records.MANIFEST, record)
    with refused(RecipeError, "name", got=["ce-seed0", "data's fingerprint", "f" * 16]):
        do(tmp_path / "few", teacher=str(tmp_path / "here/t"), **how)
    assert (tmp_path / "few" / records.RECIPE).read_bytes() == resolved


def test_a_run_that_fails_is_reported_after_those_beside_it_are_done(tmp_path, monkeypatch):
    plain = Distiller.forward

    def breaks(self, batch, teacher=None, *args):
        result = plain(self, batch, teacher, *args)
        if "kd" in self.objective.names:
            result = result._replace(loss=result.loss._replace(total=result.loss.total * torch.nan))
        return result

    monkeypatch.setattr(Distiller, "forward", breaks)
    with pytest.raises(NonFiniteError):
        do(tmp_path)
    status = {
        path.name: manifest(path)["status"] for path in tmp_path.glob("*-seed*") if (path / "manifest.json").exists()
    }
    assert status == {"ce-seed0": "finished", "kd-seed0": "failed", "wttm-seed0": "finished"}
    monkeypatch.undo()
    monkeypatch.setattr(html, "write_report", lambda folder: folder / "report.html")
    do(tmp_path)
    assert len(weights(tmp_path)) == 6


def test_a_run_of_another_process_is_left_to_it(tmp_path):
    with folder_lock(tmp_path / "kd-seed0"):
        lines = do(tmp_path, seeds=1)
    assert "few/kd-seed0 is running in another process: left to it" in lines
    assert set(weights(tmp_path)) == {"ce-seed0", "wttm-seed0"}


def test_the_plan_of_shared_seeds(tmp_path):
    seeds = [(recipe.seed, recipe.data_seed) for _, recipe in plan(of(share_data_seed=True, data_seed=7), tmp_path)]
    assert seeds == [(0, 7)] * 3 + [(1, 7)] * 3


def test_a_report_that_fails_costs_no_other_one_and_is_told(tmp_path, monkeypatch):
    written = []

    def write_report(folder):
        if folder.name.startswith("kd"):
            raise OSError("no room for it")
        written.append(folder.name)

    monkeypatch.setattr(html, "write_report", write_report)
    lines = do(tmp_path / "few", seeds=1)
    assert "kd-seed0: no report: no room for it" in lines
    assert {"ce-seed0", "wttm-seed0"} <= set(written)
    assert manifest(tmp_path / "few" / "kd-seed0")["status"] == "finished"


def test_a_trained_teacher_has_its_report_before_its_student_is_done(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(html, "write_report", lambda folder: written.append((folder.name, finished(folder.parent))))
    value = {key: inner for key, inner in VALUE.items() if key not in ("objectives", "seeds")}
    api.run(config.parse(Recipe, value | {"objective": "kd"}), tmp_path / "one", options=RunOptions())
    assert written == [("teacher", False), ("one", False)]


def test_a_run_that_is_interrupted_at_its_report_is_finished(tmp_path, monkeypatch):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(html, "write_report", interrupted)
    value = {key: inner for key, inner in VALUE.items() if key not in ("objectives", "seeds", "teacher")}
    recipe = config.parse(Recipe, value)
    with pytest.raises(KeyboardInterrupt):
        api.run(recipe, tmp_path / "one", options=RunOptions())
    assert finished(tmp_path / "one")
