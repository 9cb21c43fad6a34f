"""What networks are judged by on a held-out set where a sample has no one class: folds over its batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from tutelage import records
from tutelage.types import UNLABELLED, Metric, Task

MEASURES: dict[Task, records.Measure] = {
    "labels": records.MEAN_AVERAGE_PRECISION,
    "pixels": records.MEAN_IOU,
    "embedding": records.RECALL_AT_1,
}
"""What networks are judged by, by task; embeddings without labels by their similarity to the teacher's."""
CHANCE = 0.01
"""Significance level at which a teacher must be better than chance."""
BLOCK = 1024
"""Number of embeddings that are compared with all others at a time."""


def of(task: Task, *, outputs: int) -> Metric | None:
    """Return the metric of a task, for networks of so many outputs; ``None`` for one class a sample."""
    match task:
        case "pixels":
            return MeanIoU()
        case "labels":
            return PerLabel(outputs)
        case "embedding":
            return Retrieval()
    return None


class MeanIoU:
    """Mean intersection over union of the classes, over all labelled positions of the set.

    ``IoU_k = n_kk / (sum_j n_kj + sum_j n_jk - n_kk)``, with ``n_jk`` the number of positions of label ``j`` that are
    given class ``k``. Classes that no position has or is given are left out of the mean.
    """

    of_classes = True

    def fold(self, state: Tensor | None, number: int, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        """Return the counts ``n``, ``(classes, classes)`` int64, with a batch's."""
        classes, known = logits.shape[-1], labels != UNLABELLED
        pairs = labels[known] * classes + logits.argmax(-1)[known]
        counts = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        return counts if state is None else state + counts

    def end(self, states: Sequence[Tensor]) -> dict[str, float | None]:
        """Return ``mean_iou``, a fraction; ``None`` if no position has a label."""
        counts = sum(states).double() if states else torch.zeros(1, 1)  # type: ignore[union-attr]
        right = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - right
        present = union > 0
        return {"mean_iou": float((right[present] / union[present]).mean()) if bool(present.any()) else None}

    def beats_chance(self, states: Sequence[Tensor]) -> None:
        """Return ``None``: neighbouring pixels are alike, so that their number says little."""


@dataclass(frozen=True)
class PerLabel:
    """Average precision and F1 of each label's answers, over the samples in which it is known.

    Average precision is the sum over a label's samples, in the order of falling score, of precision times the rise of
    recall; samples of equal score are taken together. F1 is ``2 tp / (2 tp + fp + fn)`` of the answers whose
    probability is above 1/2. Labels that no sample has are left out of the means.

    Args:
        labels: number of labels of a sample.
    """

    labels: int
    of_classes = True

    def fold(
        self,
        state: dict[int, tuple[Tensor, Tensor]] | None,
        number: int,
        logits: Tensor,
        labels: Tensor,
        teacher: Tensor | None,
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the scores and labels of the batches by number, each ``(samples, labels)``, with another's."""
        state = {} if state is None else state
        state[number] = ((logits[:, 1] - logits[:, 0]).reshape(-1, self.labels), labels.reshape(-1, self.labels))
        return state

    def end(self, states: Sequence[dict[int, tuple[Tensor, Tensor]]]) -> dict[str, Any]:
        """Return ``mean_average_precision``, ``macro_f1`` and ``micro_f1``; ``None`` if no label has a sample.

        For the judgement ``average_precision`` is that of each label; accuracy by class, of no and yes, is left out.
        """
        scores, labels = _joined(states)
        given, holds = scores > 0, labels == 1
        tp = (given & holds).sum(0).double()
        errors = ((given != holds) & (labels != UNLABELLED)).sum(0).double()
        present = (labels == 1).any(0)
        if not bool(present.any()):
            return {**dict.fromkeys(("mean_average_precision", "macro_f1", "micro_f1")), "per_class": []}
        each = [_average_precision(scores[:, k], labels[:, k]) if present[k] else None for k in range(self.labels)]
        precision = [value for value in each if value is not None]
        f1 = 2 * tp / (2 * tp + errors).clamp(min=1)
        return {
            "mean_average_precision": math.fsum(precision) / len(precision),
            "macro_f1": float(f1[present].mean()),
            "micro_f1": float(2 * tp.sum() / (2 * tp.sum() + errors.sum()).clamp(min=1)),
            "average_precision": each,
            "per_class": [],
        }

    def beats_chance(self, states: Sequence[dict[int, tuple[Tensor, Tensor]]]) -> bool | None:
        """Return whether the samples of some label are ranked above the others, by one-sided Mann-Whitney tests.

        Labels depend on each other, so each test is at `CHANCE` over their number. A share of right answers would tell
        nothing: where most labels are rare, no for all of them is mostly right.
        """
        scores, labels = _joined(states)
        pairs = [(scores[labels[:, k] == 1, k], scores[labels[:, k] == 0, k]) for k in range(self.labels)]
        pairs = [(held, other) for held, other in pairs if len(held) and len(other)]
        level = CHANCE / max(len(pairs), 1)
        tests = (mannwhitneyu(held.numpy(), other.numpy(), alternative="greater").pvalue for held, other in pairs)
        return any(pvalue < level for pvalue in tests) if pairs else None


def _joined(states: Sequence[dict[int, tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor]:
    """Return all samples' scores and labels."""
    batches = [batch for state in states for _, batch in sorted(state.items())]
    scores, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return scores, labels


def _average_precision(scores: Tensor, labels: Tensor) -> float:
    """Return the average precision of one label, of which some sample is positive."""
    known = labels != UNLABELLED
    scores, order = scores[known].sort(descending=True)
    positives = (labels[known][order] == 1).double().cumsum(0)
    last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])  # of those of equal score
    found = positives[last]
    precision = found / (torch.arange(1, len(scores) + 1)[last])
    return float((precision * torch.diff(found, prepend=found.new_zeros(1))).sum() / positives[-1])


class Retrieval:
    """Whether an embedding's nearest neighbour in the set has the same label, and how near the teacher's is.

    Both are by cosine similarity ``x y / (|x| |y|)``. Samples without a label are neither asked nor found; those whose
    label no other sample has count as missed. Of equally near neighbours the first in the set is taken.
    """

    of_classes = False

    def fold(
        self,
        state: dict[int, tuple[Tensor, Tensor, list[float]]] | None,
        number: int,
        logits: Tensor,
        labels: Tensor,
        teacher: Tensor | None,
    ) -> dict[int, tuple[Tensor, Tensor, list[float]]]:
        """Return the directions, labels and similarities of the batches by number, with another's."""
        cosine: list[float] = []
        if teacher is not None and teacher.shape == logits.shape:  # One of another width is compared in nothing.
            cosine = torch.cosine_similarity(logits.double(), teacher.double()).tolist()
        known = labels != UNLABELLED
        found = torch.nn.functional.normalize(logits[known].float(), dim=-1)
        state = {} if state is None else state
        state[number] = (found, labels[known], cosine)
        return state

    def end(self, states: Sequence[dict[int, tuple[Tensor, Tensor, list[float]]]]) -> dict[str, float | None]:
        """Return ``recall_at_1``, ``None`` without labels, and ``cosine`` where there is a teacher."""
        merged = {number: batch for state in states for number, batch in state.items()}
        batches = [merged[number] for number in sorted(merged)]
        cosine = [value for *_, values in batches for value in values]
        measures: dict[str, float | None] = {"cosine": math.fsum(cosine) / len(cosine)} if cosine else {}
        found = torch.cat([batch[0] for batch in batches])
        labels = torch.cat([batch[1] for batch in batches])
        if len(labels) < 2:
            return {"recall_at_1": None, **measures}
        right = 0
        for first in range(0, len(found), BLOCK):
            similarity = found[first : first + BLOCK] @ found.T
            rows = torch.arange(len(similarity))
            similarity[rows, first + rows] = -math.inf
            right += int((labels[similarity.argmax(1)] == labels[first : first + BLOCK]).sum())
        return {"recall_at_1": right / len(found), **measures}

    def beats_chance(self, states: Sequence[dict[int, tuple[Tensor, Tensor, list[float]]]]) -> None:
        """Return ``None``: an untrained network's neighbours are often of one label."""
