"""Graphs of torch.export: any batch, no paths, and what the package reads of them."""

import json

import pytest
import torch
from tests._helpers.refusals import refused
from torch import nn

from tutelage.errors import InvalidValueError
from tutelage.exports.formats import torch_export
from tutelage.models import create


def test_a_file_answers_alike_and_tells_its_classes(make, tmp_path):
    source, path = make(), tmp_path / "a.pt2"
    torch_export.write(source, path)
    run = torch_export.reopen(path)
    for size in (1, 2, 5):
        torch.testing.assert_close(run(source.inputs[:size]), source.logits(source.inputs[:size]))
    assert __file__.rpartition("/")[0].encode() not in path.read_bytes()
    inside = {"metadata.json": ""}
    torch.export.load(path, extra_files=inside)
    assert json.loads(inside["metadata.json"]) == source.metadata
    read = create(f"export:{path}", trust_code=True)
    assert read.card.class_names == ("rose", "tulip", "lily")
    torch.testing.assert_close(read(source.inputs), source.logits(source.inputs))


def test_a_network_that_fixes_the_batch_is_refused(make, tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 3)

        def forward(self, images):
            return self.layer(images.reshape(len(images), -1))

    with refused(InvalidValueError, "to", suggests="x.shape[0]"):
        torch_export.write(make(Fixed()), tmp_path / "a.pt2")


@pytest.mark.slow
def test_texts_of_any_length(text_source, tmp_path):
    torch_export.write(text_source, tmp_path / "a.pt2")
    run = torch_export.reopen(tmp_path / "a.pt2")
    for ids in (text_source.inputs, text_source.inputs[2:3, :1], text_source.inputs[1:5, :5]):
        torch.testing.assert_close(run(ids), text_source.logits(ids))
