"""What the command line answers without torch: mistakes, help and listings, each in one process that has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tests._helpers import ROOT

from tutelage.errors import RecipeError
from tutelage.runs import recipes

HEAVY = (
    *("torch", "torchvision", "sklearn", "scipy", "numpy", "accelerate", "transformers", "timm", "datasets"),
    *("matplotlib", "plotly", "pandas", "PIL"),
)
CODE = """
import contextlib, io, json, sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

class Missing(MetaPathFinder, Loader):  # That a library is installed may be asked, but it must not be imported.
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in HEAVY else None

    def exec_module(self, module):
        raise ImportError(f"{module.__name__} was imported")

sys.meta_path.insert(0, Missing())
import bench_answers
from tutelage.cli import main

answers = {}
for name, text in bench_answers.FILES.items():
    open(name, "w").write(text)
for command in (*bench_answers.MISTAKES, *bench_answers.QUESTIONS, *sys.argv[1:]):
    sys.argv = ["tutelage", *command.split()]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as left:
            code = left.code
    answers[command] = [code, out.getvalue(), err.getvalue()]
print(json.dumps([bench_answers.MISTAKES, bench_answers.QUESTIONS, answers]))
"""
NEEDS_TORCH = "distill student.yaml objective.wttm.gamma=-1"
MORE = (
    "--version",
    "study",
    "list models timm:mobilenet*",
    "init --data digits --student resnet18",
    "study table1 --budget 25",
    "study table1 --seeds 0",
    "study table1 --pairs resnet56/resnet20 pairs.resnet56/resnet20.student=cifar:resnet21",
    "study table1 data.source=imagefolder:nowhere",
    "distill student.yaml student=mlp:16x",
    "tune student.yaml",
    "tune student.yaml data.validation=0.1 --search optimizer.lr",
    "tune student.yaml data.validation=0.1 --trials 0",
    "distill student.yaml student=resnet21 teacher=runs/nothing data.source=hf:./nowhere",
    "distill student.yaml teacher.weights=nothing.pth",
    'distill student.yaml teacher={"train":{"model":"cifar:resnet21"}}',
    "train teacher.yaml student=file:net.py:make",
    "train teacher.yaml objective=file:method.py:ours",
    "record student.yaml outputs=runs/outputs student=cifar:resnet21",
    "evaluate mlp:16 --best",
    "train teacher.yaml name=finished --runs done",
    "train teacher.yaml --track tensorbord",
    "watch runs/nothing",
    "train done/damaged",
    "train teacher.yaml start=done/nowhere",
    "train teacher.yaml start=done/finished",
    "predict done/student nowhere.jpg student.yaml --top-k 0 --device gpu",
    "predict done/student several.txt",
    "predict done/empty .",
    "predict mlp:16 .",
    "predict done/student . --best",
    "export runs/nothing",
    "export done/finished --to onx",
    "export done/finished --to safetensors --int8",
    "export mlp:16 --to torch-export",
    "export mlp:16 --to torch-export --output a.onnx data.source=digits",
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Exit code, output and errors of every command of the benchmark and some more."""
    folder = tmp_path_factory.mktemp("answers")
    for name, manifest in {"finished": '{"status": "finished"}', "damaged": "{"}.items():
        (folder / "done" / name).mkdir(parents=True)
        (folder / "done" / name / "manifest.json").write_text(manifest)
        (folder / "done" / name / "recipe.yaml").write_text("name: any\n")
    (folder / "done" / "empty").mkdir()
    (folder / "done" / "student").mkdir()
    (folder / "done" / "student" / "student.safetensors").touch()
    (folder / "done" / "student" / "student.json").write_text('{"card": {"name": "mlp:4", "classes": 2}}')
    (folder / "several.txt").touch()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks")])}
    typed = [sys.executable, "-c", f"HEAVY = {HEAVY}\n{CODE}", *MORE, NEEDS_TORCH]
    done = subprocess.run(typed, cwd=folder, env=env, text=True, capture_output=True, check=True)
    assert not (folder / "runs").exists()
    return json.loads(done.stdout)


def test_every_mistake_is_refused_without_torch(answers):
    mistakes, _, answered = answers
    assert len(mistakes) >= 29
    for command in mistakes:
        code, out, err = answered[command]
        assert (code, out) == (2, ""), (command, out, err)
        assert "was imported" not in err, (command, err)
        assert "expected" in err or "Did you mean" in err or "is not one of" in err, (command, err)


