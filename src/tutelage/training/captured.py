"""A training step as a graph: warmed up, captured and held against the eager step, of which no training step comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tutelage.training.graphs import CAPTURES, Captured, NotCapturableError, warm_up
from tutelage.training.rng import random_state, restore_random
from tutelage.training.state import TrainState
from tutelage.training.step import train_step
from tutelage.types import Batch, Teacher

TOLERANCE = 0.01
"""How far a replayed step may be from the eager one, as a share of what that changes: kernels add in another order."""


def reason_eager(state: TrainState) -> str | None:
    """Return why a fit's steps cannot be captured, as far as that is known beforehand."""
    if state.device.type not in CAPTURES:
        return "no CUDA device"
    if state.accelerator.num_processes > 1:
        return "several processes"
    if state.distiller.objective.needs.host_waits:
        return "a term of the objective makes the host wait in every step"
    return None


class CapturedStep:
    """A student's training step as a graph; called as `train_step`.

    Batches of another shape than the first, such as an epoch's last, are computed eagerly.

    Args:
        state: what the step reads and changes; all of it, the generators too, is as before afterwards.
        batch: the first.
        teacher: as for `train_step`; its outputs keep their memory where it is not called in the step.
        apart: others are replayed beside it, and read the batch: see `CudaGraph`.

    Raises:
        NotCapturableError: a replay does not do what the eager step does.
        CaptureError: the device refused.
    """

    def __init__(self, state: TrainState, batch: Batch, teacher: Teacher | None, *, apart: bool = False) -> None:
        self._apart = apart

        def step(batch: Batch) -> None:
            train_step(state, batch, teacher)

        def replayed() -> None:
            self._captured(batch)
            self.join()  # What is compared, and put back, is read and written on the current stream.

        before = Snapshot(state, batch)
        try:
            warm_up(lambda: step(before.batch()), state.device)
            before.restore()
            before = Snapshot(state, batch)  # Buffers that the student makes in its first step are there now.
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
            # A student may write into its inputs, which the graph has a copy of.
            own = batch._replace(inputs=batch.inputs.clone()) if self._apart else batch
            train_step(state, own, teacher)

    @property
    def samples(self) -> int:
        """Of the batches that are replayed."""
        return len(self._captured.batch.index)

    def fits(self, batch: Batch) -> bool:
        """Whether a step on this batch is replayed, and draws nothing on the host."""
        return self._captured.fits(batch)

    def join(self) -> None:
        """Let what the current stream is given from now on follow the last step."""
        self._captured.join()


class Snapshot:
    """All that a step changes, and the way back to it."""

    def __init__(self, state: TrainState, batch: Batch) -> None:
        self._state, self._batch = state, batch
        self._kinds = {**state.lasting(), "inputs": [batch.inputs]}
        self._copies = _copied(self._kinds)
        self._generators = random_state(state.device)
        now = state.now
        self._numbers = (now.epoch, now.step, now.learning_rate, now.fraction)

    @torch.no_grad()
    def restore(self, *, shift: int = 0) -> None:
        """Put everything back; with a ``shift``, at the progress of another step and with another rate.

        Nor does a loss that is not scaled overflow: under ``fp16`` the first steps do, and would show nothing.
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
        """Whether the step that was taken last was applied."""
        samples = self._state.metrics.names.index("samples")
        return bool(self._state.now.sums[samples] > self._copies["counts"][0][samples])

    def batch(self) -> Batch:
        """Return the batch as it was, in memory of its own."""
        return self._batch._replace(inputs=self._copies["inputs"][0].clone())

    def same(self, work: Callable[[], object], other: Callable[[], object], *, shift: int) -> bool:
        """Whether two pieces of work change the same from here, within `TOLERANCE` of what the first changes."""
        outcomes = []
        for piece in (work, other):
            self.restore(shift=shift)
            piece()
            outcomes.append(_copied(self._state.lasting()))
        return all(close(self._copies[kind], *(outcome[kind] for outcome in outcomes)) for kind in outcomes[0])


def _copied(kinds: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
    return {kind: [tensor.detach().clone() for tensor in tensors] for kind, tensors in kinds.items()}


def close(before: Sequence[Tensor], expected: Sequence[Tensor], got: Sequence[Tensor]) -> bool:
    """Whether outcomes agree: whole numbers and what is finite exactly, all else together by their Euclidean norms."""
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
