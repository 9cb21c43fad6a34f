"""One training step."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from tutelage.training.batch_norm import synchronised
from tutelage.training.distributed import step_totals
from tutelage.training.nonfinite import log_nonfinite
from tutelage.training.state import TrainState
from tutelage.types import Batch, Outputs, Teacher
from tutelage.views import as_views, views_of


def train_step(state: TrainState, batch: Batch, teacher: Teacher | None) -> None:
    """Take one optimizer step; if its loss or gradient is not finite, log it and do not apply it.

    Under ``fp16``, a step whose scaled gradient overflows is not applied either, but lowers the scale instead of being
    logged: see `LossScale`. On CUDA the host waits for nothing.

    Args:
        state: state that the step reads and changes; `FitState.begin_step` has set its numbers.
        batch: batch on the device; cut into ``settings.accumulate`` micro-batches.
        teacher: teacher, called on every micro-batch; ``None`` if the objective needs none.
    """
    now, metrics, scale = state.now, state.metrics, state.now.loss_scale
    totals = step_totals(batch, state.accelerator, state.settings.precision)  # divisors of means
    state.buffers.save()
    shares, logits = [], []
    pieces = split_batch(batch, state.settings.accumulate)
    for piece in pieces:
        outputs = teacher(piece) if teacher is not None else None
        with synchronised(state.norms):
            with state.forward_context(len(piece.index), last=piece is pieces[-1]):
                output = state.module(piece, outputs, now.progress, totals)
            (output.loss.total if scale is None else output.loss.total * scale.value).backward()
        shares.append(metrics.measure(piece, outputs, output, totals))
        logits.append(tuple(_values(each) for each in (output.outputs, outputs) if each is not None))
    sums = reduce(torch.add, shares)  # the loss's first
    parameters, norms = state.gradients()
    norm = torch.linalg.vector_norm(norms)  # of them all, as `nn.utils.get_total_norm` has it
    finite_loss = torch.isfinite(sums[0])
    finite, finite_loss = state.agreement.exchange(torch.isfinite(norm) & finite_loss, finite_loss)
    skipped, sound = metrics.skipped_sums, finite
    if scale is not None:
        overflow = scale.update(finite, finite_loss)
        skipped, sound = torch.where(overflow, metrics.zeros, skipped), finite | overflow
    if state.fused or not sound:  # If the host may read it, it need not write to an untouched log.
        state.with_gradient = state.whole(parameters)
        log_nonfinite(
            now.nonfinite_log,
            now.nonfinite_values,
            sound,
            step=now.progress.step,
            batch=batch,
            logits=logits,
            sums=sums[: 1 + len(metrics.objective.names)],
            totals=totals,
            norms=norms,
            norm=norm,
        )
    if state.settings.clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, state.settings.clip, norm)
    state.apply(finite)  # or restore the buffers
    now.sums += torch.where(finite, sums, skipped)


def _values(outputs: Outputs) -> Tensor:
    """Return logits, those that were recorded or the states that they would be made of: are they finite?"""
    if outputs.sparse is not None:
        return outputs.sparse.values.detach()
    return (outputs.logits if outputs.hidden is None else outputs.hidden.states).detach()


def split_batch(batch: Batch, pieces: int) -> list[Batch]:
    """Cut a batch into micro-batches whose sizes differ by at most one sample, as many as there are samples for."""
    if pieces == 1:
        return [batch]
    count = min(pieces, len(batch.index))
    masks = [None] * count if batch.counted is None else batch.counted.tensor_split(count)
    tensors = (batch.index, batch.labels, *views_of(batch.inputs))
    parts = zip(masks, *(tensor.tensor_split(count) for tensor in tensors), strict=True)
    return [
        Batch(index, as_views(views, batch.inputs), labels, batch.view, mask) for mask, index, labels, *views in parts
    ]
