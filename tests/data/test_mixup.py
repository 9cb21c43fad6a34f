import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image
from tests._helpers.refusals import refused

from tutelage import rng
from tutelage.data import BatchLoader, DataSettings, Mixing, RandAugment, open_data
from tutelage.data.mixup import draw_mix
from tutelage.errors import InvalidValueError
from tutelage.types import View

# Python 3.12 warns of forks beside threads, of which numerical libraries keep some; torch of more workers than cores.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

VIEW = View(seed=3, epoch=5)
ALL = {"flip": True, "randaugment": RandAugment(), "random_erasing": 0.5, "mixup": 0.8, "cutmix": 1.0}


def mixing(**settings):
    usual = {"mixup": 0.0, "cutmix": 0.0, "probability": 1.0, "switch": 0.5, "classes": 10, "image_size": (200, 300)}
    return Mixing(**usual | settings)


def drawn(count=20_000, samples=1000, **settings):
    return draw_mix(np.arange(count), mixing=mixing(**settings), samples=samples, view=VIEW)


def same(first, second):
    return len(first) == len(second) and all(
        all(torch.equal(a, b) for a, b in zip(x[:3], y[:3], strict=True)) for x, y in zip(first, second, strict=True)
    )


def rows(batches):
    """Every sample's input and label by its index."""
    return {
        int(i): (x, y) for batch in batches for i, x, y in zip(batch.index, batch.inputs, batch.labels, strict=True)
    }


def same_rows(first, second):
    return first.keys() == second.keys() and all(torch.equal(a, b) for k in first for a, b in zip(first[k], second[k]))  # noqa: B905


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """Photographs of mixed sizes: 8 and 2 of each of 3 classes."""
    pictures = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    for part, count in (("train", 8), ("test", 2)):
        for c, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for i in range(count):
                left, top = 40 * i, 60 * c
                cut = pictures[i % 2].crop((left, top, left + 200 + 20 * i, top + 150)).resize((60 + i, 50))
                cut.save(tmp_path / "pets" / part / name / f"{i}.png")
    return tmp_path / "pets"


def folder(root, **others):
    return DataSettings(source=f"imagefolder:{root}", size=24, **others)


# What is drawn


def test_partners_are_uniform_over_the_data_set():
    mix = drawn(mixup=0.8)
    assert stats.chisquare(np.bincount(mix.partner, minlength=1000)).pvalue > 1e-4


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_shares_of_mixup_follow_the_beta_distribution(alpha):
    mix = drawn(mixup=alpha)
    assert not mix.cut.any()
    assert not mix.box.any()
    assert stats.kstest(mix.share, stats.beta(alpha, alpha).cdf).pvalue > 1e-4
    assert abs(mix.share.mean() - 0.5) < 0.01


def test_the_share_of_cutmix_is_the_area_that_is_left():
    mix = drawn(cutmix=1.0)
    assert mix.cut.all()
    top, bottom, left, right = mix.box.T
    for low, high, size in ((top, bottom, 200), (left, right, 300)):
        assert (low >= 0).all()
        assert (high >= low).all()
        assert (high <= size).all()
    assert np.array_equal(mix.share, 1 - (bottom - top) * (right - left) / 60_000)
    inside = (top > 0) & (bottom < 200) & (left > 0) & (right < 300)
    # With alpha 1 the share before the correction is the uniform number itself.
    side = np.sqrt(1 - rng.uniform(rng.draw(VIEW.seed, VIEW.epoch, np.arange(20_000), rng.SHARE)))
    assert inside.sum() > 2000
    assert np.array_equal((bottom - top)[inside], np.floor(200 * side[inside]))
    assert np.array_equal((right - left)[inside], np.floor(300 * side[inside]))
    assert mix.share.mean() > 0.55  # rectangles are cut off at the borders


def test_switch_and_probability():
    both = drawn(mixup=0.8, cutmix=1.0, switch=0.3)
    assert abs(both.cut.mean() - 0.3) < 0.02
    half = drawn(mixup=0.8, cutmix=1.0, probability=0.5)
    assert abs((half.share < 1).mean() - 0.5) < 0.02
    assert abs(half.cut.mean() - 0.25) < 0.02
    assert drawn(cutmix=1.0, switch=0.0).cut.all()
    assert not drawn(mixup=1.0, switch=1.0).cut.any()
    assert (drawn(mixup=1.0, cutmix=1.0, probability=0.0).share == 1).all()


