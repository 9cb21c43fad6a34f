"""Negatives are of other classes, without replacement, and uniform."""

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import rng
from tutelage.errors import InvalidValueError
from tutelage.objectives.methods.contrastive import OtherClasses, _first_of_permutations


def draw(labels, index, *, count, epoch=0):
    return OtherClasses(labels, count=count)(index, epoch)


def test_they_are_of_other_classes_and_each_once():
    labels = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(0))
    index = torch.randperm(60)[:20]
    drawn = draw(labels, index, count=30)
    assert drawn.shape == (20, 30)
    assert (labels[drawn] != labels[index, None]).all()
    assert all(len(row.unique()) == 30 for row in drawn)


def test_a_sample_with_fewer_others_than_asked_for_gets_them_with_replacement():
    """Of 14 samples those of class 0 have 4 others, those of class 1 have 12, those of class 2 have 12."""
    labels = torch.tensor([0] * 10 + [1, 1, 2, 2])
    drawn = draw(labels, torch.tensor([3, 10, 13]), count=12)
    assert set(drawn[0].tolist()) <= {10, 11, 12, 13}
    assert set(drawn[1].tolist()) == {*range(10), 12, 13}
    assert set(drawn[2].tolist()) == {*range(10), 10, 11}
    every = draw(labels, torch.tensor([3, 10]), count=500)
    assert [set(row.tolist()) for row in every] == [{10, 11, 12, 13}, {*range(10), 12, 13}]


def test_an_unlabelled_sample_is_a_class_of_its_own():
    labels = torch.tensor([-100, 0, -100, 0, 1])
    drawn = draw(labels, torch.tensor([0, 1, 2]), count=3)
    assert all(len(row.unique()) == 3 for row in drawn)
    assert 0 not in drawn[0]
    assert set(drawn[1].tolist()) == {0, 2, 4}
    assert 2 not in drawn[2]
    without = draw(torch.full((6,), -100), torch.tensor([2]), count=5)
    assert set(without[0].tolist()) == {0, 1, 3, 4, 5}


@pytest.mark.parametrize("count", [3, 100])
def test_each_other_sample_is_as_likely(count):
    """With and without replacement: every count within 5 standard deviations of its mean, over many epochs."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    draws = OtherClasses(labels, count=count)
    drawn = torch.cat([draws(torch.tensor([1, 4, 7]), epoch) for epoch in range(600 if count == 3 else 30)])
    counts = drawn.flatten().bincount(minlength=8)
    candidates = [0, 2, 3, 5, 6]
    assert counts[[1, 4, 7]].sum() == 0
    share = drawn.numel() / 5
    assert (counts[candidates] - share).abs().max() < 5 * (share * 0.8) ** 0.5


@pytest.mark.parametrize("count", [40, 250])
def test_pairs_of_negatives_come_together_as_often_as_in_a_uniform_draw(count):
    """Of 300 others, near and far in order, over 20,000 draws: counts of pairs follow the hypergeometric law."""
    sets = _first_of_permutations(
        rng.tensor_draw(0, 0, torch.arange(20_000), 0), torch.full((20_000, 1), 300), most=300, count=count
    )
    drawn = torch.zeros(20_000, 300).scatter_(1, sets, 1.0)
    assert (drawn.sum(1) == count).all()
    together, share = drawn.T @ drawn, count / 300
    both = share * (count - 1) / 299
    single = (together.diagonal() / 20_000 - share) / (share * (1 - share) / 20_000) ** 0.5
    pairs = (together / 20_000 - both) / (both * (1 - both) / 20_000) ** 0.5
    pairs = pairs[torch.triu(torch.ones_like(pairs), 1) > 0]
    assert single.abs().max() < 5
    assert pairs.abs().max() < 6
    assert 0.95 < pairs.std() < 1.05


def test_samples_of_a_batch_are_drawn_apart():
    drawn = draw(torch.arange(50) % 2, torch.tensor([0, 2, 4]), count=10)
    assert len({tuple(sorted(row)) for row in drawn.tolist()}) == 3


@pytest.mark.parametrize("count", [10, 45], ids=["without replacement", "with it"])
def test_seed_epoch_and_sample_decide(count):
    labels, index = torch.arange(50) % 5, torch.randperm(50, generator=torch.Generator().manual_seed(0))
    draws = OtherClasses(labels, count=count, seed=3)
    whole = draws(index, 7)
    shares = [draws(index[rank::3], torch.tensor(7)) for rank in range(3)]
    for rank, share in enumerate(shares):
        assert torch.equal(share, whole[rank::3])
    assert not torch.equal(draws(index, 8), whole)
    assert not torch.equal(OtherClasses(labels, count=count, seed=4)(index, 7), whole)
    before = torch.get_rng_state()
    draws(index, 7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sizes", [(2, 1), (1, 1, 1), (5, 3, 2), (70, 30, 1), (100, 99, 98, 97)])
def test_all_others_are_drawn_where_as_many_are_asked_for(sizes):
    """Down to grids of one place, and of any shape."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    for number, size in enumerate(sizes):
        index = (labels == number).nonzero()[:1, 0]
        others = (labels != number).nonzero()[:, 0]
        drawn = draw(labels, index, count=len(labels) - size)
        assert drawn[0].sort().values.tolist() == others.tolist()


def test_soft_labels_count_by_their_largest():
    soft = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert OtherClasses(soft, count=1)(torch.tensor([0, 2])).tolist() == [[1], [1]]


def test_one_class_alone_has_no_negatives():
    with refused(InvalidValueError, "labels", got=1):
        OtherClasses(torch.zeros(5, dtype=torch.int64), count=2)


def test_it_is_not_in_a_checkpoint():
    assert not OtherClasses(torch.arange(50) % 3, count=10).state_dict()
