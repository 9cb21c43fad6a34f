"""Samples that are an image and a text each, of which each network reads one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tutelage.data.datasets import Split, Splits
from tutelage.data.token_split import TokenSplit
from tutelage.errors import InvalidValueError
from tutelage.types import Inputs, View
from tutelage.views import view_of

KINDS = ("image", "text")
"""What a network may read."""


@dataclass(frozen=True, kw_only=True)
class PairedSplit(Split):
    """Samples of which one network reads the image and the other the text: views by the network's name.

    Images vary from epoch to epoch as if they were alone; texts do not.

    Attributes:
        images: images.
        tokens: texts of the same samples, by the name of the networks that read them.
        reads: kind of view, of `KINDS`, by the network's name.
    """

    images: Split
    tokens: TokenSplit
    reads: Mapping[str, str]

    def largest(self, count: int) -> NDArray[np.int64]:
        """Return the indices of the samples with the longest texts, at most so many."""
        return self.tokens.largest(count)

    def order(self, seed: int, epoch: int, *, batch_size: int) -> NDArray[np.int64]:
        """Return the order of the training samples in an epoch, in buckets of the texts' lengths."""
        return self.tokens.order(seed, epoch, batch_size=batch_size)

    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Inputs:
        """Return the views by network's name: images as `MemorySplit`, token ids as `TokenSplit` returns them."""
        return self._views(index, self.images.fetch(index, view=view))

    def stream_images(
        self, requests: Iterable[NDArray[np.int64]], *, view: View | None = None, pin_memory: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], Inputs]]:
        """Fetch batches in order, with the indices whose image could be read."""
        images = self.images
        if images.workers != self.workers:
            images = replace(images, workers=self.workers)
        for index, read in images.stream_images(requests, view=view, pin_memory=pin_memory):
            yield index, self._views(index, read)

    def parts(self) -> list[Split]:
        """Return the splits of images and of texts."""
        return [self.images, self.tokens]

    def _views(self, index: NDArray[np.int64], images: Inputs) -> Inputs:
        ids = self.tokens.fetch(index)
        return {name: view_of(images if kind == "image" else ids, name) for name, kind in self.reads.items()}


def read_by(splits: Splits, reads: Mapping[str, str]) -> Splits:
    """Return a data set as its networks read it.

    Args:
        splits: data set; one whose samples are not an image and a text each is returned as it is.
        reads: ``image`` or ``text`` for ``student``, and for ``teacher`` if there is one.

    Returns:
        Splits of the images, or of the texts, alone where all networks read these; else of views by network's name.

    Raises:
        ValueError: if it is not said what a network reads, or mixed images are to be read beside texts.
    """
    if splits.beside is None:
        return splits
    if not reads or set(reads.values()) - {*KINDS}:
        instead = "type tutelage.data.read_by(splits, {'student': 'image', 'teacher': 'text'})"
        raise InvalidValueError("reads", "image or text for each network", dict(reads), instead)
    if set(reads.values()) == {"image"}:
        return replace(splits, beside=None)
    if splits.train.mixing is not None:
        name = "mixup" if splits.train.mixing.mixup else "cutmix"
        expected = "0 where a network reads the images' texts, as there is no text of a mixed image"
        instead = "type data.mixup=0 data.cutmix=0, or let both networks read the image"
        raise InvalidValueError(f"data.{name}", expected, getattr(splits.train.mixing, name), instead)
    if set(reads.values()) == {"text"}:
        return splits.beside
    texts = splits.beside.by_name()
    text = {name: splits.beside.text[name] for name, kind in reads.items() if kind == "text"}

    def paired(name: str, images: Split) -> PairedSplit:
        tokens = texts[name]
        assert isinstance(tokens, TokenSplit)
        return PairedSplit(
            labels=images.labels,
            corrupt=images.corrupt,
            workers=images.workers,
            pool=images.pool,
            divisor=images.divisor,
            on_device=images.on_device,
            balanced=images.balanced,
            images=images,
            tokens=replace(tokens, rows={name: tokens.rows[name if name in tokens.rows else ""] for name in text}),
            reads=reads,
        )

    parts = {name: paired(name, split) for name, split in splits.by_name().items()}
    return replace(
        splits,
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts["test"],
        text=text,
        views={**splits.views, **dict.fromkeys(text, ())},
        beside=None,
    )
