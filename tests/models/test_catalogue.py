"""The names of all sources' networks, and which source has a name."""

import json
import subprocess
import sys

import pytest

from tutelage.errors import InvalidValueError
from tutelage.models import catalogue, names
from tutelage.models.sources import cifar, timm, torchvision


def rows(source):
    return [(e.arch, e.parameters, e.size, " ".join(e.tags)) for e in catalogue.read()[source].values()]


@pytest.mark.slow
def test_it_is_what_the_installed_libraries_have():
    pytest.importorskip("timm", reason="the optional package timm is not installed")
    assert rows("cifar") == cifar.catalogued()
    sources = {"torchvision": torchvision.catalogued}
    sources["timm"] = lambda: timm.catalogued({e.arch: e.parameters for e in catalogue.read()["timm"].values()})
    for source, made in sources.items():
        recorded, installed = catalogue.versions(source)
        if installed.partition("+")[0] == recorded:
            assert rows(source) == made()["names"], "type make generated"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv3_small_050"])
def test_parameters_are_counted_on_the_network_itself(arch):
    pytest.importorskip("timm", reason="the optional package timm is not installed")
    assert catalogue.read()["timm"][arch].parameters == timm._parameters(arch)


@pytest.mark.parametrize(
    ("typed", "others"),
    [
        ("resnet18", ["timm:resnet18", "torchvision:resnet18"]),
        ("ResNet18", ["timm:resnet18", "torchvision:resnet18"]),
        ("resnet20", ["cifar:resnet20"]),
        ("timm:resnet20", ["cifar:resnet20"]),
        ("cifar:resnet18", ["timm:resnet18", "torchvision:resnet18"]),
        ("torchvision:resnet18.a1_in1k", ["timm:resnet18.a1_in1k"]),
        ("timm:resnet18.IMAGENET1K_V1", ["torchvision:resnet18.IMAGENET1K_V1"]),
        ("mobilenet-v3-small", ["torchvision:mobilenet_v3_small"]),
        ("bert-base-uncased", ["hf:google-bert/bert-base-uncased"]),
        ("roberta_base", ["hf:FacebookAI/roberta-base"]),
        ("google-bert/bert-base-uncased", ["hf:google-bert/bert-base-uncased"]),
        ("cifar:resnet50", ["cifar:ResNet50", "timm:resnet50", "torchvision:resnet50"]),
        ("cifar:resnet20", []),
        ("nothing", []),
        ("", []),
    ],
)
def test_the_sources_that_have_a_name(typed, others):
    assert catalogue.elsewhere(typed) == others


@pytest.mark.parametrize(
    ("typed", "suggests"),
    [
        ("resnet18", "type timm:resnet18 or torchvision:resnet18; `tutelage list models resnet18` lists"),
        ("bert-base-uncased", "type hf:google-bert/bert-base-uncased"),
        ("torchvision:resnet18.a1_in1k", "type timm:resnet18.a1_in1k, torchvision:resnet18 for random weights"),
        ("timm:resnett18", "did you mean timm:resnet18"),
        ("mobilenetv3", "`tutelage list models mobilenetv3` lists"),
        ("google-bert/bert-base-uncased", "a network of the Hub is hf:google-bert/bert-base-uncased"),
    ],
)
def test_a_refusal_names_the_source(typed, suggests, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "versions", lambda source: ("1", "1"))
    with pytest.raises((InvalidValueError, FileNotFoundError)) as error:
        names.check(typed)
    assert suggests in error.value.instead


def test_another_version_of_a_library_is_asked_itself(monkeypatch):
    monkeypatch.setattr(catalogue, "versions", lambda source: ("1", "2"))
    names.check("timm:no_such_name")
    monkeypatch.setattr(catalogue, "versions", lambda source: ("1", "1+cpu"))
    with pytest.raises(InvalidValueError):
        names.check("timm:no_such_name")
    names.check("torchvision:resnet18.DEFAULT")
    names.check("timm:convnext_tiny_in22ft1k")  # a name of old that timm still reads


@pytest.mark.parametrize(
    ("pattern", "first"),
    [
        ("resnet18", "timm:legacy_seresnet18"),
        ("timm:resnet18*", "timm:resnet18"),
        ("resnet18*", "timm:resnet18"),
        ("CIFAR:RESNET8?4", "cifar:resnet8x4"),
        ("torchvision:resnet50.*_V2", "torchvision:resnet50"),
    ],
)
def test_names_match_by_pattern_or_by_a_part(pattern, first):
    entries = list(catalogue.matching(pattern))
    assert first in [entry.name for entry in entries]
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)


def test_of_what_matches_by_its_tags_only_those_are_shown():
    (entry,) = catalogue.matching("torchvision:resnet50.*_V2")
    assert entry.tags == ("IMAGENET1K_V2",)


def test_a_wrong_pattern_matches_nothing():
    assert [*catalogue.matching("[")] == []


def test_nothing_of_it_imports_torch():
    code = (
        "import sys; from tutelage.models import catalogue; catalogue.elsewhere('resnet18');"
        "import json; print(json.dumps([m for m in ('torch', 'timm') if m in sys.modules]))"
    )
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) == []
