"""Records a teacher's outputs for every view of a run, so that many runs share one pass."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage import data
from tutelage.adapters import inputs_for
from tutelage.config.schema import Recipe
from tutelage.errors import RecipeError, explaining
from tutelage.modules import FrozenTeacher, restored
from tutelage.objectives.reading import Trust
from tutelage.runs import autotune, disk, notes, sanity_checks, setup
from tutelage.runs.execute import beginning
from tutelage.runs.lock import folder_lock
from tutelage.runs.preflight import require_outputs, require_teacher
from tutelage.runs.run import DEFAULTS, RunOptions
from tutelage.runs.setup import RunInputs
from tutelage.settings.outputs import BOUND, TOKEN_BOUND, words
from tutelage.taps import feature_shapes, find_all
from tutelage.teacher_cache.cache import ROWS, TeacherCache, size_of
from tutelage.teacher_cache.forms import Form, form_of
from tutelage.teacher_cache.top_k import TopK
from tutelage.training.agreement import Agreement
from tutelage.training.compile import ComputePlan, PlannedTeacher
from tutelage.training.deadline import Deadline
from tutelage.training.distributed import (
    accelerator_on,
    by_all,
    by_main,
    dealt,
    entered_by_main,
    naming_process,
    rank,
    to_device,
    world,
)
from tutelage.training.dry_forward import PROBED
from tutelage.training.evaluate import NAMED, NonFiniteError, listed
from tutelage.training.precision import fallback, float32_products
from tutelage.training.sharding import is_sharded_by
from tutelage.types import Batch, Outputs

INNER = 256
"""Batch size of the teacher."""
CHUNK = 2**29
"""Bytes of float32 outputs that a process holds at once, unless a batch of the teacher has more."""


def wanted_taps(recipe: Recipe, *, trust_code: Trust = None) -> tuple[str, ...]:
    """Return the teacher's taps that any stage of a recipe reads; `from_spec` says what ``trust_code`` is."""
    objectives = setup.build_objectives(recipe, trust_code=trust_code)
    return tuple(dict.fromkeys(tap for objective in objectives for tap in objective.needs.teacher_taps))


def wanted_gammas(recipe: Recipe, *, trust_code: Trust = None) -> tuple[float, ...]:
    """Return the exponents at which the stages of a recipe read the teacher's logits, each stage at one."""
    objectives = setup.build_objectives(recipe, trust_code=trust_code)
    gammas = (setup.single_exponent(objective) for objective in objectives if objective.needs.teacher)
    return tuple(dict.fromkeys(gamma for gamma in gammas if gamma is not None))


