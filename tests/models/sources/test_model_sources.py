import errno
import os

import pytest
import timm
import torch
import torchvision
from tests._helpers.refusals import refused

from tutelage.errors import InvalidValueError, MissingExtraError, NetworkError, StorageError
from tutelage.models import create, fingerprint, parameters
from tutelage.models.sources import timm as timm_source
from tutelage.models.sources import torchvision as torchvision_source
from tutelage.models.spec import ModelRequest

SOURCES = {"timm": timm_source, "torchvision": torchvision_source}
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_untagged(name):
    classifier = create(name).eval()
    assert classifier.card.weights is None
    assert classifier.card.classes == 1000
    assert classifier.card.mean == (0.485, 0.456, 0.406)
    assert classifier.card.image_size == (224, 224)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (classifier.card.mean, classifier.card.std))
    torch.testing.assert_close(classifier(IMAGES), classifier.network((IMAGES - mean) / std))
    assert create(name, classes=7)(IMAGES).shape == (2, 7)


def test_they_are_the_libraries_own_networks():
    ours, theirs = create("timm:resnet18").network, timm.create_model("resnet18")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert type(create("torchvision:resnet18").network) is torchvision.models.ResNet


@pytest.mark.parametrize(
    ("name", "body", "head"),
    [
        ("timm:resnet18", "conv1.weight", "fc"),
        ("timm:resnet18.a1_in1k", "conv1.weight", "fc"),
        ("torchvision:resnet18", "conv1.weight", "fc"),
        ("torchvision:resnet18.IMAGENET1K_V1", "conv1.weight", "fc"),
        ("torchvision:mobilenet_v3_small", "features.0.0.weight", "classifier.3"),
        ("torchvision:squeezenet1_1", "features.0.weight", "classifier.1"),
        ("timm:mobilenetv3_small_050", "conv_stem.weight", "classifier"),
    ],
)
def test_fine_tuning_from_a_local_file(tmp_path, name, body, head):
    path = tmp_path / "x.pth"
    source = create(name.partition(".")[0], classes=10, seed=3)
    torch.save({"state_dict": source.network.state_dict()}, path)

    kept = create(name, classes=10, weights=path)
    assert fingerprint(kept) == fingerprint(source)
    assert kept.card.weights == "x.pth"
    assert not kept.card.fresh_head

    tuned = create(name, classes=4, weights=path)
    state = tuned.network.state_dict()
    assert torch.equal(state[body], source.network.state_dict()[body])
    assert state[f"{head}.weight"].shape[0] == 4
    assert tuned.card.classes == 4
    assert tuned.card.fresh_head
    assert tuned.card.class_names is None
    assert tuned.eval()(IMAGES).shape == (2, 4)


def test_timm_tags_card_holds_what_its_configuration_says(tmp_path):
    torch.save(create("timm:resnet18").network.state_dict(), tmp_path / "x.pth")
    card = create("timm:resnet18.a1_in1k", weights=tmp_path / "x.pth").card
    config = timm.get_pretrained_cfg("resnet18.a1_in1k")
    assert (card.mean, card.std, card.classes) == (config.mean, config.std, config.num_classes)
    assert card.image_size == config.input_size[1:]
    assert card.licence == config.license
    assert card.source == f"https://huggingface.co/{config.hf_hub_id}"
    assert card.name == "timm:resnet18.a1_in1k"
    assert card.margin == pytest.approx(1 / config.crop_pct)


def test_torchvision_tags_card_holds_what_its_transforms_say(tmp_path):
    torch.save(create("torchvision:resnet18").network.state_dict(), tmp_path / "x.pth")
    card = create("torchvision:resnet18.IMAGENET1K_V1", weights=tmp_path / "x.pth").card
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    assert card.class_names == tuple(weights.meta["categories"])
    assert card.mean == tuple(weights.transforms().mean)
    assert card.source == weights.url
    assert card.margin == pytest.approx(256 / 224)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "tag", "size", "statistics", "crop"),
    [
        *((f"torchvision:resnet{n}", "IMAGENET1K_V1", n, IMAGENET, 224 / 256) for n in (18, 34, 50, 101, 152)),
        ("timm:mobilenetv1_100", "ra4_e3600_r224_in1k", 4_231_976, HALF, 0.875),
        ("timm:deit_tiny_patch16_224", "fb_in1k", 5_717_416, IMAGENET, 0.9),
        ("timm:deit3_small_patch16_224", "fb_in22k_ft_in1k", 22_059_496, IMAGENET, 1.0),
    ],
)
def test_networks_of_the_papers_imagenet_tables(name, tag, size, statistics, crop):
    published = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
    request = ModelRequest()
    plan = SOURCES[name.partition(":")[0]].plan
    plain, tagged = (plan(full.partition(":")[2], request) for full in (name, f"{name}.{tag}"))
    assert plain.fetch is None
    assert plain.card.weights is None
    assert tagged.fetch is not None
    assert tagged.card.weights == tag
    for card in (plain.card, tagged.card):
        assert (card.classes, card.channels, card.image_size) == (1000, 3, (224, 224))
        assert (card.mean, card.std) == statistics
    assert tagged.card.margin == pytest.approx(1 / crop)
    with torch.device("meta"):
        network = plain.build(classes=1000)
        assert parameters(network) == published.get(size, size)
        assert network.eval()(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    dropped = [getattr(module, "drop_prob", None) or getattr(module, "p", None) for module in network.modules()]
    assert not any(isinstance(rate, float) and rate > 0 for rate in dropped)


def test_timms_mobilenetv1_is_the_plain_one():
    with torch.device("meta"):
        network = timm.create_model("mobilenetv1_100").eval()
    seen = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda conv, _, out: seen.append((conv.kernel_size[0], conv.groups > 1, *out.shape[1:3]))
            )
    network(torch.empty(1, 3, 224, 224, device="meta"))
    widths = [(64, 112), (128, 56), (128, 56), (256, 28), (256, 28), *[(512, 14)] * 6, (1024, 7), (1024, 7)]
    expected, before = [(3, False, 32, 112)], 32
    for width, side in widths:
        expected += [(3, True, before, side), (1, False, width, side)]
        before = width
    assert seen == expected


