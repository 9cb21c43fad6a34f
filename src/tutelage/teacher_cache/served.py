"""A served teacher: its answers for all samples are known, and no network is asked."""

from __future__ import annotations

import torch

from tutelage.teacher_cache.cache import rows_of_positions
from tutelage.types import Batch, Outputs, Served, Sparse


class ServedTeacher:
    """A teacher whose answers came with the data: a `types.Teacher`.

    Args:
        served: answers for the samples, which a batch names by their index.
        device: device of the returned tensors.
    """

    def __init__(self, served: Served, device: torch.device | str = "cpu") -> None:
        values, index, level, classes, _ = served.logits
        self._logits = Sparse(values.to(device), index.to(device), level.to(device), classes)
        self._offsets = served.offsets.to(device)

    def __call__(self, batch: Batch) -> Outputs:
        """Return the answers, `Sparse` ``(batch, *positions)``: those of a position that is not counted are another's.

        At temperature 1 they are log-probabilities, and the level spreads what is left over the other classes.
        """
        values, index, level, classes, _ = self._logits
        counted = torch.ones_like(batch.labels, dtype=torch.bool) if batch.counted is None else batch.counted
        rank = counted.flatten(1).cumsum(1)
        rows = rows_of_positions(self._offsets, batch.index, rank, last=len(level) - 1).view(counted.shape)
        return Outputs(values[rows][..., :0], sparse=Sparse(values[rows], index[rows], level[rows], classes))
