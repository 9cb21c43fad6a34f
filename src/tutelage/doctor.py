"""A check of the machine: versions, devices, extras, and one real training step."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from PIL import Image

from tutelage.config.schema import Recipe, parse
from tutelage.runs import manifest, trackers
from tutelage.runs.execute import execute
from tutelage.runs.run import RunOptions
from tutelage.settings.fit import Precision

EXTRAS = {
    "demo": "sklearn",
    "executorch": "executorch",
    "figures": "matplotlib",
    "hf": "datasets",
    "int8": "torchao",
    "lightning": "lightning",
    "lora": "peft",
    "onnx": "onnxruntime",
    "ray": "ray",
    "report": "plotly",
    "text": "transformers",
    "timm": "timm",
    "tune": "optuna",
}
"""Extras, each with a module that it alone installs; trackers have a line of their own."""


class Finding(NamedTuple):
    """One property of the machine; ``good`` is false if it keeps tutelage from working."""

    what: str
    value: str
    good: bool = True


def examine() -> Iterator[Finding]:
    """Yield versions, devices, extras, real training steps and free disk space."""
    for name, version in {**manifest.version(), **manifest.software()}.items():
        yield Finding(name, version or "unknown")
    machine = manifest.hardware(torch.device("cpu"))
    yield Finding("processor", f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads in use")
    yield Finding("memory", f"{machine['memory_gb']} GB")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(count)}
    for name, value in (gpus or {"cuda": "none: runs use the CPU"}).items():
        yield Finding(name, value)
    yield Finding("vector instructions", torch.backends.cpu.get_cpu_capability())
    for extra, module in EXTRAS.items():
        installed = importlib.util.find_spec(module) is not None
        yield Finding(f"extra {extra}", "installed" if installed else f"not installed; pip install 'tutelage[{extra}]'")
    names = trackers.installed()
    instead = "none installed; pip install 'tutelage[tensorboard]', or wandb, mlflow or trackio"
    yield Finding("trackers", ", ".join(names) if names else instead)
    yield from map(_step, get_args(Precision) if count else ("fp32", "bf16"))
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield Finding("disk", f"{free:.1f} GB free here", good=free > 0.1)


def measure() -> Iterator[Finding]:
    """Time what this package speeds up against references; the values are lines to print.

    A section that fails does not stop the next.
    """
    from tutelage.benchmark import sections  # the references take a while to import

    began = time.monotonic()
    for section in sections.SECTIONS:
        for line in ("", section.title, f"  reference: {section.reference}"):  # Each is printed as one.
            yield Finding(section.name, line)
        try:
            for line in section.lines():
                yield Finding(section.name, f"  {line}")
        except Exception as error:  # noqa: BLE001  the other sections do not depend on it
            reason = " ".join(str(error).split()) or "no reason given"
            yield Finding(section.name, f"  failed: {type(error).__name__}: {reason}", good=False)
    yield from (Finding("time", line) for line in ("", f"{time.monotonic() - began:.0f} s in all"))


def _make_pictures(folder: Path) -> None:
    """Write an image folder of two classes, dark and bright: 384 pictures for training and 64 for test."""
    noise = np.random.default_rng(0)
    for half, count in (("train", 192), ("test", 32)):
        for name, low in (("dark", 0), ("bright", 96)):
            (folder / half / name).mkdir(parents=True)
            for k, pixels in enumerate(noise.integers(low, low + 160, (count, 8, 8), dtype=np.uint8)):
                Image.fromarray(pixels).save(folder / half / name / f"{k}.png")


def _step(precision: str) -> Finding:
    """Train for one epoch on made-up pictures, with all records."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        _make_pictures(pictures)
        settings = {"student": "cifar:resnet8", "epochs": 1, "batch_size": 128, "precision": precision}
        settings["data"] = {"source": f"imagefolder:{pictures}"}
        recipe = parse(Recipe, {"name": "doctor", "device": "auto", **settings})
        try:
            run = execute(recipe, Path(folder) / "doctor", options=RunOptions(command="tutelage doctor"))
        except (RuntimeError, ValueError, OSError) as error:
            return Finding(f"training step, {precision}", f"failed: {error}", good=False)
        steps, seconds = run.epochs[-1]["step"], time.monotonic() - began
    return Finding(f"training step, {precision}", f"{steps} steps, recorded and evaluated, in {seconds:.1f} s")
