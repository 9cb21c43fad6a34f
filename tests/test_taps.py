import copy
import gc
from types import SimpleNamespace

import pytest
import torch
import torchvision
from tests._helpers.refusals import refused
from torch import nn

from tutelage import models
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


# Local logits

LAST = "head@card:stage.-1"


class Headed(nn.Module):
    """A map, what lies between it and the head, and the head."""

    def __init__(self, *between, after=nn.Identity(), pool=None):  # noqa: B008  it has no state
        super().__init__()
        self.map = nn.Conv2d(3, 5, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1) if pool is None else pool
        self.between, self.after = nn.Sequential(*between), after
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        return self.after(self.fc(self.between(self.pool(self.map(x)).flatten(1))))


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("cifar:resnet8", LAST),
        ("cifar:vgg8", LAST),
        ("cifar:ShuffleV1", LAST),
        ("cifar:wrn_16_1", "head@relu"),
        ("cifar:MobileNetV2", "head@conv2"),
        ("cifar:ShuffleV2", "head@relu2"),
        ("torchvision:resnet18", LAST),
        ("torchvision:mobilenet_v2", LAST),
        ("timm:resnet10t", LAST),
        ("timm:efficientnet_lite0", "head@bn2"),
    ],
)
def test_the_mean_of_local_logits_is_the_networks_logits(name, tap):
    model = models.create(name, classes=5, image_size=(64, 64)).eval()
    images = torch.rand(2, 3, 64, 64)
    (shape,) = feature_shapes(model, [tap], images).values()
    with torch.no_grad():
        logits, features = Taps(model, [tap])(model, images)
    assert shape == features[tap].shape[1:]
    assert shape[0] == 5
    assert min(shape[1:]) > 1
    torch.testing.assert_close(features[tap].mean((2, 3)), logits, rtol=1e-4, atol=1e-5)


def test_where_another_map_is_averaged_the_message_says_which():
    for name, place in (("cifar:wrn_16_1", "relu"), ("cifar:MobileNetV2", "conv2"), ("cifar:ShuffleV2", "relu2")):
        with refused(InvalidValueError, f"tap {LAST}", suggests=f"type head@{place}"):
            feature_shapes(models.create(name, classes=5), [LAST], torch.rand(2, 3, 32, 32))


def test_local_logits_are_the_heads_of_each_cell_and_train_it():
    network = Headed()
    _, features = Taps(network, ["head@map"])(network, IMAGES)
    local = features["head@map"]
    cells = network.map(IMAGES)
    for row, column in ((0, 0), (3, 7)):
        expected = network.fc(cells[:, :, row, column])
        torch.testing.assert_close(local[:, :, row, column], expected)
    wanted = torch.autograd.grad((cells.movedim(1, -1) @ network.fc.weight.T).square().sum(), network.fc.weight)[0]
    bias = network.fc.bias.detach()[None, :, None, None]
    (local - bias).square().sum().backward()
    torch.testing.assert_close(network.fc.weight.grad, wanted)
    assert network.map.weight.grad.abs().sum() > 0


def test_dropout_before_the_head_is_left_out_of_local_logits():
    network = Headed(nn.Dropout(0.9)).train()
    assert feature_shapes(network, ["head@map"], IMAGES) == {"head@map": (4, 8, 8)}
    logits, features = Taps(network, ["head@map"])(network, IMAGES)
    torch.testing.assert_close(features["head@map"].mean((2, 3)), network.fc(network.map(IMAGES).mean((2, 3))))
    assert not torch.allclose(features["head@map"].mean((2, 3)), logits, rtol=0.01)


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return self.scale * x


def emptied(network):
    """A head of zeros gives the same logits for whatever it reads."""
    nn.init.zeros_(network.fc.weight)
    nn.init.zeros_(network.fc.bias)
    return network


@pytest.mark.parametrize(
    ("network", "got"),
    [
        (Headed(pool=nn.AdaptiveMaxPool2d(1)), "the head reads something else"),
        (emptied(Headed(pool=nn.AdaptiveMaxPool2d(1))), "the head reads something else"),
        (Headed(nn.ReLU()), "the head reads something else"),
        (Headed(Scaled(2.0)), "the head reads something else"),
        (Headed(Scaled(nn.Parameter(torch.ones(())))), "Scaled between.0"),
        # As good as nothing where it is fresh, and not once it was trained.
        (Headed(nn.BatchNorm1d(5)), "BatchNorm1d between.0"),
        (Headed(nn.BatchNorm1d(5, affine=False)), "BatchNorm1d between.0"),
        (Headed(after=nn.BatchNorm1d(4)), "BatchNorm1d after"),
        (Headed(after=Scaled(2.0)), "logits that are not just what the head gives"),
    ],
)
def test_a_network_whose_logits_are_not_that_mean_is_refused(network, got):
    network.card = SimpleNamespace(stages=("map",), stage_inputs=("map",), embedding=None, head="fc", name="toy")
    with refused(InvalidValueError, "tap head@map", got=got):
        feature_shapes(network, ["head@map"], IMAGES)


def test_local_logits_need_a_map_and_one_linear_head():
    with refused(InvalidValueError, "tap head@fc:input", got="(5,)", suggests="type head@map"):
        feature_shapes(Headed(), ["head@fc:input"], IMAGES)
    two = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    with refused(InvalidValueError, "tap head@0", got="2 linear layers"):
        find(two, "head@0")
    with refused(InvalidValueError, "tap head@0", got="none"):
        find(nn.Sequential(nn.Conv2d(3, 4, 1)), "head@0")
    with refused(InvalidValueError, "tap head@mapp", suggests="map"):
        find(Headed(), "head@mapp")


def test_local_logits_are_of_the_classes_that_a_classifier_keeps():
    card = models.Card(name="toy", classes=2, stages=("map", "fc:input"), embedding="fc:input", head="fc")
    network = models.Classifier(Headed(), card, outputs=[3, 1])
    assert feature_shapes(network, [LAST], IMAGES) == {LAST: (2, 8, 8)}
    logits, features = Taps(network, [LAST])(network, IMAGES)
    torch.testing.assert_close(features[LAST].mean((2, 3)), logits)


def test_calls_of_the_head_for_local_logits_are_not_heard():
    network = Headed()
    names = ["fc:input", "fc", "head@map", "map"]
    logits, features = Taps(network, names)(network, IMAGES)
    assert features["fc:input"].shape == (3, 5)
    assert features["fc"] is logits
    assert features["map"].shape == (3, 5, 8, 8)
    copied, taps = copy.deepcopy((network, Taps(network, names)))
    nn.init.zeros_(copied.fc.weight)
    nn.init.zeros_(copied.fc.bias)
    assert not taps(copied, IMAGES)[1]["head@map"].any()
    feature_shapes(network, names, IMAGES)
    assert not network._forward_hooks
    assert not nn.modules.module._global_forward_hooks
