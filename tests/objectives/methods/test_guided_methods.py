"""Presets that read the teacher's head, batch norms or class means: found, frozen, and trained against."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import Batch, config, data, losses, models, objectives, taps
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.modules import Distiller, FrozenTeacher, network_context
from tutelage.runs import record_teacher
from tutelage.runs.execute import execute
from tutelage.runs.setup import RunInputs, check_compatible, run_context

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
    model = nn.Sequential(layers)
    nn.init.normal_(model.bn.weight)
    nn.init.normal_(model.bn.bias)
    return model


def batch(n=6):
    return Batch(torch.arange(n), torch.randn(n, 1, 8, 8), torch.randint(0, 3, (n,)))


def distiller_of(objective, *, narrow=4, wide=6, stride=1):
    student, teacher = network(narrow, stride=stride), network(wide)
    means = {"fc:input": torch.randn(3, wide)}
    bound = network_context(objective, student, teacher, batch().inputs, samples=6, classes=3, class_means=means)
    return Distiller(student, objective, bound), FrozenTeacher(teacher, objective.needs.teacher_taps), bound


@pytest.mark.parametrize("name", PRESETS)
def test_each_trains_the_student_and_freezes_the_teacher(name):
    distiller, teacher, _ = distiller_of(PRESETS[name]())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    b = batch()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    first = distiller(b, teacher(b)).loss.total
    first.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in distiller.objective.parameters())
    assert distiller.student.conv.weight.grad.abs().sum() > 0
    optimizer.step()
    assert torch.isfinite(distiller(b, teacher(b)).loss.total)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_the_teachers_is_neither_trained_nor_saved(name):
    distiller, _, _ = distiller_of(PRESETS[name]())
    frozen = {"weight", "bias", "class_means", "margins_0"}
    term = distiller.objective.terms[{"kd_plus_plus": "norm_direction"}.get(name, name)]
    buffers = {key for key, _ in term.named_buffers(recurse=False)}
    assert buffers
    assert buffers <= frozen
    assert not buffers & set(term.state_dict())
    assert not buffers & dict(term.named_parameters()).keys()


def test_srrl_is_the_two_losses_behind_its_connector():
    distiller, teacher, bound = distiller_of(objectives.srrl(regression=3.0, **MAPPED))
    b = batch()
    value = distiller(b, teacher(b)).loss.total
    mapped = distiller.objective.terms["srrl"].connector(distiller.student[:3](b.inputs))
    target = teacher.network[:3](b.inputs)
    weight, bias = bound.teacher_head
    assert torch.equal(weight, teacher.network.fc.weight)
    expected = losses.srrl_statistics(mapped, target) + 3 * losses.srrl_regression(
        mapped, target, weight=weight, bias=bias
    )
    torch.testing.assert_close(value, expected.mean())
    assert [type(m) for m in distiller.objective.terms["srrl"].connector] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_ofd_averages_a_larger_map_and_halves_earlier_taps():
    two = {"student_taps": ("bn", "relu"), "teacher_taps": ("bn", "relu"), "norms": ("bn", "bn")}
    distiller, teacher, _ = distiller_of(objectives.ofd(weight=1.0, **two), stride=2)
    b = batch()
    value = distiller(b, teacher(b)).loss.total
    margins = losses.ofd_margins(teacher.network.bn.weight, teacher.network.bn.bias)
    expected = 0.0
    for factor, end, connector in zip((0.5, 1.0), (2, 3), distiller.objective.terms["ofd"].connectors, strict=True):
        target = nn.functional.avg_pool2d(teacher.network[:end](b.inputs), 2)
        mapped = connector(distiller.student[:end](b.inputs))
        expected = expected + factor * losses.ofd(mapped, target, margins=margins).mean()
    torch.testing.assert_close(value, expected)


def test_kd_plus_plus_carries_cross_entropy_and_maps_only_where_widths_differ():
    distiller, _, _ = distiller_of(PRESETS["kd_plus_plus"]())
    assert distiller.objective.names == ("ce", "kd", "norm_direction")
    assert len(list(distiller.objective.projectors.parameters())) == 2
    same, _, _ = distiller_of(PRESETS["kd_plus_plus"](), wide=4)
    assert not list(same.objective.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_a_context_that_lacks_it_is_refused(name):
    objective = PRESETS[name]()
    with refused(InvalidValueError, "context"):
        objective.bind()
    with refused(InvalidValueError, "teacher"):
        network_context(objective, network(4), None, batch().inputs)


def test_terms_refuse_what_does_not_fit():
    with refused(InvalidValueError, "teacher_taps", got=3):
        objectives.ofd(student_taps=("bn",))
    with refused(InvalidValueError, "norms", got=2):
        objectives.ofd(**TAPS, norms=("bn", "bn"))
    with refused(InvalidValueError, "regression"):
        objectives.srrl(regression=-1.0)
    with refused(InvalidValueError, "tap fc:input", got="(4,)"):
        distiller_of(objectives.srrl(student_tap="fc:input", teacher_tap="relu"))
    with refused(InvalidValueError, "tap fc", got="(3,)"):
        distiller_of(objectives.srrl(student_tap="relu", teacher_tap="fc"))
    student, teacher = network(4), network(6, stride=2)
    objective = objectives.ofd(**TAPS)
    with refused(InvalidValueError, "tap bn", got="(8, 8)"):
        Distiller(student, objective, network_context(objective, student, teacher, batch().inputs))


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
    model = models.create(name, classes=5)
    expected = model.network.get_submodule(norm)
    with torch.no_grad():
        expected.weight.uniform_()
        expected.bias.uniform_()
    weight, bias = taps.batch_norm(model, tap)
    assert torch.equal(weight, expected.weight)
    assert torch.equal(bias, expected.bias)
    assert not weight.requires_grad


def test_a_teacher_without_the_batch_norm_or_the_head_is_refused():
    model = models.create("cifar:MobileNetV2", classes=5)
    with refused(InvalidValueError, "tap card:before.-1", got="InvertedResidual"):
        taps.batch_norm(model, "card:before.-1")
    with refused(InvalidValueError, "teacher"):
        taps.head(nn.Conv2d(1, 2, 3))
    with refused(InvalidValueError, "teacher", got=2, suggests="tutelage.models.Classifier"):
        taps.head(nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2)))
    with refused(InvalidValueError, "tap 0", got="BatchNorm2d"):
        taps.batch_norm(nn.Sequential(nn.BatchNorm2d(2, affine=False)), "0")


def test_the_head_is_the_one_that_the_card_names():
    model = models.create("cifar:MobileNetV2", classes=5)
    weight, bias = taps.head(model)
    assert torch.equal(weight, model.network.classifier[0].weight)
    assert torch.equal(bias, model.network.classifier[0].bias)


class Labelled(torch.utils.data.Dataset):
    def __init__(self, labels):
        self.images, self.labels = torch.rand(len(labels), 3, 8, 8), labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def run_inputs(labels):
    train = Labelled(labels)
    splits = data.from_datasets(train, Labelled([0, 1, 2]), classes=4)
    student, teacher = (models.create("cifar:resnet8", classes=4, image_size=(8, 8), seed=k) for k in range(2))
    return RunInputs(splits=splits, student=student, teacher=teacher, objectives=(), repeatable=False), train


def test_class_means_are_of_all_labelled_training_samples():
    inputs, train = run_inputs([0, 2, 0, -100, 1, 2, 0])
    means = run_context(objectives.kd_plus_plus(), inputs).class_means["card:embedding"]
    with torch.no_grad():
        inputs.teacher.eval()
        _, features = taps.Taps(inputs.teacher, ["card:embedding"])(inputs.teacher, train.images)
    embedding, labels = features["card:embedding"], torch.tensor(train.labels)
    expected = torch.stack([embedding[labels == k].mean(0) if k < 3 else torch.zeros(64) for k in range(4)])
    torch.testing.assert_close(means, expected, rtol=1e-5, atol=1e-6)
    assert run_context(objectives.kd(), inputs).class_means == {}


def test_class_means_without_labels_or_of_maps_are_refused():
    inputs, _ = run_inputs([-100] * 4)
    with refused(RecipeError, "data"):
        run_context(objectives.kd_plus_plus(), inputs)
    inputs, _ = run_inputs([0, 1])
    with refused(RecipeError, "tap card:stage.-1", got="(2, 64, 2, 2)"):
        run_context(objectives.kd_plus_plus(teacher_tap="card:stage.-1"), inputs)
    with refused(RecipeError, "teacher"):
        check_compatible(replace(inputs, teacher=None, objectives=(objectives.kd_plus_plus(),)))


def test_a_teacher_without_batch_norms_is_refused_before_training():
    inputs, _ = run_inputs([0, 1])
    mobilenet = models.create("cifar:MobileNetV2", classes=4, image_size=(8, 8))
    changed = replace(inputs, teacher=mobilenet, objectives=(objectives.ofd(),))
    with refused(RecipeError, "objective ofd: tap card:before.-3", got="InvertedResidual"):
        check_compatible(changed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "teacher"
    how = {"data": {"source": "digits"}, "epochs": 1, "device": "cpu"}
    recipe = config.parse(Recipe, {"name": "teacher", "student": "cifar:resnet8", **how}, where="test")
    execute(recipe, folder)
    return str(folder)


@pytest.mark.parametrize("recorded", [False, True], ids=["live", "recorded"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_run_learns_by_name_and_saves_the_student_alone(tmp_path, trained, name, recorded):
    how = {"teacher": trained, "data": {"source": "digits", "labelled": 10}, "epochs": 1, "device": "cpu"}
    if recorded:
        how["outputs"] = str(tmp_path / "outputs")
    value = {"name": name, "student": "cifar:resnet8", "objective": name, **how}
    recipe = config.parse(Recipe, value, where="test")
    if recorded:
        record_teacher.record(recipe)
    run = execute(recipe, tmp_path / "run")
    saved = tutelage.load(tmp_path / "run").network.state_dict()
    assert saved.keys() == tutelage.load(trained).network.state_dict().keys()
    assert run.epochs[-1]["train"]["loss"] > 0
