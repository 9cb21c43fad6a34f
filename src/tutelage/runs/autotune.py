"""Times steps and evaluations on this machine, to choose the precision that a recipe leaves open."""

from __future__ import annotations

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import torch

from tutelage import config, data, records
from tutelage.config.schema import Recipe, TrainedTeacher, UntrainedTeacher
from tutelage.errors import RecipeError
from tutelage.models import Classifier
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.objectives import Objective
from tutelage.runs.resume import read_recorded
from tutelage.runs.setup import RunInputs, evaluate_network, run_context, steps_of, with_sampled
from tutelage.settings.fit import Precision
from tutelage.teacher_cache.served import ServedTeacher
from tutelage.training.distributed import accelerator_on
from tutelage.training.graphs import CAPTURES
from tutelage.training.loop import fit
from tutelage.training.precision import has_tf32
from tutelage.types import Batch, Batches, Teacher

GAIN = 1.2
"""Least speed-up for which bfloat16 is chosen. It rounds networks to 8 bits, so it loses a near tie."""
FEW = 400
"""Number of steps below which fits are not timed: timing takes sixteen, at most 4 % of longer ones; capturing more."""
PLAIN = {"compile_teacher": False, "compile_student": False, "gradient_products": False, "loss_form": "plain"}
"""Settings of the timed steps: speed-ups other than graphs are chosen later, in the chosen precision."""
TIMED = 3
"""Number of timed steps, after one to warm up."""
EVALUATED = 256
"""Batch size of a timed evaluation."""

R = TypeVar("R", bound=Recipe)


def resolve_precision(
    recipe: R,
    run_inputs: Callable[[], RunInputs],
    *,
    folder: Path | None = None,
    beside: str | None = None,
    run: Recipe | None = None,
) -> tuple[R, str | None]:
    """Return a recipe with the precision filled in if it is open, and the reason if the machine decided.

    The precision of the run or comparison that is resumed comes first, then that of the run that it starts from, of the
    recorded outputs that it reads, and of runs beside it. Otherwise some training steps are timed in the device's
    precisions (`candidates`), on copies of the networks; bfloat16 is taken if it is `GAIN` times faster than the
    device's float32 or TF32. Fits of fewer than `FEW` steps, several processes, and runs in which no step can be taken
    get the latter, untimed. ``fp16`` and ``fp64`` are never chosen: whether the former overflows depends on the
    networks, and the latter is slow.

    Args:
        recipe: recipe of a run or a comparison.
        run_inputs: function that returns the objects to time steps with; its teacher may be a random substitute for one
            that is still to be trained.
        folder: folder of the run, which may have been begun there.
        beside: precision of runs that share its steps, if they have one.
        run: run to time, for a comparison.
    """
    if recipe.precision != "auto":
        return recipe, None

    def resolved(precision: str, reason: str | None = None) -> tuple[R, str | None]:
        return recipe.model_copy(update={"precision": precision}), reason

    # The outputs of a comparison have a folder for each data seed.
    paths = sorted(Path(recipe.outputs).glob(f"**/{records.OUTPUTS}")) if recipe.outputs else []
    instead = "restore the file, or remove its folder and record again with `tutelage record`"
    outputs = [
        records.read_json(path, records.OutputsKey, reads=records.OUTPUTS_SCHEMA, instead=instead)["key"]
        for path in paths
    ]
    start = None if recipe.start is None else Path(recipe.start)
    for earlier in (begun(folder), begun(start), *outputs, {"precision": beside}):
        if (recorded := str(earlier.get("precision"))) in get_args(Precision):
            return resolved(recorded)
    accelerator = accelerator_on(recipe.device)
    reference, *others = choices = candidates(accelerator.device)
    if accelerator.device.type == "cuda" and not others:
        return resolved(reference, f"precision {reference}: the device has no bfloat16; precision=fp16 is there to try")
    inputs, timed = run_inputs(), (run or recipe).model_copy(update=PLAIN)
    few = steps_of(timed, inputs.splits.train.per_epoch) < FEW
    if few or accelerator.num_processes > 1:
        untimed = f"fewer than {FEW} steps" if few else "several processes"
        reason = f"precision {reference}: {untimed} are not timed; type precision=... for another"
        return resolved(reference, reason if reference != "fp32" else None)
    forms = [timed.model_copy(update={"precision": choice}) for choice in choices]
    # In turn, and the fastest counts, as other load on the machine only adds time.
    try:
        rounds = [[time_step(form, inputs).seconds for form in forms] for _ in range(2)]
    except Exception as error:  # noqa: BLE001  the run will raise the same error
        return resolved(reference, f"precision {reference}: no step could be timed ({type(error).__name__})")
    slow, fast = (min(seconds) for seconds in zip(*rounds, strict=True))
    precision = choices[slow >= GAIN * fast]
    return resolved(
        precision,
        f"precision {precision}: a step takes {slow * 1e3:.1f} ms in {choices[0]}, {fast * 1e3:.1f} ms in {choices[1]}",
    )


