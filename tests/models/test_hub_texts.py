"""Networks of transformers that are handed on: with their tokenizer, whole, and read by that library too."""

import pytest
import torch
from tests.models.test_hub import card_text, same_answers, same_card
from tests.runs.test_texts import lines, recipe  # noqa: F401  a fixture

from tutelage import models
from tutelage.models.lora import Adapters
from tutelage.runs.setup import build_inputs

transformers = pytest.importorskip("transformers", reason="the optional package transformers is not installed")
IDS = torch.randint(4, 200, (2, 6), generator=torch.Generator().manual_seed(0))


def student(lines, **keys):  # noqa: F811
    return build_inputs(recipe(lines, **keys)).student.eval()


def test_a_classifier_of_texts(lines, tmp_path):  # noqa: F811
    saved = student(lines)
    saved.save_pretrained(tmp_path)
    again = models.from_pretrained(tmp_path)
    assert same_answers(saved, again, IDS)
    assert same_card(saved, again)
    texts = ["rain and sun", "the price of stock"]
    assert again.predict(texts) == saved.predict(texts)
    assert {each.name for each in again.predict(texts)} <= {"weather", "money"}
    text = card_text(tmp_path)
    assert "pipeline_tag: text-classification" in text
    assert 'model.predict(["a text"])' in text
    assert same_answers(saved, models.create(str(tmp_path)).eval(), IDS)
    (tmp_path / "README.md").write_text(text.replace("license: unknown", "license: mit"))
    assert models.create(f"hf:{tmp_path}", text=saved.call.text).card.licence == "mit"


def test_a_language_model_is_read_by_transformers_as_its_card_says(lines, tmp_path, monkeypatch, capsys):  # noqa: F811
    saved = student(lines, student="hf:llama", data={"pack": 16})
    saved.save_pretrained(tmp_path / "lm")
    assert same_answers(saved, models.from_pretrained(tmp_path / "lm"), IDS)
    text = card_text(tmp_path / "lm")
    assert "pipeline_tag: text-generation" in text
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("path/of/this/folder", "lm").replace("max_new_tokens=20", "max_new_tokens=2"))
    assert capsys.readouterr().out


def test_adapters_are_merged(lines, tmp_path):  # noqa: F811
    pytest.importorskip("peft", reason="the optional package peft is not installed")
    saved = student(lines)
    saved.train_adapters(Adapters(2, 4.0, ()), seed=0)
    with torch.no_grad():
        for name, value in saved.network.named_parameters():
            if "lora_B" in name:
                value.normal_()
    names = set(saved.network.state_dict())
    saved.eval().save_pretrained(tmp_path)
    again = models.from_pretrained(tmp_path)
    assert not any("lora" in name for name in again.network.state_dict())
    assert set(saved.network.state_dict()) == names
    assert saved.adapters is not None
    assert same_answers(again, models.create(str(tmp_path)).eval(), IDS)
    with torch.no_grad():
        torch.testing.assert_close(again(IDS), saved(IDS), rtol=1e-4, atol=1e-5)
    read = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(read.eval()(IDS).logits, again(IDS))
