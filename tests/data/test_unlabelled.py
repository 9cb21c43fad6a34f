"""Training samples of a source without labels: where they join, their share of each batch, what is refused."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.refusals import refused

from tutelage import rng
from tutelage.data import BatchLoader, DataSettings, Unlabelled, names, open_data
from tutelage.errors import InvalidValueError, NotFoundError
from tutelage.settings.data import LearnedTokenizer, check
from tutelage.types import UNLABELLED, View


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two classes of ten images, and a flat folder of others of several sizes, with one in a folder inside."""
    root, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [root / "pets" / name / f"{i}.png" for name in ("ant", "bee") for i in range(10)]
    paths += [root / "photos" / f"{i}.png" for i in range(6)] + [root / "photos" / "more" / "6.png"]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        width = 12 if number < 20 else 12 + number
        Image.fromarray(draw.integers(0, 256, (12, width, 3), np.uint8)).save(path)
    (root / "photos" / "notes.txt").write_text("no image")
    return root


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(folders, *, share=None, **settings):
    unlabelled = Unlabelled(source=f"images:{folders / 'photos'}", share=share)
    return open_data(DataSettings(source=f"imagefolder:{folders / 'pets'}", unlabelled=unlabelled, **settings))


def of_source(folders, **settings):
    return open_data(DataSettings(source=f"imagefolder:{folders / 'pets'}", **settings))


def batches(splits, epoch=0, batch_size=8, **share):
    return list(BatchLoader(splits.train, batch_size=batch_size, data_seed=3, train=True).epoch(epoch, **share))


