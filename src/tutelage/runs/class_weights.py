"""A number for each class, from what a recipe says of their weights, and what is to be known of unequal classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tutelage.config.schema import Recipe
from tutelage.data import Splits
from tutelage.errors import RecipeError, nearest
from tutelage.objectives import Objective
from tutelage.runs.sanity_checks import some
from tutelage.settings.fit import Fit
from tutelage.settings.objective import BALANCED, ClassWeights


def with_class_weights(recipe: Recipe, objectives: Sequence[Objective], splits: Splits) -> tuple[Objective, ...]:
    """Return the objective of each stage with the weights of classes that its fit asks for.

    A stage that does not learn from labels alone stays as it is, unless all that ask for weights are such.

    Raises:
        RecipeError: if the data have no class for each sample or pixel, or other classes; or nothing is weighted.
    """
    fits = recipe.fits()
    if all(fit.class_weights is None for fit in fits):
        return tuple(objectives)
    asked = [each.supervised for each, fit in zip(objectives, fits, strict=True) if fit.class_weights is not None]

    def weighted(objective: Objective, fit: Fit) -> Objective:
        if fit.class_weights is None or (any(asked) and not objective.supervised):
            return objective
        return objective.with_class_weights(resolved(fit.class_weights, splits))

    return tuple(weighted(objective, fit) for objective, fit in zip(objectives, fits, strict=True))


def resolved(weights: ClassWeights, splits: Splits) -> tuple[float, ...]:
    """Return the weight of each class: a number of its own, or for ``balanced`` ``n / (classes * n_c)``.

    There ``n`` training labels are counted, of which ``n_c`` are of the class, so that their mean weight is 1. A class
    without any has weight 0, and is not counted among the classes.

    Raises:
        RecipeError: if the data have no class for each sample or pixel, or other classes, or their labels are not
            known before training.
    """
    names, of_tokens = splits.class_names, splits.task == "classes" and splits.train.per_position
    if splits.task not in ("classes", "pixels") or of_tokens:
        got = "tokens" if of_tokens else {"labels": "several labels a sample"}.get(splits.task, "embeddings")
        raise RecipeError("class_weights", "null without a class a sample or pixel", got, "type class_weights=null")
    if isinstance(weights, str):
        counts = splits.train.labels_of_classes(splits.classes)
        if counts is None or not counts.sum():
            got = "labels that are read in training alone" if counts is None else "none"
            instead = "give a number for each class, or leave class_weights out"
            raise RecipeError("class_weights", "training labels to be counted", got, instead)
        return tuple(_balanced(counts).tolist())
    if isinstance(weights, Mapping):
        if unknown := next((name for name in weights if name not in names), None):
            instead = nearest(unknown, names, otherwise="for example class_weights=balanced")
            raise RecipeError("class_weights", f"class names of {splits.source}", repr(unknown), instead)
        return tuple(weights.get(name, 1.0) for name in names)
    if len(weights) != splits.classes:
        expected = f"a number for each of {splits.classes} classes"
        instead = "type class_weights=balanced, or name some of the classes"
        raise RecipeError("class_weights", expected, len(weights), instead)
    return tuple(weights)


def _balanced(counts: Tensor) -> Tensor:
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts), 0.0)


def notes(recipe: Recipe, splits: Splits) -> Iterator[str]:
    """Yield a line for what is done about classes of unequal size."""
    if splits.train.balanced:
        yield from _of_draws(splits)
    if any(fit.class_weights == BALANCED for fit in recipe.fits()):
        weights = dict(zip(splits.class_names, resolved(BALANCED, splits), strict=True))
        counted = {name: weight for name, weight in weights.items() if weight}
        least, most = min(counted, key=counted.__getitem__), max(counted, key=counted.__getitem__)
        absent = [name for name, weight in weights.items() if not weight]
        yield (
            f"The cross-entropy weighs classes from {counted[least]:.3g} ({least}) to {counted[most]:.3g} ({most})"
            + f"; without a training label, and with weight 0: {some(absent)}" * bool(absent)
        )
        if splits.train.balanced:
            yield "Classes are drawn alike and weighted too: a small class counts twice over, and one of both is enough"


def _of_draws(splits: Splits) -> Iterator[str]:
    """Yield how often the samples of the smallest and the largest class are drawn."""
    counts = torch.bincount(splits.train.labels.clamp(min=-1) + 1)[1:]
    sizes = {k: size for k, size in enumerate(counts.tolist()) if size}
    each = int(counts.sum()) / len(sizes)

    def described(k: int) -> str:
        # Of embeddings no class has a name.
        name = repr(splits.class_names[k]) if splits.class_names else str(k)
        return f"each of the {sizes[k]} of class {name} {each / sizes[k]:.3g} times"

    least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    yield f"Classes are drawn alike: in an epoch {described(least)}, {described(most)} on average"
