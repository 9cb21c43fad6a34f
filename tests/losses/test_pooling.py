"""Averages of maps are those of adaptive pooling."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tutelage.losses.pooling import averaged


@pytest.mark.parametrize("size", [(8, 6), (4, 3), (3, 4), (5, 5), (1, 1), (7, 2)])
def test_averages_are_those_of_adaptive_pooling(size):
    maps = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(averaged(maps, size), F.adaptive_avg_pool2d(maps, size))
