"""What a step and an evaluation take on this machine: a few real ones, on copies of the networks."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from tutelage import data
from tutelage.config.schema import Recipe
from tutelage.models import Classifier
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.runs.setup import RunInputs, run_context
from tutelage.training.distributed import accelerator_on
from tutelage.training.evaluate import collect_outputs
from tutelage.training.loop import fit
from tutelage.types import Batch

TIMED = 3
"""Steps that an estimate is taken from, after one to warm up."""
ASKED = 256
"""Samples of a batch that a network is asked about."""


class Timed(NamedTuple):
    """Steps that were timed.

    Attributes:
        seconds: of one step.
        terms: of the objective, means over the steps.
    """

    seconds: float
    terms: dict[str, float]


def step(recipe: Recipe, run_inputs: RunInputs, stage: int = 0, *, limit: float = math.inf) -> Timed:
    """Take a few real training steps of a stage on copies of student and teacher, and time them.

    Args:
        recipe: the run's; its teacher is asked live, recorded outputs or not.
        run_inputs: what the run is made of; it stays as it is.
        stage: of the recipe's.
        limit: seconds after which no further step is taken; the first to warm up and one more always are.
    """
    accelerator = accelerator_on(recipe.device)
    objective, planned = run_inputs.objectives[stage], recipe.fits()[stage]
    teacher_copy = copy.deepcopy(run_inputs.teacher)
    run_inputs = replace(
        run_inputs,
        student=copy.deepcopy(run_inputs.student).to(accelerator.device),
        teacher=teacher_copy.to(accelerator.device) if teacher_copy is not None else None,
    )
    distiller = Distiller(run_inputs.student, objective, run_context(objective, run_inputs))
    taught = run_inputs.teacher if objective.needs.teacher else None
    teacher = FrozenTeacher(taught, objective.needs.teacher_taps) if taught is not None else None
    train = run_inputs.splits.train
    few = _Few(
        data.BatchLoader(train, batch_size=planned.batch_size, data_seed=recipe.data_seed, train=True), TIMED, limit
    )
    (record,) = fit(distiller, teacher, few, replace(planned.settings, epochs=1), accelerator=accelerator)
    return Timed(few.seconds, record["train"]["terms"])


def ask(recipe: Recipe, network: Classifier, split: data.Split) -> float:
    """Return the seconds a sample that a network takes for its answers in evaluation, from one batch of a split."""
    device = accelerator_on(recipe.device).device
    few = _Few(data.BatchLoader(split, batch_size=ASKED, train=False), 1, math.inf)
    asked = copy.deepcopy(network).to(device)
    if recipe.channels_last:
        asked.to(memory_format=torch.channels_last)
    collect_outputs(asked, few, device=device, precision=recipe.precision, channels_last=recipe.channels_last)
    return few.seconds * few.steps / max(few.asked, 1)


class _Few:
    """The first batches of an epoch, timed between the first and the last.

    ``seconds`` is of a step, ``steps`` and ``asked`` count the steps and the samples that it is taken from.
    """

    def __init__(self, batches: data.BatchLoader, timed: int, limit: float) -> None:
        self.batches, self.samples, self.seconds = batches, batches.samples, 0.0
        self.timed, self.limit, self.steps, self.asked = timed, limit, 0, 0

    def __len__(self) -> int:
        return min(len(self.batches), 1 + self.timed)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        stream = self.batches.epoch(epoch, start=start, rank=rank, world=world)
        first = began = time.monotonic()
        for i in range(len(self)):
            if i > 1 and time.monotonic() - first > self.limit:
                break
            batch = next(stream)
            yield batch
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i == 0 and len(self) > 1:  # the first step warms up, unless it is the only one
                began = time.monotonic()
            else:
                self.steps += 1
                self.asked += len(batch.index)
        self.seconds = (time.monotonic() - began) / max(self.steps, 1)
