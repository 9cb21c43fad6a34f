"""The how-to pages, as a reader who types every block of them."""

from __future__ import annotations

import contextlib
import doctest
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from tests._helpers import ROOT
from tests.pages.harness import LIKE, blocks_of, lines_of, play

PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/how-to").glob("*.md"))
CPU = ["device=cpu", "threads=1"]
BRIEF = [*CPU, "epochs=1"]
COMMANDS = dict.fromkeys(("train", "distill", "record"), BRIEF) | {"compare": [*BRIEF, "seeds=1"]}
PICTURES = ["data.size=32", "batch_size=8", "weak_teacher=true"]

FETCHED = "weights are fetched from the Hub"
HOW: dict[str, dict[str, Any]] = {
    "choose-gamma-and-beta": {
        "overrides": {**COMMANDS, "tune": [*BRIEF, "--confirm", "1"]},
        "replace": {"--trials 20": "--trials 2"},
    },
    "data-without-labels": {
        "give": ["flowers_runs"],
        "replace": {"data.unlabelled=images:photos": f"data.unlabelled=images:photos {' '.join(PICTURES)}"},
    },
    "language-model": {"give": ["reviews"], "skip": {"name=smol": FETCHED}},
    "masks-labels-embeddings": {"give": ["weather"]},
    "other-classes": {"give": ["flowers"]},
    "predict-a-folder": {"give": ["flowers_runs"]},
    "recipe-of-a-stranger": {"overrides": {}},
    "record-the-teacher": {"overrides": {name: CPU for name in COMMANDS}},
    "several-gpus": {"skip": {"table1": "CIFAR-100 is fetched", "--nnodes": "several machines"}},
    "stop-and-resume": {"overrides": {name: CPU for name in COMMANDS}},
    "teacher-from-a-library": {
        "give": ["flowers"],
        "replace": {
            "name: flowers-small": "name: flowers-small\nweak_teacher: true",
            "random_resized_crop: true": "size: 32",
            "timm:resnet50.a1_in1k, epochs: 10": "timm:test_resnet, epochs: 1",
            "torchvision:mobilenet_v3_small.IMAGENET1K_V1": "cifar:resnet8",
        },
    },
    "trackers": {"skip": {"tensorboard --logdir": "it serves until Ctrl-C"}},
}
"""What a page's test changes of it, by its name: `give` has the files that it speaks of, the others are arguments of `play`."""


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """The two recipes of the list of pages, and their runs."""
    folder = tmp_path_factory.mktemp("how-to")
    play("docs/how-to/index.md", folder, overrides=dict.fromkeys(("train", "distill"), [*CPU, "precision=fp32"]))
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # as a reader has them
@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/how-to/index.md"])
def test_every_block_of_a_page_does_what_it_says(page, tried, give, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tried, tmp_path, dirs_exist_ok=True)
    how = dict(HOW.get(Path(page).stem, {}))
    give(*how.pop("give", ()))
    play(page, tmp_path, **{"overrides": COMMANDS, "shown": True, **how})
