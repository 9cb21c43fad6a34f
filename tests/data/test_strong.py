"""A second, strong view of each training sample: its rows in batches, on the host and for devices; refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tests._helpers.refusals import refused

from tutelage.data import BatchLoader, DataSettings, RandAugment, StrongView, loader_on, open_data
from tutelage.data.on_device import UploadLoader, reason_elsewhere
from tutelage.errors import InvalidValueError
from tutelage.rng import strong_view
from tutelage.settings.data import Unlabelled
from tutelage.types import View

STRONG = StrongView(randaugment=RandAugment(magnitude=10), random_erasing=0.5)
WEAK = {"crop_padding": 1, "flip": True}


def digits(**settings):
    return open_data(DataSettings(source="digits", **{**WEAK, **settings}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as files: three classes of 15."""
    root = tmp_path_factory.mktemp("images")
    for number, (pixels, _) in enumerate(zip(*load_digits(n_class=3, return_X_y=True), strict=True)):
        if number < 45:
            path = root / f"class{number % 3}" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray((pixels.reshape(8, 8) * 15).astype(np.uint8)).save(path)
    return root


def batches(split, epoch=0, *, batch_size=40, start=0, rank=0, world=1, **others):
    loader = BatchLoader(split, batch_size=batch_size, train=True, data_seed=3, world=world, **others)
    return list(loader.epoch(epoch, start=start, rank=rank, world=world))


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.view == other.view
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def test_a_batch_has_the_weak_view_of_a_run_without_and_behind_it_the_strong_one():
    plain, both = digits().train, digits(strong=STRONG).train
    as_strong = digits(randaugment=STRONG.randaugment, random_erasing=0.5).train
    for weak, pair in zip(batches(plain, 1), batches(both, 1), strict=True):
        assert pair.view == weak.view
        assert torch.equal(pair.index, weak.index.repeat_interleave(2))
        assert torch.equal(pair.labels, weak.labels.repeat_interleave(2))
        assert torch.equal(pair.inputs[0::2], weak.inputs)
        expected = as_strong.fetch(weak.index.numpy(), view=strong_view(weak.view))
        assert torch.equal(pair.inputs[1::2], expected)
        assert pair.inputs.stride() == torch.empty(pair.inputs.shape).to(memory_format=torch.channels_last).stride()
    assert (both.views_per_sample, plain.views_per_sample) == (2, 1)


def test_the_views_of_a_sample_are_drawn_by_themselves():
    assert strong_view(View(0, 5)) == View(strong_view(View(0, 0)).seed, 5)
    assert len({strong_view(View(seed, 0)).seed for seed in range(100)} | {*range(100)}) == 200
    twice = batches(digits(strong=StrongView()).train)  # no stronger than the weak one, yet another
    same = [torch.equal(a, b) for batch in twice for a, b in zip(batch.inputs[0::2], batch.inputs[1::2], strict=True)]
    assert 0 < np.mean(same) < 0.3  # 9 crops and 2 flips


def test_an_epoch_has_each_sample_once_in_as_many_steps_and_counts_rows():
    split = digits(strong=STRONG).train
    loader = BatchLoader(split, batch_size=100, train=True)
    assert len(loader) == 15
    assert loader.samples == 2 * len(split) == 2 * 1437
    sizes = [len(batch.index) for batch in loader.epoch(0)]
    assert sizes == [200] * 14 + [74]
    index = torch.cat([batch.index for batch in loader.epoch(0)])
    assert torch.equal(index.bincount(), torch.full((1437,), 2))


def test_evaluation_and_samples_without_a_view_have_one_row():
    splits = digits(strong=STRONG, validation=0.1)
    for split in (splits.train, splits.validation, splits.test):
        loader = BatchLoader(split, batch_size=100, train=False)
        assert sum(len(batch.index) for batch in loader.epoch(0)) == len(split) == loader.samples
        assert len(split.fetch(np.arange(3))) == 3
    assert splits.test.strong is None


