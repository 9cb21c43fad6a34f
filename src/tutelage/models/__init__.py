"""Classifiers by name: ``create("cifar:resnet32x4")``, their cards, and doors to other libraries' networks."""

from tutelage.models.card import Card
from tutelage.models.classifier import Classifier
from tutelage.models.io import save
from tutelage.models.registry import adopt, available, create
from tutelage.models.weights import fingerprint, load, parameters, read

__all__ = [
    "Card",
    "Classifier",
    "adopt",
    "available",
    "create",
    "fingerprint",
    "load",
    "parameters",
    "read",
    "save",
]
