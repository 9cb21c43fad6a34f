"""Splits as another process of the machine gets them: opened once, sent, the same."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data import BatchLoader, DataSettings, RandAugment, file_hashes, open_data


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    for c in range(2):
        (tmp_path / f"c{c}").mkdir()
        for i in range(10):
            Image.fromarray(draw.integers(0, 256, (9, 8 + i % 2, 3), np.uint8)).save(tmp_path / f"c{c}" / f"{i}.png")
    return tmp_path


def in_parquet(folder, datasets):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["c0", "c1"])})
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    rows = datasets.Dataset.from_dict({"image": paths, "label": [i // 10 for i in range(20)]}, features=features)
    rows.to_parquet(folder / "parquet" / "train.parquet")
    return folder / "parquet"


FORMS = {
    "digits": {},
    "folder": {"size": 8, "flip": True, "validation": 0.2, "mixup": 0.5},
    "streamed folder": {"size": 8, "memory_limit_mb": 0, "randaugment": RandAugment(), "cutmix": 1.0},
    "torchvision's transform": {"size": 8, "transform": "torchvision:RandAugment(num_ops=1)"},
    "timm's transform": {"size": 8, "memory_limit_mb": 0, "transform": "timm:rand-m9-mstd0.5-inc1"},
    "parquet": {"size": 8, "memory_limit_mb": 0},
}


@pytest.mark.parametrize("form", FORMS)
def test_sent_splits_are_the_same(form, folder, monkeypatch):
    source = "digits" if form == "digits" else f"imagefolder:{folder}"
    if form == "timm's transform":
        pytest.importorskip("timm")
    if form == "parquet":
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "rows")
        source = f"hf:{in_parquet(folder, datasets)}"
    splits = open_data(DataSettings(source=source, **FORMS[form]))
    monkeypatch.setattr(file_hashes, "scan", None)  # Nothing is listed or opened again.
    content = pickle.dumps(splits)
    sent = pickle.loads(content)
    assert (sent.fingerprint, sent.sizes()) == (splits.fingerprint, splits.sizes())
    assert sent.train.pool is sent.test.pool
    for name, split in splits.by_name().items():
        for train in {False, name == "train"}:
            both = (BatchLoader(s, batch_size=7, train=train).epoch(2) for s in (split, sent.by_name()[name]))
            for expected, batch in zip(*both, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(expected[:3], batch[:3], strict=True))
