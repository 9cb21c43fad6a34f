"""Recording: a teacher's outputs for every view that a run will take, so that many runs ask it once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tutelage import data, store
from tutelage.engine import Until
from tutelage.engine.evaluate import place
from tutelage.engine.loop import accelerator_on
from tutelage.lesson import FrozenTeacher
from tutelage.material import LOOK, check_fit, gather, outputs_of
from tutelage.recipes import Recipe, RecipeError
from tutelage.runs import Display, Silent, alone, set_up
from tutelage.taps import survey

INNER = 256
"""Samples that the teacher is asked about at a time."""


def wanted_taps(recipe: Recipe) -> tuple[str, ...]:
    """Return the features of the teacher that any stage of a recipe reads."""
    return tuple(dict.fromkeys(tap for objective, _, _ in recipe.fits() for tap in objective.needs.teacher_taps))


def record(
    recipe: Recipe,
    *,
    taps: Sequence[str] = (),
    display: Display | None = None,
    limit_mb: float = 20_000,
    trust_code: bool | frozenset[str] = False,
    until: Until | None = None,
) -> Path:
    """Record the teacher's outputs for every view of every epoch of a recipe, or go on with it.

    Args:
        recipe: names teacher, data, ``data_seed``, epochs and, in ``outputs``, the folder.
        taps: features to record besides those that the recipe's objectives read.
        display: shows it as it goes.
        limit_mb: refuse to write more, MB of 10**6 bytes.
        trust_code: allow ``file:`` models, which run code: all of them, or those of these names.
        until: the moment to stop by, after a whole chunk.

    Returns:
        The folder.

    Raises:
        RecipeError: the outputs would be larger than the limit, or teacher and data do not fit.
        OutOfTimeError: the moment to stop has come; the same call goes on.
    """
    display = display or Silent()
    material = gather(recipe, trust_code=trust_code)
    check_fit(material, [objective for objective, _, _ in recipe.fits()])
    outputs = outputs_of(recipe, material)
    names = tuple(dict.fromkeys((*wanted_taps(recipe), *taps)))
    assert material.teacher is not None
    epochs = sum(settings.epochs for _, settings, _ in recipe.fits())
    split = material.splits.train
    batches = data.SplitBatches(split, batch_size=INNER, data_seed=recipe.data_seed, train=True)
    with alone(outputs.folder, wait=True), set_up(recipe):
        device = accelerator_on(recipe.device).device
        todo = [(epoch, chunk) for epoch in range(epochs) for chunk in outputs.missing(epoch, names)]
        if not todo:
            return outputs.folder
        look = next(batches.at(0, [np.arange(min(LOOK, len(split)))])).inputs
        shapes = survey(material.teacher, names, look)
        size = store.size_of(samples=len(split), classes=material.splits.classes, shapes=shapes, epochs=epochs) / 1e6
        if size > limit_mb:
            raise RecipeError(
                f"outputs: expected at most {limit_mb:.0f} MB, got {size:.0f} MB for {epochs} epochs of {len(split)} "
                f"samples; type --limit-mb {size:.0f} to write them, or outputs=null to ask the live teacher"
            )
        teacher = FrozenTeacher(material.teacher, names).to(device)
        if recipe.channels_last:
            teacher.to(memory_format=torch.channels_last)
        display.say(f"{outputs.folder.name}: {size:.1f} MB for {epochs} epochs, {len(todo)} chunks to record")
        display.begin(outputs.folder.name, len(todo), 0)
        outputs.begin()
        took = 0.0
        for epoch, chunk in todo:
            if until is not None:
                until.check(f"{outputs.folder.name}: the next chunk", took)
            began = time.monotonic()
            logits = torch.full((len(chunk), material.splits.classes), torch.nan)
            features = {name: torch.full((len(chunk), *shape), torch.nan) for name, shape in shapes.items()}
            requests = np.array_split(np.arange(chunk.start, chunk.stop), -(-len(chunk) // INNER))
            for batch in batches.at(epoch, requests):
                moved = batch._replace(inputs=place(batch.inputs, device, channels_last=recipe.channels_last))
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                    said = teacher(moved)
                rows = batch.index - chunk.start
                logits[rows] = said.logits.float().cpu()
                for name in names:
                    features[name][rows] = said.taps[name].float().cpu()
            outputs.write(epoch, chunk, logits, features)
            took = time.monotonic() - began
            display.tick()
    return outputs.folder
