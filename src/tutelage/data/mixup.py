"""Mixup and CutMix: a training sample mixed with a partner, drawn from the data set by (seed, epoch, sample)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.special import betaincinv

from tutelage.data import rng
from tutelage.types import UNLABELLED, Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from tutelage.data.datasets import Split, View


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How training samples are mixed.

    Attributes:
        mixup: alpha of Mixup, at least 0; 0 is off.
        cutmix: alpha of CutMix, at least 0; 0 is off.
        probability: of a sample to be mixed at all.
        switch: probability of CutMix where both are on.
        classes: width of the labels.
        image_size: height and width, pixels.
    """

    mixup: float
    cutmix: float
    probability: float
    switch: float
    classes: int
    image_size: tuple[int, int]


class Mix(NamedTuple):
    """How each sample of a batch is mixed.

    Attributes:
        partner: ``(batch,)`` int64, places in the data set.
        share: ``(batch,)`` float64 in [0, 1], the sample's own share of its label; 1 where it is not mixed.
        cut: ``(batch,)``, whether by CutMix.
        box: ``(batch, 4)`` int64, top, bottom, left and right of what CutMix takes from the partner.
    """

    partner: NDArray[np.int64]
    share: NDArray[np.float64]
    cut: NDArray[np.bool_]
    box: NDArray[np.int64]


def draw_mix(index: NDArray[np.int64], *, mixing: Mixing, samples: int, view: View) -> Mix:
    """Draw each sample's partner, share and rectangle from its own hash.

    The partner is uniform over the data set, the sample itself included. The share ``lam`` follows
    ``Beta(alpha, alpha)``. CutMix takes a rectangle of ``floor(height * sqrt(1 - lam))`` by
    ``floor(width * sqrt(1 - lam))`` pixels whose centre is uniform over the image and which is cut off at its borders;
    the share is then one minus the part of the image that it really covers.

    Args:
        index: ``(batch,)`` places in the data set.
        mixing: how.
        samples: of the data set.
        view: the data seed and the epoch.

    Source: Zhang et al., "mixup", arXiv 1710.09412; Yun et al., "CutMix", arXiv 1905.04899.

    Differs from: both papers' codes and timm's default, which draw one share for a whole batch and take partners from
    within it; there a view depends on who else is in the batch.
    """

    def number(stream: int) -> NDArray[np.float64]:
        return rng.uniform(rng.draw(view.seed, view.epoch, index, stream))

    partner = rng.integers(rng.draw(view.seed, view.epoch, index, rng.PARTNER), samples)
    mixed = number(rng.MIX) < mixing.probability
    cut = mixed & (number(rng.SWITCH) < mixing.switch if mixing.mixup else np.full(len(index), True))
    if not mixing.cutmix:
        cut = np.full(len(index), False)
    share, at = np.ones(len(index)), number(rng.SHARE)
    for which, alpha in ((mixed & ~cut, mixing.mixup), (cut, mixing.cutmix)):
        if which.any():
            share[which] = betaincinv(alpha, alpha, at[which])
    box = _boxes(share, number(rng.CUT_TOP), number(rng.CUT_LEFT), mixing.image_size)
    box[~cut] = 0
    height, width = mixing.image_size
    covered = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / (height * width)
    return Mix(partner, np.where(cut, 1 - covered, share), cut, box)


def _boxes(
    share: NDArray[np.float64], down: NDArray[np.float64], across: NDArray[np.float64], image_size: tuple[int, int]
) -> NDArray[np.int64]:
    sides = []
    for length, place in zip(image_size, (down, across), strict=True):
        taken = (length * np.sqrt(1 - share)).astype(np.int64)
        start = (place * length).astype(np.int64) - taken // 2
        sides += [start.clip(0), (start + taken).clip(max=length)]
    return np.stack(sides, axis=1)


def mixed_batches(
    split: Split, mixing: Mixing, requests: Iterable[NDArray[np.int64]], *, view: View
) -> Iterator[Batch]:
    """Fetch batches in order, mixed.

    A partner comes with its own view of the epoch: its own crop, flip and operations. A sample whose partner cannot be
    read is not mixed.

    Returns:
        Batches with soft labels ``share * onehot(label) + (1 - share) * onehot(partner's label)``, float32
        ``(batch, classes)``; where no sample of the split has a label they stay indices, all -100.
    """
    drawn: deque[tuple[NDArray[np.int64], Mix]] = deque()

    def wanted() -> Iterator[NDArray[np.int64]]:
        for index in requests:
            mix = draw_mix(index, mixing=mixing, samples=len(split), view=view)
            drawn.append((index, mix))
            yield np.concatenate([index, mix.partner[mix.share < 1]])

    labelled = bool((split.labels != UNLABELLED).any())
    for places, inputs in split.stream(wanted(), view=view):
        index, mix = drawn.popleft()
        kept, share = _mix_inputs(index, mix, places, inputs)
        index, partner, share = index[kept], mix.partner[kept], share[kept]
        labels = split.labels[torch.from_numpy(index)]
        if labelled:
            labels = _soft(labels, split.labels[torch.from_numpy(partner)], share, mixing.classes)
        yield Batch(torch.from_numpy(index), inputs[: len(index)], labels)


def _mix_inputs(
    index: NDArray[np.int64], mix: Mix, places: NDArray[np.int64], inputs: Tensor
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Mix in place the samples, which come first, with their partners, which follow; each row by itself.

    Args:
        index: the samples.
        mix: how.
        places: of samples and partners together, in order, those that could be read.
        inputs: of those.

    Returns:
        Which samples could be read, and the share that each has kept.
    """
    count, parts = len(index), np.flatnonzero(mix.share < 1)
    read = np.isin(np.concatenate([index, mix.partner[parts]]), places)
    if not read[:count].any():
        raise ValueError(
            f"data.source: expected at least 1 readable image in every batch, got none among {count}; "
            "raise batch_size or remove the files that cannot be read"
        )
    row = np.cumsum(read) - 1
    share = mix.share.copy()
    for at, i in enumerate(parts.tolist(), start=count):
        if not read[at]:
            share[i] = 1
        elif read[i]:
            mine, other = inputs[row[i]], inputs[row[at]]
            if mix.cut[i]:
                top, bottom, left, right = mix.box[i].tolist()
                mine[:, top:bottom, left:right] = other[:, top:bottom, left:right]
            else:
                # Two products and a sum: a fused form rounds otherwise, depending on where in a batch a value lies.
                mine.mul_(float(share[i])).add_(other.mul_(1 - float(share[i])))
    return read[:count], share


def _soft(labels: Tensor, partners: Tensor, share: NDArray[np.float64], classes: int) -> Tensor:
    own = torch.from_numpy(share)
    soft = torch.zeros(len(labels), classes, dtype=torch.float64)
    rows = torch.arange(len(labels))
    soft[rows, labels] = own
    soft[rows, partners] += 1 - own
    return soft.float()
