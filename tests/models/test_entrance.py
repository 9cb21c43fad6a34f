import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.refusals import refused
from torch import nn
from torch.nn import functional as F

from tutelage import taps
from tutelage.errors import InvalidValueError
from tutelage.models import Card, Classifier, create, save
from tutelage.models.entrance import entrance
from tutelage.models.sources import timm, torchvision
from tutelage.models.spec import ModelRequest


@pytest.fixture
def images():
    return torch.rand(4, 3, 8, 6, generator=torch.Generator().manual_seed(0))


def card(channels=3, size=(8, 6), **fields):
    return Card(name="x", classes=2, channels=channels, image_size=size, **fields)


def test_images_of_the_card_s_shape_are_unchanged(images):
    assert entrance(images, card()) is images
    assert entrance(images, card(size=None)) is images


@pytest.mark.parametrize("size", [(4, 3), (16, 12), (5, 9)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_another_size_is_resampled_without_aliases_and_stays_in_range(images, size, interpolation):
    got = entrance(images.round(), card(size=size, interpolation=interpolation))
    expected = F.interpolate(images.round(), size, mode=interpolation, antialias=True)
    torch.testing.assert_close(got, expected.clamp(0, 1))
    assert got.shape == (4, 3, *size)


def test_a_shrunk_picture_is_pillow_s(images):
    pixels = (images[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    expected = np.asarray(Image.fromarray(pixels).resize((3, 4), Image.Resampling.BILINEAR)) / 255
    got = entrance(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255, card(size=(4, 3)))
    np.testing.assert_allclose(got[0].permute(1, 2, 0), expected, atol=1.01 / 255)


def test_grey_is_repeated_and_colour_weighed_as_pillow_does(images):
    grey = entrance(images, card(channels=1))
    pixels = (images * 255).round().to(torch.uint8)
    for picture, got in zip(pixels, grey, strict=True):
        expected = np.asarray(Image.fromarray(picture.permute(1, 2, 0).numpy()).convert("L")) / 255
        np.testing.assert_allclose(got[0], expected, atol=1.01 / 255)
    colour = entrance(grey, card(channels=3))
    assert all(torch.equal(colour[:, k], grey[:, 0]) for k in range(3))


def test_values_of_half_the_precision_come_back_so_but_are_computed_in_float32(images):
    got = entrance(images.bfloat16(), card(size=(4, 3)))
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, entrance(images.bfloat16().float(), card(size=(4, 3))).bfloat16())


def test_a_classifier_resizes_only_if_it_is_told_to(images):
    classifier = Classifier(nn.Flatten(), card(size=(4, 3)))
    assert classifier(images).shape == (4, 3 * 8 * 6)
    assert classifier.resized_to is None
    classifier.resizes = True
    assert classifier(images).shape == (4, 3 * 4 * 3)
    assert classifier.resized_to == [3, 4, 3]


def test_what_size_was_asked_for():
    assert create("cifar:resnet8").asked_size is None
    assert create("cifar:resnet8").card.image_size == (32, 32)
    assert create("cifar:resnet8", image_size=(8, 8)).asked_size == (8, 8)
    assert Classifier(nn.Flatten(), card()).asked_size == (8, 6)


@pytest.mark.parametrize("outputs", [[2, 0], [1, 1]])
def test_the_logits_of_mapped_classes_are_the_network_s_at_these(images, outputs):
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    mapped = Classifier(network, card(head="1"), outputs=outputs)
    assert torch.equal(mapped(images), network(images)[:, outputs])
    assert not mapped.state_dict().keys() - {"network.1.weight", "network.1.bias"}
    weight, bias = taps.head(mapped)
    assert torch.equal(weight, network[1].weight[outputs])
    torch.testing.assert_close(images.flatten(1) @ weight.T + bias, mapped(images))


def test_a_map_to_outputs_that_the_network_lacks_is_refused(images):
    mapped = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), card(), outputs=[0, 3])
    with refused(InvalidValueError, "outputs", got=3):
        mapped(images)


@pytest.mark.parametrize("outputs", [[0], [0, 1, 2], [0, -1]])
def test_a_map_of_another_length_is_refused(outputs):
    with refused(InvalidValueError, "outputs", got=outputs):
        Classifier(nn.Flatten(), card(), outputs=outputs)


def test_a_name_s_weights_decide_over_its_input(tmp_path):
    folder = tmp_path / "run"
    saved = create("mlp:4", classes=3, channels=1, image_size=(8, 8))
    saved.card = dataclasses.replace(saved.card, class_names=("a", "b", "c"))
    save(saved, folder)
    asked = {"classes": 5, "channels": 3, "image_size": (16, 16)}
    trained = create(str(folder), **asked, as_trained=("classes", "channels", "image_size"))
    assert (trained.card.classes, trained.card.channels, trained.card.image_size) == (3, 1, (8, 8))
    assert trained.card.class_names == ("a", "b", "c")
    assert not trained.card.fresh_head
    random = create("mlp:4", **asked, as_trained=("classes", "channels", "image_size"))
    assert (random.card.classes, random.card.channels, random.card.image_size) == (5, 3, (16, 16))


@pytest.mark.parametrize("name", ["timm:resnet18.a1_in1k", "torchvision:resnet18.IMAGENET1K_V1"])
def test_published_weights_keep_their_input_unless_a_size_is_typed(name):
    source, _, path = name.partition(":")
    pytest.importorskip(source)
    plan = {"timm": timm.plan, "torchvision": torchvision.plan}[source]
    asked = {"classes": 10, "channels": 1, "image_size": (32, 32)}
    every = frozenset(asked)
    card = plan(path, ModelRequest(**asked, as_trained=every)).card
    assert (card.classes, card.channels, card.image_size) == (1000, 3, (224, 224))
    card = plan(path, ModelRequest(**asked, as_trained=every - {"image_size"})).card
    assert (card.channels, card.image_size) == (3, (32, 32))
    # A checkpoint of one's own says nothing of what it was trained with.
    asked["channels"] = 3
    card = plan(path, ModelRequest(**asked, as_trained=every, tagged=False)).card
    assert card.image_size == (32, 32)
