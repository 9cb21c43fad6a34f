"""Losses on layers against NumPy in float64, and their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from tests._helpers.refusals import refused

from tutelage import losses
from tutelage.errors import InvalidTypeError, InvalidValueError


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs):
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-11, atol=1e-12)


def smooth_l1(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def kl(teacher, student, axis):
    p = softmax(teacher, axis)
    return (p * (log_softmax(teacher, axis) - log_softmax(student, axis))).sum(axis)


# VkD


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (3, 5, 2, 3)])
@pytest.mark.parametrize("other", [(3, 5), (3, 7, 5), (3, 5, 4, 1)])
def test_vkd_compares_pooled_features_of_any_layout(shape, other):
    student, teacher = draw(*shape), draw(*other, seed=1, scale=3)

    def pooled(features):
        positions = {2: (), 3: (1,), 4: (2, 3)}[features.ndim]
        return features.numpy().mean(positions) if positions else features.numpy()

    t = pooled(teacher)
    t = (t - t.mean(1, keepdims=True)) / np.sqrt(t.var(1, keepdims=True) + 1e-5)
    close(losses.vkd(student, teacher), smooth_l1(pooled(student) - t).mean(1))


def test_vkd_for_detection_standardises_each_channel_over_the_batch():
    student, teacher = draw(3, 5, 2, 4), draw(3, 5, 2, 4, seed=1, scale=3)

    def standardised(maps):
        rows = np.moveaxis(maps.numpy(), 1, -1).reshape(-1, 5)
        return (rows - rows.mean(0)) / rows.std(0, ddof=1)

    value = losses.vkd(student, teacher, normalise="batch")
    close(value, smooth_l1(standardised(student) - standardised(teacher)).mean())
    assert losses.vkd(student, 2 * student + 3, normalise="batch").item() == pytest.approx(0, abs=1e-12)
    assert losses.vkd(student, draw(3, 5, 4, 8), normalise="batch").shape == ()


@pytest.mark.parametrize("constant", [0.0, 0.1, 7e4])
def test_a_channel_that_is_constant_over_the_batch_is_0_and_gets_no_gradient(constant):
    student = draw(6, 4).float()
    student[:, 1] = constant
    student.requires_grad_()
    value = losses.vkd(student, draw(6, 4, seed=1).float(), normalise="batch")
    value.backward()
    assert torch.isfinite(value)
    assert not student.grad[:, 1].any()
    assert student.grad.isfinite().all()


def test_faults_of_vkd():
    with refused(InvalidValueError, "student_features", got=1, suggests="normalise=layer"):
        losses.vkd(draw(1, 4), draw(1, 4), normalise="batch")
    with refused(InvalidValueError, "normalise", got="'layers'", suggests="layer"):
        losses.vkd(draw(2, 4), draw(2, 4), normalise="layers")
    with refused(InvalidValueError, "teacher_features"):
        losses.vkd(draw(2, 4), draw(2, 5))
    with refused(InvalidValueError, "student_features"):
        losses.vkd(draw(2, 4, 2, 2, 2), draw(2, 4))


# Channel-wise distillation


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_wise_distillation_is_the_mean_kl_of_maps(temperature):
    student, teacher = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1, scale=3)
    s, t = (maps.flatten(2).numpy() / temperature for maps in (student, teacher))
    close(losses.cwd(student, teacher, temperature=temperature), temperature**2 * kl(t, s, 2).mean(1))
    spatial = losses.cwd(student, teacher, temperature=temperature, over="channels")
    close(spatial, temperature**2 * kl(t, s, 1).mean(1))


@pytest.mark.parametrize("over", ["positions", "channels"])
def test_positions_that_do_not_count_change_nothing(over):
    student, teacher = draw(2, 3, 2, 4), draw(2, 3, 2, 4, seed=1)
    counted = torch.ones(2, 2, 4, dtype=torch.bool)
    assert torch.equal(
        losses.cwd(student, teacher, over=over, counted=counted), losses.cwd(student, teacher, over=over)
    )
    counted[:, :, 3] = False
    counted[1] = False
    student.requires_grad_()
    value = losses.cwd(student, teacher, over=over, counted=counted)
    value.sum().backward()
    close(value[:1].detach(), losses.cwd(student[:1, :, :, :3], teacher[:1, :, :, :3], over=over).detach())
    assert value[1] == 0
    out = ~counted[:, None].expand_as(student)
    assert not student.grad[out].any()
    assert student.grad.isfinite().all()


def test_channel_wise_distillation_ignores_what_a_softmax_does_and_pools_the_larger_map():
    student, teacher = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    shifted = student + draw(2, 3, 1, 1, seed=2)
    close(losses.cwd(shifted, teacher), losses.cwd(student, teacher))
    assert not losses.cwd(student, student).any()
    large = draw(2, 3, 8, 8, seed=3)
    close(losses.cwd(student, large), losses.cwd(student, torch.nn.functional.avg_pool2d(large, 2)))


@pytest.mark.parametrize("over", ["positions", "channels"])
def test_channel_wise_distillation_is_finite_at_extremes(over):
    student = torch.tensor([[[[6e4, -6e4]], [[0.0, 0.0]]]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[[[-torch.inf, 300.0]], [[1.0, -6e4]]]], dtype=torch.float16)
    value = losses.cwd(student, teacher, over=over)
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), student)[0].isfinite().all()


def test_faults_of_channel_wise_distillation():
    maps = draw(2, 3, 4, 4)
    with refused(InvalidValueError, "over", got="'position'", suggests="positions"):
        losses.cwd(maps, maps, over="position")
    with refused(InvalidValueError, "teacher_features"):
        losses.cwd(maps, draw(2, 4, 4, 4))
    with refused(InvalidTypeError, "counted", suggests="counted.bool"):
        losses.cwd(maps, maps, counted=torch.ones(2, 4, 4))
    with refused(InvalidValueError, "counted"):
        losses.cwd(maps, maps, counted=torch.ones(2, 4, dtype=torch.bool))


# Gaussian Wasserstein


@pytest.mark.parametrize(("side", "grid"), [(4, 1), (4, 2), (7, 2), (7, 4), (8, 3)])
def test_gaussians_of_cells(side, grid):
    student, teacher = draw(2, 3, side, side), draw(2, 3, side, side, seed=1).relu()
    total = np.zeros(2)
    cells = [(i * side // grid, -(-(i + 1) * side // grid)) for i in range(grid)]
    for a, b in cells:
        for c, d in cells:
            s, t = (maps[..., a:b, c:d].flatten(2).numpy() for maps in (student, teacher))
            deviations = np.sqrt(s.var(2, ddof=1) + 1e-5) - np.sqrt(t.var(2, ddof=1) + 1e-5)
            total += (2 * (s.mean(2) - t.mean(2)) ** 2 + deviations**2).sum(1)
    close(losses.wkd_f(student, teacher, mean_cov_ratio=2.0, grid=grid), total / grid**2)


def test_the_distance_is_that_of_wasserstein_between_diagonal_gaussians():
    """``|m1 - m2|**2 + tr(A + B - 2 (A B)**0.5)``, of the measured variances."""
    student, teacher = draw(1, 3, 4, 4), draw(1, 3, 4, 4, seed=1, scale=2)
    (a, m), (b, n) = (torch.var_mean(maps, (2, 3)) for maps in (student, teacher))
    exact = ((m - n).square() + a + b - 2 * (a * b).sqrt()).sum(1)
    torch.testing.assert_close(losses.wkd_f(student, teacher, mean_cov_ratio=1.0, epsilon=1e-12), exact)


def test_a_constant_map_is_finite_and_equal_maps_are_0():
    student = torch.ones(2, 3, 4, 4, requires_grad=True)
    value = losses.wkd_f(student, draw(2, 3, 4, 4).float())
    assert torch.autograd.grad(value.sum(), student)[0].isfinite().all()
    assert not losses.wkd_f(student, student).any()


@pytest.mark.parametrize(("side", "grid"), [(1, 1), (2, 2), (4, 4), (7, 8)])
def test_a_cell_of_one_position_is_refused(side, grid):
    with refused(InvalidValueError, "grid", got=grid, suggests="grid=1"):
        losses.wkd_f(draw(2, 3, side, side), draw(2, 3, side, side), grid=grid)


# Tokens


def test_distances_of_hidden_states():
    student, teacher = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    s, t = student.numpy(), teacher.numpy()
    close(losses.hidden_states(student, teacher), ((s - t) ** 2).mean(2))
    s, t = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in (s, t))
    cosine = losses.hidden_states(student, teacher, distance="cosine")
    close(cosine, 1 - (s * t).sum(2))
    close(2 * cosine, ((s - t) ** 2).sum(2))
    with refused(InvalidValueError, "distance", got="'mse'"):
        losses.hidden_states(student, teacher, distance="mse")


def scores(vectors, keys, heads):
    a, b = (each.numpy().reshape(2, 5, heads, -1) for each in (vectors, keys))
    return np.einsum("nihd,njhd->nhij", a, b) / np.sqrt(a.shape[-1])


@pytest.mark.parametrize("distance", ["kl", "mean_square"])
def test_relations_of_tokens(distance):
    student, teacher, keys = draw(2, 5, 4), draw(2, 5, 8, seed=1), draw(2, 5, 8, seed=2)
    pairs = [({}, teacher), ({"student_keys": student, "teacher_keys": keys}, keys)]
    for more, others in pairs:
        s, t = scores(student, student, 2), scores(teacher, others, 2)
        wanted = kl(t, s, 3) if distance == "kl" else ((s - t) ** 2).mean(3)
        close(losses.attention_relations(student, teacher, heads=2, distance=distance, **more), wanted.mean(1))


@pytest.mark.parametrize("distance", ["kl", "mean_square"])
@pytest.mark.parametrize("attend", ["all", "earlier"])
def test_padding_takes_no_part_in_relations(distance, attend):
    student, teacher = draw(2, 5, 4), draw(2, 5, 8, seed=1)
    mask = torch.tensor([[True, True, True, False, False], [False] * 5])
    student.requires_grad_()
    how = {"heads": 2, "distance": distance, "attend": attend}
    value = losses.attention_relations(student, teacher, mask=mask, **how)
    alone = losses.attention_relations(student[:1, :3], teacher[:1, :3], **how)
    close(value[0, :3].detach(), alone[0].detach())
    assert not value[~mask].any()
    value.sum().backward()
    assert not student.grad[~mask].any()
    assert student.grad.isfinite().all()


def test_earlier_tokens_do_not_see_later_ones():
    student, teacher = draw(2, 5, 4), draw(2, 5, 8, seed=1)
    value = losses.attention_relations(student, teacher, heads=2, attend="earlier")
    later = student.clone()
    later[:, 3:] = 9
    again = losses.attention_relations(later, teacher, heads=2, attend="earlier")
    close(again[:, :3], value[:, :3])
    assert not value[:, 0].any()


def test_relations_are_blind_to_a_rotation_of_the_students_heads():
    student, teacher = draw(2, 5, 4), draw(2, 5, 8, seed=1)
    turn, _ = torch.linalg.qr(draw(4, 4, seed=2))
    close(
        losses.attention_relations(student @ turn, teacher, heads=1),
        losses.attention_relations(student, teacher, heads=1),
    )


def test_relations_are_finite_at_extremes_and_0_at_equality():
    student = torch.full((1, 3, 4), 6e4, dtype=torch.float16).requires_grad_()
    value = losses.attention_relations(student, draw(1, 3, 8, scale=300).half(), heads=2)
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), student)[0].isfinite().all()
    same = draw(1, 3, 8)
    assert not losses.attention_relations(same, same, heads=4).any()


def test_faults_of_relations():
    student, teacher = draw(2, 5, 4), draw(2, 5, 6)
    with refused(InvalidValueError, "heads", got=4, suggests="heads=2"):
        losses.attention_relations(student, teacher, heads=4)
    with refused(InvalidValueError, "teacher_features"):
        losses.attention_relations(student, draw(2, 6, 6), heads=2)
    with refused(InvalidValueError, "student_keys"):
        losses.attention_relations(student, teacher, heads=2, student_keys=draw(2, 5, 2))
    with refused(InvalidValueError, "attend", got="'later'"):
        losses.attention_relations(student, teacher, heads=2, attend="later")


@pytest.mark.parametrize("over", ["positions", "channels"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_teacher_that_is_nan_is_noticed(over, masked):
    student, teacher = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    teacher[0, 0, 0, 0] = math.nan
    counted = torch.ones(2, 2, 2, dtype=torch.bool) if masked else None
    assert losses.cwd(student, teacher, over=over, counted=counted).isnan().tolist() == [True, False]
    tokens = torch.zeros(1, 3, 4)
    tokens[0, 0, 0] = math.nan
    assert losses.attention_relations(torch.zeros(1, 3, 4), tokens, heads=2).isnan().all()
    assert losses.vkd(student, teacher, normalise="batch").isnan()


NOTICED = {
    "vkd": (losses.vkd, (6, 4)),
    "vkd batch": (lambda s, t: losses.vkd(s, t, normalise="batch"), (6, 4)),
    "cwd": (losses.cwd, (2, 3, 4, 4)),
    "cwd channels": (lambda s, t: losses.cwd(s, t, over="channels"), (2, 3, 4, 4)),
    "wkd_f": (losses.wkd_f, (2, 3, 4, 4)),
    "hidden_states": (losses.hidden_states, (2, 3, 4)),
    "cosine": (lambda s, t: losses.hidden_states(s, t, distance="cosine"), (2, 3, 4)),
    "relations": (lambda s, t: losses.attention_relations(s, t, heads=2), (2, 3, 4)),
    "scores": (lambda s, t: losses.attention_relations(s, t, heads=2, distance="mean_square"), (2, 3, 4)),
}


@pytest.mark.parametrize("name", NOTICED)
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_number_is_noticed(name, which):
    loss, shape = NOTICED[name]
    features = [draw(*shape), draw(*shape, seed=1)]
    assert loss(*features).isfinite().all()
    features[which].view(-1)[5] = float("nan")
    assert loss(*features).isnan().any()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e25])
def test_the_cosine_of_states_of_any_size(scale):
    student, teacher = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    wide = losses.hidden_states(student, teacher, distance="cosine")
    ours = losses.hidden_states((student * scale).float(), (teacher * scale).float(), distance="cosine")
    np.testing.assert_allclose(ours.numpy(), wide.numpy(), rtol=1e-5)


def test_a_state_of_0_has_a_gradient_that_float16_holds():
    student = torch.zeros(1, 1, 4, dtype=torch.float16, requires_grad=True)
    losses.hidden_states(student, draw(1, 1, 4).half(), distance="cosine").sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("distance", ["kl", "mean_square"])
def test_autocast_changes_no_relation_and_no_cost(distance):
    student, teacher = draw(2, 3, 4).float(), draw(2, 3, 4, seed=1).float()

    def computed():
        relations = losses.attention_relations(student, teacher, heads=2, distance=distance)
        return relations, losses.class_cost(student[0])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = computed()
    assert all(map(torch.equal, inside, computed()))
