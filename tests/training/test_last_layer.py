"""A fit whose logits never exist all at once: the same training, where both networks' last layers come last."""

import math

import pytest
import torch
from tests._helpers.fit_cases import fitted, same_bits, seeded, state
from tests.training.test_positions import CLASSES, TOKENS, Tokens, stream, texts
from torch import nn

from tutelage import kernels, objectives
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.weights import Linear
from tutelage.training.checkpoints import Checkpoints
from tutelage.training.compile import PlannedStudent
from tutelage.training.evaluate import NonFiniteError
from tutelage.types import Batch

LAST = {"loss_form": "last_layer"}
WTTM = objectives.wttm(gamma=0.9, beta=1.5)


class Model(nn.Module):
    """Embedding, dropout, and a head whose weight is the embedding's."""

    def __init__(self, *, dropout=0.1, after=None):
        super().__init__()
        self.embedding, self.drop, self.after = nn.Embedding(TOKENS, 8), nn.Dropout(dropout), after
        self.head = nn.Linear(8, CLASSES)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        logits = self.head(self.drop(self.embedding(ids)).tanh())
        return logits if self.after is None else self.after(logits)


def teacher(width=12):
    return seeded(lambda: nn.Sequential(nn.Embedding(TOKENS, width), nn.Tanh(), nn.Linear(width, CLASSES)), 9)


def fit_one(*, student=None, rows=None, objective=WTTM, network=None, **how):
    student = student or seeded(Model)
    torch.manual_seed(3)
    frozen = FrozenTeacher(network or teacher())
    return student, fitted(student, rows or stream(), teacher=frozen, objective=objective, **how)


def plan_in(folder):
    return Checkpoints(folder / "checkpoints").load().state["speed"]


@pytest.fixture
def calls(monkeypatch):
    """The calls of the operation that never holds all logits."""
    made, real = [], kernels.linear
    monkeypatch.setattr(kernels, "linear", lambda *inputs, **how: made.append(inputs) or real(*inputs, **how))
    return made


SCHEDULED = objectives.ttm(gamma=0.9, beta=Linear(start=2.0, end=0.5))