@explaining()
def record(
    recipe: Recipe,
    *,
    beside: Sequence[Recipe] = (),
    all_or_none: bool = False,
    options: RunOptions = DEFAULTS,
    run_inputs: RunInputs | None = None,
) -> Path:
    """Record the teacher's outputs for every view of every epoch of a recipe, or resume the recording.

    Logits of all classes are kept if they fit in ``outputs_limit_mb``; otherwise the ``outputs_top`` largest per sample
    if that is given (`TopK`). A resumed recording keeps its form.

    Args:
        recipe: recipe with teacher, data, ``data_seed``, epochs and, in ``outputs``, the folder, which is returned.
        beside: recipes of other runs that read the same outputs, of which features and exponents are recorded too.
        all_or_none: whether top classes are refused if they cannot serve one of those, or were recorded without its
            exponent; else that is left to its own run.
        options: options of the execution; a deadline stops it after a whole chunk.
        run_inputs: objects of the run, if the caller already has them.

    Raises:
        RecipeError: if the outputs would be larger than the limit, teacher and data are not compatible, or an objective
            reads logits in a way that the top-k form does not support.
        TeacherCacheError: if the top-k form is too inaccurate.
        NonFiniteError: if an answer of the teacher is NaN or infinite.
        DeadlineExceeded: if the time is up; the same call resumes.
    """
    options, folder = beginning(recipe, options), require_outputs(recipe)
    if is_sharded_by(recipe.fits()[0].settings, "teacher"):
        expected = "a whole teacher to record, as each process asks it for samples of its own"
        raise RecipeError("shard", expected, recipe.shard, "type shard=none")
    inputs = run_inputs or setup.build_inputs(recipe, trust_code=options.trust_code)
    network = require_teacher(inputs.teacher, "whose outputs are recorded")
    by_all(lambda: _check(recipe, inputs))
    taps = partial(wanted_taps, trust_code=options.trust_code)
    names = tuple(find_all(network, itertools.chain.from_iterable(map(taps, (recipe, *beside)))))
    wanted = _Exponents((recipe, *beside) if all_or_none else (recipe,), beside, options.trust_code)
    if names and inputs.splits.train.per_position:
        expected = "logits alone of tokens"
        raise RecipeError("outputs", expected, f"taps {', '.join(names)}", "type outputs=null to ask the live teacher")
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming_process())
        # The cache is opened under the lock: another process may just have created it.
        stack.enter_context(entered_by_main(lambda: folder_lock(folder, wait=True)))
        stack.enter_context(setup.torch_settings(recipe))
        stack.enter_context(restored(run_inputs.teacher if run_inputs else None))
        recipe, reason = by_main(lambda: autotune.resolve_precision(recipe, lambda: inputs))
        if reason:
            options.reporter.say(reason)
        for line in notes.of_data(inputs.splits):
            options.reporter.remark(line)
        outputs = by_all(lambda: setup.outputs_of(recipe, inputs))
        by_all(lambda: setup.check_typed_form(recipe, outputs))
        by_all(lambda: wanted.require_of(outputs.form))
        stack.callback(inputs.splits.close)
        epochs = outputs.epochs(sum(fit.settings.epochs for fit in recipe.fits()))
        if todo := _missing(outputs, epochs, names):
            _Recording(recipe, wanted, inputs.splits, network, names, outputs, todo, epochs).record(options)
        else:
            by_main(lambda: outputs.conclude(epochs))
    return folder


@dataclass(frozen=True)
class _Exponents:
    """Exponents of recipes that outputs without all logits have to serve, and of others that they may."""

    recipes: Sequence[Recipe]
    others: Sequence[Recipe]
    trust_code: Trust

    def required(self) -> tuple[float, ...]:
        """Return those of the recipes.

        Raises:
            RecipeError: if an objective reads the logits at several, or in another way.
        """
        return tuple(gamma for recipe in self.recipes for gamma in wanted_gammas(recipe, trust_code=self.trust_code))

    def all(self) -> tuple[float, ...]:
        """Return those of the others, too, but for recipes that have no single one."""
        gammas = [*self.required()]
        for recipe in self.others:
            with contextlib.suppress(RecipeError):
                gammas += wanted_gammas(recipe, trust_code=self.trust_code)
        return tuple(gammas)

    def require_of(self, form: Form | None) -> None:
        """Refuse top classes that were recorded before and lack one."""
        if isinstance(form, TopK):
            for gamma in self.required():
                form.at(gamma)


