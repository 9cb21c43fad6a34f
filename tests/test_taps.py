import copy
import gc
from types import SimpleNamespace

import pytest
import torch
import torchvision
from tests._helpers.refusals import refused
from torch import nn

from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.submodules import layers_of
from tutelage.taps import Taps, feature_shapes, find, find_all


class Small(nn.Module):
    """A network with a module that runs twice, one in place, one never, one with a tuple, and one overwritten later."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Linear(6, 6)
        self.unused = nn.Linear(2, 2)
        self.pair = Pair()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.act(self.first(x))
        x, _ = self.pair(self.act(self.second(x)))
        return self.head(x)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = self.layer(x)
        y += 1
        return self.head(y)


def carded(network, **places):
    card = {"stages": (), "stage_inputs": (), "embedding": None, "name": "toy:small", **places}
    network.card = SimpleNamespace(**card)
    return network


def listen(network, name):
    return Taps(network, [name])(network, torch.randn(2, 4))


def test_outputs_and_inputs_of_submodules_are_recorded():
    network, x = Small(), torch.randn(5, 4)
    outputs, seen = Taps(network, ["first", "head:input", "first"])(network, x)
    assert torch.equal(outputs, network(x))
    assert set(seen) == {"first", "head:input"}
    assert torch.equal(seen["first"], network.first(x))
    assert torch.equal(network.head(seen["head:input"]), outputs)


def test_an_activation_in_place_does_not_overwrite_what_was_taken():
    network, x = Small(), torch.randn(50, 4)
    before = copy.deepcopy(network)(x)
    outputs, seen = Taps(network, ["first", "second"])(network, x)
    assert (seen["first"] < 0).any()
    assert (seen["second"] < 0).any()
    assert torch.equal(outputs, before)


def test_a_module_that_runs_twice_gives_its_last_call():
    network, x = Small(), torch.randn(5, 4)
    _, seen = Taps(network, ["act"])(network, x)
    assert torch.equal(seen["act"], network.second(network.first(x).relu()).relu())


def test_features_carry_gradients():
    network = Small()
    _, seen = Taps(network, ["first"])(network, torch.randn(5, 4))
    seen["first"].sum().backward()
    assert network.first.weight.grad is not None


def test_without_names_the_network_is_just_called():
    network, x = Small(), torch.randn(5, 4)
    outputs, seen = Taps(network, [])(network, x)
    assert torch.equal(outputs, network(x))
    assert seen == {}
    assert network.act.inplace


def test_nothing_is_kept_of_calls_that_do_not_go_through_the_taps():
    network = Small()
    taps = Taps(network, ["first"])
    network(torch.randn(7, 4))
    _, seen = taps(network, torch.randn(5, 4))
    assert len(seen["first"]) == 5


def test_the_hooks_go_with_the_taps():
    network = Small()
    taps = Taps(network, ["first", "head:input"])
    assert network.first._forward_hooks
    assert network.head._forward_pre_hooks
    del taps
    gc.collect()
    assert not network.first._forward_hooks
    assert not network.head._forward_pre_hooks


def test_two_taps_do_not_record_for_each_other():
    network = Small()
    first, second = Taps(network, ["first"]), Taps(network, ["second"])
    assert set(first(network, torch.randn(2, 4))[1]) == {"first"}
    assert set(second(network, torch.randn(2, 4))[1]) == {"second"}


def test_an_unknown_name_is_answered_with_the_nearest():
    with refused(InvalidValueError, "tap secnd", got="'secnd'", suggests="second"):
        find(Small(), "secnd")
    with refused(InvalidValueError, "tap zzz:input", got="'zzz:input'", suggests="first"):
        find(Small(), "zzz:input")


def test_the_cards_places():
    network = carded(Small(), stages=("first", "act", "head:input"), stage_inputs=("first", "second", "head:input"))
    network.card.embedding = "head:input"
    assert find(network, "card:embedding") == (network.head, True)
    assert find(network, "card:stage.0") == (network.first, False)
    assert find(network, "card:stage.-1") == (network.act, False)
    assert find(network, "card:before.-1") == (network.second, False)


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("card:stage.2", 2),
        ("card:stage.-3", -3),
        ("card:embedding", "toy:small"),
        ("card:stage", "'card:stage'"),
        ("card:stages.1", "'card:stages.1'"),
        ("card:stage.x", "'card:stage.x'"),
    ],
)
def test_places_that_the_card_does_not_name(name, got):
    with refused(InvalidValueError, f"tap {name}", got=got):
        find(carded(Small(), stages=("first", "act", "head:input")), name)


def test_a_bare_module_has_no_card():
    with refused(InvalidValueError, "tap card:embedding"):
        find(Small(), "card:embedding")


def test_a_module_that_does_not_run_or_gives_no_tensor_is_named():
    with refused(InvalidValueError, "tap unused"):
        listen(Small(), "unused")
    with refused(InvalidTypeError, "tap pair", got="tuple"):
        listen(Small(), "pair")


def test_a_survey_gives_shapes_and_leaves_the_network_as_it_was():
    network = torchvision.models.resnet18(num_classes=5).train()
    network.layer1.eval()
    state = copy.deepcopy(network.state_dict())
    shapes = feature_shapes(network, ["layer2", "fc:input"], torch.rand(2, 3, 64, 64))
    assert shapes == {"layer2": (128, 8, 8), "fc:input": (512,)}
    assert [m.training for m in (network, network.layer1, network.layer2)] == [True, False, True]
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_a_survey_refuses_a_feature_that_is_changed_in_place():
    with refused(InvalidValueError, "tap layer"):
        feature_shapes(Overwriting(), ["layer"], torch.randn(2, 4))
    # torchvision's blocks add the shortcut in place
    with refused(InvalidValueError, "tap layer4.1.bn2"):
        feature_shapes(torchvision.models.resnet18(num_classes=5), ["layer4.1.bn2"], torch.rand(2, 3, 64, 64))


def test_a_survey_of_nothing_does_not_call_the_network():
    assert feature_shapes(nn.Linear(3, 3), [], torch.empty(0)) == {}


def test_a_copy_of_a_network_and_its_listener_hears_for_itself():
    network = Small()
    holder = nn.Module()
    holder.network, holder.taps = network, Taps(network, ["first"])
    copied = copy.deepcopy(holder)
    x = torch.randn(3, 4)
    with torch.no_grad():
        copied.network.first.weight.zero_()
    _, theirs = copied.taps(copied.network, x)
    _, ours = holder.taps(network, x)
    assert torch.equal(theirs["first"], copied.network.first.bias.expand(3, -1))
    assert not torch.equal(ours["first"], theirs["first"])


def test_a_network_that_is_listened_to_can_be_saved_whole(tmp_path):
    network = Small()
    taps = Taps(network, ["first", "head:input"])
    torch.save(network, tmp_path / "network.pt")
    assert taps(network, torch.randn(2, 4))[1].keys() == {"first", "head:input"}


def test_another_word_behind_the_colon_is_no_place():
    with refused(InvalidValueError, "tap first:inputs", got="'first:inputs'"):
        find(Small(), "first:inputs")


def test_a_network_in_place_of_the_first_is_called():
    """A wrapper that calls the network, such as a compiled one."""
    network, x = Small(), torch.randn(2, 4)
    taps = Taps(network, ["first"])
    outputs, seen = taps(nn.Sequential(network, nn.Softmax(-1)), x)
    assert torch.equal(outputs, network(x).softmax(-1))
    assert torch.equal(seen["first"], network.first(x))


class Blocks(nn.Module):
    """Eleven layers of two encoders, and one without a number."""

    def __init__(self, *lists):
        super().__init__()
        self.first = nn.Linear(2, 2)
        for path in lists:
            holder = self
            *above, last = path.split(".")
            for name in above:
                if not hasattr(holder, name):
                    holder.add_module(name, nn.Module())
                holder = holder.get_submodule(name)
            holder.add_module(last, nn.ModuleList(nn.Linear(2, 2) for _ in range(11)))
        self.lists = lists

    def forward(self, x):
        x = self.first(x)
        for path in self.lists:
            for layer in self.get_submodule(path):
                x = layer(x)
        return x


@pytest.mark.parametrize("pattern", ["*", "layer.*", "encoder.layer.*", "bert.encoder.layer.*"])
def test_a_pattern_is_all_layers_in_the_order_of_their_numbers(pattern):
    network = Blocks("bert.encoder.layer")
    paths = [f"bert.encoder.layer.{k}" for k in range(11)]
    assert list(find_all(network, ["first", pattern])) == ["first", *paths]
    assert list(find_all(network, [f"{pattern}:input"])) == [f"{path}:input" for path in paths]
    _, features = Taps(network, [pattern, paths[2]])(network, torch.zeros(1, 2))
    assert sorted(features) == sorted(paths)
    assert layers_of(pattern, reversed(paths)) == {"bert.encoder.layer.*": paths}


@pytest.mark.parametrize(
    ("pattern", "got", "suggests"),
    [
        ("layer.*", "2", ["encoder.layer.*", "decoder.layer.*"]),
        ("*", "2", ["encoder.layer.*", "decoder.layer.*"]),
        ("encoder.layers.*", "'encoder.layers.*'", "encoder.layer.*"),
        ("coder.layer.*", "'coder.layer.*'", "encoder.layer.*"),
    ],
)
def test_a_pattern_of_several_or_of_none_is_refused_with_those_that_there_are(pattern, got, suggests):
    with refused(InvalidValueError, f"tap {pattern}", got=got, suggests=suggests):
        find_all(Blocks("encoder.layer", "decoder.layer"), [pattern])


def test_a_whole_pattern_counts_before_those_that_end_with_it():
    assert list(find_all(Blocks("layer", "bert.layer"), ["layer.*"])) == [f"layer.{k}" for k in range(11)]


def test_a_network_without_numbers_has_no_patterns():
    with refused(InvalidValueError, "tap *", got="'*'"):
        find_all(Small(), ["*"])


def test_a_numbered_layer_may_return_a_tuple_whose_first_is_taken():
    """As layers of older versions of transformers do."""
    network = nn.Sequential(nn.Linear(2, 2), Pair())
    _, features = Taps(network, ["1"])(network, torch.ones(1, 2))
    assert features["1"].shape == (1, 2)
