"""What a shell completes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tutelage.cli import completion


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("epo", ["epochs="]),
        ("optimizer.l", ["optimizer.lr=", "optimizer.layer_decay="]),
        ("data.fl", ["data.flip="]),
        ("nothing", []),
        ("precision=b", ["precision=bf16"]),
        ("device=", ["device=auto", "device=cpu", "device=cuda"]),
        ("deterministic=", ["deterministic=true", "deterministic=false"]),
        ("optimizer.name=", ["optimizer.name=sgd", "optimizer.name=adamw"]),
        ("graphs=", ["graphs=auto", "graphs=true", "graphs=false"]),
        ("loss_form=a", ["loss_form=auto"]),
        ("objective=wt", ["objective=wttm"]),
        ("epochs=", []),
        ("nothing=", []),
    ],
)
def test_overrides_are_completed_from_the_schema(typed, completed):
    assert completion.overrides(typed) == completed


def test_every_key_is_completed_once():
    keys = completion.overrides("")
    assert len(keys) == len(set(keys))
    assert {"student=", "data.source=", "teacher.train.epochs=", "schedule.warmup="} <= set(keys)


def test_studies_are_completed_by_name():
    assert "table1" in completion.studies("tab")
    assert completion.studies("mine.y") == []


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("tutelage list ob", {"objectives"}),
        ("tutelage study open", {"open-questions"}),
        ("tutelage distill recipe.yaml optimizer.mom", {"optimizer.momentum="}),
        ("tutelage predict runs/one --format c", {"csv"}),
        ("tutelage distill rec", set()),  # the shell's own: files
    ],
)
def test_a_shell_is_answered_without_torch(words, completed, tmp_path):
    asked = {"_TUTELAGE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "import sys; from tutelage.cli import app\n"
    code += "try: app.app(prog_name='tutelage')\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == completed, done.stderr