class _Recording:
    """What records the missing chunks of a teacher's outputs, in every process."""

    def __init__(
        self,
        recipe: Recipe,
        wanted: _Exponents,
        splits: data.Splits,
        network: nn.Module,
        names: Sequence[str],
        outputs: TeacherCache,
        todo: list[tuple[int, range]],
        epochs: int,
    ) -> None:
        self._recipe, self._outputs, self._epochs = recipe, outputs, epochs
        self._classes = outputs.key["classes"]
        self._accelerator = accelerator_on(recipe.device)
        self._device, split = self._accelerator.device, splits.train
        # A token's logits take what an image's do, and a sample has many.
        self._inner = min(recipe.batch_size, INNER) if split.per_position else INNER
        self._batches = data.loader_on(
            self._device, split, batch_size=self._inner, data_seed=recipe.data_seed, train=True
        )
        probe = next(self._batches.at(0, [np.arange(min(PROBED, len(split)))])).inputs
        read = inputs_for(network, probe, "teacher")
        self._shapes = shapes = feature_shapes(network, names, read)
        varying = [name for name, shape in shapes.items() if len(shape) > 1]
        if varying and isinstance(read, Tensor) and not read.is_floating_point():
            expected = "features of whole texts alone: a text's tokens are as many as those of the longest of its batch"
            instead = "type outputs=null to ask the live teacher"
            raise RecipeError("outputs", expected, f"taps {', '.join(varying)}", instead)
        # The main process decides, and has written it before another writes a chunk.
        self._size, outputs.form, outputs.rows = by_main(
            lambda: _choose_form(outputs, recipe, wanted, shapes, epochs, split)
        )
        whole = [(epoch, chunk) for epoch in range(epochs) for chunk in outputs.ranges()]
        self._todo = todo if outputs.begun else whole
        share = len(self._todo) / len(whole)
        instead = "or type outputs=FOLDER for one on another disk"
        what, size = f"outputs in {outputs.folder}", 1e6 * self._size * share
        by_main(lambda: disk.require_room(what, outputs.folder, size, instead))
        self._gammas = wanted.required() if outputs.form is not None else ()
        # Each process has the whole teacher, for chunks of its own: shares of it would have to be called equally often.
        self._settings = replace(recipe.fits()[0].settings, shard="none")
        plan = None if outputs.speed is None else ComputePlan.from_json(outputs.speed)
        self._teacher = PlannedTeacher(FrozenTeacher(network, names), self._settings, self._device, plan)

    def record(self, options: RunOptions) -> None:
        """Record the chunks, or what of them there is time for."""
        outputs, todo, reporter, name = self._outputs, self._todo, options.reporter, self._outputs.folder.name
        if line := fallback(self._device, self._settings.precision):
            reporter.say(f"{name}: {line}")
        kept = f"all {self._classes} classes" if outputs.form is None else words(outputs.form.to_json(), "classes")
        kept = f"{self._epochs} epoch{'s' if outputs.varies else ', as none differs,'} of {kept}"
        reporter.say(f"{name}: {self._size:.1f} MB for {kept}, {len(todo)} chunks to record")
        reporter.begin_apart(name, len(todo))
        agreement, seconds = Agreement(self._accelerator), 0.0
        with agreement.training():
            for first in range(0, len(todo), world()):
                by_main(partial(_check_time, options.deadline, name, seconds))
                if agreement.several:
                    agreement.meet(before="the next chunk", ends=False)
                began = time.monotonic()
                self._record_round(chunks := todo[first : first + world()])
                seconds = time.monotonic() - began
                for _ in chunks:
                    reporter.tick()
        errors = by_main(lambda: outputs.conclude(self._epochs))
        for gamma in self._gammas:
            assert outputs.form is not None
            error = errors[outputs.form.gammas[outputs.form.at(gamma)]]
            reporter.say(f"{name}: gamma {gamma:.4g}: {outputs.form.describe(error)}")

    def _record_round(self, chunks: Sequence[tuple[int, range]]) -> None:
        """Let each process record one of these chunks; where it fails in one, none goes on."""
        own = chunks[rank() : rank() + 1]
        compute = self._compute_positions if self._outputs.ragged else self._compute
        computed = by_all(lambda: [(*each, *compute(*each)) for each in own])

        def write() -> None:
            while computed:
                *outputs, counts = computed.pop()
                self._outputs.write(*outputs, gammas=self._gammas, counts=counts)

        if not self._outputs.begun:
            by_main(write)
            self._outputs.begun = True
        by_all(write)

    def _answers(self, epoch: int, chunk: range) -> Iterator[tuple[Batch, Outputs]]:
        """Yield batches that have samples of a chunk, on the CPU, and what the teacher answers."""
        requests = _requests(self._outputs, chunk, self._inner)
        for batch in self._batches.at(epoch, requests):
            moved = to_device(batch, self._device, channels_last=self._recipe.channels_last)
            with float32_products(self._device, self._settings.precision):
                if self._outputs.speed is None:  # Several processes measure nothing, so each chooses the same.
                    steps, processes = len(self._todo) * len(requests), self._accelerator.num_processes
                    plan = self._teacher.choose_plan(moved, steps=steps, processes=processes)
                    self._outputs.speed = plan.to_json()
                answers = self._teacher(moved)
            yield batch, answers

    def _compute_positions(self, epoch: int, chunk: range) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the teacher's logits of a chunk's counted positions, in order, and their number in each sample."""
        logits, counts = [torch.empty(0, self._classes)], [torch.empty(0, dtype=torch.int64)]
        for batch, answers in self._answers(epoch, chunk):
            index = batch.index.cpu()
            inside = (index >= chunk.start) & (index < chunk.stop)
            counted = torch.ones_like(batch.labels, dtype=torch.bool) if batch.counted is None else batch.counted
            counted = counted.cpu()[inside]
            rows = answers.logits[inside.to(self._device)][counted.to(self._device)].float().cpu()
            each = index[inside].reshape(-1, *[1] * (counted.ndim - 1)).expand(counted.shape)
            _require_finite(each[counted], rows)
            logits.append(rows)
            counts.append(counted.flatten(1).sum(1))
        whole = torch.cat(logits)
        if (epoch, chunk) == self._todo[0]:
            sanity_checks.warn(sanity_checks.of_answers("teacher", whole))
        return whole, {}, torch.cat(counts)

    def _compute(self, epoch: int, chunk: range) -> tuple[Tensor, dict[str, Tensor], None]:
        """Return the teacher's logits and features for a chunk."""
        logits = torch.full((len(chunk), self._classes), torch.nan)
        features = {name: torch.full((len(chunk), *shape), torch.nan) for name, shape in self._shapes.items()}
        for batch, answers in self._answers(epoch, chunk):
            index = batch.index.cpu()
            inside = (index >= chunk.start) & (index < chunk.stop)
            rows = index[inside] - chunk.start
            answered = answers.logits.float().cpu()[inside]
            logits[rows] = answered[..., 1] - answered[..., 0] if self._outputs.of_labels else answered
            for name, values in features.items():
                values[rows] = answers.taps[name].float().cpu()[inside]
            _require_finite(index[inside], logits[rows], *(values[rows] for values in features.values()))
        if (epoch, chunk) == self._todo[0]:
            sanity_checks.warn(sanity_checks.of_answers("teacher", logits))
        return logits, features, None


