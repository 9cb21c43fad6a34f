"""Students of one pair in one process: a group on one teacher pass, against separate teacher and students.

The student learns by KD, in bfloat16, with the CIFAR augmentation. Only the loop's steps are timed, not data sets,
networks and evaluation, nor each form's first step, which fills caches and makes the optimizer's state, nor anything
after the last, such as garbage collection, which happens once per fit.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from tutelage import data, objectives
from tutelage.benchmark import timing
from tutelage.benchmark.batches import FirstBatches, cached_logits, forward, network, random_images
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.settings.fit import FitSettings
from tutelage.training.distributed import accelerator_on
from tutelage.training.generators import RngState
from tutelage.training.isolation import Isolation
from tutelage.training.job import FitJob
from tutelage.training.lockstep import Lockstep
from tutelage.training.loop import fit
from tutelage.types import Teacher

Pair = tuple[str, str]
PAIR: Pair = ("resnet56", "resnet20")
BATCH = 64
SETTINGS = FitSettings(epochs=1, precision="bf16", checkpoint_seconds=1e9, log_steps=10_000)
ALONE, APART = "teacher alone", "student without teacher"


class Ratios(NamedTuple):
    """Relative times of groups by number of students: medians of each round's ratio, as speed drifts less within one.

    ``parts`` is relative to the teacher's steps alone plus that many times a student's with premade batches and cached
    logits, ``runs`` to that many times a group of one, which makes its own batches and runs the live teacher.
    """

    parts: dict[int, float]
    runs: dict[int, float]


def group_name(students: int) -> str:
    """Return the name of a group in records and output."""
    return f"class of {students}"


def measure(
    splits: data.Splits, *, sizes: Sequence[int], steps: int, rounds: int, device: str = "cpu", pair: Pair = PAIR
) -> dict[str, list[float]]:
    """Time ``steps`` of each form once per round, in turn, after a first round that warms up.

    Returns:
        Seconds per step in every round, by form: the teacher alone, a student without it, and the groups of 1 and of
        each of ``sizes`` students. The images are of 100 classes.
    """
    where = accelerator_on(device).device
    batches = data.BatchLoader(splits.train, batch_size=BATCH, train=True)
    live, premade = FirstBatches(batches, steps), FirstBatches(batches, steps, premade=True)
    teacher = FrozenTeacher(network(pair[0], where)).to(memory_format=torch.channels_last)
    group = partial(_group, student=pair[1], device=device)
    forms = {ALONE: partial(_teacher, teacher, live, where), APART: partial(group, 1, cached_logits(where), premade)}
    forms |= {group_name(k): partial(group, k, teacher, live) for k in dict.fromkeys((1, *sizes))}
    return timing.in_turn(forms, rounds)


def _group(students: int, teacher: Teacher, batches: FirstBatches, *, student: str, device: str) -> float:
    """Return the seconds per step of a group, whose distillers are made before."""
    accelerator = accelerator_on(device)
    distillers = [Distiller(network(student, accelerator.device, seed), objectives.kd()) for seed in range(students)]
    if students == 1:
        list(fit(distillers[0], teacher, batches, SETTINGS, accelerator=accelerator))
        return batches.seconds
    jobs = {k: FitJob(distiller=distiller, settings=SETTINGS) for k, distiller in enumerate(distillers)}
    isolation = Isolation()
    isolation.generators = {k: RngState(accelerator.device) for k in jobs}
    list(Lockstep(jobs, teacher, batches, accelerator=accelerator, isolation=isolation).run())
    for error in isolation.errors.values():
        raise error
    return batches.seconds


def _teacher(teacher: FrozenTeacher, batches: FirstBatches, device: torch.device) -> float:
    """Return the seconds of making and moving a batch and of the teacher's forward pass."""
    forward(teacher, batches.epoch(0), device, precision=SETTINGS.precision)
    return batches.seconds


def ratios(taken: Mapping[str, Sequence[float]], sizes: Sequence[int]) -> Ratios:
    """Return the ratios of groups from the result of `measure`."""
    parts, runs = {}, {}
    for k in sizes:
        rounds = list(zip(*(taken[name] for name in (group_name(k), ALONE, APART, group_name(1))), strict=True))
        parts[k] = statistics.median(group / (alone + k * apart) for group, alone, apart, _ in rounds)
        runs[k] = statistics.median(group / (k * single) for group, _, _, single in rounds)
    return Ratios(parts, runs)


def lines(sizes: Sequence[int] = (1, 8), *, steps: int = 4, rounds: int = 3, pair: Pair = PAIR) -> Iterator[str]:
    """Time groups on one thread and random images, and yield lines to print."""
    with timing.threads(1):
        taken = measure(random_images(), sizes=sizes, steps=steps, rounds=rounds, device="auto", pair=pair)
    median = timing.medians(taken)
    yield (
        f"teacher alone {median[ALONE] * 1e3:.1f} ms  a student apart {median[APART] * 1e3:.1f} ms  "
        f"(medians of {rounds})"
    )
    over = ratios(taken, sizes)
    for k in sizes:
        runs = "" if k == 1 else f"  ({over.runs[k]:.2f}x as {k} runs with a live teacher)"
        yield f"{group_name(k):<12} {median[group_name(k)] * 1e3:7.1f} ms  {over.parts[k]:.2f}x as long{runs}"
