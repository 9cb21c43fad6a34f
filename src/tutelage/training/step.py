"""One training step."""

from __future__ import annotations

from functools import reduce

import torch
from torch import nn

from tutelage.training.distributed import agreed, step_totals
from tutelage.training.metrics import log_nonfinite
from tutelage.training.state import TrainState
from tutelage.types import Batch, Teacher


def train_step(state: TrainState, batch: Batch, teacher: Teacher | None) -> None:
    """Take one optimizer step; one whose loss or gradient is not finite is logged and not applied.

    Off the CPU the host waits for nothing.

    Args:
        state: what the step reads and changes; `FitState.begin_step` has set its numbers.
        batch: on the device; cut into ``settings.accumulate`` micro-batches.
        teacher: called on every micro-batch; none where the objective needs none.
    """
    now, metrics = state.now, state.metrics
    totals = step_totals(batch, state.accelerator)  # what means divide by
    state.buffers.save()
    shares, logits = [], []
    pieces = split_batch(batch, state.settings.accumulate)
    for piece in pieces:
        outputs = teacher(piece) if teacher is not None else None
        with state.forward_context(len(piece.index), last=piece is pieces[-1]):
            output = state.module(piece, outputs, now.progress, totals)
        output.loss.total.backward()
        shares.append(metrics.measure(piece, outputs, output, totals))
        logits.append(tuple(each.logits.detach() for each in (output.outputs, outputs) if each is not None))
    sums = reduce(torch.add, shares)  # of the loss first
    parameters = [p for p in state.parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if state.settings.clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, state.settings.clip, norm)
    finite = agreed(torch.isfinite(norm) & torch.isfinite(sums[0]), state.accelerator)
    state.apply(finite)  # or put the buffers back
    now.sums += torch.where(finite, sums, metrics.skipped_sums)
    if state.fused or not finite:  # Where the host has asked already, it need not write into an untouched log.
        log_nonfinite(now.nonfinite_log, finite, step=now.progress.step, index=batch.index, logits=logits)


def split_batch(batch: Batch, pieces: int) -> list[Batch]:
    """Cut a batch into micro-batches."""
    if pieces == 1:
        return [batch]
    parts = zip(*(tensor.chunk(pieces) for tensor in (batch.index, batch.inputs, batch.labels)), strict=True)
    return [Batch(index, inputs, labels, batch.view) for index, inputs, labels in parts]
