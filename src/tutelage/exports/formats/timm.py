"""A folder from which timm makes the network: its architecture, its weights, and how an image becomes an input.

``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads it; as a repository of the Hugging Face Hub,
``hf-hub:``, and transformers as a network of images.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage import records
from tutelage.errors import InvalidValueError, missing_extra, one_line
from tutelage.exports.source import Source
from tutelage.models.hf_calls import OF_LABELS

KEPT = ("architecture", "fixed_input_size", "first_conv", "classifier")
"""What a student has in common with the published weights of its architecture; their licence and source it has not."""


def write(source: Source, to: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    Timm's own evaluation transform cuts the view that the student is evaluated on, as far as the libraries round alike:
    the shorter side becomes ``size * margin``, the centre is cut out, and pixels are ``(x / 255 - mean) / std``.

    Args:
        source: student, a network of timm.
        to: folder to write, which does not exist.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if the network is not timm's, or gives each pixel a class.
    """
    library = _library()
    card = source.classifier.card
    network: Any = source.classifier.network
    if not is_timms(network):
        expected, instead = "a network of timm", "type --to onnx, --to torch-export or --to safetensors"
        raise InvalidValueError("to", expected, card.name, instead)
    # Its own tensors: the library writes no tensor whose channels are last in memory.
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    published: Mapping[str, Any] = network.pretrained_cfg
    size = card.image_size or tuple(source.inputs.shape[-2:])
    network.pretrained_cfg = {
        **{key: published[key] for key in KEPT if published.get(key) is not None},
        "input_size": (card.channels, *size),
        "num_classes": card.classes,
        "crop_pct": _crop(size, card.margin),
        "crop_mode": "center",
        "interpolation": card.interpolation,
        "mean": card.mean or (0.0,) * card.channels,
        "std": card.std or (1.0,) * card.channels,
        **({"license": card.licence} if card.licence else {}),
    }
    described: dict[str, Any] = {"label_names": list(source.class_names)} if source.class_names else {}
    if card.task == "labels":
        described["problem_type"] = OF_LABELS  # read by transformers
    try:
        library.models.save_for_hf(network, to, model_config=described, safe_serialization=True)
    except ValueError as error:  # of an argument that is no JSON
        instead = "type --to onnx, --to torch-export or --to safetensors"
        raise InvalidValueError("to", "a network made of values that are JSON", one_line(error), instead) from error

    config = json.loads((to / records.NETWORK).read_text(encoding="utf-8"))
    # The number is beside them already; transformers passes it on too, and refuses it twice.
    config.get("model_args", {}).pop("num_classes", None)
    (to / records.NETWORK).write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")


def reopen(to: Path) -> Callable[[Tensor], Tensor]:
    """Return the network of a folder as timm makes it, behind timm's own normalisation.

    Args:
        to: folder that `write` wrote.

    Returns:
        A function of images in [0, 1] ``(batch, channels, height, width)``; its logits are ``(batch, classes)``.
    """
    library = _library()
    network = library.create_model(f"local-dir:{to}", pretrained=True).eval()
    config = library.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(config[key]).reshape(-1, 1, 1) for key in ("mean", "std"))

    def run(inputs: Tensor) -> Tensor:
        logits: Tensor = network((inputs - mean) / std)
        return logits

    return run


def is_timms(network: nn.Module) -> bool:
    """Whether timm made a network, one that it makes again by the name of its architecture."""
    architecture = _architecture(network)
    return bool(architecture) and _library().is_model(architecture)


def _architecture(network: nn.Module) -> str:
    configuration = getattr(network, "pretrained_cfg", None)
    return str(configuration.get("architecture", "")) if isinstance(configuration, Mapping) else ""


def _library() -> Any:
    try:
        import timm
    except ImportError as error:
        raise missing_extra("to", "timm", "timm", error) from error
    return timm


def _crop(size: tuple[int, ...], margin: float) -> float:
    """Return the part of the resized copy's side that is the view's, as timm rounds it: ``floor(side / part)``."""
    side = min(size)
    copied, part = round(side * margin), round(1 / margin, 4)
    return part if math.floor(side / part) == copied else side / (copied + 0.5)
