"""Classifiers by name: ``create("cifar:resnet32x4")``, their cards, and sources of other libraries' networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage.lazy import forward

if TYPE_CHECKING:
    from tutelage.models.card import Card as Card
    from tutelage.models.classifier import Classifier as Classifier
    from tutelage.models.ensembles import Ensemble as Ensemble
    from tutelage.models.ensembles import ensemble as ensemble
    from tutelage.models.generate import CompletionSampler as CompletionSampler
    from tutelage.models.hub import from_pretrained as from_pretrained
    from tutelage.models.hub import push_to_hub as push_to_hub
    from tutelage.models.hub import save_pretrained as save_pretrained
    from tutelage.models.io import fingerprint as fingerprint
    from tutelage.models.io import frozen_fingerprint as frozen_fingerprint
    from tutelage.models.io import load as load
    from tutelage.models.io import pack as pack
    from tutelage.models.io import parameters as parameters
    from tutelage.models.io import read as read
    from tutelage.models.io import read_parts as read_parts
    from tutelage.models.io import save as save
    from tutelage.models.names import available as available
    from tutelage.models.readme import model_card as model_card
    from tutelage.models.registry import adopt as adopt
    from tutelage.models.registry import create as create
    from tutelage.models.registry import restored as restored
    from tutelage.models.subnetwork import from_teacher as from_teacher

_MODULES = {
    "Card": ".card",
    "Classifier": ".classifier",
    "CompletionSampler": ".generate",
    "available": ".names",
    "model_card": ".readme",
    **dict.fromkeys(("from_pretrained", "push_to_hub", "save_pretrained"), ".hub"),
    **dict.fromkeys(("Ensemble", "ensemble"), ".ensembles"),
    "from_teacher": ".subnetwork",
    **dict.fromkeys(("adopt", "create", "restored"), ".registry"),
    **dict.fromkeys(
        ("fingerprint", "frozen_fingerprint", "load", "pack", "parameters", "read", "read_parts", "save"), ".io"
    ),
}
__all__ = list(_MODULES)

if not TYPE_CHECKING:  # where a type checker saw it, a misspelt name would be one of any type
    __getattr__, __dir__ = forward(__name__, _MODULES)
