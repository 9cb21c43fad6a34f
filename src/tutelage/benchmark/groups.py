"""Students of one pair in one process: a group on one teacher pass, against separate teacher and students.

The student learns by KD, in bfloat16, with the CIFAR augmentation. A group's students take their steps in turn, with
all of the process's threads as the references have, or side by side: as many at a time as there are threads, one each.

Only the loop's steps are timed, not data sets, networks and evaluation, nor each form's first steps, which fill caches
and make the optimizer's state and are taken in turn, nor anything after the last, such as garbage collection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
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
from tutelage.training.lockstep import WATCHED, Lockstep
from tutelage.training.loop import fit
from tutelage.types import Teacher

Pair = tuple[str, str]
PAIR: Pair = ("resnet56", "resnet20")
OTHER = "resnet8x4"
"""Student of another architecture, beside the pair's in a group of two."""
BATCH = 64
SETTINGS = FitSettings(epochs=1, precision="bf16", checkpoint_seconds=1e9, log_steps=10_000)
ALONE, APART, OTHER_APART = "teacher alone", "student without teacher", "other student without teacher"
UNLIKE, ONE_THREAD = "class of two unlike", "one thread"


class Ratios(NamedTuple):
    """Relative times of groups by number of students: medians of each round's ratio, as speed drifts less within one.

    ``parts`` is relative to the teacher's steps alone plus that many times a student's with premade batches and cached
    logits, ``side_by_side`` is the same of a group whose students take steps side by side, and ``runs`` is relative to
    that many times a group of one, which makes its own batches and runs the live teacher.
    """

    parts: dict[int, float]
    side_by_side: dict[int, float]
    runs: dict[int, float]


def group_name(students: int, *, side_by_side: bool = False) -> str:
    """Return the name of a group in records and output."""
    return f"class of {students}{', side by side' * side_by_side}"


def measure(
    splits: data.Splits, *, sizes: Sequence[int], steps: int, rounds: int, device: str = "cpu", pair: Pair = PAIR
) -> dict[str, list[float]]:
    """Time ``steps`` of each form once per round, in turn, after a first round that warms up.

    Returns:
        Seconds per step in every round, by form: the teacher alone, a student and one of another architecture without
        it, the two in a group, the groups of 1 and of each of ``sizes`` students, in turn and side by side, and the
        largest one in turn on one thread. The images are of 100 classes.
    """
    where = accelerator_on(device).device
    batches = data.BatchLoader(splits.train, batch_size=BATCH, train=True)
    live, premade = (FirstBatches(batches, steps, premade=made, warm_up=WATCHED) for made in (False, True))
    teacher, cached = FrozenTeacher(network(pair[0], where)).to(memory_format=torch.channels_last), cached_logits(where)
    group, alike = partial(_group, device=device), [pair[1]]
    forms = {ALONE: partial(_teacher, teacher, live, where)}
    forms |= {name: partial(group, [one], cached, premade) for name, one in ((APART, pair[1]), (OTHER_APART, OTHER))}
    forms[UNLIKE] = partial(group, [pair[1], OTHER], teacher, live)
    for k in dict.fromkeys((1, *sizes)):
        forms[group_name(k)] = partial(group, k * alike, teacher, live)
        if k > 1:
            several = partial(group, k * alike, teacher, live, threads=1, side_by_side=torch.get_num_threads())
            forms[group_name(k, side_by_side=True)] = several
    if (most := max(sizes)) > 1:
        forms[f"{group_name(most)}, {ONE_THREAD}"] = partial(group, most * alike, teacher, live, threads=1)
    return timing.in_turn(forms, rounds)


def _group(
    students: Sequence[str],
    teacher: Teacher,
    batches: FirstBatches,
    *,
    device: str,
    threads: int | None = None,
    side_by_side: int = 1,
) -> float:
    """Return the seconds per step of a group, whose distillers are made before."""
    accelerator = accelerator_on(device)
    networks = [network(student, accelerator.device, seed) for seed, student in enumerate(students)]
    distillers = [Distiller(student, objectives.kd()) for student in networks]
    if len(students) == 1:
        list(fit(distillers[0], teacher, batches, SETTINGS, accelerator=accelerator))
        return batches.seconds
    jobs = {k: FitJob(distiller=distiller, settings=SETTINGS) for k, distiller in enumerate(distillers)}
    isolation = Isolation()
    isolation.generators = {k: RngState(accelerator.device) for k in jobs}
    lockstep = Lockstep(jobs, teacher, batches, accelerator=accelerator, isolation=isolation, side_by_side=side_by_side)
    with timing.threads(threads or torch.get_num_threads()):
        list(lockstep.run())
    for error in isolation.errors.values():
        raise error
    return batches.seconds


def _teacher(teacher: FrozenTeacher, batches: FirstBatches, device: torch.device) -> float:
    """Return the seconds of making and moving a batch and of the teacher's forward pass."""
    forward(teacher, batches.epoch(0), device, precision=SETTINGS.precision)
    return batches.seconds


def ratios(taken: Mapping[str, Sequence[float]], sizes: Sequence[int]) -> Ratios:
    """Return the ratios of groups from the result of `measure`."""
    ratios = Ratios({}, {}, {})
    alone, apart, single = (np.array(taken[name]) for name in (ALONE, APART, group_name(1)))
    for k in sizes:
        group = np.array(taken[group_name(k)])
        ratios.parts[k] = float(np.median(group / (alone + k * apart)))
        ratios.runs[k] = float(np.median(group / (k * single)))
        if (several := taken.get(group_name(k, side_by_side=True))) is not None:
            ratios.side_by_side[k] = float(np.median(np.array(several) / (alone + k * apart)))
    return ratios


def unlike_over_parts(taken: Mapping[str, Sequence[float]]) -> float:
    """Return the relative time of the group of two unlike students, from the result of `measure`."""
    group, *parts = (np.array(taken[name]) for name in (UNLIKE, ALONE, APART, OTHER_APART))
    return float(np.median(group / sum(parts)))


def lines(sizes: Sequence[int] = (1, 8), *, steps: int = 4, rounds: int = 3, pair: Pair = PAIR) -> Iterator[str]:
    """Time groups on random images, and yield lines to print."""
    taken = measure(random_images(), sizes=sizes, steps=steps, rounds=rounds, device="auto", pair=pair)
    median = timing.medians(taken)
    yield (
        f"teacher alone {median[ALONE] * 1e3:.1f} ms  a student apart {median[APART] * 1e3:.1f} ms  "
        f"a {OTHER} {median[OTHER_APART] * 1e3:.1f} ms  (medians of {rounds})"
    )
    over = ratios(taken, sizes)
    for k in sizes:
        runs = "" if k == 1 else f"  ({over.runs[k]:.2f}x as {k} runs with a live teacher)"
        yield f"{group_name(k):<24} {median[group_name(k)] * 1e3:7.1f} ms  {over.parts[k]:.2f}x as long{runs}"
        if k in over.side_by_side:
            name = group_name(k, side_by_side=True)
            yield f"{name:<24} {median[name] * 1e3:7.1f} ms  {over.side_by_side[k]:.2f}x as long"
        if (one := median.get(f"{group_name(k)}, {ONE_THREAD}")) is not None:
            yield f"  in turn on {ONE_THREAD:<12} {one * 1e3:7.1f} ms"
    yield f"{UNLIKE:<24} {median[UNLIKE] * 1e3:7.1f} ms  {unlike_over_parts(taken):.2f}x as long"
