"""Presets on relations: each binds to two networks and trains."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import Distiller, FrozenTeacher, losses, network_context, objectives
from tutelage.errors import InvalidValueError
from tutelage.objectives import BindContext
from tutelage.objectives.methods.pairwise import Correlation
from tutelage.types import Batch

NAMES = ("rkd", "pkt", "similarity", "correlation", "nst", "ickd")
COUPLED = {"rkd", "pkt", "similarity", "correlation"}
EMBEDDED = {"rkd", "pkt", "correlation"}


def network(channels, seed, stride=1):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=stride, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, 3),
    )


def of_networks(name, **more):
    if name == "nst":
        taps = {"student_taps": ["1", "3"], "teacher_taps": ["1", "3"]}
    else:
        where = "5" if name in EMBEDDED else "3"
        taps = {"student_tap": where, "teacher_tap": where}
    return getattr(objectives, name)(**taps, **more)


def batch(n=6):
    generator = torch.Generator().manual_seed(2)
    return Batch(torch.arange(n), torch.rand(n, 3, 8, 8, generator=generator), torch.arange(n) % 3)


def distiller_of(objective, b):
    student, teacher = network(4, seed=0, stride=2), network(6, seed=1)
    torch.manual_seed(3)
    distiller = Distiller(student, objective, network_context(objective, student, teacher, b.inputs[:2]))
    return distiller, FrozenTeacher(teacher, objective.needs.teacher_taps)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_lowers_the_loss(name):
    objective, b = of_networks(name), batch()
    distiller, teacher = distiller_of(objective, b)
    # Weights of 0.02 to 30000 ask for other rates; a short step along the gradient must do.
    values = []
    for _ in range(3):
        loss = distiller(b, teacher(b)).loss.total
        values.append(loss.item())
        distiller.zero_grad()
        loss.backward()
        size = torch.cat([p.grad.flatten() for p in distiller.parameters() if p.grad is not None]).norm()
        with torch.no_grad():
            for p in distiller.parameters():
                if p.grad is not None:
                    p -= 1e-3 * p.grad / size
    assert values[2] < values[1] < values[0]
    assert all(p.grad is None for p in teacher.network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_those_that_depend_on_the_batch_say_so_and_none_is_supervised(name):
    objective = of_networks(name)
    assert objective.needs.coupled == (name in COUPLED)
    assert objective.needs.labels == "none"
    assert not objective.supervised
    assert (objectives.cross_entropy() + 0.5 * objective).name == f"cross_entropy+{name}"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_holds_them(name):
    objective = of_networks(name, **{"angle" if name == "rkd" else "weight": 0.25})
    read_back = objectives.from_recipe(yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(objective.to_recipe())))))
    assert read_back == objective


def test_published_weights():
    weights = {name: [part.weight for part, _ in getattr(objectives, name)().parts] for name in NAMES}
    assert weights == {
        "rkd": [25.0, 50.0],
        "pkt": [30000.0],
        "similarity": [3000.0],
        "correlation": [0.02],
        "nst": [50.0, 50.0, 50.0],
        "ickd": [2.5],
    }


def test_rkd_is_its_two_losses_on_the_embeddings():
    objective, b = of_networks("rkd"), batch()
    distiller, teacher = distiller_of(objective, b)
    student_features, teacher_features = (n[:6](b.inputs) for n in (distiller.student, teacher.network))
    expected = 25 * losses.rkd_distance(student_features, teacher_features) + 50 * losses.rkd_angle(
        student_features, teacher_features
    )
    torch.testing.assert_close(distiller(b, teacher(b)).loss.total, expected)


def test_nst_sums_over_its_taps():
    objective, b = of_networks("nst"), batch()
    distiller, teacher = distiller_of(objective, b)
    expected = sum(
        50 * losses.nst(distiller.student[:n](b.inputs), teacher.network[:n](b.inputs)).mean() for n in (2, 4)
    )
    torch.testing.assert_close(distiller(b, teacher(b)).loss.total, expected)


def test_nst_wants_a_tap_for_a_tap():
    with refused(InvalidValueError, "teacher_taps", got=2):
        objectives.nst(student_taps="1", teacher_taps=["1", "3"])


def test_ickd_maps_the_students_channels():
    objective, b = of_networks("ickd"), batch()
    distiller, teacher = distiller_of(objective, b)
    (convolution,) = (m for m in distiller.objective.modules() if isinstance(m, nn.Conv2d))
    assert (convolution.in_channels, convolution.out_channels, convolution.bias) == (8, 12, None)
    distiller(b, teacher(b)).loss.total.backward()
    assert convolution.weight.grad.norm() > 0


def test_a_convolution_refuses_embeddings():
    objective = objectives.ickd(student_tap="5", teacher_tap="5")
    with refused(InvalidValueError, "projection", got="(8,)"):
        distiller_of(objective, batch())


def test_correlation_maps_both_networks_and_both_maps_learn():
    objective, b = of_networks("correlation", dimension=7), batch()
    distiller, teacher = distiller_of(objective, b)
    embed_student, embed_teacher = (m for m in distiller.objective.modules() if isinstance(m, nn.Linear))
    assert (
        embed_student.in_features,
        embed_teacher.in_features,
        embed_student.out_features,
        embed_teacher.out_features,
    ) == (8, 12, 7, 7)
    loss = distiller(b, teacher(b)).loss.total
    errors = (embed_student(distiller.student[:6](b.inputs)) - embed_teacher(teacher.network[:6](b.inputs))).abs()
    torch.testing.assert_close(loss, 0.02 * (errors[:-1] * errors[1:]).sum(1).mean())
    loss.backward()
    assert embed_student.weight.grad.norm() > 0
    assert embed_teacher.weight.grad.norm() > 0


def test_correlation_refuses_maps_and_dimensions():
    with refused(InvalidValueError, "dimension", got=0):
        objectives.correlation(dimension=0)
    shapes = {"card:embedding": (4, 2, 2)}
    with refused(InvalidValueError, "tap card:embedding", got="(4, 2, 2)"):
        Correlation(dimension=3).bind(BindContext(student_shapes=shapes, teacher_shapes=shapes))


def test_a_run_holds_several_taps(tmp_path):
    images = torch.utils.data.TensorDataset(torch.rand(12, 3, 8, 8), torch.arange(12) % 3)
    run = tutelage.distill(
        student=network(4, seed=0),
        teacher=network(6, seed=1),
        data=(images, images),
        objective=of_networks("nst") + objectives.cross_entropy(),
        epochs=1,
        batch_size=6,
        name="nst",
        runs=tmp_path,
        weak_teacher=True,
    )
    assert set(run.epochs[0]["train"]["terms"]) == {"nst", "nst_2", "ce"}
    assert "teacher_taps" in (run.folder / "recipe.yaml").read_text(encoding="utf-8")
