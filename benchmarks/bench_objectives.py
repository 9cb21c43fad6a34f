"""What a step of every preset costs in time and memory, against a step of KD.

    python benchmarks/bench_objectives.py data.source=hf:path/to/cifar100 [--write]

One step is the teacher's forward pass, the student's forward and backward pass with the objective, all in float32 on
one thread, without the optimizer: 64 images of CIFAR-100, resnet56 teaching resnet20. ViTKD, which needs transformers,
is held against KD on two small ones. Time is processor time of this process, steps of all presets in turn, the median
of N. Memory is what is kept for the backward pass, each tensor once, parameters not counted. --write records it for
``tutelage list objectives``.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import output
import torch
from torch import nn

from tutelage import config, data, objectives
from tutelage.benchmark import turns
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.runs.setup import build_inputs, run_context
from tutelage.studies import overview

N, BATCH = 5, 64
CIFAR = {
    "data": {"source": "hf:uoft-cs/cifar100", "image": "img", "label": "fine_label"},
    "student": "cifar:resnet20",
    "teacher": "cifar:resnet56",
}
TOKENS = {"student": "timm:deit_tiny_patch16_224", "teacher": "timm:deit3_small_patch16_224"}
PAIRS = {"vitkd": TOKENS}


class Step(NamedTuple):
    """What one step is made of."""

    distiller: Distiller
    teacher: nn.Module | None
    batch: object

    def take(self):
        """Do one step without an optimizer; return its processor time in seconds."""
        self.distiller.zero_grad(set_to_none=True)
        began = time.process_time()
        answers = self.teacher(self.batch) if self.teacher is not None else None
        self.distiller(self.batch, answers).loss.total.backward()
        return time.process_time() - began

    def kept_mb(self):
        """Return what a forward pass keeps for the backward pass, 1e6 bytes."""
        own = {tensor.untyped_storage().data_ptr() for tensor in self.distiller.parameters()}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        answers = self.teacher(self.batch) if self.teacher is not None else None
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.distiller(self.batch, answers).loss.total
        assert loss.isfinite()
        return sum(kept.values()) / 1e6


def step_of(objective, pair, overrides):
    recipe = config.parse(config.Recipe, config.override({**CIFAR, **pair, "name": "cost", "device": "cpu"}, overrides))
    run_inputs = build_inputs(recipe)
    bound = run_context(objective, run_inputs)
    batches = data.BatchLoader(run_inputs.splits.train, batch_size=BATCH if pair is CIFAR else 8, train=True)
    taught = FrozenTeacher(run_inputs.teacher, objective.needs.teacher_taps) if objective.needs.teacher else None
    return Step(Distiller(run_inputs.student, objective, bound).train(), taught, next(batches.epoch(0)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    overrides = [word for word in sys.argv[1:] if word != "--write"]
    steps = {("kd", False): step_of(objectives.kd(), CIFAR, overrides)}
    for name in objectives.PRESETS:
        pair = PAIRS.get(name)
        own = [*overrides, "data.size=224"] if pair else overrides
        if pair and ("kd", True) not in steps:
            steps["kd", True] = step_of(objectives.kd(), pair, own)
        steps[name, pair is not None] = step_of(overview.default(name), pair or CIFAR, own)
    taken = turns.in_turn({key: step.take for key, step in steps.items()}, N)
    found = {}
    for key, step in steps.items():
        name, tokens = key
        if name == "kd" and tokens:
            continue
        median, base = (statistics.median(taken[k]) for k in (key, ("kd", tokens)))
        memory, least = step.kept_mb(), steps["kd", tokens].kept_mb()
        found[name] = {
            "step_ms": round(1000 * median, 1),
            "time": round(median / base, 3),
            "kept_mb": round(memory, 1),
            "memory": round(memory / least, 3),
        }
        print(
            f"{name:<24} {1000 * median:6.0f} ms, {median / base:.2f} x KD; {memory:6.1f} MB, {memory / least:.2f} x KD"
        )
    if "--write" in sys.argv:
        output.write(Path(overview.COSTS), {"n": N, "batch": BATCH, "costs": found})