def test_draws_are_each_samples_own_and_differ_by_epoch_and_seed():
    how = mixing(mixup=0.8, cutmix=1.0)
    whole = draw_mix(np.arange(50), mixing=how, samples=50, view=VIEW)
    single = draw_mix(np.array([17]), mixing=how, samples=50, view=VIEW)
    assert all(np.array_equal(a[17:18], b) for a, b in zip(whole, single, strict=True))
    for view in (View(3, 6), View(4, 5)):
        other = draw_mix(np.arange(50), mixing=how, samples=50, view=view)
        assert not np.array_equal(whole.partner, other.partner)
        assert not np.array_equal(whole.share, other.share)


# What a batch is


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_a_mixed_batch_equals_a_plain_computation(mixup, cutmix):
    settings = {"crop_padding": 1, "flip": True, "mix_probability": 0.8}
    split = open_data(DataSettings(mixup=mixup, cutmix=cutmix, **settings)).train
    batch = next(BatchLoader(split, batch_size=200, data_seed=7, train=True).epoch(4))
    index, view = batch.index.numpy(), View(7, 4)
    mix = draw_mix(index, mixing=split.mixing, samples=1437, view=view)
    assert (batch.inputs.shape, batch.labels.shape) == ((200, 1, 8, 8), (200, 10))
    assert (batch.inputs.dtype, batch.labels.dtype) == (torch.float32, torch.float32)
    inputs, partners = split.fetch(index, view=view), split.fetch(mix.partner, view=view)
    for i, share in enumerate(mix.share):
        expected = inputs[i].clone()
        if mix.cut[i]:
            top, bottom, left, right = mix.box[i]
            expected[:, top:bottom, left:right] = partners[i][:, top:bottom, left:right]
        elif share < 1:
            expected = (inputs[i].double() * share + partners[i].double() * (1 - share)).float()
        assert torch.allclose(batch.inputs[i], expected, rtol=0, atol=0 if mix.cut[i] or share == 1 else 1e-6)
        label = torch.zeros(10, dtype=torch.float64)
        label[split.labels[index[i]]] += share
        label[split.labels[mix.partner[i]]] += 1 - share
        assert torch.equal(batch.labels[i], label.float())
    assert torch.allclose(batch.labels.sum(1), torch.ones(200))
    assert batch.inputs.min() >= 0
    assert batch.inputs.max() <= 1 + 1e-6


def test_evaluation_is_not_mixed_and_off_is_off():
    splits = open_data(DataSettings(mixup=0.8, cutmix=1.0, validation=0.1))
    for split in (splits.validation, splits.test):
        assert split.mixing is None
    (batch,) = BatchLoader(splits.train, batch_size=2000, train=False).epoch(0)
    assert torch.equal(batch.labels, splits.train.labels)
    assert torch.equal(batch.inputs, splits.train.fetch(np.arange(len(splits.train))))
    for off in ({}, {"mixup": 0.8, "cutmix": 1.0, "mix_probability": 0.0}):
        assert open_data(DataSettings(**off)).train.mixing is None


# Replayable: workers, resume point, processes, batch composition


@pytest.mark.parametrize("setting", list(ALL))
def test_each_augmentation_is_a_function_of_seed_epoch_and_sample(root, setting):
    only = {setting: ALL[setting], "random_resized_crop": True}

    def batches(batch_size=5, data_seed=1, **more):
        split = open_data(folder(root, **only, **more)).train
        return BatchLoader(split, batch_size=batch_size, data_seed=data_seed, train=True)

    whole = list(batches().epoch(2))
    assert same(whole, list(batches().epoch(2)))
    assert same(whole[3:], list(batches().epoch(2, start=3)))
    shares = [list(batches().epoch(2, rank=rank, world=2)) for rank in range(2)]
    assert same_rows(rows(whole), rows([*shares[0], *shares[1]]))
    assert same_rows(rows(whole), rows(batches(batch_size=7).epoch(2)))
    for other in (batches().epoch(3), batches(data_seed=2).epoch(2)):
        assert not same_rows(rows(whole), rows(other))
    plain = BatchLoader(open_data(folder(root, random_resized_crop=True)).train, batch_size=5, data_seed=1, train=True)
    assert not same_rows(rows(whole), rows(plain.epoch(2)))


