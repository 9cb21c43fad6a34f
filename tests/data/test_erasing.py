import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from tutelage.data import DataSettings, open_data
from tutelage.data.erasing import erase, erasing_noise, rectangles
from tutelage.images import MEAN, STD
from tutelage.types import View

VIEW = View(seed=3, epoch=5)


def test_rectangles_have_the_stated_areas_ratios_and_positions():
    drawn = rectangles(np.arange(4000), view=VIEW, probability=0.25, height=200, width=300)
    erased = drawn[drawn.any(1)]
    assert 0.22 < len(erased) / 4000 < 0.28
    top, bottom, left, right = erased.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= 200).all()
    assert (right <= 300).all()
    area, ratio = (bottom - top) * (right - left) / 60_000, (bottom - top) / (right - left)
    assert 0.018 < area.min() < 0.03
    assert 0.31 < area.max() < 0.34
    assert 0.29 < ratio.min() < 0.32
    assert 2 < ratio.max() < 3.4
    assert abs(np.mean(left / (300 - (right - left))) - 0.5) < 0.03
    alone, all_of_them = (
        rectangles(index, view=VIEW, probability=1.0, height=200, width=300) for index in (np.array([9]), np.arange(20))
    )
    assert np.array_equal(alone, all_of_them[9:10])


def test_probabilities_0_and_1():
    images = torch.zeros(50, 8, 8, 3, dtype=torch.uint8)
    assert erase(images, np.arange(50), view=VIEW, probability=0.0) is images
    assert (erase(images, np.arange(50), view=VIEW, probability=1.0).flatten(1) > 0).any(1).all()
    assert (images == 0).all()


def test_images_too_small_to_erase_stay():
    assert not rectangles(np.arange(99), view=VIEW, probability=1.0, height=1, width=50).any()


def test_what_is_not_erased_stays_and_each_sample_is_by_itself():
    images = torch.full((30, 24, 20, 3), 7, dtype=torch.uint8)
    index = np.arange(200, 230)
    erased = erase(images, index, view=VIEW, probability=0.5)
    drawn = rectangles(index, view=VIEW, probability=0.5, height=24, width=20)
    for row, rectangle in enumerate(drawn):
        outside = torch.ones(24, 20, dtype=torch.bool)
        if rectangle.any():
            top, bottom, left, right = rectangle
            outside[top:bottom, left:right] = False
            assert (erased[row][~outside] != 7).float().mean() > 0.9
        assert (erased[row][outside] == 7).all()
        assert torch.equal(erase(images[:1], index[row : row + 1], view=VIEW, probability=0.5)[0], erased[row])
    assert not torch.equal(erase(images, index, view=View(3, 6), probability=0.5), erased)


@pytest.mark.parametrize(("channels", "white"), [(3, 255.0), (1, 16.0)])
def test_noise_is_that_of_imagenets_pixels(channels, white):
    images = torch.zeros(100, 64, 64, channels, dtype=torch.uint8)
    index = np.arange(100)
    erased = erase(images, index, view=VIEW, probability=1.0, white=white).numpy() / white
    assert erased.max() == 1
    drawn = rectangles(index, view=VIEW, probability=1.0, height=64, width=64)
    values = np.concatenate([erased[i, r[0] : r[1], r[2] : r[3]].reshape(-1, channels) for i, r in enumerate(drawn)])
    means, deviations = (MEAN, STD) if channels == 3 else ([np.mean(MEAN)], [np.mean(STD)])
    assert np.abs(values.mean(0) - means).max() < 0.01
    assert np.abs(values.std(0) - deviations).max() < 0.01
    if channels == 3:
        # Values at the ends are cut off, and neither neighbours nor channels go together.
        inside = (values[:, 0] > 0) & (values[:, 0] < 1)
        z = (values[inside, 0] - MEAN[0]) / STD[0]
        assert stats.kstest(z, stats.truncnorm(-MEAN[0] / STD[0], (1 - MEAN[0]) / STD[0]).cdf).statistic < 0.02
        assert np.abs(np.corrcoef(values.T)[np.triu_indices(3, 1)]).max() < 0.02
        assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.02


def test_settings_reach_the_training_views_alone():
    splits = open_data(DataSettings(random_erasing=1.0))
    index, view = np.arange(40), View(0, 0)
    assert (splits.train.fetch(index, view=view) != splits.train.fetch(index)).flatten(1).any(1).all()
    assert torch.equal(splits.test.fetch(index, view=view), splits.test.fetch(index))


def test_noise_of_many_is_the_noise_of_each():
    index = np.arange(500, 800)[::-1]
    drawn = rectangles(index, view=VIEW, probability=0.7, height=9, width=8)
    whole = erasing_noise(index, drawn, view=VIEW, channels=3, white=255.0)
    parts = [
        erasing_noise(index[i : i + 1], drawn[i : i + 1], view=VIEW, channels=3, white=255.0) for i in range(len(index))
    ]
    assert np.array_equal(whole, np.concatenate(parts))
    digest = hashlib.sha256(whole.tobytes() + drawn.tobytes()).hexdigest()
    assert digest[:16] == "960fde3237fd3424", digest
