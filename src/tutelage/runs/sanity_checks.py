"""What is told of a run that may not work: guesses, each a warning, after which the run goes on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from tutelage import records
from tutelage.config.schema import Network, Recipe
from tutelage.data import Splits
from tutelage.errors import message
from tutelage.objectives import Objective
from tutelage.settings.fit import FitSettings, MultiStep, Schedule, Step
from tutelage.training.evaluate import Evaluation
from tutelage.training.optim import learning_rate
from tutelage.types import UNLABELLED

VANISHES = 2.0**-24
"""Half of float32's relative precision: what is added to a number this many times as large changes nothing."""
LOST = 0.05
"""Accuracy that a teacher may lose from its own evaluation to this run's before it is told."""
_SUM_TOLERANCE = 1e-3  # float16 outputs add up to no less
_TELLING = 64  # fewer logits may all lie between 0 and 1 by chance
_NAMED = 3  # classes in a message
_ENOUGH = 20  # samples, of which a label may not hold for all or none


def warn(texts: Iterable[str]) -> list[str]:
    """Warn of each, and return them."""
    told = list(texts)
    for text in told:
        warnings.warn(text, stacklevel=3)
    return told


def before_training(recipe: Recipe, objectives: Sequence[Objective], teacher: Tensor | None) -> Iterator[str]:
    """Yield what is to be told of a recipe before its first step.

    Args:
        recipe: recipe of the run.
        objectives: objective of each stage.
        teacher: teacher's logits for some samples ``(samples, classes)``, float32; ``None`` without one.
    """
    for fit, objective in zip(recipe.fits(), objectives, strict=True):
        yield from _of_rates(fit.settings)
        yield from _of_weights(objective)
        if teacher is not None:
            yield from _of_exponents(objective, teacher)
    if teacher is not None and any(objective.needs.teacher for objective in objectives):
        if not any(objective.needs.embeddings for objective in objectives):
            yield from of_answers("teacher", teacher)
        if len(teacher) > 1 and not recipe.weak_teacher and bool((teacher == teacher[0]).all()):
            got, instead = "the same for every sample", "name a teacher that is trained, and check its input's size"
            yield message("teacher", "answers that differ from sample to sample", got, instead)


def of_answers(role: str, logits: Tensor) -> Iterator[str]:
    """Yield a warning where a network's answers are probabilities: each row is at least 0 and adds up to 1."""
    if bool((logits >= 0).all()) and bool(((logits.sum(-1) - 1).abs() < _SUM_TOLERANCE).all()):
        got = "rows that are at least 0 and add up to 1, as probabilities do"
        instead = (
            "leave softmax out of its last layer, as every loss takes its own; the run goes on with them as logits"
        )
        yield message(role, "logits", got, instead)
    elif logits.numel() >= _TELLING and bool(((logits > 0) & (logits < 1)).all()):
        got = f"{logits.numel()} numbers above 0 and below 1, as a sigmoid gives"
        instead = "leave sigmoid out of its last layer; the run goes on with them as logits"
        yield message(role, "logits", got, instead)


def of_labels(splits: Splits, objectives: Sequence[Objective]) -> Iterator[str]:
    """Yield a warning where the labels that a run learns from lack classes of the data.

    Fewer labels than classes lack some by necessity, which is not told. Of several labels a sample, those are told that
    hold for no sample, or for all.
    """
    if splits.task == "embedding" or all(objective.needs.labels == "none" for objective in objectives):
        return
    if splits.task == "labels":
        yield from _of_several(splits.class_names, splits.train.labels)
        return
    counts = splits.train.labels_of_classes(splits.classes)
    if counts is None:
        return
    present = [name for name, count in zip(splits.class_names, counts.tolist(), strict=True) if count]
    absent = [name for name, count in zip(splits.class_names, counts.tolist(), strict=True) if not count]
    if len(present) == 1 and int(counts.sum()) > 1:
        got = f"{present[0]!r} alone for {int(counts.sum())} of them, of {splits.classes} in the data"
        instead = "check where the labels are read from, as any network learns to answer that"
        yield message("data", "training samples with labels of several classes", got, instead)
    elif absent and int(counts.sum()) >= splits.classes:
        instead = "add some, or leave these classes out of the data: they cannot be learned from labels"
        expected = f"training samples with labels of all {splits.classes} classes"
        got = f"none of {some(absent)}"
        yield message("data", expected, got, instead)


def _of_several(names: Sequence[str], labels: Tensor) -> Iterator[str]:
    """Yield a warning for labels ``(samples, labels)`` that hold for no sample in which they are known, or for all."""
    enough = (labels != UNLABELLED).sum(0) >= _ENOUGH
    for value, held in ((0, "none"), (1, "all")):
        alike = ((labels == value) | (labels == UNLABELLED)).all(0)
        if found := (alike & enough).nonzero().flatten().tolist():
            got = f"{some([names[k] for k in found])} for {held}"
            instead = "check where the labels are read from: there is nothing to learn of these"
            yield message("data", "labels that hold for some training samples and not for others", got, instead)


def some(names: Sequence[str]) -> str:
    """Count names, and show the first ones."""
    named = ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
    return named if len(names) == 1 else f"{len(names)} ({named})"


