import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision import models as vision

from tutelage.models import adopt, create
from tutelage.models.structure import Structure, read

NETWORKS = {
    # name: (stages, those of them with another tap before their activation)
    "timm:resnet18": (
        ["act1", "layer1", "layer2", "layer3", "layer4"],
        ["act1:input", *(f"layer{k}.1.act2:input" for k in (1, 2, 3, 4))],
    ),
    "timm:resnet26": (
        ["act1", "layer1", "layer2", "layer3", "layer4"],
        ["act1:input", *(f"layer{k}.1.act3:input" for k in (1, 2, 3, 4))],
    ),
    "timm:mobilenetv1_100": ([f"blocks.{k}" for k in range(5)], []),
    "timm:tf_efficientnet_lite0": (["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"], []),
    "timm:deit_tiny_patch16_224": ([f"blocks.{k}" for k in range(12)], []),
    "timm:convnext_atto": ([f"stages.{k}" for k in range(4)], []),
    "timm:swin_tiny_patch4_window7_224": ([], []),
    "timm:tresnet_m": ([f"body.layer{k}" for k in (1, 2, 3, 4)], []),
    "torchvision:resnet18": (
        ["relu", "layer1", "layer2", "layer3", "layer4"],
        ["relu:input", *(f"layer{k}.1.relu:input" for k in (1, 2, 3, 4))],
    ),
    "torchvision:resnet50": (
        ["relu", "layer1", "layer2", "layer3", "layer4"],
        ["relu:input", "layer1.2.relu:input", "layer2.3.relu:input", "layer3.5.relu:input", "layer4.2.relu:input"],
    ),
    "torchvision:mobilenet_v2": ([f"features.{k}" for k in (1, 3, 6, 13, 18)], []),
    "torchvision:mobilenet_v3_small": ([f"features.{k}" for k in (0, 1, 3, 8, 12)], []),
    "torchvision:efficientnet_b0": ([f"features.{k}" for k in (1, 2, 3, 5, 8)], []),
    "torchvision:vgg11": (
        [f"features.{k}" for k in (1, 4, 9, 14, 19)],
        [f"features.{k}:input" for k in (1, 4, 9, 14, 19)],
    ),
    "torchvision:densenet121": (
        ["features.relu0", *(f"features.denseblock{k}" for k in (1, 2, 3, 4))],
        ["features.relu0:input"],
    ),
    "torchvision:shufflenet_v2_x0_5": (["stage2", "stage3", "stage4"], []),
    "torchvision:vit_b_32": ([f"encoder.layers.encoder_layer_{k}" for k in range(12)], []),
    "torchvision:swin_t": ([], []),
    "torchvision:googlenet": ([], []),
}


def library_network(name):
    """The library's network without weights, which has shapes alone and so costs no time."""
    source, _, architecture = name.partition(":")
    with torch.device("meta"):
        if source == "timm":
            return timm.create_model(architecture)
        options = {"aux_logits": False, "init_weights": False} if architecture == "googlenet" else {}
        return vision.get_model(architecture, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_taps_of_a_librarys_network(name, watch):
    network = library_network(name).eval()
    stages, before = NETWORKS[name]
    structure = read(network, classes=1000)
    assert structure.embedding == f"{structure.head}:input"
    assert structure.stages == (*stages, structure.embedding)
    assert len(structure.stage_inputs) == len(structure.stages)
    assert structure.stage_inputs[-1] == structure.embedding
    assert [b for a, b in zip(structure.stages, structure.stage_inputs, strict=True) if a != b] == before

    head = []
    network.get_submodule(structure.head).register_forward_hook(lambda _, __, out: head.append(out))
    images = torch.empty(2, 3, 224, 224, device="meta")
    logits, seen = watch(network, (*structure.stages, *structure.stage_inputs), images)
    assert len(head) == 1
    assert head[0] is logits
    for after, first in zip(structure.stages, structure.stage_inputs, strict=True):
        assert seen[after].shape == seen[first].shape
    assert seen[structure.embedding].shape == (2, network.get_submodule(structure.head).in_features)
    axes = {seen[stage].dim() for stage in stages}
    assert axes <= {4} or axes == {3}
    sides = [seen[stage].shape[-1] for stage in stages if seen[stage].dim() == 4]
    assert sides == sorted(sides, reverse=True)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_the_head_reads_the_embedding_and_stages_are_activated_preactivations(name, watch):
    classifier = create(name, classes=7).eval()
    network, card = classifier.network, classifier.card
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # the last of a block may start at 0
                module.weight.normal_()
        logits, seen = watch(network, (*card.stages, *card.stage_inputs), torch.randn(2, 3, 64, 64))
        assert torch.equal(network.get_submodule(card.head)(seen[card.embedding]), logits)
    for after, before in zip(card.stages[:-1], card.stage_inputs[:-1], strict=True):
        assert torch.equal(seen[after], seen[before].relu())
        assert (seen[before] < 0).any()


def test_a_fresh_head_is_a_head_too(tmp_path):
    torch.save(create("timm:mobilenetv3_small_050", classes=10).network.state_dict(), tmp_path / "x.pth")
    card = create("timm:mobilenetv3_small_050", classes=4, weights=tmp_path / "x.pth").card
    assert card.fresh_head
    assert card.head == "classifier"
    assert card.stages[-1] == card.embedding == "classifier:input"


@pytest.mark.parametrize(
    "name",
    ["timm:deit_tiny_distilled_patch16_224", "timm:volo_d1_224", "timm:resnetv2_50", "torchvision:squeezenet1_1"],
)
def test_a_network_without_one_linear_head_has_no_taps(name):
    assert read(library_network(name), classes=1000) == Structure()


class TestOwn:
    """Modules of a user's own."""

    def test_the_last_linear_layer_of_as_many_values_as_classes(self):
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 9))
        assert read(network, classes=3) == Structure(("3:input",), ("3:input",), "3:input", "3")
        assert read(network, classes=5) == Structure()

    def test_stages_by_their_number(self):
        class Mine(nn.Module):
            def __init__(self):
                super().__init__()
                self.relu = nn.ReLU()
                self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
                self.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
                self.layer3 = nn.Linear(4, 5)
                self.fc = nn.Linear(5, 2)

        structure = read(Mine(), classes=2)
        assert structure.stages == ("relu", "layer1", "layer2", "fc:input")
        assert structure.stage_inputs == ("relu:input", "layer1", "layer2", "fc:input")

    def test_a_body_of_the_libraries_is_known_within_ones_own_head(self):
        network = vision.resnet18()
        network.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 5))
        card = adopt(network, classes=5).card
        assert card.stages == ("relu", "layer1", "layer2", "layer3", "layer4", "fc.2:input")
        assert card.head == "fc.2"

    def test_one_resolution_is_no_stages(self):
        network = nn.Sequential()
        network.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        network.classifier = nn.Linear(4, 2)
        assert read(network, classes=2).stages == ("classifier:input",)

    def test_a_transformer_of_another_number_of_blocks(self):
        network = VisionTransformer(img_size=32, embed_dim=8, depth=3, num_heads=2, num_classes=4)
        assert read(network, classes=4).stages == ("blocks.0", "blocks.1", "blocks.2", "head:input")


def test_nothing_is_called_or_changed():
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 3)

        def forward(self, x):
            raise AssertionError

    network = Fragile()
    assert read(network, classes=3).head == "fc"
    assert not network.fc._forward_hooks
    assert not network.fc._forward_pre_hooks
