import errno
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers import SHARED
from tests._helpers.refusals import refused

from tutelage.data import BatchLoader, DataSettings, Unlabelled, cache, open_data
from tutelage.data.sources import hub
from tutelage.errors import InvalidValueError, NotFoundError, StorageError
from tutelage.settings.data import LearnedTokenizer

datasets = pytest.importorskip("datasets")
CIFAR = SHARED / "data" / "cifar100"


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "rows")
    datasets.disable_progress_bars()
    return tmp_path / "cache" / "pixels"


def rows(count, *, seed=0, **columns):
    random = np.random.default_rng(seed)
    images = [Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)) for _ in range(count)]
    features = {
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=["ant", "bee"]),
        "id": datasets.Value("int64"),
    }
    values = {"picture": images, "kind": [i % 2 for i in range(count)], "id": [i % 3 for i in range(count)], **columns}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def store(folder, **splits):
    (folder / "data").mkdir(parents=True)
    for name, split in splits.items():
        split.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def folder(tmp_path):
    return store(tmp_path / "pets", train=rows(20), test=rows(6, seed=1))


def settings(folder, **others):
    return DataSettings(source=f"hf:{folder}", **others)


def test_columns_are_chosen(folder):
    splits = open_data(settings(folder))
    assert splits.sizes() == {"train": 20, "test": 6, "labelled": 20, "corrupt": 0}
    assert (splits.class_names, splits.source, splits.image_size) == (("ant", "bee"), "hf:pets", (6, 6))
    expected = np.stack([np.asarray(i) for i in rows(20)["picture"]])
    pixels = splits.train.fetch(np.arange(20)).permute(0, 2, 3, 1)
    assert torch.equal(pixels, torch.from_numpy(expected).float() / 255)
    assert splits.train.labels.tolist() == [0, 1] * 10


def test_the_licence_is_that_of_its_card_or_its_files(folder, tmp_path):
    assert open_data(settings(folder)).licence is None
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Pets\n")
    assert open_data(settings(folder)).licence == "cc-by-4.0"
    stated = rows(4)
    stated.info.license = "mit"
    datasets.DatasetDict({"train": stated, "test": rows(4)}).save_to_disk(tmp_path / "stated")
    assert open_data(settings(tmp_path / "stated")).licence == "mit"


def test_an_integer_column_is_taken_when_named(folder):
    splits = open_data(settings(folder, label="id"))
    assert splits.class_names == ("0", "1", "2")
    assert splits.train.labels[:4].tolist() == [0, 1, 2, 0]


def test_images_of_a_data_set_join_another_without_their_labels(folder, tmp_path):
    more = store(tmp_path / "more", train=rows(5, seed=2, kind=[0] * 5))
    for limit in (2048, 0):
        splits = open_data(settings(folder, unlabelled=Unlabelled(source=f"hf:{more}"), memory_limit_mb=limit))
        assert splits.train.labels[20:].tolist() == [-100] * 5
        expected = np.stack([np.asarray(image) for image in rows(5, seed=2)["picture"]])
        pixels = splits.train.fetch(np.arange(20, 25)).permute(0, 2, 3, 1)
        assert torch.equal(pixels, torch.from_numpy(expected).float() / 255)
    with refused(InvalidValueError, "data.unlabelled.source", got="a, b"):
        both = store(tmp_path / "both", a=rows(2), b=rows(2))
        hub_settings = settings(folder, unlabelled=Unlabelled(source=f"hf:{both}"))
        open_data(hub_settings)


