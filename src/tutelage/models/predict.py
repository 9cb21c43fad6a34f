"""From raw images or texts to classes, preprocessed as in the evaluation."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tutelage import plain_files
from tutelage.checks import nonfinite_weight
from tutelage.errors import InvalidTypeError, InvalidValueError, NotFoundError, RunError
from tutelage.images import (
    Encoded,
    Layout,
    UnreadableError,
    centre,
    decode,
    frames_note,
    has_more_frames,
    image_of,
    opened,
    pixels_of,
    rescale,
)
from tutelage.submodules import device_of, evaluation_mode
from tutelage.types import PADDING

if TYPE_CHECKING:
    from tutelage.models.card import Card
    from tutelage.text import TextInput

NAMED = 3
"""Number of images in an error that are named."""


AT_ONCE = 64
"""Number of texts in a batch."""


class Prediction(NamedTuple):
    """A classifier's prediction for one image or text.

    Attributes:
        label: likeliest class, or of several labels the likeliest one, whether or not it holds.
        name: name of that class, if the card has names.
        probability: probability that the classifier gives it.
        labels: where several labels may hold, those whose probability is above 1/2, the likeliest first.
    """

    label: int
    name: str | None
    probability: float
    labels: tuple[Prediction, ...] = ()


def predict(classifier: nn.Module, card: Card, images: Any) -> list[Prediction]:
    """Classify raw images.

    Args:
        classifier: classifier that takes values in [0, 1]; its mode is restored.
        card: card that says how it sees images and what its classes are called.
        images: one image or a sequence: paths, PIL images, or uint8 arrays ``(height, width[, channels])``.

    Returns:
        One prediction per image.

    Raises:
        TypeError: if something is none of these.
        FileNotFoundError: if a path does not exist.
        ValueError: if an image cannot be read, as `tutelage.images` says, or is brighter than the card's white.
        RunError: if logits are not finite; it names the images and the parameter that is the cause.
    """
    return _predictions(answers(classifier, card, images), card)


@torch.no_grad()
def answers(classifier: nn.Module, card: Card, images: Any) -> Tensor:
    """Return a network's outputs for raw images, ``(images, ..., classes)``; arguments and errors are `predict`'s."""
    sequence = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not sequence:
        return _no_answers(card)
    device = device_of(classifier)
    with evaluation_mode(classifier):
        logits = classifier(torch.stack(_views(sequence, card)).to(device))
    _require_finite(logits, classifier, card, [_name(image, k) for k, image in enumerate(sequence)], "images")
    return logits.float().cpu()


def _no_answers(card: Card) -> Tensor:
    return torch.empty(0, card.classes, *([2] if card.task == "labels" else []))


@torch.no_grad()
def predict_masks(classifier: nn.Module, card: Card, images: Any) -> list[NDArray[np.uint8]]:
    """Give each pixel of raw images a class.

    An image is brought to the scale of the evaluation as a whole, without cutting its centre out of it.

    Args:
        classifier: classifier of pixels that takes values in [0, 1], of images of any size; its mode is restored.
        card: card that says how it sees images.
        images: as of `predict`.

    Returns:
        The likeliest class of each pixel, ``(height, width)`` uint8 for an upright image of that size.

    Raises:
        TypeError, FileNotFoundError, ValueError, RunError: as of `predict`.
    """
    masks = []
    device = next(classifier.parameters()).device
    sequence = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    for position, (decoded, name) in enumerate(_decoded(sequence, card)):
        seen = card
        if card.image_size is not None:
            height, width = card.image_size
            scale = card.margin * max(width / decoded.width, height / decoded.height)
            size = max(1, round(decoded.height * scale)), max(1, round(decoded.width * scale))
            seen = dataclasses.replace(card, image_size=size, margin=1.0)
        with evaluation_mode(classifier):
            logits = classifier(_view(decoded, seen, name)[None].to(device)).float().movedim(-1, 1)
        _require_finite(logits, classifier, card, [_name(sequence[position], position)], "images")
        logits = nn.functional.interpolate(logits, decoded.size[::-1], mode="bilinear", align_corners=False)
        masks.append(logits[0].argmax(0).byte().cpu().numpy())
    return masks


def _predictions(logits: Tensor, card: Card) -> list[Prediction]:
    names = card.class_names
    if card.task == "labels":
        return [_of_labels(row, names) for row in logits.float().softmax(-1)[..., 1]]
    probability, index = logits.float().softmax(-1).max(-1)
    return [
        Prediction(i, names[i] if names else None, p) for i, p in zip(index.tolist(), probability.tolist(), strict=True)
    ]


def _require_finite(logits: Tensor, classifier: nn.Module, card: Card, samples: Sequence[str], kind: str) -> None:
    if bad := (~torch.isfinite(logits).flatten(1).all(1)).nonzero()[:, 0].tolist():
        named = ", ".join(samples[k] for k in bad[:NAMED]) + (", ..." if len(bad) > NAMED else "")
        weight = nonfinite_weight(classifier)
        got = f"NaN or infinity for {len(bad)} of {len(samples)} {kind}, {named}"
        instead = "train or fetch it again" if weight else f"look at these {kind}, or train it again"
        raise RunError(f"model {card.name}", "finite logits", f"{got}; parameter {weight}" if weight else got, instead)


def _of_labels(probabilities: Tensor, names: Sequence[str] | None) -> Prediction:
    """Return what probabilities of each label ``(labels,)`` say of a sample."""
    sorted_, order = probabilities.sort(descending=True, stable=True)
    each = [
        Prediction(k, names[k] if names else None, p) for k, p in zip(order.tolist(), sorted_.tolist(), strict=True)
    ]
    return each[0]._replace(labels=tuple(one for one in each if one.probability > 0.5))


def predict_text(classifier: nn.Module, card: Card, text: TextInput, texts: Any) -> list[Prediction]:
    """Classify texts.

    Args:
        classifier: classifier of token ids; its mode is restored.
        card: card that says what its classes are called.
        text: what it reads; a longer text is cut.
        texts: one text or a sequence: strings, or paths of ``.txt`` files in UTF-8, each of which is one text.

    Returns:
        One prediction per text.

    Raises:
        TypeError: if something is none of these.
        FileNotFoundError: if a file does not exist.
        ValueError: if the classifier gives each token a class, or a file is not UTF-8.
        RunError: if logits are not finite.
    """
    return _predictions(answers_to_texts(classifier, card, text, texts), card)


@torch.no_grad()
def answers_to_texts(classifier: nn.Module, card: Card, text: TextInput, texts: Any) -> Tensor:
    """Return a network's outputs for texts, ``(texts, ..., classes)``; arguments and errors are `predict_text`'s."""
    if text.per_token:
        instead = "call the classifier with token ids for the logits of each, or generate with transformers"
        raise InvalidValueError("predict", "a model with one class per text", f"{card.name}, one per token", instead)
    sequence = texts if isinstance(texts, Sequence) and not isinstance(texts, str) else [texts]
    contents = [_content(each, k) for k, each in enumerate(sequence)]
    device = device_of(classifier)
    logits = [_no_answers(card)]
    with evaluation_mode(classifier):
        for first in range(0, len(contents), AT_ONCE):
            rows = text.tokenizer.encode(contents[first : first + AT_ONCE], max_tokens=text.max_tokens)
            ids = torch.full((len(rows), max(1, *map(len, rows)) if rows else 1), PADDING)
            for k, row in enumerate(rows):
                ids[k, : len(row)] = torch.tensor(row, dtype=torch.int64)
            logits.append(classifier(ids.to(device)).float().cpu())
    names = [str(each) if isinstance(each, Path) else f"text {k}" for k, each in enumerate(sequence)]
    _require_finite(torch.cat(logits), classifier, card, names, "texts")
    return torch.cat(logits)


def _content(text: Any, position: int) -> str:
    """Return a text, or that of a file."""
    if isinstance(text, str) and not text.endswith(".txt"):
        return text
    if not isinstance(text, str | Path):
        expected, instead = "strings, or paths of .txt files", "for token ids call the classifier itself"
        raise InvalidTypeError("texts", expected, f"{type(text).__name__} as text {position}", instead)
    path = Path(text)
    if not path.is_file():
        raise NotFoundError("texts", "a text file", f"{str(path)!r}, which is none", "check the path")
    try:
        return plain_files.read(path).decode()
    except UnicodeDecodeError as error:
        raise InvalidValueError("texts", "UTF-8", f"{path} ({error})", "save it as UTF-8") from error


def _views(images: Sequence[Any], card: Card) -> list[Tensor]:
    return [_view(decoded, card, name) for decoded, name in _decoded(images, card)]


def _decoded(images: Sequence[Any], card: Card) -> Iterator[tuple[Image.Image, str]]:
    """Yield images, upright and of the card's channels, and their names."""
    with_frames: str | None = None
    for position, image in enumerate(images):
        name = _name(image, position)
        encoded = _encoded(image, name)
        with _readable(name), opened(encoded) as file:
            decoded = decode(file, channels=card.channels)
            if with_frames is None and isinstance(encoded, Path) and has_more_frames(file):
                with_frames = name
        yield decoded, name
    if with_frames is not None:
        warnings.warn(f"images: {frames_note(with_frames)}", stacklevel=3)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except UnreadableError as error:
        raise InvalidValueError("images", "a readable image", f"{name} ({error})", "check the file") from error


