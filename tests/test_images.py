"""A picture has the same pixels, or is refused for the same reason, wherever it comes from."""

import io
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from tests._helpers.hostile_pictures import STORED, UPRIGHT, pictures
from tests._helpers.refusals import refused

from tutelage import images
from tutelage.data import BatchLoader, DataSettings, from_datasets, open_data
from tutelage.data.sources.hub import _file_of
from tutelage.errors import InvalidTypeError, InvalidValueError, UserCodeError
from tutelage.models.predict import predict

PICTURES = pictures()
REFUSED = {name for name, picture in PICTURES.items() if isinstance(picture.expected, str)}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:PIL"),
]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))


class Own:
    """A user's data set, which opens a file as it is."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Image.open(io.BytesIO(self.path.read_bytes())), index


class Seen(torch.nn.Module):
    """A network that keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        self.inputs = inputs
        return inputs.flatten(1)[:, :2]


CARD = SimpleNamespace(channels=3, image_size=None, divisor=255.0, name="seen", class_names=None, task="classes")


def of_folder(path, like, **others):
    """Return the pixels of a file beside one of its size in another class."""
    beside = path.parent.parent / "b"
    beside.mkdir()
    Image.fromarray(like).save(beside / "0.png")
    splits = open_data(DataSettings(source=f"imagefolder:{path.parent.parent}", test="train", **others))
    return splits.train.fetch(np.array([0]))[0], splits


def of_prediction(path):
    seen = Seen()
    predict(seen, CARD, path)
    return seen.inputs[0]


def of_own(path):
    image = from_datasets(Own(path), Own(path), classes=2).train.fetch(np.array([0]))[0]
    return image.expand(3, -1, -1)


@pytest.mark.parametrize("name", [name for name in PICTURES if name not in REFUSED])
def test_what_is_read_is_the_picture(name, tmp_path):
    picture = PICTURES[name]
    path = tmp_path / "x" / "a" / f"0{picture.suffix}"
    path.parent.mkdir(parents=True)
    picture.write(path)
    pixels, splits = of_folder(path, picture.expected)
    assert sum(f"a/{path.name} has several frames" in note for note in splits.notes) == picture.frames
    assert splits.image_size == picture.expected.shape[:2]
    if picture.frames:
        with pytest.warns(UserWarning, match=re.escape(f"{path} has several frames")):
            predicted = of_prediction(path)
    else:
        predicted = of_prediction(path)
    for image in (pixels, predicted, of_own(path)):
        difference = (image.permute(1, 2, 0) * 255).numpy() - picture.expected
        assert np.abs(difference).max() <= picture.tolerance + 1e-3
        assert torch.equal(image, pixels)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_is_named(name, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(name))
    picture = PICTURES[name]
    path = tmp_path / "x" / "a" / f"0{picture.suffix}"
    path.parent.mkdir(parents=True)
    picture.write(path)
    with refused(InvalidValueError, "data.source", got=f"a/{path.name}", suggests="data.on_corrupt=skip") as caught:
        of_folder(path, UPRIGHT)
    assert picture.expected in str(caught.value)
    if path.exists():
        with refused(InvalidValueError, "images", got=str(path)) as caught:
            of_prediction(path)
        assert picture.expected in str(caught.value)
    if picture.regular:
        with pytest.raises((InvalidValueError, UserCodeError), match=r"sample 0|Own\[0\]"):
            of_own(path)
    assert not started


def everything(root, *, suffix=""):
    """Write all pictures, the refused ones first, and return the names of those and of the others."""
    names = sorted(PICTURES, key=lambda name: name not in REFUSED)
    for folder in ("a", "b"):
        (root / folder).mkdir(parents=True)
    written = {}
    for number, name in enumerate(names):
        place = f"{'ab'[number % 2]}/{number:03}{PICTURES[name].suffix}"
        PICTURES[name].write(root / place)
        written[place] = name
    (root / "a" / "folder.png").mkdir()
    refused_names = {place for place, name in written.items() if name in REFUSED}
    return refused_names, written.keys() - refused_names


