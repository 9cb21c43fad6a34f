"""Transforms that are not this package's, a library's by name or an object of the user's, as replayable views."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tutelage import rng
from tutelage.errors import InvalidValueError, UserCodeError, missing_extra, nearest, reason_of
from tutelage.images import MEAN, RESAMPLING, image_of, pixels_of, rescale
from tutelage.types import View

Function = Callable[[Image.Image], Any]
"""A Pillow image in; one of the same size and mode out, or its pixels: a uint8 tensor ``(channels, height, width)``."""


@dataclass(frozen=True)
class Transform:
    """A transform, and the name that a recipe has of it."""

    name: str  # ``torchvision:...``, ``timm:...`` or ``object:...``
    function: Function

    @property
    def is_object(self) -> bool:
        """Whether it was passed from Python, and its name says nothing of what it does."""
        return self.name.startswith("object:")


def name_of(function: Function) -> str:
    """Return how a recipe names an object that was passed from Python."""
    return f"object:{getattr(function, '__name__', type(function).__name__)}"


def find(name: str, *, image_size: tuple[int, int], channels: int, interpolation: str = "bilinear") -> Transform:
    """Return a library's transform of images of such a size, height and width, and so many channels.

    ``torchvision:`` is followed by a class of ``torchvision.transforms.v2``, with arguments that are literals: nothing
    is executed. ``timm:`` is followed by a policy as timm's training script takes it in ``--aa``; as there, exposed
    pixels get the mean of ImageNet's, and ``interpolation`` resamples them.

    Raises:
        InvalidValueError: there is no such transform, or it takes other arguments.
        MissingExtraError: the library is not installed.
    """
    library, _, text = name.partition(":")
    if library == "torchvision":
        return Transform(name, _of_torchvision(text))
    if library == "timm":
        return Transform(name, _of_timm(text, image_size, channels, interpolation))
    instead = "run the program that made it, or type data.transform=torchvision:TrivialAugmentWide, for example"
    raise InvalidValueError("data.transform", "the object that was passed from Python", f"its name, {name}", instead)


def apply(
    images: Tensor, index: NDArray[np.int64], *, view: View, transform: Transform, white: float = 255.0
) -> Tensor:
    """Transform each image by itself, with the global generators seeded from its own hash.

    Images whose white is not 255 are rescaled to it, and back afterwards.

    Raises:
        InvalidValueError: what comes out has another size, or is no image of 8 bits.
        UserCodeError: an object of the user's raises an error.
    """
    varied = torch.empty_like(images)
    seeds = rng.draw(view.seed, view.epoch, index, rng.TRANSFORM)
    with rng.seeded() as seed_generators:
        for row, (sample, bits) in enumerate(zip(index.tolist(), seeds.tolist(), strict=True)):
            seed_generators(bits)
            image = image_of(rescale(images[row].numpy(), 255 / white))
            pixels = _transformed(image, transform, f"sample {sample} in epoch {view.epoch + 1}")
            varied[row] = torch.from_numpy(rescale(pixels, white / 255).copy())
    return varied


def check_on_black(transform: Transform, *, image_size: tuple[int, int], channels: int) -> None:
    """Transform a black image, so that what never works is found before training.

    Raises:
        InvalidValueError, UserCodeError: as of `apply`.
    """
    with rng.seeded() as seed_generators:
        seed_generators(0)
        _transformed(image_of(np.zeros((*image_size, channels), np.uint8)), transform, "a black image")


def _transformed(image: Image.Image, transform: Transform, which: str) -> NDArray[np.uint8]:
    """Return ``(height, width, channels)`` uint8."""
    name = f"data.transform {transform.name}"
    try:
        result = transform.function(image)
    except Exception as error:
        kind = UserCodeError if transform.is_object else InvalidValueError
        raise kind(
            name,
            f"an image out of {which}",
            reason_of(error),
            "fix it, or type data.transform=null",
        ) from error
    expected = (len(image.getbands()), image.height, image.width)
    instead = "leave out what changes size, channels or type, such as Resize or ToTensor"
    if isinstance(result, Image.Image):
        if (result.size, result.mode) == (image.size, image.mode):
            return pixels_of(result)
        got = f"one of {result.width} x {result.height} pixels in mode {result.mode}"
    elif isinstance(result, Tensor):
        if (result.dtype, result.device.type) == (torch.uint8, "cpu") and result.shape == expected:
            return result.as_subclass(Tensor).permute(1, 2, 0).numpy()
        got = f"{result.dtype} values of shape {tuple(result.shape)} on {result.device}"
    else:
        got, instead = type(result).__name__, "let it return the image: PIL.Image.fromarray(...) makes one of an array"
    raise InvalidValueError(
        name,
        f"an image of {image.width} x {image.height} pixels in mode {image.mode}, as {which} was, or its "
        "uint8 values (channels, height, width)",
        got,
        instead,
    )


def _of_torchvision(text: str) -> Function:
    from torchvision.transforms import v2

    classes = {
        name: value
        for name, value in vars(v2).items()
        if isinstance(value, type) and issubclass(value, v2.Transform) and value is not v2.Transform
    }
    try:
        name, arguments, by_name = _parsed(text)
    except (SyntaxError, ValueError) as error:
        expected = "torchvision:<class>(<argument>=<value>, ...), values being numbers, texts, lists, True or None"
        instead = "for example data.transform='torchvision:RandAugment(num_ops=2, magnitude=9)'"
        raise InvalidValueError("data.transform", expected, f"torchvision:{text}", instead) from error
    if name not in classes:
        expected = "a class of torchvision.transforms.v2"
        instead = nearest(name, classes, otherwise="for example data.transform=torchvision:TrivialAugmentWide")
        raise InvalidValueError("data.transform", expected, f"torchvision:{name}", instead)
    try:
        transform: Function = classes[name](*arguments, **by_name)
    except Exception as error:
        known = inspect.signature(classes[name]).parameters
        unknown = next((key for key in by_name if key not in known), None)
        instead = "give others, or pass the object itself from Python where literals cannot make it"
        if unknown is not None:
            instead = nearest(unknown, known, otherwise=instead)
        expected, got = f"arguments of {name} ({', '.join(known)})", reason_of(error)
        raise InvalidValueError(f"data.transform torchvision:{text}", expected, got, instead) from error
    return transform


def _parsed(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Return a name, and the literals that are its arguments in order and by name."""
    call = ast.parse(text.strip(), mode="eval").body
    if isinstance(call, ast.Name):
        return call.id, [], {}
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(text)
    by_name = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError(text)
        by_name[keyword.arg] = ast.literal_eval(keyword.value)
    return call.func.id, [ast.literal_eval(argument) for argument in call.args], by_name


