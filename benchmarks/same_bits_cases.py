"""Cases that `same_bits.py` runs in both versions: one process per version, in its own folder.

    PYTHONPATH=SRC python benchmarks/same_bits_cases.py SRC RECIPES [CASE]...

The cases only use documented calls and commands, so modules may be moved and renamed between two versions. Each case
writes into a folder of its name below the current one; `done.json` says how long each took, or why it failed.
"""

import contextlib
import functools
import inspect
import io
import itertools
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import tutelage
from tutelage import data, kernels, losses, objectives
from tutelage.cli import main as command_line

PLAIN = {
    "precision": "fp32",
    "compile_teacher": False,
    "compile_student": False,
    "gradient_products": False,
    "threads": 1,
    "device": "cpu",
    "weak_teacher": True,
}
"""Settings of every run, unless a case overrides them."""
DIGITS = {"source": "digits", "validation": 0.5}


def distil(folder, objective, name, **changes):
    settings = {"student": "cifar:resnet8", "data": DIGITS, "epochs": 2, **PLAIN, **changes}
    settings.setdefault("teacher", teacher_folder())
    return tutelage.distill(objective=objective, name=name, runs=folder, **settings)


@functools.cache
def teacher_folder():
    """Return the folder of most cases' teacher, trained once."""
    run = tutelage.train(model="cifar:resnet14", data="digits", name="teacher", runs=".", epochs=2, **PLAIN)
    return str(run.folder)


def command(*typed, **keys):
    """Run a command; return what it printed."""
    sys.argv = ["tutelage", *map(str, typed), *(f"{key}={json.dumps(value)}" for key, value in keys.items())]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            command_line()
        except SystemExit as left:
            if left.code:
                raise RuntimeError(f"{' '.join(sys.argv)}: exit status {left.code}") from left
    return printed.getvalue()


def written(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value))
    return path


def teacher(_):
    """The teacher of the other cases."""
    teacher_folder()


def demo(folder):
    """The demo, through the command line."""
    command("compare", RECIPES / "digits.yaml", "--runs", folder, **PLAIN)


def functions(folder):
    """Losses on logits as functions, with their gradients; the kernel for large vocabularies."""
    z, v = torch.randn(2, 32, 40, generator=torch.Generator().manual_seed(0)).mul(3)
    numbers = {"temperature": 2.0, "gamma": 0.5, "alpha": 1.5, "beta": 2.0, "order": 0.25, "correct": 0.9}
    arguments = {"teacher_logits": v, "labels": torch.arange(32) % 40, **numbers}
    tensors = {}
    for name in {name for name in dir(losses) if callable(getattr(losses, name))} - {
        "ctkd"
    }:  # its temperature is a parameter that is learned
        signature = inspect.signature(getattr(losses, name)).parameters.values()
        needed = {p.name for p in signature if p.default is p.empty} - {"student_logits"}
        if "student_logits" in [p.name for p in signature] and needed <= arguments.keys():
            leaf = z.clone().requires_grad_()
            value = getattr(losses, name)(student_logits=leaf, **{key: arguments[key] for key in needed})
            value.sum().backward()
            tensors |= {name: value.detach(), f"{name}.gradient": leaf.grad}
    z, v = torch.randn(2, 256, 600, generator=torch.Generator().manual_seed(0)).mul(3)  # So many that a form is used.
    leaf = z.requires_grad_()
    both = kernels.cross_entropy_and_wttm(leaf, v, torch.arange(256), gamma=0.25)
    torch.stack(both).sum().backward()
    tensors |= {"kernel": torch.stack(both).detach(), "kernel.gradient": leaf.grad}
    folder.mkdir()
    save_file(tensors, folder / "functions.safetensors")


ARGUMENTS = {"renyi_penalty": {"weight": 0.5, "order": 0.25}, "crd": {"negatives": 256}}
STAGED = ("fitnet", "activation_boundary", "fsp")
VARIANTS = {
    "kd-standardised": {"kd": {"temperature": 2, "weight": 9, "logits": "standardised"}},
    "matching-rational": {"transformed_matching": {"transform": "rational", "weight_by": "entropy"}},
    "wttm-scheduled": {
        "wttm": {"gamma": 0.3, "beta": {"schedule": "linear", "start": 2, "end": 0}, "normalise": "batch"}
    },
}


