"""The samples in dispute: which they are, and what is shown of them."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage import data
from tutelage.data import DataSettings
from tutelage.records import Predictions
from tutelage.runs.disputed import LARGEST, data_url, disputed
from tutelage.settings.data import LearnedTokenizer


def floats(*values):
    return np.array(values, np.float32)


def picture_of(url):
    head, content = url.split(",")
    assert head == "data:image/png;base64"
    content = base64.b64decode(content)
    assert len(content) <= LARGEST
    return Image.open(io.BytesIO(content))


@pytest.fixture(scope="module")
def digits():
    return data.open_data(DataSettings())


def test_the_surest_against_each_other_come_first(digits):
    index, label = np.array([2, 3, 5, 8, 9]), np.array([1, -100, 1, 4, 4])
    student, sure = np.array([1, 2, 7, 4, 4]), floats(0.9, 0.5, 1.0, 0.9, 0.5)
    teacher, its = np.array([3, 3, 1, 4, 5]), floats(0.5, 0.9, 0.6, 1.0, 1.0)
    found = disputed(Predictions("test", index, label, student, sure, teacher, its), digits)
    assert (found["set"], found["count"]) == ("test", 4)  # without the fourth, about which they agree
    assert [(each["index"], each["label"]) for each in found["samples"]] == [(5, 1), (9, 4), (2, 1), (3, None)]
    first = found["samples"][0]
    assert first["student"] == {"label": 7, "probability": 1.0}
    assert first["teacher"] == {"label": 1, "probability": pytest.approx(0.6)}
    alone = disputed(Predictions("test", index, label, student, sure), digits)
    assert [each["index"] for each in alone["samples"]] == [5]  # the only one that it is wrong about
    assert (alone["count"], alone["samples"][0]["teacher"]) == (1, None)


def test_at_most_twelve_are_kept_and_all_are_counted(digits):
    index = np.arange(40)
    found = disputed(Predictions("test", index, index * 0, index * 0 + 1, floats(*[0.5] * 40)), digits)
    assert (found["count"], [each["index"] for each in found["samples"]]) == (40, list(range(12)))


def wrong_about(splits, count=1):
    """Disputed samples where a student is wrong about the first ones."""
    index = np.arange(count)
    return disputed(Predictions("test", index, index * 0, index * 0 + 1, floats(*[0.5] * count)), splits)["samples"]


def test_a_picture_is_the_evaluation_view(digits):
    (sample,) = wrong_about(digits)
    picture = picture_of(sample["picture"])
    assert (picture.size, picture.mode) == ((8, 8), "L")
    assert np.asarray(picture) == pytest.approx(digits.test.fetch(np.array([0]))[0, 0].numpy() * 255, abs=0.51)


@pytest.mark.parametrize("memory", [2048, 0])
def test_a_large_picture_is_made_small_and_upright(tmp_path, memory):
    """Of pixels in memory and of files alike; one that is gone by then is missing, and nothing else."""
    draw = np.random.default_rng(0)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    for part, name, number in ((p, c, k) for p in ("train", "test") for c in "ab" for k in range(2)):
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (120, 200, 3), np.uint8)
        pixels[:60] //= 8
        Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png", exif=sideways)
    splits = data.open_data(DataSettings(source=f"imagefolder:{tmp_path}", memory_limit_mb=memory))
    assert splits.image_size == (200, 120)
    (tmp_path / "test/a/1.png").unlink()
    first, second, third = wrong_about(splits, 3)
    picture = picture_of(first["picture"])
    assert (picture.size, picture.mode) == ((58, 96), "RGB")
    upright = np.asarray(picture).astype(int).mean((0, 2))
    assert upright[-8:].mean() < upright[:8].mean() / 2  # The dark half is at the right.
    assert (second["picture"] is None) == (memory == 0)
    assert third["picture"] is not None


def test_pictures_of_other_channels_and_of_data_that_break_are_missing():
    class Broken:
        broken = False

        def __init__(self, channels):
            self.channels = channels

        def __len__(self):
            return 8

        def __getitem__(self, index):
            if self.broken:
                raise OSError("unplugged")
            return torch.full((self.channels, 100, 50), 1.05), index % 2

    def splits(own):
        return data.from_datasets(own, own, classes=2)

    own = Broken(3)
    three = splits(own)
    picture = picture_of(wrong_about(three)[0]["picture"])
    assert (picture.size, picture.getpixel((0, 0))) == ((48, 96), (255, 255, 255))
    own.broken = True
    assert wrong_about(three)[0]["picture"] is None
    assert wrong_about(splits(Broken(4)))[0]["picture"] is None
    rows = [{"x": torch.rand(3, 4, 4), "labels": k % 2} for k in range(4)]
    assert wrong_about(data.from_datasets(rows, rows, classes=2, inputs="x"))[0]["picture"] is None


def test_a_text_is_read_back_from_its_tokens(tmp_path):
    long = "the wind and the sun disputed which was the stronger, " * 10
    lines = [json.dumps({"text": text, "label": k}) for k, text in enumerate([long, "größer"])]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    bpe = LearnedTokenizer(bpe=280)
    settings = DataSettings(source=f"jsonl:{path}", test="train", text="text", label="label", tokenizer=bpe)
    first, second = wrong_about(data.open_data(settings), 2)
    assert (first["text"], second["text"], first["picture"]) == (long[:300], "größer", None)


def test_no_picture_is_larger_than_it_may_be():
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    assert picture_of(data_url(noise)).size == (64, 64)
    assert picture_of(data_url(noise[:, :, :1])).size == (96, 96)
    assert picture_of(data_url(noise[:1, :, :1])).size == (96, 1)