@pytest.mark.parametrize(("limit", "workers", "boxed"), [(2048, 0, False), (0, 0, False), (0, 2, False), (0, 2, True)])
def test_all_that_cannot_be_read_is_skipped(tmp_path, limit, workers, boxed):
    bad, good = everything(tmp_path / "x")
    settings = {"size": 8, "test": "train", "on_corrupt": "skip", "memory_limit_mb": limit, "workers": workers}
    splits = open_data(DataSettings(source=f"imagefolder:{tmp_path / 'x'}", random_resized_crop=boxed, **settings))
    batches = BatchLoader(splits.train, batch_size=len(bad | good), train=boxed)
    if limit:
        assert sum("several frames" in note for note in splits.notes) == 1
        assert sum(len(batch.index) for batch in batches.epoch(0)) == len(good)
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for epoch in range(2):
                assert sum(len(batch.index) for batch in batches.epoch(epoch)) == len(good)
        assert sum("several frames" in str(warning.message) for warning in caught) == 1
    splits.close()
    assert set(splits.train.corrupt) == bad
    assert splits.sizes()["corrupt"] == len(bad)


def test_rows_of_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "rows")
    datasets.disable_progress_bars()
    bad, good = everything(tmp_path / "x")
    files = {place: tmp_path / "x" / place for place in bad | good}
    files = {place: file for place, file in files.items() if file.is_file() and file.stat().st_size < 2**30}
    rows = [{"bytes": file.read_bytes(), "path": None} for file in files.values()]
    empty = [None, {"bytes": b"", "path": "0.png"}]
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    values = {"image": empty + rows, "label": [i % 2 for i in range(len(empty + rows))]}
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict(values, features=features).cast_column("image", datasets.Image()).to_parquet(
        tmp_path / "hub" / "train.parquet"
    )
    settings = {"source": f"hf:{tmp_path / 'hub'}", "size": 8, "test": "train", "on_corrupt": "skip"}
    for limit in (2048, 0):
        splits = open_data(DataSettings(**settings, memory_limit_mb=limit))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (batch,) = BatchLoader(splits.train, batch_size=999, train=False).epoch(0)
        assert len(batch.index) == len(good)
        assert splits.sizes()["corrupt"] == len(empty) + len(bad & files.keys())


