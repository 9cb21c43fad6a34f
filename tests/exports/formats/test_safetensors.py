"""Weights with all that rebuilds the network."""

import json

import pytest
import safetensors
import torch
from tests._helpers.refusals import refused
from torch import nn

import tutelage
from tutelage import models
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.exports.formats import safetensors as format_
from tutelage.runs.networks import create_student

OWN = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 3)
    def forward(self, images):
        return self.layer(images.flatten(1))
print("imported")
"""


def test_a_named_network_is_loaded_back(tmp_path):
    from tests.exports.conftest import splits

    from tutelage.config.schema import Network
    from tutelage.exports.opening import source_of

    student = create_student(Network(name="mlp:8"), splits(), seed=0)
    source = source_of(student, splits(), name="small")
    path = tmp_path / "a.safetensors"
    format_.write(source, path)
    loaded = tutelage.load(path)
    assert torch.equal(loaded(source.inputs), source.logits(source.inputs))
    assert torch.equal(format_.reopen(path)(source.inputs), source.logits(source.inputs))
    assert loaded.card.class_names == ("rose", "tulip", "lily")
    assert tutelage.load(str(path)).card.name == "mlp:8"
    with safetensors.safe_open(path, "pt") as opened:
        assert json.loads(opened.metadata()["tutelage"]) == source.metadata


def test_texts_are_loaded_back_with_their_tokenizer(text_source, tmp_path):
    path = tmp_path / "a.safetensors"
    format_.write(text_source, path)
    loaded = tutelage.load(path)
    assert torch.equal(loaded(text_source.inputs), text_source.logits(text_source.inputs))
    assert loaded.predict("a rose")[0].label in (0, 1, 2)


def test_code_of_ones_own_runs_where_it_is_trusted_or_handed_in(make, tmp_path, monkeypatch, capsys):
    (tmp_path / "flower_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import flower_net

    monkeypatch.delitem(__import__("sys").modules, "flower_net")
    source, path = make(flower_net.Net()), tmp_path / "a.safetensors"
    format_.write(source, path)
    expected = source.logits(source.inputs)
    capsys.readouterr()
    with refused(InvalidValueError, "model", got="'object:Net'", suggests=["--trust-code", "flower_net:Net"]):
        tutelage.load(path)
    assert torch.equal(tutelage.load(path, network=flower_net.Net())(source.inputs), expected)
    assert capsys.readouterr().out == ""
    assert torch.equal(tutelage.load(path, trust_code=True)(source.inputs), expected)
    assert capsys.readouterr().out == "imported\n"
    (tmp_path / "flower_net.py").write_text("")
    monkeypatch.delitem(__import__("sys").modules, "flower_net")
    with refused(InvalidValueError, "model", suggests="network=module"):
        tutelage.load(path, trust_code=True)


def test_a_run_of_a_module_is_loaded_back_as_its_file_is(make, tmp_path):
    source = make()
    models.save(source.classifier, tmp_path / "run")
    from tests.exports.conftest import Net

    loaded = tutelage.load(tmp_path / "run", network=Net())
    assert torch.equal(loaded(source.inputs), source.logits(source.inputs))
    with refused(InvalidTypeError, "network", got="str"):
        tutelage.load(tmp_path / "run", network="Net")
    with refused(InvalidValueError, "weights"):
        tutelage.load(tmp_path / "run", network=nn.Linear(2, 3))
    models.save(models.adopt(nn.Sequential(nn.Linear(2, 3)), "object:Sequential"), tmp_path / "other")
    with refused(InvalidValueError, "model", suggests="network=module"):  # Its class does not say what is inside.
        tutelage.load(tmp_path / "other", trust_code=True)


def test_other_files_are_refused(make, tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with refused(InvalidValueError, "model", suggests="weights="):
        tutelage.load(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"\0" * 9)
    with refused(InvalidValueError, "model", got="damaged"):
        tutelage.load(tmp_path / "b.safetensors")
    ensemble = models.ensemble(*(models.create("mlp:8", classes=3, channels=1, image_size=(4, 4)) for _ in range(2)))
    with refused(InvalidValueError, "to", suggests="onnx"):
        format_.write(make(ensemble), tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.slow
def test_a_student_with_adapters_is_exported_merged(text_source, tmp_path):
    from tutelage.models.lora import Adapters

    text_source.classifier.train_adapters(Adapters(2, 8.0), seed=0)
    with torch.no_grad():
        for name, parameter in text_source.classifier.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    before = text_source.classifier.eval()(text_source.inputs)
    import dataclasses

    from tutelage.models.lora import merged

    text_source.classifier.network, text_source.classifier.adapters = merged(text_source.classifier.network), None
    text_source.classifier.frozen = frozenset()
    source = dataclasses.replace(text_source)
    format_.write(source, tmp_path / "a.safetensors")
    torch.testing.assert_close(tutelage.load(tmp_path / "a.safetensors")(source.inputs), before)
