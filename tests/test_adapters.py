"""A user's own batches and networks in the library's forms."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests._helpers import ROOT
from tests._helpers.refusals import refused
from torch import nn
from torch.utils.data import DataLoader, Dataset

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


# Runs of networks that take keywords


class Tokens(Dataset):
    """Mappings of ids, which of them count, and a class."""

    def __init__(self, count=24):
        self.ids = torch.randint(1, 9, (count, 5), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        ids = self.ids[i]
        return {"input_ids": ids, "attention_mask": (ids > 2).long(), "labels": int(ids.sum()) % 3}


class OfTokens(nn.Module):
    def __init__(self, form, width=4):
        super().__init__()
        self.embedding, self.head, self.form = nn.Embedding(9, width), nn.Linear(width, 3), form

    def forward(self, input_ids, attention_mask):
        return self.form(self.head((self.embedding(input_ids) * attention_mask.unsqueeze(-1)).sum(1)))


TOKENS = ("input_ids", "attention_mask")


def adapted(form=lambda z: (z, 1), output=0, width=4):
    return tutelage.Adapter(OfTokens(form, width), inputs=TOKENS, output=output)


def own(inputs=TOKENS, test=None):
    return tutelage.data.from_datasets(Tokens(), test or Tokens(20), classes=3, inputs=inputs)


@pytest.mark.parametrize(
    ("form", "output", "how"),
    [
        (lambda z: SimpleNamespace(logits=z), "logits", {}),
        (lambda z: (z, 1), 0, {"loss_form": "last_layer", "precision": "fp32"}),
        (lambda z: {"main": z}, "main", {"batch_size": 23, "accumulate": 2}),
    ],
)
def test_networks_with_keywords_distil_in_a_run(form, output, how, tmp_path):
    student, objective = adapted(form, output), objectives.wttm(gamma=0.5, beta="auto" if not how else 1.0)
    how = {"runs": tmp_path, "name": "run", "epochs": 1, "batch_size": 8, "weak_teacher": True, "device": "cpu", **how}
    run = tutelage.distill(student=student, teacher=adapted(form, output, 8), data=own(), objective=objective, **how)
    with torch.no_grad():
        rows = Tokens(20)
        values = next(iter(DataLoader(rows, batch_size=20)))
        right = student({key: values[key] for key in TOKENS}).argmax(-1) == values["labels"]
    assert run.evaluation["student"]["accuracy"] == pytest.approx(float(right.double().mean()))
    assert ("last_layer" in how.values()) == (run.manifest["speed"][0].get("loss_form") == "last_layer")
    again = adapted(form, output)
    tutelage.models.load(again, tutelage.models.read(tmp_path / "run" / "student.safetensors"))
    assert tutelage.evaluate(again, data=own(), device="cpu")["accuracy"] == run.evaluation["student"]["accuracy"]


def test_an_adopted_network_takes_the_mapping():
    network, values = adapted(), next(iter(DataLoader(Tokens(), batch_size=4)))
    adopted = tutelage.models.adopt(network)
    assert adopted.card.classes == 3
    assert torch.equal(adopted(values), network(values))
    with refused(InvalidTypeError, "user", suggests="mapping"):
        adopted.predict("a.png")
    with refused(InvalidValueError, "card.mean"):
        tutelage.models.Classifier(network, replace(adopted.card, mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.mark.parametrize(
    ("student", "data", "suggests"),
    [
        (adapted, lambda: (Tokens(), Tokens()), "inputs=('input_ids', 'attention_mask')"),
        (adapted, lambda: (DataLoader(Tokens()),) * 2, "loader.dataset"),
        (lambda: OfTokens(lambda z: z), own, "tutelage.Adapter(network, inputs=('input_ids', 'attention_mask'))"),
        (lambda: adapted(output=None), own, 'output="logits"'),
        (lambda: adapted(form=lambda z: z[:, :2], output=None), own, "last layer"),
    ],
)
def test_a_run_that_lacks_the_names_says_what_to_type(student, data, suggests, tmp_path):
    with pytest.raises(tutelage.TutelageError) as caught:
        tutelage.train(model=student(), data=data(), runs=tmp_path, name="run", epochs=1, device="cpu")
    assert suggests in str(caught.value)


def test_the_loops_and_the_run_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if re.search("as_batch|KEYS", block)]
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:  # The run goes on where the loop before it ends.
        exec(block, names)
        assert torch.isfinite(names["loss"].total)
    assert (tmp_path / "runs" / "own-tokens" / "student.safetensors").exists()
