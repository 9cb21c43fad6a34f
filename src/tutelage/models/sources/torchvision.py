"""The source ``torchvision:arch`` (random weights) and ``torchvision:arch.WEIGHTS`` (the weights of that name)."""

from __future__ import annotations

from typing import Any

from torch import nn

from tutelage.errors import InvalidValueError
from tutelage.images import MEAN, STD
from tutelage.models.card import Card
from tutelage.models.names import unknown
from tutelage.models.spec import ModelRequest, ModelSpec

PREFIX = "torchvision"
CLASSES = 1000
LISTED = [
    (
        "torchvision:ARCH[.WEIGHTS]",
        "torchvision's classifiers; with a weights' name those, without random ones; "
        "such as torchvision:resnet50.IMAGENET1K_V1",
    )
]


def plan(path: str, request: ModelRequest) -> ModelSpec:
    """Find one of torchvision's image classifiers, if random by default for 1000 classes.

    Statistics, image size and margin are those of the weights' own transforms; for random weights the ImageNet
    statistics, with the size and margin of the architecture's first weights. Heads that some networks have for training
    alone (Inception, GoogLeNet) are omitted, as a classifier returns logits.

    Raises:
        ValueError: if torchvision has no such architecture or weights, or the number of channels requested is not 3.
    """
    from torchvision import models

    name = f"{PREFIX}:{path}"
    arch, _, tag = path.partition(".")
    known = models.list_models(module=models)
    if arch not in known:
        raise unknown(name, (f"{PREFIX}:{name}" for name in known))
    members = models.get_model_weights(arch).__members__
    if tag in members and request.tagged:
        request = request.as_weights(channels=3)
    if request.channels != 3:
        expected = f"3 for {name}, as all of torchvision's networks have"
        instead = "type a timm: or cifar: name, which take any number"
        raise InvalidValueError("channels", expected, request.channels, instead)
    if tag and tag not in members:
        instead = (
            f"type torchvision:{arch} for random weights, or one of "
            f"{', '.join(f'torchvision:{arch}.{member}' for member in members)}"
        )
        raise InvalidValueError("model", f"weights of torchvision:{arch}", repr(name), instead)
    weights = members[tag] if tag else None
    transforms = (weights or next(iter(members.values()))).transforms()
    size = (transforms.crop_size[0], transforms.crop_size[-1])
    if weights is not None and request.tagged:
        request = request.as_weights(image_size=size)
    names = tuple(weights.meta["categories"]) if weights else None
    classes = len(names) if names else request.classes
    card = Card(
        name=name,
        classes=CLASSES if classes is None else classes,
        image_size=request.image_size or size,
        margin=transforms.resize_size[0] / size[0],
        mean=tuple(transforms.mean) if weights else MEAN,
        std=tuple(transforms.std) if weights else STD,
        weights=tag if tag and request.tagged else None,
        source=weights.url if weights else None,
        licence=weights.meta.get("license") if weights else None,
        class_names=names,
    )

    def build(*, classes: int) -> nn.Module:
        options: dict[str, Any] = {"init_weights": True} if arch in ("googlenet", "inception_v3") else {}
        network = models.get_model(arch, weights=None, num_classes=classes, **options)
        # Only a transformer's position embedding fixes the size, as this attribute says.
        if request.image_size and getattr(network, "image_size", request.image_size[0]) != request.image_size[0]:
            options["image_size"] = request.image_size[0]
            network = models.get_model(arch, weights=None, num_classes=classes, **options)
        return _one_headed(network)

    def fetch() -> nn.Module:
        return _one_headed(models.get_model(arch, weights=tag))

    return ModelSpec(card=card, build=build, fetch=fetch if card.weights else None)


def _one_headed(network: Any) -> nn.Module:
    if getattr(network, "aux_logits", False):
        network.aux_logits = False
        for auxiliary in ("AuxLogits", "aux1", "aux2"):
            if hasattr(network, auxiliary):
                setattr(network, auxiliary, None)
    return network
