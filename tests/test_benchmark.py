"""The benchmark's reference: the published loss, and ratios that are what they say."""

import pytest
import torch

from tutelage import benchmark, losses


def test_the_published_loss_is_ours_where_it_does_not_underflow():
    torch.manual_seed(0)
    z, v, labels = torch.randn(6, 9), 3 * torch.randn(6, 9), torch.arange(6)
    ours = losses.cross_entropy(z, labels), losses.wttm(z, v, gamma=0.25)
    torch.testing.assert_close(benchmark.algorithm1(z, v, labels, gamma=0.25), ours)


def test_ratios_are_geometric_means_of_times_faster():
    rows = [benchmark.Row("a/b", 8.0, 4.0, 1.0), benchmark.Row("c/d", 8.0, 1.0, 0.5)]
    assert benchmark.ratios(rows) == pytest.approx({"live": 4.0, "recorded": (8 * 16) ** 0.5})
    assert "a/b" in benchmark.line(rows[0])
    assert "(2.00x)" in benchmark.line(rows[0])
