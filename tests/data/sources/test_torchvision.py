import errno
import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.refusals import refused

from tutelage.data import BatchLoader, DataSettings, open_data
from tutelage.errors import InvalidValueError, NotFoundError, StorageError


def write(path, magic, array):
    header = struct.pack(">" + "i" * (array.ndim + 1), magic, *array.shape)
    path.write_bytes(header + array.tobytes())
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(header + array.tobytes())


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 10)):
        write(folder / f"{part}-images-idx3-ubyte", 2051, random.integers(0, 256, (count, 28, 28), np.uint8))
        write(folder / f"{part}-labels-idx1-ubyte", 2049, (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def test_a_data_set_that_is_there(root):
    splits = open_data(DataSettings(source="torchvision:MNIST", root=str(root)))
    assert splits.sizes() == {"train": 30, "test": 10, "labelled": 30, "corrupt": 0}
    assert (splits.channels, splits.image_size, splits.source) == (1, (28, 28), "torchvision:MNIST")
    assert splits.class_names[:2] == ("0 - zero", "1 - one")
    raw = (root / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()[16:]
    pixels = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(30, 1, 28, 28)
    assert torch.equal(splits.train.fetch(np.arange(30)), pixels.float() / 255)
    assert splits.train.labels.tolist() == [i % 10 for i in range(30)]


def test_an_unknown_name_is_answered_with_the_nearest():
    with refused(InvalidValueError, "data.source", got="torchvision:CIFAR_100", suggests="torchvision:CIFAR100"):
        open_data(DataSettings(source="torchvision:CIFAR_100"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_download_that_the_disk_refuses(tmp_path, monkeypatch, code):
    def refuses(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("torchvision.datasets.CIFAR100.download", refuses)
    monkeypatch.setattr("tutelage.connection.why_unreachable", lambda url: None)
    with pytest.raises(StorageError) as caught:
        open_data(DataSettings(source="torchvision:CIFAR100", root=str(tmp_path / "none")))
    assert (caught.value.exit_code, caught.value.errno) == (1, code)
    assert str(tmp_path / "none") in caught.value.what
    assert ("free some space" if code == errno.ENOSPC else "data.root=") in caught.value.instead


def test_what_cannot_be_downloaded_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with refused(NotFoundError, "data.source", suggests="data.root=<folder>") as caught:
        open_data(DataSettings(source="torchvision:CIFAR100", root=str(tmp_path / "file")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [2048, 0])
def test_a_picture_that_torchvision_cannot_read(tmp_path, limit):
    """Its label is known only with it: the data set has no targets."""
    for half, count in (("train", 6), ("test", 4)):
        (tmp_path / half).mkdir()
        for i in range(count):
            Image.fromarray(np.full((4, 4, 3), 9 * i, np.uint8)).save(tmp_path / half / f"{i}.png")
    (tmp_path / "train" / "0.png").write_bytes(b"")

    class Files:
        classes = ("a", "b")

        def __init__(self, root, split="train", download=False):
            self.paths = sorted((Path(root) / split).iterdir())

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, position):
            return Image.open(self.paths[position]).convert("RGB"), position % 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.__all__", ("Files",))
        patch.setattr("torchvision.datasets.Files", Files, raising=False)
        settings = {"source": "torchvision:Files", "root": str(tmp_path), "memory_limit_mb": limit}
        opened = open_data(DataSettings(**settings, on_corrupt="skip"))
        (batch,) = BatchLoader(opened.train, batch_size=9, train=False).epoch(0)
        assert batch.labels.tolist() == [1, 0, 1, 0, 1]
        assert opened.train.corrupt == ["train sample 0"]
        with refused(InvalidValueError, "data.source", got="train sample 0"):
            list(BatchLoader(open_data(DataSettings(**settings)).train, batch_size=9, train=False).epoch(0))