def of_accuracy(recipe: Recipe, evaluation: Evaluation, data: str | None) -> Iterator[str]:
    """Yield a warning where a teacher is far below the accuracy that its own run recorded.

    Args:
        recipe: recipe of the run.
        evaluation: teacher's evaluation.
        data: fingerprint of the data.
    """
    teacher = recipe.teacher
    if not isinstance(teacher, Network) or teacher.weights is not None:
        return
    path = Path(teacher.name) / records.EVALUATION
    if not path.is_file():
        return
    try:
        recorded = float(records.read_json(path)["student"]["accuracy"])
        trained_on = records.read_json(path.with_name(records.MANIFEST))["data"]["fingerprint"]
    except (ValueError, KeyError, TypeError, OSError):  # A run that is torn is told of elsewhere.
        return
    accuracy = recorded if evaluation.accuracy is None else evaluation.accuracy
    error = (recorded * (1 - recorded) / max(evaluation.labelled, 1)) ** 0.5
    if accuracy < recorded - max(LOST, 4 * error):
        same = "the same data" if data is not None and data == trained_on else "other data than these"
        expected = f"an accuracy near {recorded:.2%}, which {path} says of it on {same}"
        instead = "check the order of the classes, the size of the images and the normalisation of its inputs"
        yield message("teacher", expected, f"{accuracy:.2%}", instead)


def _of_rates(settings: FitSettings) -> Iterator[str]:
    schedule, epochs, peak = settings.schedule, settings.epochs, settings.optimizer.lr
    rates = [learning_rate(schedule, peak, epoch=e, begin=0.5, end=0.5, epochs=epochs) for e in range(epochs)]
    if schedule.warmup >= epochs:
        got = (
            f"{schedule.warmup:g} of {epochs}, so that the rate never goes beyond {peak * epochs / schedule.warmup:.3g}"
        )
        instead = f"type schedule.warmup={max(epochs // 20, 0)}, or more epochs"
        yield message("schedule.warmup", f"fewer epochs than the run has, to reach optimizer.lr={peak:g}", got, instead)
    elif epochs > 1 and (key := _never_falls(schedule, epochs)):
        got = f"{getattr(schedule, key)}, so that the rate never falls"
        instead = f"type schedule.{key}={[epochs // 2] if key == 'milestones' else epochs // 2}, or schedule=constant"
        yield message(f"schedule.{key}", f"a decay within the {epochs} epochs of the run", got, instead)
    elif epochs > 1 and sum(rate < 1e-6 * peak for rate in rates) > epochs / 2:
        first = next(k for k, rate in enumerate(rates) if rate < 1e-6 * peak and k >= schedule.warmup)
        got = f"less than a millionth of it from epoch {first + 1} of {epochs} on"
        key = "milestones" if isinstance(schedule, MultiStep) else "factor"
        yield message("schedule", f"a rate that trains, optimizer.lr={peak:g}", got, f"type another schedule.{key}")


def _never_falls(schedule: Schedule, epochs: int) -> str:
    """Return the key of a schedule whose decays all lie beyond the run; an empty text if there is none."""
    if isinstance(schedule, MultiStep) and schedule.milestones and schedule.milestones[0] >= epochs:
        return "milestones"
    return "every" if isinstance(schedule, Step) and schedule.every >= epochs else ""


def _of_weights(objective: Objective) -> Iterator[str]:
    largest = {
        part.name: part.weight * scale for part, scale in objective.parts if isinstance(part.weight, int | float)
    }
    if largest and len(largest) == len(list(objective.parts)) and not any(largest.values()):
        yield message(f"objective {objective.name}", "a weight above 0", "0 for every term", "give one a weight")
    most = max(largest, key=lambda name: abs(largest[name]), default="")
    for name, weight in largest.items():
        if 0 < abs(weight) < VANISHES * abs(largest[most]):
            got = f"{weight:g} beside {largest[most]:g} of {most}, where float32 loses it"
            instead = f"raise the one or lower the other by a factor of {largest[most] / weight:.0e}"
            yield message(f"weight of {name}", "one that counts", got, instead)


def _of_exponents(objective: Objective, logits: Tensor) -> Iterator[str]:
    """Yield a warning for each exponent at which the teacher's answers say nothing of its classes any more."""
    probabilities = logits.double().softmax(-1)
    if bool((logits == logits[:, :1]).all()):  # It says nothing at any.
        return
    for gamma in sorted(gamma for gamma in objective.read_at if gamma is not None):
        softened = (gamma * logits.double()).softmax(-1).float()
        uniform = bool((softened.amin(-1) >= (1 - 2 * VANISHES) * softened.amax(-1)).all())
        certain = bool((softened.amax(-1) == 1).all()) and float(probabilities.amax(-1).min()) < 0.999
        if uniform or certain:
            temperature = f"temperature {1 / gamma:.4g}" if gamma else "an infinite temperature"
            got = "the same probability for every class" if uniform else "one class with all the probability"
            expected = f"a teacher with something to say of the classes at gamma {gamma:.4g}, {temperature}"
            instead = "type a smaller temperature, or a larger gamma" if uniform else "type a larger temperature"
            yield message(f"objective {objective.name}", expected, got, f"{instead}; values from 1 to 20 are usual")
