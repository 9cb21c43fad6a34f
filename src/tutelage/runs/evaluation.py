"""A network's last evaluation, in detail: what it answers for each sample, and how sure it should be."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import replace

from torch import nn

from tutelage import data, records
from tutelage.config.schema import Recipe
from tutelage.runs.setup import evaluate_network
from tutelage.training.calibration import Answered, calibrate
from tutelage.training.evaluate import EvalSet, Evaluation, KeptLogits, TeacherOutputs

MOST_LOGITS = 2**30
"""Bytes of a held-out set's logits in float32 above which a network is not calibrated."""


def has_one_class(splits: data.Splits) -> bool:
    """Whether a sample has one class, as neither tokens, pixels, labels nor embeddings have."""
    return splits.task == "classes" and not splits.test.per_position


def evaluate_in_detail(
    recipe: Recipe,
    network: nn.Module,
    splits: data.Splits,
    held_out: Sequence[EvalSet],
    who: str = "network",
    *,
    gamma: float | None = None,
) -> Evaluation:
    """Evaluate a network on the test set, with what it answers for each sample and its calibration.

    The validation set is evaluated too where there is one, as the temperature is then fitted on it.

    Args:
        recipe: recipe, as for `evaluate_network`, like the next one.
        network: the network.
        splits: the data.
        held_out: all held-out sets.
        who: what to call the network.
        gamma: exponent of the transformed teacher that it matched.
    """
    logits = {held.name: KeptLogits() for held in held_out} if _is_calibrated(splits) else {}
    evaluations = {}
    for held in held_out:
        if held.name == "test" or held.name in logits:
            evaluations[held.name] = evaluate_network(
                recipe,
                network,
                held.batches,
                who,
                teacher=held.teacher.logits if held.teacher else None,
                gamma=gamma,
                keep=logits.get(held.name),
                predictions=has_one_class(splits),
                text_bytes=held.text_bytes,
                metric=held.metric,
            )
    return _calibrated(evaluations["test"], logits, splits)


def calibrate_teacher(outputs: MutableMapping[str, TeacherOutputs], splits: data.Splits) -> Evaluation:
    """Return the teacher's evaluation on the test set with its calibration, which is kept among its outputs."""
    test = outputs["test"]
    if test.evaluation.calibration is None and _is_calibrated(splits):
        logits = {name: each.logits for name, each in outputs.items() if isinstance(each.logits, KeptLogits)}
        test = outputs["test"] = test._replace(evaluation=_calibrated(test.evaluation, logits, splits))
    return test.evaluation


def predictions_of(student: Evaluation, teacher: Evaluation | None) -> records.Predictions | None:
    """Return what networks answer for each sample of the test set; ``None`` where samples have not one class."""
    if student.predicted is None:
        return None
    arrays = [column.numpy() for column in student.predicted]
    if teacher is not None and teacher.predicted is not None:
        arrays += [column.numpy() for column in teacher.predicted[2:]]
    return records.Predictions("test", *arrays)


def _is_calibrated(splits: data.Splits) -> bool:
    held_out = [split for name, split in splits.by_name().items() if name != "train"]
    return has_one_class(splits) and max(map(len, held_out)) * splits.outputs * 4 <= MOST_LOGITS


def _calibrated(evaluation: Evaluation, logits: dict[str, KeptLogits], splits: data.Splits) -> Evaluation:
    known = splits.by_name()
    answered = {name: Answered(each, known[name].labels) for name, each in logits.items()}
    if "test" not in answered:
        return evaluation
    return replace(evaluation, calibration=calibrate(answered["test"], answered.get("validation")))
