"""What a command says of its data and settings: what was left out, held out or enlarged, and what will be wasted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from tutelage import launcher
from tutelage.config.schema import Recipe
from tutelage.data import Splits
from tutelage.models import Classifier
from tutelage.runs import class_weights
from tutelage.runs.networks import describe_fit
from tutelage.runs.sanity_checks import some
from tutelage.runs.setup import RunInputs
from tutelage.types import UNLABELLED


def of_run(recipe: Recipe, run_inputs: RunInputs) -> Iterator[str]:
    """Yield a line for everything that a user of this recipe may not expect."""
    splits, student = run_inputs.splits, run_inputs.student
    yield from of_data(splits)
    for line in describe_fit(student, splits.input_shape("student")):
        yield f"student {student.card.name}: {line}"
    yield from class_weights.notes(recipe, splits)
    if splits.for_teacher is not splits:
        yield "Teacher and student have other tokens: compare their bits per byte, not their perplexities"
    samples = splits.train.per_epoch
    for size in dict.fromkeys(fit.batch_size for fit in recipe.fits()):
        if size > samples:
            yield f"batch_size {size} is above the {samples} training samples: an epoch is one step of all of them"


def of_data(splits: Splits) -> Iterator[str]:
    """Yield a line for each decision about data that was made on the user's behalf, and for what they lack."""
    yield from (note.removesuffix(".") for note in splits.notes)
    if splits.validation is not None:
        held_out, count = len(splits.validation), len(splits.train)
        yield f"For validation {held_out} training samples are held out, and {count} are left to train on"
    yield from left_out(splits)
    yield from _untested(splits)
    yield from _of_workers(splits)


def of_judged(network: Classifier, splits: Splits) -> Iterator[str]:
    """Yield a line for everything that may not be expected where a model is evaluated."""
    yield from of_data(replace(splits, validation=None))
    for line in describe_fit(network, splits.input_shape("student")):
        yield f"model {network.card.name}: {line}"


def left_out(splits: Splits) -> Iterator[str]:
    """Yield a line for the samples that could not be read so far, if there are any."""
    if names := list(dict.fromkeys(name for split in splits.by_name().values() for name in split.corrupt)):
        yield f"Left out, as they cannot be read: {some(names)}"


def _untested(splits: Splits) -> Iterator[str]:
    """Yield a line where no test sample has a class of the data, unless there are fewer samples than classes."""
    labels = splits.test.labels
    if splits.task != "classes" or splits.test.per_position or labels.is_floating_point():
        return
    counts = torch.bincount(labels[labels != UNLABELLED], minlength=splits.classes)
    absent = [name for name, count in zip(splits.class_names, counts.tolist(), strict=False) if not count]
    if absent and int(counts.sum()) >= splits.classes:
        yield f"No test sample has the class {some(absent)}: how well these are told apart is not measured"


def _of_workers(splits: Splits) -> Iterator[str]:
    """Yield a line where more processes read data than this machine has cores for."""
    workers = max(split.workers for split in splits.by_name().values())
    if workers > (cores := launcher.cores()):
        yield f"data.workers {workers} is above this machine's {cores} cores, for which they wait: {cores} will do"
