"""A classifier as huggingface_hub saves and uploads it, with its model card.

``huggingface_hub.ModelHubMixin`` is not a base of `Classifier`: it would keep the arguments of every classifier's
construction as a second, stale description, and read folders by ``config.json`` alone.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard, ModelHubMixin

from tutelage import records
from tutelage.hub_files import uploading
from tutelage.models import io
from tutelage.models.classifier import Classifier
from tutelage.models.lora import merged
from tutelage.models.readme import PLACE, FromRun, card_of, publishable_name


class _Card(ModelCard):
    def save(self, filepath: Path | str) -> None:
        records.write_bytes(Path(filepath), str(self).encode())


class Published(ModelHubMixin):
    """A classifier as huggingface_hub saves and uploads it.

    Args:
        classifier: classifier; it is not changed.
        repo_id: name of the repository, where there is one.
    """

    def __init__(self, classifier: Classifier, repo_id: str | None = None) -> None:
        self._hub_mixin_config = None  # what describes it is written with it
        self.classifier, self.repo_id = classifier, repo_id

    def _save_pretrained(self, save_directory: Path) -> None:
        classifier = self.classifier
        network = classifier.network
        if classifier.adapters is not None or classifier.frozen:
            network = merged(network)
        card = dataclasses.replace(classifier.card, name=publishable_name(classifier.card.name))
        outputs = None if classifier.outputs is None else classifier.outputs.tolist()
        io.save(Classifier(network, card, outputs=outputs, call=classifier.call), save_directory)

    def generate_model_card(self, **front: Any) -> ModelCard:
        """Return the card: made of the run's records where its weights are those of a run, else of what is known."""
        classifier, folder = self.classifier, self.classifier.folder
        weights = _weights_of(classifier)
        run = None
        if folder is not None and weights is not None:
            if (folder / records.MANIFEST).is_file():
                run = FromRun.read(folder, weights)
            elif (kept := folder / records.README).is_file():
                return self._kept(_Card(records.read_bytes(kept).decode(), ignore_metadata_errors=True), front)
        kind = None if classifier.call is None else classifier.call.kind
        return _Card(card_of(classifier.card, run, kind=kind, name=self.repo_id, **front))

    def _kept(self, card: ModelCard, front: dict[str, Any]) -> ModelCard:
        """Return the card that came with the weights, for where they go now."""
        for key, value in front.items():
            card.data[key] = value
        if self.repo_id is not None:
            card.text = card.text.replace(json.dumps(PLACE), json.dumps(self.repo_id))
        return card

    def push_to_hub(self, repo_id: str, **arguments: Any) -> str:
        """Upload it; what the Hub refuses is an error of this package."""
        self.repo_id = repo_id
        with uploading(repo_id, "repo_id"):
            return str(super().push_to_hub(repo_id, **arguments))


def _weights_of(classifier: Classifier) -> Literal["last", "best"] | None:
    """Return which of the weights in its folder a classifier has: ``None`` for others, as after more training."""
    if classifier.folder is None:
        return None
    own = classifier.network.state_dict()
    kinds: dict[str, Literal["last", "best"]] = {records.STUDENT: "last", records.BEST: "best"}
    for file, weights in kinds.items():
        kept = io.read(path) if (path := classifier.folder / file).is_file() else {}
        same = (k in own and torch.equal(own[k].cpu().to(value.dtype), value) for k, value in kept.items())
        if kept and all(same):
            return weights
    return None
