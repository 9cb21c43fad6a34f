"""Presets for unlike vocabularies: defaults, the positions that they read, and what they ask of a run."""

import json

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import losses, objectives
from tutelage.errors import InvalidValueError
from tutelage.objectives import BindContext, from_recipe
from tutelage.types import Batch, Outputs


def drawn():
    random = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 4, generator=random, dtype=torch.float64)
    v = torch.randn(2, 7, 6, generator=random, dtype=torch.float64)
    masks = [torch.rand(2, length, generator=random) < 0.6 for length in (5, 7, 5, 7)]
    names = ("teacher_counted", "student_aligned", "teacher_aligned")
    labels = torch.randint(4, (2, 5), generator=random).masked_fill(~masks[0], -100)
    ids = {"student": labels, "teacher": torch.zeros(2, 7)}
    return Outputs(z), Outputs(v), Batch(torch.arange(2), ids | dict(zip(names, masks[1:], strict=True)), labels,
                                         counted=masks[0])  # fmt: skip


def test_published_settings_are_the_defaults_and_a_recipe_holds_them():
    assert objectives.uld().weights() == {"ce": 1.0, "uld": 1.5}
    assert objectives.gold().weights() == {"ce": 1.0, "gold": 1.0}
    for objective in (objectives.uld(positions="text"), objectives.gold(beta=0.0, temperature=2.0)):
        assert from_recipe(json.loads(json.dumps(objective.to_recipe()))) == objective


@pytest.mark.parametrize("positions", ["order", "text"])
def test_the_terms_are_means_over_samples_of_the_losses_at_these_positions(positions):
    student, teacher, batch = drawn()
    own = {"order": (batch.counted, batch.inputs["teacher_counted"]),
           "text": (batch.inputs["student_aligned"], batch.inputs["teacher_aligned"])}[positions]  # fmt: skip
    same = torch.tensor([[0, 1], [3, 5]])
    context = BindContext(same_tokens=same)
    uld = objectives.uld(positions=positions, temperature=2.0).bind(context)(student, teacher, batch)
    gold = objectives.gold(positions=positions, beta=1.0).bind(context)(student, teacher, batch)
    wanted = losses.uld(student.logits, teacher.logits, *own, temperature=2.0).mean()
    torch.testing.assert_close(uld.parts["uld"], wanted)
    wanted = losses.gold(student.logits, teacher.logits, *own, same_tokens=same, beta=1.0).mean()
    torch.testing.assert_close(gold.parts["gold"], wanted)
    ce = losses.cross_entropy(student.logits, batch.labels)[batch.counted].mean()
    torch.testing.assert_close(uld.total, ce + 1.5 * uld.parts["uld"])


def test_what_a_run_has_to_know():
    uld, gold, kd = objectives.uld(), objectives.gold(), objectives.kd(temperature=1.0, supervised=0)
    assert (uld.needs.other_vocabulary, uld.needs.same_tokens) == (True, False)
    assert (gold.needs.other_vocabulary, gold.needs.same_tokens) == (True, True)
    assert (uld + objectives.confidence_penalty()).needs.other_vocabulary
    assert not (uld + kd).needs.other_vocabulary
    assert not objectives.cross_entropy().needs.other_vocabulary
    assert uld.read_at == {None}  # so that no few of the teacher's classes stand for all
    with refused(InvalidValueError, "positions", got="'byte'", suggests="text"):
        objectives.uld(positions="byte")


@pytest.mark.parametrize(("preset", "wrong"), [("uld", {"temperature": 0}), ("gold", {"temperature": -1}),
                                               ("gold", {"beta": 2})])  # fmt: skip
def test_numbers_that_the_losses_refuse_are_refused_before_a_run(preset, wrong):
    ((argument, got),) = wrong.items()
    with refused(InvalidValueError, f"objective.{preset}.{argument}", got=got):
        from_recipe({preset: wrong})
