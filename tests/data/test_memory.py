import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tests._helpers.refusals import refused

from tutelage.data import DataSettings, open_data
from tutelage.data.transforms import draw_boxes
from tutelage.errors import InvalidValueError
from tutelage.types import View


def test_digits_are_exact_sixteenths():
    splits = open_data(DataSettings())
    assert splits.sizes() == {"train": 1437, "test": 360, "labelled": 1437, "corrupt": 0}
    assert (splits.classes, splits.channels, splits.image_size) == (10, 1, (8, 8))
    assert splits.class_names == tuple("0123456789")
    together = torch.cat([part.fetch(np.arange(len(part))) for part in (splits.train, splits.test)])
    assert together.dtype == torch.float32
    assert (together.min(), together.max()) == (0, 1)
    expected = sorted((image / 16).astype(np.float32).tobytes() for image in load_digits().images)
    assert sorted(image.numpy().tobytes() for image in together) == expected


def test_digits_test_set_is_stratified_and_does_not_move():
    first, second = (open_data(DataSettings(split_seed=seed, validation=0.1)) for seed in (0, 1))
    assert torch.equal(first.test.labels, second.test.labels)
    assert set(torch.bincount(first.test.labels).tolist()) <= {34, 35, 36, 37}


def test_validation_is_stratified_and_does_not_leak():
    splits = open_data(DataSettings(validation=0.2))
    assert splits.sizes()["validation"] == 287
    train, held = (set(part.positions.tolist()) for part in (splits.train, splits.validation))
    assert not train & held
    assert train | held == set(range(1437))
    share = torch.bincount(splits.validation.labels) / torch.bincount(open_data(DataSettings()).train.labels)
    assert (share - 0.2).abs().max() < 0.01
    other = open_data(DataSettings(validation=0.2, split_seed=1))
    assert set(other.validation.positions.tolist()) != held
    assert other.fingerprint != splits.fingerprint


def test_labelled_counts_per_class_and_leaves_other_splits_alone():
    splits = open_data(DataSettings(validation=0.2, labelled=4))
    labels = splits.train.labels
    assert torch.bincount(labels[labels >= 0]).tolist() == [4] * 10
    assert (labels == -100).sum() == len(labels) - 40
    assert splits.sizes()["labelled"] == 40
    assert (splits.validation.labels >= 0).all()
    full = open_data(DataSettings(validation=0.2)).train.labels
    assert torch.equal(labels[labels >= 0], full[labels >= 0])


def test_only_training_views_vary():
    splits = open_data(DataSettings(validation=0.2, crop_padding=1, flip=True))
    index = np.arange(50)
    for part, varies in ((splits.train, True), (splits.validation, False), (splits.test, False)):
        changed = not torch.equal(part.fetch(index), part.fetch(index, view=View(0, 0)))
        assert changed == varies


def test_fingerprint_is_stable_and_ignores_views():
    assert open_data(DataSettings()).fingerprint == open_data(DataSettings(flip=True)).fingerprint
    assert len(open_data(DataSettings()).fingerprint) == 16


def test_inputs_are_channels_last():
    inputs = open_data(DataSettings(size=16)).train.fetch(np.arange(4))
    assert inputs.shape == (4, 1, 16, 16)
    assert inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"validation": 1.0}, refused(InvalidValueError, "data.validation", got=1.0, suggests="data.validation=0.1")),
        ({"validation": 1e-9}, refused(InvalidValueError, "data.validation", got=1e-09)),
        ({"labelled": -1}, refused(InvalidValueError, "data.labelled", got=-1, suggests="data.labelled=null")),
        ({"labelled": 5000}, refused(InvalidValueError, "data.labelled", got=5000, suggests="data.labelled=139")),
        ({"size": 0}, refused(InvalidValueError, "data.size", suggests="data.size=224")),
        ({"test_crop": 0}, refused(InvalidValueError, "data.test_crop", got=0, suggests="data.test_crop=0.875")),
        (
            {"interpolation": "cubic"},
            refused(InvalidValueError, "data.interpolation", got="'cubic'", suggests="data.interpolation=bilinear"),
        ),
        ({"test": "none"}, refused(InvalidValueError, "data.test", got="'none'", suggests="data.test=held_out")),
        ({"crop_padding": -1}, refused(InvalidValueError, "data.crop_padding", got=-1, suggests="data.crop_padding=0")),
        ({"workers": -1}, refused(InvalidValueError, "data.workers", suggests="data.workers=0")),
        (
            {"memory_limit_mb": -1},
            refused(InvalidValueError, "data.memory_limit_mb", suggests="data.memory_limit_mb=0"),
        ),
        (
            {"on_corrupt": "panic"},
            refused(InvalidValueError, "data.on_corrupt", got="'panic'", suggests="data.on_corrupt=stop"),
        ),
        (
            {"crop_padding": 4, "random_resized_crop": True},
            refused(InvalidValueError, "data.crop_padding", got=4, suggests="data.crop_padding=0"),
        ),
        ({"source": "digit"}, refused(InvalidValueError, "data.source", got="'digit'", suggests="data.source=digits")),
        (
            {"source": "imagefoldr:x"},
            refused(InvalidValueError, "data.source", got="'imagefoldr:x'", suggests="data.source=imagefolder:<path>"),
        ),
        (
            {"source": "hf:"},
            refused(InvalidValueError, "data.source", got="'hf:'", suggests="data.source=hf:<hub"),
        ),
    ],
)
def test_settings_are_refused_with_what_to_type(settings, refusal):
    with refusal as caught:
        open_data(DataSettings(**settings))
    assert "\n" not in str(caught.value)


def test_boxes_of_pixels_that_were_never_a_file_are_pillows():
    split = open_data(DataSettings(random_resized_crop=True)).train
    index, view = np.arange(20), View(1, 2)
    centres = (split.fetch(index) * 255).round().byte()[:, 0].numpy()
    views = (split.fetch(index, view=view) * 255).round().byte()[:, 0].numpy()
    for image, draw, varied in zip(centres, draw_boxes(index, view=view), views, strict=True):
        box = draw.box(8, 8)
        assert np.array_equal(Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR, box=box), varied)
