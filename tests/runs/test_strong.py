"""Runs of samples with two views: what they learn from, record, resume and refuse; and of DeiT's token."""

from __future__ import annotations

import pytest
import torch
from tests._helpers.processes import processes
from tests._helpers.refusals import refused
from tests._helpers.stopped_run import stopped

import tutelage
from tutelage import config, models
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.runs import record_teacher
from tutelage.runs.dry_run import dry_run
from tutelage.runs.execute import execute
from tutelage.runs.run import RunOptions

STRONG = {"source": "digits", "crop_padding": 1, "strong": {"randaugment": {"magnitude": 10}}}
CRLD = {"crld": {"tau_w": 0.1, "tau_s": 0.1}}
COMMON = {"name": "run", "epochs": 1, "batch_size": 300, "device": "cpu", "threads": 1, "weak_teacher": True}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("tutelage.report.html.write_report", lambda folder: None)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    execute(config.parse(Recipe, {**COMMON, "student": "mlp:16", "data": "digits"}), folder)
    return str(folder)


def recipe(kind=Recipe, **keys):
    defaults = {"data": STRONG, "student": "mlp:8", "optimizer": {"name": "sgd", "lr": 0.01}}
    return config.parse(kind, {**COMMON, **defaults, **keys})


@pytest.mark.parametrize("objective", [CRLD, "two_view_mlkd"], ids=["crld", "two_view_mlkd"])
def test_a_run_learns_from_both_views_and_resumes_to_the_bit(teacher, tmp_path, monkeypatch, objective):
    planned = recipe(teacher=teacher, objective=objective, checkpoint_steps=1)
    whole = execute(planned, tmp_path / "whole")
    (epoch,) = whole.epochs
    assert epoch["train"]["samples"] == 2 * 1437  # rows
    assert epoch["step"] == 5
    assert all(term > 0 for term in epoch["train"]["terms"].values())
    stopped(planned, tmp_path / "resumed", monkeypatch)
    execute(planned, tmp_path / "resumed")
    one, other = (models.read(tmp_path / name / "student.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_objectives_of_one_view_learn_from_both_in_micro_batches_too(teacher, tmp_path):
    whole = execute(recipe(teacher=teacher, objective="kd", precision="fp64"), tmp_path / "whole")
    cut = execute(recipe(teacher=teacher, objective="kd", precision="fp64", accumulate=7), tmp_path / "cut")
    assert whole.epochs[0]["train"]["samples"] == 2 * 1437
    assert cut.epochs[0]["train"]["loss"] == pytest.approx(whole.epochs[0]["train"]["loss"], rel=1e-9)


def test_what_needs_two_views_is_refused_without_before_training(teacher, tmp_path):
    with refused(RecipeError, "data.strong", got=1, suggests="data.strong={randaugment: {}}"):
        execute(recipe(teacher=teacher, objective=CRLD, data="digits"), tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()
    with refused(RecipeError, "data.strong", got=1):
        dry_run(recipe(teacher=teacher, objective="two_view_mlkd", data="digits"))
    with refused(InvalidValueError, "accumulate", got=2, suggests="accumulate=1"):
        execute(recipe(teacher=teacher, objective=CRLD, accumulate=2), tmp_path / "cut")
    recorded = recipe(teacher=teacher, objective="kd", outputs=str(tmp_path / "outputs"))
    for run in (lambda: record_teacher.record(recorded), lambda: execute(recorded, tmp_path / "recorded")):
        with refused(RecipeError, "outputs", suggests="outputs=null"):
            run()


NORMALISED = """
from torch import nn

def make(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))
"""


def test_one_sample_is_enough_for_a_batch(teacher, tmp_path):
    """Also for a batch norm, which has two rows of it."""
    (tmp_path / "mine.py").write_text(NORMALISED)
    keys = {"student": f"file:{tmp_path / 'mine.py'}:make", "batch_size": 1436}
    odd, options = recipe(teacher=teacher, objective=CRLD, **keys), RunOptions(trust_code=True)
    assert dict(dry_run(odd, trust_code=True))["logits"] == "(2872, 10)"
    assert execute(odd, tmp_path / "run", options=options).epochs[0]["step"] == 2
    with refused(RecipeError, "batch_size", got=1):
        execute(recipe(objective="cross_entropy", **keys | {"data": "digits"}), tmp_path / "alone", options=options)


def test_a_teacher_that_is_trained_first_has_one_view():
    keys = {"teacher": {"train": {"model": "mlp:16"}}, "objectives": {"crld": "crld", "kd": "kd"}}
    comparison = recipe(Comparison, **keys)
    assert comparison.training("teacher").data.strong is None


def trained_in_two(rank, teacher, folder):
    execute(recipe(teacher=teacher, objective=CRLD, precision="fp64", batch_size=479), folder / "two")


@pytest.mark.slow
def test_two_processes_learn_as_one(teacher, tmp_path):
    processes(2, trained_in_two, teacher, tmp_path)
    alone = execute(recipe(teacher=teacher, objective=CRLD, precision="fp64", batch_size=479), tmp_path / "one")
    one, two = (models.read(tmp_path / name / "student.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], rtol=1e-9, atol=1e-12) for name in one)
    assert alone.epochs[0]["train"]["samples"] == 2 * 1437


VISION_TRANSFORMER = """
from timm.models.deit import VisionTransformerDistilled

def make(classes):
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return VisionTransformerDistilled(num_classes=classes, **sizes)
"""


@pytest.mark.parametrize("arguments", [{}, {"form": "soft", "weight": 0.1, "supervised": 0.9}], ids=["hard", "soft"])
def test_a_distilled_vision_transformer_is_trained(teacher, tmp_path, arguments):
    pytest.importorskip("timm", reason="the optional package timm is not installed")
    (tmp_path / "mine.py").write_text(VISION_TRANSFORMER)
    keys = {"student": f"file:{tmp_path / 'mine.py'}:make", "data": "digits", "batch_size": 32, "epochs": 2}
    keys["optimizer"] = {"name": "adamw", "lr": 5e-3}
    planned = recipe(teacher=teacher, objective={"deit": arguments}, **keys)
    run = execute(planned, tmp_path / "run", options=RunOptions(trust_code=True))
    first, last = run.epochs
    assert last["train"]["loss"] < first["train"]["loss"]
    assert last["test"]["accuracy"] > 0.2
    student = tutelage.load(run.folder, trust_code=True)
    assert student.network.head_dist.weight.std() > 0.01


def test_a_network_without_the_token_is_refused_by_its_tap(teacher, tmp_path):
    with refused(RecipeError, "objective deit: tap head", suggests="conv1"):
        execute(recipe(teacher=teacher, objective="deit", student="cifar:resnet8", data="digits"), tmp_path / "run")
