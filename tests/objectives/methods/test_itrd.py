"""ITRD as an objective: one map for two terms."""

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage import Distiller, FrozenTeacher, losses, models, network_context, objectives
from tutelage.errors import InvalidValueError
from tutelage.types import Batch

TAP = "card:embedding"


def step_of(student, teacher, **arguments):
    objective = objectives.itrd(**arguments)
    inputs = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    context = network_context(objective, student, teacher, inputs[:2])
    distiller = Distiller(student, objective, context)
    frozen = FrozenTeacher(teacher, objective.needs.teacher_taps)
    batch = Batch(torch.arange(6), inputs, torch.zeros(6, dtype=torch.int64))
    return distiller, distiller(batch, frozen(batch)).loss, frozen(batch).taps[TAP], inputs


@pytest.mark.parametrize("wide", [False, True])
def test_the_student_is_mapped_always_in_one_term_and_where_widths_differ_in_the_other(wide):
    student = models.create("cifar:resnet8", seed=0).eval()
    teacher = models.create("cifar:resnet8x4" if wide else "cifar:resnet14", seed=1)
    distiller, loss, teacher_features, inputs = step_of(student, teacher, alpha=1.5)
    maps = [m for m in distiller.objective.modules() if isinstance(m, nn.Linear)]
    assert len(maps) == 1
    features = survey_features(student, inputs)
    mapped = maps[0](features)
    assert loss.parts["itrd_correlation"].item() == pytest.approx(
        losses.itrd_correlation(mapped, teacher_features, alpha=1.5).item(), rel=1e-5
    )
    mutual = losses.itrd_mutual(mapped if wide else features, teacher_features)
    assert loss.parts["itrd_mutual"].item() == pytest.approx(mutual.item(), rel=1e-4, abs=1e-7)
    expected = 2 * loss.parts["itrd_correlation"] + loss.parts["itrd_mutual"]
    torch.testing.assert_close(loss.total, expected)
    loss.total.backward()
    assert maps[0].weight.grad.norm() > 0
    assert next(student.parameters()).grad.norm() > 0


def survey_features(student, inputs):
    from tutelage.taps import Taps

    with torch.no_grad():
        return Taps(student, [TAP])(student, inputs)[1][TAP]


def test_it_adds_to_another_objective_and_reads_as_a_recipe():
    objective = objectives.wttm(gamma=0.5, beta=2.0) + objectives.itrd(mutual=0)
    assert objective.weights() == {"ce": 1.0, "wttm": 2.0, "itrd_correlation": 2.0}
    assert objective.needs.coupled
    assert objectives.from_recipe(objective.to_recipe()) == objective
    assert objectives.itrd().needs.labels == "none"
    assert objectives.itrd().weights() == {"itrd_correlation": 2.0, "itrd_mutual": 1.0}


def test_a_bad_alpha_is_refused_at_the_call():
    with refused(InvalidValueError, "alpha", got=0):
        objectives.itrd(alpha=0)
