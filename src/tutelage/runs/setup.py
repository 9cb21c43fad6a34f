"""Builds a run's data and models from its recipe, and checks that they are compatible."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tutelage import config, data, metrics, models, records, taps, targets
from tutelage.adapters import inputs_for
from tutelage.checks import nonfinite_weight
from tutelage.config.schema import Network, R, Recipe, Teachers, UntrainedTeacher
from tutelage.errors import InvalidValueError, RecipeError
from tutelage.models import Classifier
from tutelage.models.ensembles import by_tap, normalised
from tutelage.modules import FrozenTeacher, network_context, refuse_shared
from tutelage.objectives import BindContext, Objective, from_spec
from tutelage.runs import sanity_checks
from tutelage.runs.class_weights import with_class_weights
from tutelage.runs.manifest import without_paths
from tutelage.runs.networks import check_classes, check_width, create_student, create_teacher, create_untrained
from tutelage.runs.preflight import check_early_stopping, require_teacher
from tutelage.runs.transform_library import transform_library
from tutelage.settings.fit import Fit, smallest_share
from tutelage.settings.outputs import words
from tutelage.submodules import device_of
from tutelage.teacher_cache.cache import TeacherCache
from tutelage.training import library_optimizers
from tutelage.training.activations import checkpointed_blocks
from tutelage.training.distributed import accelerator_on, by_all, cast_module, dealt, once_a_node, one_a_node_first
from tutelage.training.dry_forward import PROBED, check_batches, check_logits, same_draws, smallest_batch
from tutelage.training.evaluate import (
    AskedLogits,
    Evaluation,
    KeptLogits,
    TeacherLogits,
    TeacherOutputs,
    counted_rows,
    evaluate,
)
from tutelage.training.on_policy import OnPolicyBatches
from tutelage.training.precision import float32_products, network_dtype
from tutelage.training.sharding import is_sharded, is_sharded_by, sharded
from tutelage.types import UNLABELLED, Batch, Batches, Inputs, Metric, Outputs, Served, Sparse, View
from tutelage.views import map_views, views_of

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """A run's objects; ``repeatable``: all were built from names, so the run's folder is enough to repeat it."""

    splits: data.Splits
    student: Classifier
    teacher: Classifier | None
    objectives: tuple[Objective, ...]  # objective of each stage
    repeatable: bool = True
    served: Served | None = None  # answers of a served teacher, which has no network
    statistics: list[torch.Tensor] = field(default_factory=list)  # logits of `run_context`, once they were read


def parse(
    kind: type[R], value: Mapping[str, Any], *, where: str = "recipe", trust_code: bool | frozenset[str] | None = None
) -> R:
    """Check a recipe as `config.parse` does, and that its objectives can be built; see `from_spec`."""
    return config.parse(kind, value, where=where, check=partial(from_spec, trust_code=trust_code))


def check_objectives(
    recipe: Recipe,
    *,
    where: str = "recipe",
    overrides: Sequence[str] = (),
    trust_code: bool | frozenset[str] = False,
) -> None:
    """Refuse values of objectives' arguments that a recipe may hold and the losses refuse, as `parse` does.

    Functions of the user's own that objectives name are run here, if their code is trusted.
    """
    check = partial(from_spec, trust_code=trust_code)
    config.parse(type(recipe), recipe.model_dump(mode="json"), where=where, overrides=overrides, check=check)


def build_objectives(recipe: Recipe, *, trust_code: bool | frozenset[str] | None = None) -> tuple[Objective, ...]:
    """Build the objective of each stage; `from_spec` says what ``trust_code`` is."""
    each = (from_spec(fit.objective, trust_code=trust_code) for fit in recipe.fits())
    return tuple(for_recipe(recipe, objective, per_token=recipe.data.per_token) for objective in each)


def for_recipe(recipe: Recipe, objective: Objective, *, per_token: bool) -> Objective:
    """Return an objective fitted to a recipe's data and teacher.

    Where each token has a label (``per_token``, which a recipe does not say of data that a caller opened), an automatic
    gamma is set; where several teachers teach by terms, each term is computed for each of them.
    """
    objective = objective.for_tokens() if per_token else objective
    several = recipe.teacher
    if not isinstance(several, Teachers) or several.combine != "terms":
        return objective
    return objective.per_member(by_tap(normalised(len(several.members), several.weights)))


def needs_teacher(run: Recipe | Iterable[Objective]) -> bool:
    """Whether a run, given by its recipe or its objectives, learns from a teacher in any stage."""
    return any(objective.needs.teacher for objective in (build_objectives(run) if isinstance(run, Recipe) else run))


def check_teacher(teacher: object | None, objectives: Iterable[Objective]) -> None:
    """Refuse objectives that need a teacher without one."""
    for objective in objectives:
        if objective.needs.teacher:
            require_teacher(teacher, f"for objective {objective.name}")


def build_inputs(
    recipe: Recipe,
    *,
    splits: data.Splits | None = None,
    teacher: Classifier | None = None,
    trust_code: bool | frozenset[str] = False,
) -> RunInputs:
    """Turn a recipe's names into objects.

    Args:
        recipe: recipe of the run.
        splits: data of the recipe, if already open.
        teacher: teacher of the recipe, if already loaded.
        trust_code: whether ``file:`` models and objectives, which run code, are allowed: all of them, or only those of
            these names.
    """
    objectives = build_objectives(recipe, trust_code=trust_code)
    for fit in recipe.fits():
        library_optimizers.check(fit.settings.optimizer)
    opened = data.read_by(splits or once_a_node(lambda: data.open_data(recipe.data)), recipe.reads)

    def networks() -> tuple[Classifier, Classifier | None]:
        named, known = recipe.teacher, None
        make = partial(create_student, recipe.student, opened, seed=recipe.seed, trust_code=trust_code)
        student = make() if recipe.student.init is None else None
        if isinstance(named, Teachers) or (isinstance(named, Network) and not named.served):
            create: Callable[..., Classifier] = create_teacher
            if isinstance(named, UntrainedTeacher):
                create = create_untrained
            known = teacher or create(named, opened, trust_code=trust_code)
        return student or make(teacher=known), known

    objectives = with_class_weights(recipe, objectives, opened)
    student, teacher = one_a_node_first(networks)
    served = served_of(recipe, opened)
    return RunInputs(splits=opened, student=student, teacher=teacher, objectives=objectives, served=served)


def served_of(recipe: Recipe, splits: data.Splits) -> Served | None:
    """Return the answers of a recipe's served teacher; ``None`` if its teacher is no such."""
    if not (isinstance(recipe.teacher, Network) and recipe.teacher.served):
        return None
    return require_teacher(splits.train.served, "whose answers the data have")


