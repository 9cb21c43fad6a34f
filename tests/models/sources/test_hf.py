"""Networks of the transformers library: what is computed, from which files, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from tutelage import models
from tutelage.errors import InvalidValueError
from tutelage.text import TextInput, Tokenizer, learn_bpe, tokenizer_of
from tutelage.types import PADDING

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VOCABULARY = {f"w{k}": k for k in range(20)}


def words(vocabulary: dict[str, int]) -> Tokenizer:
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    return Tokenizer(json.dumps({"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": model}))


WORDS = words(VOCABULARY)
TEXT = TextInput(tokenizer=WORDS, max_tokens=8)
IDS = torch.tensor([[3, 4, 5, PADDING], [6, 7, 8, 9]])
MASK = (IDS != PADDING).long()
AUTOS = {
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "causal": "AutoModelForCausalLM",
    "image": "AutoModelForImageClassification",
    "encoder": "AutoModel",
}


def library(task):
    import transformers  # It takes seconds, which collecting tests does not.

    return getattr(transformers, AUTOS.get(task, task))


def network(tmp_path, kind, *, per_token=False):
    (tmp_path / f"{kind}.json").write_text(json.dumps({**SIZES, "model_type": kind}))
    text = replace(TEXT, per_token=per_token)
    return models.create(f"hf:{tmp_path / kind}.json", classes=None if per_token else 3, text=text).eval()


def published(folder, task, kind="bert", **settings):
    """Save a network of the library's own with random weights, and return it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = library("AutoConfig").for_model(kind, **({**SIZES, "vocab_size": 20} | settings))
        made = library(task).from_config(config).eval()
    made.save_pretrained(folder)
    return made


def reads(text=TEXT, **fields):
    return replace(text, **fields)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@torch.no_grad()
def test_texts_are_classified_without_their_padding_and_rebuilt_from_their_folder_alone(tmp_path, kind):
    model = network(tmp_path, kind)
    logits = model(IDS)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(model(IDS[:1, :3]), logits[:1], rtol=0, atol=1e-6)
    models.save(model, tmp_path / "run")
    (tmp_path / f"{kind}.json").unlink()
    rebuilt = models.create(str(tmp_path / "run")).eval()
    assert torch.equal(rebuilt(IDS), logits)
    assert rebuilt.predict(["w3 w4 w5"])[0].label == int(logits[0].argmax())


@pytest.mark.parametrize("kind", ["bert", "llama"])
@torch.no_grad()
def test_no_token_of_a_language_model_sees_a_later_one(tmp_path, kind):
    model = network(tmp_path, kind, per_token=True)
    changed = IDS.clone()
    changed[1, 3] = 2
    before, after = model(IDS), model(changed)
    assert before.shape == (2, 4, 20)
    assert torch.equal(before[1, :3], after[1, :3])
    assert not torch.equal(before[1, 3], after[1, 3])


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "longformer", "xlm-roberta-xl"])
@torch.no_grad()
def test_a_network_whose_places_follow_that_of_padding_reads_texts_of_the_full_length(kind):
    config = {**SIZES, "max_position_embeddings": 4} | ({"attention_window": 4} if kind == "longformer" else {})
    model = models.create(f"hf:{kind}", classes=3, config=config, text=TEXT).eval()
    full = torch.arange(3, 19).reshape(2, 8)
    assert model(full).isfinite().all()
    full[1, 5:] = PADDING
    torch.testing.assert_close(model(full)[1:], model(full[1:, :5]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "longest"), [("roberta", 10), ("mpnet", 10), ("bert", 12)])
def test_a_published_networks_longest_text_leaves_out_the_places_of_padding(tmp_path, kind, longest):
    published(tmp_path, "sequence", kind, max_position_embeddings=12, pad_token_id=1, num_labels=3)
    models.create(f"hf:{tmp_path}", text=reads(max_tokens=longest))
    with pytest.raises(InvalidValueError, match=rf"at most {longest}, .* type data.max_tokens={longest}"):
        models.create(f"hf:{tmp_path}", text=reads(max_tokens=longest + 1))


