"""Several labels a sample, from every source that has them."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.refusals import refused

from tutelage.data import BatchLoader, DataSettings, Unlabelled, from_datasets, open_data
from tutelage.errors import InvalidTypeError, InvalidValueError
from tutelage.settings.data import LearnedTokenizer, check
from tutelage.types import UNLABELLED

NAMES = ("red", "green", "blue")
HELD = np.array([[k & 1, k >> 1 & 1, k >> 2 & 1] for k in range(16)])
KNOWN = HELD.copy()
KNOWN[2, 1], KNOWN[5] = UNLABELLED, UNLABELLED
CELLS = [[None if value == UNLABELLED else int(value) for value in row] for row in KNOWN]
LISTS = [None if k == 5 else [NAMES[n] for n in range(3) if row[n]] for k, row in enumerate(HELD)]
TEXT = {"tokenizer": LearnedTokenizer(bpe=257), "text": "text"}


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))


def png(k):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 10 * k, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def columns():
    return [dict(zip(NAMES, row, strict=True)) for row in CELLS]


def jsonl(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"text": f"text {k}", "tags": LISTS[k], **row} for k, row in enumerate(columns())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": f"jsonl:{path}", **TEXT}


def comma(tmp_path):
    path = tmp_path / "t.csv"
    words = {None: "", 1: "true", 0: "0"}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["text", *NAMES], *([f"text {k}", *map(words.get, row)] for k, row in enumerate(CELLS))])
    return {"source": f"csv:{path}", **TEXT}


def folder(tmp_path):
    (tmp_path / "pictures" / "below").mkdir(parents=True)
    for k in range(16):
        (tmp_path / "pictures" / f"below/{k:02}.png").write_bytes(png(k))
    with (tmp_path / "pictures" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["file_name", *NAMES], *([f"below/{k:02}.png", *CELLS[k]] for k in range(15, -1, -1))]
        )
    return {"source": f"imagefolder:{tmp_path / 'pictures'}"}


def parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    values = {"image": [png(k) for k in range(16)], "text": [f"text {k}" for k in range(16)], "tags": LISTS}
    table = pyarrow.table({**values, **{n: [row[k] for row in CELLS] for k, n in enumerate(NAMES)}})
    (tmp_path / "rows").mkdir()
    write_table(table, tmp_path / "rows" / "train-0.parquet", row_group_size=5)
    return {"source": f"parquet:{tmp_path / 'rows' / 'train-*.parquet'}", "shuffle_buffer": 4}


def hub(tmp_path):
    pytest.importorskip("datasets")
    parquet(tmp_path)
    return {"source": f"hf:{tmp_path / 'rows'}", **TEXT}


@pytest.mark.parametrize("source", [jsonl, comma, folder, parquet, hub])
def test_columns_of_0_and_1(tmp_path, source):
    splits = open_data(DataSettings(**source(tmp_path), labels=NAMES, test="train"))
    assert (splits.task, splits.classes, splits.outputs, splits.class_names) == ("labels", 2, 3, NAMES)
    assert splits.train.labels.tolist() == KNOWN.tolist()
    assert splits.sizes()["labelled"] == 15
    batch = next(BatchLoader(splits.train, batch_size=4, train=True).epoch(0))
    assert batch.labels.tolist() == KNOWN[batch.index].tolist()
    assert (batch.labels.dtype, batch.counted) == (torch.int64, None)


@pytest.mark.parametrize("source", [jsonl, parquet, hub])
def test_a_column_of_lists_of_names(tmp_path, source):
    splits = open_data(DataSettings(**source(tmp_path), labels="tags", test="train"))
    assert splits.class_names == ("blue", "green", "red")
    wanted = HELD.copy()
    wanted[5] = UNLABELLED
    assert splits.train.labels.flip(1).tolist() == wanted.tolist()


def test_lists_of_numbers_have_the_names_of_a_data_sets_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    numbers = [np.flatnonzero(row).tolist() for row in HELD]
    kind = datasets.features.Sequence(datasets.ClassLabel(names=list(NAMES)))
    features = datasets.Features({"text": datasets.Value("string"), "tags": kind})
    rows = datasets.Dataset.from_dict({"text": ["a"] * 16, "tags": numbers}, features=features)
    datasets.DatasetDict({"train": rows, "test": rows.select(range(4))}).save_to_disk(tmp_path / "saved")
    splits = open_data(DataSettings(source=f"hf:{tmp_path / 'saved'}", labels="tags", **TEXT))
    assert splits.class_names == NAMES
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == (HELD.tolist(), HELD[:4].tolist())


def test_sets_are_divided_and_labels_kept_by_sample(tmp_path):
    source = folder(tmp_path)
    splits = open_data(DataSettings(**source, labels=NAMES, validation=0.25, labelled=2))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (10, 3, 3)
    known = (splits.train.labels != UNLABELLED).any(1)
    assert (int(known.sum()), splits.sizes()["labelled"]) == (2, 2)
    again = open_data(DataSettings(**source, labels=NAMES, validation=0.25, labelled=2))
    assert torch.equal(again.train.labels, splits.train.labels)
    assert again.fingerprint == splits.fingerprint
    with refused(InvalidValueError, "data.labelled", got=100):
        open_data(DataSettings(**source, labels=NAMES, labelled=100))


def test_samples_without_labels_come_behind(tmp_path):
    source = folder(tmp_path)
    extra = Unlabelled(source=f"images:{tmp_path / 'pictures'}")
    splits = open_data(DataSettings(**source, labels=NAMES, test="train", unlabelled=extra))
    assert splits.train.labels.shape == (32, 3)
    assert (splits.train.labels[16:] == UNLABELLED).all()
    (tmp_path / "more.txt").write_text("one\ntwo\n")
    texts = open_data(
        DataSettings(
            **jsonl(tmp_path),
            labels=NAMES,
            test="train",
            unlabelled=Unlabelled(source=f"texts:{tmp_path / 'more.txt'}"),
        )
    )
    assert (texts.train.labels[16:] == UNLABELLED).all()
    assert texts.train.labels.shape == (18, 3)


def test_what_is_no_label_is_named(tmp_path):
    for value, labels in (
        (2, NAMES),
        ([1], NAMES),
        ("red", "tags"),
        ([-1], "tags"),
        ([True], "tags"),
        ([10**9], "tags"),
    ):
        row = {"text": "a", "tags": value, "green": 0, "blue": 1, "red": value}
        (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
        with refused(InvalidValueError, "data.source", got=["t.jsonl line 1", "red" if labels == NAMES else "tags"]):
            open_data(DataSettings(source=f"jsonl:{tmp_path / 't.jsonl'}", labels=labels, test="train", **TEXT))
    pictures = folder(tmp_path)
    (tmp_path / "pictures" / "one-more.png").write_bytes(png(0))
    with refused(InvalidValueError, "data.source", got="one-more.png"):
        open_data(DataSettings(**pictures, labels=NAMES))
    with refused(InvalidValueError, "data.source", got="purple"):
        open_data(DataSettings(**pictures, labels=("purple",)))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"source": "digits"}, "labels"),
        ({"source": "csv:a", "labels": "tags", **TEXT}, "labels"),
        ({"label": "kind"}, "label"),
        ({"mixup": 0.2}, "mixup"),
        ({"labels": ("a", "a")}, "labels"),
        ({"labels": ()}, "labels"),
        ({"source": "jsonl:a", "prompt": "p", "completion": "c", "tokenizer": "t"}, "labels"),
    ],
)
def test_what_does_not_go_with_several_labels(settings, what):
    with refused(InvalidValueError, f"data.{what}"):
        check(DataSettings(**{"source": "hf:a", "labels": NAMES, **settings}))


class Own(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        return torch.full((1, 4, 4), k / 16), self.rows[k]


def test_data_sets_of_the_users_own():
    rows = [torch.tensor(row, dtype=torch.float32) for row in KNOWN]
    rows[0] = None
    splits = from_datasets(Own(rows), Own(KNOWN.tolist()), classes=3, task="labels", class_names=NAMES)
    assert (splits.task, splits.classes, splits.outputs) == ("labels", 2, 3)
    assert (splits.train.labels[0] == UNLABELLED).all()
    batch = next(BatchLoader(splits.train, batch_size=16, train=False).epoch(0))
    assert batch.labels[1:].tolist() == KNOWN[1:].tolist()
    for wrong, kind in (([0.5, 0, 0], InvalidValueError), ([0, 1], InvalidValueError), (["a"], InvalidTypeError)):
        with refused(kind, "data"):
            from_datasets(Own([wrong]), Own([wrong]), classes=3, task="labels")
    with refused(InvalidTypeError, "data", suggests="task='labels'"):
        from_datasets(Own(rows[1:]), Own(rows[1:]), classes=3)
