"""What the networks of a run cost, as its folder records it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage import config, records
from tutelage.adapters import inputs_for
from tutelage.config.schema import Network, Recipe, Teachers, UntrainedTeacher
from tutelage.data import Splits
from tutelage.errors import InvalidValueError, NotFoundError, reason_of
from tutelage.models import Classifier, costs
from tutelage.models.costs import Times
from tutelage.records import Costs, NetworkCost
from tutelage.runs import manifest
from tutelage.runs.autotune import with_untrained_teacher
from tutelage.runs.networks import create_teacher, create_untrained
from tutelage.runs.resume import read_recorded
from tutelage.runs.run import finished
from tutelage.runs.setup import held_out_batch, on_device, torch_settings
from tutelage.submodules import device_of
from tutelage.training.deadline import Deadline
from tutelage.training.distributed import accelerator_on
from tutelage.training.dry_forward import same_draws
from tutelage.training.precision import float32_products
from tutelage.types import Inputs
from tutelage.views import map_views, views_of

SHARE, MOST = 0.05, 4.0
"""Share of a run's duration, and seconds, that timing all of its networks may take."""
TEXTS = 16
"""Texts of the test set, evenly spaced, of which the one of median length is the sample."""
LARGEST_ON_GPU = 2**14
_TIMED: dict[object, tuple[float, Times]] = {}
"""What was timed in this process, and in how much time, by what it depends on: runs of the same networks share it."""


def measure(
    recipe: Recipe,
    splits: Splits,
    student: Classifier,
    teacher: Classifier | None = None,
    *,
    seconds: float | None,
    say: Callable[[str], None],
) -> Costs:
    """Measure networks with a sample of the test set, as `models.costs.measure` does; no generator is moved.

    They are on the recipe's device, but those that are sharded, of which nothing is timed. They compute in float32, or
    in float64 where they were trained so. Networks of the same modules, sizes and operations are timed once in a
    process, unless there is more than twice as much time for it now.

    Args:
        recipe: recipe with the device.
        splits: data, open.
        student: network to measure.
        teacher: another one.
        seconds: time for all of them; ``None`` to time none.
        say: called with a line about each network that cannot be called.
    """
    device = accelerator_on(recipe.device).device
    hardware = manifest.hardware(device)
    with same_draws(device), float32_products(device, "fp32"):
        inputs = one_sample(splits, student)
        networks = {"student": student, **({} if teacher is None else {"teacher": teacher})}
        share = None if seconds is None else seconds / len(networks)
        measured = {
            who: _measured(recipe, network, who, inputs, splits, seconds=share, say=say)
            for who, network in networks.items()
        }
        own = None if inputs is None else inputs_for(student, inputs, "student")
    return {
        "schema": records.SCHEMA,
        "device": device.type,
        "hardware": hardware["gpu"] or hardware["processor"],
        "threads": hardware["threads"],
        "precision": "fp64" if student.is_double else "fp32",
        "input": list(own.shape[1:]) if isinstance(own, torch.Tensor) else None,
        "student": measured["student"],
        "teacher": measured.get("teacher"),
    }


