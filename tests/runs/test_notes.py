"""What a command says of its data and settings, once, and a call of Python does not."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

import tutelage
from tutelage import api, config, data
from tutelage.config.schema import Recipe
from tutelage.runs import notes, recipes
from tutelage.runs.dry_run import dry_run
from tutelage.runs.reporter import Reporter
from tutelage.runs.terminal import LineReporter
from tutelage.settings.data import DataSettings


class Remarks(Reporter):
    def __init__(self):
        self.lines = []

    def remark(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Pictures of 8 pixels, of which one is torn, beside files that are none; a class is not in the test set."""
    root = tmp_path_factory.mktemp("data") / "pets"
    for half, names in (("train", "ant bee cat"), ("val", "ant bee")):
        for k, name in enumerate(names.split()):
            (root / half / name).mkdir(parents=True)
            for number in range(5):
                pixels = np.full((8, 8, 3), 80 * k + number, np.uint8)
                Image.fromarray(pixels).save(root / half / name / f"{number}.png")
    (root / "train" / "ant" / "torn.png").write_bytes(b"torn")
    for name in ("about.txt", "1.HEIC", "2.heic", ".hidden"):
        (root / "train" / "bee" / name).write_bytes(b"-")
    return root


def recipe(pets, **settings):
    source = {"source": f"imagefolder:{pets}", "on_corrupt": "skip", "size": 16, "validation": 0.2, "workers": 99}
    value = {"name": "n", "model": "mlp:4", "data": source, "batch_size": 64, "epochs": 1, "device": "cpu"}
    return config.parse(Recipe, {**value, **settings})


def test_a_command_says_what_was_left_out_held_out_enlarged_and_what_is_wasted(pets, monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    said = [value for name, value in dry_run(recipe(pets)) if name == "note"]
    assert said == [
        "Skipped: 3 files that are no images by their names (2 .heic, 1 .txt)",
        "The source has no test folder: val is used for test",
        "Images are enlarged to 16 by 16 pixels: train/ant/0.png has 8 by 8",
        "For validation 3 training samples are held out, and 12 are left to train on",
        "Left out, as they cannot be read: 'train/ant/torn.png'",
        "No test sample has the class 'cat': how well these are told apart is not measured",
        "batch_size 64 is above the 12 training samples: an epoch is one step of all of them",
    ]
    streamed = data.open_data(DataSettings(source=f"imagefolder:{pets}", random_resized_crop=True, workers=3))
    assert "data.workers 3 is above this machine's 2 cores, for which they wait: 2 will do" in notes.of_data(streamed)
    reporter = LineReporter("stdout")
    for line in (*said, *said):
        reporter.remark(line)
    assert "".join(capsys.readouterr()).splitlines() == [f"note: {line}" for line in said]


def test_a_run_and_an_evaluation_say_it_to_their_reporters(pets, tmp_path, capfd):
    reporter = Remarks()
    settings = {"epochs": 1, "batch_size": 4, "device": "cpu", "runs": tmp_path}
    run = tutelage.train(
        model={"name": "mlp:4", "size": 12},
        data=f"imagefolder:{pets}/val",
        display=reporter,
        **settings,
    )
    held_out = "The source has no test set: 2 of its 10 images were held out (split_seed 0)"
    assert reporter.lines == [held_out, "student mlp:4: images of 3x8x8 are brought to its 3x12x12"]
    asked = recipes.to_evaluate(str(run.folder), ["model.classes=[1, 0]"])
    api.judge(asked, str(run.folder), reporter=(judged := Remarks()))
    assert judged.lines[0] == held_out
    assert judged.lines[-1] == "model mlp:4: its outputs 1, 0 are the data's 2 classes in order"
    capfd.readouterr()
    tutelage.evaluate(run, display=None)
    assert "".join(capfd.readouterr()) == ""


def test_notes_of_pictures_are_said_again_of_kept_ones(pets):
    settings = DataSettings(source=f"imagefolder:{pets}/val", size=24)
    first, again = (data.open_data(settings).notes for _ in range(2))
    assert first == again
    assert "Images are enlarged to 24 by 24 pixels: ant/0.png has 8 by 8." in first
