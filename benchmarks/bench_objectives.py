"""Measure the time and memory of a step of every preset, against a step of KD.

    python benchmarks/make_masks.py data/scenes path/to/cifar100
    python benchmarks/bench_objectives.py data.source=hf:path/to/cifar100 --texts hf:path/to/ag_news
        --scenes masks:data/scenes [--write] [--rounds N] [--presets NAME ...]

One step is the teacher's forward pass and the student's forward and backward pass with the objective, all in float32 on
one thread, without the optimizer. It is taken on the first of `BEDS` whose networks and data the preset takes, and so
is KD's: 64 images of CIFAR-100, resnet56 teaching resnet20, for most. Two views of a sample are compared with KD on one
of them, as that is what they cost. A preset that none of them suits has the reason in place of a figure.

Time is processor time of this process, with the steps of all presets in turn, the median of N. Memory is what is kept
for the backward pass, each tensor once, without parameters. --write records it for ``tutelage list objectives``.
"""

import functools
from typing import Any, NamedTuple

import output
import torch

from tutelage import config, data, objectives
from tutelage.benchmark import timing
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.runs.setup import build_inputs, run_context
from tutelage.studies import overview
from tutelage.types import Batch

CIFAR = {"source": "hf:uoft-cs/cifar100", "image": "img", "label": "fine_label"}
TEXTS = {
    "source": "hf:fancyzhx/ag_news",
    "text": "text",
    "label": "label",
    "tokenizer": {"bpe": 2000},
    "max_tokens": 48,
}
SCENES = {"source": "masks:data/scenes"}
BERT = {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}


class Bed(NamedTuple):
    """Networks and data that steps are taken on."""

    name: str
    student: Any
    teacher: Any
    data: dict[str, Any]
    batch: int = 64
    views: int = 1


BEDS = (
    Bed(overview.BED, "cifar:resnet20", "cifar:resnet56", CIFAR),
    Bed(
        "the same with two views, KD with one",
        "cifar:resnet20",
        "cifar:resnet56",
        {**CIFAR, "crop_padding": 4, "flip": True, "strong": {"randaugment": {"operations": 2, "magnitude": 10}}},
        views=2,
    ),
    Bed(
        "DeiT III-Small teaching DeiT-Tiny, 8 images",
        "timm:deit_tiny_patch16_224",
        "timm:deit3_small_patch16_224",
        {**CIFAR, "size": 224},
        batch=8,
    ),
    Bed(
        "DeiT III-Small teaching DeiT-Tiny with a distillation token, 8 images",
        "timm:deit_tiny_distilled_patch16_224",
        "timm:deit3_small_patch16_224",
        {**CIFAR, "size": 224},
        batch=8,
    ),
    Bed(
        "a BERT of 4 layers teaching another, 32 texts",
        {"name": "hf:bert", "config": {**BERT, "hidden_size": 96}},
        {"name": "hf:bert", "config": {**BERT, "hidden_size": 192}},
        TEXTS,
        batch=32,
    ),
    Bed(
        "a U-Net teaching a smaller one, 32 scenes of 24 x 24 pixels",
        "file:examples/unet.py:student",
        "file:examples/unet.py:teacher",
        SCENES,
        batch=32,
    ),
)


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


@functools.cache
def splits(name, overrides):
    """Open the data of a bed once."""
    return data.open_data(recipe(next(bed for bed in BEDS if bed.name == name), overrides).data)


def recipe(bed, overrides):
    """Return a bed as a recipe."""
    value = {"student": bed.student, "teacher": bed.teacher, "data": bed.data, "name": "cost", "device": "cpu"}
    return config.parse(config.Recipe, config.override(value, list(overrides)))


def step(objective, bed, overrides):
    """Return a step of an objective on a bed, after one forward pass.

    Raises:
        ValueError, TypeError or RuntimeError: if the objective does not take the bed's networks or data.
    """
    opened, needs = splits(bed.name, overrides), objective.needs
    run_inputs = build_inputs(recipe(bed, overrides), splits=opened, trust_code=True)
    distiller = Distiller(run_inputs.student, objective, run_context(objective, run_inputs)).train()
    teacher = FrozenTeacher(run_inputs.teacher, needs.teacher_taps) if needs.teacher else None
    batches = data.BatchLoader(run_inputs.splits.train, batch_size=bed.batch, train=True)
    made = Step(distiller, teacher, next(batches.epoch(0)))
    assert made.loss().isfinite()
    return made


def first(name, typed):
    """Return the first bed that a preset takes, with its step there; or none, and why."""
    objective, said = overview.default(name), "no bed has as many views"
    for bed in BEDS:
        if bed.views == objective.needs.views:
            try:
                return bed, step(objective, bed, typed[bed.data["source"]])
            except (ValueError, TypeError, RuntimeError) as error:
                said = str(error).splitlines()[0]
    return None, said


def against(bed):
    """Return the bed of the step of KD that one is compared with."""
    return BEDS[0] if bed.views > 1 else bed


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--texts", default=TEXTS["source"])
    parser.add_argument("--scenes", default=SCENES["source"])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--presets", nargs="+", default=list(objectives.PRESETS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    typed = {
        CIFAR["source"]: tuple(arguments.overrides),
        TEXTS["source"]: (f"data.source={arguments.texts}",),
        SCENES["source"]: (f"data.source={arguments.scenes}",),
    }
    found = {name: first(name, typed) for name in arguments.presets}
    beds = {name: bed for name, (bed, _) in found.items() if bed}
    steps = {name: found[name][1] for name in beds if name != "kd"}
    for bed in {against(bed).name: against(bed) for bed in beds.values()}.values():
        steps[bed.name] = step(overview.default("kd"), bed, typed[bed.data["source"]])  # KD's, by the bed's name
    medians = timing.medians(timing.in_turn({key: each.seconds for key, each in steps.items()}, arguments.rounds))
    kept = {key: each.saved_mb() for key, each in steps.items()}
    costs = {}
    for name, bed in beds.items():
        base, own = against(bed).name, name if name in steps else bed.name  # KD is measured once
        costs[name] = {
            "step_ms": round(1000 * medians[own], 1),
            "time": round(medians[own] / medians[base], 3),
            "kept_mb": round(kept[own], 1),
            "memory": round(kept[own] / kept[base], 3),
            "bed": bed.name,
        }
        print(
            f"{name:<24} {1000 * medians[own]:6.0f} ms, {costs[name]['time']:.2f} x KD; {kept[own]:6.1f} MB, "
            f"{costs[name]['memory']:.2f} x KD; {bed.name}"
        )
    refused = {name: said for name, (bed, said) in found.items() if not bed}
    for name, said in refused.items():
        print(f"{name:<24} n/a: {said}")
    if arguments.write:
        output.write(overview.COSTS, {"n": arguments.rounds, "costs": costs, "not_measured": refused})
