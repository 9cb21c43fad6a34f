"""What a network costs: by hand, by files, and without a trace on the network."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode

from tutelage import models
from tutelage.models import costs


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)


ENCODER = 2 * 5 * (8 * 24 + 8 * 8 + 2 * 8 * 16) + 2 * 2 * 5 * 5 * 8
BY_HAND = {
    "linear": (nn.Linear(64, 10), (64,), 2 * 64 * 10),
    "convolution": (nn.Conv2d(3, 8, 3, padding=1, stride=2), (3, 6, 6), 2 * 3 * 8 * 9 * 3 * 3),
    "grouped": (nn.Conv2d(8, 8, 3, groups=4), (8, 5, 5), 2 * 2 * 8 * 9 * 3 * 3),
    "attention": (Attention(), (2, 5, 8), 2 * 2 * 2 * 5 * 5 * 8),
    "transformer layer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8), ENCODER),
    "recurrent": (Recurrent(), (5, 4), 2 * 5 * (4 * 32 + 8 * 32) + 2 * 8 * 3),
    "neither": (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()), (3, 2, 2), None),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_operations_are_those_counted_by_hand(name):
    network, shape, count = BY_HAND[name]
    fast = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    cost = costs.measure(network, torch.rand(7, *shape), seconds=None)
    assert cost["flops"] == count
    assert cost["latency_ms"] is cost["throughput"] is None
    assert fast == (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled)


def test_shared_parameters_count_once_and_bytes_are_those_of_the_file(tmp_path):
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    tied[2].weight = tied[0].weight
    assert costs.measure(tied)["parameters"] == 16 + 8
    both = models.ensemble(models.create("cifar:resnet8"), models.create("cifar:resnet14"))
    for network in (models.adopt(tied, classes=4), models.create("mlp:8", classes=2, image_size=(4, 4)), both):
        saved = models.save(network, tmp_path).stat().st_size
        cost = costs.measure(network)
        assert (cost["network"], cost["file_bytes"], cost["flops"]) == (network.card.name, saved, None)


class Draws(nn.Module):
    """Draws in any mode, and has a batch norm in training mode inside one that is not."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x):
        assert not torch.is_grad_enabled()
        return self.head(self.norm(x))


def test_nothing_of_a_network_changes():
    network = Draws().eval()
    network.norm.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]
    registered = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    costs.measure(network, torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), seconds=0.01)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert (network.training, network.norm.training, network.head.training) == (False, True, False)
    assert torch.equal(drawn[0], torch.get_rng_state())
    assert drawn[1:] == (random.getstate(), np.random.get_state()[2])
    assert registered == (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks))


class Fails(nn.Module):
    """Fails under a counter of operations, or with more samples than it takes."""

    def __init__(self, most=8):
        super().__init__()
        self.head, self.most, self.batches = nn.Linear(4, 2), most, []

    def forward(self, x):
        self.batches.append(len(x))
        if _get_current_dispatch_mode() is not None:
            raise RuntimeError("no counter")
        if len(x) > self.most:
            raise torch.OutOfMemoryError
        return self.head(x)


def test_what_cannot_be_counted_is_timed_and_the_search_ends_where_memory_does(monkeypatch):
    network = Fails()
    registered = len(hooks._global_forward_hooks)
    monkeypatch.setattr(costs, "GROWTH", 0.0)  # each batch is better than the one before
    cost = costs.measure(network, torch.rand(1, 4), seconds=1.0)
    assert (cost["flops"], cost["batch"], cost["latency_n"]) == (None, 8, 100)
    assert 0 < cost["latency_ms"] <= cost["latency_p90_ms"]
    assert sorted(set(network.batches)) == [1, 2, 4, 8, 16]
    assert len(hooks._global_forward_hooks) == registered
    assert _get_current_dispatch_mode() is None
    with pytest.raises(torch.OutOfMemoryError):
        costs.measure(Fails(most=0), torch.rand(1, 4))


def test_time_bounds_the_passes(monkeypatch):
    network = Fails()
    cost = costs.measure(network, torch.rand(1, 4), seconds=0.0)
    assert (cost["latency_n"], cost["batch"], len(network.batches)) == (5, 1, 1 + 2 + 5)
    assert cost["throughput"] == pytest.approx(1e3 / cost["latency_ms"], rel=0.01)
    monkeypatch.setattr(costs, "LONG", 0.0)  # every pass takes as long
    network = Fails(most=1)
    cost = costs.measure(network, torch.rand(1, 4), seconds=0.0)
    assert (cost["latency_n"], cost["latency_p90_ms"], len(network.batches)) == (1, None, 1 + 2)


def test_two_batches_that_are_no_faster_end_the_search(monkeypatch):
    network = Fails()
    monkeypatch.setattr(costs, "GROWTH", 1e9)
    assert costs.measure(network, torch.rand(1, 4), seconds=1.0)["batch"] == 1
    assert sorted(set(network.batches)) == [1, 2, 4]


class Packed(torch.Tensor):
    """Stands for quantised weights, as those of torchao."""


def test_quantised_weights_have_neither_bytes_nor_a_count():
    network = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 2))
    assert costs.measure(network, torch.rand(1, 16), seconds=None)["flops"] == 2 * (16 * 8 + 8 * 2)
    network[0].weight = nn.Parameter(network[0].weight.detach().as_subclass(Packed))
    cost = costs.measure(network, torch.rand(1, 16), seconds=0.0)
    assert (cost["flops"], cost["file_bytes"], cost["latency_n"]) == (None, None, 5)
