import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from tests._helpers.refusals import refused
from torchvision.transforms import v2

from tutelage import rng
from tutelage.data import BatchLoader, DataSettings, RandAugment, open_data
from tutelage.data.custom_transforms import Transform, apply, check_on_black, find, name_of
from tutelage.data.on_device import reason_elsewhere
from tutelage.errors import InvalidValueError, MissingExtraError, UserCodeError
from tutelage.types import View

NAMES = [
    "torchvision:TrivialAugmentWide",
    "torchvision:RandAugment(num_ops=2, magnitude=9)",
    "torchvision:ColorJitter(0.4, hue=0.1)",
    "timm:rand-m9-mstd0.5-inc1",
    "timm:augmix-m5-w4-d2",
    "timm:original",
]
VIEW = View(3, 5)
SIZE = {"image_size": (40, 48), "channels": 3}


@pytest.fixture(scope="module")
def photographs():
    picture = Image.fromarray(load_sample_image("china.jpg"))
    cuts = [picture.resize((48, 40), box=(20 * k, 10 * k, 20 * k + 300, 10 * k + 250)) for k in range(12)]
    return torch.from_numpy(np.stack([np.asarray(cut) for cut in cuts]))


def found(name, **shape):
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="the optional package timm is not installed")
    return find(name, **{**SIZE, **shape})


def noisy(image):
    """Draws from all three generators."""
    values = np.asarray(image).astype(int) + random.randrange(50) + np.random.randint(50)
    return Image.fromarray(((values + torch.randint(50, (1,)).item()) % 256).astype(np.uint8))


def halved(image):
    return image.resize((image.width // 2, image.height // 2))


def broken(image):
    raise ZeroDivisionError("by nothing\nat all")


def global_states():
    return str((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))


@pytest.mark.parametrize("name", NAMES)
def test_a_view_is_a_function_of_seed_epoch_and_sample(photographs, name):
    if "augmix" in name:  # timm 1.0.22 mixes square images only
        photographs = photographs[:, :40, :40]
    transform, index = found(name), np.arange(100, 112)
    before = global_states()
    varied = apply(photographs, index, view=VIEW, transform=transform)
    assert global_states() == before
    assert (varied.shape, varied.dtype) == (photographs.shape, torch.uint8)
    assert not torch.equal(varied, photographs)
    order = np.random.default_rng(0).permutation(12)
    torch.manual_seed(9)
    for rows in (order[:5], order[5:]):
        again = apply(photographs[torch.from_numpy(rows)], index[rows], view=VIEW, transform=found(name))
        assert torch.equal(again, varied[torch.from_numpy(rows)])
    for other in (View(3, 6), View(4, 5)):
        assert not torch.equal(apply(photographs, index, view=other, transform=transform), varied)


def test_a_transform_does_what_the_library_does_from_the_hash(photographs):
    transform = apply(photographs[:1], np.array([7]), view=VIEW, transform=found("torchvision:TrivialAugmentWide"))
    bits = int(rng.draw(3, 5, np.array([7]), rng.TRANSFORM)[0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(bits >> 1)
        expected = v2.TrivialAugmentWide()(Image.fromarray(photographs[0].numpy()))
    assert np.array_equal(transform[0].numpy(), np.asarray(expected))


def test_timm_gets_what_its_training_script_gives_it():
    factory = pytest.importorskip("timm.data.transforms_factory", reason="the optional package timm is not installed")
    for policy in ("rand-m9-mstd0.5-inc1", "augmix-m5-w4-d2", "original"):
        for interpolation in ("bilinear", "bicubic"):
            theirs = factory.transforms_imagenet_train(224, auto_augment=policy, interpolation=interpolation)
            ours = found(f"timm:{policy}", image_size=(224, 224), interpolation=interpolation).function
            (expected,) = (each for each in theirs.transforms if type(each) is type(ours))
            settings = [
                [(op.name, op.magnitude, op.prob, op.hparams, op.kwargs) for op in operations(each)]
                for each in (expected, ours)
            ]
            assert settings[0] == settings[1]


def operations(transform):
    return transform.ops if hasattr(transform, "ops") else [op for each in transform.policy for op in each]


def test_timm_keeps_no_bit_where_its_magnitude_is_highest(photographs):
    (posterize,) = (op for op in operations(found("timm:rand-m10-inc1-p1").function) if op.name.startswith("Posterize"))
    image = Image.fromarray(photographs[0].numpy())
    assert not np.asarray(posterize(image)).any()
    posterize.magnitude = 5
    assert np.array_equal(np.asarray(posterize(image)), np.asarray(image) & 0b11000000)


def test_other_whites_and_pixels_as_tensors():
    grey = (torch.arange(64) % 17).to(torch.uint8).reshape(1, 8, 8, 1).expand(3, 8, 8, 1)
    inverted = apply(
        grey, np.arange(3), view=VIEW, transform=found("torchvision:RandomInvert(p=1.0)", channels=1), white=16
    )
    assert torch.equal(inverted, 16 - grey)
    for function in (v2.PILToTensor(), v2.ToImage()):
        assert torch.equal(apply(grey, np.arange(3), view=VIEW, transform=Transform("object:f", function)), grey)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("streamed", [False, True])
def test_batches_are_the_same_with_workers_in_other_sizes_and_from_a_later_step(streamed):
    how = {"flip": True, "crop_padding": 1, "memory_limit_mb": 0 if streamed else 2048, "size": 9, "mixup": 0.5}
    alone, shared = (open_data(DataSettings(workers=n, **how), transform=noisy) for n in (0, 2))
    plain = open_data(DataSettings(**how))
    assert (shared.train.workers, alone.fingerprint) == (2, None)
    before = global_states()
    straight = list(BatchLoader(alone.train, batch_size=400, data_seed=2, train=True).epoch(1))
    others = BatchLoader(shared.train, batch_size=400, data_seed=2, train=True)
    resumed = list(others.epoch(1, start=2))
    assert global_states() == before
    for batch, again in zip(straight[2:], resumed, strict=True):
        assert torch.equal(batch.inputs, again.inputs)
    view, index = View(2, 1), np.arange(50)
    varied = alone.train.fetch(index, view=view)
    assert torch.equal(alone.train.fetch(index[10:13], view=view), varied[10:13])
    assert not torch.equal(varied, plain.train.fetch(index, view=view))
    assert torch.equal(alone.train.fetch(index), plain.train.fetch(index))
    assert torch.equal(alone.test.fetch(index, view=view), plain.test.fetch(index))
    shared.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_the_transform_and_the_sample(workers):
    splits = open_data(DataSettings(workers=workers), transform=noisy)
    train = replace(splits.train, transform=Transform(name_of(broken), broken))
    before = global_states()
    with pytest.raises(UserCodeError) as caught:
        list(train.stream([np.array([17, 18])], view=View(0, 2)))
    assert global_states() == before
    assert caught.value.what == "data.transform object:broken"
    assert "sample 17 in epoch 3" in caught.value.expected
    assert caught.value.got == "ZeroDivisionError: by nothing"
    if not workers:
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    splits.close()


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (halved, "one of 24 x 20 pixels in mode RGB"),
        (v2.Grayscale(), "one of 48 x 40 pixels in mode L"),
        (v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]), "torch.float32 values of shape"),
        (v2.Compose([v2.ToImage(), v2.Resize(8)]), "torch.uint8 values of shape"),
        (np.asarray, "ndarray"),
    ],
)
def test_what_would_break_a_batch_is_refused_before_training(function, got):
    with pytest.raises(InvalidValueError) as caught:
        check_on_black(Transform(name_of(function), function), **SIZE)
    assert caught.value.what == f"data.transform {name_of(function)}"
    assert caught.value.got.startswith(got)
    assert "48 x 40 pixels in mode RGB" in caught.value.expected


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("torchvision:TrivialAugment", "did you mean TrivialAugmentWide?"),
        ("torchvision:functional", "for example data.transform="),
        ("torchvision:Transform", "did you mean"),
        ("torchvision:RandAugment(num_ops=__import__('os').getpid())", "for example data.transform="),
        ("torchvision:RandAugment(**{'num_ops': 2})", "for example data.transform="),
        ("torchvision:RandAugment.__init__", "for example data.transform="),
        ("torchvision:RandAugment(", "for example data.transform="),
        ("torchvision:RandAugment(operations=2)", "did you mean"),
        ("timm:random", "for example data.transform="),
        ("timm:nothing", "for example data.transform="),
        ("object:halved", "run the program"),
    ],
)
def test_names_that_are_not_there_are_refused(name, instead):
    with pytest.raises(InvalidValueError) as caught:
        found(name)
    assert caught.value.what.startswith("data.transform")
    assert caught.value.instead.startswith(instead)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(MissingExtraError) as caught:
        find("timm:original", **SIZE)
    assert "tutelage[timm]" in caught.value.instead