def test_help_and_lists_are_shown_without_torch(answers):
    _, questions, answered = answers
    assert len(questions) >= 13
    for command in (*questions, "--version", "study", "list models timm:mobilenet*"):
        code, out, err = answered[command]
        assert (code, err) == (0, ""), (command, err)
        assert out


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("study table1 --budget 25", ["--budget: expected a time with its unit"]),
        ("study table1 --seeds 0", ["--seeds: expected a whole number >= 1, got 0"]),
        (
            "study table1 --pairs resnet56/resnet20 pairs.resnet56/resnet20.student=cifar:resnet21",
            ["pairs.resnet56/resnet20.student: expected a known name, got 'cifar:resnet21'"],
        ),
        ("study table1 data.source=imagefolder:nowhere", ["data.source: expected a folder, got imagefolder:nowhere"]),
        ("distill student.yaml student=mlp:16x", ["student: expected mlp: and up to 100 hidden widths joined by x"]),
        (
            "distill student.yaml student=resnet21 teacher=runs/nothing data.source=hf:./nowhere",
            ["student: expected a known name", "teacher: expected a run's folder", "data.source: expected a folder"],
        ),
        ("distill student.yaml teacher.weights=nothing.pth", ["teacher.weights: expected a checkpoint's file"]),
        (
            'distill student.yaml teacher={"train":{"model":"cifar:resnet21"}}',
            ["teacher.train.model: expected a known name"],
        ),
        ("train teacher.yaml student=file:net.py:make", ["model: expected a Python file"]),
        ("train teacher.yaml objective=file:method.py:ours", ["objective: expected a Python file"]),
        ("record student.yaml outputs=runs/outputs student=cifar:resnet21", ["student: expected a known name"]),
        ("evaluate mlp:16 --best", ["best: expected best.safetensors"]),
        ("train teacher.yaml name=finished --runs done", ["name: expected a new run"]),
        ("train teacher.yaml start=done/nowhere", ["start: expected the folder of a finished run, got done/nowhere"]),
        ("train teacher.yaml start=done/finished", ["start: expected a finished run with its last checkpoint"]),
        (
            "predict done/student nowhere.jpg student.yaml --top-k 0 --device gpu",
            ["--top-k: expected", "--device: expected", "FILE: expected a file or a folder, got 'nowhere.jpg'"],
        ),
        ("predict done/student several.txt", ["FILE: expected pictures"]),
        ("predict done/empty .", ["model: expected a run's folder"]),
        ("predict mlp:16 .", ["model: expected a network that was trained"]),
        ("predict done/student . --best", ["--best: expected best.safetensors"]),
        ("export runs/nothing", ["model: expected a run's folder, got 'runs/nothing'"]),
        ("export done/finished --to onx", ["to: expected one of"]),
        ("export done/finished --to safetensors --int8", ["int8: expected a format with 8-bit integers"]),
        ("export mlp:16 --to torch-export", ["data.source: expected data whose test set"]),
        (
            "export mlp:16 --to torch-export --output a.onnx data.source=digits",
            ["output: expected a name that ends in .pt2 for torch-export, got a.onnx"],
        ),
        ("train done/damaged", [f"{os.path.join('done', 'damaged', 'manifest.json')}: expected JSON"]),
    ],
)
def test_further_mistakes_are_refused_without_torch(answers, command, lines):
    code, _, err = answers[2][command]
    assert code == 2, err
    for line, start in zip(err.splitlines(), lines, strict=True):
        assert line.startswith(f"tutelage: {start}"), line


def test_the_process_has_no_torch(answers):
    assert "torch" in answers[2][NEEDS_TORCH][2]
    assert "was imported" in answers[2][NEEDS_TORCH][2]


def test_the_version_is_that_of_the_package(answers):
    from tutelage import __version__

    assert answers[2]["--version"][1] == f"tutelage {__version__}\n"


def test_what_is_listed_is_what_there_is(answers):
    from tutelage import data, models, objectives

    listed = {what: answers[2][f"list {what}"][1] for what in ("models", "data", "objectives")}
    for name, summary in (*models.available(), *data.available()):
        assert any(name in listed[what] and summary in listed[what] for what in ("models", "data")), name
    shown = [line.partition("(")[0] for line in listed["objectives"].splitlines() if not line.startswith(" ")]
    assert shown == [name for name in objectives.PRESETS if objectives.is_built_in(name)]


def test_only_what_stands_in_the_file_is_said_to(tmp_path, monkeypatch):
    path = tmp_path / "one.yaml"
    path.write_text("name: one\nstudent: mlp:4\nepochs: 0\n")
    with pytest.raises(RecipeError) as raised:
        recipes.from_file(path, ["optimizer.lr=0", "data={validation: 2}"])
    assert sorted(error.what for error in raised.value.errors) == [f"{path}: epochs", "data.validation", "optimizer.lr"]


def test_a_misspelt_file_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "student.yaml").write_text("name: one\n")
    with pytest.raises(RecipeError) as raised:
        recipes.from_file(tmp_path / "studnet.yaml", [])
    assert "student.yaml" in raised.value.instead
