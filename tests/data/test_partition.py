import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._helpers.refusals import refused

from tutelage.data.partition import keep_labels, stratified
from tutelage.errors import InvalidValueError


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(-100, 5), min_size=1, max_size=80), fraction=st.floats(0, 1), seed=st.integers())
def test_stratified_takes_each_class_in_proportion(labels, fraction, seed):
    labels = np.array(labels, np.int64)
    count = round(len(labels) * fraction)
    held = stratified(labels, count=count, seed=seed, stream=4)
    assert len(held) == len(np.unique(held)) == count
    assert np.array_equal(held, np.sort(held))
    for c in np.unique(labels):
        assert abs((labels[held] == c).sum() - (labels == c).sum() * count / len(labels)) < 1


def test_stratified_depends_on_seed_and_stream():
    labels = np.repeat(np.arange(10), 50)
    base = stratified(labels, count=100, seed=0, stream=4)
    assert np.array_equal(base, stratified(labels, count=100, seed=0, stream=4))
    assert not np.array_equal(base, stratified(labels, count=100, seed=1, stream=4))
    assert not np.array_equal(base, stratified(labels, count=100, seed=0, stream=5))


def test_keep_labels_keeps_so_many_of_each_class():
    labels = np.repeat(np.arange(3), [5, 9, 30])
    kept = keep_labels(labels, per_class=5, classes=3, seed=0, stream=5)
    assert [(kept == c).sum() for c in range(3)] == [5, 5, 5]
    assert set(kept[kept != labels]) == {-100}


def test_keep_labels_refuses_more_than_there_are():
    with refused(InvalidValueError, "data.labelled", got=6, suggests="data.labelled=5"):
        keep_labels(np.repeat(np.arange(3), [5, 9, 30]), per_class=6, classes=3, seed=0, stream=5)