@pytest.mark.parametrize("channels", [1, 4])
def test_timm_takes_other_channels(channels):
    classifier = create("timm:resnet18", classes=5, channels=channels)
    assert classifier(torch.rand(2, channels, 64, 64)).shape == (2, 5)
    assert classifier.card.mean == pytest.approx((0.449,) * channels)


def test_torchvision_takes_three_channels_alone():
    with refused(InvalidValueError, "channels", got=1):
        create("torchvision:resnet18", channels=1)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_32"])
def test_transformers_are_made_for_the_size_that_is_asked(name):
    classifier = create(name, classes=5, image_size=(64, 64))
    assert classifier.eval()(IMAGES).shape == (2, 5)
    assert classifier.card.image_size == (64, 64)


@pytest.mark.parametrize("name", ["torchvision:googlenet", "torchvision:inception_v3"])
def test_auxiliary_heads_are_left_out(name):
    classifier = create(name, classes=5).train()
    assert classifier(torch.rand(2, 3, 128, 128)).shape == (2, 5)


def test_a_tag_must_exist():
    with refused(InvalidValueError, "model", got="'timm:resnet18.a9_in1k'", suggests="timm:resnet18.a1_in1k"):
        create("timm:resnet18.a9_in1k")
    with refused(
        InvalidValueError, "model", got="'torchvision:resnet18.V9'", suggests="torchvision:resnet18.IMAGENET1K_V1"
    ):
        create("torchvision:resnet18.V9")


def test_weights_without_a_head_ask_for_classes():
    with refused(InvalidValueError, "classes", suggests="classes=10"):
        create("timm:vit_small_patch14_dinov2.lvd142m")


@pytest.mark.parametrize("name", ["timm:resnet18.a1_in1k", "torchvision:resnet18.IMAGENET1K_V1"])
def test_weights_that_cannot_be_fetched(no_network, name):
    with refused(NetworkError, "model", suggests=["weights=path", name.partition(".")[0]]) as caught:
        create(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_weights_that_the_disk_refuses(monkeypatch, code):
    def refuses(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("torchvision.models.get_model", refuses)
    monkeypatch.setattr("tutelage.connection.why_unreachable", lambda url: None)
    name = "torchvision:resnet18.IMAGENET1K_V1"
    with pytest.raises(StorageError) as caught:
        create(name)
    assert (caught.value.exit_code, caught.value.errno) == (1, code)
    assert name in caught.value.what
    assert ("free some space" if code == errno.ENOSPC else "TORCH_HOME") in caught.value.instead


def test_timm_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with refused(MissingExtraError, "model", suggests="pip install 'tutelage[timm]'"):
        create("timm:resnet18")


class TestSegmenting:
    """Networks of torchvision's that give each pixel a class."""

    def test_logits_are_the_librarys_and_both_last_layers_are_replaced(self, tmp_path):
        from torchvision.models import get_model

        network = create("torchvision:lraspp_mobilenet_v3_large", classes=4, task="pixels").eval()
        library = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=4).eval()
        library.load_state_dict(network.network.state_dict())
        images = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = library(network.normalise(images))["out"].movedim(1, -1)
            assert torch.allclose(network(images), expected, rtol=0, atol=1e-6)
        torch.save(library.state_dict(), path := tmp_path / "weights.pth")
        other = create("torchvision:lraspp_mobilenet_v3_large", classes=7, weights=path, task="pixels")
        assert other.card.fresh_head
        with torch.no_grad():
            assert other.eval()(images).shape == (1, 40, 56, 7)

    def test_each_kind_is_refused_in_the_others_place(self):
        for name, task in (("lraspp_mobilenet_v3_large", "classes"), ("resnet18", "pixels")):
            with refused(InvalidValueError, "model", got=f"torchvision:{name}"):
                create(f"torchvision:{name}", classes=4, task=task)
        for name in ("cifar:resnet8", "mlp:8", "timm:resnet18"):
            with refused(InvalidValueError, "model", got=name):
                create(name, classes=4, task="pixels")
