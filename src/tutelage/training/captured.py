"""A training step as a graph: warmed up, captured and compared with the eager step, without training on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tutelage.training.generators import random_state, restore_random
from tutelage.training.graphs import CAPTURES, Captured, NotCapturableError, warm_up
from tutelage.training.state import TrainState
from tutelage.training.step import train_step
from tutelage.types import Batch, Teacher
from tutelage.views import as_views, views_of, with_own_inputs

TOLERANCE = 0.01
"""Tolerance between a replayed step and the eager one, as a share of the change: kernels sum in another order."""


def reason_eager(state: TrainState, batch: Batch | None = None) -> str | None:
    """Return why a fit's steps, on batches like this one, cannot be captured, if that is known beforehand."""
    if state.device.type not in CAPTURES:
        return "no CUDA device"
    if state.accelerator.num_processes > 1:
        return "several processes"
    if not state.fused:
        return f"the optimizer {state.settings.optimizer.name}, whose steps the host takes part in"
    if state.recomputed:
        return "activations that are computed again"
    objective = state.distiller.objective
    if objective.needs.host_waits if batch is None else objective.host_waits(batch):
        return "a term of the objective makes the host wait in every step"
    return None


class CapturedStep:
    """A student's training step as a graph; called as `train_step`.

    Batches whose shape differs from the first's, such as an epoch's last, are computed eagerly.

    Args:
        state: state that the step reads and changes; all of it, generators included, is restored afterwards.
        batch: first batch.
        teacher: teacher as for `train_step`; its outputs keep their memory if it is not called in the step.
        apart: whether other graphs are replayed beside it and read the batch: see `CudaGraph`.

    Raises:
        NotCapturableError: if a replay does not do what the eager step does.
        CaptureError: if the device refused.
    """

    def __init__(self, state: TrainState, batch: Batch, teacher: Teacher | None, *, apart: bool = False) -> None:
        self._apart = apart

        def step(batch: Batch) -> None:
            train_step(state, batch, teacher)

        def replayed() -> None:
            self._captured(batch)
            self.join()  # The comparison and the restoring read and write on the current stream.

        before = Snapshot(state, batch)
        try:
            warm_up(lambda: step(before.batch()), state.device)
            before.restore()
            before = Snapshot(state, batch)  # Now with buffers that the student makes in its first step.
            self._captured = Captured(step, batch, apart=apart)
            for shift in (0, 1):
                if not before.same(lambda: step(batch), replayed, shift=shift):
                    raise NotCapturableError("a replayed step differs from the eager one")
            if not before.applied():
                raise NotCapturableError("a first step that is not finite, which shows nothing of what a step changes")
        finally:
            before.restore()

    def __call__(self, state: TrainState, batch: Batch, teacher: Teacher | None) -> None:
        """Take a step."""
        if self.fits(batch):
            self._captured(batch)
        else:
            self.join()
            # A student may write into its inputs, of which the graph has a copy.
            own = with_own_inputs(batch) if self._apart else batch
            train_step(state, own, teacher)

    @property
    def samples(self) -> int:
        """Number of samples in replayed batches."""
        return len(self._captured.batch.index)

    def fits(self, batch: Batch) -> bool:
        """Whether a step on this batch is replayed, and so draws nothing on the host."""
        return self._captured.fits(batch)

    def join(self) -> None:
        """Order further work on the current stream after the last step."""
        self._captured.join()


class Snapshot:
    """Everything that a step changes, to be restored."""

    def __init__(self, state: TrainState, batch: Batch) -> None:
        self._state, self._batch = state, batch
        self._kinds = {**state.lasting(), "inputs": views_of(batch.inputs)}
        self._copies = _copied(self._kinds)
        self._generators = random_state(state.device)
        now = state.now
        self._numbers = (now.epoch, now.step, now.learning_rate, now.fraction)

    @torch.no_grad()
    def restore(self, *, shift: int = 0) -> None:
        """Restore everything; with a ``shift``, at the progress of another step and with another rate.

        The loss is then not scaled, lest it overflow: under ``fp16`` the first steps do, and would show nothing.
        """
        for kind, tensors in self._kinds.items():
            for tensor, copy in zip(tensors, self._copies[kind], strict=True):
                tensor.copy_(copy)
        for parameter in self._state.parameters:
            parameter.grad = None
        restore_random(*self._generators, self._state.device)
        now, (epoch, step, rate, fraction) = self._state.now, self._numbers
        if shift and now.loss_scale is not None:
            now.loss_scale.value.fill_(1.0)
        now.epoch, now.step = epoch + shift, step + shift
        now.set(rate / (1 + shift), (fraction + shift) / (1 + shift))
        now.epoch, now.step = epoch, step

    def applied(self) -> bool:
        """Whether the last step was applied."""
        samples = self._state.metrics.names.index("samples")
        return bool(self._state.now.sums[samples] > self._copies["counts"][0][samples])

    def batch(self) -> Batch:
        """Return the original batch, in its own memory."""
        copies = [view.clone() for view in self._copies["inputs"]]
        return self._batch._replace(inputs=as_views(copies, self._batch.inputs))

    def same(self, work: Callable[[], object], other: Callable[[], object], *, shift: int) -> bool:
        """Whether two pieces of work make the same changes from here, within `TOLERANCE` of the first one's."""
        outcomes = []
        for piece in (work, other):
            self.restore(shift=shift)
            piece()
            outcomes.append(_copied(self._state.lasting()))
        return all(close(self._copies[kind], *(outcome[kind] for outcome in outcomes)) for kind in outcomes[0])


def _copied(kinds: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
    return {kind: [tensor.detach().clone() for tensor in tensors] for kind, tensors in kinds.items()}


def close(before: Sequence[Tensor], expected: Sequence[Tensor], got: Sequence[Tensor]) -> bool:
    """Whether outcomes agree: integers and finiteness exactly, everything else together by Euclidean norms."""
    if not len(before) == len(expected) == len(got):
        return False
    moved = apart = 0.0
    for was, one, other in zip(before, expected, got, strict=True):
        if was.shape != one.shape:
            return False
        if not one.is_floating_point():
            if not torch.equal(one, other):
                return False
            continue
        if not torch.equal(one.isfinite(), other.isfinite()):
            return False
        was, one, other = (values.double().nan_to_num(0, 0, 0) for values in (was, one, other))
        moved += float((one - was).square().sum())
        apart += float((one - other).square().sum())
    return apart <= TOLERANCE**2 * moved
