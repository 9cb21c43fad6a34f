"""A student made of its teacher: some of its layers, and of each the leading channels, with their weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from tutelage import records
from tutelage.errors import InvalidValueError
from tutelage.models import lora, structure
from tutelage.models.classifier import Classifier
from tutelage.models.sentence import SentenceClassifier
from tutelage.models.sources import hf
from tutelage.models.spec import ModelRequest
from tutelage.text import TextInput

_INSTEAD = "name a student in place of init"
_WIDTHS = ("bert", "deit", "distilbert", "llama", "mistral", "qwen2", "qwen3", "roberta", "vit", "xlm-roberta")
"""Types of the transformers library whose width can be cut: each of their projections has a matrix of its own."""
_KINDS = f"of the types {', '.join(_WIDTHS)}"
_OF_IMAGES = ("channels", "image_size", "margin", "interpolation", "divisor", "mean", "std")
"""Fields of a card that say which images a network was made for."""
Layers = Literal["every_second", "first", "last"] | Sequence[int]


def from_teacher(
    teacher: Classifier, *, layers: Layers | None = None, width: int | None = None, text: TextInput | None = None
) -> Classifier:
    """Make a student with a teacher's configuration and weights, of fewer layers or channels.

    Embeddings, norms and the head are copied, and of ``n`` layers those that are chosen: ``every_second`` takes layers
    0, 2, 4, ... (Sanh et al., DistilBERT, arXiv 1910.01108), ``first`` and ``last`` the first and last ``ceil(n / 2)``,
    a list those of its numbers, in its order. With ``width`` the hidden size is that number. Attention has heads of the
    teacher's size, in proportion fewer, and feed-forward layers are in proportion narrower; of each weight the leading
    rows and columns are copied, so that heads stay whole. That is this project's own rule: it takes the channels in
    their order, where weight subcloning (Samragh et al., arXiv 2312.09299) takes the most important ones.

    Args:
        teacher: network of the transformers library; neither moved nor changed. Adapters are merged in the copy.
        layers: layers to take, counted from 0; ``None`` for all of them.
        width: hidden size, a multiple of a head's size; ``None`` for the teacher's.
        text: what the student reads if it reads text, by the teacher's tokenizer; ``None`` for as the teacher does.

    Returns:
        The student, on the CPU, in training mode. With all layers and channels it has the teacher's logits.

    Raises:
        ValueError: if the teacher is another network, or has no such layers or no such width.
    """
    name, call = teacher.card.name, teacher.call
    if call is None:
        expected = "a teacher of the transformers library, whose configuration names its layers"
        raise InvalidValueError("init", expected, name, f"{_INSTEAD}, or an hf: teacher")
    if teacher.outputs is not None:
        expected = f"a teacher of the data's classes alone, as the head of {name} is copied"
        raise InvalidValueError("init", expected, f"one of {teacher.outputs.tolist()[:3]} and others", _INSTEAD)
    if text is not None and call.text is not None and text.tokenizer.fingerprint != call.text.tokenizer.fingerprint:
        expected = f"the tokenizer of {name}, whose embeddings are copied"
        raise InvalidValueError("init", expected, "another", "type the teacher's as data.tokenizer, and no other")
    network = teacher.network if teacher.adapters is None else lora.merged(teacher.network)
    inner: Any = network.encoder if isinstance(network, SentenceClassifier) else network
    depth = int(getattr(inner.config, "num_hidden_layers", None) or 0)
    stack = _stack(network, depth, name)
    chosen = _chosen(layers, depth, name)
    config = json.loads(call.files(network, teacher.card)[records.NETWORK])
    config |= _shortened(inner.config, chosen, depth)
    if width is not None:
        config |= _narrowed(network, inner.config, width, name)
    kind = str(inner.config.model_type)
    card = teacher.card
    request = ModelRequest(
        classes=card.classes,
        channels=card.channels,
        image_size=card.image_size,
        text=text or call.text,
        like=config,
        tagged=False,
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        spec = hf.plan(kind, request)
        student = spec.build(classes=card.classes)
    read = structure.read(student, classes=card.classes)
    # A teacher without its head answers with what that read: the student's passes it on.
    passed = read.head if card.task == "embedding" and card.head is None else None
    _copy(network, student, stack, chosen, name, passed=passed)
    weights = f"layers {', '.join(map(str, chosen))} of {name}" + f", the leading {width} channels" * bool(width)
    described = dataclasses.replace(
        spec.card,
        weights=weights,
        class_names=card.class_names,
        task=card.task,
        **read._asdict(),
    )
    if text is None and call.text is None:
        described = dataclasses.replace(described, **{field: getattr(card, field) for field in _OF_IMAGES})
    made = Classifier(student, described, call=dataclasses.replace(spec.call or call, classes=card.classes))
    made.asked_size = None
    return made


def _stack(network: nn.Module, depth: int, name: str) -> str:
    """Return the name of the list of a network's layers."""
    lists = [n for n, module in network.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    found = [n for n in lists if depth and not any(n.startswith(f"{outer}.") for outer in lists)]
    if len(found) != 1:
        got = f"{len(found)} lists of {depth} layers in {name}"
        raise InvalidValueError("init", "a teacher whose layers are one list", got, _INSTEAD)
    return found[0]


def _chosen(layers: Layers | None, depth: int, name: str) -> list[int]:
    half = -(-depth // 2)
    ranges = {
        None: range(depth),
        "every_second": range(0, depth, 2),
        "first": range(half),
        "last": range(depth)[-half:],
    }
    if layers is None or isinstance(layers, str):
        return list(ranges[layers])
    if not layers or min(layers) < 0 or max(layers) >= depth:
        expected = f"layers of {name}, which has 0 to {depth - 1}"
        raise InvalidValueError(
            "init.layers", expected, list(layers), f"type init.layers={list(ranges['every_second'])}"
        )
    return list(layers)


def _shortened(config: Any, chosen: Sequence[int], depth: int) -> dict[str, Any]:
    """Return what is another in the configuration of a network of the chosen layers."""
    per_layer = {
        key: [value[layer] for layer in chosen]
        for key, value in config.to_dict().items()
        if "layer" in key and isinstance(value, list) and len(value) == depth  # such as the kinds of attention
    }
    return {**per_layer, _key(config, "num_hidden_layers"): len(chosen)}


def _narrowed(network: nn.Module, config: Any, width: int, name: str) -> dict[str, Any]:
    """Return what is another in the configuration of a network of another width."""
    hidden, kind = int(config.hidden_size), config.model_type
    if kind not in _WIDTHS or (isinstance(network, SentenceClassifier) and not network.is_plain):
        expected = f"null for {name}: only a network whose matrices each are one projection can be cut, {_KINDS}"
        raise InvalidValueError("init.width", expected, width, "type init.width=null")
    counts = {"num_attention_heads": config.num_attention_heads}
    if (groups := getattr(config, "num_key_value_heads", None)) is not None:
        counts["num_key_value_heads"] = groups
    least = hidden // math.gcd(hidden, *counts.values())
    if width > hidden or width % least:
        expected = f"a multiple of {least} up to {hidden}, by which the heads of {name} stay whole"
        raise InvalidValueError(
            "init.width", expected, width, f"type init.width={min(max(width // least * least, least), hidden)}"
        )
    changed = {key: count * width // hidden for key, count in counts.items()}
    feed = "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size"
    changed |= {"hidden_size": width, feed: max(1, getattr(config, feed) * width // hidden)}
    if getattr(config, "head_dim", None) is not None:
        changed["head_dim"] = config.head_dim
    return {_key(config, key): value for key, value in changed.items()}


def _key(config: Any, name: str) -> str:
    """Return what a type of networks calls an entry of its configuration."""
    return str(config.attribute_map.get(name, name))


@torch.no_grad()
def _copy(
    teacher: nn.Module, student: nn.Module, stack: str, chosen: Sequence[int], name: str, *, passed: str | None
) -> None:
    """Copy the weights of the chosen layers and of all else, the leading part of each in every dimension.

    The linear layer ``passed`` becomes the identity.
    """
    theirs, weights = teacher.state_dict(), {}
    for key, own in student.state_dict().items():
        if passed is not None and key.startswith(f"{passed}."):
            weights[key] = torch.eye(*own.shape) if own.ndim == 2 else torch.zeros_like(own)
            continue
        rest = key.removeprefix(f"{stack}.")
        number, _, inside = rest.partition(".")
        source = theirs.get(key if rest == key else f"{stack}.{chosen[int(number)]}.{inside}")
        if (
            source is None
            or source.ndim != own.ndim
            or any(a < b for a, b in zip(source.shape, own.shape, strict=True))
        ):
            got = f"{key} of shape {list(own.shape)}"
            raise InvalidValueError("init", f"weights that {name} has", got, "name other layers, or type init=null")
        weights[key] = source[tuple(slice(size) for size in own.shape)]
    student.load_state_dict(weights)
