"""ONNX files, by onnxruntime: any batch, metadata, 8-bit integers."""

import json

import onnx
import onnxruntime
import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage.errors import InvalidValueError
from tutelage.exports.formats import onnx as format_
from tutelage.models import create

pytestmark = pytest.mark.slow  # The exporter's own import takes seconds.


def test_a_file_answers_alike_and_tells_its_classes(make, tmp_path):
    source, path = make(), tmp_path / "a.onnx"
    format_.write(source, path)
    run = format_.reopen(path)
    for size in (1, 2, 5):
        torch.testing.assert_close(run(source.inputs[:size]), source.logits(source.inputs[:size]))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.shape, taken.type) == ("images", ["batch", 1, 4, 4], "tensor(float)")
    assert (given.name, given.shape) == ("logits", ["batch", 3])
    assert json.loads(session.get_modelmeta().custom_metadata_map["tutelage"]) == source.metadata
    assert create(f"onnx:{path}").card.class_names == ("rose", "tulip", "lily")
    assert __file__.rpartition("/")[0].encode() not in path.read_bytes()


def test_texts_of_any_length_with_their_tokenizer(text_source, tmp_path):
    path = tmp_path / "a.onnx"
    format_.write(text_source, path)
    run = format_.reopen(path)
    for ids in (text_source.inputs, text_source.inputs[2:3, :1], text_source.inputs[1:5, :5]):
        torch.testing.assert_close(run(ids), text_source.logits(ids), rtol=1e-4, atol=1e-6)
    told = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert told["tokenizer.json"] == text_source.files["tokenizer.json"]


@pytest.mark.parametrize("attends", [False, True])
def test_8_bit_files_compute_in_8_bits_and_keep_the_metadata(make, text_source, tmp_path, attends):
    import dataclasses

    source = dataclasses.replace(text_source, int8=True) if attends else make(int8=True)
    path = tmp_path / "a.onnx"
    format_.write(source, path)
    model = onnx.load(path)
    types = {each.op_type for each in model.graph.node}
    assert ("DynamicQuantizeLinear" in types) == attends
    assert ("QuantizeLinear" in types) != attends
    assert {"tutelage"} <= {each.key for each in model.metadata_props}
    expected, got = source.logits(source.inputs), format_.reopen(path)(source.inputs)
    assert 0 < (expected - got).abs().max() < 0.1 * expected.abs().max()
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]


def test_what_onnx_cannot_hold_is_refused(make, tmp_path, monkeypatch):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 3)

        def forward(self, images):
            return torch.linalg.matrix_exp(self.layer(images.flatten(1))[:, :, None] * torch.eye(3))[..., 0]

    with refused(InvalidValueError, "to", suggests="torch-export"):
        format_.write(make(Odd()), tmp_path / "a.onnx")
    monkeypatch.setattr(format_, "LARGEST", 10)
    with refused(InvalidValueError, "to", suggests="safetensors"):
        format_.write(make(), tmp_path / "a.onnx")
