"""The source ``cifar:name``: networks for small images, as in the CIFAR-100 distillation benchmark."""

from __future__ import annotations

from functools import partial

from tutelage.models import names
from tutelage.models.card import Card
from tutelage.models.networks import mobilenet, resnet, shuffle, vgg, wrn
from tutelage.models.networks.layers import table
from tutelage.models.spec import ModelRequest, ModelSpec

PREFIX = "cifar"
CLASSES = 100
IMAGE_SIZE = (32, 32)
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
NETWORKS = table(*(family.ENTRIES for family in (resnet, wrn, vgg, mobilenet, shuffle)))
LISTED = [(f"{PREFIX}:{e.name}", f"{e.parameters:,} parameters at 100 classes") for e in NETWORKS.values()]


def plan(path: str, request: ModelRequest) -> ModelSpec:
    """Find a network of the table, by default for 100 classes, 3 channels and 32x32 pixels.

    The statistics are those of CIFAR-100 for 3 channels, and 0.5 for any other number.

    Raises:
        ValueError: if there is no such network.
    """
    name = f"{PREFIX}:{path}"
    names.check_listed(name)
    entry = NETWORKS[path]
    colour = request.channels == len(MEAN)
    card = Card(
        name=name,
        classes=CLASSES if request.classes is None else request.classes,
        channels=request.channels,
        image_size=request.image_size or IMAGE_SIZE,
        mean=MEAN if colour else (0.5,) * request.channels,
        std=STD if colour else (0.5,) * request.channels,
        paper=entry.paper,
        stages=entry.stages,
        stage_inputs=entry.stage_inputs,
        embedding=entry.stages[-1],
        head=entry.head,
    )
    return ModelSpec(card=card, build=partial(entry.build, channels=request.channels))


def catalogued() -> list[tuple[str, int, int, str]]:
    """Return the rows of `models.catalogue`."""
    return [(entry.name, entry.parameters, IMAGE_SIZE[0], "") for entry in NETWORKS.values()]
