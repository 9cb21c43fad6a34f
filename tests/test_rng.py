import numpy as np
import pytest
import torch
from scipy import stats

from tutelage import rng


def slow(seed, epoch, index, stream):
    mask = 2**64 - 1

    def mix(z):
        z &= mask
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    key = 0
    for part in (seed, epoch, stream):
        key = mix(key + part + 0x9E3779B97F4A7C15)
    return mix(key + (index + 1) * 0x9E3779B97F4A7C15)


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(0, 0, 0), (7, 3, 2), (-1, 200, 64), (2**63, 0, 1)])
def test_draw_equals_plain_integers(seed, epoch, stream):
    index = np.array([0, 1, 2, 49_999, 2**40])
    assert rng.draw(seed, epoch, index, stream).tolist() == [slow(seed, epoch, int(i), stream) for i in index]


def test_draw_is_splitmix64_where_the_key_is_known():
    # The published first outputs of SplitMix64 from state 1234567, reached through the same mixing and counter.
    assert [rng._mix(1234567 + (i + 1) * 0x9E3779B97F4A7C15) for i in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_draw_keeps_shape_and_does_not_depend_on_company():
    index = np.arange(12).reshape(3, 4)
    together = rng.draw(5, 6, index, 7)
    assert together.shape == (3, 4)
    assert together.dtype == np.uint64
    assert together[2, 1] == rng.draw(5, 6, np.array(9), 7)


def test_every_argument_matters():
    index = np.arange(1000)
    base = rng.draw(0, 0, index, 0)
    for other in (rng.draw(1, 0, index, 0), rng.draw(0, 1, index, 0), rng.draw(0, 0, index, 1)):
        assert not np.intersect1d(base, other).size
    assert not np.intersect1d(rng.draw(1, 2, index, 0), rng.draw(2, 1, index, 0)).size


@pytest.mark.parametrize("bound", [1, 2, 9, 1000])
def test_integers_are_uniform(bound):
    values = rng.integers(rng.draw(0, 0, np.arange(50_000), 3), bound)
    counts = np.bincount(values, minlength=bound)
    assert len(counts) == bound
    assert bound == 1 or stats.chisquare(counts).pvalue > 1e-4


def test_uniform_is_uniform_and_half_open():
    values = rng.uniform(rng.draw(0, 0, np.arange(50_000), 3))
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-4
    assert rng.uniform(np.array([2**64 - 1], np.uint64))[0] < 1


def test_streams_are_independent():
    index = np.arange(50_000)
    rows = rng.integers(rng.draw(0, 0, index, rng.TOP), 9)
    columns = rng.integers(rng.draw(0, 0, index, rng.LEFT), 9)
    assert stats.chisquare(np.bincount(rows * 9 + columns, minlength=81)).pvalue > 1e-4


def test_permutation():
    first = rng.permutation(0, 0, 1437)
    assert np.array_equal(np.sort(first), np.arange(1437))
    assert np.array_equal(first, rng.permutation(0, 0, 1437))
    assert not np.array_equal(first, rng.permutation(0, 1, 1437))
    assert not np.array_equal(first, rng.permutation(1, 0, 1437))
    positions = [int(np.flatnonzero(rng.permutation(0, epoch, 10) == 0)[0]) for epoch in range(5000)]
    assert stats.chisquare(np.bincount(positions, minlength=10)).pvalue > 1e-4


# On a device


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(0, 0, 0), (7, 3, 2), (-1, 200, 64), (2**63, 0, 1)])
def test_tensors_are_hashed_to_the_same_bits(seed, epoch, stream):
    index = np.array([[0, 1, 2], [49_999, 2**40, 5]])
    wanted = rng.draw(seed, epoch, index, stream)
    for number in (epoch, torch.tensor(epoch)):
        bits = rng.tensor_draw(seed, number, torch.from_numpy(index), stream)
        assert np.array_equal(bits.numpy().view(np.uint64), wanted)
    for bound in (1, 9, 2**31 - 1):
        assert np.array_equal(rng.tensor_integers(bits, bound).numpy(), rng.integers(wanted, bound))


def test_a_series_is_splitmix64():
    series = rng.tensor_series(torch.tensor([1234567, -1]), 3)
    assert series[0].tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423 - 2**64]
    assert series.shape == (2, 3)
