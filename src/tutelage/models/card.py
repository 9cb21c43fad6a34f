"""A model's card: its name, inputs and outputs, the source of its weights, and where its features are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from tutelage.errors import InvalidValueError
from tutelage.submodules import is_tap
from tutelage.types import Task

JSON_NAMES = {"stages": "taps", "stage_inputs": "preactivations"}
"""Names in files of the fields that have another name there."""
OF_TEXT = ("max_tokens", "per_token", "tokenizer")
"""Fields of networks that read text, which the cards of others lack in files."""
LARGEST_MARGIN = 100
"""A resized copy of an image is smaller than this many views."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What is known about a classifier besides its weights.

    Attributes:
        name: full name as typed, such as ``cifar:resnet20``.
        classes: number of classes, the size of the logits' last axis, at least 1.
        channels: number of input channels, at least 1.
        image_size: size ``(height, width)`` in pixels the model was made for; ``None`` if irrelevant or unknown.
        margin: size of the resized copy relative to the evaluated view, its centre, >= 1.
        interpolation: interpolation that resizes raw images for that view, ``bilinear`` or ``bicubic``.
        divisor: value of white in raw images, above 0, by which they are divided.
        mean: mean per channel, subtracted from inputs in [0, 1]; ``None`` for no normalisation.
        std: standard deviation per channel, above 0; ``None`` if and only if ``mean`` is.
        weights: tag or file name that the weights come from; ``None`` for random weights.
        source: place where they were published.
        licence: licence of the weights.
        paper: reference that describes the network.
        class_names: one name for each class.
        stages: taps (see `tutelage.submodules`) of the stages, after their activation, and last the embedding; empty
            if no embedding is known. A stage is ``(batch, channels, height, width)``, or ``(batch, tokens, width)`` in
            a transformer.
        stage_inputs: taps of the stages before their activation, as many as ``stages``; a stage's own tap if no
            activation is known to end it; all of them by default.
        embedding: tap of the pooled features ``(batch, width)`` that the head reads: the last of the stages.
        head: name of the linear layer whose output is the logits; ``None`` if there is no such layer.
        fresh_head: whether a random head for another number of classes replaced the weights' own: the model must be
            fine-tuned before it can teach.
        max_tokens: largest number of tokens of a text, at least 1; ``None`` for a network of images.
        per_token: whether each token of a text is classified, instead of the text.
        tokenizer: fingerprint of the tokenizer of its ids.
        task: what it answers for a sample. Of labels ``classes`` is their number, and ``class_names`` are theirs; of an
            embedding it is its width.

    Raises:
        ValueError: if a number of classes, of channels, of statistics, of names or of taps contradicts another.
    """

    name: str
    classes: int
    channels: int = 3
    image_size: tuple[int, int] | None = None
    margin: float = 1.0
    interpolation: str = "bilinear"
    divisor: float = 255.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    weights: str | None = None
    source: str | None = None
    licence: str | None = None
    paper: str | None = None
    class_names: tuple[str, ...] | None = None
    stages: tuple[str, ...] = ()
    stage_inputs: tuple[str, ...] = ()
    embedding: str | None = None
    head: str | None = None
    fresh_head: bool = False
    max_tokens: int | None = None
    per_token: bool = False
    tokenizer: str | None = None
    task: Task = "classes"

    def __post_init__(self) -> None:
        for argument in ("classes", "channels"):
            value = getattr(self, argument)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise self._error(argument, "a whole number of at least 1", f"type {argument}=3")
        if self.task not in get_args(Task):
            raise self._error("task", ", ".join(get_args(Task)), "type task='classes'")
        size = self.image_size
        if size is not None and (not isinstance(size, tuple | list) or len(size) != 2 or min(size) < 1):
            raise self._error("image_size", "(height, width) in pixels", "type image_size=(32, 32)")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise self._error("interpolation", "bilinear or bicubic", "type interpolation='bilinear'")
        if not 0 < self.divisor < float("inf"):
            raise self._error("divisor", "a number above 0", "type divisor=255")
        if not 0 < self.margin < LARGEST_MARGIN:
            raise self._error("margin", f"a number above 0 and below {LARGEST_MARGIN}", "type margin=1.0")
        if (self.mean is None) != (self.std is None):
            raise InvalidValueError("mean and std", "both or neither", "one of them", "give the other too")
        for argument in ("mean", "std"):
            values = getattr(self, argument)
            if values is not None and len(values) != self.channels:
                instead = f"give {self.channels} values or channels={len(values)}"
                raise InvalidValueError(argument, f"{self.channels} values, one per channel", len(values), instead)
        if self.std is not None and min(self.std) <= 0:
            raise self._error("std", "values above 0", "use 1.0 for a channel to leave as it is")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise InvalidValueError(
                "class_names", f"{self.classes} names", len(self.class_names), "give one name per class, or none"
            )
        if not self.stage_inputs:
            object.__setattr__(self, "stage_inputs", self.stages)
        if len(self.stage_inputs) != len(self.stages):
            expected = f"{len(self.stages)} taps, as many as stages"
            instead = "repeat a stage's tap where none comes before it, or give none"
            raise InvalidValueError("stage_inputs", expected, len(self.stage_inputs), instead)
        for tap in (*self.stages, *self.stage_inputs):
            if not is_tap(tap):
                instead = "type a submodule's name, with :input behind it for what it reads"
                raise InvalidValueError("stages", "taps such as layer3 or fc:input", repr(tap), instead)
        if self.embedding is not None and self.embedding != (self.stages or (None,))[-1]:
            got = f"{self.embedding!r} beside {self.stages!r}"
            raise InvalidValueError("embedding", "the last of the stages", got, "put it behind the stages")

    def _error(self, field: str, expected: str, advice: str) -> ValueError:
        return InvalidValueError(field, expected, repr(getattr(self, field)), advice)

    def to_json(self) -> dict[str, Any]:
        """Return the card as a JSON value; tuples become lists, two fields keep older names, some are of text alone."""
        fields = dataclasses.asdict(self).items()
        written = {JSON_NAMES.get(k, k): list(v) if isinstance(v, tuple) else v for k, v in fields}
        left_out = () if self.max_tokens is not None else OF_TEXT
        return {k: v for k, v in written.items() if k not in left_out and (k, v) != ("task", "classes")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Card:
        """Read a card back.

        Args:
            value: result of `to_json`, perhaps through a JSON file; missing fields take their defaults.

        Raises:
            ValueError: if a field is unknown or a required one is missing.
        """
        fields = {JSON_NAMES.get(field.name, field.name): field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(value) - set(fields))
        missing = sorted({"name", "classes"} - set(value))
        if unknown or missing:
            expected = f"the fields {', '.join(sorted(fields))}"
            instead = "write the card again with this version"
            raise InvalidValueError("card", expected, f"unknown {unknown} and missing {missing}", instead)
        arguments: dict[str, Any] = {fields[k]: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**arguments)