@pytest.mark.parametrize(
    "settings",
    [
        {"validation": 0.25, "labelled": 2},
        {"memory_limit_mb": 0},
        {"random_resized_crop": True, "workers": 1},
        {"test": "train"},
        {"test": "train", "memory_limit_mb": 0},
    ],
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_images_join_the_training_split_behind_its_own_and_change_nothing_else(folders, settings):
    without, splits = of_source(folders, **settings), opened(folders, **settings)
    own = len(without.train)
    assert (len(splits.train), splits.train.unlabelled.first) == (own + 7, own)
    assert splits.train.labels.tolist() == [*without.train.labels.tolist(), *[UNLABELLED] * 7]
    view = View(1, 1)
    mine = np.arange(own)
    assert torch.equal(splits.train.fetch(mine, view=view), without.train.fetch(mine, view=view))
    for name, split in without.by_name().items():
        if name != "train":
            index = np.arange(len(split))
            assert torch.equal(splits.by_name()[name].fetch(index), split.fetch(index))
            assert torch.equal(splits.by_name()[name].labels, split.labels)
    kept = ("classes", "class_names", "image_size", "channels", "margin", "source")
    assert [getattr(splits, key) for key in kept] == [getattr(without, key) for key in kept]
    assert splits.fingerprint != without.fingerprint
    (batch,) = batches(splits, batch_size=100)
    assert sorted(batch.index.tolist()) == list(range(own + 7))
    splits.close()


def test_streamed_images_are_those_in_memory(folders):
    memory, streamed = (opened(folders, memory_limit_mb=limit).train for limit in (2048, 0))
    mixed = np.array([20, 3, 22, 16, 0, 18])
    assert torch.equal(memory.fetch(mixed), streamed.fetch(mixed))
    assert len({tuple(image.flatten().tolist()) for image in streamed.fetch(mixed)}) == 6
    names_of = streamed.reader.name
    assert [names_of(position) for position in streamed.positions[[16, 22]]] == ["0.png", "more/6.png"]


def test_the_decoded_pixels_are_cached_and_of_the_labelled_images_shape(folders, monkeypatch):
    first = opened(folders)
    from tutelage import images

    monkeypatch.setattr(images, "decode_all", None)  # which is called of nothing that is cached
    again = opened(folders)
    assert again.fingerprint == first.fingerprint
    everything = np.arange(len(first.train))
    assert first.train.fetch(everything).shape[1:] == (3, 12, 12)
    assert torch.equal(again.train.fetch(everything), first.train.fetch(everything))


def test_a_broken_image_stops_or_is_left_out_and_counted(folders, tmp_path):
    good = (folders / "photos" / "0.png").read_bytes()
    (tmp_path / "photos").mkdir()
    for name, content in {"a.png": good, "b.png": good[:60], "c.png": good}.items():
        (tmp_path / "photos" / name).write_bytes(content)
    (tmp_path / "pets").symlink_to(folders / "pets")
    with refused(InvalidValueError, "data.unlabelled.source", got="b.png"):
        opened(tmp_path)
    skipped = opened(tmp_path, on_corrupt="skip")
    assert (skipped.sizes()["train"], skipped.sizes()["corrupt"], skipped.train.corrupt) == (18, 1, ["b.png"])
    assert skipped.train.unlabelled.samples == 2


def test_pixels_of_another_white_are_brought_to_the_sources_own(folders):
    unlabelled = Unlabelled(source=f"images:{folders / 'photos'}")
    splits = open_data(DataSettings(source="digits", unlabelled=unlabelled))
    images = splits.train.fetch(np.arange(1437, 1444))
    assert images.shape == (7, 1, 8, 8)
    assert 0.2 < images.mean() < 0.8
    assert torch.equal(images, (images * 16).round() / 16)
    with refused(InvalidValueError, "data.memory_limit_mb", suggests="data.memory_limit_mb=1"):
        open_data(DataSettings(source="digits", unlabelled=unlabelled, memory_limit_mb=0))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("batch_size", [5, 8, 100])
def test_each_batch_has_its_share_and_an_epoch_every_labelled_sample_once(folders, share, batch_size):
    splits = opened(folders, share=share)
    per_epoch = round(16 * share / (1 - share))
    assert splits.train.per_epoch == 16 + per_epoch
    for epoch in range(3):
        order = splits.train.order(3, epoch, batch_size=batch_size)
        assert sorted(order[order < 16]) == list(range(16))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            count = int((order[start : start + batch_size] >= 16).sum())
            assert abs(count - batch_size * per_epoch / len(order)) < 1
    assert [len(b.index) for b in batches(splits, batch_size=5)][:-1] == [5] * ((16 + per_epoch - 1) // 5)


def test_unlabelled_samples_come_in_turn_over_epochs(folders):
    splits = opened(folders, share=0.2)
    order = [splits.train.order(3, epoch, batch_size=8) for epoch in range(14)]
    drawn = np.concatenate([each[each >= 16] for each in order])
    assert len(drawn) == 4 * 14
    assert all(count == 8 for count in Counter(drawn.tolist()).values())
    # Each epoch goes on behind the one before.
    rounds = [set(rng.in_turn(3, epoch, np.arange(16, 23), 4).tolist()) for epoch in range(2)]
    assert len(rounds[0] | rounds[1]) == 7
    assert not np.array_equal(*(rng.in_turn(3, epoch, np.arange(7), 7) for epoch in (0, 1)))
    more = rng.in_turn(3, 0, np.arange(7), 17)
    assert [sorted(more[:7]), sorted(more[7:14])] == [list(range(7))] * 2


@pytest.mark.parametrize("share", [None, 0.5])
def test_a_batch_is_the_same_after_a_resume_and_among_processes(folders, share):
    splits = opened(folders, share=share, crop_padding=1)
    whole = batches(splits, epoch=1)
    resumed = batches(splits, epoch=1, start=1)
    assert [b.index.tolist() for b in resumed] == [b.index.tolist() for b in whole[1:]]
    assert torch.equal(resumed[0].inputs, whole[1].inputs)
    parts = [batches(splits, epoch=1, rank=rank, world=2) for rank in range(2)]
    for one, *halves in zip(whole, *parts, strict=True):
        assert sorted(one.index.tolist()) == sorted(i for half in halves for i in half.index.tolist())
    if share:  # Inside a batch the kinds do not alternate, which would give each process one of them.
        assert {int((half.index >= 16).sum()) for part in parts for half in part} - {0, 4}


def test_images_of_shards_are_mixed_with_those_that_are_read_by_themselves(folders, tmp_path):
    import io
    import tarfile

    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as file:
            for i in range(10):
                content = (folders / "pets" / ("ant", "bee")[i % 2] / f"{i}.png").read_bytes()
                for suffix, data in (("png", content), ("cls", str(i % 2).encode())):
                    info = tarfile.TarInfo(f"{i}.{suffix}")
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))
    source = f"webdataset:{tmp_path}/{{0..1}}.tar"
    for limit, share in ((2048, None), (0, None), (0, 0.5)):
        unlabelled = Unlabelled(source=f"images:{folders / 'photos'}", share=share)
        splits = open_data(DataSettings(source=source, unlabelled=unlabelled, shuffle_buffer=4, memory_limit_mb=limit))
        index = torch.cat([batch.index for batch in batches(splits)])
        assert len(index) == splits.train.per_epoch == (23 if share is None else 32)
        behind = (index >= 16).nonzero().flatten()
        assert behind.max() - behind.min() > 7  # They do not stand together.


# Texts

LABELLED = [{"text": f"{'word ' * (i % 7)}number {i}", "label": "ab"[i % 2]} for i in range(40)]
EXTRA = [f"{'other ' * (i % 5)}text {i}" for i in range(30)]


