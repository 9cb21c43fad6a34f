"""The first step of an epoch that was not finite: logged on the device, with its cause for the error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NoReturn

import torch
from torch import Tensor

from tutelage.checks import nonfinite_weight, widened
from tutelage.modules import Distiller
from tutelage.settings.fit import FitSettings
from tutelage.training import optim
from tutelage.training.evaluate import NAMED, NonFiniteError, listed
from tutelage.types import Batch, Totals
from tutelage.views import views_of

SOURCES = ("inputs", "teacher logits", "student logits")
"""What is not finite in a sample, each a cause of the next."""
FACTS = (*SOURCES, "positions", "labelled", "norm", "gradients", "last gradient")
"""The first values of the log: numbers of samples by source, divisors of the means, the gradient's norm, the number of
parameters whose gradient is not finite and the number of the last one, counted from 1."""


def empty_log(device: torch.device) -> Tensor:
    """Return an empty log of an epoch's first non-finite step, int64, -1 throughout.

    It holds the step, the number of samples at fault, and up to `NAMED` of their indices.
    """
    return torch.full((2 + NAMED,), -1, dtype=torch.int64, device=device)


def empty_values(terms: int, device: torch.device) -> Tensor:
    """Return the log's `FACTS`, and the sums of the loss and of each term; float64, 0 throughout."""
    return torch.zeros(len(FACTS) + 1 + terms, dtype=torch.float64, device=device)


@torch.no_grad()
def log_nonfinite(
    log: Tensor,
    values: Tensor,
    finite: Tensor,
    *,
    step: int | Tensor,
    batch: Batch,
    logits: Sequence[tuple[Tensor, ...]],
    sums: Tensor,
    totals: Totals,
    norms: Tensor,
    norm: Tensor,
) -> None:
    """Write a step to the log if it is the epoch's first non-finite one; the host waits for nothing.

    Args:
        log: log of the epoch.
        values: its values.
        finite: whether the step was finite, ``()`` bool.
        step: number of steps before it.
        batch: its samples.
        logits: logits of its samples per micro-batch, in order: the student's, and the teacher's if there is one.
        sums: sums of the loss and of each term.
        totals: divisors of their means.
        norms: norm of each parameter's gradient that has one, not clipped, ``(parameters,)``.
        norm: norm of them all.
    """
    student, *teacher = (torch.cat([_unsound(each) for each in pieces]) for pieces in zip(*logits, strict=True))
    inputs = reduce(torch.logical_or, map(_unsound, views_of(batch.inputs)))
    by_source = torch.stack([inputs, *(teacher or [torch.zeros_like(inputs)]), student])
    counts = by_source.sum(1)
    # The first source that has any, as it is the cause of the others.
    suspect = by_source.index_select(0, (counts > 0).int().argmax(0, keepdim=True))[0]
    samples = torch.where(suspect, batch.index, -1).sort(descending=True).values[:NAMED]
    entry = torch.full_like(log, -1)
    entry[0], entry[1] = step, suspect.sum()
    entry[2 : 2 + len(samples)] = samples
    bad = ~torch.isfinite(norms)
    last = (torch.arange(1, len(bad) + 1, device=bad.device) * bad).amax() if len(bad) else norm.new_zeros(())
    facts = [*counts, totals.positions, totals.labelled, norm, bad.sum(), last]
    first = ~finite & (log[0] < 0)
    values.copy_(torch.where(first, torch.cat([torch.stack([fact.double() for fact in facts]), sums]), values))
    log.copy_(torch.where(first, entry, log))


def _unsound(values: Tensor) -> Tensor:
    """Return whether each row's sum is not finite: one of its values is not, or they are too large to be summed."""
    values = values.unsqueeze(-1)
    return ~torch.isfinite(widened(values).sum(tuple(range(1, values.ndim))))


