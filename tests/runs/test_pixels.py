"""Runs on pictures with masks: what is counted, judged, kept and predicted, resumed and shared by processes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.launching import launch
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import config, data, models, records
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.runs import dry_run, sanity_checks, setup
from tutelage.runs.execute import execute
from tutelage.runs.reporter import Reporter
from tutelage.runs.run import Run, RunOptions
from tutelage.settings.data import DataSettings

NETWORK = """
from torch import nn

def net(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, classes, 1))
"""


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of dark and bright halves, which are the classes, with some pixels of no class."""
    root, draw = tmp_path_factory.mktemp("pixels"), np.random.default_rng(0)
    for number in range(30):
        mask = (np.indices((12, 12))[number % 2] >= draw.integers(3, 9)).astype(np.uint8)
        picture = (100 + 100 * mask[..., None] + draw.integers(-40, 40, (12, 12, 3))).astype(np.uint8)
        mask[0, :3] = 255
        for kind, values in (("images", picture), ("masks", mask)):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(root / kind / f"{number}.png")
    (root / "net.py").write_text(NETWORK)
    return root


def recipe(folder, **keys):
    value = {
        "name": "run",
        "student": f"file:{folder / 'net.py'}:net",
        "data": {"source": f"masks:{folder}", "flip": True, "crop_padding": 2},
        "epochs": 5,
        "batch_size": 8,
        "optimizer": {"name": "adamw", "lr": 0.05},
        "device": "cpu",
        "threads": 1,
        **keys,
    }
    return config.parse(Recipe, value)


def executed(recipe, folder, reporter=None):
    execute(recipe, folder, options=RunOptions(trust_code=True, reporter=reporter or Reporter()))
    return Run(folder)


