import pytest
import torch

from tutelage.contracts import Projection
from tutelage.projectors import build, name


def test_a_linear_map_has_the_widths_of_both_sides():
    made = build(Projection("a", "b", "linear"), (3,), (5,))
    assert made(torch.randn(2, 3)).shape == (2, 5)
    assert {key: tuple(value.shape) for key, value in made.state_dict().items()} == {"weight": (5, 3), "bias": (5,)}


def test_two_builds_share_nothing():
    one, two = (build(Projection("a", "b", "linear"), (3,), (5,)) for _ in range(2))
    assert one.weight.data_ptr() != two.weight.data_ptr()


def test_faults():
    with pytest.raises(ValueError, match=r"projection: expected features \(batch, width\) .*card:embedding"):
        build(Projection("a", "b", "linear"), (3, 8, 8), (5,))
    with pytest.raises(ValueError, match="expected a kind among linear, conv1x1_bn, got 'conv'"):
        build(Projection("a", "b", "conv"), (3,), (5,))


def test_names_tell_maps_apart():
    names = [
        name(Projection("a", "b", "linear")),
        name(Projection("a", "b", "linear", always=False)),
        name(Projection("a", "c", "linear")),
    ]
    assert len(set(names)) == 3
