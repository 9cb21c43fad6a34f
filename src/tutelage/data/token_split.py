"""The split whose samples are token ids, held in memory and padded batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.datasets import Split
from tutelage.rng import bucketed
from tutelage.types import PADDING, UNLABELLED, Inputs, View


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids, parts of one array that may overlap.

    Attributes:
        ids: all ids, ``(tokens,)``, int32, or uint16 where they are small.
        starts: place of each row's first token, ``(rows,)``.
        lengths: number of tokens of each row, ``(rows,)``, at least 1.
    """

    ids: NDArray[np.integer]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def places(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the place of each token of rows, and whether there is one: ``(batch, longest)`` both."""
        lengths = self.lengths[index][:, None]
        columns = np.arange(lengths.max(initial=1))
        return self.starts[index][:, None] + np.minimum(columns, lengths - 1), columns < lengths

    def taken(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids at places, as int64."""
        return self.ids[places].astype(np.int64)


def flat(samples: Iterable[NDArray[np.integer]], *, size: int) -> NDArray[np.integer]:
    """Return the ids of samples, each below ``size``, one after another."""
    dtype = np.uint16 if size <= 2**16 else np.int32
    return np.concatenate([np.empty(0, dtype), *(ids.astype(dtype) for ids in samples)])


@dataclass(frozen=True, kw_only=True)
class TokenSplit(Split):
    """Texts as token ids: inputs ``(batch, tokens)`` int64, `PADDING` behind each text up to the batch's longest.

    Attributes:
        rows: tokens by the name of the network that reads them, or under ``""`` the same for all.
        bucket_batches: batches in a window of `order`, inside which samples of similar length share a batch.
        targets_counted: whether the loss counts each id of the one array as a target, ``(tokens,)``, if every token has
            a label, the one behind it, which is then in the array behind each row; ``None`` if each text has one.
        targets_aligned: which of these targets come behind the same text as one of another vocabulary does.
        teachers: the same samples as a teacher of another vocabulary reads them, with targets of its own; ``None``
            where all networks have the same targets.
    """

    rows: Mapping[str, TokenRows]
    bucket_batches: int = 1
    targets_counted: NDArray[np.bool_] | None = None
    targets_aligned: NDArray[np.bool_] | None = None
    teachers: TokenSplit | None = None

    @property
    def for_teacher(self) -> TokenSplit:
        """The samples as the teacher reads them, with the targets that it has."""
        return self.teachers or self

    @property
    def per_position(self) -> bool:
        """Whether each token has a label, the next one."""
        return self.targets_counted is not None

    @property
    def longest(self) -> int:
        """Largest number of tokens of a sample."""
        return int(self._lengths.max(initial=0))

    def largest(self, count: int) -> NDArray[np.int64]:
        """Return the indices of the longest samples, at most so many."""
        return np.argsort(-self._lengths, kind="stable")[:count]

    @property
    def _lengths(self) -> NDArray[np.int64]:
        """Largest number of tokens of each sample."""
        others = [] if self.teachers is None else [self.teachers._lengths]
        return np.max([*(rows.lengths for rows in self.rows.values()), *others], axis=0)

    def order(self, seed: int, epoch: int, *, batch_size: int) -> NDArray[np.int64]:
        """Return the order of the training samples in an epoch, in buckets of the longest tokens' number.

        Balanced, there are no buckets: a batch would be filled with one text of a small class.
        """
        lengths = self._lengths
        return bucketed(
            seed,
            epoch,
            super().order(seed, epoch, batch_size=batch_size),
            lengths,
            batch_size=batch_size,
            window=1 if self.balanced else self.bucket_batches,
            first_of_second=self.unlabelled.first if self.unlabelled is not None and self.unlabelled.share else None,
        )

    def fetch(self, index: NDArray[np.int64], *, view: View | None = None) -> Inputs:
        """Return token ids ``(batch, tokens)`` int64, by network's name where each has its own; no view varies them."""
        ids = {}
        for name, rows in self.rows.items():
            places, present = rows.places(index)
            ids[name] = torch.from_numpy(np.where(present, rows.taken(places), PADDING))
        if self.teachers is None:
            return ids.get("", ids)
        masks = {
            "teacher_counted": self.teachers._at(index, self.teachers.targets_counted),
            "student_aligned": self._at(index, self.targets_aligned),
            "teacher_aligned": self.teachers._at(index, self.teachers.targets_aligned),
        }
        theirs = self.teachers.fetch(index)
        assert isinstance(theirs, Tensor)
        return {"student": ids[""], "teacher": theirs} | {k: torch.from_numpy(mask) for k, mask in masks.items()}

    def targets(self, index: Tensor, inputs: Inputs, view: View | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the labels of samples, and which of their positions count, as in `types.Batch`.

        Of tokens both are ``(batch, tokens)``: the next token, -100 where it is not counted.
        """
        if self.targets_counted is None:
            return self.labels[index], None
        (rows,) = self.rows.values()
        places, _ = rows.places(index.numpy())
        counted = self._at(index.numpy(), self.targets_counted)
        labels = np.where(counted, rows.taken(places + 1), UNLABELLED)
        return torch.from_numpy(labels), torch.from_numpy(counted)

    def _at(self, index: NDArray[np.int64], targets: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """Return which positions of samples have a target that is one of these, ``(batch, tokens)``."""
        (rows,) = self.rows.values()
        places, present = rows.places(index)
        assert targets is not None
        return present & targets[places + 1]
