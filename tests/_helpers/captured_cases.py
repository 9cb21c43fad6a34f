"""Steps of every preset, eager and captured by the recorder, as tests and the table of presets take them."""

import torch
from tests._helpers.contexts import drawn_context
from tests._helpers.fit_cases import settings
from tests._helpers.presets import OF_TOKENS
from tests._helpers.recorder import Recorder

from tutelage import models, objectives
from tutelage.modules import Distiller, FrozenTeacher
from tutelage.studies import overview
from tutelage.training.captured import CapturedStep
from tutelage.training.distributed import accelerator_on
from tutelage.training.graphs import CAPTURES
from tutelage.training.state import TrainState
from tutelage.training.step import train_step
from tutelage.types import Batch

CLASSES, SAMPLES, STEPS = 10, 64, 5
PRESETS = [name for name in objectives.PRESETS if name not in OF_TOKENS]  # those read networks of 224 pixels


def capture_on_the_cpu(patch):
    """Let the recorder capture on the CPU."""
    patch.setitem(CAPTURES, "cpu", Recorder)


def networks(name):
    if name in OF_TOKENS:
        pair, side = ("timm:deit_tiny_patch16_224", "timm:deit3_small_patch16_224"), 224
    else:
        pair, side = ("cifar:resnet8", "cifar:resnet8" if name in ("fsp", "kd_svd") else "cifar:resnet14"), 32
    return *(models.create(each, classes=CLASSES) for each in pair), side


def preset_state(name, **changes):
    """A preset's state before the first step, its teacher, and the side of its images."""
    objective = objectives.cross_entropy() if name == "cross_entropy" else overview.tried(name)
    torch.manual_seed(0)
    student, teacher, side = networks(name)
    images, needs = torch.rand(2, 3, side, side), objective.needs
    context = drawn_context(objective, student, teacher, images, samples=SAMPLES, classes=CLASSES)
    distiller = Distiller(student, objective, context).train()
    training = TrainState(distiller, settings(epochs=1, clip=1.0, **changes), accelerator_on("cpu"))
    torch.manual_seed(1)
    return training, FrozenTeacher(teacher, needs.teacher_taps) if needs.teacher else None, side


def batches(side, *, spoilt=2):
    """Five batches, of which one is not finite; its step is not applied."""
    generator = torch.Generator().manual_seed(3)
    for step in range(STEPS):
        images = torch.rand(8, 3, side, side, generator=generator)
        images[0, 0, 0, 0] = torch.nan if step == spoilt else 0.5
        index = torch.randperm(SAMPLES, generator=generator)[:8]
        yield Batch(index, images, index % CLASSES)


def trained(name, *, captured, **changes):
    """All that steps of a preset change, and how many operations were captured."""
    training, teacher, side = preset_state(name, **changes)
    step, operations = train_step, 0
    for k, batch in enumerate(batches(side)):
        training.now.step = k
        training.now.set(0.01 / (k + 1), k / STEPS)
        if captured and step is train_step:
            step = CapturedStep(training, batch, teacher)
            operations = len(step._captured._graph.operations)
        step(training, batch, teacher)
    return {f"{kind} {k}": t for kind, ts in training.lasting().items() for k, t in enumerate(ts)}, operations