@pytest.mark.parametrize(
    ("kind", "config", "per_token", "reason"),
    [
        ("fnet", SIZES, False, "logits are of each text alone"),
        ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}, True, "a token and those before it"),
        ("distilbert", {"dim": 32, "n_heads": 2}, True, "has as AutoModelForCausalLM, got distilbert"),
        ("t5", {"d_model": 32}, False, "an encoder or a decoder"),
        ("bert", {**SIZES, "hidden_act": "no"}, False, "made and called by transformers, got KeyError"),
        ("bert", {**SIZES, "hidden_size": "many"}, False, "made and called by transformers"),
        ("bert", {**SIZES, "num_attention_heads": 3}, False, "not a multiple of the number of attention heads"),
    ],
)
def test_a_network_that_cannot_classify_texts_is_refused(kind, config, per_token, reason):
    with pytest.raises(InvalidValueError, match=reason):
        models.create(f"hf:{kind}", classes=None if per_token else 3, config=config, text=reads(per_token=per_token))


@pytest.mark.parametrize(
    ("task", "kind"),
    [("sequence", "bert"), ("sequence", "roberta"), ("sequence", "llama"), ("token", "bert"), ("causal", "gpt2")],
)
@torch.no_grad()
def test_logits_are_those_of_the_librarys_own_call_and_it_reads_the_saved_folder(tmp_path, task, kind):
    labels = {} if task == "causal" else {"num_labels": 3}
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2} if kind == "gpt2" else {}
    own = published(tmp_path / "hub", task, kind, pad_token_id=1 if kind == "roberta" else 0, **sizes, **labels)
    text = reads(per_token=task != "sequence", next_token=task == "causal")
    model = models.create(f"hf:{tmp_path / 'hub'}", text=text).eval()
    inputs = {"input_ids": IDS.masked_fill(IDS == PADDING, own.config.pad_token_id), "attention_mask": MASK}
    expected = own(**inputs).logits
    assert torch.equal(model(IDS), expected)
    assert not model.card.fresh_head
    models.save(model, tmp_path / "run")
    saved, report = library(task).from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(saved.eval()(**inputs).logits, expected)
    assert torch.equal(models.create(str(tmp_path / "run")).eval()(IDS), expected)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_an_image_type_with_a_configuration_has_random_weights(kind):
    config = {**SIZES, "image_size": 16, "patch_size": 8}
    assert models.create(f"hf:{kind}", classes=3, config=config)(torch.rand(2, 3, 16, 16)).shape == (2, 3)


@torch.no_grad()
def test_images_are_made_as_the_processor_says_and_classified_by_the_librarys_own_call(tmp_path):
    sizes = {"image_size": 16, "patch_size": 8, "num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}}
    own = published(tmp_path, "image", "vit", **sizes)
    processor = {
        "size": {"height": 16, "width": 16},
        "resample": 3,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model = models.create(f"hf:{tmp_path}").eval()
    card = model.card
    assert (card.image_size, card.interpolation, card.mean, card.std) == (
        (16, 16),
        "bicubic",
        (0.1, 0.2, 0.3),
        (0.5,) * 3,
    )
    assert card.class_names == ("a", "b", "c")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(images), own(model.normalise(images)).logits)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InvalidValueError, match=r"preprocessor_config.json of"):
        models.create(f"hf:{tmp_path}")


