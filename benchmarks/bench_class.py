"""Time a class of students on one teacher pass against the teacher and the students apart.

    python benchmarks/bench_class.py DATA [RESULT.json]

A resnet56 teaches resnet20s by KD on CIFAR-100 (``DATA`` is a source such as ``hf:uoft-cs/cifar100``), batches of 64,
bfloat16, with the CIFAR augmentation. Timed are steps of the engine; data sets, networks and evaluation are not. For 1,
2, 4 and 8 students in one class, against

- the parts: the steps of the teacher alone, its batches made and placed, and as many times those of a student that is
  given a batch and the teacher's answers that are there already;
- separate runs: as many times a class of one, which makes its own batches and asks the live teacher.

Every round times each form once, in turn, so that a change of the machine's speed meets all; the first round warms up,
and so does each form's first step, which fills caches and makes the optimizer's state. The clock stops with the last
step: what follows it, such as a garbage collection, is once a fit. Prints medians and ratios; with a file's name it
records them with the machine, the versions and n. Weights are random: no time depends on them.
"""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from tutelage import data, manifest, models, objectives
from tutelage.contracts import Outputs
from tutelage.data import DataSettings
from tutelage.engine import Chance, FitSettings, Pupil, Together, accelerator_on
from tutelage.lesson import FrozenTeacher, Lesson

N, STEPS, BATCH, CLASSES = 5, 8, 64, (1, 2, 4, 8)
SETTINGS = FitSettings(epochs=1, precision="bf16", checkpoint_seconds=1e9, log_steps=10_000)
CPU = torch.device("cpu")


class Few:
    """The first steps of an epoch, one to warm up and those that are timed; each batch is made when it is asked for."""

    def __init__(self, batches):
        self.batches, self.samples, self.began, self.ended = batches, (1 + STEPS) * BATCH, 0.0, 0.0

    def __len__(self):
        return 1 + STEPS

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        stream = self.batches.epoch(epoch, start=start, rank=rank, world=world)
        for step in range(len(self)):
            if step == 1:
                self.began = time.perf_counter()
            yield next(stream)
        self.ended = time.perf_counter()


class Made(Few):
    """The same, made before."""

    def __init__(self, batches):
        super().__init__(batches)
        self.list = list(itertools.islice(batches.epoch(0), len(self)))

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        for step, batch in enumerate(self.list):
            if step == 1:
                self.began = time.perf_counter()
            yield batch
        self.ended = time.perf_counter()


class Constant:
    """A teacher whose answers are there already."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, batch):
        return Outputs(self.logits[: len(batch.index)])


def network(name, seed=0):
    return models.create(name, classes=100, channels=3, image_size=(32, 32), seed=seed)


def a_class(students, teacher, batches):
    """Seconds of a class's steps, after its lessons are made."""
    pupils = []
    for seed in range(students):
        lesson = Lesson(network("cifar:resnet20", seed), objectives.kd())
        pupils.append(Pupil(lesson, SETTINGS, chance=Chance(CPU) if students > 1 else None))
    together = Together(pupils, teacher, batches, accelerator=accelerator_on("cpu"))
    told = list(together.run())
    assert all(isinstance(one, dict) for _, one in told), told
    return batches.ended - batches.began


@torch.no_grad()
def teacher_alone(teacher, batches):
    """Seconds of making and placing the batches and of asking the teacher about them."""
    teacher.to(memory_format=torch.channels_last)
    for batch in batches.epoch(0):
        inputs = batch.inputs.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            teacher(batch._replace(inputs=inputs))
    return batches.ended - batches.began


if __name__ == "__main__":
    torch.set_num_threads(1)
    splits = data.open_data(DataSettings(source=sys.argv[1], label="fine_label", crop_padding=4, flip=True))
    real = data.SplitBatches(splits.train, batch_size=BATCH, train=True)
    batches, made, said = Few(real), Made(real), Constant(torch.randn(BATCH, 100))
    teacher = FrozenTeacher(network("cifar:resnet56"))
    forms = {
        "teacher alone": lambda: teacher_alone(teacher, batches),
        "student without teacher": lambda: a_class(1, said, made),
        **{f"class of {k}": lambda k=k: a_class(k, teacher, batches) for k in CLASSES},
    }
    taken = {name: [] for name in forms}
    for i in range(N + 1):
        for name, form in forms.items():
            value = form() / STEPS
            if i:
                taken[name].append(value)
    median = {name: statistics.median(values) for name, values in taken.items()}
    # Each round's ratio first, as the machine's speed is nearly the same within a round; then the median of them.
    over_parts, over_runs = {}, {}
    for k in CLASSES:
        rounds = zip(*(taken[name] for name in (f"class of {k}", *list(forms)[:2], "class of 1")), strict=True)
        parts, runs = zip(*((t / (a + k * s), t / (k * one)) for t, a, s, one in rounds), strict=True)
        over_parts[k], over_runs[k] = statistics.median(parts), statistics.median(runs)
    for name, value in median.items():
        print(f"{name:<26} {value * 1e3:8.1f} ms a step")
    for k in CLASSES:
        print(f"class of {k}: {over_parts[k]:.3f} times its parts, {over_runs[k]:.3f} times {k} separate live runs")
    if sys.argv[2:]:
        found = {
            "n": N,
            "steps": STEPS,
            "batch_size": BATCH,
            "threads": 1,
            "precision": SETTINGS.precision,
            "pair": "resnet56/resnet20",
            "median_s_per_step": median,
            "rounds_s_per_step": taken,
            "over_teacher_alone_and_students_apart": over_parts,
            "over_separate_runs_with_a_live_teacher": over_runs,
        }
        machine = {**manifest.version(), "hardware": manifest.hardware(CPU)}
        record = {**found, **machine, "software": manifest.software()}
        Path(sys.argv[2]).write_text(json.dumps(record, indent=2) + "\n")
