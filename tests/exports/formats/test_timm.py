"""Folders that timm makes the network of: the same logits, the same inputs, the names of the classes."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from tutelage import models
from tutelage.errors import InvalidValueError
from tutelage.exports.formats import timm as format_
from tutelage.exports.source import Source
from tutelage.models.card import Card

NAMES = ("cat", "dog", "emu")


def source(model, *, size=None, names=NAMES, **more):
    size = size or model.card.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = torch.rand(3, model.card.channels, *size)
    return Source(classifier=model.eval(), inputs=inputs, class_names=names, metadata={}, **more)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:test_resnet", {"image_size": (40, 60), "channels": 2}),
        ("timm:test_vit", {"image_size": (32, 32), "channels": 1}),  # of a fixed size
    ],
)
@torch.no_grad()
def test_timm_makes_the_student_of_the_folder_alone(tmp_path, name, options):
    made = source(models.create(name, classes=3, **options))
    made.classifier.to(memory_format=torch.channels_last)  # which no file of safetensors holds
    format_.write(made, tmp_path / "x")
    torch.testing.assert_close(format_.reopen(tmp_path / "x")(made.inputs), made.logits(made.inputs), rtol=0, atol=1e-6)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["label_names"] == list(NAMES)
    network = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True)
    assert network.pretrained_cfg["label_names"] == list(NAMES)
    assert "license" not in config["pretrained_cfg"]  # that of weights which the student has not


@pytest.mark.parametrize("margin", [1.0, 1 / 0.95, 1.2])  # copies of an even size: of others the centres differ
def test_timms_transform_cuts_the_view_that_the_student_is_evaluated_on(tmp_path, margin):
    model = models.create("timm:test_resnet", classes=3, image_size=(32, 32))
    model = models.Classifier(model.network, models.Card(**{**vars(model.card), "margin": margin}))
    format_.write(source(model), tmp_path / "x")
    network = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True)
    config = timm.data.resolve_model_data_config(network)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    theirs = timm.data.create_transform(**config)(picture)
    seen = []
    model.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.eval().predict(picture)
    torch.testing.assert_close(theirs, seen[0][0], rtol=0, atol=1e-5)


def test_what_timm_did_not_make_is_refused_before_anything_is_written(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    own = models.Classifier(network, Card(name="object:mine", classes=3))
    with pytest.raises(InvalidValueError, match=r"to: .* a network of timm, got object:mine; type --to onnx"):
        format_.write(source(own, size=(2, 2)), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@torch.no_grad()
def test_a_network_of_timm_that_was_handed_in_is_not_normalised(tmp_path):
    network = timm.create_model("test_resnet", num_classes=3)
    made = source(models.Classifier(network, Card(name="object:mine", classes=3)), size=(32, 32))
    format_.write(made, tmp_path / "x")
    torch.testing.assert_close(format_.reopen(tmp_path / "x")(made.inputs), made.logits(made.inputs), rtol=0, atol=0)
