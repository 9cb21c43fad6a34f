"""Counts that are kept on the device while training, and the means that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tutelage import losses, records, targets
from tutelage.checks import widened
from tutelage.losses.sparse import likeliest, sparse_matching
from tutelage.modules import StepOutput
from tutelage.objectives import BoundObjective
from tutelage.types import UNLABELLED, Batch, Outputs, Totals
from tutelage.views import positions_of

COUNTED = ("correct", "labelled", "entropy", "kl", "agree", "samples", "positions", "skipped")
"""Names of the sums: over positions that count, but for the number of samples and that of skipped steps."""


class EpochMetrics:
    """The sums of an epoch, and the means that follow from them.

    Attributes:
        names: names of the sums: the loss, each term, and the counts.
        zeros: sums before the first step, ``(len(names),)`` float64.
        skipped_sums: sums of a step that is not applied.
    """

    def __init__(self, objective: BoundObjective, device: torch.device) -> None:
        self.objective = objective
        self.names = ("loss", *objective.names, *COUNTED)
        self.zeros = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        self.skipped_sums = torch.tensor([float(name == "skipped") for name in self.names], dtype=torch.float64).to(
            device
        )

    def restored(self, sums: Tensor) -> Tensor:
        """Return sums of a checkpoint; those of older versions lack the positions, which were the samples."""
        if sums.shape != (len(self.names) - 1,):
            return sums
        *_, samples, skipped = sums.split(1)
        return torch.cat([sums[:-1], samples, skipped])

    @torch.no_grad()
    def measure(self, batch: Batch, teacher: Outputs | None, output: StepOutput, totals: Totals) -> Tensor:
        """Return a micro-batch's share of the sums; what depends on logits is NaN without any of classes."""
        # Terms are already means over the whole step; the epoch's mean weights each step by what they are means over.
        positions, labelled = totals.positions.double(), totals.labelled.double()
        sums = [output.loss.total * positions]
        for name, part in output.loss.parts.items():
            sums.append(part * (labelled if name in self.objective.supervised else positions))
        sums += self._counts(batch, teacher, output.outputs)
        return torch.stack([value.double() for value in sums])

    def _counts(self, batch: Batch, teacher: Outputs | None, student: Outputs) -> list[Tensor]:
        """Return the sums named in `COUNTED`."""
        labels = batch.labels.argmax(-1) if batch.labels.is_floating_point() else batch.labels
        zero = student.logits.new_zeros((), dtype=torch.float64)
        counted = batch.counted

        def summed(values: Tensor) -> Tensor:
            return (values if counted is None else torch.where(counted, values, 0)).sum()

        kl = agree = zero
        if student.hidden is not None or self.objective.needs.embeddings:
            correct = entropy = kl = agree = zero + torch.nan
        else:
            logits = widened(student.logits)
            log_q, predicted = logits.log_softmax(-1), logits.argmax(-1)
            if teacher is not None and positions_of(batch, "teacher") is not counted:
                kl = agree = zero + torch.nan  # At positions of its own it answers nothing that the student does.
            elif teacher is not None and (sparse := teacher.sparse) is not None:
                agree = summed(predicted == likeliest(sparse))
                if self.objective.target_gamma is not None:
                    kl = summed(sparse_matching(logits, sparse, gamma=self.objective.target_gamma)[0])
            elif teacher is not None:
                v = widened(teacher.logits)
                agree = summed(predicted == v.argmax(-1))
                if self.objective.target_gamma is not None:
                    kl = summed(losses.kl_divergence(log_q, (self.objective.target_gamma * v).log_softmax(-1)))
            correct, entropy = summed(predicted == labels), summed(targets.shannon_entropy(log_q))
        positions = zero + labels.numel() if counted is None else counted.sum()
        return [correct, summed(labels != UNLABELLED), entropy, kl, agree, zero + len(batch.index), positions, zero]

    def means(self, sums: Mapping[str, float], *, has_teacher: bool) -> records.TrainMeans:
        """Turn an epoch's sums, over all processes, into means."""
        n, labelled = max(sums["positions"], 1.0), max(sums["labelled"], 1.0)
        means: records.TrainMeans = {
            "loss": sums["loss"] / n,
            "terms": {
                name: sums[name] / (labelled if name in self.objective.supervised else n)
                for name in self.objective.names
            },
            "accuracy": _mean(sums["correct"], sums["labelled"]) if sums["labelled"] else None,
            "entropy": _mean(sums["entropy"], n),
            "kl_to_target": _mean(sums["kl"], n) if has_teacher and self.objective.target_gamma is not None else None,
            "agreement": _mean(sums["agree"], n) if has_teacher else None,
            "samples": int(sums["samples"]),
        }
        if sums["labelled"] < sums["positions"] and sums["positions"] > sums["samples"]:
            means["unlabelled"] = int(sums["positions"] - sums["labelled"])
        return means


def _mean(total: float, n: float) -> float | None:
    """Return a mean; ``None`` if the total is not known."""
    return None if math.isnan(total) else total / n
