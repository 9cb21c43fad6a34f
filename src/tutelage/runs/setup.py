"""What a run is made of: a recipe's names turned into data and networks, and whether they fit each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from tutelage import config, data, models, taps
from tutelage.config.schema import Network, R, Recipe, RecipeError
from tutelage.models import Classifier
from tutelage.modules import FrozenTeacher, network_context
from tutelage.objectives import BindContext, Objective, from_spec
from tutelage.runs.manifest import without_paths
from tutelage.settings.fit import Fit
from tutelage.teacher_cache.cache import TeacherCache
from tutelage.types import UNLABELLED, Batch, Batches


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """A run's objects.

    Attributes:
        splits: the data.
        student: to train.
        teacher: to learn from.
        objectives: of each stage.
        repeatable: all of it came from names, so that the folder alone repeats the run.
    """

    splits: data.Splits
    student: Classifier
    teacher: Classifier | None
    objectives: tuple[Objective, ...]
    repeatable: bool = True


def parse(kind: type[R], value: Mapping[str, Any], *, where: str = "recipe") -> R:
    """Check a recipe as `config.parse` does, and that its objectives can be built."""
    return config.parse(kind, value, where=where, check=from_spec)


def build_objectives(recipe: Recipe) -> tuple[Objective, ...]:
    """Build the objective of each stage."""
    return tuple(from_spec(fit.objective) for fit in recipe.fits())


def build_inputs(
    recipe: Recipe,
    *,
    teacher: str | None = None,
    beside: RunInputs | None = None,
    trust_code: bool | frozenset[str] = False,
    splits: data.Splits | None = None,
) -> RunInputs:
    """Turn a recipe's names into objects.

    Args:
        recipe: the run's.
        teacher: the folder of a teacher that was trained for this run.
        beside: another run's with the same data and the same teacher, if both have one; they are shared.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.
        splits: the recipe's data, where they are open already.
    """
    wanted = build_objectives(recipe)
    if splits is None:
        splits = beside.splits if beside else data.open_data(recipe.data)
    shape: dict[str, Any] = {"channels": splits.channels, "image_size": splits.image_size}
    student = models.create(
        recipe.student.name,
        weights=recipe.student.weights,
        classes=splits.classes,
        seed=recipe.seed,
        trust_code=trust_code,
        **shape,
    )
    student.card = replace(
        student.card,
        image_size=splits.image_size,
        margin=splits.margin,
        interpolation=splits.interpolation,
        divisor=splits.divisor,
        class_names=splits.class_names,
    )
    named = Network(name=teacher) if teacher else recipe.teacher
    if not isinstance(named, Network):
        return RunInputs(splits=splits, student=student, teacher=None, objectives=wanted)
    if beside and beside.teacher is not None:
        return RunInputs(splits=splits, student=student, teacher=beside.teacher, objectives=wanted)
    made = models.create(named.name, weights=named.weights, classes=splits.classes, trust_code=trust_code, **shape)
    return RunInputs(splits=splits, student=student, teacher=made, objectives=wanted)


def check_compatible(run_inputs: RunInputs) -> None:
    """Refuse data, teacher, student and objectives that do not fit each other.

    Raises:
        RecipeError: naming what does not fit.
    """
    splits, teacher = run_inputs.splits, run_inputs.teacher
    labels = splits.train.labels
    for objective in run_inputs.objectives:
        if objective.needs.teacher and teacher is None:
            raise RecipeError(
                f"teacher: expected one for objective {objective.name}, got none; "
                "add teacher=..., such as a run's folder"
            )
        if objective.needs.labels != "none" and not labels.is_floating_point() and not (labels != UNLABELLED).any():
            raise RecipeError(
                f"data: expected labels for the supervised objective {objective.name}, got none among {len(labels)} "
                "training samples; give labels, or zero its supervised weight where it has one beside a teacher's"
            )
        if objective.needs.labels == "index" and labels.is_floating_point():
            raise RecipeError(
                f"data: expected class indices for objective {objective.name}, got soft labels; "
                "use an objective that takes them"
            )
        if objective.needs.labels == "index" and splits.train.mixing is not None:
            raise RecipeError(
                f"data: expected class indices for objective {objective.name}, got the soft labels of mixed samples; "
                "type data.mixup=0 data.cutmix=0, or use an objective that takes them"
            )
        _has_taps(run_inputs, objective)
    if teacher is not None and teacher.card.classes != splits.classes:
        raise RecipeError(
            f"teacher {teacher.card.name}: expected {splits.classes} classes, as the data and the student have, got "
            f"{teacher.card.classes}; fine-tune it on these data with `tutelage train`, or name another teacher"
        )
    if teacher is not None and teacher.card.fresh_head:
        raise RecipeError(
            f"teacher {teacher.card.name}: expected weights for {splits.classes} classes, as the data have, got "
            "weights for another number; fine-tune it on these data first with `tutelage train`, or name another"
        )
    if teacher is not None:
        _same_classes(teacher, splits)


def check_last_batch(samples: int, wanted: Sequence[Objective], fits: Sequence[Fit], *, world: int = 1) -> None:
    """Refuse an epoch whose last batch is too small for an objective, before it is reached.

    Args:
        samples: for training.
        wanted: each stage's objective.
        fits: the stages.
        world: processes that share a batch.

    Raises:
        RecipeError: naming the batch size, and one that leaves enough.
    """
    smallest = partial(data.smallest_share, samples, world=world)
    for objective, fit in zip(wanted, fits, strict=True):
        batch_size, least = fit.batch_size, objective.needs.min_batch
        if (got := smallest(batch_size)) < least:
            sizes = (*range(batch_size, 0, -1), *range(batch_size + 1, samples + 1))
            fitting = next((size for size in sizes if smallest(size) >= least), None)
            remedy = f"type batch_size={fitting}" if fitting else "use more samples"
            raise RecipeError(
                f"batch_size: expected {least} samples or more in every batch for objective {objective.name}, got "
                f"{got} in the smallest of {samples} samples by {batch_size}"
                f"{f' on {world} processes' if world > 1 else ''}; {remedy}"
            )


def _has_taps(run_inputs: RunInputs, objective: Objective) -> None:
    """Refuse an objective that reads features which a network does not have, before any stage begins."""
    needs = objective.needs
    for network, names in ((run_inputs.student, needs.student_taps), (run_inputs.teacher, needs.teacher_taps)):
        for name in names:
            try:
                taps.find(cast(Classifier, network), name)
            except ValueError as error:
                raise RecipeError(f"objective {objective.name}: {error}") from None
    if run_inputs.teacher is not None:
        try:
            if needs.teacher_head:
                taps.head(run_inputs.teacher)
            for name in needs.teacher_norms:
                taps.batch_norm(run_inputs.teacher, name)
        except ValueError as error:
            raise RecipeError(f"objective {objective.name}: {error}") from None


def _same_classes(teacher: Classifier, splits: data.Splits) -> None:
    """Refuse a teacher whose classes have the same names as the data's in another order, or some of them.

    Names that have nothing in common are two ways to write the same classes, such as words and WordNet ids.
    """
    theirs, ours = teacher.card.class_names or (), splits.class_names
    if set(theirs) & set(ours) and tuple(theirs) != tuple(ours):
        k = next(k for k, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        raise RecipeError(
            f"teacher {teacher.card.name}: expected the classes of the data in their order, got {theirs[k]!r} where "
            f"they have {ours[k]!r} (class {k}); fine-tune it on these data with `tutelage train`, or name another"
        )


def run_context(objective: Objective, run_inputs: RunInputs) -> BindContext:
    """Look at the networks and the data as far as an objective needs it; binding it reads what is found."""
    splits, needs = run_inputs.splits, objective.needs
    teacher_logits = None
    if needs.teacher_statistics and run_inputs.teacher is not None:
        teacher_logits = _teacher_logits(run_inputs.teacher, splits.train)
    inputs = torch.empty(0)
    if needs.student_taps or needs.teacher_taps:
        few = data.BatchLoader(splits.train, batch_size=min(PROBE_SAMPLES, len(splits.train)), train=True)
        inputs = next(few.epoch(0)).inputs.to(_device(run_inputs.student))
    return network_context(
        objective,
        run_inputs.student,
        run_inputs.teacher,
        inputs,
        samples=len(splits.train),
        classes=splits.classes,
        labels=splits.train.labels,
        teacher_logits=teacher_logits,
        class_means=_class_means(run_inputs, needs.class_means),
    )


PROBE_SAMPLES = 2
"""Samples of the dry forward pass that features are sized by."""
STATISTICS = 10_000
"""Training samples, evenly spaced, that the teacher is asked about where an objective is set by its distribution."""


@torch.no_grad()
def _teacher_logits(teacher: Classifier, split: data.Split) -> torch.Tensor:
    """Return the teacher's logits on training samples that are not augmented, float32 on the CPU."""
    places = np.unique(np.linspace(0, len(split) - 1, min(STATISTICS, len(split))).astype(np.int64))
    requests = np.array_split(places, -(-len(places) // 256))
    asked = FrozenTeacher(teacher)
    device = _device(teacher)
    return torch.cat(
        [
            asked(Batch(torch.from_numpy(index), inputs.to(device), split.labels[index])).logits.float().cpu()
            for index, inputs in split.stream(requests)
        ]
    )


@torch.no_grad()
def _class_means(run_inputs: RunInputs, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return each class's mean of the teacher's features, over all labelled training samples, not augmented.

    Float32 ``(classes, width)`` on the CPU, 0 for a class that no sample has.
    """
    if not names:
        return {}
    splits, teacher = run_inputs.splits, run_inputs.teacher
    split, labels = splits.train, splits.train.labels
    if teacher is None:
        raise RecipeError("teacher: expected one whose class means are read, got none; add teacher=...")
    if labels.is_floating_point() or not (labels != UNLABELLED).any():
        raise RecipeError(
            "data: expected class indices of training samples, which the teacher's class means are taken over, got "
            f"{'soft labels' if labels.is_floating_point() else 'no labels'}; use an objective without class means"
        )
    labelled = (labels != UNLABELLED).nonzero().flatten().numpy()
    asked, device = FrozenTeacher(teacher, names), _device(teacher)
    sums: dict[str, torch.Tensor] = {}
    counts = torch.zeros(splits.classes, dtype=torch.int64)  # of what could be read
    for index, inputs in split.stream(np.array_split(labelled, -(-len(labelled) // 256))):
        seen = asked(Batch(torch.from_numpy(index), inputs.to(device), labels[index])).taps
        for name in names:
            if seen[name].dim() != 2:
                raise RecipeError(
                    f"tap {name}: expected a feature (batch, width) of the teacher, whose class means are taken, got "
                    f"{tuple(seen[name].shape)}; name one after the pooling, such as card:embedding"
                )
            sums.setdefault(name, torch.zeros(splits.classes, seen[name].shape[1], dtype=torch.float64))
            sums[name].index_add_(0, labels[index], seen[name].double().cpu())
        counts += torch.bincount(labels[index], minlength=splits.classes)
    return {name: (total / counts.clamp(min=1)[:, None]).float() for name, total in sums.items()}


VIEW_IRRELEVANT = {"workers", "memory_limit_mb", "root", "on_corrupt", "source", "image", "label", "labelled"}
"""Settings of data that do not change a view; which data they are, their fingerprint says."""


def outputs_folder(recipe: Recipe, run_inputs: RunInputs) -> Path:
    """Return the folder of the teacher's outputs.

    Raises:
        RecipeError: the recipe names none, or has no teacher to record.
    """
    if run_inputs.teacher is None:
        raise RecipeError("teacher: expected one whose outputs are recorded, got none; add teacher=...")
    if recipe.outputs is None:
        raise RecipeError("outputs: expected a folder for the teacher's outputs, got none; type outputs=runs/outputs")
    return Path(recipe.outputs)


def outputs_of(recipe: Recipe, run_inputs: RunInputs) -> TeacherCache:
    """Return the store that a recipe's ``outputs`` names, keyed by everything that a teacher's word depends on.

    Raises:
        RecipeError: the recipe names none, or has no teacher to record.
        TeacherCacheError: the folder holds the outputs of another teacher, of other data or other views.
    """
    folder, splits = outputs_folder(recipe, run_inputs), run_inputs.splits
    assert run_inputs.teacher is not None
    settings = {name: value for name, value in asdict(recipe.data).items() if name not in VIEW_IRRELEVANT}
    key: dict[str, Any] = {
        "teacher": {
            "name": without_paths(run_inputs.teacher.card.name),
            "fingerprint": models.fingerprint(run_inputs.teacher.network),
            "mean": list(run_inputs.teacher.card.mean or ()),
            "std": list(run_inputs.teacher.card.std or ()),
        },
        "data": splits.fingerprint,
        "views": settings,
        "data_seed": recipe.data_seed,
        "precision": recipe.precision,
        "classes": splits.classes,
    }
    if splits.fingerprint is None:
        raise RecipeError(
            "data: expected a source whose content is known, got one without a fingerprint; "
            "outputs recorded of it could not be told from another's: type outputs=null"
        )
    return TeacherCache(folder, key, samples=len(splits.train))


def single_exponent(objective: Objective) -> float | None:
    """Return the exponent at which an objective reads the teacher's logits; none where it does not read them.

    Raises:
        RecipeError: it reads them in another way or at several exponents, so that the top classes and one power sum of
            the others do not answer it.
    """
    gammas = objective.read_at
    if not gammas:
        return None
    (gamma, *more) = gammas
    if more or gamma is None:
        got = ", ".join(sorted("another reading" if g is None else f"{g:.4g}" for g in gammas))
        raise RecipeError(
            f"outputs: expected an objective that reads the teacher's logits at one exponent, as the top classes are "
            f"kept for, got {objective.name} ({got}); record all classes, with a larger "
            "outputs_limit_mb=..., in another folder, or type outputs=null"
        )
    return gamma


def _device(network: torch.nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def held_out_sets(splits: data.Splits, recipe: Recipe) -> Iterator[tuple[str, Batches]]:
    """The sets to evaluate on, the one that selects first."""
    for name, split in (("validation", splits.validation), ("test", splits.test)):
        if split is not None:
            # Evaluation keeps no gradients, so larger batches than training's fit.
            yield name, data.BatchLoader(split, batch_size=max(recipe.batch_size, 256), train=False)


def steps_of(recipe: Recipe, samples: int) -> int:
    """Return how many steps a run takes over so many training samples."""
    return sum(fit.steps(samples) for fit in recipe.fits())


@contextlib.contextmanager
def torch_settings(recipe: Recipe) -> Iterator[None]:
    """Set threads and determinism as the recipe says, and put them back: the process may be a notebook's."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        torch.set_num_threads(recipe.threads or threads)
        if recipe.deterministic:
            # What torch asks of cuBLAS before its first matrix product.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(recipe.deterministic)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
