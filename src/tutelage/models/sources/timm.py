"""The source ``timm:arch`` (random weights) and ``timm:arch.tag`` (the weights of that tag)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tutelage.errors import InvalidValueError, missing_extra
from tutelage.hub_files import reaching_hub
from tutelage.images import MEAN, STD
from tutelage.models.card import Card
from tutelage.models.names import unknown, unknown_tag, without_weights
from tutelage.models.spec import ModelRequest, ModelSpec, resized

PREFIX = "timm"
EXAMPLE = "timm:resnet18.a1_in1k"
CLASSES = 1000
LISTED = [("timm:ARCH[.TAG]", f"timm's classifiers; with a tag its weights, without random ones; such as {EXAMPLE}")]


def plan(path: str, request: ModelRequest) -> ModelSpec:
    """Find one of timm's image classifiers, if random by default for 1000 classes.

    Statistics, image size, margin and licence are those of the tag's configuration, or of the architecture's default
    one. For numbers of channels other than 3, timm folds or repeats the first layer's weights, and each channel gets
    the mean of the statistics.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if timm has no such architecture or tag, or the tag's weights have no head and no classes are given.
    """
    try:
        import timm
    except ImportError as error:
        raise missing_extra("model", "timm for a timm: name", "timm", error) from error
    name = f"{PREFIX}:{path}"
    arch, _, tag = path.partition(".")
    if not arch or not timm.is_model(arch):
        raise unknown(name, (f"{PREFIX}:{known}" for known in timm.list_models()))
    if tag:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{arch}.*")]
        if tag not in tags:
            raise unknown_tag(name, tags)
    config: Any = timm.get_pretrained_cfg(path)
    trained = config.num_classes if tag else CLASSES
    if tag and request.tagged:
        request = request.as_weights(channels=config.input_size[0], image_size=tuple(config.input_size[1:]))
    if not trained and request.classes is None:
        expected = f"a number for {name}, whose weights have no head"
        raise InvalidValueError("classes", expected, "none", f"type tutelage.models.create({name!r}, classes=10)")
    mean, std = (config.mean, config.std) if config else (MEAN, STD)
    size = tuple(config.input_size[1:]) if config else None
    options: dict[str, Any] = {"in_chans": request.channels}
    if config and config.fixed_input_size and request.image_size not in (None, size):
        options["img_size"] = request.image_size
    classes = request.classes if not tag or not trained else trained
    card = Card(
        name=name,
        classes=CLASSES if classes is None else classes,
        channels=request.channels,
        image_size=request.image_size or size,
        mean=resized(mean, request.channels),
        std=resized(std, request.channels),
        margin=1 / config.crop_pct if config and config.crop_pct else 1.0,
        weights=tag if tag and request.tagged else None,
        source=_source(config) if tag else None,
        licence=config.license if tag else None,
        paper=config.paper_ids if config and isinstance(config.paper_ids, str) else None,
        fresh_head=bool(tag) and request.tagged and not trained,
    )

    def build(*, classes: int, pretrained: bool = False) -> nn.Module:
        return timm.create_model(path, pretrained=pretrained, num_classes=classes, **options)

    def fetch() -> nn.Module:
        if not config.hf_hub_id:
            return build(classes=card.classes, pretrained=True)
        expected, instead = f"to fetch the weights of {name} from the Hub", without_weights(name)
        with reaching_hub(config.hf_hub_id, what="model", expected=expected, instead=instead):
            return build(classes=card.classes, pretrained=True)

    return ModelSpec(card=card, build=build, fetch=fetch if card.weights else None)


def _source(config: Any) -> str | None:
    return f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url or None


def catalogued(counted: Mapping[str, int | None]) -> dict[str, Any]:
    """Return the rows of `models.catalogue` with the version; ``counted`` are numbers of parameters that are known."""
    import timm
    from timm.models import _registry

    tags: dict[str, list[str]] = {}
    for name in timm.list_pretrained():
        arch, _, tag = name.partition(".")
        tags.setdefault(arch, []).append(tag)
    rows = []
    for arch in timm.list_models():
        config: Any = timm.get_pretrained_cfg(arch)
        first = config.tag if config and config.tag in tags.get(arch, []) else ""
        ordered = sorted(tags.get(arch, []), key=lambda tag: (tag != first, tag))
        count = counted[arch] if arch in counted else _parameters(arch)
        rows.append((arch, count, min(config.input_size[1:]) if config else None, " ".join(ordered)))
    return {"version": timm.__version__, "renamed": sorted(_registry._deprecated_models), "names": rows}


def _parameters(arch: str) -> int | None:
    """Count the parameters of a network without making them; none if it cannot be built so."""
    import timm

    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in timm.create_model(arch).parameters())
    except Exception:  # noqa: BLE001  whatever a network's own code needs values for
        return None
