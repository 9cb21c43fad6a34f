"""The verbs as calls: compare, evaluate and predict."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import tutelage
from tutelage import objectives, records
from tutelage.errors import RecipeError
from tutelage.models import Classifier
from tutelage.report import html

QUICK = {"epochs": 1, "batch_size": 512, "device": "cpu", "precision": "fp32", "optimizer": {"lr": 0.1}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write_report", lambda folder: folder / "report.html")
        yield tutelage.train(
            model="mlp:16",
            data={"source": "digits", "validation": 0.2},
            runs=tmp_path_factory.mktemp("runs"),
            **{**QUICK, "epochs": 3},
        )


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(html, "write_report", lambda folder: folder / "report.html")


def own_data():
    """Eight images of digits with their labels, twice."""
    images, labels = torch.linspace(0, 1, 8 * 64).reshape(8, 1, 8, 8), torch.arange(8) % 10
    return (TensorDataset(images, labels), TensorDataset(images, labels))


# evaluate


def test_a_run_its_folder_and_its_name_are_judged_as_the_run_judged_itself(run):
    expected = run.evaluation["student"]
    for model in (run, run.folder, str(run.folder)):
        judged = tutelage.evaluate(model)
        assert judged["accuracy"] == expected["accuracy"]
        assert judged["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_module_is_judged_on_named_data_and_on_its_owners(run):
    classifier = run.student
    assert tutelage.evaluate(classifier, data="digits") == tutelage.evaluate(run, data="digits")
    judged = tutelage.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data=own_data())
    assert sum(judged["entropy_histogram"]["counts"]) == 8
    splits = tutelage.data.from_datasets(*own_data(), classes=10)
    assert sum(tutelage.evaluate(run, data=splits)["entropy_histogram"]["counts"]) == 8


def test_the_data_of_a_run_are_its_own_unless_others_are_named(run):
    with pytest.raises(tutelage.errors.InvalidValueError) as caught:
        tutelage.evaluate(run, data={"source": "digits", "test": "train"})  # which digits refuse
    assert caught.value.what == "data.test"
    assert tutelage.evaluate(run)["accuracy"] == tutelage.evaluate(run, data="digits")["accuracy"]


def test_best_weights_are_those_of_the_best_epoch(run, tmp_path):
    best = records.read_json(run.folder / records.EVALUATION)["best"]
    held = run.epochs[best["epoch"] - 1]["test"]
    assert tutelage.evaluate(run, best=True)["accuracy"] == held["accuracy"]
    with pytest.raises(tutelage.errors.RecipeError) as caught:
        tutelage.evaluate("mlp:8", data="digits", best=True)
    assert caught.value.what == "best"


def test_a_setting_reaches_the_evaluation(run):
    with pytest.raises(tutelage.errors.RecipeError, match="precision"):
        tutelage.evaluate(run, precision="fp8")
    assert tutelage.evaluate(run, precision="bf16")["loss"] != tutelage.evaluate(run, precision="fp32")["loss"]


# predict


def test_a_run_its_folder_and_its_classifier_predict_alike(run):
    images = [np.full((8, 8), value, dtype=np.uint8) for value in (0, 8, 16)]
    expected = run.student.predict(images)
    assert isinstance(run.student, Classifier)
    for model in (run, run.folder, str(run.folder), run.student):
        assert tutelage.predict(model, images) == expected
    assert tutelage.predict(run, images, best=True) == tutelage.load(run.folder, best=True).predict(images)


# compare


def test_a_comparison_has_its_runs_its_rows_and_its_table(no_report, tmp_path):
    asked = {
        "student": "mlp:8",
        "teacher": {"train": {"model": "mlp:16", "epochs": 2}},
        "data": "digits",
        "objectives": {"ce": "cross_entropy", "sum": 0.5 * objectives.kd() + objectives.dist(supervised=0)},
        "seeds": 2,
        "baseline": "sum",
        "runs": tmp_path,
        **QUICK,
    }
    compared = tutelage.compare(**asked)
    assert compared.folder == tmp_path / "mlp-8-ce-sum"
    assert {name: [run.folder.name for run in runs] for name, runs in compared.runs.items()} == {
        "ce": ["ce-seed0", "ce-seed1"],
        "sum": ["sum-seed0", "sum-seed1"],
    }
    assert [(row.name, row.role, row.n) for row in compared.results][1:] == [
        ("sum", "baseline", 2),
        ("ce", "student", 2),
    ]
    accuracies = tuple(run.accuracy for run in compared.runs["sum"])
    assert compared.results[1].values == accuracies
    assert "| sum (baseline) |" in compared.table.markdown()
    again = tutelage.compare(**asked)
    assert tuple(run.accuracy for run in again.runs["sum"]) == accuracies
    with pytest.raises(tutelage.errors.RecipeError):
        tutelage.compare(**{**asked, "name": "mlp-8-ce-sum", "epochs": 2})


@pytest.mark.parametrize(
    ("key", "value"),
    [("student", nn.Linear(2, 2)), ("teacher", nn.Linear(2, 2)), ("data", own_data())],
)
def test_a_comparison_refuses_objects_of_which_there_is_one(key, value, tmp_path):
    asked = {"student": "mlp:8", "teacher": None, "data": "digits", "objectives": {"ce": "cross_entropy"}}
    with pytest.raises(tutelage.errors.InvalidTypeError) as caught:
        tutelage.compare(**{**asked, key: value}, runs=tmp_path)
    assert caught.value.what == key
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "instead"),
    [
        ({"optimizer": {"name": "adam"}}, "optimizer={'name': 'adamw'}"),
        ({"optimizer": {"name": "adamw", "betas": [2, 2]}}, "optimizer={'betas': [0.9, 0.999]}"),
        ({"device": "gpu"}, "device='cpu'"),
        ({"epochs": 0}, "epochs=240"),
    ],
)
def test_what_to_type_instead_is_python(setting, instead, tmp_path):
    with pytest.raises(RecipeError) as raised:
        tutelage.distill(student="mlp:4", teacher=None, data="digits", objective="kd", runs=tmp_path, **setting)
    assert raised.value.instead.endswith(instead)
    compile(f"f({instead})", "typed", "eval")