def test_a_student_of_pixels_is_judged_by_mean_iou_and_predicts_masks(folder, tmp_path):
    executed(recipe(folder, name="teacher"), tmp_path / "teacher")
    run = executed(
        recipe(folder, teacher=str(tmp_path / "teacher"), objective={"wttm": {"gamma": 0.5, "beta": 1}}),
        tmp_path / "run",
    )
    judged, splits = run.evaluation["student"], data.open_data(DataSettings(source=f"masks:{folder}"))
    network = tutelage.load(run, trust_code=True)
    assert network.card.task == "pixels"
    # By hand, over the pixels that count.
    (batch,) = data.BatchLoader(splits.test, batch_size=len(splits.test), train=False).epoch(0)
    with torch.no_grad():
        predicted = network(batch.inputs).argmax(-1)
    given, known = predicted[batch.counted], batch.labels[batch.counted]
    assert len(given) == 6 * (144 - 3)
    iou = [((given == k) & (known == k)).sum() / ((given == k) | (known == k)).sum() for k in range(2)]
    assert judged["mean_iou"] == pytest.approx(float(sum(iou) / 2), abs=1e-6)
    assert judged["accuracy"] == pytest.approx(float((given == known).float().mean()), abs=1e-6)
    assert judged["mean_iou"] > 0.6
    assert run.evaluation["best"]["mean_iou"] >= judged["mean_iou"]
    # A mask of the picture's own size; the data's own size gives the same as the evaluation.
    first = int(batch.index[0])
    paths = sorted((folder / "images").iterdir())
    assert first == 0
    shapes = [mask.shape for mask in network.predict_masks([paths[0], np.zeros((20, 31, 3), np.uint8)])]
    assert shapes == [(12, 12), (20, 31)]
    image = (batch.inputs[0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert np.array_equal(network.predict_masks(image)[0], predicted[0].numpy())
    with refused(InvalidValueError, "predict", suggests="model.predict_masks(images)"):
        network.predict(image)
    again = tutelage.evaluate(run, trust_code=True)
    assert again["mean_iou"] == judged["mean_iou"]


@pytest.mark.filterwarnings("ignore:teacher")  # whose weights are random
def test_a_dry_run_says_what_a_step_has(folder):
    taught = recipe(folder, teacher=f"file:{folder / 'net.py'}:net", objective={"ttm": {"gamma": 0.5, "beta": 1}})
    said = dict(dry_run.dry_run(taught, trust_code=True))
    assert said["logits"] == "(8, 12, 12, 2)"
    assert "teacher mean IoU" in said


def test_outputs_and_networks_of_whole_images_are_refused_before_training(folder):
    with refused(RecipeError, "recipe: outputs", suggests="outputs=null"):
        recipe(folder, outputs="outputs")
    for name in ("cifar:resnet8", "mlp:8", "timm:resnet18", "torchvision:resnet18"):
        with refused(InvalidValueError, "model", got=name):
            setup.build_inputs(recipe(folder, student=name))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(432, 2))
    with refused(InvalidValueError, "object:Sequential", got=(2, 2)):
        tutelage.train(model=flat, data={"source": f"masks:{folder}"}, name="flat", epochs=1)


def test_masks_without_labels_teach_nothing_without_a_teacher(folder):
    inputs = setup.build_inputs(recipe(folder, data={"source": f"masks:{folder}", "labelled": 0}), trust_code=True)
    with refused(RecipeError, "data", got=24):
        setup.check_compatible(inputs)


def test_classes_are_weighed_by_their_pixels(folder):
    inputs = setup.build_inputs(recipe(folder, class_weights="balanced"), trust_code=True)
    (weights,) = (objective.class_weights for objective in inputs.objectives)
    pixels = inputs.splits.train.pixels_of_classes()[:2]
    assert weights == pytest.approx((pixels.sum() / (2 * pixels)).tolist())
    streamed = {"source": f"masks:{folder}", "memory_limit_mb": 0}
    with refused(RecipeError, "class_weights", suggests="number"):
        setup.build_inputs(recipe(folder, class_weights="balanced", data=streamed), trust_code=True)


def test_a_class_that_no_pixel_has_is_told(folder, tmp_path):
    (folder / "classes.txt").write_text("dark\nbright\ngreen\n")
    try:
        inputs = setup.build_inputs(recipe(folder), trust_code=True)
    finally:
        (folder / "classes.txt").unlink()
    (told,) = sanity_checks.of_labels(inputs.splits, inputs.objectives)
    assert "'green'" in told


class Stops(Reporter):
    """Stops a run within its second epoch."""

    steps = 0

    def tick(self):
        self.steps += 1
        if self.steps == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("memory", [2048, pytest.param(0, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_within_an_epoch_ends_with_the_same_bits(folder, tmp_path, memory):
    data = {"source": f"masks:{folder}", "flip": True, "crop_padding": 2, "memory_limit_mb": memory}
    keys = {"data": data, "epochs": 2, "checkpoint_steps": 1}
    whole = executed(recipe(folder, **keys), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        executed(recipe(folder, **keys), tmp_path / "stopped", Stops())
    resumed = executed(recipe(folder, **keys), tmp_path / "stopped")
    weights, other = (models.read(run.folder / records.STUDENT) for run in (whole, resumed))
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    assert resumed.evaluation == whole.evaluation


@pytest.mark.slow
def test_two_processes_judge_as_one_does(folder, tmp_path):
    path, data = tmp_path / "recipe.yaml", {"source": f"masks:{folder}", "flip": True}
    value = {"name": "run", "student": f"file:{folder / 'net.py'}:net", "epochs": 1, "batch_size": 8, "device": "cpu"}
    path.write_text(json.dumps(value | {"data": data}))
    code, _, errors = launch(["train", str(path), "--trust-code", "--runs", str(tmp_path / "runs")])
    assert code == 0, errors
    run = Run(tmp_path / "runs" / "run")
    judged = tutelage.evaluate(run, trust_code=True, device="cpu")
    assert judged["mean_iou"] == pytest.approx(run.evaluation["student"]["mean_iou"], abs=1e-12)
