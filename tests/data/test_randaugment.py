import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode

from tutelage.data import DataSettings, RandAugment, open_data
from tutelage.data.randaugment import OPERATIONS, Strength, draw_operations, randaugment
from tutelage.images import MEAN, RESAMPLING
from tutelage.types import View

VIEW = View(seed=3, epoch=5)
USUAL = RandAugment()
TIMM = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


@pytest.fixture(scope="module")
def photographs():
    pictures = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    cuts = [p.resize((48, 40), box=(20 * k, 10 * k, 20 * k + 300, 10 * k + 250)) for k in range(12) for p in pictures]
    return torch.from_numpy(np.stack([np.asarray(cut) for cut in cuts]))


def by_hand(image, operations, *, mode):
    fill = tuple(round(255 * m) for m in MEAN)
    for name, level, sign in operations:
        image = OPERATIONS[name](image, Strength(level, sign, mode, fill))
    return np.asarray(image)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("magnitude", [0, 3.7, 9, 10])
def test_operations_are_those_of_timm(photographs, magnitude, interpolation):
    policies = pytest.importorskip("timm.data.auto_augment", reason="the optional package timm is not installed")
    built = policies.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    assert [op.name for op in built.ops] == [TIMM[name] for name in OPERATIONS]
    assert (built.num_layers, {op.prob for op in built.ops}, built.ops[0].magnitude_std) == (2, {0.5}, 0.5)
    image, fill = Image.fromarray(photographs[0].numpy()), tuple(round(255 * m) for m in MEAN)
    for name, theirs in TIMM.items():
        hparams = {"img_mean": fill, "interpolation": RESAMPLING[interpolation]}
        op = policies.AugmentOp(theirs, prob=1.0, magnitude=magnitude, hparams=hparams)
        random.seed(0)
        if name == "posterize" and magnitude == 10:  # keeps no bit, which Pillow has come to refuse timm
            expected = {bytes(len(photographs[0].flatten()))}
        else:
            expected = {np.asarray(op(image)).tobytes() for _ in range(16)}
        how = [Strength(magnitude / 10, sign, InterpolationMode(interpolation), fill) for sign in (1, -1)]
        assert {np.asarray(OPERATIONS[name](image, each)).tobytes() for each in how} == expected, name


def test_operations_are_drawn_evenly_and_applied_half_of_the_time():
    drawn = draw_operations(np.arange(20_000), view=VIEW, settings=USUAL)
    assert stats.chisquare(np.bincount([len(each) for each in drawn], minlength=3), [5000, 10_000, 5000]).pvalue > 1e-4
    names = [name for each in drawn for name, _, _ in each]
    assert stats.chisquare([names.count(name) for name in OPERATIONS]).pvalue > 1e-4
    pairs = [(each[0][0], each[1][0]) for each in drawn if len(each) == 2]
    assert 0.05 < np.mean([a == b for a, b in pairs]) < 0.085  # with replacement: 1 in 15
    assert abs(np.mean([sign for each in drawn for _, _, sign in each])) < 0.03


def test_magnitudes_are_normal_and_cut_off():
    def levels(**settings):
        drawn = draw_operations(np.arange(10_000), view=VIEW, settings=RandAugment(**settings))
        return np.array([level for each in drawn for _, level, _ in each])

    usual = levels()
    assert usual.max() == 1  # two deviations above 9 lies beyond 10
    assert 0.015 < (usual == 1).mean() < 0.032
    assert abs(np.median(usual) - 0.9) < 0.005
    middle = levels(magnitude=5, magnitude_std=1)
    assert stats.kstest((middle - 0.5) / 0.1, "norm").pvalue > 1e-4
    assert set(levels(magnitude=7, magnitude_std=0)) == {0.7}
    assert levels(magnitude=0, magnitude_std=1).min() == 0


def test_images_equal_the_drawn_operations_one_by_one(photographs):
    index = np.arange(100, 124)
    settings = RandAugment(operations=3)
    varied = randaugment(photographs, index, view=VIEW, settings=settings, interpolation="bicubic")
    assert (varied.shape, varied.dtype) == (photographs.shape, torch.uint8)
    drawn = draw_operations(index, view=VIEW, settings=settings)
    assert {len(each) for each in drawn} == {0, 1, 2, 3}
    for row, operations in enumerate(drawn):
        expected = by_hand(Image.fromarray(photographs[row].numpy()), operations, mode=InterpolationMode.BICUBIC)
        assert np.array_equal(varied[row].numpy(), expected)
        (alone,) = randaugment(
            photographs[row : row + 1], index[row : row + 1], view=VIEW, settings=settings, interpolation="bicubic"
        )
        assert torch.equal(alone, varied[row])
    for other in (View(3, 6), View(4, 5)):
        assert not torch.equal(randaugment(photographs, index, view=other, settings=settings), varied)


def test_grey_images_and_other_whites():
    grey = (torch.arange(64) % 17).to(torch.uint8).reshape(1, 8, 8, 1).expand(200, 8, 8, 1)
    index = np.arange(200)
    varied = randaugment(grey, index, view=VIEW, settings=USUAL, white=16)
    assert varied.max() == 16
    drawn = draw_operations(index, view=VIEW, settings=USUAL)
    inverted = next(i for i, each in enumerate(drawn) if [name for name, _, _ in each] == ["invert"])
    untouched = next(i for i, each in enumerate(drawn) if not each)
    assert torch.equal(varied[inverted], 16 - grey[0])
    assert torch.equal(varied[untouched], grey[0])


def test_settings_reach_the_training_views_alone():
    plain, varied = open_data(DataSettings()), open_data(DataSettings(randaugment=USUAL, validation=0.1))
    index = np.arange(64)
    view = View(0, 1)
    assert torch.equal(varied.test.fetch(index, view=view), plain.test.fetch(index))
    assert torch.equal(varied.validation.fetch(index, view=view), varied.validation.fetch(index))
    changed = (varied.train.fetch(index, view=view) != varied.train.fetch(index)).flatten(1).any(1).float().mean()
    assert 0.5 < changed < 0.8  # 3 in 4 have an operation, and some of those change nothing
    assert open_data(DataSettings(randaugment=USUAL)).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"operations": 0},
            r"operations: expected a whole number in \[1, 100\], got 0; type data.randaugment.operation",
        ),
        ({"magnitude": 11}, r"magnitude: expected a number in \[0, 10\], got 11; type data.randaugment.magnitude=9"),
        ({"magnitude_std": math.inf}, r"magnitude_std: expected a number in \[0, 100\], got inf"),
        ({"magnitude_std": math.nan}, "magnitude_std"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=rf"^data.randaugment.{message}"):
        open_data(DataSettings(randaugment=RandAugment(**settings)))