def _of_timm(policy: str, image_size: tuple[int, int], channels: int, interpolation: str) -> Function:
    try:
        from timm.data import auto_augment
    except ImportError as error:
        raise missing_extra(f"data.transform timm:{policy}", "timm", "timm", error) from error
    mean = MEAN if channels == 3 else (sum(MEAN) / 3,)
    settings: dict[str, Any] = {
        "translate_const": int(min(image_size) * 0.45),
        "img_mean": tuple(round(255 * value) for value in mean),
        "interpolation": RESAMPLING[interpolation],
    }
    try:
        if policy.startswith("rand"):
            transform = auto_augment.rand_augment_transform(policy, settings)
        elif policy.startswith("augmix"):
            transform = auto_augment.augment_and_mix_transform(policy, {**settings, "translate_pct": 0.3})
        else:
            transform = auto_augment.auto_augment_transform(policy, settings)
    except Exception as error:
        raise InvalidValueError(
            "data.transform",
            "a policy of timm's, such as rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, original or 3a",
            f"timm:{policy} ({reason_of(error)})",
            "for example data.transform=timm:rand-m9-mstd0.5-inc1",
        ) from error
    # Pillow has come to refuse to keep no bit, at which timm would stop in the middle of an epoch.
    operations = transform.ops if hasattr(transform, "ops") else [op for each in transform.policy for op in each]
    for operation in operations:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    function: Function = transform
    return function


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each value: timm's, for none as well."""
    return image.point(lambda value: value & (0xFF << (8 - bits)))
