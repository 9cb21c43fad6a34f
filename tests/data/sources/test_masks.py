"""Folders of pictures and masks: what is paired, which classes there are, one draw for both, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.refusals import refused

from tutelage.data import BatchLoader, DataSettings, Unlabelled, open_data
from tutelage.data.masks import MaskSplit, MaskStreamSplit
from tutelage.data.resident import ResidentLoader
from tutelage.errors import InvalidValueError, NotFoundError
from tutelage.settings.data import check
from tutelage.types import UNLABELLED

SHADES = np.zeros(256, np.uint8)
SHADES[[0, 1, 2, 255]] = 40, 100, 160, 220
"""The grey of a picture's pixel by its class, so that a picture says what its mask must be; black is the border's."""
CLASSES = torch.full((256,), -1)
CLASSES[torch.from_numpy(SHADES[[0, 1, 2, 255]]).long()] = torch.tensor([0, 1, 2, 255])


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(folder, count=10, *, size=(16, 12), seed=0):
    """Write pictures of three classes, each with its mask."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        mask = draw.choice([0, 1, 2, 255], size[::-1], p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
        for kind, values in (("images", SHADES[mask]), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / kind / f"{number}.png")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    return tmp_path


def opened(folder, **settings):
    return open_data(DataSettings(source=f"masks:{folder}", **settings))


def batches(split, *, train=True):
    return list(BatchLoader(split, batch_size=4, data_seed=3, train=train).epoch(0))


def assert_paired(batch, *, known=True):
    """Each pixel's label is what its shade says, and neither the border nor 255 counts."""
    told = CLASSES[(batch.inputs[:, 0] * 255).round().long()]
    counted = (told >= 0) & (told != 255) if known else told >= 0
    assert torch.equal(batch.counted, counted)
    assert torch.equal(batch.labels, torch.where(counted, told, UNLABELLED) if known else torch.full_like(told, -100))


@pytest.mark.parametrize("settings", [{}, {"memory_limit_mb": 0}])
def test_a_picture_and_its_mask_are_cropped_and_flipped_by_one_draw(folder, settings):
    splits = opened(folder, flip=True, crop_padding=3, validation=0.25, **settings)
    assert type(splits.train) is (MaskStreamSplit if settings else MaskSplit)
    assert splits.sizes() == {"train": 6, "validation": 2, "test": 2, "labelled": 6, "corrupt": 0}
    assert (splits.task, splits.classes, splits.class_names) == ("pixels", 3, ("0", "1", "2"))
    views = batches(splits.train)
    for batch in [*views, *batches(splits.test, train=False)]:
        assert_paired(batch)
    plain = splits.train.targets(views[0].index, ())[0]
    assert not torch.equal(views[0].labels, plain)  # they are views
    assert {tuple(batch.labels.shape[1:]) for batch in views} == {(12, 16)}


def test_on_a_device_and_on_demand_the_labels_are_those_in_memory(folder):
    settings = {"flip": True, "crop_padding": 2, "labelled": 4}
    splits = opened(folder, **settings)
    options = {"batch_size": 4, "data_seed": 3, "train": True}
    here = ResidentLoader(splits.train, device=torch.device("cpu"), **options).epoch(0)
    for others in (here, batches(opened(folder, memory_limit_mb=0, **settings).train)):
        for batch, other in zip(batches(splits.train), others, strict=True):  # of the device, each overwrites the last
            for value in ("index", "inputs", "labels", "counted"):
                assert torch.equal(getattr(batch, value), getattr(other, value)), value


def test_boxes_are_cut_from_both(folder):
    write(folder, size=(32, 24))
    (batch, *_) = batches(opened(folder, random_resized_crop=True, flip=True, size=16).train)
    sure = CLASSES[(batch.inputs[:, 0] * 255).round().long()]  # a pixel between two shades tells neither
    agree = torch.where(batch.counted, batch.labels, 255)[sure >= 0] == sure[sure >= 0]
    assert len(agree) > 100
    assert agree.float().mean() > 0.6  # 0.3 if the boxes differ


def test_pictures_of_mixed_sizes_and_their_masks_get_one_size(folder):
    write(folder, 5, size=(40, 24), seed=1)
    splits = opened(folder, size=12)
    assert splits.margin > 1
    for batch in batches(splits.test, train=False):
        assert batch.labels.shape[1:] == batch.inputs.shape[2:] == (12, 12)
        assert set(batch.labels.unique().tolist()) <= {-100, 0, 1, 2}  # nearest: no value between two