@pytest.mark.parametrize("objective", [WTTM, SCHEDULED, 0.5 * objectives.kd(temperature=2.0)])
@pytest.mark.parametrize(("precision", "rtol"), [("fp32", 1e-5), ("fp64", 1e-9)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_weights_are_those_of_whole_logits(objective, precision, rtol, accumulate, calls):
    ids, labels, counted = texts()
    labels = labels.masked_fill(torch.arange(labels.shape[1]) == 2, -100)  # counted without a label
    labels[:1] = -100
    rows = Tokens(ids, labels, counted, batch_size=5)
    how = {"objective": objective, "rows": rows, "precision": precision, "accumulate": accumulate}
    (plain, expected), without = fit_one(**how), len(calls)
    (student, history) = fit_one(**how, **LAST)
    assert without == 0
    assert calls
    for name, value in state(plain).items():
        torch.testing.assert_close(state(student)[name], value, rtol=rtol, atol=rtol / 10)
    for one, other in zip(expected, history, strict=True):
        assert other["train"]["loss"] == pytest.approx(one["train"]["loss"], rel=rtol)
        assert other["train"]["terms"] == pytest.approx(one["train"]["terms"], rel=rtol)
        assert other["train"]["samples"] == one["train"]["samples"]
        assert {other["train"][name] for name in ("accuracy", "entropy", "agreement", "kl_to_target")} == {None}
        assert not math.isnan(one["train"]["entropy"])


def test_it_is_kept_on_resume_with_the_same_bits(tmp_path, calls):
    whole, expected = fit_one(**LAST)
    stopped = stream()
    stopped.stop_before = (1, 2)
    with pytest.raises(KeyboardInterrupt):
        fit_one(rows=stopped, folder=tmp_path, **LAST)
    calls.clear()
    resumed, history = fit_one(student=seeded(Model, 3), folder=tmp_path, resume=True, loss_form="plain")
    assert calls
    assert same_bits(state(resumed), state(whole))
    assert history[-1]["train"] == expected[-1]["train"]


class Added(nn.Module):
    """What adds 0 until it is trained."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, logits):
        return logits + self.scale * logits


class Doubled(nn.Linear):
    """A layer that is more than its product."""

    def forward(self, inputs):
        return 2 * super().forward(inputs)


class Sliced(nn.Module):
    """A view of all the classes, which is none of the hidden states."""

    def forward(self, logits):
        return logits.view(-1, 6, CLASSES)


def doubled():
    student = Model()
    student.head = Doubled(8, CLASSES)
    return student


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"student": lambda: Model(after=Added())}, "student: its logits are not just what its last linear layer"),
        ({"student": lambda: Model(after=Sliced())}, "student: it cannot be called without its last layer"),
        ({"student": doubled}, "student: its last layer computes more than a product"),
        ({"network": lambda: nn.Sequential(*teacher(), Added())}, "teacher: its logits are not just what"),
        ({"network": lambda: nn.Embedding(TOKENS, CLASSES)}, "teacher: no linear layer gives its logits"),
        ({"objective": lambda: WTTM + 0.1 * objectives.dist(supervised=0.0)}, "not a cross-entropy with one loss"),
        ({"objective": objectives.cross_entropy}, "not a cross-entropy with one loss"),
    ],
)
def test_what_does_not_end_in_its_last_layer_is_computed_plainly_and_says_why(how, reason, tmp_path, calls):
    how = {name: make() if name == "objective" else seeded(make) for name, make in how.items()}
    fit_one(**how, epochs=1, folder=tmp_path, **LAST)
    assert not calls
    plan = plan_in(tmp_path)
    assert plan["loss_form"] == "plain"
    assert plan["why"]["last_layer losses"].startswith(reason)


def test_many_logits_are_measured_on_a_cpu_and_few_are_not(tmp_path, monkeypatch, calls):
    monkeypatch.setattr("tutelage.training.compile.FEW", 0)
    monkeypatch.setattr("tutelage.training.compile.SHARE", 1e9)
    in_turn = lambda calls, _: [call() or 2.0 - i for i, call in enumerate(calls)]  # noqa: E731
    monkeypatch.setattr("tutelage.training.compile.least_seconds", in_turn)
    off = dict.fromkeys(("compile_teacher", "compile_student", "gradient_products"), False)
    fit_one(epochs=1, folder=tmp_path / "few", **off)
    assert not calls
    assert "last_layer losses" not in plan_in(tmp_path / "few")["why"]
    monkeypatch.setattr("tutelage.training.compile.MANY", 5 * 6 * CLASSES)
    measured, _ = fit_one(epochs=1, folder=tmp_path / "many", **off)
    plan = plan_in(tmp_path / "many")
    assert plan["loss_form"] == "last_layer"
    assert plan["why"]["last_layer losses"] == "2000.0 ms eager, 1000.0 ms with last_layer losses"
    named, _ = fit_one(epochs=1, **off, **LAST)
    assert same_bits(state(measured), state(named))  # Measuring draws no random number of the fit.


def test_a_step_that_is_not_finite_names_its_samples():
    student = seeded(Model)
    network = teacher()
    student.head.bias.data.zero_()
    with torch.no_grad():
        network[0].weight[10] = torch.inf
    ids, labels, counted = texts()
    ids = ids.masked_fill(ids == 10, 0)
    ids[7, 0] = 10
    network[1] = nn.Identity()
    with pytest.raises(NonFiniteError, match="non-finite teacher logits: 7;"):
        fit_one(student=student, network=network, rows=Tokens(ids, labels, counted, batch_size=5), **LAST)


def test_soft_labels_are_no_more_positions_than_class_indices(monkeypatch):
    planned = PlannedStudent(Distiller(nn.Linear(3, CLASSES), objectives.kd()))
    soft = Batch(torch.arange(5), torch.rand(5, 3), torch.rand(5, CLASSES))
    for labels in (soft.labels, soft.labels.argmax(-1)):
        for many, may in ((5 * CLASSES, True), (5 * CLASSES + 1, False)):
            monkeypatch.setattr("tutelage.training.compile.MANY", many)
            assert planned.may_leave_logits_out("auto", soft._replace(labels=labels)) is may