def candidates(device: torch.device) -> list[Precision]:
    """Return the precisions to time on a device, the one to beat first."""
    reference: Precision = "tf32" if has_tf32(device) else "fp32"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return [reference]
    return [reference, "bf16"]


def begun(folder: Path | None) -> dict[str, Any]:
    """Return the recipe of the run or comparison begun in a folder; an empty one if there is none."""
    if folder is None:
        return {}
    if not (folder / records.COMPARISON).exists():
        recorded = read_recorded(folder)
        return recorded.recipe() if recorded else {}
    with contextlib.suppress(RecipeError):  # A comparison's runs say by themselves that they are others.
        return config.read(folder / records.RECIPE)
    return {}


def with_untrained_teacher(recipe: Recipe) -> Recipe:
    """Return a run's recipe with an untrained network in place of a teacher that is still to be trained."""
    if not isinstance(recipe.teacher, TrainedTeacher):
        return recipe
    return recipe.model_copy(update={"teacher": UntrainedTeacher(**dict(recipe.teacher.train.model))})


class StepTime(NamedTuple):
    """Seconds per training step, and the means of the objective's terms over the steps that were timed."""

    seconds: float
    terms: dict[str, float]


def time_step(recipe: Recipe, run_inputs: RunInputs, stage: int = 0, *, limit: float = math.inf) -> StepTime:
    """Time a few real training steps of a stage on copies of student and live teacher, outputs recorded or not.

    After ``limit`` seconds no further step is taken, except the warm-up and one more. Steps that a run may replay as
    graphs are timed as such: launched singly, the operations of small networks take as long in any precision.
    """
    accelerator = accelerator_on(recipe.device)
    objective, planned = run_inputs.objectives[stage], recipe.fits()[stage]
    student = copy.deepcopy(run_inputs.student).to(accelerator.device)
    network = run_inputs.teacher and copy.deepcopy(run_inputs.teacher).to(accelerator.device)
    # What a copy of the teacher answers is not kept for the run, whose numbers are found from its own.
    context = run_context(objective, replace(run_inputs, student=student, teacher=network, statistics=[]))
    teacher = live_teacher(objective, run_inputs, network, accelerator.device)
    train = run_inputs.splits.train
    batches = data.loader_on(
        accelerator.device, train, batch_size=planned.batch_size, data_seed=recipe.data_seed, train=True
    )
    made = with_sampled(batches, planned, run_inputs, student, device=accelerator.device)
    timed, settings = _TimedBatches(made, TIMED, limit), replace(planned.settings, epochs=1, early_stopping=None)
    if accelerator.device.type in CAPTURES and settings.graphs == "auto":  # Otherwise so few steps are not captured.
        settings = replace(settings, graphs=not objective.needs.host_waits)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "graphs: ")  # The run itself says so.
        (record,) = fit(Distiller(student, objective, context), teacher, timed, settings, accelerator=accelerator)
    return StepTime(timed.seconds, record["train"]["terms"])


def live_teacher(
    objective: Objective, run_inputs: RunInputs, network: Classifier | None, device: torch.device
) -> Teacher | None:
    """Return a stage's teacher, outputs recorded or not; ``network`` is the run's, or a copy on the device."""
    if objective.needs.teacher and run_inputs.served is not None:
        return ServedTeacher(run_inputs.served, device)
    return FrozenTeacher(network, objective.needs.teacher_taps) if objective.needs.teacher and network else None


def time_evaluation(recipe: Recipe, network: Classifier, split: data.Split) -> float:
    """Return a network's seconds per sample in evaluation, from one batch of a split."""
    device = accelerator_on(recipe.device).device
    timed = _TimedBatches(data.loader_on(device, split, batch_size=EVALUATED, train=False), 1, math.inf)
    network = copy.deepcopy(network)
    if recipe.channels_last:
        network.to(memory_format=torch.channels_last)
    evaluate_network(recipe, network, timed)
    return timed.seconds * timed.steps / max(timed.count, 1)


class _TimedBatches:
    """The first batches of an epoch, timed.

    ``seconds`` is per step; ``steps`` and ``count`` are the number of timed steps and of their samples.
    """

    def __init__(self, batches: Batches, timed: int, limit: float) -> None:
        self.batches, self.samples, self.seconds = batches, batches.samples, 0.0
        self.timed, self.limit, self.steps, self.count = timed, limit, 0, 0

    def __len__(self) -> int:
        return min(len(self.batches), 1 + self.timed)

    def epoch(self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        stream = self.batches.epoch(epoch, start=start, rank=rank, world=world)
        first = began = time.monotonic()
        for i in range(len(self)):
            if i > 1 and time.monotonic() - first > self.limit:
                break
            batch = next(stream)
            yield batch
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i == 0 and len(self) > 1:  # the first step warms up, unless it is the only one
                began = time.monotonic()
            else:
                self.steps += 1
                self.count += len(batch.index)
        self.seconds = (time.monotonic() - began) / max(self.steps, 1)
