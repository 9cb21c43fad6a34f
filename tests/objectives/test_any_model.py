"""Objectives of features on networks of every door: they train by their default taps, or say which taps would fit."""

from __future__ import annotations

import pytest
import torch
from tests._helpers.presets import OF_TOKENS, few_quickly
from tests._helpers.refusals import refused

from tutelage import Batch, Distiller, FrozenTeacher, network_context, objectives, taps
from tutelage.errors import InvalidValueError
from tutelage.models import create
from tutelage.studies import overview

PAIRS = {
    "from timm to torchvision": ("timm:resnet18", "torchvision:mobilenet_v3_small", 64),
    "from torchvision to timm": ("torchvision:resnet18", "timm:mobilenetv3_small_050", 64),
    "from wrn to ShuffleNet": ("cifar:wrn_16_2", "cifar:ShuffleV1", 32),
}
OF_EQUAL_WIDTH = {"fsp", "kd_svd"}
REFUSED = {("from wrn to ShuffleNet", "mgd"), *((pair, name) for pair in PAIRS for name in ("sdd", "deit"))}
OF_FEATURES = [
    name
    for name in objectives.PRESETS
    if name not in OF_TOKENS and {*overview.tried(name).needs.student_taps, *overview.tried(name).needs.teacher_taps}
]


def step(objective, pair):
    teacher, student, size = PAIRS[pair]
    if teacher.startswith("timm") or student.startswith("timm"):
        pytest.importorskip("timm")
    teacher, student = create(teacher, classes=10), create(student, classes=10, seed=1)
    batch = Batch(torch.arange(4), torch.rand(4, 3, size, size), torch.arange(4))
    shapes = taps.feature_shapes(teacher, objective.needs.class_means, batch.inputs)
    context = network_context(
        objective,
        student,
        teacher,
        batch.inputs,
        samples=40,
        classes=10,
        labels=torch.arange(40) % 10,
        class_means={name: torch.randn(10, *shape) for name, shape in shapes.items()},
    )
    distiller = Distiller(student, objective, context)
    loss = distiller(batch, FrozenTeacher(teacher, objective.needs.teacher_taps)(batch)).loss.total
    loss.backward()
    return loss, student


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", few_quickly(OF_FEATURES))
def test_features_of_any_model(name, pair):
    objective = overview.tried(name)
    if name in OF_EQUAL_WIDTH or (pair, name) in REFUSED:
        with refused(InvalidValueError) as caught:
            step(objective, pair)
        assert caught.value.what.removeprefix("tap ") in objective.needs.student_taps
        return
    loss, student = step(objective, pair)
    assert loss.isfinite()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
