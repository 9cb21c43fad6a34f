"""What networks are computed in: float32, TF32, and autocast with a scale of the loss."""

import copy
import warnings

import pytest
import torch
from tests.training.test_step import BATCH, OBJECTIVES, same_bits, state_of, teacher_of

from tutelage import objectives
from tutelage.training import precision
from tutelage.training.checkpoints import Checkpoint
from tutelage.training.precision import FIRST_SCALE, LossScale, computed_precision, float32_products
from tutelage.training.step import train_step

CPU = torch.device("cpu")
NEWER = [flag for flag, _ in precision._newer_flags()]


def flags():
    """Everything that says what float32 products are computed in; what cannot be read is an error's kind."""
    values = [flag.fp32_precision for flag in NEWER]
    for read in (
        lambda: torch.backends.cudnn.allow_tf32,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            values.append(read())
        except RuntimeError:
            values.append(RuntimeError)
    return values


@pytest.fixture(params=["as it is", "medium", "newer products", "newer convolutions", "newer, everything"])
def process(request):
    """Leave torch's settings as users may have them."""
    before, backends = [flag.fp32_precision for flag in NEWER], torch.backends
    if request.param == "medium":
        torch.set_float32_matmul_precision("medium")
    elif request.param.startswith("newer") and not NEWER:
        pytest.skip("this torch has the older interface alone")
    elif request.param == "newer products":
        backends.cuda.matmul.fp32_precision = "tf32"
    elif request.param == "newer convolutions":
        backends.cudnn.conv.fp32_precision = "ieee"
    elif request.param == "newer, everything":
        backends.fp32_precision = "tf32"
    yield
    for flag, value in zip(NEWER, before, strict=True):
        flag.fp32_precision = "none" if value == "none" else value
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("has_tf32", [False, True])
@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16", "fp16"])
def test_products_are_float32_but_for_tf32_and_the_process_keeps_its_settings(process, name, has_tf32, monkeypatch):
    monkeypatch.setattr(precision, "has_tf32", lambda _: has_tf32)
    before, tf32 = flags(), has_tf32 and name == "tf32"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with float32_products(CPU, name):
            inside = flags()
    assert inside[-3:] == [tf32, tf32, "high" if tf32 else "highest"]
    assert ("tf32" in inside[:-3]) == (tf32 and bool(NEWER))
    assert "bf16" not in inside
    assert flags() == before


def test_tf32_is_float32_where_there_is_none():
    assert computed_precision(CPU, "tf32") == "fp32"
    assert precision.fallback(CPU, "tf32") == "precision tf32: computed as fp32, the device has no TF32"
    assert precision.fallback(CPU, "bf16") is None


@pytest.mark.parametrize(("capability", "tf32"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_tf32_begins_with_ampere(capability, tf32, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert precision.has_tf32(torch.device("cuda")) is tf32


def parameters(state):
    return {name: value.clone() for name, value in state.distiller.state_dict().items()}


def stepped(state, objective, steps=1):
    teacher = teacher_of(objective)
    for _ in range(steps):
        state.now.set(0.01, 0.0)
        train_step(state, BATCH, teacher)
        state.now.step += 1
    return state


@pytest.mark.parametrize("accumulate", [1, 2])
def test_fp16_learns_as_float32_does_to_its_rounding(accumulate):
    objective = OBJECTIVES["kd"]
    half, full = (
        stepped(state_of(objective, precision=each, accumulate=accumulate, clip=0.5), objective, 4)
        for each in ("fp16", "fp32")
    )
    assert int(half.now.loss_scale.applied) == 4
    start = parameters(state_of(objective))
    assert not same_bits(parameters(half), start)
    for one, other in zip(half.parameters, full.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_an_overflow_halves_the_scale_and_is_no_non_finite_step():
    objective = objectives.cross_entropy()
    state = state_of(objective, precision="fp16")
    state.now.loss_scale.value.fill_(2.0**100)  # beyond what float16 holds, in every layer
    before = parameters(state)
    stepped(state, objective)
    scale = state.now.loss_scale
    assert (float(scale.value), int(scale.applied), int(scale.overflows)) == (2.0**24, 0, 1)
    assert same_bits(parameters(state), before)
    assert state.now.sums.eq(0).all()
    assert state.now.nonfinite_log.eq(-1).all()


def test_below_one_the_gradient_is_to_blame():
    objective = objectives.cross_entropy()
    state = state_of(objective, precision="fp16")
    state.now.loss_scale.value.fill_(0.5)
    state.parameters[0].register_hook(lambda gradient: gradient * torch.inf)
    stepped(state, objective)
    assert (float(state.now.loss_scale.value), int(state.now.loss_scale.overflows)) == (0.5, 0)
    assert state.now.sums[-1] == 1
    assert state.now.nonfinite_log[0] == 0


def test_a_loss_that_is_not_finite_leaves_the_scale_alone():
    objective = objectives.cross_entropy()
    state = state_of(objective, precision="fp16")
    state.now.set(0.01, 0.0)
    train_step(state, BATCH._replace(inputs=torch.full_like(BATCH.inputs, torch.nan)), None)
    assert float(state.now.loss_scale.value) == FIRST_SCALE
    assert state.now.nonfinite_log[0] == 0


def test_the_scale_grows_after_many_applied_steps_in_a_row(monkeypatch):
    monkeypatch.setattr(precision, "GROWTH_STEPS", 3)
    scale, yes, no = LossScale.on(CPU), torch.tensor(True), torch.tensor(False)
    memory = scale.value.data_ptr()
    values = []
    for finite in (yes, yes, no, yes, yes, yes, yes):
        scale.update(finite, yes)
        values.append(float(scale.value) / FIRST_SCALE)
    assert values == [1, 1, 0.5, 0.5, 0.5, 1, 1]
    assert (int(scale.applied), scale.value.data_ptr()) == (1, memory)


def test_a_checkpoint_keeps_the_scale_and_other_precisions_have_none():
    objective = OBJECTIVES["kd"]
    first = stepped(state_of(objective, precision="fp16"), objective, 2)
    first.now.loss_scale.value.fill_(256.0)
    saved = Checkpoint(*copy.deepcopy(first.packed()))
    second = state_of(objective, precision="fp16")
    second.unpack(saved)
    for state in (first, second):
        stepped(state, objective, 2)
    assert {name: value.tolist() for name, value in vars(second.now.loss_scale).items()} == {
        "value": 256.0,
        "applied": 4,
        "overflows": 0,
    }
    assert same_bits(parameters(first), parameters(second))
    plain = state_of(objective)
    assert not [name for name in plain.packed()[0] if name.startswith("loss_scale")]
    second.unpack(Checkpoint(*copy.deepcopy(plain.packed())))  # goes on from the scale that it has
    assert second.now.loss_scale.value == 256.0


@pytest.mark.parametrize("cached", [True, False])
def test_casts_of_weights_are_not_kept_between_uses(cached):
    """A cast that is kept could not be captured; networks that use each weight once have the same bits either way."""
    bits = []
    for enabled in (cached, False):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3))
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=enabled):
            network(BATCH.inputs).float().square().sum().backward()
        bits.append([p.grad for p in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*bits, strict=True))
    with precision.mixed_precision(CPU, "bf16"):
        assert not torch.is_autocast_cache_enabled()
