import random

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.refusals import refused
from torch.utils.data import Dataset, TensorDataset

from tutelage.data import BatchLoader, available, from_datasets
from tutelage.errors import InvalidTypeError, InvalidValueError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def plain(count, low=0.0, high=1.0):
    values = torch.linspace(low, high, count * 3 * 4 * 4).reshape(count, 3, 4, 4)
    return TensorDataset(values, torch.arange(count) % 2)


class Noisy(Dataset):
    """Random in all three ways that transforms are."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        value = 0.3 * (random.random() + np.random.rand() + float(torch.rand(())))
        return torch.full((1, 2, 2), value), index % 3


def test_tensors_pass_unchanged():
    splits = from_datasets(plain(10), plain(4), classes=2, validation=plain(3))
    assert splits.sizes() == {"train": 10, "validation": 3, "test": 4, "labelled": 10, "corrupt": 0}
    assert (splits.fingerprint, splits.class_names, splits.image_size) == (None, ("0", "1"), (4, 4))
    (batch,) = BatchLoader(splits.train, batch_size=20, train=False).epoch(0)
    assert torch.equal(batch.inputs, plain(10).tensors[0])
    assert batch.labels.tolist() == [0, 1] * 5


def test_pillow_images_are_scaled():
    data = [(Image.fromarray(np.full((2, 3, 3), 51, np.uint8)), 0)] * 2
    splits = from_datasets(data, data, classes=2)
    assert torch.equal(splits.train.fetch(np.array([1])), torch.full((1, 3, 2, 3), 51 / 255))


@pytest.mark.parametrize("workers", [0, 2])
def test_random_transforms_are_replayed_and_global_generators_untouched(workers):
    batches = BatchLoader(from_datasets(Noisy(), Noisy(), classes=3, workers=workers).train, batch_size=4, train=True)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first, again, late = list(batches.epoch(1)), list(batches.epoch(1)), list(batches.epoch(1, start=2))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[2].inputs, late[0].inputs)
    values = torch.cat([b.inputs[:, 0, 0, 0] for b in first])
    assert len(values.unique()) == 12
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_targets_save_a_pass_and_are_checked():
    class Lying(Noisy):
        targets = [2] * 12

    splits = from_datasets(Lying(), Lying(), classes=3)
    assert splits.train.labels.tolist() == [2] * 12
    with refused(InvalidValueError, "data", got=0):
        splits.train.fetch(np.array([0]))


def test_images_alone_are_unlabelled():
    images = torch.rand(4, 1, 5, 5)
    picture = Image.fromarray(np.full((5, 5), 51, np.uint8))
    for bare in (list(images), TensorDataset(images), [(image, None) for image in images], [picture] * 4):
        splits = from_datasets(bare, bare, classes=2)
        assert splits.train.labels.tolist() == splits.test.labels.tolist() == [-100] * 4
        assert splits.sizes()["labelled"] == 0
        assert splits.train.fetch(np.arange(4)).shape == (4, 1, 5, 5)


@pytest.mark.parametrize(
    ("label", "got"),
    [
        (torch.tensor([0.3, 0.7]), ["torch.float32", "(2,)"]),
        (np.array([0.3, 0.7]), ["float64", "(2,)"]),
        (torch.tensor([0, 1]), ["torch.int64", "(2,)"]),
        (0.5, "float"),
        ("ant", "str"),
    ],
)
def test_labels_that_are_no_class_index(label, got):
    class Targeted(list):
        targets = (0, label)

    good, bad = (torch.zeros(3, 4, 4), 0), (torch.zeros(3, 4, 4), label)
    for dataset in ([good, bad], Targeted([good, bad])):
        with refused(InvalidTypeError, "data", got=got) as caught:
            from_datasets(dataset, plain(4), classes=2)
        assert "\n" not in str(caught.value)


def test_faults():
    with refused(InvalidValueError, "data", got=["-2 to 2", "sample 0"]):
        from_datasets(plain(4, -2, 2), plain(4), classes=2).train.fetch(np.arange(4))
    with refused(InvalidValueError, "data", got=["(3, 5, 5)", "sample 1"]):
        from_datasets([(torch.zeros(3, n, n), 0) for n in (4, 5)], plain(4), classes=2).train.fetch(np.arange(2))
    for dataset in (iter([]), 3):
        with refused(InvalidTypeError, "train", got=type(dataset).__name__):
            from_datasets(dataset, plain(4), classes=2)
    with refused(InvalidValueError, "train", got=1):
        from_datasets([(torch.zeros(3, 4, 4), i) for i in range(3)][1:], plain(4), classes=2)
    with refused(InvalidValueError, "data", got=[1, "ant"]):
        from_datasets(plain(4), plain(4), classes=1, class_names=["ant"])
    with refused(InvalidValueError, "test", got="(3, 5, 5)"):
        from_datasets(plain(4), [(torch.zeros(3, 5, 5), 0)], classes=2)
    with refused(InvalidValueError, "test", got=0):
        from_datasets(plain(4), [], classes=2)
    with refused(InvalidTypeError, "data", got=["torch.uint8", "(3, 5, 5)"]):
        from_datasets([(torch.zeros(3, 5, 5, dtype=torch.uint8), 0)], plain(4), classes=2)
    with refused(InvalidTypeError, "data", got=3):
        from_datasets([(torch.zeros(3, 5, 5), 0, 0)], plain(4), classes=2)
    with refused(InvalidValueError, "class_names", got=1):
        from_datasets(plain(4), plain(4), classes=2, class_names=["a"])


def test_available_names_every_source():
    kinds = ["csv", "digits", "hf", "imagefolder", "jsonl", "masks", "parquet", "torchvision", "webdataset"]
    kinds += ["images", "texts"]
    assert [name.partition(":")[0] for name, _ in available()] == kinds


class Views(Dataset):
    """A small and a large view, whose order differs from sample to sample."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        views = {"student": torch.full((1, 2, 3), index / 6), "teacher": torch.full((3, 4, 6), index / 12)}
        return dict(sorted(views.items(), reverse=bool(index % 2))), index % 2


