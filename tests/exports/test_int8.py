"""8-bit integers by torchao: what becomes smaller, by how little the answers change, and what is refused."""

import sys

import pytest
import torch
from torch import nn

from tutelage import models
from tutelage.errors import InvalidValueError, MissingExtraError
from tutelage.exports import int8
from tutelage.exports.formats import torch_export
from tutelage.exports.source import Source


class Mean(nn.Module):
    def forward(self, states):
        return states.mean(1)


@pytest.fixture(scope="module")
def of_text():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Embedding(50, 32), Mean(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 3))
    model = models.Classifier(network, models.Card(name="object:mine", classes=3, max_tokens=12)).eval()
    ids = torch.arange(36).reshape(3, 12)
    return Source(classifier=model, inputs=ids, class_names=(), metadata={}, int8=True, calibration=ids)


@torch.no_grad()
def test_a_graph_with_small_weights_needs_no_torchao_and_takes_batches_of_any_size(tmp_path, of_text):
    pytest.importorskip("torchao")
    torch_export.write(of_text, tmp_path / "x.pt2")
    program = torch.export.load(tmp_path / "x.pt2")
    assert not [node for node in program.graph.nodes if "torchao" in str(node.target)]
    assert b"site-packages" not in (tmp_path / "x.pt2").read_bytes()
    large = {name for name, each in program.state_dict.items() if each.ndim == 2 and each.dtype != torch.int8}
    assert not [name for name in large if min(program.state_dict[name].shape) > 3]
    run = torch_export.reopen(tmp_path / "x.pt2")
    for rows in (of_text.inputs, of_text.inputs[:1, :7]):
        expected = of_text.logits(rows)
        assert 0 < float((run(rows) - expected).abs().max()) < 0.05 * float(expected.abs().max())


@torch.no_grad()
def test_rows_are_within_half_a_step_of_the_table():
    table = nn.Embedding(5, 8, padding_idx=0)  # a row of zeros
    ids = torch.tensor([[0, 4], [2, 2]])
    step = table.weight.abs().amax(1, keepdim=True) / 127
    assert ((int8.Embedding(table)(ids) - table(ids)).abs() <= 0.501 * step[ids]).all()


def test_networks_of_convolutions_are_refused(tmp_path):
    pytest.importorskip("torchao")
    model = models.create("cifar:resnet8", classes=3).eval()
    source = Source(classifier=model, inputs=torch.rand(2, 3, 32, 32), class_names=(), metadata={}, int8=True)
    with pytest.raises(InvalidValueError, match=r"weights in linear layers.* 0% of them there; type --to onnx or"):
        torch_export.write(source, tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


def test_a_missing_torchao_is_named_with_its_extra(monkeypatch, tmp_path, of_text):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtraError, match=r"the library torchao.* 'tutelage\[int8\]'"):
        torch_export.write(of_text, tmp_path / "x.pt2")
