"""Programs of ExecuTorch, and what is said where it is missing or does not load."""

import json
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from tutelage import models
from tutelage.errors import InvalidValueError, MissingExtraError
from tutelage.exports.formats import executorch as format_
from tutelage.exports.source import Source
from tutelage.text import TextInput, learn_bpe
from tutelage.types import PADDING


def of_images(**more):
    model = models.create("timm:test_resnet", classes=3, image_size=(32, 32)).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.rand(40, 3, 32, 32)
    metadata = {"class_names": ["Kätzchen", "dog", "emu"]}
    return Source(classifier=model, inputs=images, class_names=("Kätzchen", "dog", "emu"), metadata=metadata, **more)


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(MissingExtraError, match=r"the library executorch, .* 'tutelage\[executorch\]'"):
        format_.write(of_images(), tmp_path / "x.pte")
    assert not list(tmp_path.iterdir())


def test_a_library_that_does_not_load_beside_torch_is_named_with_both_versions(monkeypatch, tmp_path):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise OSError("libexecutorch.so: undefined symbol: _ZN3c10")

    monkeypatch.setitem(sys.modules, "executorch", Broken("executorch"))
    monkeypatch.setattr(format_, "version", lambda name: "9.9")
    with pytest.raises(InvalidValueError, match=rf"beside torch {torch.__version__.split('+')[0]}.* 9.9, .*undefined"):
        format_.write(of_images(), tmp_path / "x.pte")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@torch.no_grad()
def test_a_program_answers_as_the_student_does_for_batches_of_any_size_and_has_its_class_names(tmp_path):
    runtime = pytest.importorskip("executorch.runtime")
    source = of_images()
    format_.write(source, tmp_path / "x.pte")
    run = format_.reopen(tmp_path / "x.pte")
    for size in (1, 3, 16, 40):
        torch.testing.assert_close(run(source.inputs[:size]), source.logits(source.inputs[:size]), rtol=0, atol=1e-5)
    program = runtime.Runtime.get().load_program(tmp_path / "x.pte")
    metadata = json.loads(program.load_method("metadata").execute([])[0])
    assert metadata == {"class_names": ["Kätzchen", "dog", "emu"], "files": {}}


@pytest.mark.slow
@torch.no_grad()
def test_texts_of_any_length_have_the_students_logits(tmp_path):
    pytest.importorskip("executorch.runtime")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = TextInput(tokenizer=learn_bpe(["the cat sat on the mat"] * 9, 270), max_tokens=12)
    model = models.create("hf:bert", classes=3, config=sizes, text=text).eval()
    ids = torch.arange(5, 41).reshape(3, 12)
    ids[1, 4:] = PADDING
    source = Source(classifier=model, inputs=ids, class_names=(), metadata={}, files=text.tokenizer.files())
    format_.write(source, tmp_path / "x.pte")
    run = format_.reopen(tmp_path / "x.pte")
    for rows in (ids, ids[:1], ids[1:2, :4]):
        torch.testing.assert_close(run(rows), source.logits(rows), rtol=0, atol=1e-5)
    format_.write(replace(source, int8=True, calibration=ids), tmp_path / "int8.pte")
    difference = (format_.reopen(tmp_path / "int8.pte")(ids) - source.logits(ids)).abs().max()
    assert 0 < difference < 0.1 * source.logits(ids).abs().max()


@pytest.mark.slow
@torch.no_grad()
def test_convolutions_in_8_bit_integers_are_smaller_and_near_the_students(tmp_path):
    pytest.importorskip("executorch.runtime")
    source = of_images()
    format_.write(source, tmp_path / "x.pte")
    smaller = of_images(int8=True, calibration=source.inputs)
    smaller.classifier.network.load_state_dict(source.classifier.network.state_dict())
    format_.write(smaller, tmp_path / "int8.pte")
    expected, got = source.logits(source.inputs), format_.reopen(tmp_path / "int8.pte")(source.inputs)
    assert 0 < float((got - expected).abs().max()) < 0.1 * float(expected.abs().max())
    assert (tmp_path / "int8.pte").stat().st_size < (tmp_path / "x.pte").stat().st_size / 3
