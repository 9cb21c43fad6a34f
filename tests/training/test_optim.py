import json
import math

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage import models
from tutelage.errors import InvalidValueError
from tutelage.settings.fit import SGD, AdamW, Constant, Cosine, FitSettings, MultiStep, Step
from tutelage.training.checkpoints import Checkpoint
from tutelage.training.optim import build, learning_rate, optimizer_state, restore_optimizer


def rate(schedule, epoch, position=1.0, *, peak=0.05, epochs=240):
    return learning_rate(schedule, peak, epoch=epoch, begin=position, end=position, epochs=epochs)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        *[(1, 0.05), (149, 0.05), (150, 0.05), (151, 0.005), (180, 0.005), (181, 0.0005)],
        *[(210, 0.0005), (211, 0.00005), (240, 0.00005)],
    ],
)
def test_multistep_lowers_the_epoch_after_each_milestone(number, expected):
    """``number`` counts from 1, as records do."""
    for position in (1e-3, 0.5, 1.0):
        assert rate(MultiStep(), number - 1, position) == pytest.approx(expected, rel=1e-12)


def test_multistep_takes_other_milestones_and_factors():
    rates = [rate(MultiStep(milestones=(1, 3), factor=0.5), epoch, peak=0.8) for epoch in range(5)]
    assert rates == pytest.approx([0.8, 0.4, 0.4, 0.2, 0.2])


def test_step_lowers_after_every_so_many_epochs():
    rates = [rate(Step(every=2, factor=0.1), epoch, peak=1.0) for epoch in range(6)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_is_constant():
    assert {rate(Constant(), epoch, position) for epoch in (0, 100, 239) for position in (0.01, 1.0)} == {0.05}


def test_cosine_ends_on_its_final_fraction():
    for final in (0.0, 0.1):
        assert rate(Cosine(final=final), 9, 1.0, peak=0.2, epochs=10) == pytest.approx(0.2 * final, abs=1e-15)
        assert rate(Cosine(final=final), 4, 1.0, peak=0.2, epochs=10) == pytest.approx(0.2 * (1 + final) / 2)
        start = rate(Cosine(final=final), 0, 1e-9, peak=0.2, epochs=10)
        assert start == pytest.approx(0.2)
    quarter = rate(Cosine(), 2, 0.5, peak=1.0, epochs=10)
    assert quarter == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_no_step_has_the_rate_zero():
    """A decay is taken at a step's begin and a warm-up at its end: neither the last nor the first step is lost."""
    steps = 4
    for schedule in (Cosine(), Cosine(warmup=1.0), Constant(warmup=1.0)):
        rates = [
            learning_rate(schedule, 1.0, epoch=epoch, begin=i / steps, end=(i + 1) / steps, epochs=2)
            for epoch in range(2)
            for i in range(steps)
        ]
        assert min(rates) > 0
        assert max(rates) == 1.0


def test_cosine_falls_within_an_epoch():
    inside = [rate(Cosine(), 3, position / 7, peak=1.0, epochs=10) for position in range(1, 8)]
    assert inside == sorted(inside, reverse=True)
    assert len(set(inside)) == 7


@pytest.mark.parametrize("kind", [Constant, Step, MultiStep, Cosine])
def test_warm_up_is_a_straight_line_that_ends_on_the_peak(kind):
    schedule = kind(warmup=1.5)
    rises = [rate(schedule, epoch, position, peak=0.3) for epoch, position in [(0, 0.1), (0, 0.5), (0, 1.0), (1, 0.25)]]
    assert rises == pytest.approx([0.3 * done / 1.5 for done in (0.1, 0.5, 1.0, 1.25)])
    assert rate(schedule, 1, 0.5, peak=0.3) == pytest.approx(0.3)


def test_cosine_starts_where_the_warm_up_ends():
    assert rate(Cosine(warmup=2.0), 5, 1.0, peak=1.0, epochs=10) == pytest.approx(0.5)
    assert rate(Cosine(warmup=2.0), 9, 1.0, peak=1.0, epochs=10) == pytest.approx(0.0, abs=1e-15)


def network():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))


def stepped_without_gradient(settings):
    """What one step of zero gradients leaves of each parameter, as a fraction: decay alone moves it."""
    module = network()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
    optimizer = build(settings, module, fused=False)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {name: float(parameter.detach().reshape(-1)[0]) for name, parameter in module.named_parameters()}


def test_adamw_does_not_decay_what_has_one_dimension():
    left = stepped_without_gradient(AdamW(lr=0.1, weight_decay=0.5))
    weights = {name: value for name, value in left.items() if name in ("0.weight", "3.weight")}
    assert list(weights.values()) == pytest.approx([0.95, 0.95])
    assert {value for name, value in left.items() if name not in weights} == {1.0}


def test_adamw_does_not_decay_what_a_network_lists():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(1, 3, 4))
            self.layer = nn.Linear(4, 2)

        def no_weight_decay(self):
            return {"token", "position"}

    module = nn.ModuleDict({"student": Tokens()})
    decayed, kept = build(AdamW(weight_decay=0.5), module, fused=False).param_groups
    assert [decayed["weight_decay"], kept["weight_decay"]] == [0.5, 0.0]
    assert {id(p) for p in decayed["params"]} == {id(module["student"].layer.weight)}
    assert len(kept["params"]) == 3


