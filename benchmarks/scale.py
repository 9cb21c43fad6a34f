"""Compute what a run needs on N devices from what one device does with a share of its batch.

    python benchmarks/scale.py [--teacher NAME] [--student NAME] [--size PIXELS] [--classes K] [--samples N]
                               [--epochs E] [--batch B] [--bandwidth GB/s] [--workers W] [--read IMAGES/s]
                               [--device cpu|cuda] [--steps N] [--write RESULT.json]

For N of 1, 8 and 64 it measures the seconds of a step (live teacher, KD, float32) with B/N images, and the memory that
its process takes; it computes the bytes that DDP sends a step (a ring sends 2 (N-1)/N times the gradients), the time
that takes at a bandwidth that is given and not measured, an epoch's time, the images a second that each process needs
and has (``--read`` times the workers, from benchmarks/bench_loader.py), checkpoints, and recorded outputs.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path

import output
import torch

from tutelage import Batch, FrozenTeacher, models, objectives
from tutelage.modules import Distiller
from tutelage.settings.fit import FitSettings
from tutelage.teacher_cache.cache import size_of
from tutelage.teacher_cache.top_k import TopK
from tutelage.training import memory
from tutelage.training.distributed import accelerator_on
from tutelage.training.loop import fit

WORLDS = (1, 8, 64)
TOP = 32


class Repeated:
    """The same batch, ``steps`` times, and the seconds between its steps."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.steps, self.samples, self.seconds = batch, steps, steps * len(batch.index), []

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch, *, start=0, rank=0, world=1):
        for _ in range(self.steps):
            began = time.perf_counter()
            yield self.batch
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - began)


def step(options, share):
    """Return the median seconds of a step with this many images, and the peak memory in MB."""
    accelerator = accelerator_on(options.device)
    teacher, student = (
        models.create(name, classes=options.classes, image_size=(options.size, options.size)).to(accelerator.device)
        for name in (options.teacher, options.student)
    )
    shape = (share, 3, options.size, options.size)
    batch = Batch(torch.arange(share), torch.rand(shape), torch.arange(share) % options.classes)
    batches = Repeated(batch, options.steps + 1)
    plain = FitSettings(
        epochs=1,
        compile_teacher=False,
        compile_student=False,
        gradient_products=False,
        graphs=False,
        loss_form="plain",
        nonfinite="skip",
    )
    memory.restart(accelerator.device)
    list(fit(Distiller(student, objectives.kd()), FrozenTeacher(teacher), batches, plain, accelerator=accelerator))
    gradients = sum(p.numel() * p.element_size() for p in student.parameters())
    weights = sum(t.numel() * t.element_size() for t in student.state_dict().values())
    frozen = sum(p.numel() * p.element_size() for p in teacher.parameters())
    return statistics.median(batches.seconds[1:]), memory.peak(accelerator.device), gradients, weights, frozen


def rows(options):
    """Yield one row per number of processes."""
    steps = options.samples // options.batch
    for world in WORLDS:
        share = math.ceil(options.batch / world)
        seconds, peak, gradients, weights, frozen = step(options, share)
        sent = 2 * (world - 1) / world * gradients
        exchange = sent / (options.bandwidth * 1e9)
        needed, read = share / (seconds + exchange), options.read * options.workers
        reading = share / read if read else 0.0
        slowest = max(seconds + exchange, reading)
        parts = {"computing": seconds, "sending gradients": exchange, "reading images": reading}
        yield {
            "processes": world,
            "images a process and step": share,
            "seconds a step, measured": seconds,
            "peak memory MB, measured": peak,
            "MB of parameters, moments and gradients, DDP": 3 * gradients / 1e6,
            "the same under FSDP2": 3 * gradients / 1e6 / world,
            "MB of the teacher": frozen / 1e6,
            "the same where it is sharded": frozen / 1e6 / world,
            "MB sent a process and step": sent / 1e6,
            "seconds to send them, computed": exchange,
            "images a second that a process needs": needed,
            "images a second that it reads": read,
            "hours in all": slowest * steps * options.epochs / 3600,
            "breaks first": max(parts, key=parts.get),
            "MB of three checkpoints": 3 * (weights + gradients) / 1e6,
        }


if __name__ == "__main__":
    parser = output.parser(__doc__)
    parser.add_argument("--teacher", default="torchvision:resnet34")
    parser.add_argument("--student", default="torchvision:resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--bandwidth", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--read", type=float, default=0.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    found = []
    for row in rows(options):
        found.append(row)
        print(json.dumps(row), flush=True)
    sizes = {
        form: size_of(
            samples=options.samples,
            classes=options.classes,
            shapes={},
            epochs=options.epochs,
            form=top and TopK.of(top, options.classes),
        )
        / 1e9
        for form, top in (("all logits", None), (f"top {TOP}", TOP))
    }
    print(json.dumps({"GB of recorded outputs": sizes}))
    given = {key: value for key, value in vars(options).items() if key != "write"}
    n = {"steps": options.steps}
    output.write(options.write, {"n": n, "given": given, "rows": found, "recorded_gb": sizes})