def test_a_row_that_names_its_file(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    assert _file_of({"bytes": None, "path": str(tmp_path / "0.png")}) == tmp_path / "0.png"
    for item in (None, {"bytes": None, "path": None}):
        assert _file_of(item) == b""


def test_a_folder_is_no_picture(tmp_path):
    (tmp_path / "0.png").mkdir()
    with refused(InvalidValueError, "images", got="not a regular file"):
        of_prediction(tmp_path / "0.png")


@pytest.mark.parametrize("turn", STORED)
def test_the_common_shape_is_that_of_upright_images(tmp_path, turn):
    root = tmp_path / "x"  # beside the cache
    for number, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        orientation = (1, turn)[number]
        tags = Image.Exif()
        tags[0x0112] = orientation
        image = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
        image.save(root / name / "0.jpg", exif=tags, quality=98, subsampling=0)
    splits = [
        open_data(DataSettings(source=f"imagefolder:{root}", test="train", memory_limit_mb=limit))
        for limit in (2048, 0)
    ]
    assert splits[0].image_size == splits[1].image_size == (16, 24)
    assert splits[0].margin == 1
    for split in splits:
        first, second = split.train.fetch(np.arange(2)) * 255
        assert (first - second).abs().max() <= 3
    assert torch.equal(splits[0].train.fetch(np.arange(2)), splits[1].train.fetch(np.arange(2)))


def test_a_picture_that_is_too_narrow_to_be_cut_from(tmp_path):
    """A strip whose copy, 256 pixels wide, would have 13 thousand million pixels."""
    root = tmp_path / "x"  # beside the cache
    for name, size in {"a": (1, 200_000), "b": (30, 30)}.items():
        (root / name).mkdir(parents=True)
        Image.new("RGB", size).save(root / name / "0.png")
    settings = {"source": f"imagefolder:{root}", "test": "train"}
    for limit in (2048, 0):
        with refused(InvalidValueError, "data.source", got=["a/0.png", "1 x 200000"]):
            open_data(DataSettings(**settings, memory_limit_mb=limit)).train.fetch(np.array([0]))


BLURRED = np.asarray(Image.fromarray(UPRIGHT).resize((128, 96), Image.Resampling.BICUBIC))


def as_jpeg(pixels, orientation=1, **options):
    tags, buffer = Image.Exif(), io.BytesIO()
    tags[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels))).save(buffer, "JPEG", exif=tags, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("turn", STORED)
@pytest.mark.parametrize(("side", "reduction"), [(60, 1), (40, 2), (20, 4), (8, 8)])
def test_a_jpeg_is_decoded_at_the_least_size_that_a_view_needs(turn, side, reduction):
    layout = images.Layout(side, side, 3, 1.0)
    box = (5, 7, 125, 93)
    with images.opened(as_jpeg(BLURRED, turn, quality=95)) as image:
        pixels = images.decode_box(image, lambda width, height: box if (width, height) == (128, 96) else None, layout)
        decoded = image.size if turn < 5 else image.size[::-1]
    assert decoded == (128 // reduction, 96 // reduction)
    edges = [round(edge / reduction) for edge in box]
    assert pixels.shape == (edges[3] - edges[1], edges[2] - edges[0], 3)
    assert min(pixels.shape[:2]) >= side
    expected = np.asarray(Image.fromarray(BLURRED).reduce(reduction).crop(edges), dtype=int)
    assert np.abs(pixels - expected).mean() < 3


def test_a_box_of_a_png_is_cut_from_the_whole():
    content = io.BytesIO()
    Image.fromarray(BLURRED).save(content, "PNG")
    with images.opened(content.getvalue()) as image:
        box = images.decode_box(image, lambda *_: (5, 7, 121, 90), images.Layout(8, 8, 3, 1.0))
    assert np.array_equal(box, BLURRED[7:90, 5:121])


def test_pixels_of_sixteen_bits_in_a_users_data_set():
    deep = [(Image.fromarray(np.full((4, 4), value, np.uint16)), 0) for value in (2000, 42000)]
    values = from_datasets(deep, deep, classes=2).train.fetch(np.arange(2))[:, :, 0, 0] * 255
    assert values.round().tolist() == [[8] * 3, [163] * 3]
    for dtype, mode in ((np.int32, "mode I"), (np.float32, "mode F")):
        whole = [(Image.fromarray(np.full((4, 4), 1, dtype)), 0)]
        with refused(InvalidValueError, "data", got=[mode, "sample 0"]):
            from_datasets(whole, whole, classes=2)
    for array in (np.zeros((4, 4, 3), np.uint16), torch.zeros((3, 4, 4), dtype=torch.int32)):
        with pytest.raises(InvalidTypeError, match="of sample 0"):
            from_datasets([(array, 0)], [(array, 0)], classes=2)


def test_orientation_that_a_users_image_still_carries():
    tags = Image.Exif()
    tags[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(STORED[6](UPRIGHT))).save(buffer, "PNG", exif=tags)
    turned = Image.open(buffer).convert("RGB")
    splits = from_datasets([turned], [turned], classes=2)
    assert np.array_equal((splits.train.fetch(np.array([0]))[0].permute(1, 2, 0) * 255).numpy(), UPRIGHT)


def test_another_reader_is_another_data_set(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / "x" / name).mkdir(parents=True)
        Image.fromarray(UPRIGHT).save(tmp_path / "x" / name / "0.png")

    def fingerprints():
        settings = {"source": f"imagefolder:{tmp_path / 'x'}", "test": "train"}
        files = [open_data(DataSettings(**settings, memory_limit_mb=limit)).fingerprint for limit in (2048, 0)]
        return [*files, open_data(DataSettings(source="digits", random_resized_crop=True)).fingerprint]

    before = fingerprints()
    monkeypatch.setattr(images, "READER_VERSION", images.READER_VERSION + 1)
    # Pixels in memory tell of themselves, and digits are no files.
    assert [a == b for a, b in zip(before, fingerprints(), strict=True)] == [True, False, True]


@pytest.mark.parametrize("error", [IndexError, KeyError, RuntimeError, ZeroDivisionError, OverflowError])
def test_whatever_a_decoder_raises_is_a_reason(error):
    with pytest.raises(images.UnreadableError, match=f"{error.__name__}: .?why"), images.reasoned():
        raise error("why")
    with pytest.raises(MemoryError), images.reasoned():
        raise MemoryError
