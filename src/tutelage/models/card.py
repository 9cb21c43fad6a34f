"""A model's card: what it is called, what it takes and gives, and where its weights come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What is known about a classifier besides its weights.

    Attributes:
        name: the full name as typed, such as ``cifar:resnet20``.
        classes: size of the logits' last axis, at least 1.
        channels: input channels, at least 1.
        image_size: ``(height, width)`` in pixels the model was made for; none where it does not matter or is not known.
        margin: the view that it was evaluated on is the centre of a copy this much larger, >= 1.
        divisor: the value of white in raw images, above 0: these are divided by it.
        mean: each channel's mean, subtracted from inputs in [0, 1]; none for no normalisation at the model's door.
        std: each channel's standard deviation, above 0; none exactly where ``mean`` is.
        weights: the tag or the file's name that the weights come from; none for random weights.
        source: where they were published.
        licence: what they may be used for.
        paper: what describes the network.
        class_names: one name for each class.
        taps: names of the submodules whose outputs are the stages and, last, the pooled embedding; may be empty.
        fresh_head: the weights' own head was replaced by a random one for another number of classes: the model is to
            be fine-tuned, and cannot teach yet.

    Raises:
        ValueError: if a number of classes, of channels, of statistics or of names contradicts another.
    """

    name: str
    classes: int
    channels: int = 3
    image_size: tuple[int, int] | None = None
    margin: float = 1.0
    divisor: float = 255.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    weights: str | None = None
    source: str | None = None
    licence: str | None = None
    paper: str | None = None
    class_names: tuple[str, ...] | None = None
    taps: tuple[str, ...] = ()
    fresh_head: bool = False

    def __post_init__(self) -> None:
        for argument in ("classes", "channels"):
            value = getattr(self, argument)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{argument}: expected a whole number of at least 1, got {value!r}; type {argument}=3")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(
                f"image_size: expected (height, width) in pixels, got {self.image_size!r}; type image_size=(32, 32)"
            )
        if not 0 < self.divisor < float("inf"):
            raise ValueError(f"divisor: expected a number above 0, got {self.divisor!r}; type divisor=255")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std: expected both or neither, got one of them; give the other too")
        for argument in ("mean", "std"):
            values = getattr(self, argument)
            if values is not None and len(values) != self.channels:
                raise ValueError(
                    f"{argument}: expected {self.channels} values, one a channel, got {len(values)}; "
                    f"give {self.channels} values or channels={len(values)}"
                )
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std: expected values above 0, got {self.std!r}; use 1.0 for a channel to leave as it is")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(
                f"class_names: expected {self.classes} names, got {len(self.class_names)}; "
                f"give one name a class, or none"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the card as a value that JSON can hold; tuples become lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Card:
        """Read a card back.

        Args:
            value: what `to_json` returned, perhaps through a JSON file; fields it lacks take their defaults.

        Raises:
            ValueError: if a field is unknown or a required one is missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(value) - known)
        missing = sorted({"name", "classes"} - set(value))
        if unknown or missing:
            raise ValueError(
                f"card: expected the fields {', '.join(sorted(known))}, got unknown {unknown} and missing {missing}; "
                "write the card anew with this version"
            )
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**fields)
