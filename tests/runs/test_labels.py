"""Runs of several labels a sample, from the pictures to the report."""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.refusals import refused
from typer.testing import CliRunner

import tutelage
from tutelage import config, records
from tutelage.cli.app import app
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.report.html import write_report
from tutelage.runs import record_teacher, sanity_checks, setup
from tutelage.runs.execute import execute

NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder of pictures whose labels are the channels that are bright, a trained teacher, and recipes."""
    folder, rng = tmp_path_factory.mktemp("labels"), np.random.default_rng(0)
    for part, count in (("train", 64), ("test", 48)):
        (folder / "pictures" / part).mkdir(parents=True)
        rows = [["file_name", *NAMES]]
        for k in range(count):
            held = rng.integers(0, 2, 3)
            pixels = (150 * held + rng.integers(0, 100, (6, 6, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / part / f"{k}.png")
            rows.append([f"{k}.png", *("" if (k + n) % 9 == 0 else held[n] for n in range(3))])
        with (folder / "pictures" / part / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    def recipe(data=None, **keys):
        data = {"source": f"imagefolder:{folder / 'pictures'}", "labels": NAMES, **(data or {})}
        common = {"name": "run", "student": "mlp:8", "epochs": 2, "batch_size": 16, "device": "cpu", "threads": 1}
        common |= {"optimizer": {"name": "adamw", "lr": 0.02}, "schedule": "constant"}
        return config.parse(Recipe, {**common, "data": data, **keys})

    execute(recipe(name="teacher", student="mlp:32", epochs=8), folder / "teacher")
    return folder, recipe


def distilled(task, name, **keys):
    folder, recipe = task
    keys = {"objective": {"wttm": {"gamma": 0.5, "beta": 1}}, **keys}
    return execute(recipe(name=name, teacher=str(folder / "teacher"), **keys), folder / name)


def test_a_run_is_judged_by_mean_average_precision_from_the_epoch_to_the_report(task, monkeypatch):
    run = distilled(task, "student")
    judged, epoch = run.evaluation["student"], run.epochs[-1]
    assert len(judged["average_precision"]) == 3
    assert judged["mean_average_precision"] == pytest.approx(np.mean(judged["average_precision"]))
    assert (judged["per_class"], run.evaluation["class_names"]) == ([], NAMES)
    assert {"mean_average_precision", "macro_f1", "micro_f1"} <= epoch["test"].keys()
    assert "average_precision" not in epoch["test"]
    assert epoch["test"]["samples"] == 48 * 3
    assert run.manifest["selection"]["metric"] == "mean_average_precision"
    assert run.manifest["teacher"]["mean_average_precision"] > 0.9
    assert run.evaluation["best"]["mean_average_precision"] >= epoch["test"]["mean_average_precision"]
    page = write_report(run.folder).read_text()
    for shown in ("Average precision by label", "Mean average precision (%)", *NAMES):
        assert shown in page
    assert "Accuracy by class" not in page
    printed = CliRunner().invoke(app, ["evaluate", str(run.folder)]).output
    assert f"mean average precision  {100 * judged['mean_average_precision']:.2f} %" in printed
    assert f"macro F1                {100 * judged['macro_f1']:.2f} %" in printed


def test_a_prediction_names_the_labels_above_a_half(task):
    folder, _ = task
    model = tutelage.load(folder / "teacher")
    assert (model.card.task, model.card.classes, model.card.class_names) == ("labels", 3, tuple(NAMES))
    pixels = np.zeros((6, 6, 3), np.uint8)
    pixels[..., 0] = pixels[..., 2] = 200
    both, none = model.predict([pixels, np.zeros((6, 6, 3), np.uint8)])
    assert {each.name for each in both.labels} == {"red", "blue"}
    assert (both.label, both.probability) == both.labels[0][0:3:2]
    assert none.labels == ()
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    assert both.probability == pytest.approx(float(logits.softmax(-1)[0, :, 1].max()))


def test_recorded_outputs_teach_the_same(task):
    folder, recipe = task
    keys = {"teacher": str(folder / "teacher"), "objective": {"wttm": {"gamma": 0.5, "beta": 1}}}
    record_teacher.record(recipe(outputs=str(folder / "outputs"), **keys))
    live, recorded = (
        distilled(task, name, **more)
        for name, more in (("live", {}), ("recorded", {"outputs": str(folder / "outputs")}))
    )
    losses = [run.epochs[-1]["train"]["loss"] for run in (live, recorded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != losses[1]  # in float16
    with refused(RecipeError, "outputs_top", got=1):
        record_teacher.record(recipe(outputs=str(folder / "more"), outputs_top=1, **keys))


def test_a_teacher_that_knows_nothing_is_refused_and_one_of_labels_teaches_labels_alone(task):
    folder, recipe = task
    others = {"name": str(folder / "teacher"), "classes": [1, 2, 0]}  # It is asked for other labels than it answers.
    with refused(RecipeError, "teacher"):
        execute(recipe(name="untaught", teacher=others, objective="kd"), folder / "untaught")
    with refused(InvalidValueError, "model", got="labels"):
        setup.build_inputs(
            recipe(teacher=str(folder / "teacher"), objective="kd", data={"source": "digits", "labels": None})
        )


@pytest.mark.parametrize("objective", ["dist", "mlkd", ["cross_entropy", "crd"], ["cross_entropy", "srrl"]])
def test_objectives_of_one_class_a_sample_are_refused(task, objective):
    folder, recipe = task
    inputs = setup.build_inputs(recipe(teacher=str(folder / "teacher"), objective=objective))
    with refused(RecipeError, "data.labels"):
        setup.check_compatible(inputs)


def test_labels_that_never_or_always_hold_are_told(task):
    _, recipe = task
    inputs = setup.build_inputs(recipe())
    assert not list(sanity_checks.of_labels(inputs.splits, inputs.objectives))
    labels = inputs.splits.train.labels
    labels[:, 0], labels[labels[:, 2] == 0, 2] = 0, 1
    never, always = sanity_checks.of_labels(inputs.splits, inputs.objectives)
    assert "'red' for none" in never
    assert "'blue' for all" in always


@pytest.mark.slow  # to import transformers takes longer than all others
def test_a_network_of_transformers_says_that_it_has_several_labels(task, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    rows = [f'{{"text": "{"ab "[k % 3]} text", "tags": {["[]", "[0]", "[0, 1]"][k % 3]}}}' for k in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    data = {"source": f"jsonl:{tmp_path / 'rows.jsonl'}", "labels": "tags", "text": "text", "tokenizer": {"bpe": 260}}
    keys = {
        "name": "text",
        "student": {"name": "hf:bert", "config": sizes},
        "epochs": 1,
        "batch_size": 8,
        "device": "cpu",
    }
    run = execute(config.parse(Recipe, {**keys, "data": data}), tmp_path / "text")
    assert math.isfinite(run.evaluation["student"]["macro_f1"])
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(run.folder)
    assert (saved.config.problem_type, saved.config.num_labels) == ("multi_label_classification", 2)
    model = tutelage.load(run.folder)
    (prediction,) = model.predict("a text")
    assert len(prediction.labels) <= 2
    saved.save_pretrained(tmp_path / "published")
    (tmp_path / "published" / "tokenizer.json").write_bytes((run.folder / "tokenizer.json").read_bytes())
    text = model.call.text
    assert tutelage.models.create(f"hf:{tmp_path / 'published'}", text=text).card.task == "labels"
    with refused(InvalidValueError, "model", got="labels"):
        tutelage.models.create(f"hf:{tmp_path / 'published'}", text=text, task="classes", as_trained=["classes"])
    assert records.measure(run.evaluation["student"]) is records.MEAN_AVERAGE_PRECISION
