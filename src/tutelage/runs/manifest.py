"""What a manifest records about machine, software and command: never a path, a user or a host name."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import psutil

from tutelage import data, models
from tutelage.settings.objective import is_own
from tutelage.types import Served
from tutelage.version import __version__

if TYPE_CHECKING:
    import torch

    from tutelage.models import Classifier

PACKAGES = (
    "torch", "torchvision", "timm", "accelerate", "datasets", "numpy", "scikit-learn", "safetensors", "pydantic",
    "pillow",
)  # fmt: skip

_START = r"(?<![\w.~/\\])(?:~(?:[A-Za-z_][\w.-]*)?[/\\]|[A-Za-z]:[/\\]|\\\\|/(?:(?=[^/\s])|//))"
_PATH = re.compile(
    rf"""
    (?P<url> [A-Za-z][\w+.-]*://[^/\s][^\s'"`]* )
    | (?P<quote> ['"`]) [^\s'"`]*? (?P<quoted> {_START} [^'"`:\n]* ) (?= [^'"`\n]* (?P=quote) )
    | \A (?: [\w.+-]+= | [\w.+-]{{2,}}: )* (?P<whole> {_START} (?: (?!\s[~/]) [^'"`:\n] )* ) (?= (?: :[\w.]+ )? \Z )
    | (?P<plain> {_START} (?: \\[ ] | [,=](?=\S) | [^\s:=,'"`] )* )
    """,
    re.VERBOSE,
)


def hardware(device: torch.device) -> dict[str, Any]:
    """Describe the machine: processor, cores, memory in GB, and the accelerator in use."""
    import torch

    return {
        "device": device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


@cache
def software() -> dict[str, str]:
    """Return the versions that a result depends on."""
    versions = {"python": platform.python_version(), "system": platform.system()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@cache
def version() -> dict[str, str | None]:
    """Return this package's version and, in a checkout, the commit, marked if files differ from it.

    A process keeps its first answer, as it does the code that it has imported.
    """
    here = Path(__file__).parents[1]
    # An installed copy may be inside another project's checkout, whose commit says nothing about it.
    tracked = _git(here, "ls-files", "--", __file__)
    commit = _git(here, "rev-parse", "HEAD") if tracked else None
    if commit and _git(here, "status", "--porcelain", "--untracked-files=no", "--", str(here)):
        commit += "+changes"
    return {"version": __version__, "commit": commit}


def describe_data(splits: data.Splits, device: torch.device) -> dict[str, Any]:
    """Describe the data for a manifest, and where a run on a device keeps them."""
    keys = ("source", "fingerprint", "classes", *(("channels", "image_size") if splits.of_images else ()))
    described = {key: getattr(splits, key) for key in keys}
    if splits.licence is not None:
        described["licence"] = splits.licence
    if splits.text:
        described["tokenizers"] = {
            name: {
                "fingerprint": text.tokenizer.fingerprint,
                "size": text.tokenizer.size,
                "max_tokens": text.max_tokens,
            }
            for name, text in splits.text.items()
        }
    if splits.train.balanced:
        described["sampling"] = "balanced"
    if (part := splits.train.unlabelled) is not None:
        counts = {"samples": part.samples, "per_epoch": part.per_epoch}
        share = part.per_epoch / splits.train.per_epoch
        described["unlabelled"] = {"source": part.source, **counts, "share": share}
    return {**described, "sizes": splits.sizes(), "place": data.describe_place(splits, device)}


def describe_network(network: Classifier) -> dict[str, Any]:
    """Describe a network for a manifest; the fingerprint is that of its current weights."""
    card = network.card
    described = {
        "name": without_paths(card.name),
        "parameters": models.parameters(network),
        "weights": card.weights or "random",
        "fingerprint": models.fingerprint(network.network),
        "normalisation": {"mean": list(card.mean), "std": list(card.std)} if card.mean and card.std else "none",
        "source": card.source,
        "licence": card.licence,
    }
    if network.frozen:
        described["base"] = models.frozen_fingerprint(network)
    if network.frozen or network.frozen_by:
        described["trained"] = sum(p.numel() for p in network.parameters() if p.requires_grad)
    if (shape := network.resized_to) is not None:
        described["input"] = shape
    if isinstance(network, models.Ensemble):
        described["combine"], described["normalisation"] = network.combine, "each member's own"
        described["members"] = [
            {**describe_network(member), "weight": weight}
            for member, weight in zip(network.members, network.weights, strict=True)
        ]
    if network.outputs is not None:
        described["class_outputs"] = network.outputs.tolist()
    return described


def describe_served(served: Served) -> dict[str, Any]:
    """Describe a served teacher's answers: where they are from, how many classes each names, and what is left over."""
    positions, top = served.logits.values.shape
    left = float(f"{served.left_over:.3g}")
    return {"source": served.source, "positions": positions, "top": top, "mean_left_over": left}


def without_paths(value: Any) -> Any:
    """Reduce every absolute path in a value to its last component, so that records name no user's folders.

    Absolute paths begin with ``/``, ``~`` or a Windows drive; relative paths and URLs stay. A path with spaces is
    recognised if it is quoted, or if nothing follows it in a value.
    """
    if isinstance(value, dict):
        # A key is no path, but for a function of the user's own that an objective names.
        return {without_paths(k) if is_own(k) else k: without_paths(inner) for k, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return _PATH.sub(_last_component, value)


def _last_component(match: re.Match[str]) -> str:
    path = match[match.lastgroup or 0]
    if match.lastgroup == "url":
        return path
    return match[0][: -len(path)] + (PureWindowsPath(path.replace("\\ ", " ")).name or path)


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() or None


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = re.findall(r"model name\s*:\s*(.+)", text)
    return names[0].strip() if names else platform.machine()
