"""Networks of the transformers library: what is computed, from which files, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from tutelage import models
from tutelage.errors import InvalidValueError
from tutelage.text import TextInput, Tokenizer
from tutelage.types import PADDING

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VOCABULARY = {f"w{k}": k for k in range(20)}
WORDS = Tokenizer(
    json.dumps(
        {
            "version": "1.0",
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "w0"},
        }
    )
)
IDS = torch.tensor([[3, 4, 5, PADDING], [6, 7, 8, 9]])


def network(tmp_path, kind, *, per_token=False):
    (tmp_path / f"{kind}.json").write_text(json.dumps({**SIZES, "model_type": kind}))
    text = TextInput(tokenizer=WORDS, max_tokens=8, per_token=per_token)
    return models.create(f"hf:{tmp_path / kind}.json", classes=None if per_token else 3, text=text).eval()


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


def test_code_of_a_repository_and_pickled_weights_are_refused(tmp_path):
    text = TextInput(tokenizer=WORDS, max_tokens=8)
    config = {**SIZES, "model_type": "bert", "vocab_size": 20}
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own.Own"}}))
    with pytest.raises(InvalidValueError, match="code is never run here"):
        models.create(f"hf:{tmp_path}", classes=3, text=text)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(InvalidValueError, match=r"expected weights .* in safetensors, got pytorch_model.bin"):
        models.create(f"hf:{tmp_path}", classes=3, text=text)
