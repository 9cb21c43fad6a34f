"""Presets of two views, of hard labels and of DeiT's distillation token."""

from __future__ import annotations

import json

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage import losses, models, objectives
from tutelage.errors import InvalidValueError
from tutelage.integrations.checks import refuse_reading
from tutelage.modules import Distiller, FrozenTeacher, network_context
from tutelage.objectives import Linear, from_recipe
from tutelage.types import UNLABELLED, Batch, Outputs

HEADS = {"head": (4,), "head_dist": (4,)}


def drawn(rows=8, classes=4):
    generator = torch.Generator().manual_seed(0)
    z, v, *heads = torch.randn(4, rows, classes, generator=generator, dtype=torch.float64).unbind()
    labels = torch.arange(rows) // 2 % classes
    student = Outputs(z, dict(zip(HEADS, heads, strict=True)))
    return student, Outputs(v), Batch(torch.arange(rows) // 2, torch.zeros(rows, 1), labels)


def total(objective, drawing=None):
    return objective.bind()(*(drawing or drawn())).total


EVERY = {
    "crld": objectives.crld(tau_w=0.5, tau_s=0.4, within=Linear(0.0, 2.0, until=0.5)),
    "two_view_mlkd": objectives.two_view_mlkd(logits="standardised"),
    "hard_labels": objectives.hard_labels(),
    "deit": objectives.deit(),
    "deit soft": objectives.deit(form="soft", weight=0.1, supervised=0.9),
}


@pytest.mark.parametrize("objective", EVERY.values(), ids=EVERY)
def test_a_recipe_holds_all_of_it(objective):
    read_back = from_recipe(json.loads(json.dumps(objective.to_recipe(), allow_nan=False)))
    assert read_back == objective
    assert total(read_back) == total(objective)


def test_crld_is_its_formula():
    (student, teacher, batch), how = drawn(), {"temperature": 4.0, "tau_w": 0.5, "tau_s": 0.4}
    objective = objectives.crld(tau_w=0.5, tau_s=0.4)
    z, v, y = student.logits, teacher.logits, batch.labels
    loss = objective.bind()(student, teacher, batch)
    ce = losses.cross_entropy(z[0::2], y[0::2]) + losses.cross_entropy(z[1::2], y[1::2])  # the code's weight of 1
    torch.testing.assert_close(loss.total, (ce + losses.crld(z, v, within=2.0, across=0.5, **how)).mean())
    assert list(loss.parts) == ["ce", "crld_within", "crld_across"]
    assert objective.needs.views == 2
    assert objective.needs.coupled
    published = objectives.crld(tau_w=0.5, tau_s=0.4, masked_by="pair")
    assert total(published) != total(objective)
    without = batch._replace(labels=torch.full_like(y, UNLABELLED))
    torch.testing.assert_close(
        objective.bind()(student, teacher, without).total, losses.crld(z, v, within=2.0, across=0.5, **how).mean()
    )


def test_two_view_mlkd_sums_all_temperatures_of_both_views():
    student, teacher, batch = drawn()
    pairs = [(student.logits[k::2], teacher.logits[k::2]) for k in range(2)]
    expected = 0.1 * sum(losses.cross_entropy(z, batch.labels[0::2]).mean() for z, _ in pairs)
    for t in (2.0, 3.0, 4.0, 5.0, 6.0):
        expected = expected + 0.9 * sum(losses.kd(*pair, temperature=t).mean() for pair in pairs)
        expected = expected + 0.9 * losses.mlkd_batch(*pairs[0], temperature=t)
        expected = expected + 0.9 * losses.mlkd_class(*pairs[0], temperature=t)
    torch.testing.assert_close(total(objectives.two_view_mlkd()), expected)


def test_objectives_of_one_view_ask_for_none_more():
    assert objectives.kd().needs.views == objectives.mlkd().needs.views == 1
    assert (objectives.kd() + objectives.crld(supervised=0)).needs.views == 2


@pytest.mark.parametrize("name", ["crld", "two_view_mlkd"])
def test_positions_have_no_views(name):
    z, v = torch.randn(2, 4, 2, 5).unbind()
    batch = Batch(torch.arange(4), torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.int64))
    objective = objectives.PRESETS[name].build()
    with refused(InvalidValueError, "batch", got="(4, 2, 5)"):
        objective.bind()(Outputs(z), Outputs(v), batch)
    with refused(InvalidValueError, "objective", got=name, suggests="tutelage.distill"):  # as other trainers have none
        refuse_reading(objective, {}, expected="one of logits")
    refuse_reading(objectives.kd(), {}, expected="one of logits")


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_deit_reads_the_tokens_and_not_their_mean(form):
    student, teacher, batch = drawn()
    token, v = student.taps["head_dist"], teacher.logits
    distilled = losses.hard_label(token, v) if form == "hard" else losses.kd(token, v, temperature=3.0)
    expected = 0.9 * losses.cross_entropy(student.taps["head"], batch.labels) + 0.1 * distilled
    objective = objectives.deit(form=form, weight=0.1, supervised=0.9)
    torch.testing.assert_close(total(objective), expected.mean())
    assert objective.needs.student_taps == ("head", "head_dist")
    with refused(InvalidValueError, "form", got="'x'", suggests="form=hard"):
        objectives.deit(form="x")
    with refused(InvalidValueError, "temperature", got=0):
        objectives.deit(form="soft", temperature=0)


