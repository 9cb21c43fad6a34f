"""Which samples a contrast is drawn against."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.types import UNLABELLED


class OtherClasses(nn.Module):
    """Draws, for each sample of a batch, samples of other classes, from torch's generator of the batch's device.

    They are drawn without replacement, and each sample's apart from the others'; a sample that has fewer others than
    are asked for gets them with replacement. An unlabelled sample is a class of its own. The order of a sample's
    negatives is of no meaning.

    Args:
        labels: of all samples, ``(samples,)`` int64, -100 where unlabelled; or float ``(samples, classes)``, of which
            the largest counts.
        count: how many a sample gets.

    Raises:
        ValueError: all the samples are of one class.
    """

    def __init__(self, labels: Tensor, *, count: int) -> None:
        super().__init__()
        self.count = count
        classes = labels.argmax(-1) if labels.is_floating_point() else labels
        alone = classes.amax() + 1 + torch.arange(len(classes), device=classes.device)
        classes = torch.where(classes == UNLABELLED, alone, classes)
        _, place, sizes = classes.unique(return_inverse=True, return_counts=True)
        fewest = len(classes) - int(sizes.max())
        if not fewest:
            raise ValueError(
                f"labels: expected at least 2 classes among {len(classes)} training samples, whose samples are each "
                "other's negatives, got 1; choose other data, or leave the contrast out"
            )
        self._some_with_replacement = fewest < count
        self._all_with_replacement = len(classes) - int(sizes.min()) < count
        # Sorted by class, a sample's others are all places but one stretch.
        self.register_buffer("sorted", classes.argsort(stable=True), persistent=False)
        self.register_buffer("start", (sizes.cumsum(0) - sizes)[place], persistent=False)
        self.register_buffer("size", sizes[place], persistent=False)
        self.sorted: Tensor
        self.start: Tensor
        self.size: Tensor

    def forward(self, index: Tensor) -> Tensor:
        """Return ``(batch, count)`` int64 places for samples at ``index``, ``(batch,)``."""
        start, size = self.start[index, None], self.size[index, None]
        return self._one_by_one(start, size) if index.device.type == "cpu" else self._at_once(start, size)

    def _one_by_one(self, start: Tensor, size: Tensor) -> Tensor:
        """Shuffle a sample's others, a sample at a time: on a CPU this costs least."""
        rows = torch.empty(len(start), self.count, dtype=torch.int64)
        for row, begin, own in zip(rows, start.flatten().tolist(), size.flatten().tolist(), strict=True):
            others = len(self.sorted) - own
            enough = others >= self.count
            picks = torch.randperm(others)[: self.count] if enough else torch.randint(others, (self.count,))
            torch.index_select(self.sorted, 0, picks + (picks >= begin) * own, out=row)
        return rows

    def _at_once(self, start: Tensor, size: Tensor) -> Tensor:
        """Give every sample a random key and take the smallest keys: on an accelerator nothing waits for the host."""
        samples, device = len(self.sorted), start.device
        picks = torch.empty(len(start), self.count, dtype=torch.int64, device=device)
        if not self._all_with_replacement:
            keys = torch.rand(len(start), samples, device=device)
            places = torch.arange(samples, device=device)
            keys.masked_fill_((places >= start) & (places < start + size), 2.0)
            picks = keys.topk(self.count, largest=False, sorted=False).indices
        if self._some_with_replacement:
            others = samples - size
            again = (torch.rand(len(start), self.count, dtype=torch.float64, device=device) * others).long()
            again += (again >= start) * size
            picks = torch.where(others < self.count, again, picks)
        return self.sorted[picks]