OF_OTHERS = ("cwd", "hidden_states", "attention_relations", "deit")
"""Presets of pixels and of transformers, which the networks here are not."""


def presets(folder):
    """Every preset of classes of the revision, for two epochs: with cross-entropy, or as a stage before KD."""
    for name, built_in in objectives.PRESETS.items():
        needs = built_in.build(**ARGUMENTS.get(name, {})).needs
        if needs.embeddings or getattr(needs, "views", 1) > 1 or name in OF_OTHERS:
            continue
        arguments = inspect.signature(built_in.build).parameters
        preset = {name: ARGUMENTS.get(name, {})}
        objective = preset if "supervised" in arguments or name == "cross_entropy" else ["cross_entropy", preset]
        if name in STAGED:
            distil(folder, "kd", name, stages=[{"objective": preset, "epochs": 1}, {"epochs": 1}])
        elif name == "vitkd":
            distil(folder, objective, name, student=vit(16), teacher=vit(24))
        else:
            distil(folder, objective, name)
    for name, objective in VARIANTS.items():
        distil(folder, objective, name)


def vit(width):
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(width)
    size = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10}
    return VisionTransformer(**size, embed_dim=width, depth=4, num_heads=2)


ADAMW = {"name": "adamw", "lr": 3e-3}
WARM = {"name": "cosine", "warmup": 0.5}


def adamw(folder):
    """AdamW with clipping, a warm-up and micro-batches."""
    distil(folder, "kd", "adamw", optimizer=ADAMW, schedule=WARM, clip=0.5, accumulate=4)


def views(folder):
    """Crops and flips, together with everything else that changes an image."""
    cut = {**DIGITS, "crop_padding": 1, "flip": True}
    distil(folder, "ttm", "crops", data=cut)
    distil(folder, "kd", "mixed", data={**cut, "mixup": 0.8, "cutmix": 1.0})
    drawn = {"random_resized_crop": True, "randaugment": {"operations": 2}, "random_erasing": 0.25}
    distil(folder, "kd", "drawn", data={**DIGITS, "flip": True, "interpolation": "bicubic", **drawn})