def texts(tmp_path, *, source="texts:extra.txt", share=None, **settings):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LABELLED))
    (tmp_path / "extra.txt").write_bytes("\n\r\n".join([*EXTRA, "  "]).encode())
    (tmp_path / "extra.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in EXTRA))
    (tmp_path / "extra.csv").write_text("label,text\n" + "".join(f"zebra,{text}\n" for text in EXTRA))
    kind, _, name = (source or "").partition(":")
    unlabelled = Unlabelled(source=f"{kind}:{tmp_path / name}", share=share) if source else None
    columns = {"text": "text", "tokenizer": LearnedTokenizer(bpe=300), **settings}
    return open_data(DataSettings(source=f"jsonl:{tmp_path / 't.jsonl'}", unlabelled=unlabelled, **columns))


def test_texts_join_the_training_split_of_any_source_that_has_the_column(tmp_path):
    opened = {
        kind: texts(tmp_path, source=f"{kind}:extra.{end}")
        for kind, end in (("texts", "txt"), ("jsonl", "jsonl"), ("csv", "csv"))
    }
    splits, alone = opened["texts"], texts(tmp_path, source=None)
    assert splits.sizes() == {"train": 62, "test": 8, "labelled": 32, "corrupt": 0}
    assert splits.train.labels.tolist() == [*alone.train.labels.tolist(), *[UNLABELLED] * 30]
    tokenizer = splits.text["student"].tokenizer
    decode = tokenizer._parsed.decode
    read = [decode([i for i in row if i >= 0]) for row in splits.train.fetch(np.arange(32, 62)).tolist()]
    assert read == EXTRA
    assert {each.fingerprint for each in opened.values()} == {splits.fingerprint}
    assert splits.fingerprint != alone.fingerprint
    # What is learned from training texts is learned from these too.
    assert tokenizer.fingerprint != alone.text["student"].tokenizer.fingerprint
    assert torch.equal(splits.test.labels, alone.test.labels)


@pytest.mark.parametrize(("share", "batch_size"), [(0.5, 8), (0.8, 6), (0.0, 8)])
def test_buckets_of_texts_keep_the_share_of_each_batch(tmp_path, share, batch_size):
    splits = texts(tmp_path, share=share, bucket_batches=3)
    per_epoch, lengths = round(32 * share / (1 - share)), splits.train.rows[""].lengths

    def padding(split):
        order = split.order(0, 1, batch_size=batch_size)
        whole = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
        return order, int((lengths[whole].max(axis=1, keepdims=True) - lengths[whole]).sum())

    order, bucketed = padding(splits.train)
    assert sorted(order[order < 32]) == list(range(32))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        count = int((order[start : start + batch_size] >= 32).sum())
        assert abs(count - batch_size * per_epoch / len(order)) < 1
    assert bucketed < padding(replace(splits.train, bucket_batches=1))[1]


def test_a_line_that_is_no_utf8_stops_or_is_left_out(tmp_path):
    texts(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"good\n\xff\xfe\nalso good\n")
    what = {"source": f"jsonl:{tmp_path / 't.jsonl'}", "text": "text", "tokenizer": LearnedTokenizer(bpe=300)}
    unlabelled = Unlabelled(source=f"texts:{tmp_path / 'bad.txt'}")
    with refused(InvalidValueError, "data.unlabelled.source", got="bad.txt line 2"):
        open_data(DataSettings(unlabelled=unlabelled, **what))
    splits = open_data(DataSettings(unlabelled=unlabelled, on_corrupt="skip", **what))
    assert (splits.train.unlabelled.samples, splits.train.corrupt) == (2, ["bad.txt line 2"])


# Refused

SHARE, SOURCE = "data.unlabelled.share", "data.unlabelled.source"
TEXTS = {"source": "jsonl:t", "text": "text", "tokenizer": LearnedTokenizer(bpe=300)}


@pytest.mark.parametrize(
    ("settings", "key", "suggests"),
    [
        ({"unlabelled": Unlabelled(source="images:x", share=1.0)}, SHARE, f"{SHARE}=0.5"),
        ({"unlabelled": Unlabelled(source="images:x", share=-0.1)}, SHARE, f"{SHARE}=0.5"),
        ({"unlabelled": Unlabelled(source="images:x", share=float("nan"))}, SHARE, f"{SHARE}=0.5"),
        ({"unlabelled": Unlabelled(source="texts:x")}, SOURCE, "data.unlabelled=images:<path>"),
        ({"unlabelled": Unlabelled(source="digits")}, SOURCE, "data.unlabelled=images:<path>"),
        ({"unlabelled": Unlabelled(source="images:x"), **TEXTS}, SOURCE, "data.unlabelled=texts:<path>"),
        ({"unlabelled": Unlabelled(source="texts:x"), "pack": 8, **TEXTS}, "data.unlabelled", "add its texts"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, key, suggests):
    with refused(InvalidValueError, key, suggests=suggests):
        check(DataSettings(**settings))


def test_a_source_that_is_not_there_or_has_nothing_is_named(tmp_path, folders):
    for source in ("images:nowhere", "texts:nowhere", "jsonl:nowhere", "hf:./nowhere"):
        with refused(NotFoundError, "data.unlabelled.source"):
            names.check_unlabelled(source)
    with refused(InvalidValueError, "data.source", suggests="data.unlabelled=images:photos"):
        names.check("images:photos")
    (tmp_path / "photos").mkdir()
    (tmp_path / "pets").symlink_to(folders / "pets")
    with refused(InvalidValueError, "data.unlabelled.source", got="none in images:"):
        opened(tmp_path)
    with refused(InvalidValueError, "data.unlabelled.share", suggests="data.unlabelled.share=0.059"):
        opened(folders, share=0.01)
    with refused(InvalidValueError, "data.mixup", suggests="data.unlabelled=null"):
        opened(folders, mixup=0.8)
    assert opened(folders, mixup=0.8, labelled=0).train.mixing is not None
