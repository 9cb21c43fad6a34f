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
_LARGEST = 2**28
"""Number of logits of a batch where each token has some: a GiB in float32."""


class Prediction(NamedTuple):
    """A classifier's prediction for one image or text.

    Attributes:
        label: likeliest class, or of several labels the likeliest one, whether or not it holds.
        name: name of that class, if the card has names.
        probability: probability that the classifier gives it.
        labels: where several labels may hold, those whose probability is above 1/2, the likeliest first.
        top: the likeliest classes or labels, as many as were asked for with ``top_k``, the likeliest first.
    """

    label: int
    name: str | None
    probability: float
    labels: tuple[Prediction, ...] = ()
    top: tuple[Prediction, ...] = ()


def predict(classifier: nn.Module, card: Card, images: Any, *, top_k: int | None = None) -> list[Prediction]:
    """Classify raw images.

    Args:
        classifier: classifier that takes values in [0, 1]; its mode is restored.
        card: card that says how it sees images and what its classes are called.
        images: one image or a sequence: paths, PIL images, or uint8 arrays ``(height, width[, channels])``.
        top_k: number of classes that ``top`` of a prediction has, at least 1, or all if there are fewer; ``None`` for
            none.

    Returns:
        One prediction per image.

    Raises:
        TypeError: if something is none of these.
        FileNotFoundError: if a path does not exist.
        ValueError: if an image cannot be read, as `tutelage.images` says, or is brighter than the card's white, or
            ``top_k`` is below 1.
        RunError: if logits are not finite; it names the images and the parameter that is the cause.
    """
    check_top_k(top_k)
    return predictions(answers(classifier, card, images), card, top_k=top_k)


