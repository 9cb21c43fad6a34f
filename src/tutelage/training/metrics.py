"""Counts that are kept on the device while training, and the means that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tutelage import losses, records, targets
from tutelage.modules import StepOutput
from tutelage.objectives import BoundObjective
from tutelage.training.evaluate import NAMED, NonFiniteError
from tutelage.types import UNLABELLED, Batch, Outputs, Totals

COUNTED = ("correct", "labelled", "entropy", "kl", "agree", "samples", "skipped")


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

    @torch.no_grad()
    def measure(self, batch: Batch, teacher: Outputs | None, output: StepOutput, totals: Totals) -> Tensor:
        """Return a micro-batch's share of the sums."""
        logits = output.outputs.logits.float()
        log_q = logits.log_softmax(-1)
        labels = batch.labels.argmax(-1) if batch.labels.is_floating_point() else batch.labels
        predicted = logits.argmax(-1)
        zero = logits.new_zeros((), dtype=torch.float64)
        kl = agree = zero
        if teacher is not None:
            v = teacher.logits.float()
            agree = (predicted == v.argmax(-1)).sum()
            if self.objective.target_gamma is not None:
                kl = losses.kl_divergence(log_q, (self.objective.target_gamma * v).log_softmax(-1)).sum()
        # Terms are already means over the whole step; the epoch's mean weights each step by what they are means over.
        samples, labelled = totals.samples.double(), totals.labelled.double()
        sums = [output.loss.total * samples]
        for name, part in output.loss.parts.items():
            sums.append(part * (labelled if name in self.objective.supervised else samples))
        sums += [(predicted == labels).sum(), (labels != UNLABELLED).sum(), targets.shannon_entropy(log_q).sum()]
        sums += [kl, agree, zero + len(batch.index), zero]
        return torch.stack([value.double() for value in sums])

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


def empty_nonfinite_log(device: torch.device) -> Tensor:
    """Return an empty log of an epoch's first non-finite step, int64, -1 throughout.

    It holds the step, the number of its samples with non-finite logits, and up to `NAMED` of their indices.
    """
    return torch.full((2 + NAMED,), -1, dtype=torch.int64, device=device)


@torch.no_grad()
def log_nonfinite(
    log: Tensor, finite: Tensor, *, step: int | Tensor, index: Tensor, logits: Sequence[tuple[Tensor, ...]]
) -> None:
    """Write a step to the log if it is the epoch's first non-finite one.

    Args:
        log: log of the epoch.
        finite: whether the step was finite, ``()`` bool.
        step: number of steps before it.
        index: indices of its samples.
        logits: logits of its samples per micro-batch, in order: the student's, and the teacher's if there is one.
    """
    # A row's sum is not finite if one of its logits is not, or if they are so large that they are the cause.
    rows = [torch.stack([values.float().sum(-1) for values in piece]) for piece in logits]
    suspect = ~torch.isfinite(torch.cat(rows, dim=1)).all(0)
    samples = torch.where(suspect, index, -1).sort(descending=True).values[:NAMED]
    entry = torch.full_like(log, -1)
    entry[0], entry[1] = step, suspect.sum()
    entry[2 : 2 + len(samples)] = samples
    log.copy_(torch.where(~finite & (log[0] < 0), entry, log))


def raise_if_nonfinite(log: Tensor, *, stage: int) -> None:
    """Read the log, and stop the run if a step was not finite.

    Raises:
        NonFiniteError: if a step was not finite; it names the step and its samples.
    """
    step, count, *samples = log.tolist()
    if step < 0:
        return
    bad = sorted(i for i in samples if i >= 0)
    named = ", ".join(map(str, bad)) or "none alone (the loss or a gradient was)"
    more = f" and {count - NAMED} more" if count > NAMED else ""
    raise NonFiniteError(
        f"step {step + 1} of stage {stage + 1}",
        "a finite loss and gradient",
        f"NaN or infinity; samples with non-finite student or teacher logits: {named}{more}",
        "look at these samples, lower optimizer.lr, or type nonfinite=skip to continue without such steps: this one "
        "was not applied",
    )
