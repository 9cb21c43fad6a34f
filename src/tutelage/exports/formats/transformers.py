"""A folder from which transformers makes the network, its tokenizer or what makes its images, and its class names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage import records
from tutelage.errors import InvalidValueError, missing_extra
from tutelage.exports.formats import timm
from tutelage.exports.source import Source
from tutelage.models.card import Card
from tutelage.models.hf_calls import INDEX, OWN
from tutelage.models.names import HF_KINDS
from tutelage.models.sources.hf import PROCESSOR, quiet
from tutelage.types import PADDING

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # as Pillow, and so transformers, numbers them
_TOKENIZER = "tokenizer_config.json"
_INSTEAD = "type --to onnx, --to torch-export or --to safetensors"


def write(source: Source, to: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer's files or ``preprocessor_config.json``.

    A network of timm is written as `formats.timm` does; transformers reads it as ``TimmWrapperForImageClassification``.

    Args:
        source: student, a network of transformers or timm.
        to: folder to write, which does not exist.

    Raises:
        ImportError: if transformers, or of a network of timm that, is not installed.
        ValueError: if the network is of neither, or is a sentence encoder with a head, which transformers has no class
            for.
    """
    _library()
    classifier = source.classifier
    network: Any = classifier.network
    call = classifier.call
    card = replace(classifier.card, class_names=source.class_names or None)
    if call is None and timm.is_timms(network):
        timm.write(source, to)
        return
    if call is None:
        expected = "a network of transformers or timm, hf: or timm:"
        raise InvalidValueError("to", expected, card.name, _INSTEAD)
    if call.kind == "sentence":
        expected = "a network that transformers has a class for"
        got = f"{card.name}, a sentence encoder with a linear head"
        raise InvalidValueError("to", expected, got, _INSTEAD)
    import tokenizers

    with quiet():
        network.save_pretrained(to)
    files = {name: content for name, content in call.files(network, card).items() if name != INDEX}
    if call.text is None:
        files[PROCESSOR] = json.dumps(_processor(card, source.inputs), indent=1)
    else:
        # Written again: transformers does without none of the keys that the library writes.
        files[records.TOKENIZER] = tokenizers.Tokenizer.from_str(files[records.TOKENIZER]).to_str()
        if not call.text.next_token:  # A pipeline with truncation=True cuts a text where the student's were.
            settings = json.loads(files[_TOKENIZER]) | {"model_max_length": card.max_tokens}
            files[_TOKENIZER] = json.dumps(settings, indent=1, ensure_ascii=False)
    for name, content in files.items():
        (to / name).write_text(content, encoding="utf-8")


def reopen(to: Path) -> Callable[[Tensor], Tensor]:
    """Return the network of a folder as transformers makes it.

    Args:
        to: folder that `write` wrote.

    Returns:
        A function of images in [0, 1] ``(batch, channels, height, width)``, or of token ids ``(batch, tokens)`` int64
        with `PADDING` behind a text. Its logits are ``(batch, classes)``, of labels ``(batch, labels)``, of tokens
        ``(batch, tokens, classes)``, of pixels ``(batch, height, width, classes)``.
    """
    library = _library()
    config = json.loads((to / records.NETWORK).read_text(encoding="utf-8"))
    kind = config.get(OWN, {}).get("kind", "image")
    with quiet():
        network = getattr(library, f"AutoModel{HF_KINDS[kind]}").from_pretrained(to, local_files_only=True).eval()
    if kind in ("image", "pixels"):
        processor = library.AutoImageProcessor.from_pretrained(to, local_files_only=True)
        return _of_images(network, getattr(processor, "data_config", None) or processor.to_dict(), kind)
    pad = network.config.pad_token_id or 0
    classes = None
    if kind == "causal":  # A language model may have more outputs than its tokenizer has tokens.
        vocabulary = library.AutoTokenizer.from_pretrained(to, local_files_only=True).get_vocab()
        classes = max(vocabulary.values()) + 1

    def of_text(inputs: Tensor) -> Tensor:
        padding = inputs == PADDING
        mask = ~padding
        mask[:, 0] = True
        logits: Tensor = network(input_ids=inputs.masked_fill(padding, pad), attention_mask=mask.long()).logits
        return logits[..., :classes]

    return of_text


def _of_images(network: Any, config: Mapping[str, Any], kind: str) -> Callable[[Tensor], Tensor]:
    shown = ("mean", "std") if "mean" in config else ("image_mean", "image_std")
    statistics = [config[key] for key in shown] if config.get("do_normalize", True) else [[0.0], [1.0]]
    mean, std = (torch.tensor(each).reshape(-1, 1, 1) for each in statistics)

    def of_images(inputs: Tensor) -> Tensor:
        logits: Tensor = network((inputs - mean) / std).logits
        if kind == "image":
            return logits
        size = inputs.shape[-2:]  # as `post_process_semantic_segmentation` brings it to an image's
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).movedim(1, -1)

    return of_images


def _processor(card: Card, inputs: Tensor) -> dict[str, Any]:
    """Return what makes images into inputs, of a kind that resizes, cuts the centre out, and normalises."""
    height, width = card.image_size or inputs.shape[-2:]
    tall, wide = round(height * card.margin), round(width * card.margin)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": tall} if height == width else {"height": tall, "width": wide},
        "resample": _RESAMPLE[card.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / card.divisor,
        "do_normalize": card.mean is not None,
        "image_mean": card.mean,
        "image_std": card.std,
        "do_convert_rgb": card.channels == 3,
    }


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("to", "transformers", "text", error) from error
    return transformers
