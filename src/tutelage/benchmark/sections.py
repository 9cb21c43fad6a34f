"""The sections of ``tutelage doctor --bench``: what is timed, and against what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tutelage.benchmark import groups, linear, losses, recording, startup, steps


class Section(NamedTuple):
    """One subject: what is timed and how, the reference of the ratios, and the function that yields lines to print."""

    name: str
    title: str
    reference: str
    lines: Callable[..., Iterator[str]]


SECTIONS = (
    Section(
        "steps",
        f"Training, images per second: batches of {steps.BATCH}, teacher live and recorded",
        "the published procedure: float32, eager, one image at a time in a loader's workers, Algorithm 1, teacher live",
        steps.lines,
    ),
    Section(
        "classes",
        f"Students of one pair in one process: {'/'.join(groups.PAIR)}, a step of {groups.BATCH} images, bfloat16; "
        "side by side: as many at a time as there are threads, one each",
        "the teacher alone and the students apart, added up",
        groups.lines,
    ),
    Section(
        "losses",
        "Cross-entropy and WTTM, forward and backward: float32, one thread, batch x classes",
        "Algorithm 1 of arXiv:2402.11148 as it is printed",
        losses.lines,
    ),
    Section(
        "linear",
        f"Last linear layers, cross-entropy and WTTM: width {linear.WIDTH}, {linear.CLASSES} classes, float32, one "
        "thread",
        "whole logits and Algorithm 1",
        linear.lines,
    ),
    Section(
        "recording",
        f"Recording a teacher's outputs: {recording.PAIR[0]}, batches of {recording.BATCH}, bfloat16",
        "the teacher's own forward pass over the same views",
        recording.lines,
    ),
    Section("startup", "An import and the command line's start, seconds", "python -c pass", startup.lines),
)