def _positions(split: data.Split) -> tuple[int, int]:
    """Return how many positions of a split count in all, and the most that a sample has."""
    total = longest = 0
    for index, inputs in split.stream(data.split_evenly(np.arange(len(split)), INNER)):
        _, counted = split.targets(torch.from_numpy(index), inputs)
        assert counted is not None
        total, longest = total + int(counted.sum()), max(longest, counted[0].numel())
    return total, longest


def _check(recipe: Recipe, inputs: RunInputs) -> None:
    setup.check_compatible(inputs)
    for key, value in (("outputs_top", recipe.outputs_top), ("outputs_form", recipe.outputs_form)):
        if value is not None and inputs.splits.task == "embedding":
            expected = "null with data.embedding, of which no number may be left out"
            raise RecipeError(key, expected, value, f"type {key}=null")
    if (form := recipe.outputs_form) is not None:
        if inputs.splits.task == "labels":
            expected = "null for several labels, whose outputs are all recorded"
            raise RecipeError("outputs_form", expected, form.name, "type outputs_form=null")
        for objective in inputs.objectives:
            setup.check_form(objective, form.name)
    setup.check_teacher_outputs(recipe, inputs, setup.probe_inputs(recipe, inputs))


def _check_time(deadline: Deadline | None, name: str, seconds: float) -> None:
    if deadline is not None:
        deadline.check(f"{name}: the next chunk", seconds)


def _missing(outputs: TeacherCache, epochs: int, names: Sequence[str]) -> list[tuple[int, range]]:
    """Return the chunks that are missing or damaged; several processes share the epochs to look through."""

    def look(own: Sequence[int]) -> Iterator[tuple[list[range], list[str]]]:
        for epoch in own:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                chunks = list(outputs.missing(epoch, names))
            yield chunks, [str(warning.message) for warning in caught]

    todo = []
    for epoch, (chunks, damaged) in enumerate(dealt(range(epochs), look)):
        todo += [(epoch, chunk) for chunk in chunks]
        for text in damaged:
            warnings.warn(text, stacklevel=3)
    return todo


def _requests(outputs: TeacherCache, chunk: range, inner: int) -> list[NDArray[np.int64]]:
    """Return the teacher's batches that have samples of a chunk.

    They are those of chunks of `ROWS` samples whatever the chunks' size is, as a network's outputs for a sample may
    differ in the last bit with its batch.
    """
    size = ROWS if ROWS % outputs.rows == 0 else outputs.rows
    start = chunk.start // size * size
    batches = data.split_evenly(np.arange(start, min(start + size, outputs.samples)), inner)
    return [batch for batch in batches if batch[-1] >= chunk.start and batch[0] < chunk.stop]


