import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused

from tutelage.data import BatchLoader, DataSettings, open_data, split_evenly
from tutelage.errors import InvalidValueError
from tutelage.settings.fit import smallest_share
from tutelage.types import Batch, View


@pytest.fixture(scope="module")
def split():
    return open_data(DataSettings(crop_padding=1, flip=True, labelled=20)).train


def same(first, second):
    return len(first) == len(second) and all(
        all(torch.equal(a, b) for a, b in zip(x[:3], y[:3], strict=True)) for x, y in zip(first, second, strict=True)
    )


def test_an_epoch_has_every_sample_once(split):
    batches = BatchLoader(split, batch_size=100, train=True)
    epoch = list(batches.epoch(0))
    assert len(epoch) == len(batches) == 15
    assert [len(batch.index) for batch in epoch] == [100] * 14 + [37]
    assert sorted(torch.cat([b.index for b in epoch]).tolist()) == list(range(1437)) == list(range(batches.samples))
    first = epoch[0]
    assert isinstance(first, Batch)
    assert (first.index.dtype, first.inputs.dtype, first.labels.dtype) == (torch.int64, torch.float32, torch.int64)
    assert torch.equal(first.labels, split.labels[first.index])


def test_order_and_views_differ_by_epoch_and_seed(split):
    def epoch(number, seed=0):
        return next(BatchLoader(split, batch_size=2000, data_seed=seed, train=True).epoch(number))

    base = epoch(0)
    for other in (epoch(1), epoch(0, seed=1)):
        assert not torch.equal(base.index, other.index)
        by_index = [b.inputs[b.index.argsort()] for b in (base, other)]
        assert not torch.equal(*by_index)
    assert same([base], [epoch(0)])


@pytest.mark.parametrize("start", [0, 1, 9, 14, 15])
def test_resume_gives_the_same_batches(split, start):
    batches = BatchLoader(split, batch_size=100, data_seed=4, train=True)
    assert same(list(batches.epoch(3))[start:], list(batches.epoch(3, start=start)))


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_the_global_batch(split, world):
    batches = BatchLoader(split, batch_size=100, train=True)
    whole = list(batches.epoch(2))
    shares = [list(batches.epoch(2, start=1, rank=rank, world=world)) for rank in range(world)]
    for step, expected in enumerate(whole[1:]):
        for rank in range(world):
            share = shares[rank][step]
            assert same([share], [Batch(*(part[rank::world] for part in expected[:3]))])
    assert {len(share) for share in shares} == {batches.steps(world=world) - 1}


def test_a_tail_smaller_than_the_world(split):
    # 1437 = 4 * 359 + 1: one sample is left for two processes.
    train = BatchLoader(split, batch_size=359, train=True)
    held = BatchLoader(split, batch_size=359, train=False)
    assert (len(train), train.steps(world=2), held.steps(world=2)) == (5, 4, 4)
    assert [sum(len(b.index) for r in range(2) for b in s.epoch(0, rank=r, world=2)) for s in (train, held)] == [
        1436,
        1437,
    ]


@pytest.mark.parametrize("batch_size", [4, 5, 359, 718, 1435, 2000])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_process_takes_the_steps_that_are_counted(split, batch_size, world):
    batches = BatchLoader(split, batch_size=batch_size, train=True)
    shares = [[len(index) for index in batches._requests(0, start=0, rank=r, world=world)] for r in range(world)]
    assert {len(share) for share in shares} == {batches.steps(world=world)}
    assert min(map(min, shares)) == smallest_share(1437, batch_size, world=world)


def test_indices_are_split_into_batches_of_nearly_one_size():
    assert [len(batch) for batch in split_evenly(np.arange(10), 4)] == [4, 3, 3]
    assert [len(batch) for batch in split_evenly(np.arange(8), 4)] == [4, 4]
    assert [len(batch) for batch in split_evenly(np.arange(3), 4)] == [3]


def test_evaluation_is_in_order_and_not_varied(split):
    batches = BatchLoader(split, batch_size=100, train=False, data_seed=9)
    epoch = list(batches.epoch(7))
    assert torch.cat([b.index for b in epoch]).tolist() == list(range(1437))
    assert torch.equal(torch.cat([b.inputs for b in epoch]), split.fetch(np.arange(1437)))
    assert batches.corrupt == []


def test_faults(split):
    with refused(InvalidValueError, "batch_size", got=0):
        BatchLoader(split, batch_size=0, train=True)
    with refused(InvalidValueError, "batch_size", got=1437, suggests=4):
        BatchLoader(split, batch_size=4, train=True).steps(world=8)
    with refused(InvalidValueError, "rank", got=2):
        next(BatchLoader(split, batch_size=4, train=True).epoch(0, rank=2, world=2))


def test_epochs_of_an_earlier_stage_are_not_seen_again(split):
    whole, later = (BatchLoader(split, batch_size=700, data_seed=4, train=True, first_epoch=k) for k in (0, 2))
    batches = list(later.epoch(1, start=1))
    assert same(list(whole.epoch(3, start=1)), batches)
    assert {batch.view for batch in batches} == {View(seed=4, epoch=3)}