STAGES = [
    {"objective": "fitnet", "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.02, "nesterov": True}},
    {"epochs": 2, "batch_size": 48, "optimizer": ADAMW, "schedule": WARM, "clip": 1.0},
    {"objective": "cross_entropy", "epochs": 1},
]


def stages(folder):
    """Three stages, each with another objective, batch and optimizer; and a teacher that the run trains first."""
    distil(folder, {"wttm": {"gamma": 0.25, "beta": 1}}, "stages", stages=STAGES, data={**DIGITS, "labelled": 20})
    first = {"name": "teacher-first", "student": "mlp:8", "objective": "kd", "epochs": 1, "data": DIGITS, **PLAIN}
    first |= {"teacher": {"train": {"model": "mlp:32", "epochs": 2}}}
    command("distill", written(folder / "first.yaml", first), "--runs", folder)


def bf16(folder):
    """Networks in bfloat16."""
    distil(folder, "wttm", "bf16", precision="bf16", schedule={"name": "multistep", "milestones": [1]})


def recorded(folder):
    """Outputs recorded and then read: all logits with features, and the largest of 40 classes."""
    draw = np.random.default_rng(0)
    for label, i in itertools.product(range(40), range(7)):
        colour = np.array([label % 4, label // 4 % 4, label // 16]) * 80
        image = np.clip(colour + draw.normal(0, 20, (8, 8, 3)), 0, 255)
        path = folder / "images" / ("train" if i else "test") / f"{label:02}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(path)
    images = {"source": f"imagefolder:{folder / 'images'}", "size": 8}
    asked = tutelage.train(model="mlp:32", data=images, name="teacher", runs=folder, epochs=8, **PLAIN).folder
    shared = {"student": "mlp:8", "teacher": str(asked), "data": {**images, "flip": True}, "epochs": 2}
    wttm, top = (
        {"wttm": {"gamma": 1.0, "beta": 1}},
        {"outputs_top": 5, "outputs_limit_mb": 0.035, "outputs_max_error": 1},
    )
    for name, objective, how in (("all", [wttm, "rkd"], {}), ("top", wttm, top)):
        recipe = {
            "name": name,
            "objective": objective,
            "outputs": str(folder / "outputs" / name),
            **shared,
            **how,
            **PLAIN,
        }
        path = written(folder / f"{name}.yaml", recipe)
        command("record", path)
        command("distill", path, "--runs", folder)


class Dropping(nn.Sequential):
    """A student whose bits depend on everything that a checkpoint must hold."""

    def __init__(self):
        torch.manual_seed(0)
        body = nn.Conv2d(1, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(54, 10)
        super().__init__(*body)


def resume(folder):
    """Runs that get a signal in the second epoch and resume, and one that gets none."""
    settings = {"optimizer": ADAMW, "schedule": WARM, "checkpoint_steps": 5, "data": {**DIGITS, "crop_padding": 1}}
    settings |= {"teacher": teacher_folder()}

    def go(name):
        return distil(folder / name, "kd", "run", student=Dropping(), **settings)

    go("whole")
    for name, sent, left in (("stopped", signal.SIGINT, 1), ("killed", signal.SIGKILL, -signal.SIGKILL)):
        child = os.fork()
        if not child:
            signalled(sent, 17)
            with contextlib.suppress(KeyboardInterrupt):
                go(name)
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == left
        assert go(name).manifest["resumed"] == 1


def signalled(sent, step):
    """Send this process a signal after so many steps."""
    left = itertools.count(1)
    register_optimizer_step_post_hook(lambda *_: signal.raise_signal(sent) if next(left) == step else None)


class Dividing(nn.Module):
    """A student that divides by an image's brightness, and is not finite if that is 0."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(x / x.mean(1, keepdim=True))


class Grey(torch.utils.data.Dataset):
    """Drawn images; one of them may be black."""

    def __init__(self, n, black=None):
        draw = torch.Generator().manual_seed(n)
        self.targets = [k % 10 for k in range(n)]
        self.images = torch.rand(n, 1, 8, 8, generator=draw) * (1 + torch.tensor(self.targets).view(-1, 1, 1, 1)) / 10
        if black is not None:
            self.images[black] = 0

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, k):
        return self.images[k], self.targets[k]


def nonfinite(folder):
    """A black image that makes one step of each epoch not finite, on data sets and modules of the caller."""
    images = data.from_datasets(Grey(200, black=77), Grey(50), classes=10)
    dividing_teacher = nn.Sequential(nn.Flatten(), Dividing().head)
    run = distil(folder, "kd", "run", student=Dividing(), teacher=dividing_teacher, data=images, nonfinite="skip")
    assert [epoch["skipped_steps"] for epoch in run.epochs] == [1, 1]


def lockstep(folder):
    """A comparison with its students in one group, and one after the other."""
    methods = {"labels": "cross_entropy", "wttm": "wttm", "fitnet": ["cross_entropy", "fitnet"]}
    methods |= {"crd": ["cross_entropy", {"crd": {"negatives": 256}}]}
    comparison = {
        "name": "grid",
        "objectives": methods,
        "seeds": 2,
        "share_data_seed": True,
        "teacher": teacher_folder(),
    }
    comparison |= {
        "student": "cifar:resnet8",
        "data": {**DIGITS, "flip": True},
        "epochs": 2,
        "checkpoint_steps": 7,
        **PLAIN,
    }
    recipe = written(folder / "grid.yaml", comparison)
    command("compare", recipe, "--runs", folder / "together", together=8)
    command("compare", recipe, "--runs", folder / "alone", together=1)


CASES = {
    case.__name__: case
    for case in (teacher, demo, functions, presets, adamw, views, stages, bf16, recorded, resume, nonfinite, lockstep)
}

if __name__ == "__main__":
    source, RECIPES, *names = map(Path, sys.argv[1:])
    assert Path(tutelage.__file__).is_relative_to(source), f"expected tutelage from {source}, got {tutelage.__file__}"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    done = {}
    for folder in names or map(Path, CASES):
        began, fault = time.monotonic(), None
        try:
            CASES[folder.name](folder)
        except Exception:  # noqa: BLE001  the other cases do not depend on it
            traceback.print_exc()
            fault = traceback.format_exc(limit=0, chain=False).strip()
        done[folder.name] = {"seconds": time.monotonic() - began, "fault": fault}
        for report in Path().rglob("report.html"):
            report.unlink()  # five megabytes each
        Path("done.json").write_text(json.dumps(done), encoding="utf-8")
