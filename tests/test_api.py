"""The verbs as calls: compare, evaluate and predict."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.refusals import refused
from torch import nn
from torch.utils.data import TensorDataset

import tutelage
from tutelage import objectives, records
from tutelage.errors import RecipeError
from tutelage.models import Card, Classifier
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
    how = {"data": "digits", "batch_size": 512}  # the run's, whose sums round alike
    assert tutelage.evaluate(classifier, **how) == tutelage.evaluate(run, **how)
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
    [("student", nn.Linear(2, 2)), ("teacher", nn.Linear(2, 2)), ("data", own_data()), ("data.transform", len)],
)
def test_a_comparison_refuses_objects_of_which_there_is_one(key, value, tmp_path):
    asked = {"student": "mlp:8", "teacher": None, "data": "digits", "objectives": {"ce": "cross_entropy"}}
    given = {"data": {"source": "digits", "transform": value}} if key == "data.transform" else {key: value}
    with pytest.raises(tutelage.errors.InvalidTypeError) as caught:
        tutelage.compare(**{**asked, **given}, runs=tmp_path)
    assert caught.value.what == key
    assert not list(tmp_path.iterdir())


# What is not a model, not its data, not an image


@pytest.mark.parametrize(("call", "argument"), [(tutelage.evaluate, "model"), (tutelage.predict, "model")])
def test_what_is_no_model_is_refused_by_its_argument(call, argument):
    with refused(tutelage.errors.InvalidTypeError, argument, got="None"):
        call(None, **({"images": []} if call is tutelage.predict else {}))


def test_the_argument_and_the_call_are_those_that_were_typed(tmp_path):
    with refused(tutelage.errors.InvalidTypeError, "model", got="3"):
        tutelage.train(model=3, data="digits", runs=tmp_path)
    with refused(tutelage.errors.InvalidTypeError, "teacher", suggests="tutelage.train"):
        tutelage.distill(student="mlp:8", teacher={"train": {}}, data="digits", objective="kd", runs=tmp_path)
    with refused(tutelage.errors.RecipeError, "train: epoch", suggests="epochs"):
        tutelage.train(model="mlp:8", data="digits", epoch=1, runs=tmp_path)
    with refused(tutelage.errors.RecipeError, "train: optimizer.lr", suggests="optimizer={'lr': '...'}"):
        tutelage.train(model="mlp:8", data="digits", runs=tmp_path, **{"optimizer.lr": 0.1})
    with refused(tutelage.errors.InvalidValueError, "objective", got="function", suggests="cross_entropy()"):
        tutelage.train(model="mlp:8", data="digits", objective=objectives.cross_entropy, runs=tmp_path)
    with refused(tutelage.errors.InvalidValueError, "objective", got="Objective", suggests="a + b"):
        tutelage.train(model="mlp:8", data="digits", objective=[objectives.cross_entropy(), "kd"], runs=tmp_path)
    with refused(tutelage.errors.RecipeError, "train: device", got="device(type='cpu')"):
        tutelage.train(model="mlp:8", data="digits", device=torch.device("cpu"), runs=tmp_path)


@pytest.mark.parametrize("classes", [7, 12])
def test_a_module_of_other_classes_is_not_judged(classes):
    with refused(tutelage.errors.RecipeError, "model object:Sequential", got=str(classes)):
        tutelage.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, classes)), data="digits")


def test_a_model_is_judged_on_other_data_by_the_names_of_its_classes():
    """Never by their places, where these are others: that would be a wrong number."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(4, 64))  # whose class is the pixel that is white
    names = ("apple", "bread", "cat", "dog")
    model = Classifier(network, Card(name="own", classes=4, class_names=names))
    backwards = Classifier(network, Card(name="own", classes=4, class_names=names[::-1]), outputs=[3, 2, 1, 0])

    def pair(*order, names=names):
        data = TensorDataset(torch.eye(64)[list(order)].reshape(-1, 1, 8, 8), torch.arange(len(order)))
        data.classes = [names[k] for k in order]
        return data, data

    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [3, 1]):
        for each in (model, backwards):
            judged = tutelage.evaluate(each, data=pair(*order, names=[name.title() for name in names]))
            assert judged["per_class"] == [1.0] * len(order)
    other = pair(3, 2, 1, names=["ant", "bee", "cat", "Dog"])
    with refused(RecipeError, "model object:Classifier", got="1 ('bee') of the data's", suggests="model.classes=[...]"):
        tutelage.evaluate(model, data=other)
    assert tutelage.evaluate({"name": model, "classes": ["dog", 2, "bread"]}, data=other)["accuracy"] == 1
    with pytest.warns(UserWarning, match="'apple' for 'n0', 'bread' for 'n1', 'cat' for 'n2', ..."):
        assert tutelage.evaluate(model, data=pair(0, 1, 2, 3, names=["n0", "n1", "n2", "n3"]))["accuracy"] == 1