def check_top_k(top_k: int | None) -> None:
    """Refuse a number of classes that is not at least 1."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise InvalidValueError("top_k", "a whole number >= 1", repr(top_k), "for example top_k=5")


def answers(classifier: nn.Module, card: Card, images: Any) -> Tensor:
    """Return a network's outputs for raw images, ``(images, ..., classes)``; arguments and errors are `predict`'s."""
    sequence = _sequence(images)
    views = [_view(decoded, card, name) for decoded, name in _decoded(sequence, card)]
    return answers_to_views(classifier, card, views, [_name(image, k) for k, image in enumerate(sequence)])


@torch.no_grad()
def answers_to_views(classifier: nn.Module, card: Card, views: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """Return a network's outputs for the views that it has of images, ``(images, ..., classes)``.

    Args:
        classifier: classifier; its mode is restored.
        card: its card.
        views: view of each image, ``(channels, height, width)``; those of one size make a batch.
        names: name of each, for an error.

    Raises:
        RunError: if logits are not finite.
    """
    if not views:
        return _no_answers(card)
    device, rows = device_of(classifier), dict[int, Tensor]()
    with evaluation_mode(classifier):
        for shape in dict.fromkeys(view.shape for view in views):
            alike = [k for k, view in enumerate(views) if view.shape == shape]
            rows |= zip(alike, classifier(torch.stack([views[k] for k in alike]).to(device)), strict=True)
    logits = torch.stack([rows[k] for k in range(len(views))])
    _require_finite(logits, classifier, card, names, "images")
    return logits.float().cpu()


def _sequence(samples: Any) -> Sequence[Any]:
    return samples if isinstance(samples, Sequence) and not isinstance(samples, str) else [samples]


def _no_answers(card: Card) -> Tensor:
    return torch.empty(0, card.classes, *([2] if card.task == "labels" else []))


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
    decoded = _decoded(_sequence(images), card)
    return [mask_of(classifier, card, _whole_view(each, card, name), each.size, name) for each, name in decoded]


@torch.no_grad()
def mask_of(classifier: nn.Module, card: Card, view: Tensor, size: tuple[int, int], name: str) -> NDArray[np.uint8]:
    """Return the likeliest class of each pixel of an image: see `predict_masks`.

    Args:
        classifier: classifier of pixels; its mode is restored.
        card: its card.
        view: view that it has of the image, ``(channels, height, width)``.
        size: width and height of the image.
        name: its name, for an error.
    """
    with evaluation_mode(classifier):
        logits = classifier(view[None].to(device_of(classifier))).float().movedim(-1, 1)
    _require_finite(logits, classifier, card, [name], "images")
    logits = nn.functional.interpolate(logits, size[::-1], mode="bilinear", align_corners=False)
    mask: NDArray[np.uint8] = logits[0].argmax(0).byte().cpu().numpy()
    return mask


def _whole_view(decoded: Image.Image, card: Card, name: str) -> Tensor:
    """Return the view of a whole image, at the scale of the evaluation."""
    if card.image_size is not None:
        height, width = card.image_size
        scale = card.margin * max(width / decoded.width, height / decoded.height)
        size = max(1, round(decoded.height * scale)), max(1, round(decoded.width * scale))
        card = dataclasses.replace(card, image_size=size, margin=1.0)
    return _view(decoded, card, name)


class ImageView(NamedTuple):
    """What a network sees of an image.

    Attributes:
        pixels: view, ``(channels, height, width)`` float32 in [0, 1].
        size: width and height of the upright image.
        has_more_frames: whether the file has frames or pages besides the first, which is the one that is seen.
    """

    pixels: Tensor
    size: tuple[int, int]
    has_more_frames: bool


def view_of(image: Any, card: Card, name: str) -> ImageView:
    """Read an image, or the bytes of a file, as a network sees it; several threads may do so at once.

    Args:
        image: one, as of `predict`, or bytes.
        card: card of the network.
        name: the image's name, for an error.

    Raises:
        TypeError, FileNotFoundError, ValueError: as of `predict`.
    """
    decoded, more = _read(image if isinstance(image, bytes) else _encoded(image, name), card, name)
    make = _whole_view if card.task == "pixels" else _view
    return ImageView(make(decoded, card, name), decoded.size, more)


def predictions(logits: Tensor, card: Card, *, top_k: int | None = None) -> list[Prediction]:
    """Return what logits say, ``(samples, classes)``, or of labels ``(samples, labels, 2)``."""
    names = card.class_names
    if card.task == "labels":
        return [_of_labels(row, names, top_k) for row in logits.float().softmax(-1)[..., 1]]
    probabilities = logits.float().softmax(-1)
    probability, index = probabilities.max(-1)
    found = [
        Prediction(i, names[i] if names else None, p) for i, p in zip(index.tolist(), probability.tolist(), strict=True)
    ]
    if top_k is None:
        return found
    return [
        each._replace(top=tuple(_sorted(row, names, top_k))) for each, row in zip(found, probabilities, strict=True)
    ]


def _require_finite(logits: Tensor, classifier: nn.Module, card: Card, samples: Sequence[str], kind: str) -> None:
    if bad := (~torch.isfinite(logits).flatten(1).all(1)).nonzero()[:, 0].tolist():
        named = ", ".join(samples[k] for k in bad[:NAMED]) + (", ..." if len(bad) > NAMED else "")
        weight = nonfinite_weight(classifier)
        got = f"NaN or infinity for {len(bad)} of {len(samples)} {kind}, {named}"
        instead = "train or fetch it again" if weight else f"look at these {kind}, or train it again"
        raise RunError(f"model {card.name}", "finite logits", f"{got}; parameter {weight}" if weight else got, instead)


def _of_labels(probabilities: Tensor, names: Sequence[str] | None, top_k: int | None) -> Prediction:
    """Return what probabilities of each label ``(labels,)`` say of a sample."""
    each = _sorted(probabilities, names)
    held = tuple(one for one in each if one.probability > 0.5)
    return each[0]._replace(labels=held, top=tuple(each[: top_k or 0]))


def _sorted(probabilities: Tensor, names: Sequence[str] | None, most: int | None = None) -> list[Prediction]:
    """Return the classes of a sample ``(classes,)``, the likeliest first, and of those alike the first one first."""
    values, order = (each[:most].tolist() for each in probabilities.sort(descending=True, stable=True))
    return [Prediction(k, names[k] if names else None, p) for k, p in zip(order, values, strict=True)]


def predict_text(
    classifier: nn.Module, card: Card, text: TextInput, texts: Any, *, top_k: int | None = None
) -> list[Prediction]:
    """Classify texts.

    Args:
        classifier: classifier of token ids; its mode is restored.
        card: card that says what its classes are called.
        text: what it reads; a longer text is cut.
        texts: one text or a sequence: strings, or paths of ``.txt`` files in UTF-8, each of which is one text.
        top_k: as of `predict`.

    Returns:
        One prediction per text.

    Raises:
        TypeError: if something is none of these.
        FileNotFoundError: if a file does not exist.
        ValueError: if the classifier gives each token a class, a file is not UTF-8, or ``top_k`` is below 1.
        RunError: if logits are not finite.
    """
    check_top_k(top_k)
    return predictions(answers_to_texts(classifier, card, text, texts), card, top_k=top_k)


def answers_to_texts(classifier: nn.Module, card: Card, text: TextInput, texts: Any) -> Tensor:
    """Return a network's outputs for texts, ``(texts, ..., classes)``; arguments and errors are `predict_text`'s."""
    if text.per_token:
        instead = "call the classifier with token ids for the logits of each, or type tutelage predict"
        raise InvalidValueError("predict", "a model with one class per text", f"{card.name}, one per token", instead)
    sequence = _sequence(texts)
    contents = [_content(each, k) for k, each in enumerate(sequence)]
    rows = text.tokenizer.encode(contents, max_tokens=text.max_tokens)
    names = [str(each) if isinstance(each, Path) else f"text {k}" for k, each in enumerate(sequence)]
    return torch.stack(answers_to_ids(classifier, card, rows, names)) if rows else _no_answers(card)


@torch.no_grad()
def answers_to_ids(
    classifier: nn.Module, card: Card, rows: Sequence[Sequence[int]], names: Sequence[str], *, last: bool = False
) -> list[Tensor]:
    """Return a network's outputs for texts as token ids, float32 on the CPU: ``(..., classes)`` of each.

    Args:
        classifier: classifier of token ids; its mode is restored.
        card: its card.
        rows: ids of each text.
        names: name of each, for an error.
        last: of a network that gives each token a class, whether to return the last token's logits ``(classes,)``
            instead of all ``(tokens, classes)``.

    Raises:
        RunError: if logits are not finite.
    """
    device, answers = device_of(classifier), list[Tensor]()
    longest = max(map(len, rows), default=1)
    at_once = max(1, min(AT_ONCE, _LARGEST // (longest * card.classes))) if card.per_token else AT_ONCE
    with evaluation_mode(classifier):
        for first in range(0, len(rows), at_once):
            part = rows[first : first + at_once]
            ids = torch.full((len(part), max(1, *map(len, part))), PADDING)
            for k, row in enumerate(part):
                ids[k, : len(row)] = torch.tensor(row, dtype=torch.int64)
            logits = classifier(ids.to(device))
            if last:
                logits = logits[range(len(part)), [len(row) - 1 for row in part]]
            logits = logits.float().cpu()
            answers += [
                each[: len(row)] if card.per_token and not last else each
                for each, row in zip(logits, part, strict=True)
            ]
    if answers:
        extremes = torch.stack([each.abs().amax() if each.numel() else each.new_zeros(()) for each in answers])
        _require_finite(extremes[:, None], classifier, card, names, "texts")
    return answers


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


def _decoded(images: Sequence[Any], card: Card) -> Iterator[tuple[Image.Image, str]]:
    """Yield images, upright and of the card's channels, and their names."""
    with_frames: str | None = None
    for position, image in enumerate(images):
        name = _name(image, position)
        decoded, more = _read(_encoded(image, name), card, name)
        with_frames = with_frames or (name if more else None)
        yield decoded, name
    if with_frames is not None:
        warnings.warn(f"images: {frames_note(with_frames)}", stacklevel=3)


def _read(encoded: Encoded, card: Card, name: str) -> tuple[Image.Image, bool]:
    """Decode an image, and say whether its file has more frames or pages."""
    with _readable(name), opened(encoded) as file:
        decoded = decode(file, channels=card.channels)
        return decoded, not isinstance(encoded, Image.Image) and has_more_frames(file)


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
