"""The how-to pages, as a reader who types every block of them."""

from __future__ import annotations

import doctest
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._helpers import ROOT
from tests.pages.harness import LIKE, blocks_of, play
from torch.utils.data import TensorDataset

import tutelage
from tutelage.objectives import Apply, Objective, WeightedTerm, cross_entropy

LIST = "docs/how-to/index.md"
PAGES = (
    "docs/how-to/choose-gamma-and-beta.md",
    "docs/how-to/compare-fairly.md",
    "docs/how-to/data-without-labels.md",
    "docs/how-to/deploy.md",
    "docs/how-to/faster.md",
    "docs/how-to/fit-in-memory.md",
    "docs/how-to/language-model.md",
    "docs/how-to/masks-labels-embeddings.md",
    "docs/how-to/match-features.md",
    "docs/how-to/no-gain.md",
    "docs/how-to/other-classes.md",
    "docs/how-to/own-loss.md",
    "docs/how-to/own-modules-and-data.md",
    "docs/how-to/own-training-loop.md",
    "docs/how-to/predict-a-folder.md",
    "docs/how-to/rare-classes.md",
    "docs/how-to/recipe-of-a-stranger.md",
    "docs/how-to/record-the-teacher.md",
    "docs/how-to/several-gpus.md",
    "docs/how-to/several-teachers.md",
    "docs/how-to/share-a-student.md",
    "docs/how-to/stop-and-resume.md",
    "docs/how-to/teacher-from-a-checkpoint.md",
    "docs/how-to/teacher-from-a-library.md",
    "docs/how-to/trackers.md",
)
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
    "faster": {"replace": {"doctor --bench": "doctor"}},
    "language-model": {"give": ["reviews"], "skip": {"name=smol": FETCHED}},
    "masks-labels-embeddings": {"give": ["weather"]},
    "match-features": {
        "give": ["reviews", "streets_teacher"],
        "replace": {"data.size=256": " ".join(PICTURES), "bpe: 2000": "bpe: 300"},
    },
    "other-classes": {"give": ["flowers"]},
    "predict-a-folder": {"give": ["flowers_runs"]},
    "recipe-of-a-stranger": {"overrides": {}},
    "record-the-teacher": {"overrides": dict.fromkeys(COMMANDS, CPU)},
    "several-gpus": {"skip": {"table1": "CIFAR-100 is fetched", "--nnodes": "several machines"}},
    "stop-and-resume": {"overrides": dict.fromkeys(COMMANDS, CPU)},
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
"""What a page's test changes of it, by its name: files to `give`, and arguments of `play`."""


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """The two recipes of the list of pages, and their runs."""
    folder = tmp_path_factory.mktemp("how-to")
    play(LIST, folder, overrides={name: [*CPU, "precision=fp32"] for name in ("train", "distill")})
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # as a reader has them
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_does_what_it_says(page, tried, give, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tried, tmp_path, dirs_exist_ok=True)
    how = dict(HOW.get(Path(page).stem, {}))
    give(*how.pop("give", ()))
    play(page, tmp_path, **{"overrides": COMMANDS, "shown": True, **how})


def test_every_page_is_listed():
    listed = {f"docs/how-to/{name}" for name in re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / LIST).read_text())}
    assert listed == set(PAGES)


def network(width=64, classes=10):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(width, classes))


def rows(scale=1.0):
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * scale
    images[:, 0, 0, :2] = torch.tensor([0, scale])
    return TensorDataset(images, torch.arange(32) % 10)


def distil(objective, **settings):
    teacher = tutelage.models.create("mlp:8", classes=10, channels=1, image_size=(8, 8))
    settings = {"data": "digits", "teacher": teacher, "student": "mlp:8", "weak_teacher": True, **settings}
    tutelage.distill(objective=objective, name="said", epochs=1, device="cpu", threads=1, display=None, **settings)


def own(loss):
    return cross_entropy() + Objective.of(WeightedTerm("distance", 0.5, Apply(loss)))


def softmaxed():
    teacher = torch.nn.Sequential(network(), torch.nn.Softmax(-1))
    distil("kd", teacher=teacher, student=network(), data=(rows(), rows()))


def twice():
    for _ in range(2):
        tutelage.train(model="mlp:8", data="digits", name="my-student", epochs=1, device="cpu", display=None)


def shared():
    tutelage.train(model=network(), data=(rows(), rows()), name="my-student", epochs=1, device="cpu", display=None)
    tutelage.load("runs/my-student")


SAID = {
    "own-loss": [
        lambda: own(lambda student_logits, teacher: (student_logits - teacher).square().mean(-1)),
        lambda: distil(own(lambda student_logits, teacher_logits: (student_logits - teacher_logits).square().mean())),
    ],
    "own-training-loop": [lambda: tutelage.Distiller(network(), tutelage.objectives.wttm(gamma=0.25))],
    "own-modules-and-data": [
        lambda: tutelage.train(model=network(), data=(rows(16), rows()), name="said", epochs=1, display=None),
        lambda: distil("kd", student=network(100), teacher=network(), data=(rows(), rows())),
        softmaxed,
        twice,
    ],
    "share-a-student": [shared],
}
"""What brings about the messages that a page shows on their own, in their order."""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("page", SAID)
def test_the_messages_of_a_page_are_those_that_appear(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = [block.code for block in blocks_of(f"docs/how-to/{page}.md") if block.language == "text"]
    for expected, call in zip(shown, SAID[page], strict=True):
        with pytest.raises((tutelage.TutelageError, UserWarning)) as refused:
            call()
        assert doctest.OutputChecker().check_output(expected, f"{refused.value}\n", LIKE), refused.value