def test_settings_reach_the_training_views_and_keep_the_fingerprint():
    plain = open_data(DataSettings())
    named = open_data(DataSettings(transform="torchvision:RandomInvert(p=1.0)"))
    index = np.arange(8)
    assert torch.equal(named.train.fetch(index, view=VIEW), 1 - plain.train.fetch(index))
    assert named.fingerprint == plain.fingerprint
    assert "data.transform" in reason_elsewhere(named.train, torch.device("cuda"))
    with pytest.raises(InvalidValueError):
        open_data(DataSettings(), transform=halved)


@pytest.mark.parametrize("name", ["TrivialAugmentWide", "kornia:RandomFlip", "timm:", halved])
def test_a_name_of_no_library_is_refused(name):
    with pytest.raises(ValueError, match=r"^data.transform: expected torchvision:<class> or timm:<policy>"):
        open_data(DataSettings(transform=name))


def test_one_of_both_randaugments_is_refused():
    with pytest.raises(ValueError, match=r"^data.transform: expected null together with data.randaugment"):
        open_data(DataSettings(transform="timm:original", randaugment=RandAugment()))


def test_misspelt_arguments_and_what_is_no_image_are_told():
    size = {"image_size": (8, 8), "channels": 1}
    with refused(InvalidValueError, suggests="degrees"):
        find("torchvision:RandomRotation(degreees=3)", **size)
    with refused(InvalidValueError, suggests="from Python"):
        find("torchvision:Lambda", **size)
    elsewhere = Transform("object:f", lambda image: torch.zeros(1, 8, 8, dtype=torch.uint8, device="meta"))
    with refused(InvalidValueError, got="meta"):
        check_on_black(elsewhere, **size)
    with refused(InvalidValueError, got="ndarray", suggests="PIL.Image.fromarray"):
        check_on_black(Transform("object:f", np.asarray), **size)
