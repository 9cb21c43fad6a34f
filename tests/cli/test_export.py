"""The command that writes a student for other programs."""

import json
import sys

import pytest
import torch

import tutelage
from tutelage.cli import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tutelage.train(model="mlp:8", data="digits", epochs=1, batch_size=512, device="cpu", name="small").folder


def typed(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tutelage", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        app.main()
    return left.value.code


def test_a_run_becomes_a_file_that_is_read_without_the_run(run, monkeypatch, capsys, tmp_path):
    assert typed(monkeypatch, run, "--to", "torch-export", "--samples", 40) == 0
    shown = capsys.readouterr().out
    assert "largest difference of logits 0" in shown
    assert "on 40 test samples" in shown
    path = tmp_path / "runs" / "small" / "exports" / "small.pt2"
    assert [each.name for each in path.parent.iterdir()] == ["small.pt2"]
    program = torch.export.load(path).module()
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(program(images), tutelage.load(run)(images))
    assert typed(monkeypatch, run, "--to", "torch-export") == 2
    assert "--force" in capsys.readouterr().err
    assert typed(monkeypatch, run, "--to", "safetensors", "--format", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["agreement"], told["difference"]) == (256, 1.0, 0.0)
    assert told["student"]["accuracy"] == told["file"]["accuracy"]
    assert tutelage.load(tmp_path / told["path"]).card.classes == 10


def test_in_python_a_module_and_data_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from tests.exports.conftest import Net, Samples, network

    data = (Samples(20), Samples(37))
    trained = tutelage.train(model=network(), data=data, epochs=1, batch_size=20, device="cpu", name="own")
    made = tutelage.export(trained, to="safetensors", network=Net(), data=data)
    assert made.path == trained.folder / "exports" / "own.safetensors"
    assert (made.difference, made.samples) == (0, 37)
    again = tutelage.load(made.path, network=Net())
    assert torch.equal(again.network.head.bias, tutelage.load(trained, network=Net()).network.head.bias)
    alone = tutelage.export(network(), to="safetensors", data=data, output=tmp_path / "a.safetensors", samples=9)
    assert alone.samples == 9
