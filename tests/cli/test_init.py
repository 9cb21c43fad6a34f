"""`tutelage init`: questions or options in, a commented recipe out that `distill --dry-run` takes."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tests._helpers import ROOT
from typer.testing import CliRunner

from tutelage import config
from tutelage.cli import app
from tutelage.cli import init as command
from tutelage.config.schema import Recipe
from tutelage.errors import InvalidValueError, NotFoundError
from tutelage.runs import preflight, starter


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with data of each kind."""
    monkeypatch.chdir(tmp_path)
    for name in ("rose", "lily"):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for k in range(8):
            Image.new("RGB", (80, 70), (k * 20, 90, 30)).save(f"flowers/{name}/{k}.jpg")
    (tmp_path / "small" / "train" / "one").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save("small/train/one/1.png")
    (tmp_path / "reviews.csv").write_text("id,review,stars\n" + "".join(f"{k},good {k},{k % 2}\n" for k in range(30)))
    (tmp_path / "rows.jsonl").write_text('\n{"label": "a", "text": "b"}\n')
    (tmp_path / "empty").mkdir()
    return tmp_path


def typed(*arguments):
    return CliRunner().invoke(app.app, ["init", *arguments])


def read(name="recipe.yaml"):
    recipe = config.parse(Recipe, config.read(Path(name)))
    preflight.check_names(recipe)
    return recipe


@pytest.mark.parametrize(
    ("data", "source", "teacher", "more"),
    [
        ("digits", "digits", "cifar:resnet8", ["--student", "mlp:16"]),
        ("flowers", "imagefolder:flowers", "timm:resnet50.a1_in1k", ["--epochs", "2"]),
        ("small", "imagefolder:small", "cifar:resnet56", []),
        ("reviews.csv", "csv:reviews.csv", "hf:google-bert/bert-base-uncased", []),
        ("rows.jsonl", "jsonl:rows.jsonl", "hf:google-bert/bert-base-uncased", []),
        ("torchvision:CIFAR10", "torchvision:CIFAR10", "cifar:resnet56", []),
        ("hf:uoft-cs/cifar100", "hf:uoft-cs/cifar100", "timm:resnet50.a1_in1k", []),
    ],
)
def test_options_alone_write_a_recipe_with_the_defaults_of_the_data(data, source, teacher, more, folder, monkeypatch):
    monkeypatch.setattr(starter.metadata, "version", lambda library: "1")
    done = typed("--data", data, *more)
    assert (done.exit_code, done.exception) == (0, None), done.output
    assert "tutelage distill recipe.yaml --dry-run" in done.output
    recipe, text = read(), (folder / "recipe.yaml").read_text()
    assert (recipe.data.source, recipe.teacher.train.model.name) == (source, teacher)
    assert recipe.data.validation == 0.1
    assert recipe.data.crop_padding == {"small": 2, "torchvision:CIFAR10": 4}.get(data, 0)
    assert all(
        "#" in line for line in text.splitlines() if line.startswith(("student", "epochs", "objective", "  valid"))
    )
    assert max(map(len, text.splitlines())) <= 130


def test_columns_of_texts_are_those_of_the_file(folder):
    assert typed("--data", "reviews.csv", "--teacher", "hf:bert", "--out", "a.yaml").exit_code == 0
    data = read("a.yaml").data
    assert (data.text, data.label, str(data.tokenizer)) == ("review", "stars", "{bpe: 2000}")
    assert "of id, review, stars" in (folder / "a.yaml").read_text()