def combined(entries: Sequence[tuple[list[int], list[float]]]) -> tuple[list[int], list[float]]:
    """Return the log and its values, as lists, of a step that several processes share, each of which has logged it."""
    (step, *_), facts = entries[0][0], len(SOURCES)
    # Samples are suspected by the first source that has any in all of them.
    source = next((k for k in range(facts) if any(values[k] for _, values in entries)), None)
    logs = [log for log, values in entries if source is None or values[source]]
    samples = sorted({sample for log in logs for sample in log[2:] if sample >= 0}, reverse=True)[:NAMED]
    log = [step, sum(log[1] for log in logs), *samples, *[-1] * (NAMED - len(samples))]
    columns = list(zip(*(values for _, values in entries), strict=True))
    # The divisors are shares of the counts, as gradients are means over the processes; gradients are the same in all.
    sums = [sum(column) / len(entries) for column in columns[len(FACTS) :]]
    return log, [*map(sum, columns[:facts]), *entries[0][1][facts : len(FACTS)], *sums]


def raise_nonfinite(
    log: Sequence[int],
    values: Sequence[float],
    *,
    distiller: Distiller,
    settings: FitSettings,
    with_gradient: Sequence[Tensor],
    epoch: int,
    step_in_epoch: int,
    steps: int,
    stage: int,
) -> NoReturn:
    """Stop the run after a step that was not finite.

    Args:
        log: log of the epoch, which has the step.
        values: its values.
        distiller: student with its objective.
        settings: settings of its training.
        with_gradient: parameters that a step gives a gradient.
        epoch: number of epochs before this one.
        step_in_epoch: number of steps of this epoch before the step.
        steps: number of steps per epoch.
        stage: number of the stage.

    Raises:
        NonFiniteError: it names the step and what was the cause.
    """
    step, count, *samples = log
    fact = dict(zip(FACTS, values, strict=False))
    means = _means(distiller, values[len(FACTS) :], fact["positions"], fact["labelled"])
    (_, loss), *terms = means.items()
    rate = optim.learning_rate(
        settings.schedule,
        settings.optimizer.lr,
        epoch=epoch,
        begin=step_in_epoch / steps,
        end=(step_in_epoch + 1) / steps,
        epochs=settings.epochs,
    )
    infinite = [name for name, value in terms if not math.isfinite(value)]
    source = next((name for name in SOURCES if fact[name]), None)
    lower = f"lower optimizer.lr={settings.optimizer.lr:g} or the weights of the objective, or type schedule.warmup=1"
    # Only finite steps change weights, so one that is not finite was so before this step, and is its cause.
    if source != "inputs" and (weight := nonfinite_weight(distiller)):
        cause, instead = f"parameter {weight}", f"{lower}, and begin again"
    elif source is not None:
        cause = f"samples with non-finite {source}: {listed(sorted(i for i in samples if i >= 0), count)}"
        instead = {
            "inputs": "look at the values of these samples, and mend them or leave them out",
            "teacher logits": "look at these samples, and at the teacher's precision",
            "student logits": lower,
        }[source]
    elif infinite:
        cause = f"samples with non-finite logits: none, so it is term {', '.join(infinite)}"
        instead = f"check the arguments and the weight of {infinite[0]}, whose value float32 cannot hold, or {lower}"
    elif not math.isfinite(loss):
        cause = "samples with non-finite logits: none; the terms are finite, their weighted sum is not"
        instead = "lower the weights of the objective"
    else:
        names = {id(parameter): name for name, parameter in distiller.named_parameters()}
        last = int(fact["last gradient"])
        name = names.get(id(with_gradient[last - 1])) if 0 < last <= len(with_gradient) else None
        of = f" of {int(fact['gradients'])} parameters, {name} among them," if name else ""
        cause = f"samples with non-finite logits: none; the loss is finite, the gradient{of} is not"
        instead = f"{lower}, or leave roots and logarithms of 0 out of the loss"
    shown = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
    raise NonFiniteError(
        f"step {step + 1} of stage {stage + 1}",
        "a finite loss and gradient",
        f"NaN or infinity in epoch {epoch + 1} at a learning rate of {rate:.4g} ({shown}); {cause}",
        f"{instead}, or type nonfinite=skip to continue without such steps: this one was not applied",
    )


def _means(distiller: Distiller, sums: Sequence[float], positions: float, labelled: float) -> dict[str, float]:
    """Return the means of the loss and of each term."""
    objective = distiller.objective
    divisors = [labelled if name in objective.supervised else positions for name in objective.names]
    names = ("loss", *objective.names)
    return {name: value / max(n, 1.0) for name, value, n in zip(names, sums, [positions, *divisors], strict=True)}
