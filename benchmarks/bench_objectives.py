"""What a step of every preset costs in time and memory, against a step of KD.

    python benchmarks/bench_objectives.py data.source=hf:path/to/cifar100 [--write] [--rounds N] [--presets NAME ...]

One step is the teacher's forward pass, the student's forward and backward pass with the objective, all in float32 on
one thread, without the optimizer: 64 images of CIFAR-100, resnet56 teaching resnet20. ViTKD, which needs transformers,
is held against KD on two small ones. Time is processor time of this process, steps of all presets in turn, the median
of N. Memory is what is kept for the backward pass, each tensor once, parameters not counted. --write records it for
``tutelage list objectives``.
"""

import output
import torch

from tutelage import config, objectives
from tutelage.benchmark import timing
from tutelage.benchmark.costs import step_of
from tutelage.studies import overview

BATCH = 64
CIFAR = {
    "data": {"source": "hf:uoft-cs/cifar100", "image": "img", "label": "fine_label"},
    "student": "cifar:resnet20",
    "teacher": "cifar:resnet56",
    "name": "cost",
    "device": "cpu",
}
TOKENS = {"student": "timm:deit_tiny_patch16_224", "teacher": "timm:deit3_small_patch16_224"}
TRANSFORMERS = {"vitkd"}


def step(objective, overrides, *, tokens):
    """Return a step of an objective, on the transformers or on the convolutional networks."""
    value = config.override({**CIFAR, **(TOKENS if tokens else {})}, overrides + ["data.size=224"] * tokens)
    return step_of(objective, config.parse(config.Recipe, value), batch=8 if tokens else BATCH)


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
        (name, tokens): step(overview.default(name), arguments.overrides, tokens=tokens)
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