def test_workers_processes_and_resume_do_not_change_anything(root):
    def batches(workers):
        split = open_data(folder(root, **ALL, random_resized_crop=True, workers=workers)).train
        return BatchLoader(split, batch_size=5, train=True)

    whole = list(batches(0).epoch(1))
    assert same(whole[1:], list(batches(2).epoch(1, start=1)))
    shares = [list(batches(workers).epoch(1, rank=workers, world=2)) for workers in range(2)]
    assert same_rows(rows(whole), rows([*shares[0], *shares[1]]))


def test_memory_and_stream_agree(root):
    memory, stream = (open_data(folder(root, **ALL, memory_limit_mb=limit)).train for limit in (2048, 0))
    assert type(memory) is not type(stream)
    assert same(*(list(BatchLoader(split, batch_size=7, train=True).epoch(2)) for split in (memory, stream)))


# Images that cannot be read, samples without labels


def test_a_sample_whose_partner_cannot_be_read_is_not_mixed(root):
    whole = open_data(folder(root, mixup=0.8, cutmix=1.0, memory_limit_mb=0)).train
    before = rows(BatchLoader(whole, batch_size=6, train=True).epoch(3))
    (root / "train" / "bee" / "1.png").write_bytes(b"")
    split = open_data(folder(root, mixup=0.8, cutmix=1.0, memory_limit_mb=0, on_corrupt="skip")).train
    gone, view = 9, View(0, 3)
    mix = draw_mix(np.arange(24), mixing=split.mixing, samples=24, view=view)
    lonely = [i for i in np.flatnonzero(mix.partner == gone).tolist() if i != gone]
    assert lonely
    mixed = rows(BatchLoader(split, batch_size=6, train=True).epoch(3))
    assert sorted(mixed) == sorted(set(range(24)) - {gone})
    for i, (inputs, label) in mixed.items():
        if i in lonely:
            assert torch.equal(inputs, split.fetch(np.array([i]), view=view)[0])
            assert label.tolist() == torch.eye(3)[split.labels[i]].tolist()
        else:
            assert all(torch.equal(a, b) for a, b in zip((inputs, label), before[i], strict=True))
    assert split.corrupt == ["train/bee/1.png"]
    stopping = open_data(folder(root, mixup=0.8, memory_limit_mb=0)).train
    with refused(InvalidValueError, "data.source", got="train/bee/1.png"):
        list(BatchLoader(stopping, batch_size=6, train=True).epoch(0))


def test_a_batch_of_samples_that_cannot_be_read_is_an_error(root):
    (root / "train" / "bee" / "1.png").write_bytes(b"")
    split = open_data(folder(root, mixup=0.8, memory_limit_mb=0, on_corrupt="skip")).train
    with refused(InvalidValueError, "data.source", suggests="batch_size"):
        list(BatchLoader(split, batch_size=1, train=True).epoch(0))


def test_samples_without_labels_stay_so_and_some_without_are_refused():
    split = open_data(DataSettings(mixup=0.8, labelled=0)).train
    batch = next(BatchLoader(split, batch_size=64, train=True).epoch(0))
    assert batch.labels.tolist() == [-100] * 64
    assert not torch.equal(batch.inputs, split.fetch(batch.index.numpy(), view=View(0, 0)))
    with refused(InvalidValueError, "data.cutmix", got="50 of 1437", suggests="data.mixup=0 data.cutmix=0"):
        open_data(DataSettings(cutmix=1.0, labelled=5))


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"mixup": -0.1}, refused(InvalidValueError, "data.mixup", got=-0.1, suggests="data.mixup=0.8")),
        ({"cutmix": float("inf")}, refused(InvalidValueError, "data.cutmix", suggests="data.cutmix=1.0")),
        (
            {"mix_probability": 1.1},
            refused(InvalidValueError, "data.mix_probability", got=1.1, suggests="data.mix_probability=0.5"),
        ),
        (
            {"switch_probability": -1},
            refused(InvalidValueError, "data.switch_probability", suggests="data.switch_probability=0.5"),
        ),
        ({"random_erasing": 2}, refused(InvalidValueError, "data.random_erasing", suggests="data.random_erasing=0.25")),
    ],
)
def test_settings_out_of_range_are_refused(settings, refusal):
    with refusal:
        open_data(DataSettings(**settings))
