"""What is counted while training, on the device, and the means that come of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tutelage import losses, records, targets
from tutelage.modules import StepOutput
from tutelage.objectives import BoundObjective
from tutelage.training.evaluate import NAMED, NonFiniteError
from tutelage.types import UNLABELLED, Batch, Outputs, Totals

COUNTED = ("correct", "labelled", "entropy", "kl", "agree", "samples", "skipped")


class EpochMetrics:
    """The sums of one epoch, and a log of its first non-finite step; both stay on the device until they are read.

    Attributes:
        names: of the sums: the loss, each term, and what is counted.
        sums: ``(len(names),)`` float64.
        nonfinite_log: int64: the first non-finite step, how many of its samples are not finite, and which; -1 for none.
    """

    def __init__(self, objective: BoundObjective, device: torch.device) -> None:
        self.objective, self.device = objective, device
        self.names = ("loss", *objective.names, *COUNTED)
        self.clear()

    def clear(self) -> None:
        """Begin an epoch."""
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self.nonfinite_log = torch.full((2 + NAMED,), -1, dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def measure(
        self, batch: Batch, teacher: Outputs | None, output: StepOutput, totals: Totals
    ) -> tuple[Tensor, Tensor]:
        """Return a micro-batch's share of the epoch's sums, and which of its samples are not finite."""
        logits = output.outputs.logits.float()
        log_q = logits.log_softmax(-1)
        labels = batch.labels.argmax(-1) if batch.labels.is_floating_point() else batch.labels
        predicted = logits.argmax(-1)
        zero = logits.new_zeros(())
        kl = agree = zero
        suspect = ~torch.isfinite(logits).all(-1)
        if teacher is not None:
            v = teacher.logits.float()
            suspect |= ~torch.isfinite(v).all(-1)
            agree = (predicted == v.argmax(-1)).sum()
            if self.objective.target_gamma is not None:
                kl = losses.kl_divergence(log_q, (self.objective.target_gamma * v).log_softmax(-1)).sum()
        # Terms are means over the whole step already; the epoch's mean weighs each step by what they are means over.
        sums = [output.loss.total * totals.samples.double()]
        for name, part in output.loss.parts.items():
            over = totals.labelled if name in self.objective.supervised else totals.samples
            sums.append(part * over.double())
        sums += [(predicted == labels).sum(), (labels != UNLABELLED).sum(), targets.shannon_entropy(log_q).sum()]
        sums += [kl, agree, zero + len(batch.index), zero]
        return torch.stack([value.detach().double() for value in sums]), suspect

    def add(self, sums: Tensor, finite: Tensor, suspect: Tensor, index: Tensor, *, step: int) -> None:
        """Add a step's sums; of one that was not finite, count it as skipped, and log the epoch's first."""
        sums = torch.where(finite, sums, 0.0)
        sums[-1] = (~finite).double()
        self.sums += sums
        samples = torch.where(suspect, index, -1).sort(descending=True).values[:NAMED]
        entry = torch.full_like(self.nonfinite_log, -1)
        entry[0] = step
        entry[1] = suspect.sum()
        entry[2 : 2 + len(samples)] = samples
        self.nonfinite_log = torch.where(~finite & (self.nonfinite_log[0] < 0), entry, self.nonfinite_log)

    def raise_if_nonfinite(self, *, stage: int) -> None:
        """Read the log, and stop the run if a step was not finite.

        Raises:
            NonFiniteError: naming the step and its samples.
        """
        step, count, *samples = self.nonfinite_log.tolist()
        if step < 0:
            return
        bad = sorted(i for i in samples if i >= 0)
        named = ", ".join(map(str, bad)) or "none alone (the loss or a gradient was)"
        more = f" and {count - NAMED} more" if count > NAMED else ""
        raise NonFiniteError(
            f"step {step + 1} of stage {stage + 1}: expected a finite loss and gradient, got NaN or infinity; "
            f"samples with non-finite student or teacher logits: {named}{more}; the step was not applied: "
            "look at these samples or lower optimizer.lr, or type nonfinite=skip to continue without such steps"
        )

    def means(self, sums: Mapping[str, float], *, has_teacher: bool) -> records.TrainMeans:
        """Turn an epoch's sums, over all processes, into means."""
        n, labelled = max(sums["samples"], 1.0), max(sums["labelled"], 1.0)
        return {
            "loss": sums["loss"] / n,
            "terms": {
                name: sums[name] / (labelled if name in self.objective.supervised else n)
                for name in self.objective.names
            },
            "accuracy": sums["correct"] / sums["labelled"] if sums["labelled"] else None,
            "entropy": sums["entropy"] / n,
            "kl_to_target": sums["kl"] / n if has_teacher and self.objective.target_gamma is not None else None,
            "agreement": sums["agree"] / n if has_teacher else None,
            "samples": int(sums["samples"]),
        }
