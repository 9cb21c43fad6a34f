"""A user's own batches and networks in the library's forms."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from tests._helpers import ROOT
from torch import nn

import tutelage
from tutelage import objectives
from tutelage.errors import InvalidTypeError, InvalidValueError

LABELS = torch.tensor([0, 2])
KEYS = ("x", "mask")


class Masked(nn.Linear):
    """Takes keywords and returns a mapping."""

    def forward(self, x, mask):
        return {"logits": super().forward(x * mask)}


class Returns(nn.Linear):
    def __init__(self, form):
        super().__init__(4, 3)
        self.form = form

    def forward(self, x):
        return self.form(super().forward(x))


def mapping():
    return {"x": torch.rand(2, 4), "mask": torch.ones(2, 4), "labels": LABELS, "teacher_x": torch.rand(2, 4)}


@pytest.mark.parametrize("container", [tuple, list])
def test_a_tuple_is_a_batch(container):
    inputs, index = torch.rand(2, 4), torch.tensor([7, 5])
    batch = tutelage.as_batch(container((inputs, LABELS, index)), index=2)
    assert batch.inputs is inputs
    assert batch.labels is LABELS
    assert batch.index is index
    assert batch.counted is None


def test_values_without_labels_are_unlabelled():
    assert tutelage.as_batch((torch.rand(2, 4),), labels=None).labels.tolist() == [-100, -100]


def test_counted_positions_keep_their_labels_and_others_lose_them():
    values = {"ids": torch.ones(2, 3, dtype=torch.int64), "labels": torch.arange(6).view(2, 3)}
    values["mask"] = torch.tensor([[1, 1, 0], [1, 0, 0]])
    batch = tutelage.as_batch(values, inputs="ids", labels="labels", counted="mask")
    assert batch.inputs is values["ids"]
    assert batch.counted.dtype == torch.bool
    assert batch.labels.tolist() == [[0, 1, -100], [3, -100, -100]]
    with pytest.raises(InvalidValueError, match=r"counted.*\(2, 3\).*\(2,\)"):
        tutelage.as_batch(values, inputs="ids", labels="labels", counted=torch.ones(2))


def test_networks_with_keywords_distil_each_with_its_own_keys():
    values = mapping()
    inputs = ("x", "mask", "teacher_x")
    batch = tutelage.as_batch(values, inputs=inputs, labels="labels")
    student, large = Masked(4, 3), Masked(4, 3)
    teacher = tutelage.FrozenTeacher(
        tutelage.Adapter(large, inputs={"x": "teacher_x", "mask": "mask"}, output="logits")
    )
    distiller = tutelage.Distiller(tutelage.Adapter(student, inputs=KEYS, output="logits"), objectives.kd())
    answers = teacher(batch)
    assert torch.equal(answers.logits, large(values["teacher_x"], values["mask"])["logits"])
    loss, outputs = distiller(batch, answers)
    assert torch.equal(outputs.logits, student(values["x"], values["mask"])["logits"])
    loss.total.backward()
    assert student.weight.grad is not None


@pytest.mark.parametrize(
    ("form", "output"),
    [(lambda z: (z, 1), 0), (lambda z: SimpleNamespace(logits=z), "logits"), (lambda z: {"main": z}, "main")],
)
def test_a_named_field_is_taken_and_never_guessed(form, output):
    batch = tutelage.as_batch((torch.rand(2, 4), LABELS))
    network = Returns(form)
    with pytest.raises(InvalidTypeError, match=re.escape('tutelage.Adapter(network, output="logits")')):
        tutelage.Distiller(network, objectives.cross_entropy())(batch)
    distiller = tutelage.Distiller(tutelage.Adapter(network, output=output), objectives.cross_entropy())
    assert distiller(batch).outputs.logits.shape == (2, 3)
    with pytest.raises(InvalidValueError, match="something at 'other'"):
        tutelage.Adapter(network, output="other")(batch.inputs)


def test_an_index_that_is_read_must_be_given():
    images, objective = torch.rand(2, 3, 32, 32), objectives.crd(negatives=1)
    student, large = (tutelage.models.create("cifar:resnet8", classes=3) for _ in range(2))
    context = tutelage.network_context(
        objective, student, large, images, samples=3, classes=3, labels=torch.tensor([0, 1, 2])
    )
    teacher = tutelage.FrozenTeacher(large, objective.needs.teacher_taps)
    distiller = tutelage.Distiller(student, objective, context)
    batch = tutelage.as_batch((images, LABELS))
    answers = teacher(batch)
    with pytest.raises(InvalidValueError, match=r"type tutelage\.as_batch\(values, index=2\)"):
        distiller(batch, answers)
    batch = tutelage.as_batch((images, LABELS, torch.tensor([0, 2])), index=2)
    distiller(batch, teacher(batch)).loss.total.backward()
    batch = tutelage.as_batch((images, LABELS))  # others make no use of it
    plain = tutelage.Distiller(student, objectives.kd())
    plain(batch, teacher(batch)).loss.total.backward()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": "ids"}, "inputs: .*'ids'.*'x', 'mask'"),
        ({"labels": "target"}, "labels: .*'target'"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels: .*2 samples"),
        ({"inputs": ()}, "at least one key"),
    ],
)
def test_what_is_not_there_is_said(changes, said):
    with pytest.raises(InvalidValueError, match=said):
        tutelage.as_batch(mapping(), **{"inputs": KEYS, "labels": "labels"} | changes)


PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
LOOPS = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "as_batch" in block]


@pytest.mark.parametrize("number", range(len(LOOPS)))
def test_the_loops_of_the_page_run(number):
    names: dict[str, object] = {}
    exec(LOOPS[number], names)
    assert torch.isfinite(names["loss"].total)
