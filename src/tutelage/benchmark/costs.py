"""What a training step costs with an objective: processor time, and the memory saved for the backward pass.

A step is the teacher's forward pass and the student's forward and backward pass, without the optimizer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tutelage import data
from tutelage.benchmark import timing
from tutelage.config.schema import Recipe
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Objective
from tutelage.runs.setup import build_inputs, run_context
from tutelage.types import Batch


class Step(NamedTuple):
    """What one step consists of."""

    distiller: Distiller
    teacher: FrozenTeacher | None
    batch: Batch

    def loss(self) -> Tensor:
        """Return the loss of a forward pass."""
        outputs = self.teacher(self.batch) if self.teacher is not None else None
        return self.distiller(self.batch, outputs).loss.total

    def seconds(self) -> float:
        """Return the processor time of one step."""
        self.distiller.zero_grad(set_to_none=True)
        return timing.backward(self.loss)[0]

    def saved_mb(self) -> float:
        """Return what a forward pass saves for the backward pass, each tensor once, without parameters, 1e6 bytes."""
        parameters = {tensor.untyped_storage().data_ptr() for tensor in self.distiller.parameters()}
        saved = {}

        def save(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss = self.loss()
        assert loss.isfinite()
        return sum(saved.values()) / 1e6


def step_of(objective: Objective, recipe: Recipe, *, batch: int) -> Step:
    """Return a step on the first batch of a recipe's data, with its networks."""
    run_inputs, needs = build_inputs(recipe), objective.needs
    distiller = Distiller(run_inputs.student, objective, run_context(objective, run_inputs)).train()
    network = run_inputs.teacher if needs.teacher else None
    teacher = FrozenTeacher(network, needs.teacher_taps) if network is not None else None
    return Step(
        distiller, teacher, next(data.BatchLoader(run_inputs.splits.train, batch_size=batch, train=True).epoch(0))
    )