def _require_finite(index: Tensor, logits: Tensor, *features: Tensor) -> None:
    """Refuse NaN, which would count as of samples that were not read; a logit of -inf is a probability of 0.

    Raises:
        NonFiniteError: so; it names the samples.
    """
    sound = (logits.isfinite() | logits.isneginf()).all(-1)
    for values in features:
        sound &= values.isfinite().flatten(1).all(1)
    if bad := index[~sound].tolist():
        got = f"NaN or infinity for {len(bad)} of {len(index)} samples: {listed(bad[:NAMED], len(bad))}"
        instead = "look at these samples and at the teacher's precision, and run the same command again"
        raise NonFiniteError("teacher", "finite logits and features to record", got, instead)


def _rows(classes: int, shapes: Mapping[str, tuple[int, ...]], least: int = INNER) -> int:
    """Return the number of samples in a chunk: `ROWS`, or a half, a quarter... of it that is within `CHUNK`."""
    row = 4 * (classes + sum(math.prod(shape) for shape in shapes.values()))
    rows = ROWS
    while rows > least and rows * row > CHUNK:
        rows //= 2
    return rows


def _choose_form(
    outputs: TeacherCache,
    recipe: Recipe,
    wanted: _Exponents,
    shapes: Mapping[str, tuple[int, ...]],
    epochs: int,
    split: data.Split,
) -> tuple[float, Form | None, int]:
    """Choose form and chunks of a new recording; one above the limit is refused.

    Returns:
        Its size in MB, its form, and the number of samples in a chunk.
    """
    classes, samples, bound, longest, unit = outputs.key["classes"], outputs.samples, BOUND, 1, "samples"
    if outputs.ragged:
        (samples, longest), bound, unit = _positions(split), TOKEN_BOUND, "tokens"
    limit_mb, top = recipe.outputs_limit_mb, recipe.outputs_top
    if top is not None and outputs.of_labels:
        expected = f"null for several labels, whose {classes} outputs are all recorded"
        raise RecipeError("outputs_top", expected, top, "type outputs_top=null")

    def size(form: Form | None) -> float:
        return size_of(samples=samples, classes=classes, shapes=shapes, epochs=epochs, form=form) / 1e6

    if not outputs.begun:
        outputs.rows = _rows(classes * longest, shapes, least=1 if outputs.ragged else INNER)
    typed = recipe.outputs_form
    if not outputs.begun and typed is not None:
        outputs.form = form_of(typed, classes=classes, seed=recipe.data_seed)
    if outputs.begun and isinstance(outputs.form, TopK) and top not in (None, outputs.form.kept):
        instead = "type outputs=... for another folder, or remove this one"
        raise RecipeError("outputs_top", f"{outputs.form.kept}, as {outputs.folder.name} was begun with", top, instead)
    if not outputs.begun and typed is None and top is not None and size(None) > limit_mb:
        outputs.form = TopK.of(top, classes, needed=wanted.all(), bound=recipe.outputs_max_error or bound)
        if size(outputs.form) >= size(None):
            expected = f"fewer than take as much as all {classes} classes, {size(None):.3g} MB"
            instead = "type a smaller outputs_top=..., or a larger outputs_limit_mb=..."
            raise RecipeError("outputs_top", expected, f"{top}, which take {size(outputs.form):.3g}", instead)
    if (size_mb := size(outputs.form)) <= limit_mb:
        return size_mb, outputs.form, outputs.rows
    fewer, fits = "", [k for k in (2**n for n in range(16)) if k < classes and size(TopK.of(k, classes)) <= limit_mb]
    if fits and top is None and outputs.form is None:
        fewer = f"outputs_top={fits[-1]} to keep the {fits[-1]} largest of {classes} logits, "
    raise RecipeError(
        "outputs",
        f"at most {limit_mb:,g} MB",
        f"{size_mb:,g} MB for {epochs} epochs of {samples} {unit}",
        f"type outputs_limit_mb={math.ceil(size_mb)} to write them, {fewer}or outputs=null to ask the live teacher",
    )
