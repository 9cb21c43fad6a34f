"""Measure the time and memory of a step of every preset, against a step of KD.

    python benchmarks/bench_objectives.py data.source=hf:path/to/cifar100 [--write] [--rounds N] [--presets NAME ...]

One step is the teacher's forward pass and the student's forward and backward pass with the objective, all in float32 on
one thread, without the optimizer: 64 images of CIFAR-100, resnet56 teaching resnet20. ViTKD needs transformers and is
compared with KD on two small ones. Time is processor time of this process, with the steps of all presets in turn, the
median of N. Memory is what is kept for the backward pass, each tensor once, without parameters. --write records it for
``tutelage list objectives``.
"""

from typing import NamedTuple

import output
import torch

from tutelage import config, data, objectives
from tutelage.benchmark import timing
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.runs.setup import build_inputs, run_context
from tutelage.studies import overview
from tutelage.types import Batch

BATCH = 64
CIFAR = {
    "data": {"source": "hf:uoft-cs/cifar100", "image": "img", "label": "fine_label"},
    "student": "cifar:resnet20",
    "teacher": "cifar:resnet56",
    "name": "cost",
    "device": "cpu",
}
TOKENS = {"student": "timm:deit_tiny_patch16_224", "teacher": "timm:deit3_small_patch16_224"}
TRANSFORMERS = {"vitkd", "hidden_states", "attention_relations"}


class Step(NamedTuple):
    """Parts of one step."""

    distiller: Distiller
    teacher: FrozenTeacher | None
    batch: Batch

    def loss(self):
        """Return the loss of a forward pass."""
        outputs = self.teacher(self.batch) if self.teacher is not None else None
        return self.distiller(self.batch, outputs).loss.total

    def seconds(self):
        """Return the processor time of one step."""
        self.distiller.zero_grad(set_to_none=True)
        return timing.backward(self.loss)[0]

    def saved_mb(self):
        """Return the 1e6 bytes that a forward pass saves for the backward pass: each tensor once, no parameters."""
        parameters = {tensor.untyped_storage().data_ptr() for tensor in self.distiller.parameters()}
        saved = {}

        def save(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss = self.loss()
        assert loss.isfinite()
        return sum(saved.values()) / 1e6


def step(objective, overrides, *, tokens):
    """Return a step of an objective, on the transformers or on the convolutional networks."""
    value = config.override({**CIFAR, **(TOKENS if tokens else {})}, overrides + ["data.size=224"] * tokens)
    run_inputs, needs = build_inputs(config.parse(config.Recipe, value)), objective.needs
    distiller = Distiller(run_inputs.student, objective, run_context(objective, run_inputs)).train()
    teacher = FrozenTeacher(run_inputs.teacher, needs.teacher_taps) if needs.teacher else None
    batches = data.BatchLoader(run_inputs.splits.train, batch_size=8 if tokens else BATCH, train=True)
    return Step(distiller, teacher, next(batches.epoch(0)))


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--presets", nargs="+", default=list(objectives.PRESETS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keys = [(name, name in TRANSFORMERS) for name in arguments.presets]
    steps = {
        (name, tokens): step(overview.tried(name), arguments.overrides, tokens=tokens)
        for name, tokens in dict.fromkeys([*(("kd", tokens) for _, tokens in keys), *keys])
    }
    medians = timing.medians(timing.in_turn({key: step.seconds for key, step in steps.items()}, arguments.rounds))
    costs = {}
    for name, tokens in keys:
        median, base = (medians[key] for key in ((name, tokens), ("kd", tokens)))
        memory, least = (steps[key].saved_mb() for key in ((name, tokens), ("kd", tokens)))
        costs[name] = {
            "step_ms": round(1000 * median, 1),
            "time": round(median / base, 3),
            "kept_mb": round(memory, 1),
            "memory": round(memory / least, 3),
        }
        print(
            f"{name:<24} {1000 * median:6.0f} ms, {median / base:.2f} x KD; {memory:6.1f} MB, {memory / least:.2f} x KD"
        )
    if arguments.write:
        output.write(overview.COSTS, {"n": arguments.rounds, "batch": BATCH, "costs": costs})
