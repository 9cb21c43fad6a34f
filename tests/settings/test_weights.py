"""Scheduled weights."""

from __future__ import annotations

import math

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import objectives
from tutelage.errors import InvalidValueError
from tutelage.objectives import Cosine, CosineWarmUp, Linear, WarmUp
from tutelage.settings.weights import scaled, weight_at, weight_from_recipe, weight_to_recipe
from tutelage.types import Batch, Outputs, Progress


def at(fraction):
    return Progress(fraction=fraction)


@pytest.mark.parametrize(("fraction", "value"), [(0.0, 2.0), (0.2, 2.0), (0.4, 1.5), (0.6, 1.0), (0.99, 1.0)])
def test_linear(fraction, value):
    assert Linear(2.0, 1.0, begin=0.2, until=0.6)(at(fraction)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("fraction", "value"),
    [(0.0, 2.0), (0.25, 1 + (1 + math.sqrt(0.5)) / 2), (0.5, 1.5), (0.75, 1.5 - math.sqrt(0.125))],
)
def test_cosine(fraction, value):
    assert Cosine(2.0, 1.0)(at(fraction)) == pytest.approx(value)


@pytest.mark.parametrize(("epoch", "value"), [(0, 0.4), (1, 0.8), (4, 2.0), (5, 2.0), (200, 2.0)])
def test_warm_up_counts_epochs_from_one(epoch, value):
    assert WarmUp(2.0, 5)(Progress(epoch=epoch)) == pytest.approx(value)


@pytest.mark.parametrize(("epoch", "value"), [(0, -(1 - math.sqrt(0.5)) / 2), (1, -0.5), (3, -1.0), (200, -1.0)])
def test_cosine_warm_up_counts_epochs_from_one(epoch, value):
    assert CosineWarmUp(-1.0, 4)(Progress(epoch=epoch)) == pytest.approx(value)


def test_a_signed_weight_may_warm_up_below_zero():
    written = {"schedule": "cosine_warm_up", "value": -1.0, "epochs": 4}
    assert weight_from_recipe(written, argument="reversal", signed=True) == CosineWarmUp(-1.0, 4)
    with refused(InvalidValueError, "reversal: schedule", got=-1.0):
        weight_from_recipe(written, argument="reversal")
    assert weight_to_recipe(CosineWarmUp(-1.0, 4)) == written


def test_a_schedule_is_printed_as_it_is_typed():
    assert str(WarmUp(1.0, 20)) == "{schedule: warm_up, value: 1.0, epochs: 20}"
    assert str(Cosine(0.0, 1.0)) == "{schedule: cosine, start: 0.0, end: 1.0, begin: 0.0, until: 1.0}"


def test_a_number_is_the_same_throughout():
    assert weight_at(0.3, at(0.9)) == 0.3


@pytest.mark.parametrize(
    "schedule", [Linear(2.0, 0.5, 0.1, 0.9), Cosine(2.0, 0.5), WarmUp(3.0, 4), CosineWarmUp(-3.0, 4), 0.7]
)
def test_scaling_scales_every_moment(schedule):
    for progress in (Progress(), Progress(2, 50, 0.3), Progress(9, 99, 0.95)):
        assert weight_at(scaled(schedule, 2.5), progress) == pytest.approx(2.5 * weight_at(schedule, progress))


@pytest.mark.parametrize("weight", [Linear(2.0, 0.5, 0.1, 0.9), Cosine(2.0, 0.5), WarmUp(3.0, 4), 0.7])
def test_a_weight_goes_to_a_recipe_and_back(weight):
    assert weight_from_recipe(weight_to_recipe(weight), argument="beta") == weight


