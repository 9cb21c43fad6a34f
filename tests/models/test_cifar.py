import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tutelage.models import create, parameters
from tutelage.models.cifar import NETWORKS
from tutelage.models.cifar_resnet import ENTRIES, BasicBlock, ResNet
from tutelage.models.zoo import table

VECTORS = Path(__file__).parents[2] / ".." / "shared" / "conformance" / "cifar_zoo.json"


def records():
    if not VECTORS.exists():
        return []
    return [record for record in json.loads(VECTORS.read_text()) if record["name"] in NETWORKS]


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


@pytest.mark.skipif(not VECTORS.exists(), reason="the shared conformance vectors are not beside the repository")
def test_every_network_has_a_vector():
    assert {record["name"] for record in records()} == set(NETWORKS)


@pytest.mark.parametrize("record", records(), ids=lambda record: record["name"])
def test_the_benchmark(record):
    classifier = create(f"cifar:{record['name']}")
    network = classifier.network.double().eval()
    assert parameters(network) == record["parameters"] == NETWORKS[record["name"]].parameters
    state = network.state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == record["state_dict"]
    network.load_state_dict(drawn(record, state))

    features, before = {}, {}
    for name in classifier.card.taps:
        tapped = network.get_submodule(name)
        tapped.register_forward_hook(lambda _, __, out, name=name: features.update({name: out}))
        if name.startswith("layer"):
            tapped[-1].relu2.register_forward_pre_hook(lambda _, args, name=name: before.update({name: args[0]}))
    images = torch.from_numpy(np.random.default_rng(7).standard_normal((2, 3, 32, 32)))
    with torch.no_grad():
        logits = network(images)

    np.testing.assert_allclose(logits[0, :5], record["logits_first5"], rtol=1e-9)
    np.testing.assert_allclose(logits.sum(), record["logits_sum"], rtol=1e-8)
    np.testing.assert_allclose(logits.norm(), record["logits_l2"], rtol=1e-9)
    assert [list(f.shape[1:]) for f in features.values()] == record["feature_shapes"]
    np.testing.assert_allclose([f.norm() for f in features.values()], record["feature_l2"], rtol=1e-9)
    np.testing.assert_allclose([f.norm() for f in before.values()], record["preact_l2"][1:4], rtol=1e-9)


def test_initialisation_is_the_benchmarks():
    network = create("cifar:resnet8x4", seed=3).network
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            error = 5 / np.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(np.sqrt(2 / fan_out), rel=error)
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1)
            assert torch.all(module.bias == 0)


@pytest.mark.parametrize("size", [(28, 28), (32, 48), (64, 64), (7, 9)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_sizes_and_channels(size, channels):
    classifier = create("cifar:resnet8", classes=11, channels=channels, image_size=size)
    assert classifier(torch.rand(2, channels, *size)).shape == (2, 11)
    assert classifier.card.image_size == size
    assert len(classifier.card.mean) == channels
    assert classifier.card.mean == ((0.5071, 0.4867, 0.4408) if channels == 3 else (0.5,) * channels)


def test_activations_overwrite_nothing_that_a_hook_recorded():
    network = create("cifar:resnet8").network
    seen = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.ReLU | BasicBlock):
            module.register_forward_hook(lambda _, __, out: seen.append((out, out.detach().clone())))
    network(torch.randn(2, 3, 8, 8))
    assert len(seen) > 10
    assert all(torch.equal(kept, copied) for kept, copied in seen)


def test_a_depth_of_another_form_is_refused():
    with pytest.raises(ValueError, match="depth: expected 6 n"):
        ResNet(21, classes=10, channels=3)


def test_a_name_given_twice_is_refused():
    with pytest.raises(ValueError, match="'resnet8' twice"):
        table(ENTRIES, ENTRIES[:1])


def test_a_table_keeps_its_families_order():
    assert list(table(ENTRIES[3:], ENTRIES[:3])) == [entry.name for entry in ENTRIES[3:] + ENTRIES[:3]]
