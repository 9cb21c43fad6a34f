"""Layer decay: what the layers of networks are, the rate of each, and that it follows the schedule."""

import pytest
import torch
from tests._helpers.captured_cases import capture_on_the_cpu, trained
from tests._helpers.fit_cases import Moving, Rows, fitted, same_bits, samples, seeded, state
from tests._helpers.recorder import Unchanged
from torch import nn

from tutelage import models, objectives
from tutelage.modules import Distiller
from tutelage.settings.fit import SGD, AdamW, FitSettings, LibraryOptimizer
from tutelage.training.layers import layers_of, rates, scales
from tutelage.training.optim import build, optimizer_state


def test_residual_blocks_are_layers():
    layers = layers_of(models.create("cifar:resnet8", classes=4))
    assert max(layers.values()) == 4
    wanted = {"conv1.weight": 0, "bn1.bias": 0, "layer1.0.conv2.weight": 1, "layer3.0.bn1.weight": 3, "fc.weight": 4}
    assert {name: layers[name] for name in wanted} == wanted


def test_timms_networks_say_what_their_layers_are():
    layers = layers_of(models.create("timm:deit_tiny_patch16_224", classes=4))
    wanted = {"patch_embed.proj.weight": 0, "blocks.0.norm1.bias": 1, "blocks.11.mlp.fc2.weight": 12, "head.bias": 13}
    assert {name: layers[name] for name in wanted} == wanted
    assert rates(models.create("timm:deit_tiny_patch16_224", classes=4), [FitSettings()]) is None


def test_without_blocks_each_weight_begins_a_layer():
    layers = layers_of(seeded(Moving))
    assert layers == {
        **dict.fromkeys(("conv.weight", "conv.bias", "norm.weight", "norm.bias"), 0),
        **dict.fromkeys(("deeper.weight", "deeper.bias"), 1),
        **dict.fromkeys(("head.weight", "head.bias"), 2),
    }


def test_a_head_that_is_registered_first_is_the_last_layer():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Linear(4, 3)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))

        def get_classifier(self):
            return self.classifier

    layers = layers_of(HeadFirst())
    assert layers["classifier.weight"] == max(layers.values())
    assert layers["blocks.0.0.weight"] < layers["blocks.1.0.weight"] <= layers["classifier.weight"]


def test_one_layer_has_the_whole_rate():
    assert set(scales(nn.Linear(3, 2), 0.5).values()) == {1.0}


@pytest.mark.parametrize("kind", [SGD, AdamW, lambda **how: LibraryOptimizer("timm:lion", **how)])
def test_each_layer_has_its_share_of_the_rate_and_the_objective_the_whole(kind):
    distiller = Distiller(seeded(Moving), objectives.cross_entropy())
    distiller.objective.register_parameter("learned", nn.Parameter(torch.ones(2, 2)))
    groups = build(kind(lr=0.1, layer_decay=0.5), distiller, fused=False).param_groups
    names = {id(p): name for name, p in distiller.named_parameters()}
    by_name = {names[id(p)]: group for group in groups for p in group["params"]}
    wanted = {"student.conv.weight": 0.25, "student.norm.bias": 0.25, "student.deeper.weight": 0.5}
    wanted |= {"student.head.bias": 1.0, "objective.learned": 1.0}
    assert {name: by_name[name]["lr_scale"] for name in wanted} == wanted
    assert len(by_name) == len(names)
    if kind is AdamW:
        assert by_name["student.conv.bias"]["weight_decay"] == 0.0
        assert by_name["student.conv.weight"]["weight_decay"] == 0.05


@pytest.mark.parametrize("kind", [SGD, AdamW])
@pytest.mark.parametrize("decay", [None, 1])
def test_no_decay_leaves_the_groups_as_they_were(kind, decay):
    module = seeded(Moving)
    groups = optimizer_state(build(kind(layer_decay=decay), module, fused=False))[1]["groups"]
    assert len(groups) == (1 if kind is SGD else 2)
    assert not any("lr_scale" in group or "layer_decay" in group for group in groups)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=False)
    if kind is SGD:
        assert groups == optimizer.state_dict()["param_groups"]


def test_a_step_moves_each_layer_by_its_share():
    """Against SGD without a decay, of which a first step is as long as the rate."""
    rows, students = Rows(*samples(shape=(2, 8, 8)), batch_size=48), [seeded(Moving) for _ in range(2)]
    before, moved = state(students[0]), []
    for student, decay in zip(students, (None, 0.5), strict=True):
        torch.manual_seed(0)
        fitted(student, rows, epochs=1, optimizer=SGD(lr=0.1, layer_decay=decay))
        moved.append({name: state(student)[name] - before[name] for name in before})
    for name, share in {"conv.weight": 0.25, "deeper.weight": 0.5, "head.weight": 1.0}.items():
        torch.testing.assert_close(moved[1][name], moved[0][name] * share, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, layer_decay=0.5), AdamW(lr=0.01, layer_decay=0.5)])
def test_replayed_steps_are_the_eager_ones(optimizer, monkeypatch):
    """Each step has another rate, which is a tensor there."""
    capture_on_the_cpu(monkeypatch)
    with Unchanged():
        eager, _ = trained("kd", captured=False, optimizer=optimizer)
    replayed, operations = trained("kd", captured=True, optimizer=optimizer)
    assert operations > 100
    assert same_bits({k: v.nan_to_num() for k, v in eager.items()}, {k: v.nan_to_num() for k, v in replayed.items()})


@pytest.mark.parametrize("optimizer", [AdamW(lr=0.01, layer_decay=0.5), LibraryOptimizer("timm:muon", layer_decay=0.5)])
def test_resumed_in_an_epoch_has_the_same_bits(optimizer, tmp_path):
    inputs, labels = samples(shape=(2, 8, 8))
    how = {"optimizer": optimizer, "checkpoint_steps": 2}
    whole, stopped, resumed = (seeded(Moving) for _ in range(3))
    torch.manual_seed(4)
    fitted(whole, Rows(inputs, labels, batch_size=8), **how)
    torch.manual_seed(4)
    with pytest.raises(KeyboardInterrupt):
        fitted(stopped, Rows(inputs, labels, batch_size=8, stop_before=(1, 3)), folder=tmp_path, **how)
    fitted(resumed, Rows(inputs, labels, batch_size=8), folder=tmp_path, resume=True, **how)
    assert same_bits(state(resumed), state(whole))


def test_the_manifest_says_how_many_layers_there_are():
    student = models.create("cifar:resnet8", classes=4)
    fits = [FitSettings(optimizer=SGD(layer_decay=0.5)), FitSettings()]
    assert rates(student, fits)._asdict() == {"layers": 5, "smallest_scale": 0.0625}