def test_an_objective_s_weight_follows_progress_and_its_scale():
    objective = 0.5 * objectives.ttm(gamma=0.5, beta=Linear(4.0, 0.0), supervised=WarmUp(1.0, 2))
    generator = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, 6, 4, generator=generator).unbind()
    batch = Batch(torch.arange(6), torch.zeros(6, 1), torch.arange(6) % 4)
    bound = objective.bind()
    for progress in (Progress(0, 0, 0.0), Progress(1, 50, 0.5), Progress(3, 75, 0.75)):
        loss = bound(Outputs(z), Outputs(v), batch, progress)
        ce, match = loss.parts["ce"], loss.parts["ttm"]
        expected = 0.5 * min((progress.epoch + 1) / 2, 1) * ce + 0.5 * 4 * (1 - progress.fraction) * match
        torch.testing.assert_close(loss.total, expected)
    assert objective.weights() == {
        "ce": {"schedule": "warm_up", "value": 0.5, "epochs": 2},
        "ttm": {"schedule": "linear", "start": 2.0, "end": 0.0, "begin": 0.0, "until": 1.0},
    }


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        (
            "high",
            refused(InvalidValueError, "beta", got="'high'", suggests="beta=0.9"),
        ),
        (True, refused(InvalidValueError, "beta", got="True", suggests="beta=0.9")),
        (None, refused(InvalidValueError, "beta", got="None")),
        (math.nan, refused(InvalidValueError, "beta", got="nan")),
        ({"start": 1, "end": 0}, refused(InvalidValueError, "beta", suggests="beta=0.9")),
        ({"schedule": "linaer", "start": 1, "end": 0}, refused(InvalidValueError, "beta", got="'linaer'")),
        (-1, refused(InvalidValueError, "beta", got=-1.0, suggests="beta=0.9")),
        (
            {"schedule": "linear", "start": 1, "end": -1},
            refused(InvalidValueError, "beta: schedule", got=-1, suggests="end: 1"),
        ),
        (Cosine(-0.5, 1.0), refused(InvalidValueError, "beta: schedule", got=-0.5, suggests="start: 1")),
        (WarmUp(-2.0, 3), refused(InvalidValueError, "beta: schedule", got=-2.0, suggests="value: 1")),
        ({"schedule": ["linear"]}, refused(InvalidValueError, "beta", got="['linear']")),
        (
            {"schedule": "linear", "strt": 1, "end": 0},
            refused(InvalidValueError, "beta", got="'strt'", suggests="start"),
        ),
        ({"schedule": "linear", "end": 0}, refused(InvalidValueError, "beta", suggests="start: 1")),
        (
            {"schedule": "linear", "start": "a", "end": 0},
            refused(InvalidValueError, "beta: schedule", got="'a'"),
        ),
        (
            {"schedule": "cosine", "start": math.inf, "end": 0},
            refused(InvalidValueError, "beta: schedule", got="inf"),
        ),
        (
            {"schedule": "linear", "start": 1, "end": 0, "begin": 0.5, "until": 0.5},
            refused(InvalidValueError, "beta: schedule", got="begin=0.5"),
        ),
        (
            {"schedule": "linear", "start": 1, "end": 0, "until": 1.5},
            refused(InvalidValueError, "beta: schedule", got="until=1.5", suggests="until=1.0"),
        ),
        ({"schedule": "warm_up", "value": 1, "epochs": 0}, refused(InvalidValueError, "beta: schedule", got=0)),
        (
            {"schedule": "warm_up", "value": 1, "epochs": 2.5},
            refused(InvalidValueError, "beta: schedule", got=2.5),
        ),
    ],
)
def test_a_weight_that_is_none_is_refused(value, refusal):
    with refusal:
        weight_from_recipe(value, argument="beta")


@pytest.mark.parametrize("weight", [-1.0, Linear(1.0, -1.0), WarmUp(-2.0, 3)])
def test_a_signed_weight_may_be_below_zero(weight):
    assert weight_from_recipe(weight, argument="weight", signed=True) == weight


def test_a_schedule_of_another_class_is_refused():
    class Halved(Linear):
        pass

    with refused(InvalidValueError, "weight", suggests="weight=0.9"):
        objectives.kd(weight=Halved(1.0, 0.0))