def _check_served(objective: Objective) -> None:
    """Refuse an objective that reads more of a teacher than its distribution at temperature 1."""
    needs, what = objective.needs, f"objective {objective.name}"
    features = any((needs.teacher_taps, needs.projections, needs.teacher_head, needs.teacher_norms, needs.class_means))
    others = [gamma for gamma in objective.read_at if gamma is None or not math.isclose(gamma, 1, rel_tol=1e-9)]
    if features:
        instead = "type teacher=... for a network, or another objective"
        raise RecipeError(what, "one of logits alone with a served teacher", "one of a network's insides", instead)
    if others:
        expected = (
            "gamma 1, a temperature of 1, with a served teacher: of the classes that it does not name the total "
            "probability is known, but not the sum of p**gamma"
        )
        got = ", ".join(_readings(others))
        instead = "type ttm or wttm with gamma=1, or kd with temperature=1, or teacher=... for a network"
        raise RecipeError(what, expected, got, instead)


def check_compatible(run_inputs: RunInputs) -> None:
    """Raise a `RecipeError` if data, teacher, student and objectives are not compatible."""
    splits, teacher, labels = run_inputs.splits, run_inputs.teacher, run_inputs.splits.train.labels
    soft = labels.is_floating_point()
    check_teacher(teacher or run_inputs.served, run_inputs.objectives)
    if run_inputs.served is not None:
        for objective in run_inputs.objectives:
            if objective.needs.teacher:
                _check_served(objective)
    if teacher is not None:
        refuse_shared(run_inputs.student, teacher)
    for role, network in (("student", run_inputs.student), ("teacher", teacher)):
        if network is not None and (weight := nonfinite_weight(network)):
            instead = "name other weights, or train or fetch it again"
            raise RecipeError(f"{role} {network.card.name}", "finite weights", weight, instead)
    for objective in run_inputs.objectives:
        needs, name = objective.needs, objective.name
        _check_task(objective, splits)
        if splits.for_teacher is not splits and needs.teacher and not needs.other_vocabulary:
            expected = "one that takes a teacher of another vocabulary, which data.teacher_tokenizer gives it"
            instead = "type objective=uld or objective=gold, or data.teacher_tokenizer=null for one of the same tokens"
            raise RecipeError(f"objective {name}", expected, "one that compares the same tokens", instead)
        unlabelled = not soft and not splits.train.labelled
        if needs.labels != "none" and unlabelled:
            expected = f"labels for the supervised objective {name}"
            instead = "give labels, or zero its supervised weight where it has one beside a teacher's"
            raise RecipeError("data", expected, f"none among {len(splits.train)} training samples", instead)
        if needs.views > splits.train.views_per_sample:
            expected = f"{needs.views} views of each training sample for objective {name}, which compares them"
            instead = "type data.strong={randaugment: {}}, or use an objective of one view"
            raise RecipeError("data.strong", expected, splits.train.views_per_sample, instead)
        if splits.task == "labels":
            _check_of_labels(objective)
        if needs.labels == "index" and (soft or splits.train.mixing is not None):
            unmix = "" if soft else "type data.mixup=0 data.cutmix=0, or "
            expected = f"class indices for objective {name}"
            instead = f"{unmix}use an objective that takes them"
            raise RecipeError("data", expected, "soft labels" if soft else "the soft labels of mixed samples", instead)
        try:
            taps.find_all(run_inputs.student, needs.student_taps)
            if teacher is not None:
                taps.find_all(teacher, needs.teacher_taps)
                if needs.teacher_head:
                    taps.head(teacher)
                for tap in needs.teacher_norms:
                    taps.batch_norm(teacher, tap)
        except InvalidValueError as error:
            raise RecipeError.of([error.within(f"objective {name}")]) from None
    if teacher is not None and splits.task == "embedding":
        check_width(teacher, splits, run_inputs.objectives)
    elif teacher is not None:
        check_classes(teacher, splits.for_teacher)


