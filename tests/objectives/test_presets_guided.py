"""Presets that read the teacher's head, batch norms or class means: found, frozen, and trained against."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from tutelage import Batch, data, losses, models, objectives, taps
from tutelage.lesson import FrozenTeacher, Lesson, survey
from tutelage.material import Material

TAPS = {"student_taps": ("bn",), "teacher_taps": ("bn",)}
MAPPED = {"student_tap": "relu", "teacher_tap": "relu"}
POOLED = {"student_tap": "fc:input", "teacher_tap": "fc:input"}
PRESETS = {
    "srrl": lambda: objectives.srrl(**MAPPED),
    "ofd": lambda: objectives.ofd(**TAPS),
    "kd_plus_plus": lambda: objectives.kd_plus_plus(**POOLED),
}


def network(width, *, stride=1):
    layers = OrderedDict(
        conv=nn.Conv2d(1, width, 3, padding=1, stride=stride, bias=False),
        bn=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(width, 3),
    )
    made = nn.Sequential(layers)
    nn.init.normal_(made.bn.weight)
    nn.init.normal_(made.bn.bias)
    return made


def batch(n=6):
    return Batch(torch.arange(n), torch.randn(n, 1, 8, 8), torch.randint(0, 3, (n,)))


def lesson_of(objective, *, narrow=4, wide=6, stride=1):
    student, teacher = network(narrow, stride=stride), network(wide)
    means = {"fc:input": torch.randn(3, wide)}
    bound = survey(objective, student, teacher, batch().inputs, samples=6, classes=3, class_means=means)
    return Lesson(student, objective, bound), FrozenTeacher(teacher, objective.needs.teacher_taps), bound


@pytest.mark.parametrize("name", PRESETS)
def test_each_trains_the_student_and_freezes_the_teacher(name):
    lesson, teacher, _ = lesson_of(PRESETS[name]())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    b = batch()
    optimizer = torch.optim.SGD(lesson.parameters(), lr=0.1)
    first = lesson(b, teacher(b)).loss.total
    first.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in lesson.objective.parameters())
    assert lesson.student.conv.weight.grad.abs().sum() > 0
    optimizer.step()
    assert torch.isfinite(lesson(b, teacher(b)).loss.total)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_the_teachers_is_neither_trained_nor_saved(name):
    lesson, _, _ = lesson_of(PRESETS[name]())
    frozen = {"weight", "bias", "class_means", "margins_0"}
    term = lesson.objective.terms[{"kd_plus_plus": "norm_direction"}.get(name, name)]
    kept = {key for key, _ in term.named_buffers(recurse=False)}
    assert kept
    assert kept <= frozen
    assert not kept & set(term.state_dict())
    assert not kept & dict(term.named_parameters()).keys()


def test_srrl_is_the_two_losses_behind_its_connector():
    lesson, teacher, bound = lesson_of(objectives.srrl(regression=3.0, **MAPPED))
    b = batch()
    value = lesson(b, teacher(b)).loss.total
    ours = lesson.objective.terms["srrl"].connector(lesson.student[:3](b.inputs))
    theirs = teacher.network[:3](b.inputs)
    weight, bias = bound.teacher_head
    assert torch.equal(weight, teacher.network.fc.weight)
    expected = losses.srrl_statistics(ours, theirs) + 3 * losses.srrl_regression(ours, theirs, weight=weight, bias=bias)
    torch.testing.assert_close(value, expected.mean())
    assert [type(m) for m in lesson.objective.terms["srrl"].connector] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_ofd_averages_a_larger_map_and_halves_earlier_taps():
    two = {"student_taps": ("bn", "relu"), "teacher_taps": ("bn", "relu"), "norms": ("bn", "bn")}
    lesson, teacher, _ = lesson_of(objectives.ofd(weight=1.0, **two), stride=2)
    b = batch()
    value = lesson(b, teacher(b)).loss.total
    margins = losses.ofd_margins(teacher.network.bn.weight, teacher.network.bn.bias)
    expected = 0.0
    for factor, end, connector in zip((0.5, 1.0), (2, 3), lesson.objective.terms["ofd"].connectors, strict=True):
        theirs = nn.functional.avg_pool2d(teacher.network[:end](b.inputs), 2)
        ours = connector(lesson.student[:end](b.inputs))
        expected = expected + factor * losses.ofd(ours, theirs, margins=margins).mean()
    torch.testing.assert_close(value, expected)


def test_kd_plus_plus_carries_cross_entropy_and_maps_only_where_widths_differ():
    lesson, _, _ = lesson_of(PRESETS["kd_plus_plus"]())
    assert lesson.objective.names == ("ce", "kd", "norm_direction")
    assert len(list(lesson.objective.projectors.parameters())) == 2
    same, _, _ = lesson_of(PRESETS["kd_plus_plus"](), wide=4)
    assert not list(same.objective.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_a_context_that_lacks_it_is_refused(name):
    objective = PRESETS[name]()
    with pytest.raises(ValueError, match="context: expected"):
        objective.bind()
    with pytest.raises(ValueError, match="teacher: expected one"):
        survey(objective, network(4), None, batch().inputs)


def test_terms_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="teacher_taps: expected 1 names"):
        objectives.ofd(student_taps=("bn",))
    with pytest.raises(ValueError, match="norms: expected 1 names"):
        objectives.ofd(**TAPS, norms=("bn", "bn"))
    with pytest.raises(ValueError, match="regression: expected"):
        objectives.srrl(regression=-1.0)
    with pytest.raises(ValueError, match="expected a map"):
        lesson_of(objectives.srrl(student_tap="fc:input", teacher_tap="relu"))
    with pytest.raises(ValueError, match="that the teacher's head reads"):
        lesson_of(objectives.srrl(student_tap="relu", teacher_tap="fc"))
    student, teacher = network(4), network(6, stride=2)
    objective = objectives.ofd(**TAPS)
    with pytest.raises(ValueError, match="no larger than"):
        Lesson(student, objective, survey(objective, student, teacher, batch().inputs))


@pytest.mark.parametrize(
    ("name", "tap", "norm"),
    [
        ("cifar:resnet14", "card:before.-1", "layer3.1.bn2"),
        ("cifar:ResNet50", "card:before.-1", "layer4.2.bn3"),
        ("cifar:wrn_16_1", "card:before.-2", "block3.layer.0.bn1"),
        ("cifar:vgg8", "card:before.1", "block1.1"),
        ("torchvision:resnet18", "card:before.0", "bn1"),
        ("torchvision:resnet18", "card:before.-1", "layer4.1.bn2"),
        ("torchvision:vgg11_bn", "card:before.1", "features.5"),
    ],
)
def test_the_batch_norm_of_a_tap_is_found(name, tap, norm):
    made = models.create(name, classes=5)
    wanted = made.network.get_submodule(norm)
    with torch.no_grad():
        wanted.weight.uniform_()
        wanted.bias.uniform_()
    weight, bias = taps.batch_norm(made, tap)
    assert torch.equal(weight, wanted.weight)
    assert torch.equal(bias, wanted.bias)
    assert not weight.requires_grad


def test_a_teacher_without_the_batch_norm_or_the_head_is_refused():
    made = models.create("cifar:MobileNetV2", classes=5)
    with pytest.raises(ValueError, match="BatchNorm2d"):
        taps.batch_norm(made, "card:before.-1")
    with pytest.raises(ValueError, match="linear last layer"):
        taps.head(nn.Conv2d(1, 2, 3))
    with pytest.raises(ValueError, match=r"batch_norm|BatchNorm2d"):
        taps.batch_norm(nn.Sequential(nn.BatchNorm2d(2, affine=False)), "0")


def test_the_head_is_the_one_that_the_card_names():
    made = models.create("cifar:MobileNetV2", classes=5)
    weight, bias = taps.head(made)
    assert torch.equal(weight, made.network.classifier[0].weight)
    assert torch.equal(bias, made.network.classifier[0].bias)


def material(labels=None):
    images = torch.rand(9, 3, 8, 8)
    labels = torch.arange(9) % 3 if labels is None else labels
    splits = data.from_datasets(torch.utils.data.TensorDataset(images, labels), classes=3)
    student, teacher = (models.create("cifar:resnet8", classes=3, image_size=(8, 8)) for _ in range(2))
    return Material(splits, student, teacher, False)
