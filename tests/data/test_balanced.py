"""Epochs in which all classes come alike: which samples, in what order, and where that cannot be."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused

from tutelage import data, rng
from tutelage.data import BatchLoader, DataSettings, balanced_classes
from tutelage.data.resident import ResidentLoader
from tutelage.errors import InvalidValueError
from tutelage.rng import permutation
from tutelage.settings.data import LearnedTokenizer
from tutelage.types import UNLABELLED

LABELS = np.array([0] * 50 + [2] * 7 + [3] * 3 + [UNLABELLED] * 4 + [5])


def test_every_class_comes_equally_often_and_no_sample_before_all_others_of_its_class():
    epochs = [rng.balanced(3, epoch, LABELS) for epoch in range(8)]
    for order in epochs:
        counts = np.bincount(LABELS[order])[[0, 2, 3, 5]]
        assert len(order) == 61
        assert counts.min() >= 61 // 4
    walked = np.concatenate(epochs)
    for label in (0, 2, 3, 5):
        own, size = walked[LABELS[walked] == label], int((label == LABELS).sum())
        assert len(own) == 8 * 61 / 4
        assert all(len(set(own[k : k + size])) == size for k in range(0, len(own) - size + 1, size))
    assert not np.array_equal(epochs[0], rng.balanced(4, 0, LABELS))


def digits(**settings):
    return data.open_data(DataSettings(source="digits", **settings))


def rows(labels):
    """Samples of two numbers with these labels."""
    made = [{"x": [k / len(labels), 0.5], "labels": label} for k, label in enumerate(labels)]
    return data.from_datasets(made, made, classes=6, inputs="x")


def test_unlabelled_samples_come_once_and_validation_and_test_as_they_are():
    splits = balanced_classes(rows(LABELS.tolist()))
    order = splits.train.order(0, 2, batch_size=8)
    without = LABELS[order] == UNLABELLED
    natural = permutation(0, 2, len(LABELS))
    assert len(order) == splits.train.per_epoch == len(LABELS)
    assert np.array_equal(order[without], natural[LABELS[natural] == UNLABELLED])
    assert np.array_equal(order[~without], rng.balanced(0, 2, LABELS))
    assert not splits.test.balanced
    assert np.array_equal(rows(LABELS.tolist()).train.order(0, 2, batch_size=8), natural)


@pytest.mark.parametrize("settings", [{"labelled": 9}, {"mixup": 0.5, "crop_padding": 1}], ids=["plain", "mixed"])
def test_batches_are_the_same_for_any_number_of_processes_resume_point_and_place(settings):
    split = digits(sampling="balanced", **settings).train
    whole = list(BatchLoader(split, batch_size=256, data_seed=3, train=True).epoch(1))
    loader = BatchLoader(split, batch_size=256, data_seed=3, train=True, world=2)
    shares = [list(loader.epoch(1, start=2, rank=rank, world=2)) for rank in range(2)]
    resident = ResidentLoader(split, device=torch.device("cpu"), batch_size=256, data_seed=3, train=True)
    for step, (batch, made) in enumerate(zip(whole, resident.epoch(1), strict=True)):
        assert torch.equal(batch.index, made.index)
        assert torch.equal(batch.inputs, made.inputs)
        assert torch.equal(batch.labels, made.labels)
        for rank in range(2) if step >= 2 else ():
            share = shares[rank][step - 2]
            assert torch.equal(share.index, batch.index[rank::2])
            assert torch.equal(share.inputs, batch.inputs[rank::2])


def test_a_share_of_unlabelled_samples_stays_in_each_batch(tmp_path):
    for name, count in (("train", 40), ("more", 30)):
        texts = [{"text": f"{k} some words {'more ' * (k % 5)}", "label": "ab"[k > 35]} for k in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, texts)))
    more = {"source": f"jsonl:{tmp_path / 'more.jsonl'}", "share": 0.5}
    settings = DataSettings(
        source=f"jsonl:{tmp_path / 'train.jsonl'}",
        text="text",
        tokenizer=LearnedTokenizer(bpe=300),
        unlabelled=data.Unlabelled(**more),
        sampling="balanced",
    )
    train = data.open_data(settings).train
    batches = train.order(0, 0, batch_size=8).reshape(-1, 8)
    assert [(batch >= train.unlabelled.first).sum() for batch in batches] == [4] * 8
    own = train.labels[batches[batches < train.unlabelled.first]]
    assert torch.bincount(own).tolist() == [16, 16]
    # Without buckets, which would fill a batch with the few texts of the small class.
    assert all((train.labels[batch[batch < train.unlabelled.first]] == 1).sum() == 2 for batch in batches)


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"source": "masks:there"}, "balanced"),
        ({"source": "csv:there", "text": "t", "labels": ("a", "b"), "tokenizer": "t"}, "balanced"),
        ({"source": "csv:there", "text": "t", "pack": 8, "tokenizer": "t"}, "balanced"),
        ({"sampling": "equal"}, "equal"),
        ({"labelled": 0}, "balanced"),
    ],
)
def test_samples_without_a_class_are_refused(settings, got):
    with refused(InvalidValueError, "data.sampling", got=got):
        data.open_data(DataSettings(**{"sampling": "balanced", **settings}))


def test_labels_that_are_no_classes_and_shuffled_shards_are_refused():
    several = [{"x": [0.5, k / 8], "labels": [k % 2, 1]} for k in range(8)]
    with refused(InvalidValueError, "data.sampling", got="several"):
        balanced_classes(data.from_datasets(several, several, classes=2, inputs="x", task="labels"))
    splits = rows(LABELS.tolist())
    units = np.arange(len(LABELS))[:, None] // 8
    from_shards = replace(splits.train, units=units, shuffle_buffer=8)
    with refused(InvalidValueError, "data.sampling", suggests=["class_weights", "data.shuffle_buffer"]):
        balanced_classes(replace(splits, train=from_shards))