def _check_task(objective: Objective, splits: data.Splits) -> None:
    """Refuse an objective of classes where networks answer with embeddings, or one of embeddings elsewhere."""
    what, known = f"objective {objective.name}", "cosine, embedding_mse or in_batch_similarity"
    needs = [part.term.needs for part, _ in objective.parts]
    if splits.task != "embedding":
        if any(each.embeddings for each in needs):
            expected = "data.embedding, the width of the vectors that it compares"
            instead = "type data.embedding=<width>, or an objective of logits or of features"
            raise RecipeError(what, expected, f"data of {splits.classes} classes", instead)
        return
    for each in needs:
        of_features = each.student_taps or each.projections
        if each.labels != "none" or each.teacher_head or not (each.embeddings or of_features):
            expected = "one of embeddings with data.embedding, such as " + known
            got = "one that reads labels" if each.labels != "none" else "one that reads logits of classes"
            raise RecipeError(what, expected, got, "type one of those, or data.embedding=null to classify")


def _check_of_labels(objective: Objective) -> None:
    """Refuse an objective that is not of each label by itself, where a sample has several."""
    for part, _ in objective.parts:
        needs = part.term.needs
        of_features = needs.student_taps or needs.teacher_taps or needs.projections
        if needs.coupled and not of_features:
            reason = "which compares the classes of a batch's samples"
        elif needs.indices and needs.coupled:
            reason = "which draws samples of other classes"
        elif needs.teacher_head:
            reason = "which reads the teacher's last layer as that of one class a sample"
        elif of_features and needs.labels != "none":
            reason = "which reads the class of a sample beside its features"
        else:
            continue
        expected = f"one class a sample for objective {objective.name} ({part.name}), {reason}"
        instead = "use one of logits, such as kd, ttm or wttm, or one of features alone, such as fitnet"
        raise RecipeError("data.labels", expected, "several labels", instead)


def check_run(recipe: Recipe, run_inputs: RunInputs) -> None:
    """Refuse what cannot be trained, before anything is: the networks are tried on a few samples, and not changed.

    Raises:
        RecipeError: if data, teacher, student and objectives are not compatible, teacher and student share something, a
            network does not take the data's inputs, or a batch is too small for an objective or the student.
        UserCodeError: if a network of the user's own does not take the data's inputs.
    """
    by_all(lambda: _check_run(recipe, run_inputs))