@pytest.mark.parametrize("sampling", ["natural", "balanced"])
def test_batches_are_the_same_for_any_number_of_processes_resume_point_and_place(sampling):
    split = digits(strong=STRONG, sampling=sampling).train
    whole = batches(split, 2)
    assert_same(whole[5:], batches(split, 2, start=5))
    shares = [batches(split, 2, rank=rank, world=3) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for part in parts:
            assert torch.equal(part.index[0::2], part.index[1::2])  # a pair is never split
        pairs = [part.inputs.unflatten(0, (-1, 2)) for part in parts]
        for rank, pair in enumerate(pairs):
            assert torch.equal(pair, batch.inputs.unflatten(0, (-1, 2))[rank::3])
    uploaded = UploadLoader(split, device=torch.device("cpu"), batch_size=40, train=True, data_seed=3)
    assert_same(whole, uploaded.epoch(2))
    assert "data.strong" in reason_elsewhere(split, torch.device("meta"))
    assert isinstance(loader_on(torch.device("meta"), split, batch_size=4, train=True), UploadLoader)
    with refused(InvalidValueError, "data.on_device", suggests="data.on_device=auto"):
        reason_elsewhere(replace(split, on_device=True), torch.device("meta"))


@pytest.mark.parametrize("how", [{"random_resized_crop": True, "crop_padding": 0}, {"memory_limit_mb": 0}])
def test_streamed_pictures_have_a_strong_view_in_any_number_of_workers(folder, how, monkeypatch, tmp_path):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path))
    settings = DataSettings(source=f"imagefolder:{folder}", strong=STRONG, **{**WEAK, **how})
    splits, plain = open_data(settings), open_data(replace(settings, strong=None))
    pairs = batches(splits.train, batch_size=8)
    for weak, pair in zip(batches(plain.train, batch_size=8), pairs, strict=True):
        assert torch.equal(pair.inputs[0::2], weak.inputs)
        assert torch.equal(pair.index, weak.index.repeat_interleave(2))
        assert not torch.equal(pair.inputs[1::2], weak.inputs)
    others = open_data(replace(settings, workers=1))
    assert_same(pairs, batches(others.train, batch_size=8))
    others.close()


def test_an_unreadable_picture_is_left_out_of_both_views(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path))
    settings = DataSettings(source=f"imagefolder:{folder}", strong=STRONG, memory_limit_mb=0, on_corrupt="skip")
    train = open_data(settings).train
    decode, broken = type(train)._decode, {2, 5}

    def faulty(split, index, *, view):
        """Read the strong views of all samples but two."""
        kept, images, faults, frames = decode(split, index, view=view)
        if split.strong is None:
            read = ~np.isin(kept, [*broken])
            return kept[read], images[torch.from_numpy(read)], faults, frames
        return kept, images, faults, frames

    monkeypatch.setattr(type(train), "_decode", faulty)
    (batch,) = batches(train, batch_size=len(train))
    assert set(range(len(train))) - set(batch.index.tolist()) == broken
    assert torch.equal(batch.index[0::2], batch.index[1::2])
    weak = train.stream([batch.index[0::2].numpy()], view=batch.view)
    assert torch.equal(next(weak)[1], batch.inputs)


def test_samples_without_labels_have_two_views_too(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path))
    more = Unlabelled(source=f"images:{folder}", share=0.5)
    split = open_data(DataSettings(source=f"imagefolder:{folder}", unlabelled=more, strong=STRONG)).train
    for batch in batches(split, batch_size=8):
        labels = batch.labels.unflatten(0, (-1, 2))
        assert torch.equal(labels[:, 0], labels[:, 1])
        assert (labels == -100).any()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mixup": 0.2}, refused(InvalidValueError, "data.mixup", got=0.2, suggests="data.mixup=0")),
        ({"cutmix": 1.0}, refused(InvalidValueError, "data.cutmix", got=1.0)),
        ({"source": "masks:x"}, refused(InvalidValueError, "data.strong", suggests="data.strong")),
        ({"source": "jsonl:x", "text": "t", "tokenizer": "t"}, refused(InvalidValueError, "data.strong")),
        (
            {"source": "jsonl:x", "text": "t", "image": "i", "tokenizer": "t"},
            refused(InvalidValueError, "data.strong", suggests="data.strong=null"),
        ),
        (
            {"strong": StrongView(random_erasing=1.5)},
            refused(InvalidValueError, "data.strong.random_erasing", got=1.5),
        ),
        (
            {"strong": StrongView(randaugment=RandAugment(magnitude=11))},
            refused(InvalidValueError, "data.strong.randaugment.magnitude", got=11),
        ),
    ],
)
def test_refusals(settings, expected):
    with expected:
        open_data(DataSettings(**{"source": "digits", "strong": STRONG, **settings}))
