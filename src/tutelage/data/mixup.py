"""Mixup and CutMix: a training sample mixed with a partner, drawn from the data set by (seed, epoch, sample)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from tutelage import rng
from tutelage.data.datasets import Mixing, Split
from tutelage.errors import InvalidValueError
from tutelage.types import UNLABELLED, Batch, View


class MixedRows(NamedTuple):
    """The readable samples of a batch, and how each is mixed: arrays ``(batch,)``, ``box`` ``(batch, 4)``."""

    index: NDArray[np.int64]  # type: ignore[assignment]  # indices of the data set, over tuple.index
    labels: Tensor
    partner: NDArray[np.int64]  # partner's row among the images, the sample's own if it is not mixed
    share: NDArray[np.float64]  # share, as in `Mix`
    box: NDArray[np.int64]  # box, as in `Mix`


class Mix(NamedTuple):
    """The mixing of each sample of a batch."""

    partner: NDArray[np.int64]  # partners' indices in the data set, ``(batch,)``
    share: NDArray[np.float64]  # sample's own share of its label, ``(batch,)`` in [0, 1]; 1 if it is not mixed
    cut: NDArray[np.bool_]  # whether by CutMix, ``(batch,)``
    box: NDArray[np.int64]  # top, bottom, left and right of what CutMix takes from the partner, ``(batch, 4)``


def draw_mix(index: NDArray[np.int64], *, mixing: Mixing, samples: int, view: View) -> Mix:
    """Draw the partner, share and rectangle of each sample ``index``, ``(batch,)``, from its own hash.

    The partner is uniform over the data set's ``samples``, the sample itself included. The share ``lam`` follows
    ``Beta(alpha, alpha)``. CutMix takes a rectangle of ``floor(height * sqrt(1 - lam))`` by
    ``floor(width * sqrt(1 - lam))`` pixels whose centre is uniform over the image, clipped at the borders; the share is
    then one minus the fraction of the image that it covers.

    Source: Zhang et al., "mixup", arXiv 1710.09412; Yun et al., "CutMix", arXiv 1905.04899.

    Differs from: both papers' codes and timm's default, which draw one share for a whole batch and take partners from
    within it; there a view depends on the rest of the batch.
    """
    uniform = partial(rng.view_uniform, view, index)
    partner = rng.view_integers(view, index, rng.PARTNER, samples)
    mixed = uniform(rng.MIX) < mixing.probability
    cut = mixed & bool(mixing.cutmix)
    if mixing.mixup:
        cut &= uniform(rng.SWITCH) < mixing.switch
    share, level = np.ones(len(index)), uniform(rng.SHARE)
    for which, alpha in ((mixed & ~cut, mixing.mixup), (cut, mixing.cutmix)):
        if which.any():
            share[which] = betaincinv(alpha, alpha, level[which])
    edges = []
    for length, centre in zip(mixing.image_size, (uniform(rng.CUT_TOP), uniform(rng.CUT_LEFT)), strict=True):
        side = (length * np.sqrt(1 - share)).astype(np.int64)
        start = (centre * length).astype(np.int64) - side // 2
        edges += [start.clip(0), (start + side).clip(max=length)]
    box = np.stack(edges, axis=1)
    box[~cut] = 0
    height, width = mixing.image_size
    covered = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / (height * width)
    return Mix(partner, np.where(cut, 1 - covered, share), cut, box)


def mixed_batches(
    split: Split, mixing: Mixing, requests: Iterable[NDArray[np.int64]], *, view: View
) -> Iterator[Batch]:
    """Fetch batches in order, mixed, with soft labels."""
    for rows, images in mixed_images(split, mixing, requests, view=view):
        inputs = split.to_inputs(images)
        for i in np.flatnonzero(rows.share < 1).tolist():
            sample, partner = inputs[i], inputs[rows.partner[i]]
            if rows.box[i].any():
                top, bottom, left, right = rows.box[i].tolist()
                sample[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
            else:
                # Two products and a sum: a fused form rounds differently, depending on a value's place in the batch.
                sample.mul_(float(rows.share[i])).add_(partner.mul_(1 - float(rows.share[i])))
        yield Batch(torch.from_numpy(rows.index), inputs[: len(rows.index)], rows.labels, view)


def mixed_images(
    split: Split, mixing: Mixing, requests: Iterable[NDArray[np.int64]], *, view: View, pin_memory: bool = False
) -> Iterator[tuple[MixedRows, Tensor]]:
    """Fetch batches in order, with their mixing: images of the samples, then of their partners.

    A partner comes with its own view of the epoch: its own crop, flip and operations. A sample whose partner cannot be
    read is not mixed.

    Returns:
        Soft labels ``share * onehot(label) + (1 - share) * onehot(partner's label)``, float32 ``(batch, classes)``;
        if no sample of the split has a label they stay indices, all -100. The images are those of
        `Split.stream_images`.
    """
    drawn: deque[tuple[NDArray[np.int64], Mix]] = deque()

    def with_partners() -> Iterator[NDArray[np.int64]]:
        for index in requests:
            mix = draw_mix(index, mixing=mixing, samples=len(split), view=view)
            drawn.append((index, mix))
            yield np.concatenate([index, mix.partner[mix.share < 1]])

    labelled = bool((split.labels != UNLABELLED).any())
    for readable, images in split.stream_images(with_partners(), view=view, pin_memory=pin_memory):
        assert isinstance(images, Tensor)  # A user's data set, whose samples may have several views, is not mixed.
        indices, mix = drawn.popleft()
        count, mixed = len(indices), np.flatnonzero(mix.share < 1)
        read = np.isin(np.concatenate([indices, mix.partner[mixed]]), readable)
        kept = read[:count]
        if not kept.any():
            expected = "at least 1 readable image in every batch"
            instead = "raise batch_size or remove the files that cannot be read"
            raise InvalidValueError("data.source", expected, f"none among {count}", instead)
        rows = np.cumsum(read) - 1
        partner, share, box = rows[:count].copy(), mix.share.copy(), mix.box.copy()
        partner[mixed] = rows[count:]
        alone = mixed[~read[count:]]
        partner[alone], share[alone], box[alone] = rows[alone], 1, 0
        index, other, own = (torch.from_numpy(array[kept]) for array in (indices, mix.partner, share))
        labels = split.labels[index]
        if labelled:
            soft, row = torch.zeros(len(index), mixing.classes, dtype=torch.float64), torch.arange(len(index))
            soft[row, labels] = own
            soft[row, split.labels[other]] += 1 - own
            labels = soft.float()
        yield MixedRows(indices[kept], labels, partner[kept], share[kept], box[kept]), images