def _check_run(recipe: Recipe, run_inputs: RunInputs) -> None:
    check_compatible(run_inputs)
    check_early_stopping(recipe, validation=can_choose(run_inputs.splits))
    _check_on_policy(recipe, run_inputs)
    accelerator, fits, samples = accelerator_on(recipe.device), recipe.fits(), run_inputs.splits.train.per_epoch
    student, settings = run_inputs.student, fits[0].settings
    if settings.checkpoint_activations:
        checkpointed_blocks(student)
    probe = probe_inputs(recipe, run_inputs)
    world, least = accelerator.num_processes, {}
    if probe is not None:
        check_teacher_outputs(recipe, run_inputs, probe)
        who = f"student {student.card.name}"
        device = trial_device(recipe, "student")
        inputs = map_views(lambda view: view.to(device), inputs_for(student, probe, "student"))
        logits = check_logits(
            student.to(device),
            who,
            inputs,
            classes=run_inputs.splits.classes,
            settings=settings,
            instead="change its last layer",
        )
        sanity_checks.warn(sanity_checks.of_answers("student", logits))
        for fit in fits:
            if fit.on_policy is not None:
                _sampler(fit, run_inputs, student).prepare()
        sizes = [size for fit in fits for size in _micro_batches(samples, fit, world)]
        views = run_inputs.splits.train.views_per_sample
        size, layer = smallest_batch(student, who, inputs, [views * each for each in sizes], settings=settings)
        least[f"the {who}" + f", its {layer}" * bool(layer)] = -(-size // views)
    check_last_batch(samples, run_inputs.objectives, fits, world=world, networks=least)


def _check_on_policy(recipe: Recipe, run_inputs: RunInputs) -> None:
    """Refuse an objective that learns nothing of what the student writes."""
    for objective, fit in zip(run_inputs.objectives, recipe.fits(), strict=True):
        needs = [part.term.needs for part, _ in objective.parts]
        if fit.on_policy is not None and not any(each.teacher and each.labels == "none" for each in needs):
            expected = "an objective that matches the teacher without labels, which what the student writes has not"
            instead = "type objective=..., or leave on_policy out"
            raise RecipeError("on_policy", expected, objective.name, instead)


def _sampler(fit: Fit, run_inputs: RunInputs, student: nn.Module) -> models.CompletionSampler:
    """Return what lets a student write completions of training samples."""
    assert fit.on_policy is not None
    prompts, text = run_inputs.splits.train.prompts, run_inputs.splits.text["student"]
    assert prompts is not None
    return models.CompletionSampler(
        student,
        torch.from_numpy(prompts),
        share=fit.on_policy.share,
        new_tokens=fit.on_policy.new_tokens,
        max_tokens=text.max_tokens,
        end=text.tokenizer.end_id,
        temperature=fit.on_policy.temperature,
    )


def with_sampled(
    batches: Batches, fit: Fit, run_inputs: RunInputs, student: nn.Module, *, device: torch.device
) -> Batches:
    """Return a stage's batches, with the completions that the student writes if it is to."""
    if fit.on_policy is None:
        return batches
    sampler = _sampler(fit, run_inputs, student)
    return OnPolicyBatches(batches, sampler, device=device, precision=fit.settings.precision)


def probe_inputs(recipe: Recipe, run_inputs: RunInputs) -> Inputs | None:
    """Return a few training inputs on the recipe's device; ``None`` if no sample can be read."""
    return _probe(run_inputs.splits.train, accelerator_on(recipe.device).device, View(0, 0))


def check_teacher_outputs(recipe: Recipe, run_inputs: RunInputs, inputs: Inputs | None) -> None:
    """Refuse a teacher that does not take the data's ``inputs``, or gives logits for other classes."""
    teacher, splits = run_inputs.teacher, run_inputs.splits
    if teacher is None or inputs is None:
        return
    device = trial_device(recipe, "teacher")
    check_logits(
        teacher.to(device),
        f"teacher {teacher.card.name}",
        map_views(lambda view: view.to(device), inputs_for(teacher, inputs, "teacher")),
        classes=teacher.card.classes if splits.task == "embedding" else splits.for_teacher.classes,
        settings=recipe.fits()[0].settings,
        instead="name a teacher that was trained on these classes",
    )


def trial_device(recipe: Recipe, who: str) -> torch.device:
    """Return where to try ``student`` or ``teacher`` on a few samples: one that is sharded may not fit its device."""
    sharded = is_sharded_by(recipe.fits()[0].settings, who)
    return torch.device("cpu") if sharded else accelerator_on(recipe.device).device


def in_precision(recipe: Recipe, network: Classifier) -> Classifier:
    """Return a network in the recipe's precision: a copy under ``fp64``, as the given one stays as it came."""
    precision = recipe.fits()[0].settings.precision
    return cast_module(copy.deepcopy(network), precision) if network_dtype(precision) == torch.float64 else network


def on_device(recipe: Recipe, network: nn.Module, who: str) -> nn.Module:
    """Move a network to the recipe's device; if it is ``student`` or ``teacher`` and that is sharded, return a copy."""
    device = accelerator_on(recipe.device).device
    settings = recipe.fits()[0].settings
    network = cast_module(network, settings.precision)
    return sharded(network, device) if is_sharded_by(settings, who) else network.to(device)


def check_model_outputs(recipe: Recipe, network: Classifier, who: str, splits: data.Splits, *, instead: str) -> None:
    """Refuse a model to evaluate that does not take the test set's inputs, or gives logits for other classes.

    Args:
        recipe: recipe with the device and the precision of the evaluation.
        network: network to evaluate.
        who: what the network is, and its name.
        splits: data whose test set it is evaluated on.
        instead: what to type where it has logits for other classes.
    """
    device = accelerator_on(recipe.device).device
    if (inputs := _probe(splits.test, device)) is None:
        return
    settings = recipe.fits()[0].settings
    network = network.to(device)
    own = inputs_for(network, inputs, "student")
    check_logits(network, who, own, classes=splits.classes, settings=settings, instead=instead)


def _probe(split: data.Split, device: torch.device, view: View | None = None) -> Inputs | None:
    """Return a few inputs for a dry forward pass; ``None`` if no sample can be read."""
    split = replace(split, workers=0)
    pairs = (np.arange(first, min(first + PROBED, len(split))) for first in range(0, len(split), PROBED))
    with same_draws(device):  # A data set of the user's may draw from the run's generators.
        readable = (inputs for _, inputs in split.stream(pairs, view=view) if len(views_of(inputs)[0]))
        inputs = next(readable, None)
    return None if inputs is None else map_views(lambda view: view.to(device), inputs)


def _micro_batches(samples: int, fit: Fit, world: int) -> tuple[int, int]:
    """Return the sizes of a fit's smallest and largest micro-batches."""
    whole = -(-min(fit.batch_size, samples) // world)
    accumulate = fit.settings.accumulate
    smallest = smallest_share(samples, fit.batch_size, world=world, accumulate=accumulate)
    return max(smallest, 1), -(-whole // accumulate)


def check_last_batch(
    samples: int,
    objectives: Sequence[Objective],
    fits: Sequence[Fit],
    *,
    world: int = 1,
    networks: Mapping[str, int] = {},
) -> None:
    """Refuse an epoch of which a micro-batch, on one of ``world`` processes, is too small for a stage.

    Args:
        samples: number of training samples.
        objectives: objective of each stage.
        fits: fit of each stage.
        world: number of processes.
        networks: smallest batch that each network takes, by its name.
    """
    for objective, fit in zip(objectives, fits, strict=True):
        least = {f"objective {objective.name}": objective.needs.min_batch, **networks}
        check_batches(samples, fit.batch_size, least, world=world, accumulate=fit.settings.accumulate)


def run_context(objective: Objective, run_inputs: RunInputs, asked: nn.Module | None = None) -> BindContext:
    """Return the context that an objective binds to: whatever it needs from the networks and the data.

    Args:
        objective: objective of a stage.
        run_inputs: objects of the run.
        asked: teacher to ask for its outputs, such as a sharded copy of the run's; by default that one.
    """
    splits, needs, teacher = run_inputs.splits, objective.needs, run_inputs.teacher
    train, teacher_logits = splits.train, None
    inputs: Inputs = torch.empty(0)
    if needs.teacher_statistics and teacher is not None:
        most = STATISTICS
        if train.per_position:  # A row per token, of as many classes as the vocabulary has, or per pixel.
            most = max(1, _most_rows(splits) // splits.positions)
        if not run_inputs.statistics:
            read = _teacher_outputs(
                asked or teacher, train, train.evenly(most), lambda outputs: outputs.logits.float().cpu()
            )
            run_inputs.statistics.append(torch.cat([logits for _, logits in read]))
        (teacher_logits,) = run_inputs.statistics
    if needs.teacher_statistics and (served := run_inputs.served) is not None:
        rows = torch.linspace(0, len(served.logits.level) - 1, min(_most_rows(splits), len(served.logits.level))).long()
        values, index, level, classes, _ = served.logits
        teacher_logits = targets.dense(Sparse(values[rows], index[rows], level[rows], classes))
    if needs.student_taps or needs.teacher_taps:
        probe = data.BatchLoader(train, batch_size=min(PROBED, len(train)), train=True)
        inputs = next(probe.epoch(0)).inputs
    return network_context(
        objective,
        run_inputs.student,
        teacher,
        inputs,
        samples=len(train),
        classes=splits.classes,
        labels=train.labels,
        teacher_logits=teacher_logits,
        class_means=_class_means(run_inputs, asked or teacher, needs.class_means),
        same_tokens=_same_tokens(splits) if needs.same_tokens else None,
        per_epoch=train.per_epoch,
        per_token=splits.per_token,
    )


def _same_tokens(splits: data.Splits) -> torch.Tensor | None:
    """Return the tokens of both vocabularies that are the same; ``None`` where the classes are."""
    if splits.for_teacher is splits:
        return None
    student, teacher = (splits.text[name].tokenizer for name in ("student", "teacher"))
    return torch.tensor(student.same_tokens(teacher), dtype=torch.int64).reshape(-1, 2)


STATISTICS = 10_000
"""Number of training samples, evenly spaced, whose teacher logits are bound as teacher statistics; of tokens, if each
has a label."""
STATISTICS_BYTES = 2**28
"""Memory of the logits of these tokens."""


def _most_rows(splits: data.Splits) -> int:
    """Return how many positions' logits are bound as a teacher's statistics."""
    return max(1, min(STATISTICS, STATISTICS_BYTES // (4 * splits.classes)))


def _teacher_outputs(
    teacher: nn.Module,
    split: data.Split,
    indices: NDArray[np.int64],
    read: Callable[[Outputs], T],
    taps: Sequence[str] = (),
) -> Iterator[tuple[NDArray[np.int64], T]]:
    """Yield what is read of the teacher's outputs for samples without augmentation, batch by batch.

    Logits are those of the counted positions, as rows. Each comes with the indices of the samples that could be read.
    Outputs are computed in float32, whatever the run's precision is; several processes share the batches, and all get
    what is read of each.
    """
    frozen, device = FrozenTeacher(teacher, taps), device_of(teacher)

    def outputs_of(requests: Sequence[NDArray[np.int64]]) -> Iterator[tuple[NDArray[np.int64], T]]:
        for index, inputs in split.stream(requests):
            with float32_products(device, "fp32"):
                moved = map_views(lambda each: each.to(device), inputs)
                labels, counted = split.targets(torch.from_numpy(index), inputs)
                batch = Batch(torch.from_numpy(index), moved, labels, counted=counted)
                outputs = frozen(batch)
            yield index, read(outputs._replace(logits=counted_rows(outputs.logits, batch)))

    requests = data.split_evenly(indices, 256)
    # All processes call a sharded network, and equally often.
    yield from outputs_of(requests) if is_sharded(teacher) else dealt(requests, outputs_of)


def _class_means(run_inputs: RunInputs, teacher: nn.Module | None, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the class means of the teacher's features over all labelled training samples, without augmentation.

    Float32 ``(classes, width)`` on the CPU, 0 for a class without samples.
    """
    if not names:
        return {}
    classes, labels = run_inputs.splits.classes, run_inputs.splits.train.labels
    assert teacher is not None
    if labels.is_floating_point() or not (labels != UNLABELLED).any():
        expected = "class indices of training samples, which the teacher's class means are taken over"
        instead = "use an objective without class means"
        raise RecipeError("data", expected, "soft labels" if labels.is_floating_point() else "no labels", instead)
    labelled = (labels != UNLABELLED).nonzero().flatten().numpy()
    sums: dict[str, torch.Tensor] = {}
    counts = torch.zeros(classes, dtype=torch.int64)  # of the readable samples

    def read(outputs: Outputs) -> dict[str, torch.Tensor]:
        return {name: outputs.taps[name].cpu() for name in names}

    for index, features in _teacher_outputs(teacher, run_inputs.splits.train, labelled, read, names):
        for name, feature in features.items():
            if feature.dim() != 2:
                expected = "a feature (batch, width) of the teacher, whose class means are taken"
                instead = "name one after the pooling, such as card:embedding"
                raise RecipeError(f"tap {name}", expected, tuple(feature.shape), instead)
            sums.setdefault(name, torch.zeros(classes, feature.shape[1], dtype=torch.float64))
            sums[name].index_add_(0, labels[index], feature.double())
        counts += torch.bincount(labels[index], minlength=classes)
    return {name: (total / counts.clamp(min=1)[:, None]).float() for name, total in sums.items()}


VIEW_IRRELEVANT = {
    *("workers", "memory_limit_mb", "on_device", "root", "on_corrupt", "source", "image", "label", "labels"),
    *("labelled", "sampling", "strong"),
    *("test_shards", "shuffle_buffer", "text", "prompt", "completion", "messages", "tokenizer", "teacher_tokenizer"),
    *("mask", "embedding", "max_tokens", "pack", "bucket_batches", "unlabelled", "top_logprobs"),
}
"""Settings of data that do not affect a view; the data themselves are identified by their fingerprint."""


def outputs_of(recipe: Recipe, run_inputs: RunInputs) -> TeacherCache:
    """Return the cache in a recipe's ``outputs`` folder, keyed by everything that the teacher's outputs depend on.

    Raises:
        RecipeError: if the content of the data is not known.
        TeacherCacheError: if the folder holds the outputs of another teacher, other data or other views.
    """
    splits, teacher = run_inputs.splits, run_inputs.teacher
    assert recipe.outputs is not None
    assert teacher is not None
    if splits.fingerprint is None:
        instead = "outputs recorded of it could not be told from another's: type outputs=null"
        raise RecipeError("data", "a source whose content is known", "one without a fingerprint", instead)
    if splits.train.views_per_sample > 1:
        expected = "null with data.strong, as outputs are recorded for one view of a sample"
        raise RecipeError("outputs", expected, recipe.outputs, "type outputs=null to ask the teacher itself")
    of_text = "teacher" in splits.text
    viewed = recipe.data.without_views() if of_text else recipe.data
    key: dict[str, Any] = {
        "teacher": {
            "name": without_paths(teacher.card.name),
            "fingerprint": models.fingerprint(teacher.network),
            "mean": list(teacher.card.mean or ()),
            "std": list(teacher.card.std or ()),
        },
        "data": splits.fingerprint,
        "views": {name: value for name, value in asdict(viewed).items() if name not in VIEW_IRRELEVANT},
        "data_seed": recipe.data_seed,
        "precision": recipe.precision,
        "classes": teacher.card.classes if splits.task == "embedding" else splits.outputs,
    }
    if splits.task in ("labels", "embedding"):
        key["task"] = splits.task
    if teacher.outputs is not None:
        key["teacher"]["classes"] = teacher.outputs.tolist()
    if (shape := teacher.resized_to) is not None:
        key["teacher"]["input"] = shape
    if (library := transform_library(viewed)) is not None:
        key["transform"] = " ".join(library)
    if of_text:
        key["teacher"]["tokenizer"] = splits.text["teacher"].tokenizer.fingerprint
        del key["data_seed"]  # which draws views, and no view varies a text
    return TeacherCache(
        Path(recipe.outputs), key, samples=len(splits.train), ragged=splits.train.per_position, varies=not of_text
    )


def check_form(objective: Objective, form: str) -> None:
    """Refuse an objective for a teacher recorded as a bucket or as sampled classes, if it reads more than these say.

    Raises:
        RecipeError: if it reads the teacher at another exponent than 1, or whole rows.
    """
    if not objective.needs.teacher:
        return
    others = [gamma for gamma in objective.read_at if gamma is None or not math.isclose(gamma, 1, rel_tol=1e-9)]
    whole = not objective.needs.sparse or any(piece.gather for piece in objective.pieces)
    if others or whole:
        raise RecipeError(
            f"objective {objective.name}",
            f"gamma 1, a temperature of 1, and no whole rows with outputs_form {form}, which says nothing else",
            ", ".join(_readings(others)) or "whole rows",
            "type ttm or wttm with gamma=1, or kd with temperature=1, or record all classes in another folder with "
            "outputs_form=null",
        )


def check_typed_form(recipe: Recipe, outputs: TeacherCache) -> None:
    """Refuse outputs of another form than the recipe types.

    Raises:
        RecipeError: if they are.
    """
    typed, kept = recipe.outputs_form, getattr(outputs.form, "settings", None)
    if outputs.begun and typed is not None and typed != kept:
        then = words(outputs.form.to_json() if outputs.form else None)
        got = words({**vars(typed), "classes": outputs.key["classes"]})
        instead = "leave it out, type outputs=... for another folder, or remove this one"
        raise RecipeError("outputs_form", f"that of {outputs.folder.name}, {then}", got, instead)


def _readings(gammas: Iterable[float | None]) -> list[str]:
    """Name the exponents at which an objective reads the teacher; one that is to be found is none yet."""
    return sorted("another reading, or auto" if gamma is None else f"gamma {gamma:.4g}" for gamma in gammas)


def single_exponent(objective: Objective) -> float | None:
    """Return the exponent at which an objective reads the teacher's logits; ``None`` if it does not read them.

    Raises:
        RecipeError: if it reads them in another way or at several exponents, for which the top classes and one power
            sum of the remaining ones are not enough.
    """
    gammas = objective.read_at
    if not gammas:
        return None
    (gamma, *more) = gammas
    if more or gamma is None:
        got = ", ".join(_readings(gammas))
        expected = "an objective that reads the teacher's logits at one exponent, as the top classes are kept for"
        instead = "record all classes, with a larger outputs_limit_mb=..., in another folder, or type outputs=null"
        raise RecipeError("outputs", expected, f"{objective.name} ({got})", instead)
    return gamma


def evaluate_network(
    recipe: Recipe,
    network: nn.Module,
    batches: Batches,
    who: str = "network",
    *,
    teacher: TeacherLogits | None = None,
    gamma: float | None = None,
    keep: KeptLogits | None = None,
    sample: bool = False,
    predictions: bool = False,
    text_bytes: int | None = None,
    metric: Metric | None = None,
) -> Evaluation:
    """Put a network `on_device`, and evaluate it there as `evaluate` does."""
    settings = recipe.fits()[0].settings
    return evaluate(
        on_device(recipe, network, who),
        batches,
        device=accelerator_on(recipe.device).device,
        precision=settings.precision,
        channels_last=settings.channels_last,
        who=who,
        teacher=teacher,
        gamma=gamma,
        keep=keep,
        sample=sample,
        predictions=predictions,
        text_bytes=text_bytes,
        metric=metric,
    )


def measure_of(splits: data.Splits) -> records.Measure:
    """Return what networks are judged by on the test set."""
    if splits.task == "embedding" and not bool((splits.test.labels != UNLABELLED).any()):
        return records.COSINE
    if splits.task != "classes":
        return metrics.MEASURES[splits.task]
    return records.ACCURACY if splits.test.text_bytes is None else records.PERPLEXITY


def can_choose(splits: data.Splits) -> bool:
    """Return whether there is a validation split that says which student is better."""
    held = splits.validation
    return held is not None and (measure_of(splits) is records.COSINE or held.labelled > 0)


def metric_of(splits: data.Splits) -> Metric | None:
    """Return what networks are judged by on held-out sets besides accuracy; ``None`` for one class a sample."""
    return metrics.of(splits.task, outputs=splits.outputs)


def ask_teacher(
    recipe: Recipe, teacher: nn.Module, batches: Batches, split: data.Split, metric: Metric | None = None
) -> TeacherOutputs:
    """Evaluate the teacher on a held-out set, and keep its logits; of many positions, when needed."""
    if (own := split.for_teacher) is not split:
        device = accelerator_on(recipe.device).device
        alone = data.loader_on(device, own, batch_size=held_out_batch(recipe, own), train=False)
        return ask_teacher(recipe, teacher, alone, own, metric)._replace(logits=None)
    kept, text_bytes = KeptLogits(), split.text_bytes
    evaluation = evaluate_network(
        recipe,
        teacher,
        batches,
        "teacher",
        keep=None if split.per_position else kept,
        sample=True,
        predictions=metric is None and not split.per_position,
        text_bytes=text_bytes,
        metric=metric,
    )
    if not split.per_position:
        return TeacherOutputs(evaluation, kept)
    settings = recipe.fits()[0].settings
    asked = AskedLogits(
        teacher,
        device=accelerator_on(recipe.device).device,
        precision=settings.precision,
        channels_last=settings.channels_last,
    )
    return TeacherOutputs(evaluation, asked)


def held_out_sets(splits: data.Splits, recipe: Recipe) -> Iterator[tuple[str, Batches]]:
    """Yield the sets to evaluate on by name, the one that selects the best epoch first."""
    device = accelerator_on(recipe.device).device
    for name, split in (("validation", splits.validation), ("test", splits.test)):
        if split is not None:
            yield name, data.loader_on(device, split, batch_size=held_out_batch(recipe, split), train=False)


def held_out_batch(recipe: Recipe, split: data.Split) -> int:
    """Return the samples of an evaluation's batch."""
    # Evaluation keeps no gradients, so batches larger than in training fit; not so many positions.
    return recipe.batch_size if split.per_position else max(recipe.batch_size, 256)


def steps_of(recipe: Recipe, samples: int, *, stages: int | None = None) -> int:
    """Return the number of steps of a run with this many training samples, or of its first ``stages``."""
    return sum(fit.steps(samples, world=accelerator_on(recipe.device).num_processes) for fit in recipe.fits()[:stages])


@contextlib.contextmanager
def torch_settings(recipe: Recipe) -> Iterator[None]:
    """Set threads and determinism as the recipe says, and restore them afterwards: the process may be a notebook's.

    If the run need not be deterministic, cuDNN times its algorithms for each shape, as batches have few shapes.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        torch.set_num_threads(recipe.threads or threads)
        if recipe.deterministic:
            # torch requires it of cuBLAS before the first matrix product.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(recipe.deterministic)
        torch.backends.cudnn.benchmark = not recipe.deterministic
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
