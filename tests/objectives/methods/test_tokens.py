"""ViTKD as an objective, on real vision transformers."""

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage import Distiller, FrozenTeacher, losses, models, network_context, objectives
from tutelage.errors import InvalidValueError
from tutelage.objectives import BindContext
from tutelage.taps import Taps
from tutelage.types import Batch

FIRST, SECOND, LAST = "card:stage.0", "card:stage.1", "card:stage.-1"


def vit(seed, **more):
    pytest.importorskip("timm", reason="the optional package timm is not installed")
    return models.create("timm:test_vit", classes=4, image_size=(64, 64), seed=seed, **more)


def batch_of(n=3):
    inputs = torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Batch(torch.arange(n), inputs, torch.zeros(n, dtype=torch.int64))


def distiller_of(objective, student, teacher):
    context = network_context(objective, student, teacher, batch_of(2).inputs)
    return Distiller(student, objective, context), FrozenTeacher(teacher, objective.needs.teacher_taps)


def features(network, inputs):
    with torch.no_grad():
        return Taps(network, (FIRST, SECOND, LAST))(network, inputs)[1]


def test_blocks_are_mimicked_and_the_last_is_made_again():
    objective = objectives.vitkd(alpha=2.0, beta=3.0, masked=0.25)
    student, teacher, batch = vit(0).eval(), vit(1).eval(), batch_of()
    distiller, frozen = distiller_of(objective, student, teacher)
    torch.manual_seed(5)
    loss = distiller(batch, frozen(batch)).loss
    student_tokens, teacher_tokens = features(student, batch.inputs), features(teacher, batch.inputs)
    mimic = sum(
        (student_tokens[tap] - teacher_tokens[tap])[:, 1:].square().sum((1, 2)).mean() for tap in (FIRST, SECOND)
    )
    torch.testing.assert_close(loss.parts["vitkd_mimic"], mimic)
    generate = distiller.objective.terms["vitkd_generation"]
    torch.manual_seed(5)
    count = student_tokens[LAST].shape[1] - 1
    hidden = losses.hide(torch.rand(3, count), masked=0.25)
    shown = student_tokens[LAST][:, 1:].masked_fill(hidden[..., None], 0.0)
    side = round(count**0.5)
    generated = generate.generation(shown.transpose(1, 2).reshape(3, -1, side, side)).flatten(2).transpose(1, 2)
    squares = (generated - teacher_tokens[LAST][:, 1:]).square().sum(2)
    torch.testing.assert_close(loss.parts["vitkd_generation"], (squares * hidden).sum(1).mean() / 0.25)
    torch.testing.assert_close(loss.total, 2 * loss.parts["vitkd_mimic"] + 3 * loss.parts["vitkd_generation"])
    loss.total.backward()
    assert generate.mask_token.grad.norm() > 0
    assert next(p for p in student.parameters() if p.grad is not None).grad.norm() > 0
    assert all(p.grad is None for p in frozen.parameters())


def context(student=(17, 6), teacher=(17, 8)):
    taps = (FIRST, SECOND, LAST)
    return BindContext(student_shapes=dict.fromkeys(taps, student), teacher_shapes=dict.fromkeys(taps, teacher))


@pytest.mark.parametrize(("wide", "maps"), [(6, 0), (8, 3)])
def test_tokens_are_mapped_where_widths_differ(wide, maps):
    bound = objectives.vitkd().bind(context(teacher=(17, wide)))
    linear = [m for m in bound.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(6, wide)] * maps


@pytest.mark.parametrize(
    ("shapes", "refusal"),
    [
        (((17, 6), (26, 8)), refused(InvalidValueError, "tap card:stage.0", got="(26, 8)")),
        (((6, 4, 4), (6, 4, 4)), refused(InvalidValueError, "tap card:stage.0", got="(6, 4, 4)")),
        (((18, 6), (18, 8)), refused(InvalidValueError, "prefix")),
    ],
)
def test_features_that_do_not_fit_are_refused(shapes, refusal):
    with refusal:
        objectives.vitkd().bind(context(*shapes))


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"masked": 1}, refused(InvalidValueError, "masked", got=1)),
        ({"masked": 0}, refused(InvalidValueError, "masked", got=0)),
        ({"prefix": -1}, refused(InvalidValueError, "prefix", got=-1)),
        ({"prefix": 0.5}, refused(InvalidValueError, "prefix", got=0.5)),
        ({"alpha": 0, "beta": 0}, refused(InvalidValueError, "objective")),
    ],
)
def test_bad_arguments_are_refused_at_the_call(arguments, refusal):
    with refusal:
        objectives.vitkd(**arguments)


def test_it_adds_to_another_objective_and_reads_as_a_recipe():
    objective = objectives.wttm(gamma=0.5, beta=2.0) + objectives.vitkd()
    assert objective.weights() == {"ce": 1.0, "wttm": 2.0, "vitkd_mimic": 3e-5, "vitkd_generation": 3e-6}
    assert not objective.needs.coupled
    assert objective.needs.student_taps == (FIRST, SECOND, LAST)
    assert objectives.from_recipe(objective.to_recipe()) == objective