def one_sample(splits: Splits, student: Classifier) -> Inputs | None:
    """Return a sample of the test set: the first, or of some texts the one of median length; ``None`` without any."""
    split = replace(splits.test, workers=0)
    index = np.unique(np.linspace(0, max(0, len(split) - 1), TEXTS).astype(np.int64))[: len(split)]
    found: list[Inputs] = []
    for _, inputs in split.stream(index[:, None]):
        if len(views_of(inputs)[0]):
            found.append(inputs)
        if found and not splits.text:
            break
    found.sort(key=lambda inputs: [view.shape for view in views_of(inputs_for(student, inputs, "student"))])
    return found[len(found) // 2] if found else None


def of_evaluated(
    recipe: Recipe,
    splits: Splits,
    network: Classifier,
    *,
    folder: Path | None,
    trust_code: bool | frozenset[str],
    say: Callable[[str], None],
) -> Costs:
    """Measure a model that was evaluated; a finished run that lacks times gets them, with those of its teacher.

    Args:
        recipe: recipe with the device.
        splits: data, open.
        network: the model.
        folder: folder of its run, perhaps; ``None`` if what is evaluated is not what the run had.
        trust_code: whether a ``file:`` teacher is allowed.
        say: called with a line about each network that cannot be built or called.
    """
    known = None if folder is None else _without_times(folder)
    teacher = None
    if folder is not None and known is not None:
        try:
            teacher = _teacher_of(folder, splits, trust_code=trust_code)
            if teacher is not None:
                on_device(recipe, teacher, "network")
        except Exception as error:  # noqa: BLE001  it may be gone, or be the caller's own
            say(f"teacher: its times were not measured: {reason_of(error)}")
            teacher = None
    with torch_settings(recipe):
        measured = measure(recipe, splits, network, teacher, seconds=costs.SECONDS, say=say)
    if folder is not None and known is not None:
        measured["teacher"] = measured["teacher"] or known.get("teacher")
        records.write_json(folder / records.COSTS, measured)
    return measured


def _without_times(folder: Path) -> Mapping[str, Any] | None:
    """Return the costs of a finished run, perhaps none, if they lack the student's times."""
    if not finished(folder):
        return None
    try:
        known = records.read_json(folder / records.COSTS, Costs)
    except (InvalidValueError, NotFoundError):
        return {}
    return known if known["student"]["latency_ms"] is None else None


def _teacher_of(folder: Path, splits: Splits, *, trust_code: bool | frozenset[str]) -> Classifier | None:
    """Make the teacher of a run; ``None`` if it had none, or only the answers of one."""
    recorded = read_recorded(folder)
    assert recorded is not None
    recipe = config.parse(Recipe, recorded.recipe(exact=True), where=str(folder / records.RECIPE))
    named = with_untrained_teacher(recipe).teacher
    if not isinstance(named, Network | Teachers) or (isinstance(named, Network) and named.served):
        return None
    if isinstance(named, UntrainedTeacher):
        return create_untrained(named, splits, trust_code=trust_code)
    return create_teacher(named, splits, trust_code=trust_code)


def time_for(duration: float, deadline: Deadline | None = None) -> float:
    """Return the seconds for timing a run's networks, of its duration so far and what is left of its time."""
    seconds = min(MOST, SHARE * duration)
    return seconds if deadline is None else min(seconds, max(0.0, deadline.left))


def _measured(
    recipe: Recipe,
    network: Classifier,
    who: str,
    inputs: Inputs | None,
    splits: Splits,
    *,
    seconds: float | None,
    say: Callable[[str], None],
) -> NetworkCost:
    device = device_of(network)
    largest = LARGEST_ON_GPU if device.type == "cuda" else held_out_batch(recipe, splits.test)
    try:
        own = None if inputs is None else _on(device, inputs_for(network, inputs, who), recipe)
        cost = costs.measure(network, own, seconds=None)
        if own is not None and seconds is not None and device.type == accelerator_on(recipe.device).device.type:
            key = _key(network, cost, own, largest)
            if key not in _TIMED or seconds > 2 * _TIMED[key][0]:
                _TIMED[key] = seconds, costs.timed(network, own, seconds=seconds, largest=largest)
            cost |= _TIMED[key][1]._asdict()  # type: ignore[typeddict-item]  # of the same keys
    except Exception as error:  # noqa: BLE001  a run does not fail of it
        say(f"{who} {network.card.name}: its times were not measured: {reason_of(error)}")
        cost = costs.measure(network)
    cost["network"] = manifest.without_paths(cost["network"])
    return cost


def _on(device: torch.device, inputs: Inputs, recipe: Recipe) -> Inputs:
    """Return inputs on a device, in the layout in which networks are evaluated."""

    def moved(view: Tensor) -> Tensor:
        layout = torch.channels_last if recipe.channels_last and view.ndim == 4 else torch.preserve_format
        return view.to(device, memory_format=layout)

    return map_views(moved, inputs)


def _key(network: Classifier, cost: NetworkCost, inputs: Inputs, largest: int) -> object:
    """Return what times depend on."""
    shapes = [(view.shape, view.dtype, view.device) for view in views_of(inputs)]
    counts = [cost[key] for key in ("parameters", "flops", "file_bytes")]
    return repr((network.network, network.is_double, counts, shapes, torch.get_num_threads(), largest))
