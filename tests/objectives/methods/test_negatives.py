"""Negatives are of other classes, without replacement, and uniform."""

import pytest
import torch
from tests._helpers.refusals import refused

from tutelage.errors import InvalidValueError
from tutelage.objectives.methods.contrastive import OtherClasses

WAYS = pytest.mark.parametrize("way", ["_per_sample", "_batched"])


def draw(labels, index, *, count, way):
    draws = OtherClasses(labels, count=count)
    return getattr(draws, way)(draws.start[index, None], draws.size[index, None])


@WAYS
def test_they_are_of_other_classes_and_each_once(way):
    labels = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(0))
    index = torch.randperm(60)[:20]
    drawn = draw(labels, index, count=30, way=way)
    assert drawn.shape == (20, 30)
    assert (labels[drawn] != labels[index, None]).all()
    assert all(len(row.unique()) == 30 for row in drawn)


@WAYS
def test_a_sample_with_fewer_others_than_asked_for_gets_them_with_replacement(way):
    """Of 14 samples those of class 0 have 4 others, those of class 1 have 12, those of class 2 have 12."""
    labels = torch.tensor([0] * 10 + [1, 1, 2, 2])
    drawn = draw(labels, torch.tensor([3, 10, 13]), count=12, way=way)
    assert set(drawn[0].tolist()) <= {10, 11, 12, 13}
    assert set(drawn[1].tolist()) == {*range(10), 12, 13}
    assert set(drawn[2].tolist()) == {*range(10), 10, 11}
    every = draw(labels, torch.tensor([3, 10]), count=500, way=way)
    assert [set(row.tolist()) for row in every] == [{10, 11, 12, 13}, {*range(10), 12, 13}]


@WAYS
def test_an_unlabelled_sample_is_a_class_of_its_own(way):
    labels = torch.tensor([-100, 0, -100, 0, 1])
    drawn = draw(labels, torch.tensor([0, 1, 2]), count=3, way=way)
    assert all(len(row.unique()) == 3 for row in drawn)
    assert 0 not in drawn[0]
    assert set(drawn[1].tolist()) == {0, 2, 4}
    assert 2 not in drawn[2]
    without = draw(torch.full((6,), -100), torch.tensor([2]), count=5, way=way)
    assert set(without[0].tolist()) == {0, 1, 3, 4, 5}


@WAYS
@pytest.mark.parametrize("count", [3, 100])
def test_each_other_sample_is_as_likely(way, count):
    """With and without replacement: every count within 5 standard deviations of its mean."""
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    drawn = draw(labels, torch.full((3000 if count == 3 else 90,), 4), count=count, way=way)
    counts = drawn.flatten().bincount(minlength=8)
    candidates = [0, 2, 3, 5, 6]
    assert counts[[1, 4, 7]].sum() == 0
    share = drawn.numel() / 5
    assert (counts[candidates] - share).abs().max() < 5 * (share * 0.8) ** 0.5


def test_samples_of_a_batch_are_drawn_apart():
    drawn = OtherClasses(torch.arange(50) % 2, count=10)(torch.tensor([0, 0, 2]))
    assert len({tuple(sorted(row)) for row in drawn.tolist()}) == 3


def test_the_generator_decides():
    draws = OtherClasses(torch.arange(50) % 3, count=10)
    torch.manual_seed(3)
    first, second = draws(torch.arange(4)), draws(torch.arange(4))
    torch.manual_seed(3)
    assert torch.equal(draws(torch.arange(4)), first)
    assert not torch.equal(first, second)


def test_soft_labels_count_by_their_largest():
    soft = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert OtherClasses(soft, count=1)(torch.tensor([0, 2])).tolist() == [[1], [1]]


def test_one_class_alone_has_no_negatives():
    with refused(InvalidValueError, "labels", got=1):
        OtherClasses(torch.zeros(5, dtype=torch.int64), count=2)


def test_it_is_not_in_a_checkpoint():
    assert not OtherClasses(torch.arange(50) % 3, count=10).state_dict()
