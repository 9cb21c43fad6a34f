"""Students of one pair in one process: a class on one teacher pass, against the teacher and the students apart.

The student learns by KD, in bfloat16, with the CIFAR augmentation. Timed are steps of the engine; data sets, networks
and evaluation are not, nor each form's first step, which fills caches and makes the optimizer's state, nor what follows
the last, such as a garbage collection, which is once a fit.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from tutelage import data, objectives
from tutelage.benchmark import turns
from tutelage.benchmark.batches import Remembered, Some, network, random_images
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import FitSettings
from tutelage.training.distributed import accelerator_on
from tutelage.training.evaluate import to_device
from tutelage.training.lockstep import FitJob, Lockstep
from tutelage.training.state import RngState
from tutelage.types import Teacher

PAIR = ("resnet56", "resnet20")
BATCH = 64
SETTINGS = FitSettings(epochs=1, precision="bf16", checkpoint_seconds=1e9, log_steps=10_000)
ALONE, APART = "teacher alone", "student without teacher"


class Ratios(NamedTuple):
    """How long classes take, by their number of students; medians of each round's ratio.

    A round's ratio first, as the machine's speed is nearly the same within a round.

    Attributes:
        parts: of the teacher's steps alone and as many times a student's that has batches and answers already.
        runs: of as many times a class of one, which makes its own batches and asks the live teacher.
    """

    parts: dict[int, float]
    runs: dict[int, float]


def class_of(students: int) -> str:
    """Return the name of a class among what is timed."""
    return f"class of {students}"


def measure(
    splits: data.Splits,
    *,
    sizes: Sequence[int],
    steps: int,
    rounds: int,
    device: str = "cpu",
    pair: tuple[str, str] = PAIR,
) -> dict[str, list[float]]:
    """Time each form once a round, in turn, after a first round that warms up.

    Args:
        splits: images of 100 classes.
        sizes: numbers of students in a class; 1 is timed in any case.
        steps: that are timed at a time.
        rounds: that count.
        device: ``auto``, ``cpu`` or ``cuda``.
        pair: teacher and student.

    Returns:
        Seconds a step in every round, by form: the teacher alone, a student without it, and the classes.
    """
    where = accelerator_on(device).device
    batches = data.BatchLoader(splits.train, batch_size=BATCH, train=True)
    asked, there = Some(batches, steps), Some(batches, steps, made=True)
    teacher, answers = FrozenTeacher(network(pair[0], where)), Remembered(where)
    taught = partial(_class, student=pair[1], device=device)
    forms = {ALONE: partial(_teacher, teacher, asked, where), APART: partial(taught, 1, answers, there)}
    forms |= {class_of(k): partial(taught, k, teacher, asked) for k in dict.fromkeys((1, *sizes))}
    return turns.in_turn(forms, rounds)


def _class(students: int, teacher: Teacher, batches: Some, *, student: str, device: str) -> float:
    """Return the seconds of a class's step, its lessons made before."""
    accelerator = accelerator_on(device)
    pupils = []
    for seed in range(students):
        distiller = Distiller(network(student, accelerator.device, seed), objectives.kd())
        pupils.append(
            FitJob(distiller=distiller, settings=SETTINGS, rng=RngState(accelerator.device) if students > 1 else None)
        )
    for _, told in Lockstep(pupils, teacher, batches, accelerator=accelerator).run():
        if isinstance(told, Exception):
            raise told
    return batches.seconds


@torch.no_grad()
def _teacher(teacher: FrozenTeacher, batches: Some, device: torch.device) -> float:
    """Return the seconds of making and placing a batch and of asking the teacher about it."""
    teacher.to(memory_format=torch.channels_last)
    for batch in batches.epoch(0):
        moved = batch._replace(inputs=to_device(batch.inputs, device, channels_last=True))
        with torch.autocast(device.type, torch.bfloat16):
            teacher(moved)
    return batches.seconds


def ratios(taken: Mapping[str, Sequence[float]], sizes: Sequence[int]) -> Ratios:
    """Return the ratios of classes from what `measure` returns."""
    parts, runs = {}, {}
    for k in sizes:
        each = list(zip(*(taken[name] for name in (class_of(k), ALONE, APART, class_of(1))), strict=True))
        parts[k] = statistics.median(whole / (alone + k * apart) for whole, alone, apart, _ in each)
        runs[k] = statistics.median(whole / (k * one) for whole, _, _, one in each)
    return Ratios(parts, runs)


def lines(
    sizes: Sequence[int] = (1, 8),
    *,
    steps: int = 4,
    rounds: int = 3,
    device: str = "auto",
    pair: tuple[str, str] = PAIR,
) -> Iterator[str]:
    """Time classes on one thread and random images, and yield lines to print."""
    with turns.threads(1):
        taken = measure(random_images(), sizes=sizes, steps=steps, rounds=rounds, device=device, pair=pair)
    alone, apart = (statistics.median(taken[name]) for name in (ALONE, APART))
    yield f"teacher alone {alone * 1e3:.1f} ms  a student apart {apart * 1e3:.1f} ms  (medians of {rounds})"
    over = ratios(taken, sizes)
    for k in sizes:
        yield line(k, statistics.median(taken[class_of(k)]), over)


def line(students: int, seconds: float, over: Ratios) -> str:
    """Show one class."""
    said = f"{class_of(students):<12} {seconds * 1e3:7.1f} ms  {over.parts[students]:.2f}x as long"
    return said if students == 1 else f"{said}  ({over.runs[students]:.2f}x as {students} runs with a live teacher)"
