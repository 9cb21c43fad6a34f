"""Evaluation: a network's logits over a held-out set, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from tutelage import losses, targets
from tutelage.checks import nonfinite_weight, widened
from tutelage.errors import RunError
from tutelage.records import Bin, EvaluationMeans, Histogram, Judgement
from tutelage.settings.fit import Precision
from tutelage.submodules import evaluation_mode
from tutelage.training.distributed import to_device
from tutelage.training.precision import float32_products, mixed_precision, network_dtype
from tutelage.types import UNLABELLED, Batches
from tutelage.views import view_of, views_of

BINS = 15
"""Number of bins for reliability and calibration error, of equal width, as in Guo et al. 2017 (arXiv:1706.04599)."""
CHANCE = 0.01
"""Significance level at which a teacher must be better than chance."""
ALIKE = 1e-6
"""Largest difference between logits of several samples, relative to the largest logit, at which they are the same."""
FEW = 16
"""Number of samples below which nothing follows from their answers being the same."""
NAMED = 16
"""Number of samples of a non-finite step or evaluation that are named."""


class NonFiniteError(RunError):
    """A loss, a gradient or logits were not finite. Such a step is not applied."""


class EvalOutputs(NamedTuple):
    """A network's logits ``(samples, classes)``, float32 or float64, and the labels ``(samples,)``, on the CPU."""

    logits: Tensor
    labels: Tensor


class EvalSet(NamedTuple):
    """A held-out set."""

    name: str  # name: ``validation`` or ``test``
    batches: Batches  # whole set, in order, without augmentation
    teacher: EvalOutputs | None = None  # teacher's outputs on it, computed once; None without a teacher


@torch.no_grad()
def collect_outputs(
    network: nn.Module,
    batches: Batches,
    *,
    device: torch.device,
    precision: Precision,
    channels_last: bool,
    who: str = "network",
) -> EvalOutputs:
    """Run a network on every sample, in evaluation mode; its mode is restored.

    ``who`` is ``teacher`` for the view of that name where a batch has several; any other network reads the student's.

    Raises:
        NonFiniteError: if logits are not finite, as no metric would mean anything; it names ``who`` and the samples.
    """
    logits, labels = [], []
    with evaluation_mode(network), float32_products(device, precision):
        for batch in batches.epoch(0):
            moved = to_device(batch, device, channels_last=channels_last, dtype=network_dtype(precision))
            inputs = view_of(moved.inputs, "teacher" if who == "teacher" else "student")
            with mixed_precision(device, precision):
                logits.append(widened(network(inputs)).cpu())
            labels.append(batch.labels.cpu())
    outputs = EvalOutputs(torch.cat(logits), torch.cat(labels))
    bad = (~torch.isfinite(outputs.logits).all(-1)).nonzero()[:, 0].tolist()
    if bad:
        got = f"NaN or infinity for {len(bad)} of {len(outputs.logits)} samples: {listed(bad[:NAMED], len(bad))}"
        cause, instead = _cause(network, batches, set(bad))
        raise NonFiniteError(who, "finite logits in evaluation", f"{got}{cause}", instead)
    return outputs


def _cause(network: nn.Module, batches: Batches, bad: set[int]) -> tuple[str, str]:
    """Return the cause of non-finite logits of some samples, counted from 0, and what to do."""
    if weight := nonfinite_weight(network):
        return f"; parameter {weight}", "name other weights, or lower optimizer.lr if it is the student that diverged"
    first = 0
    inputs: list[int] = []
    for batch in batches.epoch(0):
        for view in views_of(batch.inputs):
            rows = torch.isfinite(view).flatten(1).all(1).cpu().logical_not().nonzero()[:, 0] + first
            inputs += bad.intersection(rows.tolist())
        first += len(batch.index)
    if inputs:
        named = listed(sorted(set(inputs))[:NAMED], len(set(inputs)))
        return f"; inputs of samples {named} are not finite", "mend these samples or leave them out of the data"
    return "", "look at these samples, or lower optimizer.lr if it is the student that diverged"


def listed(samples: Sequence[int], count: int) -> str:
    """Name some of this many samples."""
    more = f" and {count - len(samples)} more" if count > len(samples) else ""
    return ", ".join(map(str, samples)) + more


