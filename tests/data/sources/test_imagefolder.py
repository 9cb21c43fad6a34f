import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tests._helpers import SHARED
from tests._helpers.refusals import refused

from tutelage import images
from tutelage.data import BatchLoader, DataSettings, RandAugment, file_hashes, open_data
from tutelage.data.names import is_picture
from tutelage.data.transforms import draw_boxes
from tutelage.errors import InvalidValueError, NotFoundError
from tutelage.types import View

# Python 3.12 warns of forks beside threads, of which numerical libraries keep some; torch of more workers than cores.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def image(number, size=(24, 24)):
    grey = Image.fromarray((load_digits().images[number] * 15).astype(np.uint8)).resize(size)
    return Image.merge("RGB", [grey, grey.rotate(90).resize(size), grey.rotate(180)])


def fill(folder, per_class=5, size=None, kind="png"):
    for c, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            shape = size or (20 + 3 * i, 30 - 2 * c)
            image(c * per_class + i, shape).save(folder / name / f"{i}.{kind}")
    return folder


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")  # not in tmp_path, which is itself a folder of images in some tests
    monkeypatch.setenv("TUTELAGE_CACHE", str(folder))
    return folder


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "pets" / "train")
    fill(tmp_path / "pets" / "test", per_class=2)
    return tmp_path / "pets"


def settings(root, **others):
    return DataSettings(source=f"imagefolder:{root}", **others)


def test_train_and_test(root):
    splits = open_data(settings(root, size=16))
    assert splits.sizes() == {"train": 15, "test": 6, "labelled": 15, "corrupt": 0}
    assert splits.class_names == ("ant", "bee", "cat")
    assert splits.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert (splits.channels, splits.image_size, splits.source) == (3, (16, 16), "imagefolder:pets")
    assert splits.notes == ()


def test_mixed_sizes_become_224_and_one_size_stays(tmp_path, root):
    assert open_data(settings(root)).image_size == (224, 224)
    assert open_data(settings(fill(tmp_path / "even", size=(12, 10)))).image_size == (10, 12)
    image(0, (12, 11)).save(tmp_path / "even" / "cat" / "9.png")
    assert open_data(settings(tmp_path / "even", size=None)).image_size == (224, 224)


