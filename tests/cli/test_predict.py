"""``tutelage predict``: what it prints is what the network answers, in every format."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests._helpers.launching import launch

from tutelage import models
from tutelage.models.generate import continued
from tutelage.runs import predict as answering
from tutelage.text import TextInput, learn_bpe

NAMES = ("ant", "bee, honey", "käfer")
TEXTS = ("the cat sat on the mat", "a dog ran in the park", "rain")
SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}


def saved(folder, network, **card):
    network.card = dataclasses.replace(network.card, **card)
    models.save(network, folder)
    return network.eval()


@pytest.fixture(scope="module")
def insects(tmp_path_factory):
    """The folder of a small classifier."""
    folder = tmp_path_factory.mktemp("insects")
    saved(folder, models.create("cifar:resnet8", classes=3, image_size=(32, 32)), class_names=NAMES)
    return str(folder)


@pytest.fixture
def pictures(monkeypatch, tmp_path):
    """Five pictures of unlike kinds and two files that are none, below the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    colours = [Image.fromarray(rng.integers(0, 256, (40, 50 + k, 3), dtype=np.uint8)) for k in range(4)]
    colours[0].save(folder / "a, b.png")
    colours[1].convert("CMYK").save(folder / "b.jpg")
    colours[2].save(folder / "c.gif", save_all=True, append_images=[colours[2].rotate(90)])
    colours[3].save(folder / "sub" / "ü\n1.png")
    Image.fromarray(rng.integers(0, 65536, (40, 50)).astype(np.uint16)).save(folder / "grey.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    (folder / "notes.md").touch()
    return folder


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_formats_say_what_the_network_predicts(insects, pictures, invoke):
    (pictures / "broken.png").unlink()
    code, out, err = invoke("predict", insects, "in", "--top-k", "2", "--format", "json", "--batch-size", "2")
    said = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert err.splitlines()[0] == "skipped: 1 other file"
    assert "c.gif" in err.splitlines()[1]
    assert [Path(each["file"]).name for each in said] == ["a, b.png", "b.jpg", "c.gif", "grey.png", "ü\n1.png"]
    network = models.create(insects)
    with pytest.warns(UserWarning, match="frames"):
        predicted = network.predict([Path(each["file"]) for each in said], top_k=2)
    for each, found in zip(said, predicted, strict=True):
        assert (each["label"], each["name"]) == (found.label, found.name)
        assert each["probability"] == pytest.approx(found.probability, rel=1e-5)
        assert [one["name"] for one in each["top"]] == [one.name for one in found.top]

    invoke("predict", insects, "in", "--top-k", "9", "--output", "new/all.csv")
    rows = rows_of(Path("new/all.csv").read_bytes().decode())
    assert len(rows) == 15
    assert {row["file"] for row in rows} == {each["file"] for each in said}
    assert [(row["rank"], row["name"]) for row in rows[:2]] == [
        (str(k + 1), one["name"]) for k, one in enumerate(said[0]["top"])
    ]
    _, out, _ = invoke("predict", insects, "in")
    lines = out.splitlines()
    assert lines[0].split() == ["file", "label", "name", "probability"]
    assert lines[5].split()[0].endswith("ü\\n1.png")
    assert f"{said[0]['probability']:.4f}" in lines[1]


def test_a_broken_picture_is_named_and_the_others_go_on(insects, pictures, invoke):
    code, out, err = invoke("predict", insects, "in", "--format", "csv", "--output", "out.csv")
    assert (code, out) == (1, "")
    assert len(rows_of(Path("out.csv").read_bytes().decode())) == 5
    assert sum("broken.png" in line for line in err.splitlines()) == 1
    assert err.splitlines()[-1] == "1 of 6 could not be read"
    code, _, err = invoke("predict", insects, "in", "--on-corrupt", "stop", "--output", "other.csv")
    assert code == 2
    assert "broken.png" in err
    assert sorted(path.name for path in Path().iterdir()) == ["in", "out.csv"]  # and no part of the other


def test_a_picture_is_not_replaced_by_its_answer(insects, pictures, invoke):
    name = next(each for each in Path("in").iterdir() if each.suffix == ".png")
    before = name.read_bytes()
    code, _, err = invoke("predict", insects, "in", "--output", str(name))
    assert (code, "--output: expected another file" in err) == (2, True)
    assert name.read_bytes() == before


def test_networks_without_trained_weights_are_refused(pictures, invoke):
    code, out, err = invoke("predict", "torchvision:squeezenet1_0", "in")
    assert (code, out) == (2, "")
    assert "random weights" in err


def test_pixels_have_masks_and_shares(pictures, tmp_path, invoke):
    network = models.create("torchvision:lraspp_mobilenet_v3_large", classes=3, task="pixels", image_size=(32, 32))
    network = saved(tmp_path / "m", network, class_names=NAMES)
    code, out, _ = invoke("predict", "m", "in/b.jpg", "in/sub", "--output", "masks", "--format", "json")
    assert code == 0
    for line in out.splitlines():
        said = json.loads(line)
        (mask,) = network.predict_masks(said["file"])
        np.testing.assert_array_equal(np.asarray(Image.open(said["mask"])), mask)
        assert {each["label"]: each["share"] for each in said["classes"]} == {
            k: count / mask.size for k, count in enumerate(np.bincount(mask.ravel(), minlength=3).tolist()) if count
        }
    assert (tmp_path / "masks" / "b.png").is_file()


def test_labels_are_those_that_hold_or_as_many_as_asked(pictures, tmp_path, invoke):
    network = models.create("cifar:resnet8", classes=3, image_size=(32, 32), task="labels")
    with torch.no_grad():
        network.network.get_submodule(network.card.head).bias.copy_(torch.tensor([9.0, -9.0, 9.0]))
    saved(tmp_path / "m", network, class_names=NAMES)
    for typed, held in (([], [("0", "True"), ("2", "True")]), (["--top-k", "3"], [("1", "False")])):
        _, out, _ = invoke("predict", "m", "in/b.jpg", "--format", "csv", *typed)
        rows = [(row["label"], row["holds"]) for row in rows_of(out)]
        assert set(held) <= set(rows)
        assert len(rows) == (3 if typed else 2)


@pytest.fixture(scope="module")
def reading():
    return TextInput(tokenizer=learn_bpe(TEXTS * 9, 280), max_tokens=12)


def test_texts_of_lines_are_classified(reading, monkeypatch, tmp_path, invoke):
    network = saved(tmp_path / "m", models.create("hf:bert", classes=3, text=reading, config=SIZES), class_names=NAMES)
    lines = "\n".join((*TEXTS, "", "not a path.txt"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    code, out, err = invoke("predict", str(tmp_path / "m"), "--format", "json")
    assert code == 0
    said = [json.loads(line) for line in out.splitlines()]
    assert [(each["row"], each["text"]) for each in said] == [
        *enumerate(TEXTS, start=1),
        (5, "not a path.txt"),
    ]
    assert [each["name"] for each in said[:3]] == [each.name for each in network.predict(TEXTS)]
    assert "1 blank line" in err
    assert "12 tokens or more" in err
    assert answering.network_of(f"hf:{tmp_path / 'm'}").predict(TEXTS) == network.predict(TEXTS)


def test_a_language_model_says_the_next_token_and_writes(reading, tmp_path, invoke):
    text = dataclasses.replace(reading, per_token=True)
    network = models.create("hf:llama", text=text, config={**SIZES, "num_key_value_heads": 2})
    saved(tmp_path / "m", network)
    (tmp_path / "prompt.txt").write_text(TEXTS[2])
    typed = (str(tmp_path / "m"), str(tmp_path / "prompt.txt"), "--generate", "3", "--top-k", "2")
    code, out, _ = invoke("predict", *typed, "--format", "json")
    (said,) = map(json.loads, out.splitlines())
    (ids,) = reading.tokenizer.encode([TEXTS[2]])
    with torch.no_grad():
        probabilities = network(torch.tensor([ids]))[0, -1].softmax(-1)
    assert code == 0
    assert [each["label"] for each in said["top"]] == probabilities.topk(2).indices.tolist()
    assert said["probability"] == pytest.approx(float(probabilities.max()), rel=1e-5)
    (written,) = continued(network, [ids], new_tokens=3, max_tokens=12, end=reading.tokenizer.end_id)
    assert said["generated"] == reading.tokenizer.decode(written)


def test_tokens_have_a_class_each(reading, tmp_path, invoke):
    text = dataclasses.replace(reading, per_token=True, next_token=False)
    network = models.create("hf:bert", classes=3, text=text, config=SIZES)
    saved(tmp_path / "m", network, class_names=NAMES)
    (tmp_path / "t.txt").write_text(TEXTS[1])
    _, out, _ = invoke("predict", str(tmp_path / "m"), str(tmp_path / "t.txt"), "--format", "csv")
    rows = rows_of(out)
    assert "".join(row["token"] for row in rows) == TEXTS[1]
    assert all(TEXTS[1][int(row["start"]) : int(row["end"])] == row["token"] for row in rows)
    with torch.no_grad():
        logits = network(torch.tensor(reading.tokenizer.encode([TEXTS[1]], max_tokens=12)))[0]
    assert [int(row["label"]) for row in rows] == logits.argmax(-1).tolist()


def test_a_table_fits_a_terminal_and_is_whole_in_a_pipe(insects, pictures, monkeypatch, invoke):
    long = Path("in") / ("x" * 70) / ("y" * 70)
    long.mkdir(parents=True)
    (pictures / "b.jpg").rename(long / "b.jpg")
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = invoke("predict", insects, str(long))
    assert str(long / "b.jpg") in out.splitlines()[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = invoke("predict", insects, str(long), "in/c.gif")
    lines = [re.sub(r"\x1b\[\d*m", "", line) for line in out.splitlines()]
    assert max(map(len, lines)) <= 60
    assert "".join(line.split()[0] for line in lines[1:-1]) == str(long / "b.jpg")


@pytest.mark.timeout(20)
def test_what_is_there_is_answered_while_the_next_is_waited_for():
    comes = threading.Event()

    def items():
        yield 1
        comes.wait()
        yield 2

    results = answering._ahead(items(), lambda item: 10 * item)
    assert next(results) == 10
    comes.set()
    running = threading.active_count()
    assert list(results) == [20]
    assert threading.active_count() == running - 1  # none is left for the end of the process
    with pytest.raises(ZeroDivisionError):
        list(answering._ahead([1, 0], lambda item: 1 // item))


@pytest.mark.slow  # two processes
@pytest.mark.timeout(300)
def test_two_processes_print_what_one_does(insects, pictures, invoke):
    typed = ("predict", insects, "in", "--batch-size", "1", "--format", "json")
    code, out, err = invoke(*typed)
    assert code == 1
    left, both, told = launch([*typed])
    assert left == 1
    assert both == out
    assert [line for line in told.splitlines() if "broken.png" in line] == [
        line for line in err.splitlines() if "broken.png" in line
    ]