def test_texts_of_a_data_set_join_those_of_a_file(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(10)))
    more = tmp_path / "more"
    more.mkdir()
    datasets.Dataset.from_dict({"text": ["one", "two"], "label": [7, 8]}).to_parquet(more / "train.parquet")
    own = DataSettings(source=f"csv:{tmp_path / 't.csv'}", text="text", tokenizer=LearnedTokenizer(bpe=257))
    splits = open_data(replace(own, unlabelled=Unlabelled(source=f"hf:{more}")))
    assert splits.sizes() == {"train": 10, "test": 2, "labelled": 8, "corrupt": 0}
    assert splits.class_names == ("a", "b")
    with refused(InvalidValueError, "data.text", got="'word'"):
        (tmp_path / "w.csv").write_text("word,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(10)))
        open_data(
            replace(own, source=f"csv:{tmp_path / 'w.csv'}", text="word", unlabelled=Unlabelled(source=f"hf:{more}"))
        )


def test_missing_columns_list_what_there_is(folder):
    with refused(InvalidValueError, "data.label", got="'fine'", suggests="data.label=kind"):
        open_data(settings(folder, label="fine"))
    with refused(InvalidValueError, "data.image", got="'kind'", suggests="data.image=picture"):
        open_data(settings(folder, image="kind"))


def test_labels_outside_the_classes(tmp_path):
    test = rows(6).cast_column("kind", datasets.ClassLabel(names=["ant", "bee"]))
    with refused(InvalidValueError, "data.label", got=2):
        open_data(settings(store(tmp_path / "odd", train=rows(20, id=[0, 1] * 10), test=test), label="id"))
    with refused(InvalidValueError, "data.label", got=-1):
        open_data(settings(store(tmp_path / "blind", train=rows(20), test=rows(6, kind=[-1] * 6))))
    with refused(InvalidValueError, "data.label", got="kind"):
        open_data(settings(store(tmp_path / "bare", train=rows(4), test=rows(2, kind=[None, 1]))))
    with refused(InvalidValueError, "data.label", got=-2):
        open_data(settings(store(tmp_path / "low", train=rows(4, id=[0, 1, -2, 1]), test=rows(2)), label="id"))


@pytest.mark.parametrize("limit", [2048, 0])
def test_training_rows_without_a_label_are_unlabelled(tmp_path, limit):
    folder = store(tmp_path / "some", train=rows(6, kind=[None, 1, -1, 0, None, 1]), test=rows(4))
    splits = open_data(settings(folder, memory_limit_mb=limit))
    assert splits.train.labels.tolist() == [-100, 1, -100, 0, -100, 1]
    assert (splits.sizes()["labelled"], splits.classes) == (3, 2)
    assert open_data(settings(folder, labelled=1)).sizes()["labelled"] == 2
    splits = open_data(settings(store(tmp_path / "ids", train=rows(4, id=[2, -1, None, 0]), test=rows(3)), label="id"))
    assert (splits.train.labels.tolist(), splits.classes) == ([2, -100, -100, 0], 3)


def test_the_fingerprint_of_streamed_rows_follows_the_files(tmp_path):
    folder = store(tmp_path / "pets", train=rows(6), test=rows(4))
    before = open_data(settings(folder, memory_limit_mb=0)).fingerprint
    assert open_data(settings(folder, memory_limit_mb=0)).fingerprint == before
    rows(6, seed=5).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    os.utime(folder / "data" / "train-00000-of-00001.parquet", (time.time() + 10,) * 2)
    assert open_data(settings(folder, memory_limit_mb=0)).fingerprint != before


def test_splits(tmp_path):
    splits = open_data(settings(store(tmp_path / "two", train=rows(20), validation=rows(4))))
    assert len(splits.test) == 4
    assert "validation split is used for test" in splits.notes[0]
    splits = open_data(settings(store(tmp_path / "one", train=rows(20))))
    assert splits.sizes()["test"] == 4
    assert "no test set" in splits.notes[0]
    with refused(InvalidValueError, "data.source", got="test"):
        open_data(settings(store(tmp_path / "none", test=rows(4))))


def test_streamed_rows_equal_those_in_memory(folder):
    memory, stream = open_data(settings(folder, flip=True)), open_data(settings(folder, flip=True, memory_limit_mb=0))
    assert type(memory.train) is not type(stream.train)
    pairs = zip(*(BatchLoader(s.train, batch_size=7, train=True).epoch(2) for s in (memory, stream)), strict=True)
    assert all(torch.equal(a, b) for first, second in pairs for a, b in zip(first[:3], second[:3], strict=True))


def test_saved_to_disk(tmp_path):
    datasets.DatasetDict({"train": rows(6), "test": rows(4)}).save_to_disk(str(tmp_path / "disk"))
    assert open_data(settings(tmp_path / "disk")).sizes()["train"] == 6


def test_a_path_that_is_not_there():
    with refused(NotFoundError, "data.source", got="hf:./absent"):
        open_data(DataSettings(source="hf:./absent"))


def test_a_corrupt_row(tmp_path):
    bad = rows(6).cast_column("picture", datasets.Image(decode=False))
    bad = bad.map(lambda row, i: {"picture": {"bytes": b"junk", "path": None}} if i == 3 else {}, with_indices=True)
    folder = store(tmp_path / "bad", train=bad.cast_column("picture", datasets.Image()), test=rows(4))
    with refused(InvalidValueError, "data.source", got="row 3"):
        open_data(settings(folder))
    splits = open_data(settings(folder, on_corrupt="skip"))
    assert (splits.train.corrupt, len(splits.train)) == (["train row 3"], 5)
    with refused(InvalidValueError, "data.source", got="row 3"):
        open_data(settings(folder))


def test_the_cache_is_used_and_rebuilt_when_damaged(folder, caches):
    first = open_data(settings(folder))
    (entry,) = caches.iterdir()
    stored = np.load(entry / "train.npy")
    assert np.array_equal(stored, first.train.pixels.numpy())
    # A cache that is whole by its own account is believed: this one shows that it is read at all.
    layout, arrays = cache.load(entry.name)
    assert cache.save(entry.name, layout, {**arrays, "train": 255 - arrays["train"]})
    assert torch.equal(open_data(settings(folder)).train.pixels, 255 - first.train.pixels)
    for damage in (
        lambda: (entry / "train.npy").write_bytes((entry / "train.npy").read_bytes()[:-7] + b"changed"),
        lambda: (entry / "train.npy").write_bytes(b"short"),
        lambda: (entry / "test.npy").unlink(),
        lambda: (entry / "meta.json").write_text("{"),
        lambda: (entry / "meta.json").write_text("[]"),
        lambda: (entry / "meta.json").write_text("[" * 100_000),
        lambda: np.save(entry / "train.npy", np.array([{}], object), allow_pickle=True),
    ):
        damage()
        again = open_data(settings(folder))
        assert again.fingerprint == first.fingerprint
        assert torch.equal(again.train.pixels, first.train.pixels)
        assert np.array_equal(np.load(entry / "train.npy"), stored)
        assert [p.name for p in caches.iterdir()] == [entry.name]


def test_the_cache_follows_the_files_and_the_size(folder, caches):
    before = open_data(settings(folder)).fingerprint
    open_data(settings(folder, size=4))
    assert len(list(caches.iterdir())) == 2
    path = next((folder / "data").glob("train*"))
    rows(20, seed=9).to_parquet(path)
    os.utime(path, (time.time() + 10,) * 2)
    assert open_data(settings(folder)).fingerprint != before


def test_the_cache_follows_the_reader_of_pictures(folder, caches, monkeypatch):
    open_data(settings(folder))
    monkeypatch.setattr(hub, "READER_VERSION", hub.READER_VERSION + 1)
    open_data(settings(folder))
    assert len(list(caches.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_not_fatal(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "file"))
    assert len(open_data(settings(folder)).train) == 20


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_what_the_disk_refuses_is_no_missing_data_set(monkeypatch, tmp_path, code):
    def refuses(name):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(datasets, "load_dataset", refuses)
    with pytest.raises(StorageError) as caught:
        open_data(DataSettings(source="hf:someone/rows"))
    assert (caught.value.exit_code, caught.value.errno) == (1, code)
    assert str(tmp_path / "rows") in caught.value.what


def test_a_local_folder_that_cannot_be_read_is_not_there(monkeypatch, tmp_path):
    def refuses(name):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(datasets, "load_dataset", refuses)
    with refused(NotFoundError, "data.source", got=str(tmp_path)):
        open_data(DataSettings(source=f"hf:{tmp_path}"))


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "a"))
    assert cache.folder() == tmp_path / "a"
    monkeypatch.delenv("TUTELAGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache.folder() == tmp_path / "b" / "tutelage"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache.folder() == tmp_path / "c" / ".cache" / "tutelage"


@pytest.mark.slow  # smaller sets are read in every change
@pytest.mark.skipif(not CIFAR.is_dir(), reason="a local copy of CIFAR-100 is not there")
def test_cifar100():
    with refused(InvalidValueError, "data.label", suggests=["data.label=fine_label", "data.label=coarse_label"]):
        open_data(settings(CIFAR))
    splits = open_data(settings(CIFAR, label="fine_label", validation=0.1, labelled=40))
    assert splits.sizes() == {"train": 45_000, "validation": 5_000, "test": 10_000, "labelled": 4_000, "corrupt": 0}
    assert (splits.classes, splits.channels, splits.image_size, splits.source) == (100, 3, (32, 32), "hf:cifar100")
    assert splits.class_names[0] == "apple"
    assert torch.bincount(splits.validation.labels).tolist() == [50] * 100
    mean = splits.train.pixels.double().mean((0, 1, 2)) / 255
    assert mean.tolist() == pytest.approx([0.5071, 0.4865, 0.4409], abs=5e-5)
    started = time.perf_counter()
    again = open_data(settings(CIFAR, label="coarse_label"))
    assert time.perf_counter() - started < 10
    assert again.classes == 20
    assert torch.equal(again.train.pixels, splits.train.pixels)
