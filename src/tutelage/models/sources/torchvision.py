"""The source ``torchvision:arch`` (random weights) and ``torchvision:arch.WEIGHTS`` (the weights of that name)."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from tutelage import connection
from tutelage.errors import InvalidValueError, NetworkError
from tutelage.images import MEAN, STD
from tutelage.models.card import Card
from tutelage.models.names import unknown, unknown_tag, without_weights
from tutelage.models.spec import ModelRequest, ModelSpec

PREFIX = "torchvision"
CLASSES = 1000
CLASSES_OF_PIXELS = 21
SEGMENTING = "lraspp_mobilenet_v3_large"
"""The smallest network of semantic segmentation."""
LISTED = [
    (
        "torchvision:ARCH[.WEIGHTS]",
        "torchvision's classifiers, or its networks of segmentation for data with masks; with a weights' name those, "
        "without random ones; such as torchvision:resnet50.IMAGENET1K_V1",
    )
]


def plan(path: str, request: ModelRequest) -> ModelSpec:
    """Find one of torchvision's image classifiers, if random by default for 1000 classes; for pixels, a `Segmenter`.

    Statistics, image size and margin are those of the weights' own transforms; for random weights the ImageNet
    statistics, with the size and margin of the architecture's first weights. Networks of segmentation take any size.
    Heads that some networks have for training alone are omitted, as a classifier returns logits.

    Raises:
        ValueError: if torchvision has no such architecture or weights, or the number of channels requested is not 3.
    """
    from torchvision import models

    name = f"{PREFIX}:{path}"
    arch, _, tag = path.partition(".")
    of_pixels = request.task == "pixels"
    known, others = (models.list_models(module=each) for each in (models, models.segmentation))
    if of_pixels:
        known, others = others, known
    if arch in others:
        one, other = ("each pixel", "each image") if of_pixels else ("each image", "each pixel, as data with masks ask")
        instead = f"type torchvision:{SEGMENTING if of_pixels else 'mobilenet_v3_small'}, for example"
        raise InvalidValueError("model", f"a network that gives {one} a class", f"{name}, which does {other}", instead)
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
        raise unknown_tag(name, [member for member in members if member != "DEFAULT"])
    weights = members[tag] if tag else None
    transforms = (weights or next(iter(members.values()))).transforms()
    size = None if of_pixels else (transforms.crop_size[0], transforms.crop_size[-1])
    if size is not None and weights is not None and request.tagged:
        request = request.as_weights(image_size=size)
    names = tuple(weights.meta["categories"]) if weights else None
    classes = len(names) if names else request.classes
    card = Card(
        name=name,
        classes=(CLASSES_OF_PIXELS if of_pixels else CLASSES) if classes is None else classes,
        image_size=request.image_size or size,
        margin=1.0 if size is None else transforms.resize_size[0] / size[0],
        mean=tuple(transforms.mean) if weights else MEAN,
        std=tuple(transforms.std) if weights else STD,
        weights=tag if tag and request.tagged else None,
        source=weights.url if weights else None,
        licence=weights.meta.get("license") if weights else None,
        class_names=names,
    )

    def build(*, classes: int) -> nn.Module:
        if of_pixels:
            return Segmenter(models.get_model(arch, weights=None, weights_backbone=None, num_classes=classes))
        options: dict[str, Any] = {"init_weights": True} if arch in ("googlenet", "inception_v3") else {}
        network = models.get_model(arch, weights=None, num_classes=classes, **options)
        # Only a transformer's position embedding fixes the size, as this attribute says.
        if request.image_size and getattr(network, "image_size", request.image_size[0]) != request.image_size[0]:
            options["image_size"] = request.image_size[0]
            network = models.get_model(arch, weights=None, num_classes=classes, **options)
        return _one_headed(network)

    def fetch() -> nn.Module:
        assert weights is not None
        kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(weights.url).path).name
        if not kept.exists() and (why := connection.why_unreachable(weights.url)):
            instead = f"connect, set TORCH_HOME to a folder that has it, or {without_weights(name)}"
            raise NetworkError("model", f"to fetch the weights of {name}", f"{why}, and no {kept}", instead)
        network = models.get_model(arch, weights=tag)
        return Segmenter(network) if of_pixels else _one_headed(network)

    return ModelSpec(card=card, build=build, fetch=fetch if card.weights else None)


class Segmenter(nn.Module):
    """A network of semantic segmentation of torchvision's that returns logits, at the size of its own maps.

    Its parameters have the names that they have there. A second classifier, for training alone, is left out.

    Args:
        network: network of the library.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone, self.classifier = network.backbone, network.classifier

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(batch, classes, height, width)`` of images ``(batch, 3, ...)``."""
        features = self.backbone(inputs)
        logits: Tensor = self.classifier(features.get("out", features))
        return logits

    def reset_classifier(self, classes: int) -> None:
        """Replace the last layers, whose sum are the logits, by fresh ones."""
        last = [name for name, _ in self.classifier.named_children()][-1]
        both = ["low_classifier", "high_classifier"]
        for name in both if last in both else [last]:
            layer = getattr(self.classifier, name)
            setattr(self.classifier, name, nn.Conv2d(layer.in_channels, classes, 1, bias=layer.bias is not None))


def _one_headed(network: Any) -> nn.Module:
    if getattr(network, "aux_logits", False):
        network.aux_logits = False
        for auxiliary in ("AuxLogits", "aux1", "aux2"):
            if hasattr(network, auxiliary):
                setattr(network, auxiliary, None)
    return network


def catalogued() -> dict[str, Any]:
    """Return the rows of `models.catalogue`, of classifiers and of segmentation, with the version."""
    import torchvision
    from torchvision import models

    rows = []
    for arch in (name for module in (models, models.segmentation) for name in models.list_models(module=module)):
        members = models.get_model_weights(arch).__members__
        first = next(iter(members.values()))
        size = getattr(first.transforms(), "crop_size", [None])[0]
        count = first.meta["num_params"]
        if arch == "inception_v3":  # whose number has the head for training alone
            with torch.device("meta"):
                network = _one_headed(models.get_model(arch, init_weights=False))
            count = sum(parameter.numel() for parameter in network.parameters())
        rows.append((arch, count, size, " ".join(name for name in members if name != "DEFAULT")))
    return {"version": torchvision.__version__.partition("+")[0], "names": rows}
