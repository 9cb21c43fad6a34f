"""An error out of the user's own module, data set, loss or file names it, and keeps the original as its cause."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn

import tutelage
from tutelage.errors import UserCodeError
from tutelage.objectives import Apply, Objective, WeightedTerm


class Photos(torch.utils.data.Dataset):
    classes = ("ant", "bee", "cat")

    def __init__(self, bad=None):
        self.targets, self.bad = [i % 3 for i in range(24)], bad

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        if i == self.bad:
            raise KeyError("no such photo")
        return torch.rand(3, 4, 4), self.targets[i]


class Broken(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + self.missing


def network(kind=nn.Sequential, width=48):
    return kind(nn.Flatten(), nn.Linear(width, 3))


def crooked(student_logits, teacher_logits):
    return student_logits @ teacher_logits


def objective(loss):
    return Objective.of(WeightedTerm("own", 1.0, Apply(loss)))


CASES = {
    "student": ({"student": network(Broken)}, "Broken.forward", AttributeError),
    "teacher": ({"teacher": network(Broken)}, "Broken.forward", AttributeError),
    "module without a line of the user's": ({"student": network(width=40)}, "Sequential", RuntimeError),
    "training data": ({"data": (Photos(bad=7), Photos())}, "Photos[7]", KeyError),
    "test data": ({"data": (Photos(), Photos(bad=3))}, "Photos[3]", KeyError),
    "loss": ({"objective": objective(crooked)}, "crooked", RuntimeError),
}


@pytest.mark.parametrize("case", CASES)
def test_the_object_is_named(case, tmp_path):
    changed, what, cause = CASES[case]
    usual = {"student": network(), "teacher": network(), "data": (Photos(), Photos()), "objective": "kd"}
    with pytest.raises(UserCodeError) as raised:
        tutelage.distill(**{**usual, **changed}, name="own", runs=tmp_path, epochs=1, batch_size=8, weak_teacher=True)
    assert raised.value.what.partition(" (")[0] == what
    assert isinstance(raised.value.__cause__, cause)
    assert raised.value.got.startswith(cause.__name__)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("def make(classes): return 1 / 0", "make"),
        ("raise ValueError('not today')", "file:"),
        ("import no_such_library", "file:"),
        ("def make(classes", "file:"),
        (
            "from torch import nn\nclass Net(nn.Linear):\n    def forward(self, x): return x.nothing\n"
            "def make(classes): return Net(64, classes)",
            "Net.forward",
        ),
    ],
)
def test_a_models_file_is_named(code, what, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(UserCodeError) as raised:
        tutelage.train(model=f"file:{path}:make", data="digits", name="own", runs=tmp_path, epochs=1, trust_code=True)
    assert raised.value.what.startswith(what)
    assert "mine.py" in str(raised.value)


def test_an_error_of_ours_stays_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.runs.execute.run_stage", operator.getitem)
    with pytest.raises(TypeError, match="not subscriptable"):
        tutelage.train(model="mlp:4", data="digits", name="own", runs=tmp_path, epochs=1)
