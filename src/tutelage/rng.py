"""Randomness as a pure function: a counter hash of (seed, epoch, sample, stream), vectorised over samples.

As no generator has state, order and augmentation are the same for any number of workers and processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.types import View

# Streams: each random decision about a sample draws from its own.
ORDER, TOP, LEFT, FLIP, VALIDATION, LABELLED, TEST, OWN, BOX_TOP, BOX_LEFT = range(10)
ERASE, ERASE_TOP, ERASE_LEFT, ERASE_NOISE = range(10, 14)
MIX, PARTNER, SHARE, SWITCH, CUT_TOP, CUT_LEFT = range(14, 20)
TRANSFORM, NEGATIVES, DELAY, BATCH_ORDER, PLACE, CLASS_MEMBER, CLASS_TURN = range(20, 27)
ON_POLICY, WRITTEN, TEACHER_DRAW, STRONG = range(28, 32)
UNIT_ORDER = 32  # first of one stream per level of units
# First of one stream per attempt at a random box or rectangle.
BOX_AREA, BOX_RATIO, ERASE_AREA, ERASE_RATIO = range(64, 320, 64)
# First of one stream per RandAugment operation on an image.
RAND_NAME, RAND_APPLY, RAND_MAGNITUDE, RAND_SIGN = range(1 << 20, 5 << 20, 1 << 20)

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _mix(value: Any) -> Any:
    """Mix an integer, or an array of uint64."""
    value = value & _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def draw(seed: int, epoch: int, index: NDArray[np.integer], stream: int) -> NDArray[np.uint64]:
    """Hash samples to 64 uniform bits each.

    ``draw = mix(key + (index + 1) * golden)``, where ``key`` chains the same ``mix`` over seed, epoch and stream: the
    counter is SplitMix64's, so for fixed seed, epoch and stream no two samples share a value.

    Args:
        seed: any integer, taken modulo 2**64.
        epoch: any integer, likewise.
        index: non-negative integers of any shape.
        stream: number of the sample's independent draw: a constant of this module.

    Returns:
        uint64, the shape of ``index``.

    Source: SplitMix64 of Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    >>> draw(0, 0, np.arange(3), ORDER).tolist() == [int(draw(0, 0, np.array([i]), ORDER)[0]) for i in range(3)]
    True
    """
    key = 0
    for part in (seed, epoch, stream):
        key = _mix(key + part + _GOLDEN)
    counter = np.atleast_1d(np.asarray(index)).astype(np.uint64) + np.uint64(1)
    bits: NDArray[np.uint64] = _mix(np.uint64(key) + counter * np.uint64(_GOLDEN))
    return bits.reshape(np.shape(index))


def draw_series(seeds: NDArray[np.uint64], counts: NDArray[np.int64], stream: int) -> NDArray[np.uint64]:
    """Return ``draw(seed, 0, arange(count), stream)`` for each seed and its count, concatenated."""
    key = _mix(seeds + np.uint64(_GOLDEN))
    for part in (0, stream):
        key = _mix(key + np.uint64((part + _GOLDEN) & _MASK))
    counter = np.arange(1, counts.sum() + 1) - np.repeat(np.cumsum(counts) - counts, counts)
    bits: NDArray[np.uint64] = _mix(np.repeat(key, counts) + counter.astype(np.uint64) * np.uint64(_GOLDEN))
    return bits


def tensor_draw(seed: int, epoch: int | Tensor, index: Tensor, stream: int) -> Tensor:
    """Return the bits of `draw` as int64, computed where ``index`` lies; the host does not wait for it.

    Args:
        seed: as for `draw`.
        epoch: as for `draw`; a ``()`` int64 tensor too, on the device of ``index``.
        index: non-negative int64, of any shape.
        stream: as for `draw`.
    """
    key = torch.full((), _signed(_mix(seed + _GOLDEN)), dtype=torch.int64, device=index.device)
    for part in (epoch if isinstance(epoch, Tensor) else _signed(epoch), stream):
        key = _mix_tensor(key + part + _signed(_GOLDEN))
    return _mix_tensor(key + (index + 1) * _signed(_GOLDEN))


def tensor_series(bits: Tensor, count: int) -> Tensor:
    """Return ``count`` further hashes of each hash, ``(..., count)`` int64: SplitMix64 with that state."""
    return _mix_tensor(bits[..., None] + torch.arange(1, count + 1, device=bits.device) * _signed(_GOLDEN))


def tensor_integers(bits: Tensor, bound: int | Tensor) -> Tensor:
    """Map int64 hashes to integers as `integers` does, for ``1 <= bound < 2**31``."""
    return _shifted(bits, 32) * bound >> 32


def _mix_tensor(value: Tensor) -> Tensor:
    """Mix int64, whose products wrap, as `_mix` does."""
    value = (value ^ _shifted(value, 30)) * _signed(_FIRST)
    value = (value ^ _shifted(value, 27)) * _signed(_SECOND)
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, by: int) -> Tensor:
    """Shift int64 to the right, with zeros in front."""
    return (value >> by) & (_MASK >> by)


def _signed(value: int) -> int:
    """Return the int64 with the bits of an integer modulo 2**64."""
    return (value + (1 << 63) & _MASK) - (1 << 63)


def integers(bits: NDArray[np.uint64], bound: int) -> NDArray[np.int64]:
    """Map hashes to integers in ``[0, bound)``, uniform to within ``bound / 2**32``; ``1 <= bound <= 2**32``."""
    return (((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map hashes to float64 in ``[0, 1)``, multiples of ``2**-53``."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def view_integers(view: View, index: NDArray[np.int64], stream: int, bound: int) -> NDArray[np.int64]:
    """Draw an integer in ``[0, bound)`` per sample of a view."""
    return integers(draw(view.seed, view.epoch, index, stream), bound)


def view_uniform(view: View, index: NDArray[np.int64], stream: int) -> NDArray[np.float64]:
    """Draw a number in ``[0, 1)`` per sample of a view."""
    return uniform(draw(view.seed, view.epoch, index, stream))


def strong_view(view: View) -> View:
    """Return the view from which a sample's strong view is drawn, beside this one: the same epoch, another seed."""
    return View(int(draw(view.seed, 0, np.zeros(1, np.int64), STRONG)[0]), view.epoch)


