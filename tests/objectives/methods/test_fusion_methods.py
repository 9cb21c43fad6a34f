"""ReviewKD and MGD as objectives, on small convolutional networks."""

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn
from torch.nn import functional as F

from tutelage import Distiller, FrozenTeacher, losses, models, network_context, objectives
from tutelage.errors import InvalidValueError
from tutelage.objectives import BindContext, from_recipe
from tutelage.objectives.methods.fusion import Fusion, Generation
from tutelage.types import Batch, Outputs, Progress

TAPS = ("0", "2", "4", "6")


def network(*widths, strides=(1, 2, 2), seed=0):
    torch.manual_seed(seed)
    layers, before = [], 3
    for width, stride in zip(widths, strides, strict=True):
        layers += [nn.Conv2d(before, width, 3, stride=stride, padding=1), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(before, 4))


def batch_of(n=6, size=(8, 8)):
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.arange(n), torch.rand(n, 3, *size, generator=generator), torch.arange(n) % 4)


def distiller_of(objective, student, teacher, batch):
    context = network_context(objective, student, teacher, batch.inputs[:2])
    return Distiller(student, objective, context), FrozenTeacher(teacher, objective.needs.teacher_taps)


def review(**more):
    return objectives.reviewkd(student_taps=TAPS, teacher_taps=TAPS, **more)


def masked(**more):
    return objectives.mgd(student_tap="4", teacher_tap="4", **more)


PRESETS = {
    "reviewkd": review(),
    "mgd": masked(),
    "mgd by position": masked(mask="position", masked=0.5),
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(8, 8), (12, 8)])
def test_one_step_trains_the_student_and_the_modules(name, size):
    batch = batch_of(size=size)
    student, teacher = network(4, 6, 8), network(5, 7, 9, seed=1)
    distiller, frozen = distiller_of(PRESETS[name], student, teacher, batch)
    modules = dict(distiller.objective.terms.named_parameters())
    assert modules
    before = {k: v.detach().clone() for k, v in modules.items()}
    teacher_weights = [p.clone() for p in teacher.parameters()]
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    loss, _ = distiller(batch, frozen(batch))
    loss.total.backward()
    assert student[0].weight.grad.norm() > 0
    # a convolution's bias or one side of a batch norm may stand still, a weight of a convolution does not
    assert all(p.grad.norm() > 0 for k, p in modules.items() if p.ndim == 4), name
    optimizer.step()
    assert all(not torch.equal(v, before[k]) for k, v in modules.items() if v.ndim == 4)
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(teacher.parameters(), teacher_weights, strict=True))


@pytest.mark.parametrize("strides", [(2, 1, 2), (1, 1, 1)])
def test_levels_of_other_sizes_than_the_teachers(strides):
    batch = batch_of()
    distiller, frozen = distiller_of(review(), network(4, 6, 8, strides=strides), network(5, 7, 9), batch)
    assert torch.isfinite(distiller(batch, frozen(batch)).loss.total)


def test_review_lessens_as_it_is_learned():
    batch = batch_of()
    distiller, frozen = distiller_of(review(), network(4, 6, 8), network(5, 7, 9, seed=1), batch)
    optimizer = torch.optim.Adam(distiller.parameters(), lr=0.02)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = distiller(batch, frozen(batch)).loss
        loss.total.backward()
        optimizer.step()
        values.append(loss.total.item())
    assert values[-1] < 0.5 * values[0]


def normalised(maps):
    return (maps - maps.mean((0, 2, 3), keepdims=True)) / np.sqrt(maps.var((0, 2, 3), keepdims=True) + 1e-5)


def convolved(maps, weight):
    """A convolution by hand; zeros around for 3x3."""
    reach = weight.shape[2] // 2
    around = np.pad(maps, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    height, width = maps.shape[2:]
    return sum(
        np.einsum("oc,nchw->nohw", weight[:, :, i, j], around[:, :, i : i + height, j : j + width])
        for i in range(weight.shape[2])
        for j in range(weight.shape[3])
    )


def nearest(maps, size):
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, maps.shape[2:], strict=True))
    return maps[:, :, rows][:, :, :, columns]


