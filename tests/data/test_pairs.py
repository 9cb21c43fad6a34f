"""Samples that are an image and a text each."""

import json
import pickle

import numpy as np
import pytest
import torch
from tests._helpers.pairs import WORDS, pair_settings, write_pairs
from tests._helpers.refusals import refused

from tutelage.data import BatchLoader, DataSettings, Unlabelled, View, from_datasets, open_data, read_by
from tutelage.data.on_device import UploadLoader, describe_place, reason_elsewhere
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.settings.data import LearnedTokenizer

BOTH = {"student": "image", "teacher": "text"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(folder, **changes):
    settings = pair_settings(folder, **{"tokenizer": LearnedTokenizer(bpe=280), **changes})
    return open_data(DataSettings(**settings))


def texts_of(splits, split, ids):
    """Decode rows of token ids."""
    tokenizer = next(iter(splits.text.values())).tokenizer
    return [tokenizer._parsed.decode([i for i in row if i >= 0], skip_special_tokens=False) for row in ids.tolist()]


def test_each_network_reads_its_own_view_of_a_sample(folder):
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    pairs = opened(folder, validation=0.25, crop_padding=1, flip=True)
    splits = read_by(pairs, BOTH)
    images, texts = read_by(pairs, {"student": "image"}), read_by(pairs, dict.fromkeys(BOTH, "text"))
    assert splits.input_shape("student") == (1, 8, 8)
    assert splits.input_shape("teacher") == ()
    assert set(splits.text) == {"teacher"}
    assert set(texts.text) == set(BOTH)
    assert not images.text
    assert splits.fingerprint == images.fingerprint == texts.fingerprint
    for name, split in splits.by_name().items():
        index, alone = np.arange(len(split)), images.by_name()[name]
        assert torch.equal(split.labels, texts.by_name()[name].labels)
        for view in (None, View(0, 0), View(0, 3)):
            inputs = split.fetch(index, view=view)
            assert torch.equal(inputs["student"], alone.fetch(index, view=view))
            assert torch.equal(inputs["teacher"], texts.by_name()[name].fetch(index))
        captions = {row["caption"]: row["label"] for row in rows}
        for text, label in zip(texts_of(splits, split, inputs["teacher"]), split.labels.tolist(), strict=True):
            assert captions[text] == WORDS[sorted(range(4), key=WORDS.__getitem__)[label]]
    varied = [splits.train.fetch(np.arange(8), view=View(0, epoch))["student"] for epoch in (0, 1)]
    assert not torch.equal(*varied)


def test_pairs_of_all_classes_come_equally_often_without_buckets(folder):
    splits = opened(folder, sampling="balanced")
    orders = [
        read_by(splits, reads).train.order(1, 2, batch_size=5)
        for reads in (BOTH, {"student": "image"}, dict.fromkeys(BOTH, "text"))
    ]
    assert all(np.array_equal(order, orders[0]) for order in orders)
    counts = torch.bincount(splits.train.labels[orders[0]])
    assert counts.max() - counts.min() <= 1


def test_batches_come_in_buckets_of_the_texts_lengths_and_uploaded_ones_are_the_same(folder):
    splits = read_by(opened(folder, crop_padding=1, bucket_batches=3), BOTH)
    settings = {"batch_size": 5, "train": True, "data_seed": 2}
    batches = list(BatchLoader(splits.train, **settings).epoch(1))
    uploaded = list(UploadLoader(splits.train, device=torch.device("cpu"), **settings).epoch(1))
    texts = read_by(opened(folder, bucket_batches=3), {"student": "text"})
    assert [batch.index.tolist() for batch in batches] == [
        batch.index.tolist() for batch in BatchLoader(texts.train, **settings).epoch(1)
    ]
    for batch, sent in zip(batches, uploaded, strict=True):
        assert set(batch.inputs) == set(BOTH) == set(sent.inputs)
        for name in BOTH:
            assert torch.equal(batch.inputs[name], sent.inputs[name])


def test_streamed_images_in_worker_processes_keep_their_texts(folder):
    settings = {"batch_size": 8, "train": True}
    alone, streamed = (read_by(opened(folder, random_resized_crop=True, workers=count), BOTH) for count in (0, 1))
    assert "decoded as they are needed" in describe_place(streamed, torch.device("cpu"))
    try:
        pairs = zip(*(BatchLoader(each.train, **settings).epoch(0) for each in (alone, streamed)), strict=True)
        for first, second in pairs:
            assert all(torch.equal(first.inputs[name], second.inputs[name]) for name in BOTH)
    finally:
        streamed.close()
    restored = pickle.loads(pickle.dumps(streamed))
    assert torch.equal(restored.train.fetch(np.arange(2))["teacher"], streamed.train.fetch(np.arange(2))["teacher"])


@pytest.mark.parametrize("streamed", [False, True])
def test_a_sample_without_a_readable_image_or_text_is_left_out_as_a_whole(tmp_path, streamed):
    rows = write_pairs(tmp_path, 40)
    (tmp_path / "3.png").write_bytes(b"no image")
    rows[5]["caption"], rows[7]["picture"], rows[9]["picture"] = None, 4, "nowhere.png"
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with refused(InvalidValueError, "data.source", got="pairs.jsonl line 6"):
        opened(tmp_path)
    splits = read_by(opened(tmp_path, on_corrupt="skip", random_resized_crop=streamed), BOTH)
    read = 0
    for split in (splits.train, splits.test):
        for batch in BatchLoader(split, batch_size=16, train=False).epoch(0):
            read += len(batch.index)
            captions = texts_of(splits, split, batch.inputs["teacher"])
            for image, caption in zip(batch.inputs["student"], captions, strict=True):
                original = next(r for r in rows if caption == r["caption"] and r not in (rows[3], rows[9]))
                assert original["label"] in caption
                assert image.shape == (1, 8, 8)
            labels = [splits.class_names[label] for label in batch.labels.tolist()]
            assert all(label in caption.split() for label, caption in zip(labels, captions, strict=True))
    assert read == 36
    assert splits.sizes()["corrupt"] == 4


def test_columns_of_hf_give_the_same_samples_as_files(folder, tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="the optional package datasets is not installed")
    pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    from pyarrow import parquet

    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    names = sorted(WORDS)
    kinds = {"picture": {"_type": "Image"}, "caption": {"dtype": "string", "_type": "Value"}}
    features = {**kinds, "label": {"names": names, "_type": "ClassLabel"}}
    pictures = [{"bytes": (folder / row["picture"]).read_bytes(), "path": None} for row in rows]
    table = pyarrow.table(
        {
            "picture": pyarrow.array(pictures, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})),
            "caption": [row["caption"] for row in rows],
            "label": [names.index(row["label"]) for row in rows],
        }
    )
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "hub").mkdir()
    parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "hub" / "train-00000-of-00001.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    hub, files = (read_by(opened(folder, **source), BOTH) for source in ({"source": f"hf:{tmp_path / 'hub'}"}, {}))
    index = np.arange(len(hub.train))
    ours, theirs = (each.train.fetch(index, view=View(0, 1)) for each in (hub, files))
    assert all(torch.equal(ours[name], theirs[name]) for name in BOTH)
    assert torch.equal(hub.test.labels, files.test.labels)
    assert hub.class_names == files.class_names
    with refused(InvalidValueError, "data.text", got="no"):
        opened(folder, source=f"hf:{tmp_path / 'hub'}", text="no")