def _name(image: Any, position: int) -> str:
    return str(image) if isinstance(image, str | Path) else f"image {position}"


def _encoded(image: Any, name: str) -> Encoded:
    """Return a path, a Pillow image, or the Pillow image of a uint8 array."""
    if isinstance(image, str | Path):
        if not Path(image).exists():
            raise NotFoundError("images", "an image file", f"{name!r}, which is none", "check the path")
        return Path(image)
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        height, width, channels = (*image.shape, 1)[:3]
        if height and width and 1 <= channels <= 4:
            return image_of(image)
    got = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    expected = "paths, PIL images or uint8 arrays (height, width, channels)"
    instead = "for a float tensor in [0, 1] call the classifier itself"
    raise InvalidTypeError("images", expected, f"{got} as {name}", instead)


def _view(decoded: Image.Image, card: Card, name: str) -> Tensor:
    """Return the evaluation view: resized to cover the card's size times its margin, centre crop, values in [0, 1]."""
    pixels, white = pixels_of(decoded), card.divisor
    if pixels.max() > white:
        expected = f"values from 0 to {white:g}, as the images that {card.name} was trained on have"
        instead = f"multiply them by {white:g}/255 where 255 is their white"
        raise InvalidValueError("images", expected, f"{pixels.max()} in {name}", instead)
    if card.image_size is not None:
        height, width = card.image_size
        if card.margin != 1 or decoded.size != (width, height):  # 8 bits before the resize rounds, as in data
            decoded, white = image_of(rescale(pixels, 255 / white)), 255.0
        layout = Layout(height, width, card.channels, card.margin)
        with _readable(name):
            pixels = centre(decoded, layout, interpolation=card.interpolation)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / white
