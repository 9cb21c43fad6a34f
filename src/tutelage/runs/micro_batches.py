"""How many micro-batches a batch needs so that a step fits in memory: ``accumulate: auto``."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from tutelage import data, launcher
from tutelage.config.schema import Recipe
from tutelage.errors import RecipeError
from tutelage.modules import Distiller
from tutelage.runs import autotune
from tutelage.runs.setup import RunInputs, in_precision, run_context
from tutelage.settings.fit import Fit, FitSettings
from tutelage.submodules import restored_modes
from tutelage.training import memory, optim
from tutelage.training.activations import checkpointed_blocks, recomputing
from tutelage.training.compile import unchanged
from tutelage.training.distributed import accelerator_on, by_main, of_all, to_device
from tutelage.training.graphs import CAPTURES
from tutelage.training.precision import mixed_precision, network_dtype
from tutelage.training.step import split_batch
from tutelage.types import Batch, Teacher
from tutelage.views import views_of

MARGIN = 1.2
"""Memory that is asked for, relative to what tensors take: operations need some of their own, and it is fragmented."""
RESERVE = 5e8
"""Bytes that each process leaves free on the CPU: its allocator keeps much of what is freed for a while."""
MEASURED = 2, 4
"""Samples of the steps that are measured on the CPU; a step of more takes in proportion more."""

R = TypeVar("R", bound=Recipe)


class Choice(NamedTuple):
    """A number of micro-batches."""

    pieces: int
    need: float  # bytes that a step takes, with `MARGIN`
    free: float  # bytes that were free for it


def resolve(recipe: R, run_inputs: RunInputs, *, folder: Path | None = None) -> tuple[R, str | None]:
    """Return a recipe with the number of micro-batches filled in if it is open, and the reason if it was just found.

    The number of the run that is resumed comes first, then that of the run that it starts from. Otherwise it is the
    smallest of 1, 2, 4, ... with which a step of every stage fits in every process, at most the batch's samples. On
    CUDA steps are tried, and must take no more than what is free, or half of it where they may be captured too, as a
    graph keeps memory of its own. On the CPU, where the system would end a process that asks for too much, steps of few
    samples are measured. Neither networks nor generators are changed. All processes call it.

    Raises:
        RecipeError: if not even one sample fits, or memory is not known beforehand: that of a sharded network, and of
            texts that the student writes.
    """
    if recipe.accumulate != "auto":
        return recipe, None
    fits = recipe.fits()
    begun = (folder, None if recipe.start is None else Path(recipe.start))
    recorded = by_main(lambda: [autotune.begun(place).get("accumulate") for place in begun])
    if known := next((number for number in recorded if isinstance(number, int)), None):
        return recipe.model_copy(update={"accumulate": known}), None
    for unknown, key in ((recipe.shard != "none", "shard"), (any(fit.on_policy for fit in fits), "on_policy")):
        if unknown:
            expected = f"a number with {key}, where the memory of a step is not known beforehand"
            raise RecipeError("accumulate", expected, "auto", "type accumulate=..., 1 for no micro-batches")
    coupled = [each.name for each in run_inputs.objectives if each.needs.coupled]
    if coupled:
        said = f"accumulate 1: {coupled[0]} couples a batch's samples, so that its value depends on the micro-batches"
        return recipe.model_copy(update={"accumulate": 1}), said
    choices = [max(of_all(partial(_smallest, recipe, run_inputs, stage, fit))) for stage, fit in enumerate(fits)]
    pieces, need, free = max(choices)
    step = f"a step takes about {need / 1e6:.0f} MB, of {free / 1e6:.0f} MB that are free"
    return recipe.model_copy(update={"accumulate": pieces}), f"accumulate {pieces}: {step}"


def _smallest(recipe: Recipe, run_inputs: RunInputs, stage: int, fit: Fit) -> Choice:
    """Return the smallest number of micro-batches with which a stage's step fits in this process."""
    accelerator = accelerator_on(recipe.device)
    device, train = accelerator.device, replace(run_inputs.splits.train, workers=0)
    samples = -(-min(fit.batch_size, train.per_epoch) // accelerator.num_processes)
    loader = data.BatchLoader(train, batch_size=samples, data_seed=recipe.data_seed, train=True)

    def batch(count: int) -> Batch:
        read = next(loader.at(0, [train.largest(count)]))
        dtype = network_dtype(fit.settings.precision)
        return to_device(read, device, channels_last=fit.settings.channels_last, dtype=dtype)

    counts = [2**k for k in range(samples.bit_length()) if 2**k < samples]
    with _trial(recipe, run_inputs, stage, fit.settings) as trial:
        if device.type == "cuda":
            choice = trial.tried(batch(samples), [*counts, samples])
        else:
            free = max(memory.free(device) / launcher.local_world_size() - RESERVE, 0.0)
            choice = trial.estimated(batch, samples, [*counts, samples], free=free)
    if choice.need <= choice.free:
        return choice
    again = "" if fit.settings.checkpoint_activations else "checkpoint_activations=true, "
    expected = f"memory for a step of one sample at a time, about {choice.need / 1e6:.0f} MB"
    instead = f"type {again}a smaller student, or smaller samples: data.size or data.max_tokens; or a number, to try it"
    raise RecipeError("accumulate", expected, f"{choice.free / 1e6:.0f} MB free", instead)


@contextmanager
def _trial(recipe: Recipe, run_inputs: RunInputs, stage: int, settings: FitSettings) -> Iterator[_Trial]:
    """Yield what takes steps of a stage; afterwards networks and generators are as before."""
    objective, device = run_inputs.objectives[stage], accelerator_on(recipe.device).device
    student = in_precision(recipe, run_inputs.student).to(device)
    network = run_inputs.teacher and in_precision(recipe, run_inputs.teacher)
    if network is not None:
        network.to(device)
    with restored_modes(student), unchanged(student, device):
        # What a copy of the teacher answers is not kept for the run, whose numbers are found from its own.
        context = run_context(objective, replace(run_inputs, student=student, teacher=network, statistics=[]))
        distiller = Distiller(student, objective, context).to(device)
        weights = [parameter.detach().to("cpu", copy=True) for parameter in student.parameters()]
        try:
            teacher = autotune.live_teacher(objective, run_inputs, network, device)
            yield _Trial(distiller.train(), teacher, settings, device)
        finally:
            with torch.no_grad():
                for parameter, weight in zip(student.parameters(), weights, strict=True):
                    parameter.copy_(weight)


class _Trial:
    """Steps of a stage to see what memory they take."""

    def __init__(
        self, distiller: Distiller, teacher: Teacher | None, settings: FitSettings, device: torch.device
    ) -> None:
        self.distiller, self.teacher, self.settings, self.device = distiller, teacher, settings, device
        self.blocks = checkpointed_blocks(distiller.student) if settings.checkpoint_activations else []
        captured = device.type in CAPTURES and settings.graphs is not False and not self.blocks
        self.copies = 2 if captured else 1  # a graph's memory is its own

    def tried(self, batch: Batch, counts: Sequence[int]) -> Choice:
        """Return the first number of micro-batches with which steps fit, or the last one."""
        for count in counts:
            free = memory.free(self.device)
            memory.restart(self.device)
            before = memory.allocated(self.device)
            need = float("inf")
            if self._fits(split_batch(batch, count)):
                need = MARGIN * self.copies * (memory.most_allocated(self.device) - before)
            if need <= free:
                break
        return Choice(count, need, free)

    def estimated(self, batch: Callable[[int], Batch], samples: int, counts: Sequence[int], *, free: float) -> Choice:
        """Return the first number of micro-batches with which a step should fit, or the last one."""
        sizes = sorted({min(size, samples) for size in MEASURED})
        peaks, whole = zip(*(self._measured(batch(size)) for size in sizes), strict=True)
        each = (peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else peaks[0] / sizes[0]
        fixed = max(peaks[0] - each * sizes[0], 0.0)
        # Checkpoints are written from a copy.
        fixed += samples * whole[-1] / sizes[-1] + _bytes(self.distiller.student.parameters())
        for count in counts:
            need = MARGIN * (fixed + each * -(-samples // count))
            if need <= free:
                break
        return Choice(count, need, free)

    def _measured(self, batch: Batch) -> tuple[int, int]:
        """Return the bytes that live at once in a micro-batch, and those of them that are kept of every one."""
        known = [*self.distiller.parameters(), *self.distiller.buffers(), *views_of(batch.inputs), batch.labels]
        with memory.LiveTensors(known) as live:
            optimizer = self._optimizer()
            self._step([batch], optimizer)
            # Again, beside gradients and the optimizer's state, so that the peak grows with the samples throughout.
            live.restart()
            kept = self._step([batch], optimizer)
        self.distiller.zero_grad()
        return live.peak, _bytes([*views_of(batch.inputs), batch.labels, *kept])

    def _fits(self, pieces: Sequence[Batch]) -> bool:
        try:
            optimizer = self._optimizer()
            for _ in range(2):  # The second has the optimizer's state from the beginning.
                self._step(pieces, optimizer)
            return True
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
                raise
        finally:
            self.distiller.zero_grad()
        gc.collect()  # The error held what the step had.
        return False

    def _optimizer(self) -> torch.optim.Optimizer:
        return optim.build(self.settings.optimizer, self.distiller, fused=self.device.type in CAPTURES)

    def _step(self, pieces: Sequence[Batch], optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Take a step, and return what is kept of its micro-batches until its end."""
        kept = []
        for piece in pieces:
            outputs = self.teacher(piece) if self.teacher is not None else None
            with mixed_precision(self.device, self.settings.precision), recomputing(self.blocks):
                output = self.distiller(piece, outputs)
            output.loss.total.backward()
            kept += [
                each.logits.detach() for each in (output.outputs, outputs) if each is not None and each.sparse is None
            ]
        optimizer.step()
        return kept


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
