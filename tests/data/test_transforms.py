import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from tutelage.data.transforms import augment, crops, draw_boxes, flips, resize, to_float
from tutelage.images import RESAMPLING, image_of, pixels_of
from tutelage.types import View

VIEW = View(seed=3, epoch=5)


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_augment_equals_one_sample_at_a_time(padding, flip, channels):
    pixels = np.arange(24 * 7 * 9 * channels, dtype=np.int64).reshape(24, 7, 9, channels) % 255 + 1
    images = torch.from_numpy(pixels.astype(np.uint8))
    index = np.arange(100, 124)
    varied = augment(images, index, view=VIEW, padding=padding, flip=flip)
    assert varied.shape == images.shape
    for row, sample in enumerate(index):
        top, left = (int(v[0]) for v in crops(np.array([sample]), view=VIEW, padding=padding))
        bordered = np.zeros((7 + 2 * padding, 9 + 2 * padding, channels), np.uint8)
        bordered[padding : padding + 7, padding : padding + 9] = images[row].numpy()
        expected = bordered[top : top + 7, left : left + 9]
        if flip and flips(np.array([sample]), view=VIEW)[0]:
            expected = expected[:, ::-1]
        assert np.array_equal(varied[row].numpy(), expected)


def test_offsets_and_flips_cover_their_range_evenly():
    index = np.arange(40_000)
    top, left = crops(index, view=VIEW, padding=4)
    assert stats.chisquare(np.bincount(top * 9 + left, minlength=81)).pvalue > 1e-4
    assert top.max() == left.max() == 8
    assert stats.chisquare(np.bincount(flips(index, view=VIEW).astype(int))).pvalue > 1e-4


def test_views_differ_by_epoch_and_seed():
    images = torch.randint(0, 256, (64, 8, 8, 1), dtype=torch.uint8)
    index = np.arange(64)
    views = [augment(images, index, view=view, padding=2, flip=True) for view in (VIEW, View(3, 6), View(4, 5), VIEW)]
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert torch.equal(views[0], views[3])


def test_boxes_lie_inside_and_have_the_stated_areas_and_ratios():
    index = np.arange(3000)
    drawn = np.array([draw.box(400, 300) for draw in draw_boxes(index, view=VIEW)])
    left, top, right, bottom = drawn.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 400).all()
    assert (bottom <= 300).all()
    width, height = right - left, bottom - top
    area, ratio = width * height / 120_000, width / height
    assert area.min() > 0.078
    assert area.max() > 0.9
    assert 0.74 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.36
    (alone,) = draw_boxes(index[7:8], view=VIEW)
    assert alone.box(400, 300) == tuple(drawn[7])


def test_boxes_of_extreme_images_fall_back_to_the_centre():
    (draw,) = draw_boxes(np.array([0]), view=VIEW)
    assert draw.box(1000, 10) == (493, 0, 506, 10)
    assert draw.box(1, 1) == (0, 0, 1, 1)


PATTERN = (np.arange(37 * 53 * 3) * 7919 % 251).astype(np.uint8).reshape(37, 53, 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_pixels_are_pillows_to_a_rounding(interpolation, channels):
    pixels = PATTERN[:, :, :channels].copy()
    for height, width in ((14, 20), (90, 64), (37, 53)):
        resized = resize(pixels, (height, width), interpolation=interpolation)
        expected = image_of(pixels).resize((width, height), RESAMPLING[interpolation])
        assert (resized.dtype, resized.shape) == (np.uint8, (height, width, channels))
        assert np.abs(resized.astype(int) - pixels_of(expected)).max() <= 2
    assert np.array_equal(resized, pixels)


def test_resized_pixels_are_the_same_on_every_machine():
    """Views that were recorded on one are read on another."""
    content = hashlib.sha256()
    for interpolation in ("bilinear", "bicubic"):
        for channels in (1, 3):
            for size in ((14, 20), (90, 64)):
                content.update(resize(PATTERN[:, :, :channels].copy(), size, interpolation=interpolation).tobytes())
    assert content.hexdigest()[:16] == "dc8c711dc7627c47"


def test_to_float_scales_and_moves_channels_first():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    values = to_float(images, divisor=255.0)
    assert values.shape == (1, 3, 1, 1)
    assert values.dtype == torch.float32
    assert values.flatten().tolist() == [0.0, pytest.approx(0.2), 1.0]
    many = [to_float(torch.zeros(size, 5, 3, 1, dtype=torch.uint8), divisor=255.0) for size in range(20)]
    assert not any(batch.data_ptr() % 64 for batch in many if len(batch))