def test_adamw_does_not_decay_the_tokens_of_a_timm_transformer():
    network = models.create("timm:deit_tiny_patch16_224", classes=10).network
    decayed, kept = build(AdamW(), network, fused=False).param_groups
    names = {id(p): name for name, p in network.named_parameters()}
    assert {"cls_token", "pos_embed"} <= {names[id(p)] for p in kept["params"]}
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])


def test_sgd_decays_every_parameter():
    left = stepped_without_gradient(SGD(lr=0.1, weight_decay=0.5))
    assert list(left.values()) == pytest.approx([0.95] * 6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_steps_as_written(nesterov):
    """``b = m * b + g``, ``w -= lr * b``, or ``w -= lr * (g + m * b)`` with Nesterov's momentum."""
    weight = nn.Linear(1, 1, bias=False)
    weight.weight.data.fill_(2.0)
    optimizer = build(SGD(lr=0.1, momentum=0.5, weight_decay=0.0, nesterov=nesterov), weight, fused=False)
    value, moment = 2.0, 0.0
    for gradient in (1.0, -3.0, 0.5):
        weight.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        moment = 0.5 * moment + gradient
        value -= 0.1 * (gradient + 0.5 * moment if nesterov else moment)
        assert float(weight.weight.detach()) == pytest.approx(value, rel=1e-6)


def test_adamw_takes_its_numbers():
    optimizer = build(AdamW(lr=3e-4, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.2), network(), fused=False)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    for group in optimizer.param_groups:
        assert (group["lr"], tuple(group["betas"]), group["eps"]) == (3e-4, (0.8, 0.95), 1e-6)


def test_frozen_parameters_are_left_out():
    module = network()
    module[0].requires_grad_(False)
    count = sum(len(group["params"]) for group in build(SGD(), module, fused=False).param_groups)
    assert count == 4
    with refused(InvalidValueError, "student", suggests="requires_grad_(True)"):
        build(SGD(), module.requires_grad_(False), fused=False)


@pytest.mark.parametrize("settings", [SGD(lr=0.1), SGD(lr=0.1, momentum=0.0), AdamW(lr=0.1)])
def test_a_fused_optimizer_goes_on_where_a_plain_one_was_saved(settings):
    """Of parameters without a gradient so far the plain one has saved no state."""
    plain_module, module = (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)) for _ in range(2))
    module.load_state_dict(plain_module.state_dict())
    plain, fused = build(settings, plain_module, fused=False), build(settings, module, fused=True)
    plain_module[0](torch.ones(1, 3)).sum().backward()
    plain.step()
    saved = Checkpoint(*(lambda tensors, state: (tensors, {"optimizer": state}))(*optimizer_state(plain)))
    module.load_state_dict(plain_module.state_dict())
    restore_optimizer(fused, saved)
    names = {frozenset(values) for values in fused.state.values()}
    assert len(names) <= 1, "every parameter has all its state"
    for optimizer, network in ((plain, plain_module), (fused, module)):
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(0.2) if optimizer is fused else 0.2
        optimizer.zero_grad()
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    for parameter, twin in zip(module.parameters(), plain_module.parameters(), strict=True):
        torch.testing.assert_close(parameter, twin)
    assert json.dumps(optimizer_state(fused)[1])
    assert [group["lr"] for group in optimizer_state(fused)[1]["groups"]] == [pytest.approx(0.2)] * len(
        fused.param_groups
    )


def test_a_fused_first_step_that_is_skipped_leaves_a_momentum_of_zero():
    """The fused form is CUDA's choice, and runs on the CPU too."""
    module, control = nn.Linear(3, 2), nn.Linear(3, 2)
    control.load_state_dict(module.state_dict())
    optimizer = build(SGD(lr=0.1), module, fused=True)
    plain = build(SGD(lr=0.1), control, fused=False)
    for skipped in (True, False, False):
        for parameter, twin in zip(module.parameters(), control.parameters(), strict=True):
            parameter.grad = torch.full_like(parameter, torch.inf if skipped else 0.5)
            twin.grad = torch.full_like(twin, 0.5)
        optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(float(skipped))
        optimizer.step()
        if skipped:
            assert all(not values["momentum_buffer"].any() for values in optimizer.state.values())
        else:
            plain.step()
    for parameter, twin in zip(module.parameters(), control.parameters(), strict=True):
        torch.testing.assert_close(parameter, twin)


@pytest.mark.parametrize(
    ("changes", "suggests"),
    [
        ({"epochs": 0}, "epochs=1"),
        ({"accumulate": 0}, "accumulate=1"),
        ({"log_steps": 0}, "log_steps=1"),
        ({"clip": 0.0}, "clip=null"),
        ({"clip": math.nan}, "clip=null"),
    ],
)
def test_settings_out_of_range_are_refused(changes, suggests):
    ((what, got),) = changes.items()
    with refused(InvalidValueError, what, got=got, suggests=suggests):
        FitSettings(**changes)


def test_a_learning_rate_of_zero_is_refused():
    with refused(InvalidValueError, "optimizer.lr", got=0.0, suggests="optimizer.lr=0.05"):
        SGD(lr=0.0)