def encoder(folder, pooling, *, dense=False):
    """Save an encoder of sentence-transformers with random weights; return the library's part and the dense layer."""
    own = published(folder, "encoder")
    modules, layer = [{"type": "sentence_transformers.models.Transformer", "path": ""}], nn.Linear(32, 8)
    paths = {"Pooling": {f"pooling_mode_{pooling}": True}}
    if dense:
        paths["Dense"] = {
            "in_features": 32,
            "out_features": 8,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }
    for number, (kind, settings) in enumerate(paths.items(), 1):
        path = f"{number}_{kind}"
        modules.append({"type": f"sentence_transformers.models.{kind}", "path": path})
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(settings))
        if kind == "Dense":
            state = {f"linear.{name}": value for name, value in layer.state_dict().items()}
            safetensors.torch.save_file(state, folder / path / "model.safetensors")
    modules.append({"type": "sentence_transformers.models.Normalize", "path": "3_Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    return own, layer


@pytest.mark.parametrize(("pooling", "dense"), [("mean_tokens", True), ("cls_token", False), ("max_tokens", False)])
@torch.no_grad()
def test_a_sentences_vector_is_pooled_projected_and_of_length_1(tmp_path, pooling, dense):
    own, layer = encoder(tmp_path, pooling, dense=dense)
    model = models.create(f"hf:{tmp_path}", classes=3, text=TEXT).eval()
    assert model.card.fresh_head
    rows = [row[row != PADDING][None] for row in IDS]
    states = [own(row).last_hidden_state[0] for row in rows]
    pool = {"mean_tokens": lambda x: x.mean(0), "cls_token": lambda x: x[0], "max_tokens": lambda x: x.amax(0)}
    vectors = torch.stack([pool[pooling](each) for each in states])
    vectors = F.normalize(layer(vectors).tanh() if dense else vectors, dim=-1)
    torch.testing.assert_close(model(IDS), model.network.head(vectors), rtol=0, atol=1e-6)
    models.save(model, tmp_path / "run")
    assert torch.equal(models.create(str(tmp_path / "run")).eval()(IDS), model(IDS))


def test_a_package_is_read_without_being_imported(tmp_path, monkeypatch):
    (tmp_path / "carries_weights").mkdir()
    (tmp_path / "carries_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    published(tmp_path / "carries_weights" / "model", "sequence", num_labels=3)
    monkeypatch.syspath_prepend(tmp_path)
    model = models.create("hf:package:carries_weights/model", text=TEXT)
    assert model.card.classes == 3
    assert "carries_weights" not in sys.modules


def test_another_tokenizer_than_that_of_the_weights_is_refused(tmp_path):
    published(tmp_path, "sequence", num_labels=3)
    other = words({f"v{k}": k for k in range(20)} | {"w0": 0})
    models.create(f"hf:{tmp_path}", text=reads(tokenizer=other))  # without one of its own, by size alone
    tokens = WORDS._parsed
    tokens.enable_padding()
    tokens.enable_truncation(5)
    (tmp_path / "tokenizer.json").write_text(tokens.to_str(pretty=True))
    tokens.no_padding()
    models.create(f"hf:{tmp_path}", text=TEXT)
    with pytest.raises(InvalidValueError, match=rf"data.tokenizer={tmp_path}, or data.teacher_tokenizer={tmp_path}"):
        models.create(f"hf:{tmp_path}", text=reads(tokenizer=other))


def test_a_saved_language_model_keeps_its_template_and_its_tokens(tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer = replace(learn_bpe(["some words to learn from"] * 2, 270), template=template)
    text = TextInput(tokenizer=tokenizer, max_tokens=8, per_token=True)
    models.save(models.create("hf:llama", config=SIZES, text=text), tmp_path)
    assert tokenizer_of(str(tmp_path)) == tokenizer
    assert models.create(str(tmp_path)).call.text.tokenizer == tokenizer
    read = library("AutoTokenizer").from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "learn"}]
    assert read("to learn")["input_ids"] == tokenizer.encode(["to learn"])[0]
    assert read.eos_token_id == tokenizer.end_id
    assert read.apply_chat_template(messages, tokenize=False) == tokenizer.render(messages)


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def rewritten(**values):
    def write(folder):
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return write


def linked(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "nowhere")


def indexed(content):
    def write(folder):
        (folder / WEIGHTS).rename(folder / "part.safetensors")
        (folder / INDEX).write_text(content)

    return write


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: os.truncate(folder / WEIGHTS, 9000), "SafetensorError"),
        (lambda folder: os.truncate(folder / WEIGHTS, 0), "SafetensorError"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "got pytorch_model.bin"),
        (linked, "a link to nothing"),
        (rewritten(hidden_size=64), r"of another shape, bert.embeddings.LayerNorm.bias of \[32\], not \[64\]"),
        (rewritten(num_hidden_layers=3), "of them missing, bert.encoder.layer.2"),
        (rewritten(model_type=None), "no model_type"),
        (rewritten(architectures="BertModel"), "architectures"),
        (rewritten(tutelage={"kind": "odd"}), "tutelage.kind"),
        (indexed("{"), "a damaged model.safetensors.index.json"),
        (indexed('{"weight_map": {"a": "gone.safetensors"}}'), "1 of 1 files missing, gone.safetensors"),
        (indexed('{"weight_map": {"a": "../part.safetensors"}}'), "no file of its own in safetensors"),
        (lambda folder: (folder / "modules.json").write_text("[3]"), "modules.json of"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, damage, reason):
    published(tmp_path, "sequence", num_labels=3)
    damage(tmp_path)
    with pytest.raises(InvalidValueError, match=reason):
        models.create(f"hf:{tmp_path}", classes=3, text=TEXT)


def test_code_of_a_repository_and_pickled_weights_are_refused(tmp_path):
    config = {**SIZES, "model_type": "bert", "vocab_size": 20}
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own.Own"}}))
    with pytest.raises(InvalidValueError, match="code is never run here"):
        models.create(f"hf:{tmp_path}", classes=3, text=TEXT)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(InvalidValueError, match=r"expected weights .* in safetensors, got pytorch_model.bin"):
        models.create(f"hf:{tmp_path}", classes=3, text=TEXT)


PIXELS = {
    "segformer": {
        "depths": [1] * 4,
        "hidden_sizes": [4, 8, 8, 8],
        "num_attention_heads": [1] * 4,
        "sr_ratios": [4, 2, 1, 1],
        "decoder_hidden_size": 8,
    },
    "upernet": {
        "backbone_config": {
            "model_type": "resnet",
            "depths": [1] * 4,
            "hidden_sizes": [4, 8, 8, 8],
            "embedding_size": 4,
            "layer_type": "basic",
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "hidden_size": 8,
        "auxiliary_in_channels": 8,
    },
}


@pytest.mark.parametrize("kind", PIXELS)
def test_networks_of_pixels_are_resized_saved_and_read_by_transformers(tmp_path, kind):
    made = models.create(f"hf:{kind}", classes=3, task="pixels", config=PIXELS[kind]).eval()
    images = torch.rand(2, 3, 36, 44, generator=torch.Generator().manual_seed(0))
    models.save(made, tmp_path)
    library = library_of_pixels(tmp_path)
    with torch.no_grad():
        own = library(pixel_values=made.normalise(images)).logits
        expected = F.interpolate(own, (36, 44), mode="bilinear", align_corners=False).movedim(1, -1)
        assert torch.allclose(made(images), expected, rtol=0, atol=1e-6)
        assert torch.equal(models.create(str(tmp_path)).eval()(images), made(images))
        assert models.create(str(tmp_path), classes=5)(images).shape == (2, 36, 44, 5)
    assert all(parameter.grad is not None for parameter in backward(made.train(), images))  # no head for training alone


def library_of_pixels(folder):
    from transformers import AutoModelForSemanticSegmentation

    return AutoModelForSemanticSegmentation.from_pretrained(folder).eval()


def backward(network, images):
    network(images).square().mean().backward()
    return network.parameters()