def test_fusion_matches_numpy():
    torch.manual_seed(3)
    fusion = Fusion([2, 3], [4, 5]).double()
    maps = [torch.randn(3, 2, 4, 6, dtype=torch.float64), torch.randn(3, 3, 2, 2, dtype=torch.float64)]
    shallow, deep = fusion(maps, [(6, 6), (4, 2)])
    weights = {k: v.detach().numpy() for k, v in fusion.named_parameters()}
    handed = nearest(normalised(convolved(maps[1].numpy(), weights["levels.1.enter.0.weight"])), (4, 2))
    expected = normalised(convolved(handed, weights["levels.1.leave.0.weight"]))
    np.testing.assert_allclose(deep.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    level = normalised(convolved(maps[0].numpy(), weights["levels.0.enter.0.weight"]))
    deeper = nearest(handed, (4, 6))
    both = convolved(np.concatenate([level, deeper], 1), weights["levels.0.mix.weight"])
    shares = 1 / (1 + np.exp(-both - weights["levels.0.mix.bias"][None, :, None, None]))
    mixed = nearest(level * shares[:, :1] + deeper * shares[:, 1:], (6, 6))
    expected = normalised(convolved(mixed, weights["levels.0.leave.0.weight"]))
    np.testing.assert_allclose(shallow.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("deepest", "mid"), [(8, 8), (600, 512)])
def test_the_middle_is_as_wide_as_the_deepest_level_and_at_most_512(deepest, mid):
    fusion = Fusion([4, deepest], [5, 6])
    assert [level.enter[0].out_channels for level in fusion.levels] == [mid, mid]
    assert [level.leave[0].out_channels for level in fusion.levels] == [5, 6]
    assert [level.mix is None for level in fusion.levels] == [False, True]


def bound(objective, student, teacher):
    return objective.bind(BindContext(student_shapes=student, teacher_shapes=teacher))


def test_a_single_sample_with_a_level_of_one_pixel_is_refused_in_training_alone():
    batch = batch_of(1)
    distiller, frozen = distiller_of(review(), network(4, 6, 8), network(5, 7, 9), batch)
    with refused(InvalidValueError, "student_features", got=1):
        distiller(batch, frozen(batch))
    assert torch.isfinite(distiller.eval()(batch, frozen(batch)).loss.total)


def test_mgd_masks_channels_of_the_aligned_map_and_counts_every_position():
    objective = objectives.mgd(weight=2.0, masked=0.5, student_tap="s", teacher_tap="t")
    term = bound(objective, {"s": (3, 4, 4)}, {"t": (5, 4, 4)}).terms["mgd"]
    student_map, teacher_map = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    outputs = Outputs(torch.zeros(2, 3), {"s": student_map}), Outputs(torch.zeros(2, 3), {"t": teacher_map})
    torch.manual_seed(9)
    values = term(*outputs, batch_of(2), Progress())
    torch.manual_seed(9)
    unmasked = (torch.rand(2, 5, 1, 1) >= 0.5).float()
    first, _, second = term.remake.generation
    shown = F.conv2d(student_map, term.remake.align.weight, term.remake.align.bias) * unmasked
    generated = F.conv2d(
        F.conv2d(shown, first.weight, first.bias, padding=1).relu(), second.weight, second.bias, padding=1
    )
    torch.testing.assert_close(values, (generated - teacher_map).square().flatten(1).sum(1))
    torch.testing.assert_close(values, losses.mgd(generated, teacher_map))


@pytest.mark.parametrize(("mask", "alike"), [("channel", (2, 3)), ("position", (1,))])
def test_what_is_masked_at_once(mask, alike):
    objective = objectives.mgd(masked=0.5, mask=mask, student_tap="s", teacher_tap="s")
    term = bound(objective, {"s": (6, 5, 5)}, {"s": (6, 5, 5)}).terms["mgd"]
    masks = []
    term.remake.register_forward_pre_hook(lambda module, arguments: masks.append(arguments[1].expand(4, 6, 5, 5)))
    outputs = Outputs(torch.zeros(4, 3), {"s": torch.randn(4, 6, 5, 5)})
    for _ in range(2):
        term(outputs, outputs, batch_of(4), Progress())
    hidden = masks[0].float()
    assert hidden.amax(alike).equal(hidden.amin(alike))
    assert 0 < hidden.mean() < 1
    assert not hidden[0].equal(hidden[1])
    assert not masks[0].equal(masks[1])


@pytest.mark.parametrize(("wide", "maps"), [(6, 0), (9, 1)])
def test_mgd_aligns_where_widths_differ(wide, maps):
    assert sum(m.kernel_size == (1, 1) for m in Generation(6, wide).modules() if isinstance(m, nn.Conv2d)) == maps


def test_they_work_on_the_models_cards_and_read_from_a_recipe():
    batch = batch_of(2, (32, 32))
    student = models.create("cifar:resnet8", classes=4, seed=0)
    teacher = models.create("cifar:ShuffleV2", classes=4, seed=1)
    distiller, frozen = distiller_of(objectives.reviewkd(), student, teacher, batch)
    assert torch.isfinite(distiller(batch, frozen(batch)).loss.total)
    teacher = models.create("cifar:resnet8x4", classes=4, seed=1)
    objective = from_recipe(
        [{"reviewkd": {"weight": {"schedule": "warm_up", "value": 5.0, "epochs": 20}}}, {"mgd": {}}]
    )
    distiller, frozen = distiller_of(objective, student, teacher, batch)
    first, last = (distiller(batch, frozen(batch), Progress(epoch=e)).loss for e in (0, 19))
    assert sorted(first.parts) == ["mgd", "reviewkd"]
    assert last.total > first.total


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (
            lambda: objectives.reviewkd(student_taps=("a", "b")),
            refused(InvalidValueError, "teacher_taps", got=4),
        ),
        (lambda: objectives.mgd(masked=1.0), refused(InvalidValueError, "masked", got=1.0)),
        (lambda: objectives.mgd(mask="pixel"), refused(InvalidValueError, "mask", got="'pixel'")),
        (
            lambda: bound(masked(), {"4": (3, 4, 4)}, {"4": (3, 8, 8)}),
            refused(InvalidValueError, "tap 4", got="(4, 4)"),
        ),
        (lambda: bound(masked(), {"4": (3, 4)}, {"4": (3, 8, 8)}), refused(InvalidValueError, "tap 4", got="(3, 4)")),
        (lambda: bound(review(), {}, {}), refused(InvalidValueError, "context")),
    ],
)
def test_what_does_not_fit_is_refused(call, refusal):
    with refusal:
        call()
