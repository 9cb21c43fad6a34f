"""A dry run: everything resolved and loaded, one batch through teacher, student and objective, nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch

from tutelage import data, models
from tutelage.config.schema import Recipe
from tutelage.errors import explaining
from tutelage.modules import FrozenTeacher
from tutelage.runs import autotune, notes, resume, sanity_checks, start
from tutelage.runs.disk import free_bytes, run_size
from tutelage.runs.execute import resolve_open
from tutelage.runs.manifest import describe_served
from tutelage.runs.networks import describe_fit
from tutelage.runs.setup import (
    build_inputs,
    check_run,
    evaluate_network,
    measure_of,
    metric_of,
    steps_of,
    torch_settings,
)
from tutelage.runs.terminal import rough_time
from tutelage.training import layers, memory
from tutelage.training.distributed import accelerator_on, world
from tutelage.training.precision import fallback
from tutelage.types import Batch

SAMPLE = 512
"""Number of test samples on which the teacher is judged."""


@explaining()
def dry_run(
    recipe: Recipe, *, trust_code: bool | frozenset[str] = False, runs: Path = Path("runs")
) -> list[tuple[str, str]]:
    """Resolve a recipe, try one batch, and return a summary of the run as (name, value) pairs to print.

    ``runs`` is the folder of all runs, whose disk is looked at.
    """
    with torch_settings(recipe):
        return _try(recipe, trust_code, runs)


def _try(recipe: Recipe, trust_code: bool | frozenset[str], runs: Path) -> list[tuple[str, str]]:
    # A teacher that is still to be trained has no accuracy yet, but its network gives the cost of a step.
    run_inputs = build_inputs(autotune.with_untrained_teacher(recipe), trust_code=trust_code)
    splits, objectives, fits = run_inputs.splits, run_inputs.objectives, recipe.fits()
    origin = start.origin(recipe, runs / recipe.name)
    if origin is not None:
        resume.same_fingerprints(run_inputs, resume.fingerprints(origin.manifest))
    check_run(recipe, run_inputs)
    recipe, reason, pieces_reason = resolve_open(recipe, run_inputs)
    training = recipe.training(f"{recipe.name}/teacher")
    of_tokens = splits.task != "pixels" and splits.train.per_position
    sizes = {name: n for name, n in splits.sizes().items() if name != "labelled" or not of_tokens}
    place = data.describe_place(splits, accelerator_on(recipe.device).device)
    summary = [
        ("data", f"{splits.source}: " + ", ".join(f"{name} {n:,}" for name, n in sizes.items())),
        *([("unlabelled", _unlabelled(splits.train))] if splits.train.unlabelled else []),
        ("tokens" if splits.text and not splits.of_images else "pixels", place),
        ({"labels": "labels", "embedding": "width"}.get(splits.task, "classes"), str(splits.outputs)),
        ("input", _input(splits)),
        ("student", _network(run_inputs.student, splits.input_shape("student"))),
        *([] if origin is None else [("start", f"{origin.folder}, after epoch {origin.epoch}")]),
    ]
    if (found := layers.rates(run_inputs.student, [fit.settings for fit in fits])) is not None:
        summary.append(("layers", f"{found.layers}, with {found.smallest_scale:.3g} to 1 times the learning rate"))
    evaluation = None
    if run_inputs.teacher is not None:
        by, judged = measure_of(splits), "it is trained first"
        if training is None:
            theirs = splits.for_teacher.test
            teacher, few = FrozenTeacher(run_inputs.teacher).network, _Sample(theirs)
            # The length of the whole text will do for a perplexity, which does not depend on it.
            text_bytes = theirs.text_bytes
            evaluation = evaluate_network(
                recipe, teacher, few, "teacher", sample=True, text_bytes=text_bytes, metric=metric_of(splits)
            )
            value = cast("float | None", evaluation.means("test").get(by.key))
            judged = (
                "unknown: none has a label"
                if value is None
                else f"{by.write(value)}{by.unit} on a sample of {evaluation.samples} test {by.counted}"
            )
        summary += [
            ("teacher", _network(run_inputs.teacher, splits.input_shape("teacher"))),
            (f"teacher {by.name}", judged),
        ]
    if (served := run_inputs.served) is not None:
        said = describe_served(served)
        left = f"{said['mean_left_over']:.2%} of the probability left over on average"
        summary.append(("teacher", f"served: the top {said['top']} of {splits.classes} tokens, {left}"))
    sanity_checks.warn(sanity_checks.of_labels(splits, objectives))
    sanity_checks.warn(
        sanity_checks.before_training(recipe, objectives, None if evaluation is None else evaluation.sample)
    )
    if evaluation is not None:
        sanity_checks.warn(sanity_checks.of_accuracy(recipe, evaluation, splits.fingerprint))
    precision = recipe.fits()[0].settings.precision
    line = fallback(accelerator_on(recipe.device).device, precision) or reason
    summary.append(("precision", line.removeprefix("precision ") if line else precision))
    if pieces_reason:
        summary.append(("accumulate", pieces_reason.removeprefix("accumulate ")))
    total = 0.0
    for i, (objective, fit) in enumerate(zip(objectives, fits, strict=True)):
        seconds, terms = autotune.time_step(recipe, run_inputs, i)
        steps = fit.steps(splits.train.per_epoch, world=world())
        if origin is not None:  # Earlier stages are over.
            steps -= steps * origin.epoch // fit.settings.epochs if i == origin.stage else steps
        total += steps * seconds
        stage = f"stage {i + 1} " if len(fits) > 1 else ""
        asked = ", the teacher asked in each: outputs save that" if recipe.outputs and objective.needs.teacher else ""
        summary += [
            (f"{stage}objective", objective.name + ": " + ", ".join(f"{k} {v:.4f}" for k, v in terms.items())),
            (f"{stage}logits", _logits(fit.batch_size * splits.train.views_per_sample, splits)),
            (f"{stage}steps", f"{steps} of {fit.batch_size} samples, {seconds * 1000:.1f} ms each{asked}"),
        ]
    if training is not None:
        teaching = build_inputs(training, trust_code=trust_code)
        seconds, _ = autotune.time_step(training, teaching)
        steps = steps_of(training, teaching.splits.train.per_epoch)
        total += steps * seconds
        summary.append(("teacher's training", f"{steps} steps, {seconds * 1000:.1f} ms each"))
    with_teacher = "" if training is None else ", the teacher's training among it"
    megabytes = memory.peak(torch.device("cpu"))
    used = "not told by the system" if megabytes is None else f"{megabytes:.0f} MB of the process at its peak"
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        used += f", {torch.cuda.max_memory_allocated() / 2**20:.0f} MB on the GPU"
        if any(fit.settings.graphs is not False for fit in fits):
            used += "; a captured step keeps its own beside that, about as much again (graphs=false: none)"
    size = run_size(recipe, run_inputs.student)
    if training is not None and run_inputs.teacher is not None:
        size += run_size(training, run_inputs.teacher)
    disk = f"{size / 1e6:.1f} MB, {free_bytes(runs) / 1e6:.0f} MB free"
    return [
        *summary,
        *(("note", line) for line in notes.of_run(recipe, run_inputs)),
        ("estimated disk", disk),
        ("estimated time", f"{rough_time(total)}{with_teacher}, evaluation not counted"),
        ("memory", used),
    ]


class _Sample:
    """Evenly spaced samples of a split, as batches."""

    def __init__(self, split: data.Split) -> None:
        self.samples = min(SAMPLE, len(split))
        index = np.linspace(0, len(split) - 1, self.samples).astype(np.int64)
        self.requests = data.split_evenly(index, 64)
        self.batches = data.BatchLoader(split, batch_size=64, train=False)

    def __len__(self) -> int:
        return len(self.requests)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        return self.batches.at(epoch, self.requests[start:])


def _logits(batch_size: int, splits: data.Splits) -> str:
    positions = f"up to {splits.positions} tokens, " if splits.train.per_position else ""
    if splits.task == "pixels":
        positions = "".join(f"{side}, " for side in splits.image_size or ())
    elif splits.task == "labels":
        positions = f"{splits.outputs}, "
    return f"({batch_size}, {positions}{splits.classes})"


def _unlabelled(train: data.Split) -> str:
    """Describe the samples of a source without labels."""
    part = train.unlabelled
    assert part is not None
    share = part.per_epoch / train.per_epoch
    epoch = f"{part.per_epoch:,} in an epoch of {train.per_epoch:,}, a share of {share:.3g}"
    return f"{part.samples:,} training samples of {part.source}: {epoch}"


def _input(splits: data.Splits) -> str:
    """Describe a batch of the data."""
    if not splits.text:
        return f"(batch, {', '.join(map(str, splits.input_shape('')))}), values in [0, 1]"
    if splits.of_images:
        ((name, text),) = splits.text.items()
        image = f"(batch, {', '.join(map(str, splits.input_shape('')))}), values in [0, 1]"
        return f"{image}; the {name}'s (batch, up to {text.max_tokens} tokens), token ids below {text.tokenizer.size:,}"
    student, teacher = splits.text["student"], splits.text["teacher"]
    ids = f"token ids below {student.tokenizer.size:,}"
    own = f"; the teacher's below {teacher.tokenizer.size:,}" if teacher != student else ""
    return f"(batch, up to {student.max_tokens} tokens), {ids}{own}"


def _network(network: models.Classifier, shape: tuple[int, ...]) -> str:
    card = network.card
    count, weights = models.parameters(network), card.weights or "random"
    counted = f"{count:,} parameters, " if count else ""  # An ONNX file does not tell them.
    if network.frozen_by:
        counted += f"{sum(p.numel() for p in network.parameters() if p.requires_grad):,} of them trained, "
    answers = {"labels": f"{card.classes} labels", "embedding": f"a vector of {card.classes}"}
    facts = f"{card.name}: {counted}{answers.get(card.task, f'{card.classes} classes')}, weights {weights}"
    return "; ".join([facts, *describe_fit(network, shape)])
