"""Shards, tar files and Parquet, local and behind a URL."""

import functools
import http.server
import io
import json
import os
import pickle
import tarfile
import threading
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.refusals import refused

from tutelage.data import BatchLoader, DataSettings, open_data, shards
from tutelage.data.sources import parquet
from tutelage.errors import InvalidValueError, NetworkError, NotFoundError
from tutelage.rng import buffered_permutation, next_unit
from tutelage.types import View

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]
SHARDS, EACH = 4, 6
SIZE = {"size": 8, "memory_limit_mb": 0, "random_resized_crop": True, "flip": True}


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TUTELAGE_CACHE", str(folder))
    monkeypatch.setattr(shards, "_PAUSE", 0.01)
    return folder


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (9 + number % 3, 10, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path, members):
    """Write a tar file of names and contents."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(shard, label=lambda number: str(number % 2)):
    for number in range(shard * EACH, (shard + 1) * EACH):
        yield f"some/{number:04d}.png", picture(number)
        yield f"some/{number:04d}.cls", label(number).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same samples as tar files, as Parquet and as a folder of images by class."""
    root = tmp_path_factory.mktemp("samples")
    for shard in range(SHARDS):
        pack(root / f"train-{shard:03d}.tar", samples(shard))
    for number in range(SHARDS * EACH):
        (root / "images" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (root / "images" / str(number % 2) / f"{number:04d}.png").write_bytes(picture(number))
    return root


@pytest.fixture(scope="module")
def rows(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for shard in range(SHARDS):
        numbers = range(shard * EACH, (shard + 1) * EACH)
        pictures = [{"bytes": picture(number), "path": f"{number}.png"} for number in numbers]
        table = pyarrow.table({"image": pictures, "label": [number % 2 for number in numbers], "id": list(numbers)})
        features = {"label": {"names": ["even", "odd"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(table, folder / f"train-{shard:03d}.parquet", row_group_size=4)
    return folder


@pytest.fixture
def server(folder):
    """An address of the folder, and what was asked of it."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def log_request(self, *_):
            asked.append((self.command, self.path))

        def copyfile(self, source, output):
            if self.path.endswith("torn.tar"):
                output.write(source.read(100))
            else:
                super().copyfile(source, output)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def opened(source, **others):
    return open_data(DataSettings(source=source, **{**SIZE, "test": "train", "shuffle_buffer": 5, **others}))


def epoch(splits, number=1, *, start=0, rank=0, world=1, train=True):
    loader = BatchLoader(splits.train, batch_size=5, data_seed=3, train=train)
    return list(loader.epoch(number, start=start, rank=rank, world=world))


def same(batches, expected):
    assert len(batches) == len(expected)
    return all(
        torch.equal(a, b) for x, y in zip(batches, expected, strict=True) for a, b in zip(x[:3], y[:3], strict=True)
    )


def test_samples_are_those_of_the_same_images_in_a_folder(folder, tmp_path):
    tar = opened(f"webdataset:{folder}/train-{{000..003}}.tar")
    assert tar.sizes() == {"train": 24, "test": 24, "labelled": 24, "corrupt": 0}
    assert (tar.class_names, tar.channels, tar.source) == (("0", "1"), 3, "webdataset:train-{000..003}.tar")
    assert tar.train.labels.tolist() == [number % 2 for number in range(24)]
    images = opened(f"imagefolder:{folder}/images")
    order = np.array([number // 2 + 12 * (number % 2) for number in range(24)])  # by class there
    assert torch.equal(tar.test.fetch(np.arange(24)), images.test.fetch(order))
    assert tar.margin == images.margin
    memory = opened(f"webdataset:{folder}/train-*.tar", random_resized_crop=False, memory_limit_mb=100)
    stream = opened(f"webdataset:{folder}/train-*.tar", random_resized_crop=False)
    assert type(memory.train) is not type(stream.train)
    assert same(epoch(memory), epoch(stream))
    pack(tmp_path / "all.tar", [member for shard in range(SHARDS) for member in samples(shard)])
    alone = opened(f"webdataset:{tmp_path}/all.tar", random_resized_crop=False, memory_limit_mb=100)
    assert torch.equal(alone.train.pixels, memory.train.pixels)
    assert alone.fingerprint != memory.fingerprint  # as their orders are others


def test_rows_are_the_samples_of_the_tar_files(folder, rows):
    tar, table = opened(f"webdataset:{folder}/train-*.tar"), opened(f"parquet:{folder}/train-*.parquet")
    assert table.class_names == ("even", "odd")
    assert torch.equal(tar.train.labels, table.train.labels)
    view, index = View(3, 1), np.arange(24)[::-1].copy()
    assert torch.equal(tar.train.fetch(index, view=view), table.train.fetch(index, view=view))
    assert np.bincount(table.train.units[:, 1]).tolist() == [4, 2] * 4  # row groups
    assert table.train.reader.name(23) == "train-003.parquet row 5"


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_workers_processes_and_resuming_change_nothing(folder, rows, kind):
    source = f"{kind}:{folder}/train-*.{'tar' if kind == 'webdataset' else 'parquet'}"
    splits = opened(source)
    expected = epoch(splits)
    assert sorted(torch.cat([batch.index for batch in expected]).tolist()) == list(range(24))
    assert same(epoch(opened(source)), expected)
    assert not torch.equal(epoch(splits, 2)[0].index.sort().values, expected[0].index.sort().values)
    assert same(epoch(splits, start=2), expected[2:])
    assert same(epoch(pickle.loads(pickle.dumps(splits)), start=3), expected[3:])
    shares = [epoch(splits, rank=rank, world=2) for rank in range(2)]
    assert all(torch.equal(share[0].inputs, expected[0].inputs[rank::2]) for rank, share in enumerate(shares))
    with_workers = opened(source, workers=2)
    assert same(epoch(with_workers, start=1), expected[1:])
    with_workers.close()
    assert splits.fingerprint == with_workers.fingerprint


def test_the_order_reads_units_in_turn_and_holds_no_more_than_the_buffer():
    units = np.repeat(np.arange(50), 20)[:, None]
    for buffer in (1, 7, 100):
        order = buffered_permutation(5, 2, units, buffer)
        assert sorted(order) == list(range(1000))
        assert np.array_equal(order, buffered_permutation(5, 2, units, buffer))
        read = buffered_permutation(5, 2, units, 1)
        changes = np.flatnonzero(np.diff(units[read, 0]))
        assert (len(changes), (np.diff(read.reshape(50, 20)) == 1).all()) == (49, True)
        place = np.empty(1000, np.int64)
        place[read] = np.arange(1000)
        needed = np.maximum.accumulate(place[order])  # how far is read when each sample is given out
        assert (needed + 1 - np.arange(1000)).max() <= buffer
        assert (needed - place[order]).max() < buffer
        assert not np.array_equal(order, buffered_permutation(5, 3, units, buffer))
    assert not np.array_equal(read, np.arange(1000))
    moved = place[buffered_permutation(5, 2, units, 100)] - np.arange(1000)
    assert moved.std() > 20
    levels = np.concatenate([units // 5, units], axis=1)  # shards of 5 row groups of 20 rows
    read = buffered_permutation(5, 2, levels, 1)
    assert len(np.flatnonzero(np.diff(levels[read, 0]))) == 9
    assert len(np.flatnonzero(np.diff(levels[read, 1]))) == 49
    assert (np.diff(levels[read, 1].reshape(50, 20)[:, 0]) != 1).sum() > 30


def test_what_is_read_next():
    view, units = View(5, 2), np.repeat(np.arange(50), 20)[:, None]
    read = units[buffered_permutation(5, 2, units, 1), 0]
    expected = list(dict.fromkeys(read.tolist()))
    follows = [next_unit(view, read[: 20 * count + 1], 50) for count in range(50)]
    assert follows == [*expected[1:], None]
    assert [next_unit(None, np.array(present), 4) for present in ([0, 2], [3], [])] == [3, None, 0]


def test_without_a_buffer_the_whole_is_shuffled(folder):
    splits = opened(f"webdataset:{folder}/train-*.tar", shuffle_buffer=None)
    images = opened(f"imagefolder:{folder}/images")
    assert np.array_equal(splits.train.order(1, 2, batch_size=4), images.train.order(1, 2, batch_size=4))


def test_validation_and_a_test_set_of_its_own(folder):
    source = f"webdataset:{folder}/train-{{000..002}}.tar"
    splits = opened(source, test="held_out", test_shards=f"{folder}/train-003.tar", validation=0.2)
    assert splits.sizes() == {"train": 14, "validation": 4, "test": 6, "labelled": 14, "corrupt": 0}
    assert len(splits.train.order(0, 0, batch_size=4)) == 14
    held = opened(source, test="held_out")
    assert held.sizes()["test"] == 4
    assert np.bincount(held.train.units[:, 0]).sum() == 14
    with refused(InvalidValueError, "data.test_shards", suggests="data.test_shards=null"):
        opened("digits", test_shards="x.tar")
    with refused(InvalidValueError, "data.test", suggests="data.test=held_out"):
        opened(source, test_shards="x.tar")


def test_labels_by_name_and_in_json(tmp_path):
    members = [("README.md", b"text")]
    for i in range(4):
        members += [(f"{i}.seg.PNG", picture(i)), (f"{i}.jpg", picture(i + 9)), (f"{i}.notes.txt", b"none")]
        members += [
            (f"{i}.cls", b"bee\n" if i % 2 else b"ant"),
            (f"{i}.json", json.dumps({"k": i % 2 or None}).encode()),
        ]
    source = f"webdataset:{pack(tmp_path / 'a.tar', members)}"
    splits = opened(source)
    assert (splits.class_names, splits.train.labels.tolist()) == (("ant", "bee"), [0, 1, 0, 1])
    masks = opened(source, image="seg.png")
    assert not torch.equal(masks.train.fetch(np.arange(4)), splits.train.fetch(np.arange(4)))
    assert masks.train.reader.name(2) == "a.tar/2"
    numbers = opened(source, label="json.k")
    assert (numbers.class_names, numbers.train.labels.tolist()) == (("0", "1"), [-100, 1, -100, 1])


def test_labels_that_do_not_fit(tmp_path, folder):
    def one(**content):
        members = [(f"{i}.{kind}", value) for i in range(3) for kind, value in content.items()]
        return f"webdataset:{pack(tmp_path / 'one.tar', members)}"

    source = one(jpg=picture(0), json=b'{"k": [1], "n": null}')
    for label, got in (("json.none", "one.tar/0.json"), ("json.k", "list"), ("json.n", "none"), (None, "none")):
        with refused(InvalidValueError, "data.label", got=got):
            opened(source, label=label)
    with refused(InvalidValueError, "data.image", got="one.tar/0", suggests="data.image=jpg"):
        opened(one(jpg=b"", png=b"", cls=b"1"))
    for label in (b"\xff", b"long" * 99, b"x" * 2**21):
        with refused(InvalidValueError, "data.label", got="one.tar/0.cls"):
            opened(one(jpg=b"", cls=label))
    train, test = f"webdataset:{folder}/train-000.tar", str(tmp_path / "one.tar")
    for label, got in ((b"2", "'2'"), (b"-1", "sample 0"), (b"", "sample 0")):
        one(png=picture(0), cls=label)
        with refused(InvalidValueError, "data.label", got=got):
            opened(train, test="held_out", test_shards=test)


def test_a_sample_that_cannot_be_read(tmp_path):
    members = list(samples(0))
    members[2] = (members[2][0], b"no picture")
    members.pop(8)  # the fifth sample's picture
    path = pack(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        for number in (0, 4):  # which have a picture, and none
            link = tarfile.TarInfo(f"some/{number:04d}.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(link)
    splits = opened(f"webdataset:{path}", on_corrupt="skip")
    assert sum(len(batch.index) for batch in epoch(splits)) == 4
    assert sorted(splits.train.corrupt) == ["a.tar/some/0001", "a.tar/some/0004"]
    with refused(InvalidValueError, "data.source", got="a.tar/some/0001", suggests="data.on_corrupt=skip"):
        epoch(opened(f"webdataset:{path}"), train=False)


def test_a_damaged_shard(tmp_path, folder):
    whole = (folder / "train-001.tar").read_bytes()
    path = tmp_path / "torn.tar"
    path.write_bytes(whole[:4000])
    (tmp_path / "train-000.tar").write_bytes((folder / "train-000.tar").read_bytes())
    source = f"webdataset:{tmp_path}/t*.tar"
    with refused(InvalidValueError, "data.source", got="torn.tar", suggests="data.on_corrupt=skip"):
        opened(source)
    splits = opened(source, on_corrupt="skip")
    kept = len(splits.train) - EACH
    assert 0 < kept < EACH
    assert f"of it {kept} samples are used" in splits.notes[0]
    for content in (b"junk" * 300, b"\x1f\x8b" + bytes(600)):
        path.write_bytes(content)
        with refused(InvalidValueError, "data.source", got="torn.tar", suggests="unpack it"):
            opened(source, on_corrupt="skip")
    for content in (b"", *(whole[:size] for size in (100, 512, 700))):
        path.write_bytes(content)
        with refused(InvalidValueError, "data.source", got="torn.tar", suggests="data.on_corrupt=skip"):
            opened(source)
        splits = opened(source, on_corrupt="skip")
        assert f"of it {len(splits.train) - EACH} samples are used" in splits.notes[0]
        assert len(splits.train) - EACH <= (len(content) >= 512)  # one whose header is whole


def test_places_of_shards(tmp_path, folder):
    for pattern, got in (("none-*.tar", "none-*.tar"), ("train-{000..004}.tar", "train-004.tar"), ("", str(folder))):
        with refused(NotFoundError, "data.source", got=got):
            opened(f"webdataset:{folder}/{pattern}")
    for pattern in ("train-{5..1}.tar", "train-{a..b}.tar"):
        with refused(InvalidValueError, "data.source", suggests="its first and last number"):
            opened(f"webdataset:{folder}/{pattern}")
    with refused(InvalidValueError, "data.source", got="s3://bucket/a.tar", suggests="https"):
        opened("webdataset:s3://bucket/a.tar")
    with refused(InvalidValueError, "data.source"):
        opened(f"webdataset:{folder}/{{0..9999}}{{0..9999}}.tar")
    for name, letters in {"b1": "bb", "a2": "a", "b3": "bb"}.items():
        pack(tmp_path / f"{letters}{name[1]}.tar", [(f"{name}.png", picture(int(name[1]))), (f"{name}.cls", b"1")])
    splits = opened(f"webdataset:{tmp_path}/{{bb3,bb1,a2}}.tar", label=None)
    assert [splits.train.reader.name(i) for i in range(3)] == ["bb3.tar/b3", "bb1.tar/b1", "a2.tar/a2"]


def test_columns_of_parquet(folder, rows, tmp_path):
    import pyarrow
    from pyarrow import parquet

    source = f"parquet:{folder}/train-*.parquet"
    assert opened(source, label="id").classes == 24
    for key, value in (("label", "image"), ("image", "id"), ("label", "none")):
        with refused(InvalidValueError, f"data.{key}", got=f"'{value}'"):
            opened(source, **{key: value})
    named = pyarrow.table({"jpg": [picture(0), None, b"no"], "kind": ["ant", "bee", "ant"], "other": ["", "", "x"]})
    parquet.write_table(named, tmp_path / "named.parquet")
    with refused(InvalidValueError, "data.label", got=2, suggests=["data.label=kind", "data.label=other"]):
        opened(f"parquet:{tmp_path}/named.parquet")
    parquet.write_table(named.append_column("text", [["x" * 300] * 3]), tmp_path / "text.parquet")
    with refused(InvalidValueError, "data.label", got=["text", "text.parquet"]):
        opened(f"parquet:{tmp_path}/text.parquet", label="text")
    splits = opened(f"parquet:{tmp_path}/named.parquet", label="kind", on_corrupt="skip")
    assert (splits.class_names, splits.train.labels.tolist()) == (("ant", "bee"), [0, 1, 0])
    assert [len(batch.index) for batch in epoch(splits)] == [1]
    assert sorted(splits.train.corrupt) == ["named.parquet row 1", "named.parquet row 2"]


def test_a_damaged_parquet_file(folder, rows, tmp_path):
    content = bytearray((folder / "train-000.parquet").read_bytes())
    (tmp_path / "torn.parquet").write_bytes(content[:-20])
    with refused(InvalidValueError, "data.source", got="torn.parquet"):
        opened(f"parquet:{tmp_path}/torn.parquet")
    path = tmp_path / "later.parquet"
    path.write_bytes(content)
    splits = opened(f"parquet:{path}", on_corrupt="skip")
    path.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    with refused(InvalidValueError, "data.source", got="later.parquet row 0"):
        epoch(pickle.loads(pickle.dumps(splits)), train=False)  # which holds no row groups


def test_row_groups_that_are_held_have_a_bound(folder, rows, monkeypatch):
    for held, count in ((1, 1), (2**29, 8)):
        monkeypatch.setattr(parquet, "HELD", held)
        splits = opened(f"parquet:{folder}/train-*.parquet")
        groups, read = splits.train.reader.groups, []
        for batch in BatchLoader(splits.train, batch_size=2, train=True).epoch(0):
            read.append(len(groups._kept))
            assert len(batch.index) == 2
        assert (max(read), len(groups._kept)) == (count, count)
        assert groups.held <= max(held, max(values.nbytes for values in groups._kept.values()))


def test_shards_behind_a_url(folder, rows, server, caches):
    address, asked = server
    for kind, suffix in (("webdataset", "tar"), ("parquet", "parquet")):
        source = f"{kind}:{address}/train-{{000..003}}.{suffix}"
        splits, local = opened(source), opened(f"{kind}:{folder}/train-*.{suffix}")
        assert same(epoch(splits), epoch(local))
        assert (splits.fingerprint, splits.source) == (local.fingerprint, source)
        copies = [request for request in asked if request[0] == "GET"]
        assert len(copies) == SHARDS
        asked.clear()
        again = opened(source, workers=2)
        assert same(epoch(again, start=2), epoch(local, start=2))
        again.close()
        assert not [request for request in asked if request[0] == "GET"]
        asked.clear()
    assert len([path for path in (caches / "shards").iterdir() if path.suffix != ".lock"]) == 2 * SHARDS


def room_of(folder):
    """The bytes of a folder's copies; once more where the thread that copies renamed or removed one meanwhile."""
    while True:
        with suppress(FileNotFoundError):
            return sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".lock")


def test_copies_make_room(folder, server, caches, monkeypatch):
    address, asked = server
    source = f"webdataset:{address}/train-{{000..003}}.tar"
    largest = max(path.stat().st_size for path in folder.glob("*.tar"))
    monkeypatch.setenv("TUTELAGE_SHARDS_GB", str(largest * 3.5 / 1e9))
    with refused(InvalidValueError, "data.shuffle_buffer", suggests="TUTELAGE_SHARDS_GB"):
        opened(source, shuffle_buffer=7)
    with refused(InvalidValueError, "data.mixup", suggests="data.mixup=0"):
        opened(source, shuffle_buffer=1, mixup=0.5)
    splits = opened(source, shuffle_buffer=1)
    asked.clear()
    most = 0
    for batch in BatchLoader(splits.train, batch_size=2, train=True).epoch(0):
        most = max(most, room_of(caches / "shards"))
        assert len(batch.index) == 2
    assert 0 < most <= largest * 3.5
    assert len(asked) <= SHARDS
    for text in ("much", "0", "nan"):
        monkeypatch.setenv("TUTELAGE_SHARDS_GB", text)
        with refused(InvalidValueError, "TUTELAGE_SHARDS_GB", got=text):
            opened(source)


def test_the_next_shard_is_copied_meanwhile(folder, server, monkeypatch):
    address, asked = server
    largest = max(path.stat().st_size for path in folder.glob("*.tar"))
    monkeypatch.setenv("TUTELAGE_SHARDS_GB", str(largest * 3.5 / 1e9))
    splits = opened(f"webdataset:{address}/train-{{000..003}}.tar", shuffle_buffer=1)
    assert splits.train.ahead is splits.test.ahead
    order = splits.train.order(3, 1, batch_size=4)
    first, second = dict.fromkeys(splits.train.units[order, 0].tolist()[: EACH + 1])
    for number, path in enumerate(shards.copied(shard, what="") for shard in splits.train.ahead.shards):
        if number in (first, second):
            path.unlink(missing_ok=True)
    asked.clear()
    splits.train.fetch(order[:2], view=View(3, 1))
    splits.train.ahead.copying.join()
    assert sorted(path for _, path in asked) == sorted(f"/train-{number:03d}.tar" for number in (first, second))
    assert splits.train.ahead._number == second
    assert pickle.loads(pickle.dumps(splits)).train.ahead.copying is None


def test_servers_that_fail(folder, server, monkeypatch):
    address, asked = server
    with refused(NotFoundError, "data.source", got=404):
        opened(f"webdataset:{address}/none.tar")
    assert len(asked) == 2  # whether the server answers at all, and how long the file is
    (folder / "torn.tar").write_bytes((folder / "train-000.tar").read_bytes())
    asked.clear()
    with refused(NetworkError, "data.source", got="torn.tar"):
        opened(f"webdataset:{address}/torn.tar")
    assert [request[0] for request in asked] == ["HEAD", "HEAD", *["GET"] * shards.ATTEMPTS]
    (folder / "torn.tar").unlink()
    with refused(NetworkError, "data.source", got="http://127.0.0.1:1/a.tar") as caught:
        opened("webdataset:http://127.0.0.1:1/a.tar?key=secret")
    assert "secret" not in str(caught.value)
    with refused(InvalidValueError, "data.source", got="http://127.0.0.1/a.tar") as caught:
        opened("webdataset:http://me:secret@127.0.0.1/a.tar")
    assert "secret" not in str(caught.value)


def test_a_shard_that_changes_is_read_again(tmp_path, caches):
    path = pack(tmp_path / "a.tar", samples(0))
    first = opened(f"webdataset:{path}")
    assert opened(f"webdataset:{path}").fingerprint == first.fingerprint
    (content,) = (caches / "shard_contents").iterdir()
    content.write_bytes(content.read_bytes()[:-1] + b"~")
    assert opened(f"webdataset:{path}").fingerprint == first.fingerprint
    pack(path, samples(1))
    os.utime(path, (5, 5))
    changed = opened(f"webdataset:{path}")
    assert (changed.fingerprint != first.fingerprint, changed.train.reader.name(0)) == (True, "a.tar/some/0006")
