"""What is told of a run that may not work, and what is not."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from tests._helpers.fit_cases import Rows
from torch import nn
from torch.utils.data import TensorDataset

import tutelage
from tutelage.config.schema import Recipe
from tutelage.data import from_datasets
from tutelage.runs import sanity_checks
from tutelage.runs.setup import build_objectives, parse
from tutelage.training.evaluate import evaluate

LOGITS = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)) * 3


def told(logits=LOGITS, **recipe):
    value = {"name": "x", "student": "mlp:8", "teacher": "mlp:16", "data": "digits", "epochs": 10, **recipe}
    parsed = parse(Recipe, value)
    return [text.partition(":")[0] for text in sanity_checks.before_training(parsed, build_objectives(parsed), logits)]


KD = {"kd": {"temperature": 4.0}}
QUIET = {
    "kd": {"objective": KD},
    "a hot teacher": {"objective": {"kd": {"temperature": 100.0}}},
    "hard answers are wanted of a sure teacher": {"objective": {"kd": {"temperature": 1.0}}, "logits": 200 * LOGITS},
    "a warm-up": {"objective": KD, "schedule": {"name": "cosine", "warmup": 9}},
    "decays": {"objective": KD, "schedule": {"name": "multistep", "milestones": [5, 8]}},
    "one decay beyond the run": {"objective": KD, "schedule": {"name": "multistep", "milestones": [5, 80]}},
    "a short try": {"objective": KD, "schedule": {"name": "multistep"}, "epochs": 1},
    "answers of a ReLU": {"objective": KD, "logits": (LOGITS / 20).relu()},
    "few answers": {"objective": KD, "logits": LOGITS[:4].sigmoid()},
    "late decays": {"objective": KD, "schedule": {"name": "step", "every": 3}},
    "the paper's weight": {"objective": {"wttm": {"gamma": 0.1, "beta": 100}}},
    "log-probabilities": {"objective": KD, "logits": LOGITS.log_softmax(-1)},
    "labels alone": {"objective": "cross_entropy", "logits": None},
}


@pytest.mark.parametrize("case", QUIET.values(), ids=QUIET)
def test_nothing_is_told_of_a_run_that_may_work(case):
    assert told(**case) == []


LOUD = {
    "warm-up as long as the run": ({"schedule": {"name": "cosine", "warmup": 10}}, "schedule.warmup"),
    "warm-up in a later stage": (
        {"stages": [{"epochs": 10}, {"epochs": 2}], "schedule": {"name": "constant", "warmup": 5}},
        "schedule.warmup",
    ),
    "a rate that ends at once": ({"schedule": {"name": "step", "every": 1, "factor": 1e-9}}, "schedule"),
    "a temperature near 0": ({"objective": {"kd": {"temperature": 1e-12}}}, "objective kd"),
    "a temperature without end": ({"objective": {"kd": {"temperature": 1e15}}}, "objective kd"),
    "a gamma near 0": ({"objective": {"ttm": {"gamma": 1e-17, "beta": 1.0}}}, "objective ttm"),
    "a weight beside which nothing counts": (
        {"objective": {"wttm": {"gamma": 0.5, "beta": 1e30}}},
        "weight of ce",
    ),
    "a weight that counts for nothing": ({"objective": {"ttm": {"gamma": 0.5, "beta": 1e-20}}}, "weight of ttm"),
    "probabilities": ({"logits": LOGITS.softmax(-1)}, "teacher"),
    "a sigmoid": ({"logits": LOGITS.sigmoid()}, "teacher"),
    "decays after the run": ({"schedule": {"name": "multistep", "milestones": [10, 20]}}, "schedule.milestones"),
    "steps after the run": ({"schedule": {"name": "step", "every": 10}}, "schedule.every"),
    "one answer": ({"logits": LOGITS[:1].repeat(9, 1)}, "teacher"),
}


@pytest.mark.parametrize(("case", "what"), LOUD.values(), ids=LOUD)
def test_what_may_not_work_is_told(case, what):
    assert told(**{"objective": KD, **case}) == [what]


@pytest.mark.parametrize(
    ("labels", "objective", "told"),
    [
        ([0, 1, 2, 0], "cross_entropy", None),
        ([0, 1, 2, -100], "cross_entropy", None),
        ([0, 1, -100, -100], "cross_entropy", None),  # fewer labels than classes
        ([0, 0, 0, 0], {"kd": {"supervised": 0.0}}, None),  # labels that nothing reads
        ([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]] * 2, "cross_entropy", None),
        ([1, 1, 1, 1], "cross_entropy", "'b' alone"),
        ([1, 1, -100, -100], "cross_entropy", "'b' alone"),
        ([0, 0, 2, 2], "cross_entropy", "none of 'b'"),
        ([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]] * 2, "cross_entropy", "none of 'c'"),
    ],
)
def test_classes_without_a_label_are_told(labels, objective, told):
    data = TensorDataset(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    splits = from_datasets(data, data, classes=3, class_names=["a", "b", "c"])
    splits = replace(splits, train=replace(splits.train, labels=torch.tensor(labels)))
    recipe = parse(Recipe, {"name": "x", "student": "mlp:8", "objective": objective})
    texts = list(sanity_checks.of_labels(splits, build_objectives(recipe)))
    assert [told in text for text in texts] == ([True] if told else [])


def test_a_run_of_one_class_tells_it(tmp_path):
    data = TensorDataset(torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.warns(UserWarning, match="data: expected training samples with labels of several classes"):
        tutelage.train(model=net, data=(data, data), epochs=1, batch_size=8, device="cpu", runs=tmp_path)


def evaluated(logits, labels):
    how = {"device": torch.device("cpu"), "precision": "fp32", "channels_last": False}
    return evaluate(nn.Identity(), Rows(logits, labels, batch_size=7), **how)


def test_a_student_that_answers_alike_is_dead():
    labels, alike = torch.arange(40) % 10, LOGITS[:1].repeat(40, 1)
    assert not evaluated(LOGITS, labels).answers_alike
    assert not evaluated(alike[:3], labels[:3]).answers_alike
    assert not evaluated(alike, labels * 0).answers_alike
    assert not evaluated(alike + (torch.arange(40) == 39)[:, None], labels).answers_alike  # in another batch
    assert evaluated(alike, labels).answers_alike
    assert evaluated(alike, torch.where(labels == 3, -100, 1)).answers_alike


class Softmaxed(nn.Sequential):
    def forward(self, x):
        return super().forward(x).softmax(-1)


class Dead(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 10)
        nn.init.constant_(self.body.bias, -1e3)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).relu())


def test_a_run_tells_it_and_goes_on(tmp_path):
    """Of the teacher before the first step and of the student after the first epoch, once; in the manifest too."""
    torch.manual_seed(0)
    teacher = Softmaxed(nn.Flatten(), nn.Linear(64, 10))
    how = {"data": "digits", "batch_size": 512, "device": "cpu", "weak_teacher": True, "runs": tmp_path}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = tutelage.distill(student=Dead(), teacher=teacher, objective="kd", name="s", epochs=2, **how)
    assert [str(each.message).partition(":")[0] for each in caught] == ["teacher", "student after epoch 1"]
    assert run.manifest["status"] == "finished"
    assert str(caught[0].message) in run.manifest["notes"]


def test_a_teacher_far_below_its_own_evaluation_is_told(tmp_path):
    how = {"data": "digits", "batch_size": 64, "device": "cpu", "runs": tmp_path}
    run = tutelage.train(model="mlp:16", name="t", epochs=6, **how)
    recipe = parse(
        Recipe, {"name": "x", "student": "mlp:8", "teacher": str(run.folder), "objective": "kd", "data": "digits"}
    )
    labels = torch.arange(360) % 10
    right, half = torch.eye(10)[labels], torch.eye(10)[torch.where(torch.arange(360) < 180, labels, (labels + 1) % 10)]
    data = run.manifest["data"]["fingerprint"]
    assert list(sanity_checks.of_accuracy(recipe, evaluated(right, labels), data)) == []
    (text,) = sanity_checks.of_accuracy(recipe, evaluated(half, labels), data)
    assert "50.00%" in text
    assert f"{run.accuracy:.2%}" in text
    assert "on the same data" in text