def test_errors_out_of_a_users_module_name_it(run):
    module = nn.Sequential(nn.Flatten(), nn.Linear(63, 10))
    with refused(
        tutelage.errors.UserCodeError, "Sequential", got="1 (Linear)", suggests="image_size=(16, 16)"
    ) as raised:
        tutelage.evaluate(module, data="digits")
    assert "model object:Sequential to take inputs (2, 1, 8, 8)" in raised.value.expected
    with refused(tutelage.errors.UserCodeError, "Sequential"):
        tutelage.predict(module, np.zeros((8, 8), np.uint8))
    with refused(tutelage.errors.InvalidValueError, "best", got="Classifier"):
        tutelage.predict(run.student, np.zeros((8, 8), np.uint8), best=True)


def test_a_named_model_that_does_not_take_the_images_is_not_judged():
    images = TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8))
    images.classes = [str(k) for k in range(1000)]
    with refused(RecipeError, "model torchvision:alexnet", got="features.2 (MaxPool2d)", suggests="student.size=..."):
        tutelage.evaluate("torchvision:alexnet", data=(images, images))


def test_predictions_that_are_not_finite_are_named(run):
    model = tutelage.load(run.folder)
    with torch.no_grad():
        model.network.head.weight[3, 2] = torch.nan
    images = [np.zeros((8, 8), np.uint8)] * 5
    with refused(
        tutelage.errors.RunError, f"model {model.card.name}", got=["5 of 5", "image 0", "network.head.weight"]
    ):
        model.predict(images)
    pixels = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    pixels.register_forward_hook(
        lambda module, inputs, out: torch.where(inputs[0].sum((1, 2, 3))[:, None] > 0, torch.inf, out)
    )
    with refused(tutelage.errors.RunError, "model object:Sequential", got=["1 of 5", "image 4"], suggests="images"):
        tutelage.predict(pixels, [*images[:4], np.ones((8, 8), np.uint8)])


def test_a_run_of_the_callers_data_is_judged_on_data_that_are_given(no_report, tmp_path):
    splits = tutelage.data.from_datasets(*own_data(), classes=10)
    own = tutelage.train(model="mlp:8", data=splits, runs=tmp_path, **{**QUICK, "batch_size": 8})
    with refused(tutelage.errors.InvalidValueError, "data.source", got="own", suggests="data="):
        tutelage.evaluate(own)
    assert 0 <= tutelage.evaluate(own, data=splits)["accuracy"] <= 1


def test_the_test_set_has_no_transform(run):
    judged = tutelage.evaluate(run, data={"source": "digits", "transform": lambda image: None})
    assert judged == tutelage.evaluate(run, data="digits")


def test_a_run_is_loaded_as_its_folder_is(run):
    image = np.full((8, 8), 9, np.uint8)
    assert tutelage.load(run).predict(image) == tutelage.load(run.folder).predict(image)


def test_files_and_arrays_that_are_no_images_are_named(run, tmp_path):
    deep = Image.fromarray(np.full((8, 8), 1000, np.uint16))
    deep.save(tmp_path / "deep.png")
    (tmp_path / "broken.png").write_text("no image")
    with refused(tutelage.errors.NotFoundError, "images", got="nothing.png"):
        tutelage.predict(run, tmp_path / "nothing.png")
    with refused(tutelage.errors.InvalidValueError, "images", got="regular"):
        tutelage.predict(run, tmp_path)
    with refused(tutelage.errors.InvalidValueError, "images", got="broken.png"):
        tutelage.predict(run, str(tmp_path / "broken.png"))
    from_file, in_hand = tutelage.predict(run, [tmp_path / "deep.png", deep])
    assert from_file == in_hand
    assert deep.getpixel((0, 0)) == 1000
    for array in (np.zeros((2, 8, 8), np.uint8), np.zeros((0, 0), np.uint8), np.zeros((), np.uint8)):
        with refused(tutelage.errors.InvalidTypeError, "images"):
            tutelage.predict(run, array)


@pytest.mark.parametrize(
    ("setting", "instead"),
    [
        ({"optimizer": {"name": "adam"}}, "optimizer={'name': 'timm:adam'}"),
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
