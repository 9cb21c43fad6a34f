"""Terms of pure losses: a signature says what is read."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses, objectives
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.objectives import Apply, BindContext, Objective, WeightedTerm
from tutelage.types import Batch, Outputs, Progress, Requirements


def draw():
    generator = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64).unbind()
    labels = torch.randint(4, (6,), generator=generator)
    labels[0] = -100
    return Outputs(z), Outputs(v), Batch(torch.arange(6), torch.zeros(6, 1), labels)


def margin(student_logits, teacher_logits, labels, *, power=1.0):
    """How far the student's confidence in the label is from the teacher's; zero where there is no label."""
    known = labels.clamp(min=0).unsqueeze(-1)
    apart = (student_logits.softmax(-1) - teacher_logits.softmax(-1)).gather(-1, known).squeeze(-1).abs() ** power
    return apart.where(labels != -100, 0.0)


def test_a_loss_of_ones_own_reads_what_its_parameters_name():
    student, teacher, batch = draw()
    term = Apply(margin, {"power": 2.0})
    assert term.reads == ("student_logits", "teacher_logits", "labels")
    assert term.needs == Requirements(teacher=True, labels="index", coupled=False)
    values = term.bind(BindContext())(student, teacher, batch, Progress())
    assert torch.equal(values, margin(student.logits, teacher.logits, batch.labels, power=2.0))


def test_the_order_of_the_parameters_is_free():
    def reversed_order(labels, teacher_logits, student_logits):
        return margin(student_logits, teacher_logits, labels)

    student, teacher, batch = draw()
    values = Apply(reversed_order).bind(BindContext())(student, teacher, batch, Progress())
    assert torch.equal(values, margin(student.logits, teacher.logits, batch.labels))


@pytest.mark.parametrize(
    ("loss", "how", "needs"),
    [
        (losses.cross_entropy, {"soft_labels": True}, Requirements(teacher=False, labels="any")),
        (losses.cross_entropy, {}, Requirements(teacher=False, labels="index")),
        (losses.confidence_penalty, {"soft_labels": True}, Requirements(teacher=False, labels="none")),
        (losses.kd, {"coupled": True}, Requirements(teacher=True, labels="none", coupled=True, sparse=True)),
        (losses.dist, {"coupled": True}, Requirements(teacher=True, labels="none", coupled=True)),
        (partial(losses.kd, temperature=2.0), {}, Requirements(teacher=True, labels="none")),
    ],
)
def test_needs_follow_from_the_signature(loss, how, needs):
    assert Apply(loss, **how).needs == needs


def test_terms_of_ones_own_stand_beside_presets():
    student, teacher, batch = draw()
    objective = Objective.of(WeightedTerm("margin", 0.5, Apply(margin)))
    loss = (objectives.ttm(gamma=0.5, beta=1) + 2 * objective).bind()(student, teacher, batch)
    assert list(loss.parts) == ["ce", "ttm", "margin"]
    expected = margin(student.logits, teacher.logits, batch.labels).sum() / 5
    torch.testing.assert_close(loss.parts["margin"], expected)
    torch.testing.assert_close(loss.total, loss.parts["ce"] + loss.parts["ttm"] + expected)
    assert objective.name == "custom"


def test_the_description_s_arguments_are_its_own():
    arguments = {"power": 2.0}
    bound = Apply(margin, arguments).bind(BindContext())
    student, teacher, batch = draw()
    before = bound(student, teacher, batch, Progress())
    arguments["power"] = 1.0
    assert torch.equal(bound(student, teacher, batch, Progress()), before)


@pytest.mark.parametrize("name", ["logits", "temperature", "input"])
def test_a_parameter_that_names_nothing_is_refused(name):
    loss = eval(f"lambda student_logits, {name}: student_logits")
    with refused(InvalidTypeError, "loss", got=name):
        Apply(loss)


def test_a_hand_made_term_cannot_stand_in_a_recipe_and_says_why():
    with refused(InvalidValueError, "objective", suggests="@tutelage.objectives.preset"):
        (objectives.kd() + Objective.of(WeightedTerm("margin", 0.5, Apply(margin)))).to_recipe()
