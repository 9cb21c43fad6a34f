"""Recording a teacher's outputs against the teacher's own forward pass over the same views.

The reference's views are made beforehand. Recording makes the views, runs the teacher, and writes with a sync.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage import config, data
from tutelage.benchmark import timing
from tutelage.benchmark.batches import forward, network, random_images
from tutelage.config.schema import Recipe
from tutelage.modules import FrozenTeacher
from tutelage.runs import record_teacher
from tutelage.runs.setup import RunInputs, build_objectives
from tutelage.training.distributed import accelerator_on

BATCH = 256
RECORDING, REFERENCE = "recording", "reference: the forward pass"
PAIR = ("resnet56", "resnet20")


class Times(NamedTuple):
    """Wall-clock and processor seconds in every round, ``(rounds, 2)``."""

    recording: NDArray[np.float64]
    forward: NDArray[np.float64]

    def ratios(self) -> tuple[float, float, float]:
        """Return the duration of recording, in forward passes.

        The ratios are of the median wall-clock and processor times, and of the shortest wall-clock times, which other
        processes disturb least.
        """
        wall, processor = np.median(self.recording, 0) / np.median(self.forward, 0)
        return float(wall), float(processor), float(self.recording[:, 0].min() / self.forward[:, 0].min())


def recipe_of(**settings: Any) -> Recipe:
    """Return the recipe of a run of one epoch that reads recorded outputs, with CIFAR's augmentation."""
    defaults = {
        "name": "record",
        "data": {"crop_padding": 4, "flip": True},
        "student": f"cifar:{PAIR[1]}",
        "teacher": f"cifar:{PAIR[0]}",
        "objective": {"wttm": {"gamma": 0.25, "beta": 1.0}},
        "epochs": 1,
        "channels_last": True,
        "outputs": "outputs",
    }
    return config.parse(Recipe, defaults | settings)


def measure(run_inputs: RunInputs, recipe: Recipe, *, rounds: int) -> Times:
    """Time recording the whole training set and the forward pass in turn, after a first round that warms up.

    Each recording is written to its own folder; the recipe's ``outputs`` is not read.
    """
    assert run_inputs.teacher is not None
    device = accelerator_on(recipe.device).device
    split = run_inputs.splits.train
    batches = data.BatchLoader(split, batch_size=BATCH, data_seed=recipe.data_seed, train=True)
    views = list(batches.at(0, data.split_evenly(np.arange(len(split)), BATCH)))
    teacher = FrozenTeacher(run_inputs.teacher).to(device).to(memory_format=torch.channels_last)
    precision = recipe.fits()[0].settings.precision
    forms = {
        RECORDING: partial(_record, run_inputs, recipe),
        REFERENCE: partial(_seconds, partial(forward, teacher, views, device, precision=precision)),
    }
    with timing.threads(recipe.threads or torch.get_num_threads()):
        taken = timing.in_turn(forms, rounds)
    return Times(*(np.array(taken[name]) for name in forms))


def _record(run_inputs: RunInputs, recipe: Recipe) -> NDArray[np.float64]:
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe.model_copy(update={"outputs": f"{folder}/outputs"})
        return _seconds(partial(record_teacher.record, recipe, run_inputs=run_inputs))


def _seconds(call: Callable[[], object]) -> NDArray[np.float64]:
    """Return the wall-clock and processor seconds of a call."""
    began = _now()
    call()
    return _now() - began


def _now() -> NDArray[np.float64]:
    timing.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def lines(samples: int = 2048, *, rounds: int = 5, pair: tuple[str, str] = PAIR) -> Iterator[str]:
    """Time recording of random images' outputs in bfloat16, and yield lines to print."""
    cpu = torch.device("cpu")
    recipe = recipe_of(precision="bf16", device="auto")
    run_inputs = RunInputs(
        splits=random_images(samples),
        student=network(pair[1], cpu),
        teacher=network(pair[0], cpu),
        objectives=build_objectives(recipe),
    )
    taken = measure(run_inputs, recipe, rounds=rounds)
    recording, reference = (np.median(seconds[:, 0]) for seconds in taken)
    yield (
        f"{samples} views  recording {recording:.2f} s  reference {reference:.2f} s  "
        f"{taken.ratios()[0]:.2f}x as long  (medians of {rounds})"
    )
