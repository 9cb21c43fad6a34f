"""Runs whose teacher is a graph in a file: by recipes and calls, repeated, recorded, and what is refused."""

import sys
import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from tests._helpers.refusals import refused

import tutelage
from tutelage import records
from tutelage.cli import app
from tutelage.config import parse
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.report import html
from tutelage.runs import preflight
from tutelage.runs.record_teacher import record
from tutelage.teacher_cache.cache import TeacherCacheError


@pytest.fixture(autouse=True)
def teacher(tmp_path, monkeypatch):
    """A classifier of digits by the nearest class mean, with its logits and their softmax; runs have no report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(html, "write_report", lambda folder: None)
    digits = load_digits()
    means = np.stack([digits.data[digits.target == k].mean(0) / 16 for k in range(10)])
    tensors = {"weight": 10 * means, "bias": -5 * (means**2).sum(1)}
    info, batch = helper.make_tensor_value_info, ("batch", 10)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["shares"]),
    ]
    graph = helper.make_graph(
        nodes,
        "nearest mean",
        [info("image", TensorProto.FLOAT, ("batch", 1, 8, 8))],
        [info(name, TensorProto.FLOAT, batch) for name in ("logits", "shares")],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), "mean.onnx")
    return {"name": "onnx:mean.onnx", "output": "logits"}


def distil(name, teacher, **settings):
    chosen = {"data": "digits", "objective": {"wttm": {"gamma": 0.5, "beta": 1}}, "epochs": 1, "batch_size": 256}
    return tutelage.distill(student="mlp:4", teacher=teacher, name=name, precision="fp32", **{**chosen, **settings})


def tutelage_typed(monkeypatch, *typed):
    monkeypatch.setattr(sys, "argv", ["tutelage", *typed])
    try:
        app.main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_a_run_learns_from_it_and_is_repeated_from_its_folder(teacher, monkeypatch):
    run = distil("first", teacher)
    manifest = run.manifest["teacher"]
    assert manifest["accuracy"] > 0.8
    assert manifest["fingerprint"] == tutelage.models.fingerprint(tutelage.models.create(**teacher))
    assert manifest["source"].startswith("mean.onnx, sha256 ")
    assert run.manifest["repeatable"]
    assert tutelage_typed(monkeypatch, "distill", "runs/first") == 0
    again = records.read_manifest(run.folder.with_name("first-again"))
    assert again["student"] == run.manifest["student"]
    model = onnx.load("mean.onnx")
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    onnx.save_model(model, "mean.onnx")
    assert tutelage_typed(monkeypatch, "distill", "runs/first") == 2  # The file is another one by now.


def test_recorded_outputs_are_those_of_a_file_and_of_an_output(teacher):
    settings = {"outputs": "outputs", "epochs": 2}
    recipe = {"name": "recorded", "student": "mlp:4", "teacher": teacher, "objective": "kd", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record(parse(Recipe, recipe))
    run = distil("recorded", teacher, objective="kd", **settings)
    assert run.manifest["teacher"]["answers"] != "live"
    with refused(TeacherCacheError, suggests="another folder"):
        distil("other", {**teacher, "output": "shares"}, objective="kd", **settings)


def test_probabilities_are_told(teacher):
    with pytest.warns(UserWarning, match="as probabilities do"):
        distil("shares", {**teacher, "output": "shares"})


def test_statistics_of_a_recipe_are_in_the_manifest_and_change_the_teacher(teacher):
    run = distil("scaled", {**teacher, "mean": [0.5], "std": [0.25]}, weak_teacher=True)
    assert run.manifest["teacher"]["normalisation"] == {"mean": [0.5], "std": [0.25]}
    written = (run.folder / records.RECIPE).read_text()
    assert "mean:\n  - 0.5" in written


def test_it_is_evaluated_and_predicts():
    model = onnx.load("mean.onnx")
    del model.graph.output[1]
    onnx.save_model(model, "one.onnx")
    assert tutelage.evaluate("onnx:one.onnx", data="digits")["accuracy"] > 0.8
    image = (load_digits().images[0] * 15.9).astype(np.uint8)
    assert tutelage.predict("onnx:one.onnx", image)[0].label == 0


@pytest.mark.parametrize("prefix", ["onnx", "export"])
def test_it_is_no_student(prefix, teacher, monkeypatch):
    name = f"{prefix}:mean.onnx"
    with refused(RecipeError, "student", got=name, suggests="teacher"):
        tutelage.train(model=name, data="digits", name="student", epochs=1, trust_code=True)
    for recipe, what in (
        ({"student": name, "teacher": teacher}, "student"),
        ({"student": name}, "model"),
        ({"student": "mlp:4", "teacher": {"train": {"model": name}}}, "teacher.train.model"),
    ):
        with refused(RecipeError, what, got=name):
            preflight.check_names(parse(Recipe, {"name": "x", **recipe}), trust_code=True)
    assert tutelage_typed(monkeypatch, "train", "name=x", f"model={name}") == 2


def test_its_size_is_that_of_the_file(teacher):
    """Images are brought to it; another one cannot be typed."""
    run = distil("sized", teacher, data={"source": "digits", "size": 16})
    assert run.manifest["teacher"]["input"] == [1, 8, 8]
    with refused(InvalidValueError, "image_size", got="(16, 16)"):
        distil("typed", {**teacher, "size": 16})


def test_what_is_typed_wrong_is_named_by_its_key(teacher):
    with refused(InvalidValueError, "teacher.output", got="probabilities", suggests="number"):
        distil("wrong", {**teacher, "output": "probabilities"})
    with refused(InvalidValueError, "teacher.mean", got=3):
        distil("wrong", {**teacher, "mean": [0.5] * 3, "std": [0.5] * 3})
    with refused(InvalidValueError, "student.mean", suggests="out"):
        tutelage.train(model={"name": "mlp:4", "mean": [0.5], "std": [0.5]}, data="digits", name="wrong", epochs=1)
    for keys, what in (
        ({"mean": [0.5]}, "teacher"),
        ({"mean": [0.5, 0.5], "std": [0.5]}, "teacher"),
        ({"mean": [127.5], "std": [0.5]}, "teacher.mean"),
        ({"mean": [0.5], "std": [0.0]}, "teacher.std"),
        ({"mean": [], "std": []}, "teacher.mean"),
        ({"mean": 0.5, "std": 0.5}, "teacher.mean"),
        ({"mean": [float("nan")], "std": [0.5]}, "teacher.mean"),
        ({"mean": [True], "std": [0.5]}, "teacher.mean"),
        ({"output": -1}, "teacher.output"),
        ({"output": ""}, "teacher.output"),
        ({"output": 1.5}, "teacher.output"),
    ):
        with pytest.raises(RecipeError) as error:
            parse(Recipe, {"name": "x", "student": "mlp:4", "teacher": {**teacher, **keys}})
        assert error.value.errors[0].what == f"recipe: {what}"


def test_a_network_of_your_own_gets_statistics_and_channels(tmp_path):
    """Three means are of three channels, to which grey images are brought."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef make(classes, channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, classes))\n"
    )
    own = {"name": "file:net.py:make", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}
    run = tutelage.train(model=own, data="digits", name="own", epochs=1, batch_size=256, trust_code=True)
    assert run.manifest["student"]["input"] == [3, 8, 8]
    loaded = tutelage.load(run.folder, trust_code=True)
    assert loaded.card.mean == (0.1, 0.2, 0.3)
    with refused(InvalidValueError, "student.mean", suggests="out"):
        tutelage.train(model={**own, "name": str(run.folder)}, data="digits", name="more", epochs=1, trust_code=True)
