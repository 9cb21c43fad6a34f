"""What a user says about data: plain values, no behaviour beyond checking them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """RandAugment: random operations on each training image; `tutelage.data.randaugment` says which."""

    operations: int = 2
    """Operations drawn for each image, at least 1; each of them is then applied with probability 1/2."""
    magnitude: float = 9.0
    """How strong they are, in [0, 10]."""
    magnitude_std: float = 0.5
    """Standard deviation of the magnitude from one operation to the next, at least 0."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data set, how it is divided, and how training images are varied."""

    source: str = "digits"
    """``digits``, ``hf:<hub id or local folder>``, ``imagefolder:<path>`` or ``torchvision:<class name>``."""
    image: str | None = None
    """Image column of an ``hf:`` source; unset takes the only image column."""
    label: str | None = None
    """Label column of an ``hf:`` source; unset takes the only class-label column."""
    validation: float = 0.0
    """Fraction of the training samples held out for validation, stratified by class; in [0, 1)."""
    labelled: int | None = None
    """Training samples per class that keep their label; the rest become -100. 0 leaves none, unset keeps all."""
    split_seed: int = 0
    """Seed of every division of samples: validation, labelled, and a test set where the source has none."""
    crop_padding: int = 0
    """Random crops of training images out of a border of zeros this wide; pixels, at least 0."""
    flip: bool = False
    """Flip each training image left to right with probability 1/2."""
    random_resized_crop: bool = False
    """Train on random boxes of 8 to 100 % of an image's area and aspect ratio 3/4 to 4/3, resized."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of every resize, antialiased, and of RandAugment's rotations, shears and translations."""
    randaugment: RandAugment | None = None
    """Random operations on each training image; unset does none."""
    random_erasing: float = 0.0
    """Probability that noise fills a random rectangle of a training image."""
    mixup: float = 0.0
    """Alpha of Mixup: a training sample becomes a weighted mean of itself and another; 0 is off."""
    cutmix: float = 0.0
    """Alpha of CutMix: a rectangle of a training sample comes from another; 0 is off."""
    mix_probability: float = 1.0
    """Of a sample to be mixed at all, where Mixup or CutMix is on."""
    switch_probability: float = 0.5
    """Of CutMix where a sample is mixed and both are on."""
    size: int | None = None
    """Side of the square images, pixels, at least 1.

    Unset keeps the size of a data set whose images all have one, and means 224 elsewhere. Images of mixed sizes are
    evaluated on the centre of a copy whose shorter side is 256/224 of this; images of one size are resized as a whole.
    """
    test_crop: float | None = None
    """Share of the resized image's side that the evaluation view keeps, in (0, 1].

    Unset means 224/256 = 0.875 for images of mixed sizes and 1 for images of one size.
    """
    test: Literal["held_out", "train"] = "held_out"
    """The test set of a source that has none: a fifth of each class, or the training images without augmentation."""
    workers: int = 0
    """Processes that decode a streamed data set, at least 0; no effect on the values."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """On an image that cannot be read: stop and name it, or leave it out and count it."""
    memory_limit_mb: int = 2048
    """Largest data set held in memory, MiB of 8-bit pixels, at least 0; a larger one is streamed."""
    root: str = "data"
    """Folder that ``torchvision:`` downloads into."""


def check(settings: DataSettings) -> None:
    """Refuse values outside their ranges.

    Raises:
        ValueError: a value is out of range, or two settings contradict each other.
    """

    def refuse(name: str, expected: str, example: str) -> None:
        raise ValueError(
            f"data.{name}: expected {expected}, got {getattr(settings, name)!r}; type data.{name}={example}"
        )

    if not 0 <= settings.validation < 1:
        refuse("validation", "a fraction in [0, 1)", "0.1")
    if settings.labelled is not None and settings.labelled < 0:
        refuse("labelled", "a number of samples per class, 0 for no labels, or null for all", "null")
    if settings.size is not None and settings.size < 1:
        refuse("size", "at least 1 pixel, or null", "224")
    if settings.test_crop is not None and not 0 < settings.test_crop <= 1:
        refuse("test_crop", "a share in (0, 1], or null", "0.875")
    for name in ("random_erasing", "mix_probability", "switch_probability"):
        if not 0 <= getattr(settings, name) <= 1:
            refuse(name, "a probability in [0, 1]", "0.25" if name == "random_erasing" else "0.5")
    for name, usual in (("mixup", "0.8"), ("cutmix", "1.0")):
        if not 0 <= getattr(settings, name) < math.inf:
            refuse(name, "a finite number of at least 0, where 0 is off", usual)
    for name, choices in (("interpolation", ("bilinear", "bicubic")), ("test", ("held_out", "train"))):
        if getattr(settings, name) not in choices:
            refuse(name, " or ".join(map(repr, choices)), choices[0])
    if settings.randaugment is not None:
        _check_randaugment(settings.randaugment)
    for name in ("crop_padding", "workers", "memory_limit_mb"):
        if getattr(settings, name) < 0:
            refuse(name, "a whole number of at least 0", "0")
    if settings.on_corrupt not in ("stop", "skip"):
        refuse("on_corrupt", "'stop' or 'skip'", "stop")
    if settings.crop_padding and settings.random_resized_crop:
        raise ValueError(
            "data.crop_padding: expected 0 together with data.random_resized_crop=true, "
            f"got {settings.crop_padding}; type data.crop_padding=0"
        )


def _check_randaugment(settings: RandAugment) -> None:
    wrong = [
        ("operations", "a whole number of at least 1", "2", settings.operations >= 1),
        ("magnitude", "a number in [0, 10]", "9", 0 <= settings.magnitude <= 10),
        ("magnitude_std", "a finite number of at least 0", "0.5", 0 <= settings.magnitude_std < math.inf),
    ]
    for name, expected, example, right in wrong:
        if not right:
            raise ValueError(
                f"data.randaugment.{name}: expected {expected}, got {getattr(settings, name)!r}; "
                f"type data.randaugment.{name}={example}"
            )