def test_a_size_resizes_images_of_one_size_as_a_whole(tmp_path):
    for i in range(5):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        image(i, (20, 20)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    splits = open_data(settings(tmp_path, size=10))
    expected = [np.asarray(image(i, (20, 20)).resize((10, 10), Image.Resampling.BILINEAR)).tobytes() for i in range(5)]
    assert {p.tobytes() for s in (splits.train, splits.test) for p in s.pixels.numpy()} == set(expected)


def test_one_size_is_kept_bit_for_bit(tmp_path):
    folder = fill(tmp_path / "even", size=(12, 10))
    splits = open_data(settings(folder))
    expected = sorted(np.asarray(Image.open(path)).tobytes() for path in folder.rglob("*.png"))
    views = torch.cat([part.fetch(np.arange(len(part))) for part in (splits.train, splits.test)])
    assert sorted((i.permute(1, 2, 0) * 255).round().byte().numpy().tobytes() for i in views) == expected


def test_grey_images_have_one_channel(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(5):
            image(i).convert("L").save(tmp_path / name / f"{i}.png")
    assert open_data(settings(tmp_path)).channels == 1
    image(1, (8, 8)).save(tmp_path / "bee" / "4.png")
    (tmp_path / "ant" / "4.png").unlink()
    assert open_data(settings(tmp_path)).channels == 3


def test_without_a_test_folder_a_fifth_is_held_out(tmp_path):
    folder = fill(tmp_path / "alone", per_class=10)
    splits = open_data(settings(folder, size=8))
    assert splits.sizes()["train"] == 24
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert "6 of its 30 images were held out (split_seed 0)" in splits.notes[0]
    assert open_data(settings(folder, size=8, split_seed=1)).fingerprint != splits.fingerprint


def test_one_image_per_class_cannot_be_held_out_but_may_be_evaluated_on(tmp_path):
    folder = fill(tmp_path / "alone", per_class=1)
    with refused(InvalidValueError, "data.source", got="ant", suggests="data.test=train") as caught:
        open_data(settings(folder, size=8))
    assert "\n" not in str(caught.value)
    for limit in (2048, 0):
        others = {"size": 8, "test": "train", "crop_padding": 2, "flip": True, "memory_limit_mb": limit}
        splits = open_data(settings(folder, **others))
        assert splits.sizes() == {"train": 3, "test": 3, "labelled": 3, "corrupt": 0}
        assert splits.test.labels.tolist() == splits.train.labels.tolist() == [0, 1, 2]
        assert "the test set is the 3 training images, not augmented" in splits.notes[0]
        index, view = np.arange(3), View(0, 0)
        assert torch.equal(splits.test.fetch(index, view=view), splits.train.fetch(index))
        assert not torch.equal(splits.train.fetch(index, view=view), splits.train.fetch(index))
    some = open_data(settings(folder, size=8, test="train", labelled=0))
    assert (some.sizes()["labelled"], some.test.labels.tolist()) == (0, [0, 1, 2])


def test_training_images_that_are_the_test_set_are_kept_and_counted_once(tmp_path):
    folder = fill(tmp_path / "alone", per_class=2)
    (folder / "cat" / "0.png").write_text("not an image")
    for limit in (2048, 0):
        splits = open_data(settings(folder, size=8, test="train", on_corrupt="skip", memory_limit_mb=limit))
        for split in (splits.train, splits.test):
            assert sum(len(b.index) for b in BatchLoader(split, batch_size=9, train=False).epoch(0)) == 5
        assert splits.sizes()["corrupt"] == 1
    memory = open_data(settings(folder, size=8, test="train", on_corrupt="skip"))
    assert memory.train.pixels is memory.test.pixels


@pytest.mark.parametrize("source", ["digits", "torchvision:MNIST", None])
def test_a_test_set_that_is_there_is_not_passed_over(root, source):
    with refused(InvalidValueError, "data.test", got="'train'", suggests="data.test=held_out"):
        open_data(DataSettings(source=source or f"imagefolder:{root}", test="train"))


def boxed(original, sample, view, resampling):
    """Return a sample's random box by Pillow, whose resizing differs from PyTorch's in the rounding."""
    (draw,) = draw_boxes(np.array([sample]), view=view)
    return np.asarray(original.crop(draw.box(*original.size)).resize((14, 14), resampling), dtype=int)


def test_bicubic_views(root):
    bilinear, bicubic = (open_data(settings(root, size=14, interpolation=name)) for name in ("bilinear", "bicubic"))
    assert (bilinear.interpolation, bicubic.interpolation) == ("bilinear", "bicubic")
    original = Image.open(root / "test" / "ant" / "0.png")
    expected = np.asarray(original.resize((16, 24), Image.Resampling.BICUBIC).crop((1, 5, 15, 19)))
    centre = bicubic.test.fetch(np.array([0]))[0].permute(1, 2, 0)
    assert np.array_equal((centre * 255).round().byte().numpy(), expected)
    assert not torch.equal(bilinear.test.fetch(np.arange(6)), bicubic.test.fetch(np.arange(6)))
    splits = open_data(settings(root, size=14, interpolation="bicubic", random_resized_crop=True))
    assert torch.equal(splits.test.fetch(np.arange(6)), bicubic.test.fetch(np.arange(6)))
    path, view = sorted((root / "train").rglob("*.png"))[7], View(2, 3)
    original = Image.open(path)
    expected = boxed(original, 7, view, Image.Resampling.BICUBIC)
    crop = splits.train.fetch(np.array([7]), view=view)[0]
    assert np.abs((crop.permute(1, 2, 0) * 255).numpy() - expected).max() <= 2 + 1e-3


@pytest.mark.parametrize("limit", [2048, 0])
def test_the_share_of_the_evaluation_view(tmp_path, root, limit):
    splits = open_data(settings(root, size=14, test_crop=0.5, memory_limit_mb=limit))
    assert splits.margin == 2
    original = Image.open(root / "test" / "ant" / "0.png")
    expected = np.asarray(original.resize((28, 42), Image.Resampling.BILINEAR).crop((7, 14, 21, 28)))
    view = splits.test.fetch(np.array([0]))[0].permute(1, 2, 0)
    assert np.array_equal((view * 255).round().byte().numpy(), expected)
    assert open_data(settings(root, size=14, memory_limit_mb=limit)).margin == 256 / 224
    even = fill(tmp_path / "even", size=(12, 10))
    assert open_data(settings(even, size=8, memory_limit_mb=limit)).margin == 1
    assert open_data(settings(even, size=8, test_crop=0.875, memory_limit_mb=limit)).margin == 1 / 0.875


SAMPLE = SHARED / "data" / "imagenet_sample"


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of ImageNet is not beside the repository")
def test_photographs_one_per_class():
    with refused(InvalidValueError, "data.source", suggests="data.test=train"):
        open_data(settings(SAMPLE))
    others = {"test": "train", "random_resized_crop": True, "interpolation": "bicubic", "mixup": 0.8, "cutmix": 1.0}
    splits = open_data(settings(SAMPLE, **others, random_erasing=0.25, randaugment=RandAugment()))
    assert splits.sizes() == {"train": 1000, "test": 1000, "labelled": 1000, "corrupt": 0}
    batch = next(BatchLoader(splits.train, batch_size=8, train=True).epoch(0))
    assert (batch.inputs.shape, batch.labels.shape) == ((8, 3, 224, 224), (8, 1000))
    assert next(BatchLoader(splits.test, batch_size=8, train=False).epoch(0)).labels.tolist() == list(range(8))


def test_val_is_used_for_test_and_noted(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", per_class=1)
    splits = open_data(settings(tmp_path, size=8))
    assert len(splits.test) == 3
    assert "val is used for test" in splits.notes[0]


def test_memory_and_stream_agree(root):
    memory = open_data(settings(root, size=16, crop_padding=2, flip=True))
    stream = open_data(settings(root, size=16, crop_padding=2, flip=True, memory_limit_mb=0))
    assert type(memory.train) is not type(stream.train)
    index = np.arange(15)
    for view in (None, View(1, 2)):
        assert torch.equal(memory.train.fetch(index, view=view), stream.train.fetch(index, view=view))


def test_evaluation_view_is_the_centre(root):
    splits = open_data(settings(root, size=14, memory_limit_mb=0))
    original = Image.open(root / "test" / "ant" / "0.png")
    assert original.size == (20, 30)
    expected = np.asarray(original.resize((16, 24), Image.Resampling.BILINEAR).crop((1, 5, 15, 19)))
    view = splits.test.fetch(np.array([0]))[0].permute(1, 2, 0)
    assert np.array_equal((view * 255).round().byte().numpy(), expected)


def test_random_boxes_equal_a_plain_computation(root):
    splits = open_data(settings(root, size=14, random_resized_crop=True))
    view = View(2, 3)
    views = splits.train.fetch(np.arange(15), view=view)
    for position, path in enumerate(sorted((root / "train").rglob("*.png"))):
        original = Image.open(path)
        expected = boxed(original, position, view, Image.Resampling.BILINEAR)
        assert np.abs((views[position].permute(1, 2, 0) * 255).numpy() - expected).max() <= 2 + 1e-3
    assert not torch.equal(views, splits.train.fetch(np.arange(15), view=View(2, 4)))
    assert not torch.equal(views, splits.train.fetch(np.arange(15)))


@pytest.mark.parametrize("workers", [0, 1, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_do_not_change_anything(root, workers):
    def batches(count):
        splits = open_data(settings(root, size=14, random_resized_crop=True, flip=True, workers=count))
        return BatchLoader(splits.train, batch_size=4, train=True)

    before = torch.get_rng_state()
    expected, loaded = list(batches(0).epoch(1))[1:], list(batches(workers).epoch(1, start=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(expected) == len(loaded) == 3
    assert all(
        torch.equal(a, b) for x, y in zip(expected, loaded, strict=True) for a, b in zip(x[:3], y[:3], strict=True)
    )
    shares = [list(batches(workers).epoch(1, start=1, rank=rank, world=2)) for rank in range(2)]
    assert torch.equal(shares[1][0].inputs, expected[0].inputs[1::2])


def spoil(root):
    path = root / "train" / "bee" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    (root / "train" / "cat" / "0.png").write_text("not an image")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops_with_its_name(root, workers):
    spoil(root)
    splits = open_data(settings(root, size=14, memory_limit_mb=0, workers=workers))
    with refused(InvalidValueError, "data.source", got="train/bee/1.png", suggests="data.on_corrupt=skip") as caught:
        list(BatchLoader(splits.train, batch_size=4, train=False).epoch(0))
    assert "\n" not in str(caught.value)
    with refused(InvalidValueError, "data.source", got="train/bee/1.png"):
        open_data(settings(root, size=14))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_skipped_and_counted(root, workers):
    spoil(root)
    splits = open_data(settings(root, size=14, memory_limit_mb=0, workers=workers, on_corrupt="skip"))
    batches = BatchLoader(splits.train, batch_size=4, train=True)
    for epoch in range(2):
        seen = list(batches.epoch(epoch))
        assert sorted(torch.cat([b.index for b in seen]).tolist()) == sorted(set(range(15)) - {6, 10})
        assert all(len(b.index) == len(b.inputs) == len(b.labels) for b in seen)
    assert sorted(batches.corrupt) == ["train/bee/1.png", "train/cat/0.png"]
    assert splits.sizes()["corrupt"] == 2
    with refused(InvalidValueError, "data.source", got="train/bee/1.png"):
        splits.train.fetch(np.array([6]))


def test_a_corrupt_image_is_left_out_of_memory(root):
    spoil(root)
    splits = open_data(settings(root, size=14, on_corrupt="skip"))
    assert splits.sizes() == {"train": 13, "test": 6, "labelled": 13, "corrupt": 2}
    assert splits.train.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 4


def test_a_batch_without_a_readable_image_is_an_error(root):
    spoil(root)
    splits = open_data(settings(root, size=14, memory_limit_mb=0, on_corrupt="skip"))
    with refused(InvalidValueError, "data.source", got=[1, "train/bee/1.png"], suggests="batch_size") as caught:
        list(BatchLoader(splits.train, batch_size=1, train=False).epoch(0))
    assert "on_corrupt" not in str(caught.value)
    for i in range(5):
        for name in ("ant", "bee"):
            (root / "train" / name / f"{i}.png").write_bytes(b"")
    with refused(InvalidValueError, "data.source", got=["train/ant/0.png", "train/ant/4.png", 4]):
        list(BatchLoader(splits.train, batch_size=9, train=False).epoch(0))


def test_one_class_teaches_nothing(tmp_path):
    fill(tmp_path / "pets", size=(8, 8))
    for name in ("bee", "cat"):
        (tmp_path / "pets" / name).rename(tmp_path / name)
    with refused(InvalidValueError, "data", got=[1, "imagefolder:pets", "ant"]):
        open_data(settings(tmp_path / "pets"))


def test_palette_with_transparency(root):
    image(0).quantize(8).save(root / "train" / "ant" / "0.png", transparency=0)
    assert open_data(settings(root, size=14)).sizes()["corrupt"] == 0


def test_fingerprint_follows_the_content(root):
    for limit in (2048, 0):
        before = open_data(settings(root, size=14, memory_limit_mb=limit)).fingerprint
        assert before == open_data(settings(root, size=14, memory_limit_mb=limit)).fingerprint
        image(50, (90, 80)).save(root / "train" / "ant" / f"more{limit}.png")
        assert before != open_data(settings(root, size=14, memory_limit_mb=limit)).fingerprint


def test_fingerprint_of_streamed_images_follows_their_bytes(root):
    path = root / "train" / "ant" / "0.png"
    before = open_data(settings(root, size=14, memory_limit_mb=0)).fingerprint
    content, times = bytearray(path.read_bytes()), path.stat()
    content[-20] ^= 1
    path.write_bytes(content)
    assert path.stat().st_size == times.st_size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    assert open_data(settings(root, size=14, memory_limit_mb=0)).fingerprint != before


def test_only_files_that_were_touched_are_read_again(root, monkeypatch):
    def fingerprint():
        return open_data(settings(root, size=14, memory_limit_mb=0)).fingerprint

    def reading(path, max_bytes):
        read.append(path.name)
        return hashed(path, max_bytes)

    hashed, read = file_hashes._hash, []
    monkeypatch.setattr(file_hashes, "_hash", reading)
    first = fingerprint()
    assert len(read) == 21
    assert (fingerprint(), len(read)) == (first, 21)
    os.utime(root / "train" / "cat" / "3.png", (5, 5))
    assert (fingerprint(), read[21:]) == (first, ["3.png"])


def test_kept_digests_that_are_damaged_are_ignored(root, caches):
    first = open_data(settings(root, size=14, memory_limit_mb=0)).fingerprint
    (path,) = (caches / "digests").iterdir()
    whole = path.read_bytes()
    for damage in (b"", b"junk", whole[: len(whole) // 2], whole[:200] + b"~~~~" + whole[204:]):
        path.write_bytes(damage)
        assert open_data(settings(root, size=14, memory_limit_mb=0)).fingerprint == first
        assert len(file_hashes._load(path).names) == 22  # and the row for all others


def test_digests_that_cannot_be_kept_are_not_fatal(root, tmp_path, monkeypatch):
    first = open_data(settings(root, size=14, memory_limit_mb=0)).fingerprint
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "file"))
    assert open_data(settings(root, size=14, memory_limit_mb=0)).fingerprint == first


def test_faults_of_folders(tmp_path, root):
    with refused(NotFoundError, "data.source", got="absent"):
        open_data(settings(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with refused(InvalidValueError, "data.source", got="empty"):
        open_data(settings(tmp_path / "empty"))
    (tmp_path / "empty" / "ant").mkdir()
    with refused(InvalidValueError, "data.source", got="empty"):
        open_data(settings(tmp_path / "empty"))
    (root / "train" / "dog").mkdir()
    with refused(InvalidValueError, "data.source", got="dog"):
        open_data(settings(root))
    (root / "train" / "dog").rename(root / "test" / "dog")
    with refused(InvalidValueError, "data.source", got="dog"):
        open_data(settings(root))


def test_nothing_readable(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(b"")
    with refused(InvalidValueError, "data.source"):
        open_data(settings(tmp_path, on_corrupt="skip"))


def plainly_listed(base, classes):
    """The files in the order of os.walk, each folder's sorted, and the bytes that a fingerprint is made of."""
    paths = []
    for name in classes:
        for folder, below, files in os.walk(base / name):
            below.sort()
            kept = [f for f in sorted(files) if Path(f).suffix.lower() in (".png", ".jpg") and not f.startswith(".")]
            paths += [Path(folder, f) for f in kept]
    lines = []
    for path in paths:
        known = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64
        lines.append(os.fsencode(path.relative_to(base)) + b" " + known.encode())
    return b"\n".join(lines)


def test_files_are_listed_in_order_whatever_their_names(tmp_path):
    ant = fill(tmp_path / "pets") / "ant"
    (ant / "0.png").rename(ant / "Z.PNG")
    (ant / "1.png").rename(ant / "\ue000.png")
    (ant / "2.png").rename(ant / os.fsdecode(b"\xff\xfe.png"))  # no text in UTF-8, sorted before \ue000 as text
    for name in (".hidden.png", "notes.txt", "png", "a.b.jpg", "x.png.txt"):
        (ant / name).write_bytes(name.encode())
    for name in ("sub", "sub/z", "a.png", ".dot"):  # folders, one of which has a picture's name
        (ant / name).mkdir()
        (ant / name / "0.jpg").write_bytes(name.encode())
    (ant / "link.png").symlink_to(ant / "3.png")
    (ant / "broken.png").symlink_to(ant / "none.png")
    (ant / "linked").symlink_to(tmp_path / "pets" / "bee")
    files, counts = file_hashes.scan(tmp_path / "pets", ["ant", "bee", "cat"], keep=is_picture)
    expected = plainly_listed(tmp_path / "pets", ["ant", "bee", "cat"])
    for _ in range(2):
        assert file_hashes.listing(files) == expected
    assert (counts.tolist(), len(files.names)) == ([12, 5, 5], 22)
    reader = open_data(settings(tmp_path / "pets", size=8, memory_limit_mb=0)).train.reader.reader
    assert [os.fsencode(reader.name(i)) for i in range(22)] == [line[:-65] for line in expected.split(b"\n")]


def test_digests_of_a_part_of_a_folder_keep_those_of_the_rest(root, monkeypatch):
    halves = [file_hashes.scan(root, [name], keep=bool)[0] for name in ("train", "test")]
    expected = [file_hashes.listing(half) for half in halves]
    monkeypatch.setattr(file_hashes, "_hash", None)
    assert [file_hashes.listing(half) for half in halves] == expected


@pytest.mark.parametrize("limit", [2048, 0])
def test_unchanged_pictures_are_not_opened_again(root, limit, monkeypatch):
    def opening(encoded):
        names.append(encoded.name)
        return opened(encoded)

    opened, names = images.opened, []
    monkeypatch.setattr(images, "opened", opening)
    for size in (None, 14):
        first = open_data(settings(root, size=size, memory_limit_mb=limit))
        assert names
        names.clear()
        again = open_data(settings(root, size=size, memory_limit_mb=limit))
        assert (names, again.fingerprint, again.margin) == ([], first.fingerprint, first.margin)
        assert torch.equal(again.train.fetch(np.arange(15)), first.train.fetch(np.arange(15)))
    os.utime(root / "test" / "cat" / "1.png", (5, 5))
    assert open_data(settings(root, size=14, memory_limit_mb=limit)).fingerprint == first.fingerprint
    assert names
    image(3, (9, 9)).save(root / "test" / "cat" / "1.png")
    assert open_data(settings(root, size=14, memory_limit_mb=limit)).fingerprint != first.fingerprint


def test_a_damaged_layout_is_found_again(root, caches):
    first = open_data(settings(root, memory_limit_mb=0))
    (meta,) = (caches / "pixels").rglob("meta.json")
    meta.write_text(meta.read_text().replace("224", "225"))
    assert open_data(settings(root, memory_limit_mb=0)).image_size == first.image_size
