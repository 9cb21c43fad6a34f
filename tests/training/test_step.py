"""One step: what it reads and what it changes; that it asks nothing of the device is in `test_stand_in`."""

import pytest
import torch
from tests._helpers.fit_cases import Moving, same_bits, samples, seeded, settings, state

from tutelage import objectives
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import SGD, AdamW, smallest_share
from tutelage.settings.weights import Linear
from tutelage.training.distributed import accelerator_on
from tutelage.training.graphs import CAPTURES
from tutelage.training.state import TrainState
from tutelage.training.step import split_batch, train_step
from tutelage.types import Batch, Progress, View

IMAGES, LABELS = samples(12, shape=(2, 8, 8))
BATCH = Batch(torch.arange(12), IMAGES, LABELS, View(3, 0))
SCHEDULED = Linear(start=1.0, end=0.0)
OBJECTIVES = {
    "kd": objectives.kd(temperature=2.0),
    "scheduled": objectives.ttm(gamma=0.5, beta=SCHEDULED),
    "a learned temperature": objectives.ctkd(),
}


def state_of(objective, **changes):
    return TrainState(Distiller(seeded(Moving), objective), settings(**changes), accelerator_on("cpu"))


def teacher_of(objective):
    return FrozenTeacher(seeded(Moving, 1), objective.needs.teacher_taps) if objective.needs.teacher else None


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), AdamW(lr=0.1)])
def test_a_step_that_the_host_does_not_look_at_is_the_same(optimizer, monkeypatch):
    """As on a GPU: a fused optimizer skips by itself, and the buffers follow it; the first step is skipped too."""
    trained = []
    for fused in (False, True):
        with monkeypatch.context() as patch:
            if fused:
                patch.setitem(CAPTURES, "cpu", None)
            training = state_of(OBJECTIVES["kd"], optimizer=optimizer)
        assert training.fused is bool(training.optimizer.defaults["fused"]) is fused
        torch.manual_seed(5)
        for spoilt in (True, False, True, False):
            images = IMAGES.clone()
            images[3] = torch.nan if spoilt else images[3]
            training.now.set(0.1, 0.0)
            train_step(training, BATCH._replace(inputs=images), teacher_of(OBJECTIVES["kd"]))
        trained.append((state(training.distiller), training.now.sums))
    for name, value in trained[0][0].items():
        # A bias before a norm has no gradient but rounding, whose sign is all that AdamW looks at.
        if name not in ("student.conv.bias", "student.norm.running_mean"):
            torch.testing.assert_close(trained[1][0][name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trained[1][1], trained[0][1], rtol=1e-5, atol=1e-6)


def test_the_rate_of_a_step_is_the_states():
    training = state_of(OBJECTIVES["kd"])
    moved, weight = [], training.distiller.student.head.weight
    for rate in (0.0, 0.1):
        before = weight.detach().clone()
        training.now.set(rate, 0.0)
        train_step(training, BATCH, teacher_of(OBJECTIVES["kd"]))
        moved.append(not torch.equal(weight, before))
    assert moved == [False, True]


def test_what_changes_from_step_to_step_lies_where_it_was():
    """As a captured step needs it: the same tensors on the device, and other values in them."""
    training = state_of(OBJECTIVES["scheduled"])
    tensors = [training.now.rate, *training.now.progress[:3], training.now.progress.scheduled[SCHEDULED]]
    values = []
    for step in (0, 3):
        training.now.epoch, training.now.step = step // 2, step
        training.now.set(0.5 / (step + 1), step / 4)
        values.append([tensor.item() for tensor in tensors])
    assert values == [[0.5, 0, 0, 0.0, 1.0], [0.125, 1, 3, 0.75, 0.25]]


def test_what_a_schedule_says_is_read_from_the_state_alone():
    """A value that the loop has set counts, whatever the schedule would say."""
    losses = []
    for scheduled in ({}, {SCHEDULED: 1.0}, {SCHEDULED: 0.0}):
        training = state_of(OBJECTIVES["scheduled"])
        training.now.progress = Progress(0, 0, 0.5, scheduled)  # without one the schedule is asked
        train_step(training, BATCH, teacher_of(OBJECTIVES["scheduled"]))
        losses.append(float(training.now.sums[0]))
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-5)
    assert losses[1] > losses[2]


def test_every_schedule_is_known_before_a_step():
    ctkd = OBJECTIVES["a learned temperature"]
    assert Distiller(seeded(Moving), OBJECTIVES["scheduled"]).objective.schedules == (SCHEDULED,)
    assert len(Distiller(seeded(Moving), ctkd).objective.schedules) == 1
    assert Distiller(seeded(Moving), OBJECTIVES["kd"]).objective.schedules == ()


def test_a_skipped_step_changes_its_count_and_its_log_alone():
    training, teacher = state_of(OBJECTIVES["kd"]), teacher_of(OBJECTIVES["kd"])
    train_step(training, BATCH, teacher)
    before, sums = state(training.distiller), training.now.sums.clone()
    moments = [value["momentum_buffer"].clone() for value in training.optimizer.state.values()]
    spoilt = IMAGES.clone()
    spoilt[7] = torch.inf
    training.now.step = 1
    training.now.set(0.1, 0.5)
    train_step(training, BATCH._replace(inputs=spoilt), teacher)
    assert same_bits(state(training.distiller), before)
    assert all(
        torch.equal(value["momentum_buffer"], old)
        for value, old in zip(training.optimizer.state.values(), moments, strict=True)
    )
    assert (training.now.sums - sums).tolist() == [0.0] * (len(sums) - 1) + [1.0]
    assert training.now.nonfinite_log[0] == 1
    assert 7 in training.now.nonfinite_log[2:]


def test_micro_batches_keep_their_view():
    seen = []

    class Asks:
        def __call__(self, batch):
            seen.append((batch.index.tolist(), batch.view))
            return teacher_of(OBJECTIVES["kd"])(batch)

    train_step(state_of(OBJECTIVES["kd"], accumulate=3), BATCH, Asks())
    assert seen == [(list(range(k, k + 4)), View(3, 0)) for k in (0, 4, 8)]


@pytest.mark.parametrize(
    ("samples", "pieces", "sizes"),
    [
        (29, 8, [4, 4, 4, 4, 4, 3, 3, 3]),
        (28, 8, [4, 4, 4, 4, 3, 3, 3, 3]),
        (32, 8, [4] * 8),
        (5, 8, [1] * 5),
        (29, 1, [29]),
    ],
)
def test_micro_batches_are_cut_evenly(samples, pieces, sizes):
    batch = Batch(torch.arange(samples), torch.rand(samples, 2), torch.zeros(samples, dtype=torch.int64), View(3, 0))
    parts = split_batch(batch, pieces)
    assert [len(part.index) for part in parts] == [len(part.labels) for part in parts] == sizes
    assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)
    assert all(part.view == batch.view for part in parts)
    assert min(sizes) == smallest_share(samples, samples, accumulate=pieces)