@pytest.mark.parametrize("name", ["hard_labels", "deit"])
def test_of_several_teachers_each_one_s_class_counts(name):
    student, _, batch = drawn()
    members = {"members.0": drawn()[1].logits, "members.1": -drawn()[1].logits}
    teacher = Outputs(sum(members.values()), members)  # whose mean has no class
    objective = objectives.PRESETS[name].build(weight=1.0, supervised=0)
    read = student.logits if name == "hard_labels" else student.taps["head_dist"]
    expected = 0.7 * losses.hard_label(read, members["members.0"]) + 0.3 * losses.hard_label(read, members["members.1"])
    of_each = objective.per_member({"members.0": 0.7, "members.1": 0.3})
    torch.testing.assert_close(total(of_each, (student, teacher, batch)), expected.mean())
    assert of_each.needs.student_taps == objective.needs.student_taps


def vision_transformer(**more):
    deit = pytest.importorskip("timm.models.deit", reason="the optional package timm is not installed")
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    return deit.VisionTransformerDistilled(num_classes=4, **sizes, **more)


def test_a_distilled_vision_transformer_learns_by_each_of_its_heads():
    network = models.adopt(vision_transformer(), classes=4, channels=1, image_size=(8, 8))
    teacher, objective = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), objectives.deit()
    images = torch.rand(6, 1, 8, 8)
    context = network_context(objective, network, teacher, images, classes=4)
    distiller, batch = Distiller(network, objective, context), Batch(torch.arange(6), images, torch.arange(6) % 4)
    output = distiller(batch, FrozenTeacher(teacher)(batch))
    heads = network.network.head, network.network.head_dist
    output.loss.total.backward()
    # Each head's gradient is its own loss's: a bias gets the mean of q less the labels.
    for head, labels in zip(heads, (batch.labels, teacher(images).argmax(1)), strict=True):
        seen = {}
        handle = head.register_forward_hook(lambda module, args, out: seen.update(q=out.softmax(1)))  # noqa: B023
        distiller(batch, FrozenTeacher(teacher)(batch))
        handle.remove()
        expected = 0.5 * (seen["q"] - nn.functional.one_hot(labels, 4)).mean(0)
        torch.testing.assert_close(head.bias.grad, expected)
    network.eval()
    tokens = network.network.forward_features(network.normalise(images))
    mean = (heads[0](tokens[:, 0]) + heads[1](tokens[:, 1])) / 2
    torch.testing.assert_close(network(images), mean)


def test_a_network_without_a_distillation_token_is_refused_by_the_tap():
    timm = pytest.importorskip("timm", reason="the optional package timm is not installed")
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 1, "num_heads": 2}
    network = timm.models.VisionTransformer(num_classes=4, **sizes)
    with refused(InvalidValueError, "tap head_dist", suggests="head"):
        network_context(objectives.deit(), network, nn.Flatten(), torch.rand(2, 1, 8, 8), classes=4)


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_a_temperature_is_checked_whether_the_form_reads_it_or_not(form):
    with refused(InvalidValueError, "objective.deit.temperature", got=0):
        from_recipe({"deit": {"form": form, "temperature": 0}})
