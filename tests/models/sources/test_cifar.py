import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage.errors import InvalidValueError
from tutelage.models import create, parameters
from tutelage.models.networks.layers import table
from tutelage.models.networks.mobilenet import MobileNetV2
from tutelage.models.networks.resnet import ENTRIES, basic_blocks
from tutelage.models.networks.shuffle import Join
from tutelage.models.networks.vgg import VGG
from tutelage.models.networks.wrn import WideResNet
from tutelage.models.sources.cifar import NETWORKS

VECTORS = Path(__file__).with_name("cifar_zoo.json")
"""Of each network the parameter count, a published checkpoint's names and shapes, and outputs for drawn weights."""


FAMILIES = ("resnet8", "ResNet50", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2")
"""One network of each class, the smallest."""


def records():
    return json.loads(VECTORS.read_text())


def drawn(record, state):
    """Weights as the vectors' description says: one stream, in the order of the state."""
    rng = np.random.default_rng(record["seed"])
    weights = {}
    for key, value in state.items():
        if not value.is_floating_point():
            weights[key] = value
            continue
        a = rng.standard_normal(tuple(value.shape))
        if key.endswith("running_var"):
            a = np.abs(a) + 0.5
        elif key.endswith("running_mean"):
            a = 0.1 * a
        elif a.ndim == 1:
            a = 1 + 0.1 * a if key.endswith("weight") else 0.1 * a
        else:
            a = a / np.sqrt(np.prod(a.shape[1:]))
        weights[key] = torch.from_numpy(a)
    return weights


def test_every_network_has_a_vector():
    assert {record["name"] for record in records()} == set(NETWORKS)


@pytest.mark.parametrize("record", records(), ids=lambda record: record["name"])
def test_the_benchmark(record, watch):
    classifier = create(f"cifar:{record['name']}")
    network = classifier.network.double().eval()
    assert parameters(network) == record["parameters"] == NETWORKS[record["name"]].parameters
    state = network.state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == record["state_dict"]
    network.load_state_dict(drawn(record, state))

    card = classifier.card
    images = torch.from_numpy(np.random.default_rng(7).standard_normal((2, 3, 32, 32)))
    with torch.no_grad():
        logits, seen = watch(network, (*card.stages, *card.stage_inputs, card.embedding), images)
        again = network.get_submodule(card.head)(seen[card.embedding])

    np.testing.assert_allclose(logits[0, :5], record["logits_first5"], rtol=1e-9)
    np.testing.assert_allclose(logits.sum(), record["logits_sum"], rtol=1e-8)
    np.testing.assert_allclose(logits.norm(), record["logits_l2"], rtol=1e-9)
    for taps, recorded in ((card.stages, "feature_l2"), (card.stage_inputs, "preact_l2")):
        assert [list(seen[tap].shape[1:]) for tap in taps] == record["feature_shapes"]
        np.testing.assert_allclose([seen[tap].norm() for tap in taps], record[recorded], rtol=1e-9)
    assert torch.equal(again, logits)


@pytest.mark.parametrize("name", ["resnet8x4", *(name for name in FAMILIES if "Shuffle" not in name)])
def test_initialisation_is_the_benchmarks(name):
    network = create(f"cifar:{name}", seed=3).network
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            error = 5 / np.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(np.sqrt(2 / fan_out), rel=error)
            assert module.bias is None or torch.all(module.bias == 0)
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1)
            assert torch.all(module.bias == 0)
        elif isinstance(module, nn.Linear):
            assert torch.all(module.bias == 0) == isinstance(network, WideResNet | VGG | MobileNetV2)
            small = 0.01 if isinstance(network, VGG | MobileNetV2) else 1 / np.sqrt(3 * module.in_features)
            assert module.weight.std().item() == pytest.approx(small, rel=0.05)


@pytest.mark.parametrize("name", ["ShuffleV1", "ShuffleV2"])
def test_the_shuffle_networks_start_as_torch_has_it(name):
    network = create(f"cifar:{name}", seed=3).network
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / np.sqrt(module.weight[0].numel())
            assert 0.8 * bound < module.weight.abs().max().item() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("size", [(28, 28), (32, 48), (64, 64), (7, 9)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_sizes_and_channels(size, channels):
    classifier = create("cifar:resnet8", classes=11, channels=channels, image_size=size)
    assert classifier(torch.rand(2, channels, *size)).shape == (2, 11)
    assert classifier.card.image_size == size
    assert len(classifier.card.mean) == channels
    assert classifier.card.mean == ((0.5071, 0.4867, 0.4408) if channels == 3 else (0.5,) * channels)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_other_sizes_and_channels(name):
    network = create(f"cifar:{name}", classes=11, channels=1).network
    for size in ((28, 28), (9, 13), (64, 64), (1, 7)):
        images = torch.rand(2, 1, *size)
        if isinstance(network, VGG) and min(size) < 8:
            with refused(InvalidValueError, "inputs", got="1x7"):
                network(images)
        else:
            assert network(images).shape == (2, 11)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_of_other_classes_gets_a_fresh_head(name, tmp_path):
    torch.save(create(f"cifar:{name}", classes=7, seed=1).network.state_dict(), tmp_path / "seven.pth")
    classifier = create(f"cifar:{name}", classes=5, weights=tmp_path / "seven.pth")
    assert classifier.card.fresh_head
    assert classifier(torch.rand(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("name", FAMILIES)
def test_activations_overwrite_nothing_that_a_hook_recorded(name):
    network = create(f"cifar:{name}").network
    seen = []
    for module in network.modules():
        module.register_forward_hook(lambda _, __, out: seen.append((out, out.detach().clone())))
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    assert len(seen) > 10
    assert all(torch.equal(kept, copied) for kept, copied in seen)
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_shuffle_networks_join_activates_its_second_half_and_takes_turns():
    branches = torch.tensor([1.0, -2.0, -3.0, 4.0]).reshape(1, 4, 1, 1)
    assert Join()(branches).flatten().tolist() == [1.0, 0.0, -2.0, 4.0]


def test_a_depth_of_another_form_is_refused():
    with refused(InvalidValueError, "depth", got=21):
        basic_blocks(21)
    with refused(InvalidValueError, "depth", got=4, suggests="depth=16"):
        WideResNet(4, 1, classes=10, channels=3)


def test_a_name_given_twice_is_refused():
    with refused(InvalidValueError, "entries", got="'resnet8'"):
        table(ENTRIES, ENTRIES[:1])


def test_a_table_keeps_its_families_order():
    assert list(table(ENTRIES[3:], ENTRIES[:3])) == [entry.name for entry in ENTRIES[3:] + ENTRIES[:3]]