def summarize(name: str, student: EvalOutputs, teacher: EvalOutputs | None, *, gamma: float | None) -> EvaluationMeans:
    """Return a student's means over a set; ``gamma`` is the exponent of the transformed teacher that it matched."""
    log_q = student.logits.log_softmax(-1)
    correct, labelled = _correct(student)
    return {
        "set": name,
        "accuracy": correct / labelled if labelled else None,
        "loss": float(losses.cross_entropy(student.logits, student.labels).sum()) / labelled if labelled else None,
        "entropy": float(targets.shannon_entropy(log_q).mean()),
        "kl_to_target": _kl(log_q, teacher, gamma),
        "agreement": _agreement(student, teacher),
        "samples": len(student.labels),
    }


def evaluate_outputs(
    network: EvalOutputs, teacher: EvalOutputs | None = None, *, gamma: float | None = None
) -> Judgement:
    """Return a network's detailed evaluation on a labelled set."""
    log_q = network.logits.log_softmax(-1)
    known = network.labels != UNLABELLED
    confidence, predicted = log_q.exp().max(-1)
    right = (predicted == network.labels)[known]
    entropy = targets.shannon_entropy(log_q)
    classes = network.logits.shape[-1]
    bins = _reliability(confidence[known], right)
    judgement: Judgement = {
        "accuracy": float(right.double().mean()),
        "loss": float(losses.cross_entropy(network.logits, network.labels)[known].mean()),
        "entropy": float(entropy.mean()),
        "ece": sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / max(len(right), 1),
        "per_class": _per_class(right, network.labels[known], classes),
        "entropy_histogram": _histogram(entropy, classes),
        "reliability": bins,
    }
    if teacher is not None:
        judgement["agreement"] = _agreement(network, teacher)
        judgement["kl_to_teacher"] = _kl(log_q, teacher, 1.0)
        judgement["kl_to_target"] = _kl(log_q, teacher, gamma)
    return judgement


def answers_alike(outputs: EvalOutputs) -> bool:
    """Whether a network answers all samples alike, whatever it is shown; a few samples may be alike themselves."""
    logits = outputs.logits
    spread = float((logits.amax(0) - logits.amin(0)).max())
    return (
        len(logits) >= FEW
        and len(outputs.labels.unique()) > 1
        and spread <= ALIKE * max(1.0, float(logits.abs().max()))
    )


def better_than_chance(outputs: EvalOutputs) -> bool | None:
    """Test whether a network beats guessing, by a one-sided binomial test; ``None`` if no sample has a label."""
    correct, labelled = _correct(outputs)
    if not labelled:
        return None
    return bool(binomtest(correct, labelled, 1 / outputs.logits.shape[-1], alternative="greater").pvalue < CHANCE)


def _correct(outputs: EvalOutputs) -> tuple[int, int]:
    known = outputs.labels != UNLABELLED
    return int((outputs.logits.argmax(-1) == outputs.labels)[known].sum()), int(known.sum())


def _agreement(student: EvalOutputs, teacher: EvalOutputs | None) -> float | None:
    if teacher is None:
        return None
    return float((student.logits.argmax(-1) == teacher.logits.argmax(-1)).double().mean())


def _kl(log_q: Tensor, teacher: EvalOutputs | None, gamma: float | None) -> float | None:
    if teacher is None or gamma is None:
        return None
    return float(losses.kl_divergence(log_q, (gamma * teacher.logits).log_softmax(-1)).mean())


def _per_class(right: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    count = torch.bincount(labels, minlength=classes)
    hits = torch.bincount(labels[right], minlength=classes)
    return [float(h / n) if n else None for h, n in zip(hits, count, strict=True)]


def _histogram(entropy: Tensor, classes: int) -> Histogram:
    edges = torch.linspace(0, float(torch.tensor(classes).log()), 31, dtype=torch.float64)
    counts = torch.histogram(entropy.double().clamp(0, float(edges[-1])), edges).hist
    return {"edges": edges.tolist(), "counts": [int(c) for c in counts]}


def _reliability(confidence: Tensor, right: Tensor) -> list[Bin]:
    index = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    return [
        {
            "low": k / BINS,
            "high": (k + 1) / BINS,
            "count": len(right[index == k]),
            "confidence": _mean(confidence[index == k]),
            "accuracy": _mean(right[index == k]),
        }
        for k in range(BINS)
    ]


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else 0.0
