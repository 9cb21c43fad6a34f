"""A run's folder as a model: the student's weights beside its card, written and read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import safetensors.torch

from tutelage import records
from tutelage.models.card import Card
from tutelage.models.classifier import Classifier


def save(classifier: Classifier, folder: str | Path) -> Path:
    """Write a classifier so that `create` makes it again from the folder's path.

    ``student.safetensors`` holds the bare network's state under its published key names; ``student.json`` holds
    ``{"card": {...}, "name": ...}``, the name being the one that the network is built by. Both are replaced as a whole.

    Args:
        classifier: what to save; neither copied to another device nor changed.
        folder: made where it does not exist.

    Returns:
        The path of the weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Copies: safetensors takes neither channels-last tensors nor two names of one storage.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in classifier.network.state_dict().items()}
    path = folder / records.STUDENT
    records.write_bytes(path, safetensors.torch.save(state))
    records.write_json(folder / records.CARD, {"card": classifier.card.to_json(), "name": classifier.card.name})
    return path


def is_saved(path: Path) -> bool:
    """Say whether a path is a folder with a saved classifier in it."""
    return (path / records.STUDENT).is_file() and (path / records.CARD).is_file()


def read_card(folder: Path) -> Card:
    """Read the card of a saved classifier; its ``weights`` name the folder's own file.

    Raises:
        ValueError: if the card cannot be read.
    """
    path = folder / records.CARD
    try:
        value = records.read_json(path)
        card = Card.from_json(value["card"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"model: expected a card in {path}, got one that cannot be read ({error}); save the student anew"
        ) from error
    # The saved head is the one that was trained, however it came to be.
    return dataclasses.replace(card, weights=f"{folder.resolve().name}/{records.STUDENT}", fresh_head=False)