@pytest.mark.parametrize("workers", [0, 1])
def test_views_by_name_stay_together(workers):
    splits = from_datasets(Views(), Views(), classes=2, workers=workers)
    assert (splits.channels, splits.image_size) == (1, (2, 3))
    assert splits.input_shape("teacher") == (3, 4, 6)
    batches = list(BatchLoader(splits.train, batch_size=4, train=True).epoch(0))
    splits.close()
    for batch in batches:
        assert batch.inputs.keys() == {"student", "teacher"}
        assert torch.equal(batch.inputs["student"][:, 0, 0, 0], batch.index / 6)
        assert torch.equal(batch.inputs["teacher"][:, 2, 3, 5], batch.index / 12)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (lambda views: {"student": views["student"]}, "student (1, 2, 3) for sample 3"),
        (lambda views: {**views, "teacher": views["teacher"][:, :2]}, "teacher (3, 2, 6) for sample 3"),
        (lambda views: {**views, "teacher": views["teacher"] + 2}, "to 2.25"),
        (lambda views: views["student"], "(1, 2, 3) for sample 3"),
    ],
)
def test_views_that_change_from_sample_to_sample_are_refused(wrong, got):
    class Wrong(Views):
        targets = [0, 1] * 3

        def __getitem__(self, index):
            views, label = super().__getitem__(index)
            return (wrong(views) if index == 3 else views), label

    with pytest.raises(InvalidValueError) as caught:
        from_datasets(Wrong(), Views(), classes=2).train.fetch(np.arange(6))
    assert got in caught.value.got


def test_views_without_the_student_s_are_refused():
    class Large(Views):
        def __getitem__(self, index):
            views, label = super().__getitem__(index)
            return {"large": views["teacher"]}, label

    with refused(InvalidTypeError, "data", got="'large'", suggests="student"):
        from_datasets(Large(), Large(), classes=2)


# Mappings of tensors


ROWS = [{"ids": [k, 2], "mask": np.array([1, 0]), "labels": k % 2, "text": "left alone"} for k in range(4)]


def test_mappings_of_tensors_pass_by_their_keys():
    splits = from_datasets(ROWS, [{"ids": [7, 7], "mask": [1, 1]}], classes=2, inputs=("ids", "mask"))
    (batch,) = BatchLoader(splits.train, batch_size=4, train=False).epoch(0)
    assert {name: value.tolist() for name, value in batch.inputs.items()} == {
        "ids": [[0, 2], [1, 2], [2, 2], [3, 2]],
        "mask": [[1, 0]] * 4,
    }
    assert batch.labels.tolist() == [0, 1, 0, 1]
    assert splits.test.labels.tolist() == [-100]
    assert not splits.of_images
    assert splits.input_shape("student") == ()


def test_one_key_is_the_inputs_themselves_and_a_label_may_stand_beside():
    pairs = [({"x": torch.full((3,), 9.0)}, 1), ({"x": torch.zeros(3)}, None)]
    splits = from_datasets(pairs, pairs, classes=2, inputs="x")
    (batch,) = BatchLoader(splits.train, batch_size=2, train=False).epoch(0)
    assert batch.inputs.tolist() == [[9.0] * 3, [0.0] * 3]
    assert batch.labels.tolist() == [1, -100]


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        ({"ids": [1, 2, 3], "labels": 0}, InvalidValueError, "pad or cut"),
        ({"id": [1, 2], "labels": 0}, InvalidTypeError, "inputs="),
        ({"ids": ["a", "b"], "labels": 0}, InvalidTypeError, "numbers"),
        ({"ids": [1, 2], "labels": [0, 1]}, InvalidTypeError, "one whole number"),
        ([1, 2], InvalidTypeError, "inputs="),
    ],
)
def test_a_mapping_that_does_not_fit_is_named(row, kind, said):
    with refused(kind, "data", suggests=said):
        from_datasets([*ROWS, row], ROWS, classes=2, inputs=("ids",)).train.fetch(np.arange(5))
