import contextlib
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from tests._helpers.refusals import refused
from torch import nn

from tutelage import taps
from tutelage.errors import InvalidValueError
from tutelage.models import Card, Classifier, adopt, create
from tutelage.models.structure import head_classes, read, replace_head
from tutelage.submodules import (
    Head,
    evaluation_mode,
    find_head,
    input_of,
    is_tap,
    repeated_blocks,
    split_tap,
    unwrapped,
)


def on_meta(name, **options):
    """A network of timm without weights."""
    with torch.device("meta"):
        return timm.create_model(name, **options)


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


class TestTap:
    @pytest.mark.parametrize(
        ("tap", "path", "is_input"),
        [
            ("layer3", "layer3", False),
            ("fc:input", "fc", True),
            # A submodule may be called input itself, or anything that ends like it.
            ("input", "input", False),
            ("input:input", "input", True),
            ("patch.my_input", "patch.my_input", False),
        ],
    )
    def test_a_tap_is_a_path_and_whether_its_input_is_meant(self, tap, path, is_input):
        assert is_tap(tap)
        assert split_tap(tap) == (path, is_input)
        assert not is_input or input_of(path) == tap

    @pytest.mark.parametrize("text", ["", ":input", "fc:", "fc:output", "fc:inputs", "fc:input:input", "a b", "fc\n"])
    def test_other_texts_are_none(self, text):
        assert not is_tap(text)

    def test_a_submodule_called_input_is_found(self):
        network = nn.Sequential()
        network.input, network.body = nn.Linear(2, 2), nn.Linear(2, 2)
        assert taps.find(network, "input") == (network.input, False)
        assert taps.find(network, "input:input") == (network.input, True)

    @pytest.mark.parametrize("name", ["", ":input", "0:input:input"])
    def test_what_names_no_submodule_is_refused(self, name):
        with refused(InvalidValueError, f"tap {name}", suggests="0, 1, 2"):
            taps.find(mlp(), name)


class TestHead:
    def test_a_network_without_a_linear_layer_has_none(self):
        assert find_head(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())) is None
        assert find_head(nn.Identity(), classes=3) is None
        assert head_classes(nn.Identity()) is None

    def test_the_last_of_several_linear_layers(self):
        network = mlp()
        assert find_head(network) == Head("2", network[2], candidates=2)
        assert find_head(network, classes=3) == Head("2", network[2])
        assert find_head(network, classes=6) == Head("0", network[0])
        assert find_head(network, classes=5) is None

    def test_a_head_in_a_sequence(self):
        network = torchvision.models.mobilenet_v3_small(num_classes=5)
        assert find_head(network, classes=5) == Head("classifier.3", network.classifier[3])

    def test_a_convolution_counts_where_the_classes_are_known(self):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        assert find_head(network) is None
        assert find_head(network, classes=5) == Head("1", network[1])
        assert find_head(network, classes=4) is None  # which 3x3 gives
        assert read(network, classes=5).head is None
        replace_head(network, old=5, new=7)
        assert network(torch.rand(2, 3, 8, 8)).shape == (2, 7)

    def test_a_layer_that_is_registered_twice_is_one(self):
        network = nn.Sequential()
        network.first = nn.Linear(4, 4)
        network.again = network.first
        assert find_head(network) == Head("first", network.first)

    def test_layers_that_share_a_weight_are_several(self):
        network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        network[1].weight = network[0].weight
        assert find_head(network, classes=4) == Head("1", network[1], candidates=2)

    def test_timm_says_which(self):
        network = on_meta("vit_tiny_patch16_224", num_classes=5)
        assert find_head(network) == find_head(network, classes=9) == Head("head", network.head)
        weight, bias = taps.head(network)
        assert (weight.shape, bias.shape) == ((5, 192), (5,))

    def test_timm_says_that_it_is_no_layer(self):
        """A normalisation and a linear layer, which the linear layer's weights do not stand for."""
        network = on_meta("levit_128s", distilled=False)
        head = find_head(network)
        assert (head.path, head.classes) == ("head", None)
        with refused(InvalidValueError, "teacher", got="NormLinear"):
            taps.head(network)

    @pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "volo_d1_224"])
    def test_one_of_two_heads_does_not_give_the_logits(self, name):
        network = on_meta(name)
        assert find_head(network) == Head("head", network.head, joint=True)
        assert head_classes(network) == 1000
        for teacher in (network, adopt(network, classes=1000)):
            with refused(InvalidValueError, "teacher"):
                taps.head(teacher)

    def test_the_card_wins(self):
        network = mlp()
        named = Classifier(network, Card(name="mine", classes=6, head="0"))
        assert find_head(named) == find_head(named, classes=3) == Head("network.0", network[0])
        assert torch.equal(taps.head(named)[0], network[0].weight)
        assert find_head(Classifier(network, Card(name="mine", classes=6, head="1.0"))) is None

    def test_the_cards_embedding_is_what_the_head_reads(self):
        network = mlp()
        reads = Card(name="mine", classes=3, stages=("2:input",), embedding="2:input")
        assert find_head(Classifier(network, reads)).layer is network[2]
        # The output of a hidden layer: which layer reads it, the card does not say.
        hidden = Classifier(network, Card(name="mine", classes=3, stages=("0",), embedding="0"))
        assert find_head(hidden).layer is network
        with refused(InvalidValueError, "teacher", got="Sequential"):
            taps.head(hidden)

    def test_a_network_that_is_one_layer(self):
        layer = nn.Linear(4, 3)
        assert find_head(layer) == Head("", layer)
        teacher = adopt(layer)
        assert (teacher.card.classes, teacher.card.head, teacher.card.stages) == (3, None, ())
        for network in (layer, teacher):
            weight, bias = taps.head(network)
            assert torch.equal(weight, layer.weight)
            assert torch.equal(bias, layer.bias)
        with refused(InvalidValueError, "classes", got=5):
            replace_head(layer, old=3, new=5)

    def test_a_classifier_within_another_keeps_its_head(self):
        inner = create("cifar:resnet8", classes=5)
        outer = Classifier(inner, Card(name="mine", classes=5, **read(inner, classes=5)._asdict()))
        assert outer.card.head == "network.fc"
        assert torch.equal(taps.head(outer)[0], inner.network.fc.weight)


def test_what_lies_inside_a_card():
    network = mlp()
    assert unwrapped(network) is network
    assert unwrapped(adopt(network)) is network
    network.card = SimpleNamespace(head=None, embedding=None)
    assert unwrapped(network) is network


def test_every_module_has_its_own_mode_back():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    network[1].eval()
    modes = [module.training for module in network.modules()]
    assert len(set(modes)) == 2
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == modes
    with contextlib.suppress(KeyError), evaluation_mode(network):
        raise KeyError
    assert [module.training for module in network.modules()] == modes


class TestBlocks:
    """The blocks that a network is made of."""

    def test_they_are_the_innermost_children_of_containers_that_have_submodules(self):
        layer = nn.TransformerEncoderLayer(8, 2)
        stage = nn.Module()
        stage.layers = nn.ModuleList([layer])
        network = nn.Sequential(
            nn.Linear(8, 8), nn.ModuleDict({"stage": nn.Sequential(stage)}), nn.Sequential(nn.ReLU())
        )
        assert repeated_blocks(network) == [layer]

    @pytest.mark.parametrize(("name", "count"), [("cifar:resnet20", 9), ("cifar:vgg8", 0), ("cifar:wrn_16_2", 6)])
    def test_those_of_the_published_networks(self, name, count):
        assert len(repeated_blocks(create(name))) == count