def test_what_samples_of_both_kinds_do_not_have_is_refused(folder):
    for changes, key in (
        ({"pack": 8, "max_tokens": 128}, "data.pack"),
        ({"unlabelled": Unlabelled(source="texts:more.txt")}, "data.unlabelled"),
        ({"tokenizer": None}, "data.tokenizer"),
        ({"source": "digits"}, "data.source"),
    ):
        with refused(InvalidValueError, key):
            opened(folder, **changes)
    mixed = opened(folder, mixup=0.4)
    assert read_by(mixed, {"student": "image", "teacher": "image"}).train.mixing is not None
    with refused(InvalidValueError, "data.mixup", got=0.4):
        read_by(mixed, BOTH)
    with refused(InvalidValueError, "reads"):
        read_by(mixed, {})
    held = read_by(opened(folder, on_device=True), BOTH)
    with pytest.raises(InvalidValueError, match="padded by itself"):
        reason_elsewhere(held.train, torch.device("cuda"))


class Own:
    """Images and token ids of a user's."""

    targets = (0, 1, 0)

    def __init__(self, kind=torch.int64):
        self.kind = kind

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {"teacher": torch.rand(1, 4, 4), "student": torch.full((5,), i).to(self.kind)}, self.targets[i]


def test_a_view_of_a_users_data_set_may_be_token_ids():
    splits = from_datasets(Own(), Own(), classes=2)
    assert splits.input_shape("teacher") == (1, 4, 4)
    assert splits.input_shape("student") == ()
    inputs = splits.train.fetch(np.array([0, 2]))
    assert inputs["student"].tolist() == [[0] * 5, [2] * 5]
    assert inputs["teacher"].shape == (2, 1, 4, 4)
    (batch,) = UploadLoader(splits.train, device=torch.device("cpu"), batch_size=3, train=False).epoch(0)
    assert batch.inputs["student"].dtype == torch.int64
    with pytest.raises(InvalidTypeError, match="float image"):
        from_datasets(Own(torch.uint8), Own(torch.uint8), classes=2)


def test_a_users_bytes_are_not_taken_for_images():
    rows = [{"x": torch.tensor([1, 250], dtype=torch.uint8), "labels": k} for k in range(2)]
    split = from_datasets(rows, rows, classes=2, inputs="x").train
    for loader in (BatchLoader, lambda *a, **k: UploadLoader(*a, device=torch.device("cpu"), **k)):
        (batch,) = loader(split, batch_size=2, train=False).epoch(0)
        assert batch.inputs.tolist() == [[1, 250], [1, 250]]
