"""Classes of unequal size in a run: weights in the cross-entropy, and samples drawn by class."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests._helpers.captured_cases import capture_on_the_cpu
from tests._helpers.refusals import refused
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import tutelage
from tutelage import config, data, models, objectives
from tutelage.config.schema import Comparison, Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.runs import class_weights, notes, record_teacher, setup
from tutelage.runs.execute import execute
from tutelage.runs.resume import earlier_run


class Few:
    """Samples of 4 numbers, whose classes have 8, 16, 4 and no samples."""

    classes = ("a", "b", "c", "none")
    targets = [0] * 8 + [1] * 16 + [2] * 4

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return torch.full((1, 2, 2), i / 28), self.targets[i]


def recipe(kind=Recipe, **keys):
    common = {"name": "run", "student": "mlp:4", "epochs": 2, "batch_size": 512, "device": "cpu", "threads": 1}
    return config.parse(kind, {**common, **keys})


def splits():
    return data.from_datasets(Few(), Few(), classes=4, class_names=Few.classes)


def test_balanced_weights_have_mean_1_over_the_training_samples():
    weights = class_weights.resolved("balanced", splits())
    assert weights == pytest.approx((28 / 24, 28 / 48, 28 / 12, 0))
    assert np.mean([weights[label] for label in Few.targets]) == pytest.approx(1)
    assert class_weights.resolved({"c": 3}, splits()) == (1, 1, 3, 1)
    assert class_weights.resolved((1.0, 2.0, 0.0, 1.0), splits()) == (1, 2, 0, 1)
    few = data.open_data(data.DataSettings(source="digits", labelled=3, validation=0.2))
    assert class_weights.resolved("balanced", few) == pytest.approx([1] * 10)


@pytest.mark.parametrize(
    ("weights", "got", "suggests"), [({"aa": 2}, "'aa'", "a"), ((1.0, 2.0), 2, "class_weights=balanced")]
)
def test_other_classes_are_refused(weights, got, suggests):
    with refused(RecipeError, "class_weights", got=got, suggests=suggests):
        class_weights.resolved(weights, splits())


@pytest.mark.filterwarnings("ignore:data. expected training samples with labels of all")
def test_a_run_is_that_of_the_weighted_objective_and_records_the_weights(tmp_path):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 4))

    settings = {"data": splits(), "epochs": 1, "batch_size": 28, "device": "cpu", "runs": tmp_path}
    keys = {"optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}, **settings}
    student, other = network(), network()
    run = tutelage.train(model=student, name="weighted", class_weights="balanced", **keys)
    weights = class_weights.resolved("balanced", splits())
    images, labels = torch.stack([Few()[i][0] for i in range(28)]), torch.tensor(Few.targets)
    # One step: torch's weighted mean over the training set, as the mean weight is 1.
    loss = nn.functional.cross_entropy(other(images), labels, weight=torch.tensor(weights))
    loss.backward()
    torch.testing.assert_close(student[1].weight.detach(), (other[1].weight - 0.5 * other[1].weight.grad).detach())
    assert run.epochs[0]["train"]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert run.manifest["objective_resolved"] == [{"ce": {"class_weights": list(weights)}}]
    with refused(RecipeError, "train: objective", suggests="class_weights"):
        tutelage.train(model=student, objective=objectives.cross_entropy().with_class_weights([1, 1, 1, 2]), **keys)


def test_a_stage_may_have_its_own_and_one_that_matches_alone_stays_as_it_is():
    staged = recipe(
        teacher="mlp:4",
        objective="kd",
        stages=[{"epochs": 1, "objective": {"kd": {"supervised": 0}}}, {"epochs": 1}, {"class_weights": [1, 2, 3, 4]}],
        class_weights={"b": 2},
    )
    weighted = class_weights.with_class_weights(staged, setup.build_objectives(staged), splits())
    assert [each.class_weights for each in weighted] == [None, (1, 2, 1, 1), (1, 2, 3, 4)]
    alone = recipe(teacher="mlp:4", objective={"kd": {"supervised": 0}}, class_weights="balanced")
    with pytest.raises(InvalidValueError, match="nothing to weight"):
        class_weights.with_class_weights(alone, setup.build_objectives(alone), splits())
    assert recipe(teacher={"train": {"model": "mlp:4", "class_weights": [1, 2]}}).training("t").class_weights == (1, 2)


def test_a_comparison_is_refused_before_its_first_run(tmp_path):
    entries = {"ce": "cross_entropy", "fitnet": "fitnet"}
    compared = recipe(
        Comparison, teacher={"train": {"model": "mlp:4", "epochs": 1}}, objectives=entries, class_weights="balanced"
    )
    with pytest.raises(InvalidValueError, match="fitnet, with nothing to weight"):
        tutelage.studies.compare.compare(compared, tmp_path / "run")
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_run_that_is_killed_in_an_epoch_ends_with_the_same_bits(tmp_path):
    sampled = {"source": "digits", "sampling": "balanced", "flip": True}
    weighted = recipe(class_weights={"3": 4, "7": 0.1}, checkpoint_steps=1, data=sampled)
    whole, steps = execute(weighted, tmp_path / "whole"), []

    def stop(optimizer, args, kwargs):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt

    hook = register_optimizer_step_post_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        execute(weighted, tmp_path / "killed")
    hook.remove()
    with pytest.raises(RecipeError, match=r"class_weights\.3 was 4\.0, is 5\.0"):
        earlier_run(tmp_path / "killed", weighted.model_copy(update={"class_weights": {"3": 5.0}}))
    with pytest.raises(RecipeError, match=r"data\.sampling was balanced, is natural"):
        earlier_run(tmp_path / "killed", weighted.model_copy(update={"data": data.DataSettings(flip=True)}))
    resumed = execute(weighted, tmp_path / "killed")
    assert whole.manifest["data"]["sampling"] == "balanced"
    assert [epoch["train"]["samples"] for epoch in whole.epochs] == [1437, 1437]
    one, other = (models.read(run.folder / "student.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_fit_of_graphs_is_the_eager_one(tmp_path, monkeypatch):
    capture_on_the_cpu(monkeypatch)
    students = [
        execute(recipe(epochs=1, class_weights={"3": 4}, graphs=graphs), tmp_path / str(graphs)).folder
        for graphs in (False, True)
    ]
    one, other = (models.read(folder / "student.safetensors") for folder in students)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_samples_of_several_labels_are_refused():
    rows = [{"x": [0.5, k / 8], "labels": [k % 2, 1]} for k in range(8)]
    several = data.from_datasets(rows, rows, classes=2, inputs="x", task="labels")
    with refused(RecipeError, "class_weights", got="several"):
        class_weights.resolved((1.0, 2.0), several)


def test_it_is_said_what_is_done():
    assert [*class_weights.notes(recipe(class_weights="balanced"), data.balanced_classes(splits()))] == [
        "Classes are drawn alike: in an epoch each of the 4 of class 'c' 2.33 times, each of the 16 of class 'b' "
        "0.583 times on average",
        "The cross-entropy weighs classes from 0.583 (b) to 2.33 (c); without a training label, and with weight 0: "
        "'none'",
        "Classes are drawn alike and weighted too: a small class counts twice over, and one of both is enough",
    ]
    assert not [*class_weights.notes(recipe(), splits())]
    drawn = recipe(data={"source": "digits", "sampling": "balanced"})
    assert any(line.startswith("Classes are drawn alike") for line in notes.of_run(drawn, setup.build_inputs(drawn)))


def test_recorded_outputs_teach_samples_that_come_again_as_the_teacher_does(tmp_path):
    sampled = {"source": "digits", "sampling": "balanced", "flip": True}
    execute(recipe(name="t", epochs=1), tmp_path / "t")
    keys = {"teacher": str(tmp_path / "t"), "objective": "kd", "precision": "fp32", "data": sampled, "epochs": 1}
    keys |= {"weak_teacher": True}
    live = recipe(optimizer={"name": "sgd", "lr": 1e-3}, **keys)
    recorded = live.model_copy(update={"outputs": str(tmp_path / "outputs")})
    # What was recorded for natural epochs teaches these too.
    record_teacher.record(recorded.model_copy(update={"data": replace(live.data, sampling="natural")}))
    runs = [execute(live, tmp_path / "live"), execute(recorded, tmp_path / "recorded")]
    one, other = ([epoch["train"]["loss"] for epoch in run.epochs] for run in runs)
    assert one == pytest.approx(other, rel=1e-4)