def test_a_run_teaches_as_it_is(folder):
    (folder / "runs" / "teacher").mkdir(parents=True)
    for name in ("student.safetensors", "student.json"):
        (folder / "runs" / "teacher" / name).touch()
    assert typed("--data", "digits", "--teacher", "runs/teacher").exit_code == 0
    assert read().teacher.name == "runs/teacher"


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ([], InvalidValueError, "--data: expected a folder, a file or a source, got none, and no terminal to ask at"),
        (["--data", "nowhere"], InvalidValueError, "data: expected one of csv:<path>"),
        (
            ["--data", "nowhere.csv"],
            NotFoundError,
            "data: expected a folder or a file, got nowhere.csv, which does not",
        ),
        (["--data", "my/photos"], NotFoundError, "data: expected a folder or a file, got my/photos, which does not"),
        (["--data", "imagefolder:nowhere"], NotFoundError, "data: expected a folder"),
        (["--data", "cifar100"], InvalidValueError, "type torchvision:CIFAR100 or hf:uoft-cs/cifar100"),
        (["--data", "empty"], InvalidValueError, "data: expected a folder with one of images for each class"),
        (["--data", ""], InvalidValueError, "data: expected one of"),
        (["--data", "digits", "--student", "resnet20"], InvalidValueError, "student: expected a known name"),
        (["--data", "digits", "--student", "onnx:a.onnx"], InvalidValueError, "student: expected a network to train"),
        (["--data", "digits", "--teacher", "runs/nothing"], NotFoundError, "teacher: expected a run's folder"),
        (["--data", "digits", "--epochs", "0"], InvalidValueError, "epochs: expected a whole number >= 1"),
        (["--data", "digits", "--epochs", "ten"], InvalidValueError, "epochs: expected a whole number >= 1"),
        (["--data", "digits", "--out", "no/such/a.yaml"], InvalidValueError, "--out: expected a file in a folder"),
        (["--data", "digits", "--out", "empty"], InvalidValueError, "--out: expected a file in a folder"),
    ],
)
def test_a_wrong_answer_is_refused_at_once_and_nothing_is_written(arguments, kind, says, folder):
    before = sorted(folder.iterdir())
    done = typed(*arguments)
    assert isinstance(done.exception, kind)
    assert says in str(done.exception)
    assert sorted(folder.iterdir()) == before


def test_a_file_is_replaced_only_when_that_was_typed(folder):
    (folder / "recipe.yaml").write_text("mine")
    done = typed("--data", "digits")
    assert "--out recipe-2.yaml, or --force" in str(done.exception)
    assert (folder / "recipe.yaml").read_text() == "mine"
    assert typed("--data", "digits", "--force").exit_code == 0
    assert read().data.source == "digits"


def test_questions_are_asked_again_until_the_answer_is_good(folder, monkeypatch):
    answers = "nowhere\ndigits\n\nresnet20\nmlp:8\n0\n3\n"
    monkeypatch.setattr(command, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    done = CliRunner().invoke(app.app, ["init"], input=answers)
    assert done.exit_code == 0, done.output
    assert "type cifar:resnet20" in done.output
    recipe = read()
    assert (recipe.teacher.train.model.name, recipe.student.name, recipe.epochs) == ("cifar:resnet8", "mlp:8", 3)


def test_a_terminal_asks_four_questions_and_ctrl_c_leaves_nothing(folder):
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    typed_ = [sys.executable, "-m", "tutelage", "init"]
    with subprocess.Popen(
        typed_, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=env, start_new_session=True
    ) as process:
        os.close(theirs)
        shown = b""
        while b"Data" not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, b"\x04")  # the end of the input
        error = process.stderr.read().decode()
    assert (process.returncode, "nothing was saved yet" in error) == (130, True), error
    assert not (folder / "recipe.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("data", ["digits", "flowers", "reviews.csv"])
def test_the_dry_run_takes_what_was_written(data, folder):
    networks = ["hf:bert", "hf:bert"] if data == "reviews.csv" else ["cifar:resnet20", "cifar:resnet8"]
    assert typed("--data", data, "--teacher", networks[0], "--student", networks[1], "--epochs", "1").exit_code == 0
    done = CliRunner().invoke(app.app, ["distill", "recipe.yaml", "device=cpu", "--dry-run"], catch_exceptions=False)
    assert (done.exit_code, "estimated time" in done.output) == (0, True), done.output