def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Return the order of ``count`` samples in an epoch: the stable argsort of their hashes."""
    return np.argsort(draw(seed, epoch, np.arange(count), ORDER), kind="stable")


def in_turn(seed: int, epoch: int, samples: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the ``count`` of some samples that an epoch takes where each epoch goes on behind the one before.

    They are walked through in one permutation after the other, so none comes again before all have come.

    Args:
        seed: as of `permutation`.
        epoch: likewise, at least 0.
        samples: indices of at least 1 sample.
        count: number per epoch.
    """
    first, behind = epoch * count, (epoch + 1) * count
    rounds = [
        samples[np.argsort(draw(seed, number, samples, ORDER), kind="stable")]
        for number in range(first // len(samples), -(-behind // len(samples)))
    ]
    return np.concatenate([samples[:0], *rounds])[first % len(samples) :][:count]


def balanced(seed: int, epoch: int, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the samples that an epoch takes where all classes take turns, as many as there are labels.

    The turns go on from epoch to epoch. In each round every class has one, in an order drawn by hash, so that equal
    numbers of turns have each class equally often, up to the rounds that are not whole. A class's samples are walked
    through in one permutation after the other: none comes again before all others of its class have come.

    Args:
        seed: as of `permutation`.
        epoch: likewise, at least 0.
        labels: class of each sample, ``(samples,)``, below 0 for those without; at least one has a class.

    Returns:
        ``(labelled samples,)``.
    """
    members = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
    classes = np.split(members, np.flatnonzero(np.diff(labels[members])) + 1)
    turns = np.arange(epoch * len(members), (epoch + 1) * len(members))
    rounds, drawn = turns // len(classes), np.empty_like(turns)
    for k, samples in enumerate(classes):
        own = slice((k - turns[0]) % len(classes), None, len(classes))
        if not len(walked := rounds[own]):  # in each round one
            continue
        walks = np.arange(walked[0] // len(samples), walked[-1] // len(samples) + 1)
        bits = draw(seed, 0, walks[:, None] * len(labels) + samples, CLASS_MEMBER)
        order = samples[np.argsort(bits, axis=1, kind="stable")].ravel()
        drawn[own] = order[walked[0] % len(samples) :][: len(walked)]
    return drawn[np.lexsort((draw(seed, 0, turns, CLASS_TURN), rounds))]


def spread(
    seed: int, epoch: int, first: NDArray[np.int64], second: NDArray[np.int64], *, batch_size: int
) -> NDArray[np.int64]:
    """Return the samples of two orders as one, in which each batch has its share of both, up to rounding.

    Both keep their order from batch to batch; inside a batch the places are drawn by hash, so that the parts of a batch
    have about its share too.
    """
    place = np.arange(len(first) + len(second))
    is_second = (place + 1) * len(second) // len(place) > place * len(second) // len(place)
    order = np.empty(len(place), np.int64)
    order[is_second], order[~is_second] = second, first
    return order[np.lexsort((draw(seed, epoch, place, PLACE), place // batch_size))]


def bucketed(
    seed: int,
    epoch: int,
    order: NDArray[np.int64],
    lengths: NDArray[np.integer],
    *,
    batch_size: int,
    window: int,
    first_of_second: int | None = None,
) -> NDArray[np.int64]:
    """Return an order of the samples in an epoch in which those of similar length share a batch.

    The order is cut in windows of so many whole batches; in each, samples are sorted by length, equal ones as they
    stood, and the batches come in an order drawn by hash. The samples of an incomplete last batch stay where they are.

    Args:
        seed: as of `permutation`.
        epoch: likewise.
        order: order of the samples.
        lengths: length of each sample, ``(samples,)``.
        batch_size: samples per batch.
        window: batches per window, at least 1; 1 leaves the batches as they are.
        first_of_second: sample from which on they are of another kind than those before it: each kind is sorted in its
            own places, so that every batch keeps its share of both. ``None`` for one kind.
    """
    whole = len(order) // batch_size
    if window > 1 and whole:
        order = order.copy()
        rank = np.arange(whole * batch_size) // (window * batch_size)  # window of each place
        head = order[: len(rank)]
        second = np.zeros(len(head), bool) if first_of_second is None else head >= first_of_second
        for places in (np.flatnonzero(~second), np.flatnonzero(second)):
            head[places] = head[places][np.lexsort((lengths[head[places]], rank[places]))]
        numbers = np.arange(whole)
        drawn = np.lexsort((draw(seed, epoch, numbers, BATCH_ORDER), numbers // window))
        order[: len(rank)] = head.reshape(whole, batch_size)[drawn].ravel()
    return order


def buffered_permutation(seed: int, epoch: int, units: NDArray[np.integer], buffer: int) -> NDArray[np.int64]:
    """Return the order of samples in an epoch that are read unit by unit and shuffled in a buffer.

    The units, such as shards, are read one after the other in an order drawn by hash, in each of them the units of the
    next level likewise, and the samples of the last in their own order. The ``n``-th sample that is read is given out
    at ``n`` plus a delay, uniform in ``[0, buffer)``: so at most ``buffer`` samples are read and not given out yet.

    Args:
        seed: as of `permutation`.
        epoch: likewise.
        units: number of each sample's unit at each level, ``(samples, levels)``.
        buffer: number of samples that are held, at least 1.
    """
    keys = []
    for level, numbers in enumerate(units.T):
        keys += [draw(seed, epoch, numbers, UNIT_ORDER + level), numbers]  # units whose hashes agree stay apart
    read = np.lexsort(keys[::-1])  # which is stable
    delay = integers(draw(seed, epoch, read, DELAY), buffer)
    order: NDArray[np.int64] = read[np.argsort(np.arange(len(read)) + delay, kind="stable")]
    return order


def next_unit(view: View | None, units: NDArray[np.integer], count: int) -> int | None:
    """Return which of ``count`` units of the first level is read after all the given ones; ``None`` after the last.

    Without a view they are read in order.
    """
    numbers = np.arange(count)
    order = numbers if view is None else np.lexsort((numbers, draw(view.seed, view.epoch, numbers, UNIT_ORDER)))
    last = int(np.flatnonzero(np.isin(order, units)).max(initial=-1))
    return int(order[last + 1]) if last + 1 < count else None


@contextmanager
def seeded() -> Iterator[Callable[[int], None]]:
    """Yield what seeds the CPU's global generators (Python's, NumPy's, torch's), which are restored afterwards.

    Only where no other thread draws from them meanwhile, such as the training loop's dropout.
    """
    # torch.manual_seed would reset the accelerators' generators as well, which belong to the training loop.
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield _seed
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_state)


def _seed(bits: int) -> None:
    random.seed(bits)
    np.random.seed(bits & 0xFFFFFFFF)
    torch.default_generator.manual_seed(bits >> 1)