def test_without_a_mask_pixels_count_and_have_no_label(folder, tmp_path):
    few = opened(folder, labelled=3, crop_padding=2)
    assert few.sizes()["labelled"] == 3
    told = {False: 0, True: 0}
    for batch in batches(few.train):
        for row in range(len(batch.index)):
            known = bool((batch.labels[row] != UNLABELLED).any())
            told[known] += 1
            assert_paired(
                type(batch)(
                    *(each if each is None or isinstance(each, tuple) else each[row : row + 1] for each in batch)
                ),
                known=known,
            )
    assert told == {True: 3, False: 5}
    more = opened(folder, unlabelled=Unlabelled(source=f"images:{folder / 'images'}"))
    assert more.sizes() | {"labelled": 0} == {"train": 18, "test": 2, "labelled": 0, "corrupt": 0}
    last = more.train.targets(torch.tensor([17]), ())
    assert bool((last[0] == UNLABELLED).all()) and bool(last[1].all())  # noqa: PT018


def test_names_stand_in_a_file_and_halves_in_folders(tmp_path):
    for half in ("train", "val"):
        write(tmp_path / half, 4)
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    splits = opened(tmp_path)
    assert (splits.class_names, splits.sizes()["test"]) == (("sky", "road", "car", "tree"), 4)
    assert any("val is used for test" in note for note in splits.notes)
    before = splits.fingerprint
    path = tmp_path / "train" / "masks" / "0.png"
    Image.fromarray(np.minimum(np.asarray(Image.open(path)), 1)).save(path)
    assert opened(tmp_path).fingerprint != before


def test_where_every_pixel_has_a_class_all_count(folder):
    for path in (folder / "masks").iterdir():
        values = np.asarray(Image.open(path))
        Image.fromarray(np.where(values == 255, 0, values).astype(np.uint8)).convert("P").save(path)
    assert batches(opened(folder).train)[0].counted is None
    assert batches(opened(folder, crop_padding=1).train)[0].counted is not None


def to_mode(path, mode):
    Image.open(path).convert(mode).save(path)


FAULTS = {
    "no mask": (lambda root: (root / "masks/3.png").unlink(), "images/3"),
    "no picture": (lambda root: (root / "images/3.png").unlink(), "masks/3"),
    "two": (lambda root: (root / "images/3.png").rename(root / "images/4.jpg"), "images/4.jpg"),
    "colours": (lambda root: to_mode(root / "masks/3.png", "RGB"), "masks/3.png"),
    "size": (lambda root: Image.new("L", (4, 4)).save(root / "masks/3.png"), "4 x 4"),
    "lossy": (
        lambda root: (Image.new("L", (16, 12)).save(root / "masks/3.jpg"), (root / "masks/3.png").unlink()),
        "JPEG",
    ),
    "broken": (lambda root: (root / "masks/3.png").write_bytes(b"none"), "masks/3.png"),
    "value": (lambda root: (root / "classes.txt").write_text("a\nb\n"), "2 in masks/0.png"),
    "a name twice": (lambda root: (root / "classes.txt").write_text("a\nb\nb"), "twice"),
    "no name": (lambda root: (root / "classes.txt").write_text("a\n\nb"), "empty line 2"),
    "only 255": (lambda root: [Image.new("L", (16, 12), 255).save(path) for path in (root / "masks").iterdir()], 255),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(folder, fault):
    break_it, named = FAULTS[fault]
    break_it(folder)
    with refused(InvalidValueError, "data.source", got=named):
        opened(folder)


def test_on_demand_a_mask_that_does_not_fit_is_named_when_it_is_read(folder):
    (folder / "classes.txt").write_text("a\nb\n")
    with refused(InvalidValueError, "data.source", got="2 in masks"):
        batches(opened(folder, memory_limit_mb=0).train)


def test_folders_that_are_not_there_and_counts_that_are_too_large(folder, tmp_path):
    with refused(NotFoundError, "data.source"):
        opened(tmp_path / "nowhere")
    with refused(InvalidValueError, "data.labelled", got=50, suggests=8):
        opened(folder, labelled=50)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"mixup": 0.2}, "data.mixup"),
        ({"cutmix": 1.0}, "data.cutmix"),
        ({"random_erasing": 0.5}, "data.random_erasing"),
        ({"label": "x"}, "data.label"),
        ({"transform": "torchvision:RandomRotation(3)"}, "data.transform"),
        ({"transform": "timm:rand-m9"}, "data.transform"),
        ({"mask": "x"}, "data.mask"),
    ],
)
def test_what_would_part_a_picture_from_its_mask_is_refused(settings, what):
    with refused(InvalidValueError, what):
        check(DataSettings(source="masks:x", **settings))
    check(DataSettings(source="masks:x", transform="torchvision:ColorJitter(brightness=0.2)"))
