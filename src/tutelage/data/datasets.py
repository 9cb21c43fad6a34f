"""What the rest of the project sees of a data set: its splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tutelage.types import UNLABELLED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from tutelage.data.mixup import Mixing


class View(NamedTuple):
    """Which random views to take: with a sample's place they determine its augmentation.

    Attributes:
        seed: the data seed.
        epoch: epochs done before this one.
    """

    seed: int
    epoch: int


class Split(Protocol):
    """Samples with fixed places ``0 .. len - 1``.

    Attributes:
        labels: ``(len,)`` int64 on the CPU, -100 where unlabelled.
        corrupt: names of images met that could not be read, each once.
        mixing: how training batches mix samples, whose labels are soft then; none where they do not.
    """

    @property
    def labels(self) -> Tensor:
        """Return the labels."""

    @property
    def corrupt(self) -> list[str]:
        """Return the names."""

    @property
    def mixing(self) -> Mixing | None:
        """Return how samples are mixed in training batches; `fetch` and `stream` leave them as they are."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Tensor:
        """Return float32 ``(batch, channels, height, width)`` in [0, 1]; without a view, not augmented."""

    def stream(
        self, requests: Iterable[NDArray[np.int64]], *, view: View | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Fetch batches in order; each comes with the places that could be read."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set, divided.

    Attributes:
        train: what is learned from.
        validation: held out of training, or none.
        test: held out by the source.
        classes: number of classes.
        class_names: one for each class.
        channels: of an image.
        image_size: height and width, pixels.
        margin: the evaluation view is the centre of a copy this much larger.
        divisor: the value of white in the source's own images.
        source: as typed, a local path reduced to its last component.
        fingerprint: 16 hexadecimal digits that change with the samples, their order or their division; none where
            the content is not known.
        notes: what was decided on the user's behalf, one sentence each.
        interpolation: of resizes, ``bilinear`` or ``bicubic``.
    """

    train: Split
    validation: Split | None
    test: Split
    classes: int
    class_names: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    source: str
    fingerprint: str | None
    notes: tuple[str, ...] = ()
    margin: float = 1.0
    divisor: float = 255.0
    interpolation: str = "bilinear"

    def sizes(self) -> dict[str, int]:
        """Return counts: samples of each split, training samples with a label, and unreadable images met so far."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        present = {name: part for name, part in parts.items() if part is not None}
        return {
            **{name: len(part) for name, part in present.items()},
            "labelled": int((self.train.labels != UNLABELLED).sum()),
            "corrupt": len({name for part in present.values() for name in part.corrupt}),
        }
